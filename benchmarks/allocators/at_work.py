"""ONNX Runtime with each allocator, beside the planned arena, through the server.

One server has every model many times, each time with another source of intermediate tensors; the weights exist once. Each
round sends one request of each batch size to every one of them, in another order, so that all see the same neighbours.
A visit is a warm-up request and a few more, as many as take a second: an allocator that was idle has given memory back. Time
is the server's own for the executions behind the warm-up, memory the most that the allocator had from the system.

    python benchmarks/allocators/at_work.py SKEP OUT [--rounds 15] [--library FILE]

OUT/raw.jsonl has a line for each request, OUT/summary.md the table. With --library, an allocator in a library runs as well.
"""

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path

MODELS = {"mobilenetv2": "mobilenetv2", "resnet50": "resnet50", "bert": "bert:layers=12,hidden=768,heads=12,intermediate=3072,vocab=30522"}
BATCHES = (1, 8)
# Requests of a visit with batch 1.
VISITS = {"mobilenetv2": 12, "resnet50": 3, "bert": 2}
SEQUENCE = 64
PLANNERS = {"planned": "planned", "malloc": "malloc", "onnxruntime": "runtime"}


def allocators(binary):
    """The catalogue, and options that change a rule."""
    listed = subprocess.run([binary, "replay", "--list"], check=True, capture_output=True, text=True).stdout
    names = [line.split(":")[0] for line in listed.splitlines() if re.match(r"^[a-z_]+: ", line)]
    more = ["ort_arena:strategy=same_as_requested", "pytorch_caching:expandable_segments=true"]
    return [name for name in names if name != "planned"] + more


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


class Server:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.ports = {}
        ready = threading.Event()

        def read():
            for line in self.process.stderr:
                for name in ("HTTPService", "Metrics Service"):
                    if f"Started {name} at " in line:
                        self.ports[name] = line.split(f"Started {name} at ")[1].split('"')[0].strip().removeprefix("http://")
                if "ready for requests" in line:
                    ready.set()

        threading.Thread(target=read, daemon=True).start()
        if not ready.wait(900):
            raise SystemExit("the server does not start")
        self.connection = http.client.HTTPConnection(self.ports["HTTPService"], timeout=600)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def get(self, path):
        self.connection.request("GET", path)
        return json.loads(self.connection.getresponse().read())

    def infer(self, name, inputs):
        """Sends tensors of zeros; the answer's tensors are binary and dropped."""
        described = [
            {"name": tensor, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": size}}
            for tensor, kind, shape, size in inputs
        ]
        head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        body = head + b"".join(bytes(size) for *_, size in inputs)
        headers = {"Inference-Header-Content-Length": str(len(head))}
        self.connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{name}: {text[:500]!r}")

    def executed_ns(self, name):
        [row] = self.get(f"/v2/models/{name}/stats")["model_stats"]
        return row["inference_stats"]["compute_infer"]["ns"]

    def memory(self):
        """By model and kind: bytes of the intermediate tensors of its last run."""
        connection = http.client.HTTPConnection(self.ports["Metrics Service"])
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        found = re.findall(r'^skep_run_memory_bytes\{(.*)\} (\S+)$', text, re.M)
        by = {}
        for labels, value in found:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            by[labels["model"], labels["kind"]] = int(float(value))
        return by


SIZES = {"FP32": 4, "INT64": 8, "INT32": 4, "BOOL": 1}


def inputs_of(server, name, batch):
    inputs = []
    for tensor in server.get(f"/v2/models/{name}")["inputs"]:
        shape = [batch, *(SEQUENCE if extent < 0 else extent for extent in tensor["shape"][1:])]
        size = SIZES[tensor["datatype"]]
        for extent in shape:
            size *= extent
        inputs.append((tensor["name"], tensor["datatype"], shape, size))
    return inputs


def mib(count):
    return f"{count / (1 << 20):.1f}"


def summary(rows, ways):
    lines = []
    for model in MODELS:
        for batch in BATCHES:
            own = [row for row in rows if (row["model"], row["batch"]) == (model, batch)]
            used = max(row["used"] for row in own)
            lines += [
                f"\n{model}, batch {batch}: {mib(used)} MiB in use at most\n",
                "| allocator | memory, MiB | over the most in use | ms, median | over planned |",
                "|---|---|---|---|---|",
            ]
            times = {way: [row["ms"] for row in own if row["way"] == way] for way in ways}
            by_round = {(row["way"], row["round"]): row["ms"] for row in own}
            for way in ways:
                ratio = statistics.median(
                    ms / by_round["planned", number] for (other, number), ms in by_round.items() if other == way
                )
                held = max(row["reserved"] for row in own if row["way"] == way)
                memory = [mib(held), f"{held / used:.2f}"] if held else ["not reported", ""]
                lines.append(f"| {way} | {memory[0]} | {memory[1]} | {statistics.median(times[way]):.1f} | {ratio:.3f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="at-work-"))
    ways = {way: parameter("memory_planner", planner) for way, planner in PLANNERS.items()}
    ways |= {name: parameter("allocator", name) for name in allocators(args.binary)}
    flags = []
    if args.library:
        ways["library"] = parameter("allocator", "library")
        flags = [f"--allocator-library=library={args.library}"]
    names = {way: re.sub(r"\W", "-", way) for way in ways}
    for model, kind in MODELS.items():
        subprocess.run([args.binary, "generate", kind, work / "made", "--repository", model], check=True, stdout=subprocess.DEVNULL)
        [file] = (work / "made" / model).glob("1/*.onnx")
        for way, text in ways.items():
            directory = work / "models" / f"{model}-{names[way]}" / "1"
            directory.mkdir(parents=True)
            (directory / "model.onnx").symlink_to(file)
            config = f"max_batch_size: {max(BATCHES)}\ninstance_group {{ count: 1 kind: KIND_CPU }}\n{text}"
            (directory.parent / "config.pbtxt").write_text(config)
    serve = [args.binary, "serve", work / "models", f"--weight-cache={work}/cache", "--allow-grpc=false", *flags]
    serve += ["--http-port=0", "--metrics-port=0", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"]
    subprocess.run([args.binary, "bake", work / "models", f"--weight-cache={work}/cache", *flags], check=True, stdout=subprocess.DEVNULL)
    rows = []
    with Server(serve) as server, open(args.out / "raw.jsonl", "w") as raw:
        for number in range(-2, args.rounds):
            for model in MODELS:
                for batch in BATCHES:
                    order = list(ways)
                    random.Random(number).shuffle(order)
                    for way in order:
                        name = f"{model}-{names[way]}"
                        inputs = inputs_of(server, name, batch)
                        server.infer(name, inputs)
                        before = server.executed_ns(name)
                        count = VISITS[model] if batch == 1 else 1
                        for _ in range(count):
                            server.infer(name, inputs)
                        took = (server.executed_ns(name) - before) / 1e6 / count
                        memory = server.memory()
                        row = {
                            "round": number,
                            "model": model,
                            "batch": batch,
                            "way": way,
                            "ms": took,
                            "used": memory.get((name, "used"), 0),
                            "reserved": memory.get((name, "reserved"), 0) or memory.get((name, "planned"), 0),
                        }
                        # The first two rounds record, learn and grow.
                        if number >= 0:
                            rows.append(row)
                            raw.write(json.dumps(row) + "\n")
            print(f"round {number}", flush=True)
    (args.out / "summary.md").write_text(summary(rows, ways))


main()
