"""Residency on a real server: `measure.py PART SKEP OUT [--recording FILE] [--seconds N]`.

    trace          100 variants of a backbone and 20 other small models under 1 GiB, requests as recorded, in an open loop
    first-answer   how long the first request for a model takes: its weights baked, or the model never seen
    neighbours     latency of a model in memory while others load and leave
    churn          loads and departures at 90 % of a control group's limit: kills, memory, errors
    many           10,000 models: start, index, statistics, metrics, memory, poll

Each part appends lines of JSON to OUT. The machine must be idle otherwise. Python's standard library is enough; control
groups are those of version 1, and need root.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MIB = 1 << 20
SIZES = {"INT64": 8, "INT32": 4, "FP32": 4}
BACKBONE = "bert:layers=4,hidden=256,heads=4,intermediate=1024,vocab=8000"
OTHERS = [
    "bert:layers=3,hidden=256,heads=4,intermediate=1024,vocab=8000",
    "bert:layers=4,hidden=192,heads=4,intermediate=1024,vocab=8000",
    "bert:layers=5,hidden=192,heads=4,intermediate=1024,vocab=8000",
    "bert:layers=6,hidden=192,heads=4,intermediate=1024,vocab=8000",
]
SEQUENCE = 64
# From here on every model has mostly been asked for once.
SETTLED_S = 60


def say(out, **row):
    line = json.dumps(row)
    print(line, flush=True)
    with open(out, "a") as file:
        file.write(line + "\n")


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Node:
    """A running server."""

    def __init__(self, binary, repository, *flags, group=None):
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--http-address=127.0.0.1"]
        command = [str(binary), "serve", str(repository), *ports, *flags]
        if group:
            command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group), *command]
        self.began = time.perf_counter()
        self.log_path = tempfile.mktemp(prefix="skep-bench-")
        self.process = subprocess.Popen(command, stderr=open(self.log_path, "wb"), stdout=subprocess.DEVNULL)
        while "ready for requests" not in self.log:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{self.log}")
            time.sleep(0.002)
        self.ready_s = time.perf_counter() - self.began
        self.http = self._port("HTTPService")
        self.metrics = self._port("Metrics Service")

    @property
    def log(self):
        return Path(self.log_path).read_text(errors="replace")

    def _port(self, name):
        return int(re.search(rf"Started {name} at \S+:(\d+)", self.log).group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        os.unlink(self.log_path)

    def get(self, path, body=None, port=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.http}{path}", data, method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def json(self, path, body=None):
        return json.loads(self.get(path, body))

    def pss_mib(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss: +(\d+)", text, re.M).group(1)) / 1024

    def anonymous_mib(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Anonymous: +(\d+)", text, re.M).group(1)) / 1024

    def cpu_s(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def request(self, model):
        """The bytes of an inference request for one sequence, zeros throughout."""
        inputs, data = [], b""
        for port in self.json(f"/v2/models/{model}")["inputs"]:
            shape = [1 if i == 0 else (SEQUENCE if dim < 0 else dim) for i, dim in enumerate(port["shape"])]
            size = SIZES[port["datatype"]]
            for dim in shape:
                size *= dim
            parameters = {"binary_data_size": size}
            inputs.append(dict(name=port["name"], datatype=port["datatype"], shape=shape, parameters=parameters))
            data += bytes(size)
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        return head, data

    @staticmethod
    def message(model, head, data):
        return (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(head) + len(data)}\r\n"
            f"inference-header-content-length: {len(head)}\r\n\r\n"
        ).encode() + head + data


class Connections:
    """Connections of one server, as many as requests are under way."""

    def __init__(self, port):
        self.port, self.free = port, []

    async def send(self, message):
        """The status of the answer."""
        reader, writer = self.free.pop() if self.free else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"\r\ncontent-length: (\d+)", head, re.I).group(1))
        body = await reader.readexactly(length)
        self.free.append((reader, writer))
        status = int(head[9:12])
        if status != 200:
            print(f"{status}: {body.decode(errors='replace')}", file=sys.stderr, flush=True)
        return status


def generate(binary, kind, repository, name, *flags):
    subprocess.run([binary, "generate", kind, repository, "--repository", name, *flags], check=True, stdout=subprocess.DEVNULL)


def write_fleet(binary, repository, variants, others, backbone=BACKBONE):
    """Variants of the backbone, and other models: the kind of each name."""
    kinds = {}
    for number in range(variants):
        name = f"variant-{number}"
        generate(binary, backbone, repository, name, "--variant=head", f"--variant-seed={number + 1}")
        kinds[name] = backbone
    for number in range(others):
        kind = OTHERS[number % len(OTHERS)]
        name = f"other-{number}"
        generate(binary, kind, repository, name, f"--seed={number}")
        kinds[name] = kind
    return kinds


def requests_of(binary, repository, kinds):
    """A request's bytes for each model, and how long one of each kind takes, in ms."""
    first = {}
    for name, kind in kinds.items():
        first.setdefault(kind, name)
    bodies, latency = {}, {}
    with Node(binary, repository, "--weight-cache=off", "--model-control-mode=explicit") as node:
        for kind, name in first.items():
            node.get(f"/v2/repository/models/{name}/load", {})
            bodies[kind] = node.request(name)

            async def timed():
                connections, took = Connections(node.http), []
                for _ in range(60):
                    began = time.perf_counter()
                    assert await connections.send(Node.message(name, *bodies[kind])) == 200
                    took.append((time.perf_counter() - began) * 1e3)
                return statistics.median(took[10:])

            latency[kind] = asyncio.run(timed())
    return {name: Node.message(name, *bodies[kind]) for name, kind in kinds.items()}, latency


def recorded(path):
    """The moments of a recording in seconds, from its first on: of a CSV file with a TIMESTAMP, or of one number a line."""
    lines = Path(path).read_text().splitlines()
    if "TIMESTAMP" in lines[0]:
        moments = []
        for line in lines[1:]:
            hours, minutes, seconds = line.split(",")[0].split(" ")[1].split(":")
            moments.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds))
    else:
        moments = [float(line) for line in lines if line.strip()]
    start = min(moments)
    return sorted(moment - start for moment in moments)


def arrivals(moments, speed, models, rates, seconds, seed):
    """(moment, model): each model gets a part of the recording, which begins for each at another of its moments."""
    source = random.Random(seed)
    fast = [moment / speed for moment in moments]
    span, whole = fast[-1], len(fast) / fast[-1]
    arrived = []
    for model, rate in zip(models, rates):
        start = source.random() * span
        for copy in range(int(seconds / span) + 2):
            for moment in fast:
                at = moment - start + copy * span
                # A model with a higher rate than the recording gets several at once.
                for _ in range(int(rate / whole) + (source.random() < rate / whole % 1)):
                    if 0 <= at < seconds:
                        arrived.append((at, model))
    return sorted(arrived)


def trace(args):
    binary, out = args.skep, args.out
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        repository = Path(scratch) / "models"
        repository.mkdir()
        kinds = write_fleet(binary, repository, 100, 20)
        messages, latency = requests_of(binary, repository, kinds)
        models = sorted(kinds)
        random.Random(7).shuffle(models)
        shares = [1 / (place + 1) for place in range(len(models))]
        # 60 % of two cores.
        work = sum(share * latency[kinds[model]] / 1e3 for share, model in zip(shares, models))
        rates = [share * 1.2 / work for share in shares]
        asked = arrivals(recorded(args.recording), 10, models, rates, args.seconds, seed=3)
        say(out, part="trace", what="setting", latency_ms=latency, requests=len(asked), per_second=len(asked) / args.seconds)
        cache = f"--weight-cache={scratch}/cache"
        budget = f"--memory-budget={args.budget_mib * MIB}"
        # Forms are baked once, ahead: what is measured is not the first day of a node.
        subprocess.run([binary, "bake", repository, cache], check=True, stdout=subprocess.DEVNULL)
        settings = {
            "residency and sharing": ["--load-policy=lazy", budget, cache],
            "residency without sharing": ["--load-policy=lazy", budget, "--weight-cache=off"],
            "without residency": [cache],
        }
        for name in args.only or settings:
            measure_trace(args, name, settings[name], repository, messages, latency, kinds, asked)


def measure_trace(args, name, flags, repository, messages, latency, kinds, asked):
    with Node(args.skep, repository, *flags) as node:
        latencies, settled, statuses = [], [], {}

        async def run():
            connections = Connections(node.http)
            start = time.perf_counter()

            async def one(at, model):
                status = await connections.send(messages[model])
                took = time.perf_counter() - start - at
                statuses[status] = statuses.get(status, 0) + 1
                if status == 200:
                    latencies.append((took * 1e3, latency[kinds[model]]))
                    if at >= SETTLED_S:
                        settled.append(took * 1e3 <= 5 * latency[kinds[model]])

            async def watch():
                peaks, looks = {"pss": 0, "anonymous": 0, "used": 0, "resident": 0}, 0
                while True:
                    status = json.loads(await asyncio.to_thread(node.get, "/v2/skep/residency?state=leaving"))
                    peaks["used"] = max(peaks["used"], status["memory"]["used"] / MIB)
                    peaks["resident"] = max(peaks["resident"], status["states"]["resident"])
                    # Reading it stops the process's page faults for some milliseconds.
                    if looks % 20 == 10:
                        peaks["pss"] = max(peaks["pss"], node.pss_mib())
                        peaks["anonymous"] = max(peaks["anonymous"], node.anonymous_mib())
                    looks += 1
                    yield_to.update(peaks)
                    await asyncio.sleep(1)

            yield_to = {}
            watcher = asyncio.create_task(watch())
            tasks, late = [], []
            for at, model in asked:
                delay = start + at - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                late.append(time.perf_counter() - start - at)
                tasks.append(asyncio.create_task(one(at, model)))
            await asyncio.gather(*tasks)
            watcher.cancel()
            return yield_to, late

        cpu, own = node.cpu_s(), time.process_time()
        began = time.perf_counter()
        peaks, late = asyncio.run(run())
        passed = time.perf_counter() - began
        status = node.json("/v2/skep/residency?state=leaving")
        took = [ms for ms, _ in latencies]
        say(
            args.out,
            part="trace",
            what=name,
            requests=len(asked),
            statuses=statuses,
            violations_percent=100 * (1 - sum(ms <= 5 * single for ms, single in latencies) / len(asked)),
            violations_percent_after_a_minute=100 * (1 - sum(settled) / len(settled)) if settled else None,
            cold_starts=status["decision_counts"]["load"],
            evictions=status["decision_counts"]["evict"],
            p50_ms=quantile(took, 0.5),
            p99_ms=quantile(took, 0.99),
            max_ms=max(took),
            peak_pss_mib=peaks["pss"],
            peak_anonymous_mib=peaks["anonymous"],
            peak_used_mib=peaks["used"],
            peak_resident=peaks["resident"],
            cores=(node.cpu_s() - cpu) / passed,
            client_cores=(time.process_time() - own) / passed,
            sender_late_p99_ms=quantile(late, 0.99) * 1e3,
            ready_s=node.ready_s,
        )


def first_answer(args):
    for kind in ["bert-tiny", BACKBONE]:
        first_answers_of(args, kind)


def first_answers_of(args, kind):
    binary, count = args.skep, 60
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        repository = Path(scratch) / "models"
        repository.mkdir()
        kinds = write_fleet(binary, repository, count, 0, kind)
        messages, latency = requests_of(binary, repository, kinds)
        cache = f"--weight-cache={scratch}/cache"
        subprocess.run([binary, "bake", repository, cache], check=True, stdout=subprocess.DEVNULL)

        def ask(node, model):
            async def one():
                connections = Connections(node.http)
                # Connected before the clock starts.
                connections.free.append(await asyncio.open_connection("127.0.0.1", node.http))
                began = time.perf_counter()
                assert await connections.send(messages[model]) == 200
                return (time.perf_counter() - began) * 1e3

            return asyncio.run(one())

        names = sorted(kinds)
        with Node(binary, repository, "--load-policy=lazy", cache) as node:
            first = ask(node, names[0])
            baked = [ask(node, name) for name in names[1:]]
        say(args.out, part="first-answer", what="baked", kind=kind, inference_ms=latency[kind], models=len(baked), first_of_server_ms=first, p50_ms=quantile(baked, 0.5), p99_ms=quantile(baked, 0.99), max_ms=max(baked))
        flags = ["--load-policy=lazy", cache, f"--memory-budget={30 * MIB if kind == 'bert-tiny' else 60 * MIB}"]
        with Node(binary, repository, *flags) as node:
            for name in names:
                ask(node, name)
            again = [ask(node, name) for name in names if node_state(node, name) == "stored"]
        say(args.out, part="first-answer", what="stored, left before", kind=kind, models=len(again), p50_ms=quantile(again, 0.5), p99_ms=quantile(again, 0.99), max_ms=max(again))

        # Never seen, against the load and the request by hand, on servers that keep nothing; alternately.
        pairs = []
        plain = ["--weight-cache=off"]
        with Node(binary, repository, "--load-policy=lazy", *plain) as lazy, Node(binary, repository, "--model-control-mode=explicit", *plain) as explicit:
            for name in names:
                lazily = ask(lazy, name)
                began = time.perf_counter()
                explicit.get(f"/v2/repository/models/{name}/load", {})
                loaded = (time.perf_counter() - began) * 1e3
                pairs.append((lazily, loaded + ask(explicit, name)))
        pairs = pairs[1:]
        say(
            args.out, part="first-answer", what="never seen", kind=kind, models=len(pairs),
            p50_ms=quantile([a for a, _ in pairs], 0.5), p99_ms=quantile([a for a, _ in pairs], 0.99),
            plain_p50_ms=quantile([b for _, b in pairs], 0.5), plain_p99_ms=quantile([b for _, b in pairs], 0.99),
            median_ratio=statistics.median(a / b for a, b in pairs),
        )


def node_state(node, name):
    [found] = [model for model in node.json("/v2/skep/residency")["models"] if model["name"] == name]
    return found["state"]


def neighbours(args):
    binary = args.skep
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        repository = Path(scratch) / "models"
        repository.mkdir()
        kinds = write_fleet(binary, repository, 40, 1)
        messages, latency = requests_of(binary, repository, kinds)
        cache = f"--weight-cache={scratch}/cache"
        subprocess.run([binary, "bake", repository, cache], check=True, stdout=subprocess.DEVNULL)
        resident = [name for name in kinds if not name.startswith("variant")][0]
        others = [name for name in kinds if name.startswith("variant")]
        with Node(binary, repository, "--load-policy=lazy", cache, f"--memory-budget={args.budget_mib * MIB}") as node:

            async def phase(seconds, asked):
                """Latency of the model in memory while these others are asked for in turn, five times a second."""
                connections = Connections(node.http)
                took = []
                end = time.perf_counter() + seconds

                async def disturb():
                    place = 0
                    while time.perf_counter() < end:
                        assert await connections.send(messages[asked[place % len(asked)]]) == 200
                        place += 1
                        await asyncio.sleep(0.2)

                task = asyncio.create_task(disturb())
                while time.perf_counter() < end:
                    began = time.perf_counter()
                    assert await connections.send(messages[resident]) == 200
                    took.append((time.perf_counter() - began) * 1e3)
                    await asyncio.sleep(0.005)
                await task
                return took

            quiet, loud = [], []
            asyncio.run(phase(10, others))
            loads = []
            for _ in range(args.rounds):
                # Two others that stay in memory, or forty that do not fit: each request is a load, and another one leaves.
                quiet.append(asyncio.run(phase(10, others[:2])))
                before = node.json("/v2/skep/residency?state=leaving")["decision_counts"]["load"]
                loud.append(asyncio.run(phase(10, others)))
                loads.append(node.json("/v2/skep/residency?state=leaving")["decision_counts"]["load"] - before)
            ratios = [quantile(b, 0.99) / quantile(a, 0.99) for a, b in zip(quiet, loud)]
            say(
                args.out, part="neighbours", rounds=args.rounds, loads=loads,
                quiet_p50_ms=quantile(sum(quiet, []), 0.5), loud_p50_ms=quantile(sum(loud, []), 0.5),
                quiet_p99_ms=quantile(sum(quiet, []), 0.99), loud_p99_ms=quantile(sum(loud, []), 0.99),
                p99_ratios=ratios, median_p99_ratio=statistics.median(ratios),
            )


def churn(args):
    binary = args.skep
    group = Path("/sys/fs/cgroup/memory/skep-churn")
    limit = args.limit_mib * MIB
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        repository = Path(scratch) / "models"
        repository.mkdir()
        kinds = write_fleet(binary, repository, 60, 12)
        messages, _ = requests_of(binary, repository, kinds)
        group.mkdir(exist_ok=True)
        try:
            (group / "memory.limit_in_bytes").write_text(str(limit))
            (group / "memory.max_usage_in_bytes").write_text("0")
            flags = ["--load-policy=lazy", f"--weight-cache={scratch}/cache"]
            if args.explicit_budget_mib:
                flags.append(f"--memory-budget={args.explicit_budget_mib * MIB}")
            else:
                flags += ["--max-request-memory=33554432"]
            with Node(binary, repository, *flags, group=group) as node:
                source = random.Random(5)
                names = sorted(kinds)
                statuses, next_report, began = {}, 60.0, time.perf_counter()

                async def run():
                    nonlocal next_report
                    connections = Connections(node.http)

                    async def client():
                        nonlocal next_report
                        while time.perf_counter() - began < args.seconds:
                            status = await connections.send(messages[source.choice(names)])
                            statuses[status] = statuses.get(status, 0) + 1
                            passed = time.perf_counter() - began
                            if passed > next_report:
                                next_report += 60
                                report(passed)
                            await asyncio.sleep(args.pause_s)

                    await asyncio.gather(*[client() for _ in range(args.clients)])

                def report(passed):
                    status = node.json("/v2/skep/residency?state=leaving")
                    text = (group / "memory.oom_control").read_text()
                    say(
                        args.out, part="churn", seconds=round(passed), statuses=dict(statuses), limit_mib=args.limit_mib,
                        budget_mib=status["memory"]["budget"] / MIB, used_mib=status["memory"]["used"] / MIB,
                        resident=status["states"]["resident"], loads=status["decision_counts"]["load"],
                        evictions=status["decision_counts"]["evict"], pss_mib=node.pss_mib(), anonymous_mib=node.anonymous_mib(),
                        group_peak_mib=int((group / "memory.max_usage_in_bytes").read_text()) / MIB,
                        limit_hits=int((group / "memory.failcnt").read_text()),
                        kills=int(re.search(r"oom_kill (\d+)", text).group(1)) if "oom_kill " in text else None,
                    )

                asyncio.run(run())
                report(time.perf_counter() - began)
        finally:
            time.sleep(0.5)
            group.rmdir()


def many(args):
    binary, count = args.skep, args.models
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        repository = Path(scratch) / "models"
        repository.mkdir()
        generate(binary, "mlp:layers=8x8", repository, "m0")
        first = repository / "m0"
        config = 'parameters { key: "max_load_wait_ms" value { string_value: "5000" } }\n'
        for number in range(1, count):
            place = repository / f"m{number}"
            (place / "1").mkdir(parents=True)
            os.link(first / "1/model.onnx", place / "1/model.onnx")
            (place / "config.pbtxt").write_text(config)
        single = Path(scratch) / "single"
        shutil.copytree(first, single / "m0")

        def timed(call, times=9):
            took = []
            for _ in range(times):
                began = time.perf_counter()
                size = len(call())
                took.append((time.perf_counter() - began) * 1e3)
            return statistics.median(took), max(took), size

        flags = ["--load-policy=lazy", "--weight-cache=off"]
        with Node(binary, single, *flags) as node:
            time.sleep(1)
            alone = node.pss_mib()
        for mode in ["none", "poll"]:
            more = ["--model-control-mode=poll", "--repository-poll-secs=5"] if mode == "poll" else []
            starts = []
            for _ in range(4):
                with Node(binary, repository, *flags, *more) as node:
                    starts.append(node.ready_s)
            with Node(binary, repository, *flags, *more) as node:
                time.sleep(1)
                per_model = (node.pss_mib() - alone) * 1024 / count
                index = timed(lambda: node.get("/v2/repository/index", {}))
                stats = timed(lambda: node.get("/v2/models/stats"))
                scrape = timed(lambda: node.get("/metrics", port=node.metrics))
                residency = timed(lambda: node.get("/v2/skep/residency"))
                seen = timed(lambda: node.get("/v2/skep/residency?state=resident"))
                cpu, began = node.cpu_s(), time.perf_counter()
                time.sleep(20)
                idle = (node.cpu_s() - cpu) / (time.perf_counter() - began)
                began = time.perf_counter()
                body = {"inputs": [dict(name="input", datatype="FP32", shape=[1, 8], data=[0] * 8)]}
                for number in range(0, count, count // 100):
                    node.get(f"/v2/models/m{number}/infer", body)
                first_ms = (time.perf_counter() - began) * 10
                loaded = timed(lambda: node.get("/metrics", port=node.metrics))
            say(
                args.out, part="many", mode=mode, models=count, first_ready_s=starts[0], ready_s=statistics.median(starts),
                kib_per_known_model=per_model, index_ms=index[0], index_bytes=index[2], statistics_ms=stats[0],
                scrape_ms=scrape[0], scrape_with_100_loaded_ms=loaded[0], residency_ms=residency[0], residency_of_resident_ms=seen[0],
                idle_cores=idle, mean_first_answer_ms=first_ms,
            )


PARTS = {"trace": trace, "first-answer": first_answer, "neighbours": neighbours, "churn": churn, "many": many}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("skep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--budget-mib", type=int, default=1024)
    parser.add_argument("--limit-mib", type=int, default=1024)
    parser.add_argument("--explicit-budget-mib", type=int)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--pause-s", type=float, default=0.05)
    parser.add_argument("--only", action="append")
    parser.add_argument("--scratch", default="/var/tmp")
    args = parser.parse_args()
    if args.part == "trace" and not args.recording:
        parser.error("--recording FILE is needed: a CSV file with TIMESTAMP, or one number a line")
    args.skep = args.skep.resolve()
    PARTS[args.part](args)


if __name__ == "__main__":
    sys.exit(main())
