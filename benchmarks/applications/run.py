"""Four applications on a real server, in three ways: `run.py SKEP OUT [--seconds N] [--load PART]`.

    selection     instances, threads and batches that `skep pack` selects out of profiles; one process, shared weights
    by request    an instance for each request that is under way at a time, each a process with its own weights
    batching      one instance a model, a process with its own weights, and batches

The applications are those of Tetris (ATC'22) and INFless (ASPLOS'22) by name and form; their models are generated ones.
Requests come in an open loop, in bursts, and pass through the models of their application one after another; they are in
time within the sum of five times what each model takes alone, 20 ms at least. Each way gets the same requests. Appends
lines of JSON to OUT. The machine must be idle otherwise.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "residency"))
from measure import SEQUENCE, Connections, Node, generate, quantile, requests_of, say  # noqa: E402

SENTENCE = "bert:layers=4,hidden=256,heads=4,intermediate=1024,vocab=8000"
# By application: the models of its stages, their kinds, and flags of `skep generate`.
APPLICATIONS = {
    "SVT": [
        ("ssd", "cnn", []),
        ("mobilenet", "mobilenetv2", []),
        ("resnet-50", "resnet50", []),
    ],
    "QA-Audio": [
        ("stt", "text-recogniser", []),
        ("use-qa", SENTENCE, ["--variant=head", "--variant-seed=1"]),
        ("fastspeech2", "bert:layers=3,hidden=256,heads=4,intermediate=1024,vocab=8000", ["--batch=1"]),
    ],
    "SS": [("use", SENTENCE, ["--variant=head", "--variant-seed=2", "--batch=1"])],
    "QA-Text": [
        ("textcnn", "mlp:layers=512x2048x1024x64", []),
        ("lstm", "mlp:layers=256x1024x1024x32", ["--seed=1"]),
        ("dssm", "mlp:layers=256x512x512x32", ["--seed=2"]),
    ],
}
# What part of the work each application brings.
SHARES = {"SVT": 0.4, "QA-Audio": 0.3, "SS": 0.15, "QA-Text": 0.15}
SLO_TIMES, LEAST_SLO_MS = 5, 20
MAX_BATCH = 4
# A step of the bursts, in seconds; of the steps so many are empty.
STEP_S, EMPTY = 5, 0.38


def cannot_batch(flags):
    return "--batch=1" in flags


def models():
    return [model for stages in APPLICATIONS.values() for model in stages]


def bursts(rate, seconds, source):
    """Moments of requests: on and off, at a rate that drifts while it is on."""
    moments, level, on = [], 0.0, True
    for step in range(int(seconds / STEP_S)):
        if on:
            now = rate / (1 - EMPTY) * 2.718281828 ** (0.4 * level - 0.08)
            at = source.expovariate(now)
            while at < STEP_S:
                moments.append(step * STEP_S + at)
                at += source.expovariate(now)
        level = 0.9 * level + 0.436 * source.gauss(0, 1)
        stay = 8 if on else 8 * EMPTY / (1 - EMPTY)
        if source.random() < 1 / stay:
            on = not on
    return moments


def under_way(moments, holds_s):
    """The most requests at a time if each takes so long."""
    ends, most = [], 0
    for at in moments:
        ends = [end for end in ends if end > at] + [at + holds_s]
        most = max(most, len(ends))
    return most


def write_config(repository, name, flags, **settings):
    batch = 0 if cannot_batch(flags) else settings.get("batch", 1)
    lines = [f'backend: "onnxruntime"\nmax_batch_size: {batch}']
    lines.append(f"instance_group [{{ count: {settings['instances']} kind: KIND_CPU }}]")
    if batch > 1:
        lines.append("dynamic_batching { %s }" % settings.get("batching", ""))
    for key, value in settings.get("parameters", {}).items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    (repository / name / "config.pbtxt").write_text("\n".join(lines) + "\n")


def processes_pss_mib(pid):
    """PSS of a process and all that it started."""
    every = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile; those that start workers do not.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            every += [int(child) for child in (thread / "children").read_text().split()]
    total = 0
    for one in [pid, *every]:
        text = Path(f"/proc/{one}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss: +(\d+)", text, re.M).group(1)) / 1024
    return total, len(every) + 1


def select(args, repository, objectives, rates, out):
    """Instances, threads and the largest batch of each model, as `skep pack` selects them."""
    profiles = repository.parent / "profiles.json"
    took = {}
    for name, kind, _ in models():
        command = [args.skep, "profile", repository / name, "--output", profiles, "--max-batch", str(MAX_BATCH)]
        if kind.startswith("bert"):
            for port in ["input_ids", "attention_mask", "token_type_ids"]:
                command += ["--shape", f"{port}=1,{SEQUENCE}"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took[name] = time.perf_counter() - began
    say(out, what="profile", seconds=took)
    command = [args.skep, "pack", "--profiles", profiles, "--device", "name=node,cpus=0-63,memory=16G", "--json"]
    for name in objectives:
        command += ["--rate", f"{name}={rates[name]:.3f},{objectives[name]:.1f}"]
    packed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    (repository.parent / "packed.json").write_text(json.dumps(packed, indent=1))
    return packed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("skep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--load", type=float, default=0.35, help="the part of two cores that the models keep busy")
    parser.add_argument("--only", action="append")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scratch", default="/var/tmp")
    args = parser.parse_args()
    args.skep = args.skep.resolve()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        measure(args, Path(scratch))


def measure(args, scratch):
    repository, out = scratch / "models", args.out
    repository.mkdir()
    for name, kind, flags in models():
        generate(args.skep, kind, repository, name, *flags)
    messages, latency = requests_of(args.skep, repository, {name: name for name, _, _ in models()})
    objectives = {name: max(SLO_TIMES * latency[name], LEAST_SLO_MS) for name in latency}
    source, asked, rates, most = random.Random(5), [], {}, {}
    for application, stages in APPLICATIONS.items():
        work = sum(latency[name] for name, _, _ in stages) / 1e3
        rate = 2 * args.load * SHARES[application] / work
        moments = bursts(rate, args.seconds, source)
        asked += [(at, application) for at in moments]
        for name, _, _ in stages:
            # On two cores requests take each other's time.
            most[name] = under_way(moments, 2 * latency[name] / 1e3)
            steps = range(0, int(args.seconds), STEP_S)
            rates[name] = max(sum(begin <= at < begin + STEP_S for at in moments) for begin in steps) / STEP_S
    asked.sort()
    say(out, what="setting", latency_ms=latency, peak_rates=rates, under_way=most, requests=len(asked), seconds=args.seconds)
    packed = select(args, repository, objectives, rates, out)
    flags_of = {name: flags for name, _, flags in models()}
    own = {"isolation": "process"}
    cache = f"--weight-cache={scratch}/cache"
    subprocess.run([args.skep, "bake", repository, cache], check=True, stdout=subprocess.DEVNULL)

    def selection(name):
        chosen = next(model["instances"] for model in packed["models"] if model["name"] == name)
        instances = sum(one["instances"] for one in chosen)
        threads = max(one["threads"] for one in chosen)
        batch = max(one["batch"] for one in chosen)
        parameters = {"slo_latency_ms": f"{objectives[name]:.1f}", "intra_op_thread_count": threads}
        return dict(instances=instances, batch=batch, parameters=parameters)

    ways = {
        "selection": (selection, [cache]),
        "by request": (lambda name: dict(instances=max(1, most[name]), parameters=own), ["--weight-cache=off"]),
        "batching": (
            lambda name: dict(
                instances=1, batch=MAX_BATCH, parameters=own,
                batching=f"max_queue_delay_microseconds: {int(objectives[name] / 4 * 1000)}",
            ),
            ["--weight-cache=off"],
        ),
    }
    for number in range(args.rounds):
        for way in args.only or ways:
            settings, flags = ways[way]
            for name, model_flags in flags_of.items():
                write_config(repository, name, model_flags, **settings(name))
            run(args, way, flags, repository, messages, objectives, asked, number)


def run(args, way, flags, repository, messages, objectives, asked, number):
    stages = {name: [stage for stage, _, _ in chain] for name, chain in APPLICATIONS.items()}
    allowed = {name: sum(objectives[stage] for stage in chain) for name, chain in stages.items()}
    with Node(args.skep, repository, *flags) as node:
        took, errors = {name: [] for name in stages}, 0
        peaks = {"pss": 0.0, "processes": 0}

        async def main():
            nonlocal errors
            connections = Connections(node.http)
            start = time.perf_counter()

            async def one(at, application):
                nonlocal errors
                ok = True
                for stage in stages[application]:
                    ok = await connections.send(messages[stage]) == 200
                    if not ok:
                        errors += 1
                        break
                ms = (time.perf_counter() - start - at) * 1e3
                took[application].append(ms if ok else float("inf"))

            async def watch():
                while True:
                    pss, count = await asyncio.to_thread(processes_pss_mib, node.process.pid)
                    peaks.update(pss=max(peaks["pss"], pss), processes=max(peaks["processes"], count))
                    await asyncio.sleep(10)

            watcher = asyncio.create_task(watch())
            tasks = []
            for at, application in asked:
                delay = start + at - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                tasks.append(asyncio.create_task(one(at, application)))
            await asyncio.gather(*tasks)
            watcher.cancel()

        asyncio.run(main())
        pss, _ = processes_pss_mib(node.process.pid)
        late = {name: sum(ms > allowed[name] for ms in values) for name, values in took.items()}
        say(
            args.out, what=way, round=number, requests=len(asked), late_percent=100 * sum(late.values()) / len(asked),
            late=late, refused=errors, pss_mib=pss, peak_pss_mib=max(pss, peaks["pss"]), processes=peaks["processes"],
            p50_ms={name: quantile(values, 0.5) for name, values in took.items()},
            p99_ms={name: quantile(values, 0.99) for name, values in took.items()},
            allowed_ms=allowed, ready_s=node.ready_s,
        )


if __name__ == "__main__":
    main()
