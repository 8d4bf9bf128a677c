"""Live configuration beside every fixed configuration, through the server, on this machine.

Three generated models are profiled. Then each answers the same Poisson arrivals, at several rates, with every number of
instances and threads that the cores allow and several caps on batches, and with live configuration. Latencies count from a
request's moment. Rounds are interleaved: one after the other, every configuration once. CLIENT is the example `open_loop` of skep-perf, built with --release.

    python benchmarks/live-configuration/measure.py SKEP CLIENT OUT [--seconds 5] [--rounds 2] [--only 1x2,2x1]

OUT/raw.jsonl has a line for each run, OUT/profiles.json the profiles, OUT/summary.md the table.
"""

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# Name, and what `skep generate` makes.
MODELS = [
    ("mobilenet", "mobilenetv2"),
    ("resnet", "resnet50"),
    ("mlp", "mlp:layers=4096x4096x4096x1024"),
]
MAX_BATCH = 8
CAPS = [1, 4, 8]
# Of the highest throughput that the profile has.
LOADS = [0.2, 0.6]
LIVE = 'dynamic_batching { }\nparameters { key: "live_configuration" value { string_value: "1" } }'


def fixed(instances, threads):
    return f"""dynamic_batching {{ }}
instance_group {{ count: {instances} kind: KIND_CPU }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}"""


def configurations(cores, only=None):
    shapes = [(i, t) for t in range(1, cores + 1) for i in range(1, cores // t + 1)]
    return [(i, t, b) for i, t in shapes if only is None or f"{i}x{t}" in only.split(",") for b in CAPS]


class Server:
    def __init__(self, binary, repository, *flags):
        command = [binary, "serve", repository, "--http-port=0", "--allow-grpc=false", "--allow-metrics=false", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.address = None
        self.ready = threading.Event()
        threading.Thread(target=self.read, daemon=True).start()
        if not self.ready.wait(120):
            raise SystemExit("the server does not start")

    def read(self):
        for line in self.process.stderr:
            if "Started HTTPService at " in line:
                self.address = line.split("Started HTTPService at ")[1].split('"')[0].strip()
            if "ready for requests" in line:
                self.ready.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def get(self, path):
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"))
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())

    def configuration(self, name):
        models = self.get("/v2/skep/residency")["models"]
        return next(row for row in models if row["name"] == name).get("configuration")


def play(client, server, name, moments):
    """Latencies in milliseconds, from each request's moment; failures end the run."""
    lines = "".join(f"{moment:.6f}\n" for moment in moments)
    command = [client, f"http://{server.address}", name]
    outcome = subprocess.run(command, input=lines, capture_output=True, text=True)
    if outcome.returncode:
        raise SystemExit(f"requests failed: {outcome.stderr}")
    return sorted(float(line) for line in outcome.stdout.split())


def arrivals(rate, seconds, seed):
    generator = random.Random(seed)
    moments, at = [], 0.0
    while (at := at + generator.expovariate(rate)) < seconds:
        moments.append(at)
    return moments


def quantile(latencies, share):
    return latencies[min(len(latencies) - 1, int(share * len(latencies)))]


def summary(rows):
    lines = [
        "| model | requests/s | live: instances x threads, batch | live p50, ms | live p95, ms | the same fixed, p95, ms | best p95 of all fixed, ms | which | live over best | same fixed over best | worst fixed p95, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def median(values):
        ordered = sorted(values)
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2

    for name, load in sorted({(row["model"], row["load"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["load"]) == (name, load)]
        groups = {}
        for row in own:
            groups.setdefault("live" if row["live"] else tuple(row["configuration"]), []).append(row)
        p95 = {key: median([row["p95_ms"] for row in group]) for key, group in groups.items()}
        p50 = {key: median([row["p50_ms"] for row in group]) for key, group in groups.items()}
        of_fixed = {key: value for key, value in p95.items() if key != "live"}
        best = min(of_fixed, key=of_fixed.get)
        chosen = groups["live"][-1]["configuration"]
        # Of the caps that were measured the closest.
        cap = min(CAPS, key=lambda cap: abs(cap - chosen[2]))
        same = of_fixed[chosen[0], chosen[1], cap]
        lines.append(
            f"| {name} | {own[0]['rate']:.1f} | {chosen[0]} x {chosen[1]}, {chosen[2]} | {p50['live']:.1f} | {p95['live']:.1f} "
            f"| {same:.1f} | {of_fixed[best]:.1f} | {best[0]} x {best[1]}, {best[2]} | {p95['live'] / of_fixed[best]:.2f} "
            f"| {same / of_fixed[best]:.2f} | {max(of_fixed.values()):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("client")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="fixed configurations alone whose instances x threads are listed, as in 1x2,2x1")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    cache = tempfile.mkdtemp(prefix="live-configuration-")
    root = Path(cache) / "models"
    root.mkdir()
    profiles = args.out / "profiles.json"
    flags = [f"--weight-cache={cache}/cache"]
    for name, kind in MODELS:
        subprocess.run([args.binary, "generate", kind, root / "all", "--repository", name], check=True)
        (root / "all" / name / "config.pbtxt").write_text(f"max_batch_size: {MAX_BATCH}\n{LIVE}")
        command = [args.binary, "profile", root / "all" / name, "--max-batch", str(MAX_BATCH), "--output", profiles]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([args.binary, "bake", root / "all", *flags], check=True, stdout=subprocess.DEVNULL)
    most = {
        model["name"]: max(one["requests_per_second"] for one in model["configurations"])
        for model in json.loads(profiles.read_text())["models"]
    }
    rows = []
    with open(args.out / "raw.jsonl", "w") as raw:
        for round_number in range(args.rounds):
            for name, _ in MODELS:
                directory = root / "all" / name
                for choice in [*configurations(cores, args.only), None]:
                    cap = choice[2] if choice else MAX_BATCH
                    text = fixed(choice[0], choice[1]) if choice else LIVE
                    (directory / "config.pbtxt").write_text(f"max_batch_size: {cap}\n{text}")
                    more = [] if choice else [f"--profiles={profiles}"]
                    only = ["--model-control-mode=explicit", f"--load-model={name}"]
                    with Server(args.binary, root / "all", *only, *flags, *more) as server:
                        for load in LOADS:
                            rate = load * most[name]
                            if choice is None:
                                # Until the configuration has followed the rate: the last one may stay for 20 s.
                                play(args.client, server, name, arrivals(rate, 24, 7))
                            else:
                                play(args.client, server, name, arrivals(rate, 1, 7))
                            moments = arrivals(rate, args.seconds, 1000 * round_number + int(100 * load))
                            latencies = play(args.client, server, name, moments)
                            row = {
                                "round": round_number,
                                "model": name,
                                "load": load,
                                "rate": rate,
                                "live": choice is None,
                                "configuration": choice,
                                "requests": len(latencies),
                                "p50_ms": quantile(latencies, 0.5),
                                "p95_ms": quantile(latencies, 0.95),
                                "p99_ms": quantile(latencies, 0.99),
                            }
                            if choice is None:
                                run = server.configuration(name)
                                row["configuration"] = [run["instances"], run["threads"], run["batch"]]
                                row["predicted_p95_ms"] = run.get("predicted_p95_ms")
                                row["why"] = run["why"]
                            rows.append(row)
                            raw.write(json.dumps(row) + "\n")
                            raw.flush()
                            print(row["model"], row["configuration"], f"{rate:.1f}/s p95 {row['p95_ms']:.1f} ms", file=sys.stderr)
            (args.out / "summary.md").write_text(summary(rows))


if __name__ == "__main__":
    main()
