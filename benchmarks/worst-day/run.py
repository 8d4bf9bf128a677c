#!/usr/bin/env python3
"""What ill-behaved clients cost the others: `run.py SKEP_BINARY [ROUNDS] [SECONDS]`.

A server with a model that computes nothing. `wrk -t1 -c16` is served alone, then beside a crowd that stays as it is:
idle connections, clients that send a byte of a request every half second, and clients that ask for 4 MiB and never
read. The two alternate, round by round. Printed: a JSON object. Needs `wrk`, and a hard limit of open files above twice
the number of idle connections.
"""

import json
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

IDLE, TRICKLING, DEAF = 10_000, 200, 100
WIDE = 1 << 20

LUA = """local json = '{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"FP32","parameters":{"binary_data_size":64}}]}'
wrk.method = "POST"
wrk.body = json .. string.rep(string.char(0, 0, 128, 63), 16)
wrk.headers["Inference-Header-Content-Length"] = tostring(#json)
"""

CONFIG = """backend: "mock" max_batch_size: 8
input {{ name: "INPUT0" data_type: TYPE_FP32 dims: {0} }} output {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: {1} }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""


class Server:
    def __init__(self, binary, repository):
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
        self.process = subprocess.Popen(
            [binary, "serve", repository, *ports, "--http-address=127.0.0.1"], stderr=subprocess.PIPE, text=True
        )
        for line in self.process.stderr:
            if match := re.search(r"Started HTTPService at 127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
            if "ready for requests" in line:
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def memory(self):
        """Private memory and PSS in MiB."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        kib = {name: int(value) for name, value in re.findall(r"(\w+): +(\d+) kB", rollup)}
        private = kib["Private_Clean"] + kib["Private_Dirty"]
        return {"private_mib": private / 1024, "pss_mib": kib["Pss"] / 1024}


class Crowd:
    """Connections that take and do not give."""

    def __init__(self, port):
        self.sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE + TRICKLING + DEAF)]
        self.trickling = self.sockets[IDLE : IDLE + TRICKLING]
        body = json.dumps({"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [1]}], "parameters": {"binary_data_output": True}})
        request = f"POST /v2/models/wide/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        for deaf in self.sockets[IDLE + TRICKLING :]:
            deaf.sendall(request.encode())
        for deaf in self.sockets[IDLE + TRICKLING :]:
            deaf.recv(1, socket.MSG_PEEK)  # The answer has begun, and waits for its reader.
        self.request = request.encode()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.trickle)
        self.thread.start()

    def trickle(self):
        sent = 0
        while not self.stop.wait(0.5) and sent < len(self.request) - 1:
            for client in self.trickling:
                try:
                    client.send(self.request[sent : sent + 1])
                except OSError:
                    pass  # The server's time-out for slow clients has ended it.
            sent += 1

    def close(self):
        self.stop.set()
        self.thread.join()
        for client in self.sockets:
            client.close()


def wrk(port, script, seconds):
    url = f"http://127.0.0.1:{port}/v2/models/narrow/infer"
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--latency", "-s", script, url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text and "Socket errors" not in text, text
    scale = {"us": 1, "ms": 1e3, "s": 1e6}
    quantile = {
        share: float(value) * scale[unit]
        for share, value, unit in re.findall(r"(50|99)% +([\d.]+)(us|ms|s)", text)
    }
    rate = float(re.search(r"Requests/sec: +([\d.]+)", text)[1])
    return {"rate": rate, "p50_us": quantile["50"], "p99_us": quantile["99"]}


def main():
    binary = sys.argv[1]
    rounds, seconds = (int(value) for value in (sys.argv[2:] + ["5", "5"][len(sys.argv) - 2 :])[:2])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as root:
        for name, widths in (("narrow", (16, 16)), ("wide", (1, WIDE))):
            (Path(root) / name / "1").mkdir(parents=True)
            (Path(root) / name / "config.pbtxt").write_text(CONFIG.format(*widths))
        script = Path(root) / "post.lua"
        script.write_text(LUA)
        server = Server(binary, root)
        try:
            result = {"alone": [], "beside": [], "memory_alone": server.memory()}
            wrk(server.port, script, 1)
            for _ in range(rounds):
                result["alone"].append(wrk(server.port, script, seconds))
                crowd = Crowd(server.port)
                result["beside"].append(wrk(server.port, script, seconds))
                result["memory_beside"] = server.memory()
                crowd.close()
        finally:
            server.process.terminate()
            server.process.wait()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
