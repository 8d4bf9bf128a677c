#!/usr/bin/env python3
"""What a first load costs: time until a model answers, and memory of server and baking process, interleaved over ways of loading.

    measure.py NEW_BINARY OLD_BINARY OUT.jsonl [--rounds N] [--only KIND] [--group BYTES] [--large REPOSITORY]

Ways, one server start each, in this order in every round:

    plain       the new binary, --weight-cache off
    background  the new binary, an empty cache: the default first load; measured until its weights are in the store
    foreground  the new binary, an empty cache, --weight-bake foreground
    second      the new binary, the cache that `background` filled
    old-plain   the old binary, --weight-cache off
    old-first   the old binary, an empty cache: it bakes in the foreground
    old-second  the old binary, the cache that `old-first` filled

`ready_s` is from the start of the process until its log says that it is ready, `load_ms` what the log says of the load, `answer_s`
until the first answer of one row. `anon_mib` is the largest RssAnon plus RssShmem of the server until it answered, `later_mib` from
then until it is done; `hwm_mib` its VmHWM (which counts pages of files); `child_mib` the largest RssAnon of the process that bakes.
Read every 5 ms from /proc. With --group each server runs in a memory control group of so many bytes (version 1, as root).
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

KINDS = {"text-recogniser": [], "resnet50": [], "bert-base": []}
GROUPS = Path("/sys/fs/cgroup/memory")


def status(pid):
    found = {}
    try:
        for line in open(f"/proc/{pid}/status"):
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssShmem", "RssFile", "VmHWM"):
                found[name] = int(value.split()[0]) / 1024
    except OSError:
        pass
    return found


def children(pid):
    """Children that are worker processes by now: before it is replaced by the executable, a child has its parent's memory."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid and b"sandbox" in open(f"/proc/{entry}/cmdline", "rb").read().split(b"\0"):
                yield int(entry)
        except (OSError, IndexError):
            pass


def body_of(metadata):
    """A request of one row, of zeros."""
    def dims(tensor):
        return [1 if int(extent) < 0 else int(extent) for extent in tensor["shape"]]

    def tensor(spec):
        count = 1
        for extent in dims(spec):
            count *= extent
        zero = 0 if "INT" in spec["datatype"] else 0.0
        return {"name": spec["name"], "shape": dims(spec), "datatype": spec["datatype"], "data": [zero] * count}

    return json.dumps({"inputs": [tensor(spec) for spec in metadata["inputs"]]}).encode()


class Group:
    """A memory control group, and what it counted."""

    def __init__(self, limit):
        self.path = GROUPS / f"skep-first-load-{os.getpid()}"
        self.path.mkdir()
        (self.path / "memory.limit_in_bytes").write_text(str(limit))

    def enter(self):
        (self.path / "cgroup.procs").write_text("0")

    def figures(self):
        read = lambda name: (self.path / name).read_text()
        return {
            "group_peak_mib": int(read("memory.max_usage_in_bytes")) / 2**20,
            "group_failures": int(read("memory.failcnt")),
            "oom_kills": int(re.search(r"oom_kill (\d+)", read("memory.oom_control")).group(1)),
        }

    def close(self):
        for _ in range(100):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.05)


def start(binary, model, flags, until, group=None, limit_s=900):
    """Starts a server, asks once, waits for the log line `until`, stops it. What was measured."""
    command = [binary, "serve", model, *flags]
    command += [f"--{name}-{what}" for name in ("http", "grpc", "metrics") for what in ("address=127.0.0.1", "port=0")]
    began = time.monotonic()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=group and group.enter)
    lines, over = [], threading.Event()

    def read():
        for line in server.stderr:
            lines.append((time.monotonic() - began, line.rstrip()))

    threading.Thread(target=read, daemon=True).start()
    row = {"anon_mib": 0, "later_mib": 0, "hwm_mib": 0, "child_mib": 0, "child_file_mib": 0}
    answered = threading.Event()

    def look():
        while not over.is_set():
            of = status(server.pid)
            memory = of.get("RssAnon", 0) + of.get("RssShmem", 0)
            name = "later_mib" if answered.is_set() else "anon_mib"
            row[name] = max(row[name], memory)
            row["hwm_mib"] = max(row["hwm_mib"], of.get("VmHWM", 0))
            for child in children(server.pid):
                of = status(child)
                row["child_mib"] = max(row["child_mib"], of.get("RssAnon", 0))
                row["child_file_mib"] = max(row["child_file_mib"], of.get("RssFile", 0))
            time.sleep(0.005)

    watcher = threading.Thread(target=look)
    watcher.start()

    def wait(text):
        while True:
            for at, line in list(lines):
                if text in line:
                    return at, line
            assert server.poll() is None, "\n".join(line for _, line in lines)
            assert time.monotonic() - began < limit_s, f"no {text!r}:\n" + "\n".join(line for _, line in lines)
            time.sleep(0.002)

    try:
        row["ready_s"], _ = wait("started, ready for requests")
        row["load_ms"] = int(re.search(r"in (\d+) ms", wait("loaded model")[1]).group(1))
        base = "http://" + re.search(r'HTTPService at ([^"]+)"', wait("Started HTTPService")[1]).group(1)
        with urllib.request.urlopen(f"{base}/v2/models/m") as answer:
            body = body_of(json.load(answer))
        urllib.request.urlopen(f"{base}/v2/models/m/infer", body).read()
        row["answer_s"] = time.monotonic() - began
        answered.set()
        row["log"] = []
        if until:
            row["done_s"], _ = wait(until)
            time.sleep(0.5)
        row["log"] = [line for _, line in lines if re.search("bak|store|loaded model", line)]
    finally:
        over.set()
        watcher.join()
        server.send_signal(signal.SIGTERM)
        server.wait()
    if group:
        row.update(group.figures())
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("new")
    parser.add_argument("old")
    parser.add_argument("out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only")
    parser.add_argument("--ways")
    parser.add_argument("--group", type=int)
    parser.add_argument("--large", help="a repository with a model `m`, as large.py writes it, instead of generated ones")
    parser.add_argument("--tmp", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.tmp) as root, open(options.out, "a") as out:
        for kind in [options.only] if options.only else KINDS:
            model = Path(root) / "models"
            shutil.rmtree(model, ignore_errors=True)
            more = ["--external-data"] if options.group else []
            if options.large:
                model = options.large
            else:
                subprocess.run([options.old, "generate", kind, model, "--repository", "m", *more], check=True)
            # A file that was changed a moment ago is read at every load.
            time.sleep(3)
            for round_ in range(options.rounds):
                new, old = Path(root) / "new", Path(root) / "old"
                for cache in (new, old):
                    shutil.rmtree(cache, ignore_errors=True)
                stored = "are in the tensor store"
                done = "runs on its baked form" if options.group else stored
                ways = {
                    "plain": (options.new, ["--weight-cache=off"], None),
                    "background": (options.new, [f"--weight-cache={new}"], done),
                    "second": (options.new, [f"--weight-cache={new}"], None if options.group else stored),
                    "foreground": (options.new, [f"--weight-cache={new}-other", "--weight-bake=foreground"], None),
                    "old-plain": (options.old, ["--weight-cache=off"], None),
                    "old-first": (options.old, [f"--weight-cache={old}"], None),
                    "old-second": (options.old, [f"--weight-cache={old}"], stored),
                }
                for way, (binary, flags, until) in ways.items():
                    if options.ways and way not in options.ways.split(","):
                        continue
                    group = Group(options.group) if options.group else None
                    try:
                        row = start(binary, model, flags, until, group)
                    except AssertionError as error:
                        row = {"failed": str(error)[-2000:]}
                    finally:
                        if group:
                            group.close()
                    row = {"kind": kind, "way": way, "round": round_, **row}
                    shown = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items() if k not in ("log", "failed")}
                    print(json.dumps(shown), flush=True)
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                shutil.rmtree(f"{new}-other", ignore_errors=True)


if __name__ == "__main__":
    main()
