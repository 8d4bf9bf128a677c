"""What a model of a millisecond has to wait for beside one whose executions take many seconds on all cores.

    python3 benchmarks/long-run/run.py OUT SKEP [OTHER_SKEP] [--rounds N] [--seconds S]

Each round starts each server in turn with two models on ONNX Runtime: `short`, one product of matrices of about a
millisecond on one core, and `long`, a loop of products that keeps every core busy for about S seconds. `short` is asked over
one connection, one request after another: alone for three seconds, and while `long` runs on all its instances. Figures are
of the client; OUT gets raw.json and a table. Needs the packages of tests/requirements.txt.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CORES = len(os.sched_getaffinity(0))
SIZE = 512


def short_model(path):
    size = 256
    weights = numpy_helper.from_array(np.full([size, size], 0.001, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "short",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        [weights],
    )
    save(graph, path)


def long_model(path):
    """`y = x w w w ...`, as often as the input `n` says."""
    value = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, [SIZE, SIZE]),
        ],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [SIZE, SIZE])],
    )
    weights = numpy_helper.from_array(np.eye(SIZE, dtype=np.float32), "w")
    start = numpy_helper.from_array(np.eye(SIZE, dtype=np.float32), "start")
    true = numpy_helper.from_array(np.array(True), "true")
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["n"], ["count"]),
            helper.make_node("Loop", ["count", "true", "start"], ["last"], body=body),
            helper.make_node("ReduceSum", ["last"], ["y"], keepdims=0),
        ],
        "long",
        [value("n", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, [])],
        [weights, start, true],
    )
    save(graph, path)


def save(graph, path):
    path.parent.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def repository(root):
    short_model(root / "short/1/model.onnx")
    long_model(root / "long/1/model.onnx")
    (root / "short/config.pbtxt").write_text(
        'backend: "onnxruntime" parameters { key: "intra_op_thread_count" value { string_value: "1" } }'
    )
    (root / "long/config.pbtxt").write_text(
        f'backend: "onnxruntime" instance_group {{ kind: KIND_CPU count: {CORES} }}'
        ' parameters { key: "intra_op_thread_count" value { string_value: "1" } }'
    )


class Server:
    def __init__(self, binary, root, log):
        ports = [f"--{name}-{what}" for name in ("http", "grpc", "metrics") for what in ("address=127.0.0.1", "port=0")]
        self.log = open(log, "w+")
        self.process = subprocess.Popen(
            [binary, "serve", str(root), "--weight-cache=off", *ports], stderr=self.log, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            text = Path(log).read_text()
            if "ready for requests" in text:
                break
            assert self.process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.02)
        self.address = text.split("Started HTTPService at ")[1].split('"')[0].strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def ask(connection, model, name, datatype, array):
    header = json.dumps(
        {
            "inputs": [
                {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": {"binary_data_size": array.nbytes}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    connection.request(
        "POST",
        f"/v2/models/{model}/infer",
        header + array.tobytes(),
        {"Inference-Header-Content-Length": str(len(header))},
    )
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body[:500]


def shorts(address, until):
    connection = http.client.HTTPConnection(address)
    x = np.ones([256, 256], np.float32)
    latencies = []
    while not until():
        began = time.perf_counter()
        ask(connection, "short", "x", "FP32", x)
        latencies.append((time.perf_counter() - began) * 1e3)
    return sorted(latencies)


def quantile(sorted_values, share):
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def figures(latencies):
    return {
        "requests": len(latencies),
        "p50_ms": round(quantile(latencies, 0.5), 3),
        "p99_ms": round(quantile(latencies, 0.99), 3),
        "max_ms": round(latencies[-1], 3),
    }


def for_seconds(seconds):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def longs(address, count):
    """One long execution on each instance; how long each took."""
    took = [None] * CORES

    def one(index):
        connection = http.client.HTTPConnection(address, timeout=600)
        began = time.perf_counter()
        ask(connection, "long", "n", "INT64", np.array([count], np.int64))
        took[index] = round(time.perf_counter() - began, 3)

    threads = [threading.Thread(target=one, args=[index]) for index in range(CORES)]
    for thread in threads:
        thread.start()
    return threads, took


def round_of(binary, root, log, seconds):
    with Server(binary, root, log) as server:
        address = server.address
        shorts(address, for_seconds(0.5))
        # How many products make so many seconds on all cores at once.
        probe = 40
        threads, took = longs(address, probe)
        for thread in threads:
            thread.join()
        count = max(probe, int(probe * seconds / max(took)))
        alone = figures(shorts(address, for_seconds(3)))
        threads, took = longs(address, count)
        time.sleep(0.3)
        beside = figures(shorts(address, lambda: not all(thread.is_alive() for thread in threads)))
        for thread in threads:
            thread.join()
        return {"alone": alone, "beside": beside, "long_s": took}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("binaries", nargs="+")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=15)
    arguments = arguments.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "models"
        repository(root)
        for number in range(arguments.rounds):
            for binary in arguments.binaries:
                row = {"round": number, "binary": binary, **round_of(binary, root, f"{scratch}/log", arguments.seconds)}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
    (arguments.out / "raw.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    print("| server | short alone: p50, p99, max (ms) | beside the long one: requests, p50, p99, max (ms) | p99 to p99 | long (s) |")
    print("|---|---|---|---|---|")
    for binary in arguments.binaries:
        mine = [row for row in rows if row["binary"] == binary]
        median = lambda part, key: statistics.median(row[part][key] for row in mine)
        alone = ", ".join(f"{median('alone', key):.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
        beside = ", ".join(f"{median('beside', key):.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
        ratio = statistics.median(row["beside"]["p99_ms"] / row["alone"]["p99_ms"] for row in mine)
        long_s = statistics.median(max(row["long_s"]) for row in mine)
        requests = median("beside", "requests")
        print(f"| `{binary}` | {alone} | {requests:.0f}, {beside} | {ratio:.2f} | {long_s:.1f} |")


if __name__ == "__main__":
    main()
