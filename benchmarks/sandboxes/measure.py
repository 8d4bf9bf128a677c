"""What `isolation` `process` costs: latency and processor time of a request, and of a load, beside `thread`.

    python benchmarks/sandboxes/measure.py target/release/skep

One client over one connection, blocks of requests to the two models in turn. Prints a table.
"""

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCKS, BLOCK = 20, 200
LOADS = 20
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
KINDS = {
    "identity-fp32:width=16": ("input 64 B", [1, 16]),
    "identity-fp32:width=150528": ("input 588 KiB", [1, 150528]),
    "mlp": ("input 1 KiB", [1, 256]),
}


def cpu_us(pid):
    """Of a server, its children that live and those that it has waited for."""
    total = 0
    processes = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile; those that start workers do not.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            processes += (thread / "children").read_text().split()
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(map(int, fields[11:15]))
    return total * TICK_US


class Server:
    def __init__(self, binary, repository):
        self.process = subprocess.Popen(
            [binary, "serve", repository, "--model-control-mode=explicit", "--load-model=*", "--http-port=0",
             "--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1"],
            stderr=subprocess.PIPE, text=True,
        )
        for line in self.process.stderr:
            if match := re.search(r"Started HTTPService at 127.0.0.1:(\d+)", line):
                port = int(match.group(1))
            if "ready for requests" in line:
                break
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path, body, headers=""):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        return head.encode() + body

    def ask(self, request):
        self.socket.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(1 << 20)
        head, body = answer.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 200"), (head, body)
        left = int(re.search(rb"\r\ncontent-length: (\d+)", head, re.I).group(1)) - len(body)
        while left > 0:
            left -= len(self.socket.recv(1 << 20))


def infer(server, model, name, output, shape):
    size = 4 * shape[0] * shape[1]
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
    wanted = [{"name": output, "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    return server.post(f"/v2/models/{model}/infer", head + bytes(size),
                       f"Inference-Header-Content-Length: {len(head)}\r\n")


def main():
    binary = sys.argv[1]
    with tempfile.TemporaryDirectory() as repository:
        models = []
        for number, (kind, (what, shape)) in enumerate(KINDS.items()):
            for isolation in ("thread", "process"):
                model = f"m{number}-{isolation}"
                subprocess.run([binary, "generate", kind, repository, "--repository", model], check=True,
                               stdout=subprocess.DEVNULL)
                (Path(repository) / model / "config.pbtxt").write_text(
                    f'backend: "onnxruntime" instance_group {{ count: 1 kind: KIND_CPU }}\n'
                    f'parameters {{ key: "isolation" value {{ string_value: "{isolation}" }} }}\n'
                )
            models.append((number, kind, what, shape))
        server = Server(binary, repository)
        print("| model | request | isolation | median us | p99 us | CPU us |\n|---|---|---|---|---|---|")
        for number, kind, what, shape in models:
            names = ("input", "output") if kind == "mlp" else ("INPUT0", "OUTPUT0")
            requests = {i: infer(server, f"m{number}-{i}", *names, shape) for i in ("thread", "process")}
            times, cpu = {"thread": [], "process": []}, {"thread": 0, "process": 0}
            for block in range(BLOCKS + 1):
                for isolation, request in requests.items():
                    before = cpu_us(server.process.pid)
                    for _ in range(BLOCK):
                        start = time.perf_counter_ns()
                        server.ask(request)
                        if block:
                            times[isolation].append((time.perf_counter_ns() - start) / 1000)
                    if block:
                        cpu[isolation] += cpu_us(server.process.pid) - before
            for isolation, taken in times.items():
                p99 = statistics.quantiles(taken, n=100)[98]
                per = cpu[isolation] / len(taken)
                print(f"| {kind} | {what} | {isolation} | {statistics.median(taken):.0f} | {p99:.0f} | {per:.0f} |")
        print("\n| load of | isolation | median ms | CPU ms |\n|---|---|---|---|")
        for number, kind, _, _ in models:
            for isolation in ("thread", "process"):
                path = f"/v2/repository/models/m{number}-{isolation}/"
                taken, before = [], cpu_us(server.process.pid)
                for _ in range(LOADS):
                    server.ask(server.post(path + "unload", b""))
                    start = time.perf_counter()
                    server.ask(server.post(path + "load", b""))
                    taken.append((time.perf_counter() - start) * 1000)
                cpu = (cpu_us(server.process.pid) - before) / 1000 / LOADS
                print(f"| {kind} | {isolation} | {statistics.median(taken):.1f} | {cpu:.1f} |")
        server.process.terminate()
        server.process.wait()


main()
