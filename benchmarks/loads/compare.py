#!/usr/bin/env python3
"""What loads cost one server beside another, in turns.

    python3 benchmarks/loads/compare.py OUT.jsonl SKEP OTHER_SKEP [--kind KIND] [--rounds N]

Each round starts each binary once in each way, in an order that alternates:

    plain       without a weight cache
    foreground  with an empty cache: the load bakes the model first
    second      with the cache that the binary filled before: its weights come from the tensor store

`cpu_s` is the CPU time of the server and of its children from the start until the log says that the model is loaded,
`load_ms` the time that the log says. The table shows medians, and the ratio of the pairs.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

WAYS = ("plain", "foreground", "second")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """CPU time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def load(binary, repository, way, cache):
    """Starts a server, waits until its model is loaded, stops it."""
    flags = {
        "plain": ["--weight-cache", "off"],
        "foreground": ["--weight-cache", str(cache), "--weight-bake", "foreground"],
        "second": ["--weight-cache", str(cache)],
    }[way]
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    command = [binary, "serve", str(repository), *ports, *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        log = []
        for line in server.stderr:
            log.append(line)
            if found := re.search(r"loaded model .* in (\d+) ms", line):
                row = {"cpu_s": cpu_seconds(server.pid), "load_ms": int(found.group(1))}
                server.terminate()
                server.stderr.read()
                server.wait()
                return row
        raise SystemExit("".join(log))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("binaries", nargs=2)
    parser.add_argument("--kind", default="resnet50")
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as root:
        repository = Path(root, "models")
        model = repository / given.kind / "1"
        model.mkdir(parents=True)
        subprocess.run([given.binaries[0], "generate", given.kind, model / "model.onnx"], check=True, stdout=subprocess.DEVNULL)
        filled = [Path(root, f"cache-{index}") for index in range(2)]
        for index in range(2):
            load(given.binaries[index], repository, "foreground", filled[index])
        for round_ in range(given.rounds):
            for way in WAYS:
                for index in (0, 1) if round_ % 2 else (1, 0):
                    empty = Path(root, "empty")
                    shutil.rmtree(empty, ignore_errors=True)
                    cache = filled[index] if way == "second" else empty
                    row = load(given.binaries[index], repository, way, cache)
                    rows.append({"kind": given.kind, "round": round_, "way": way, "binary": index, **row})
    with given.out.open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    print("| model | way | CPU s | of the other | ratio by pairs: median, least, most | load ms | of the other |")
    print("|---|---|---|---|---|---|---|")
    for way in WAYS:
        own, other = ([row for row in rows if row["way"] == way and row["binary"] == index] for index in range(2))
        ratios = [a["cpu_s"] / b["cpu_s"] for a, b in zip(own, other)]
        ratio = f"{statistics.median(ratios):.3f}, {min(ratios):.3f}, {max(ratios):.3f}"
        medians = [statistics.median(row[name] for row in side) for name in ("cpu_s", "load_ms") for side in (own, other)]
        print(f"| {given.kind} | {way} | {medians[0]:.2f} | {medians[1]:.2f} | {ratio} | {medians[2]:.0f} | {medians[3]:.0f} |")


if __name__ == "__main__":
    main()
