"""CPU time a request of one server beside another's, in turns.

    python3 benchmarks/request-path/compare.py OUT SKEP OTHER_SKEP [--rounds N] [--seconds S]

The identity over 16 floats of backend `mock` and of ONNX Runtime (if the onnx package is there), as `request-path` asks it:
HTTP by `wrk -t1 -c16`, gRPC by `h2load -t1 -c16`. Each round starts both servers, since where a process lies in memory alone
makes a difference of some percent, and asks one after the other, in an order that alternates; figures are CPU time of the
server's process over the requests that were answered.
"""

import argparse
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH = 16


def repository(root):
    def add(name, config):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)

    tensors = (
        f'input {{ name: "INPUT0" data_type: TYPE_FP32 dims: {WIDTH} }}'
        f' output {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: {WIDTH} }} max_batch_size: 8'
    )
    add("mock", f'backend: "mock" {tensors} parameters {{ key: "mock.output" value {{ string_value: "echo" }} }}')
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError:
        return ["mock"]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])
    graph = helper.make_graph([helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])], "id", [value("INPUT0")], [value("OUTPUT0")])
    add("onnx", f'backend: "onnxruntime" {tensors}')
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), root / "onnx/1/model.onnx")
    return ["mock", "onnx"]


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def grpc_body(model):
    tensor = field(1, b"INPUT0") + field(2, b"FP32") + field(3, varint(1) + varint(WIDTH))
    message = field(1, model.encode()) + field(5, tensor) + field(7, struct.pack(f"<{WIDTH}f", *([1.0] * WIDTH)))
    return b"\0" + struct.pack(">I", len(message)) + message


class Server:
    def __init__(self, binary, root, log):
        ports = [f"--{name}-{what}" for name in ("http", "grpc", "metrics") for what in ("address=127.0.0.1", "port=0")]
        self.process = subprocess.Popen(
            [binary, "serve", str(root), *ports], stderr=open(log, "w"), stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while "ready for requests" not in (text := Path(log).read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.02)
        address = lambda what: text.split(f"Started {what} at ")[1].split('"')[0].strip().split()[0]
        self.http, self.grpc = address("HTTPService"), address("GRPCInferenceService")

    def cpu_us(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def wrk(server, model, seconds, scratch):
    script = scratch / "wrk.lua"
    script.write_text(
        'local json = \'{"inputs":[{"name":"INPUT0","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}],'
        '"outputs":[{"name":"OUTPUT0","parameters":{"binary_data":true}}]}\'\n'
        'wrk.method = "POST"\nwrk.body = json .. string.rep(string.char(0, 0, 128, 63), %d)\n'
        'wrk.headers["Inference-Header-Content-Length"] = tostring(#json)\n' % (WIDTH, WIDTH * 4, WIDTH)
    )
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", script, f"http://{server.http}/v2/models/{model}/infer"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in text and "Socket errors" not in text, text
    return int(re.search(r"(\d+) requests in", text)[1])


def h2load(server, model, seconds, scratch):
    body = scratch / "body"
    body.write_bytes(grpc_body(model))
    command = [
        "h2load", "-t1", "-c16", "-m1", f"-D{seconds}", "-d", body, "-H", "content-type: application/grpc", "-H", "te: trailers",
        f"http://{server.grpc}/inference.GRPCInferenceService/ModelInfer",
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"requests: .*?(\d+) succeeded, (\d+) failed", text)
    assert found and found[2] == "0", text
    return int(found[1])


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("binaries", nargs=2)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--seconds", type=int, default=3)
    arguments = arguments.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        models = repository(scratch / "models")
        for number in range(arguments.rounds):
            servers = [Server(binary, scratch / "models", scratch / f"log{index}") for index, binary in enumerate(arguments.binaries)]
            order = servers if number % 2 == 0 else servers[::-1]
            for model in models:
                for name, load in (("HTTP", wrk), ("gRPC", h2load)):
                    for server in order:
                        before = server.cpu_us()
                        requests = load(server, model, arguments.seconds, scratch)
                        row = {
                            "round": number, "model": model, "protocol": name, "binary": arguments.binaries[servers.index(server)],
                            "cpu_us": (server.cpu_us() - before) / requests, "rate": requests / arguments.seconds,
                        }
                        rows.append(row)
                        print(json.dumps(row), file=sys.stderr)
            for server in servers:
                server.process.kill()
                server.process.wait()
    (arguments.out / "raw.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    print("| model | protocol | CPU us a request | of the other | ratio by pairs: median, least, most | rate, of the other |")
    print("|---|---|---|---|---|---|")
    for model in models:
        for name in ("HTTP", "gRPC"):
            of = lambda binary: [r for r in rows if (r["model"], r["protocol"], r["binary"]) == (model, name, binary)]
            mine, other = map(of, arguments.binaries)
            ratios = sorted(a["cpu_us"] / b["cpu_us"] for a, b in zip(mine, other))
            median = lambda rows, key: statistics.median(row[key] for row in rows)
            print(
                f"| {model} | {name} | {median(mine, 'cpu_us'):.2f} | {median(other, 'cpu_us'):.2f} |"
                f" {statistics.median(ratios):.3f}, {ratios[0]:.3f}, {ratios[-1]:.3f} |"
                f" {median(mine, 'rate'):.0f}, {median(other, 'rate'):.0f} |"
            )


if __name__ == "__main__":
    main()
