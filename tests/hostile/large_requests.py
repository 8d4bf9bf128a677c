"""Requests that become far more than they are: bounded before they are decoded, parsed where nobody waits for it."""

import base64
import gzip
import json

import grpc

from case import Case
from http2_client import Http2
from process import MIB
from repository import FOREVER_US
from stage import Setup
from tools import (
    SERVICE, Background, answered, bytes_field, call, channel, grpc_refused, head, infer_message, input_field,
    open_socket, post, refused, together, varint,
)

MEMORY_MIB = 64
# The bound, what clients' sockets and the connections' windows hold beside it, and one answer's worth of slack.
PEAK_MIB = MEMORY_MIB + 96
SIZE = 8 * MIB
ECHO = """backend: "mock" max_batch_size: 0 instance_group {{ count: 1 kind: KIND_CPU }}
    input {{ name: "x" data_type: {0} dims: [ -1 ] }} output {{ name: "y" data_type: {0} dims: [ -1 ] }}
    parameters {{ key: "mock.output" value {{ string_value: "echo" }} }}"""


def models_of(repository):
    repository.mock("m", output="echo")
    repository.mock("stuck", latency_us=FOREVER_US, max_batch_size=1)
    for name, kind in (("numbers", "TYPE_FP64"), ("integers", "TYPE_UINT64"), ("texts", "TYPE_STRING")):
        (repository.path / name / "1").mkdir(parents=True)
        repository.config(name, ECHO.format(kind))


SETUP = Setup(
    "requests", models_of,
    ("--model-control-mode=explicit", "--load-model=*", f"--max-request-memory={MEMORY_MIB * MIB}",
     "--session-keep-alive-secs=0"),
)
M = "/v2/models/m/infer"


class Made:
    """The last body that was made, for an attack that is repeated: making it takes longer than sending it."""

    by, body = None, None

    @classmethod
    def of(cls, make):
        if cls.by is not make:
            cls.by, cls.body = make, make()
        return cls.body


def grpc_infer(message):
    return lambda stage: grpc_refused(call(stage, "ModelInfer", Made.of(message)))


def http(path, body, check=refused, headers=None):
    return lambda stage: check(post(stage.http, path, Made.of(body), headers))


def listed(member, piece):
    """A JSON body with one member of many entries."""
    return lambda: b'{"inputs":[],"' + member + b'":[' + b",".join([piece] * (SIZE // (len(piece) + 1))) + b"]}"


def distinct_parameters():
    return b"".join(bytes_field(4, bytes_field(1, f"{number:x}")) for number in range(SIZE // 10))


def json_parameters():
    members = ",".join(f'"{number:x}":1' for number in range(SIZE // 9))
    return f'{{"inputs":[],"parameters":{{{members}}}}}'.encode()


def data_of(name, datatype, count, element):
    text = b",".join([element] * count)
    return f'{{"inputs":[{{"name":"{name}","datatype":"{datatype}","shape":[{count}],"data":['.encode() + text + b"]}]}"


def nested_groups():
    """A group in a group, two million times: a field that nobody knows, which a decoder passes over."""
    return bytes_field(1, "m") + varint(15 << 3 | 3) * SIZE


def grpc_bomb(stage):
    """16 MiB of empty inputs, in 16 KiB."""
    return grpc_refused(call(stage, "ModelInfer", b"\x2a\x00" * SIZE, compression=grpc.Compression.Gzip))


def stream_in_flight(stage):
    """64 messages of 8 MiB for a model that never answers: 512 MiB on one call."""
    message = bytes_field(1, "stuck") + bytes_field(3, b"i" * 100) + input_field("x", "FP32", (1, 4)) + bytes_field(
        7, bytes(16)) + bytes_field(4, bytes_field(1, "p") + bytes_field(2, bytes_field(3, b"x" * SIZE)))
    with Background() as attack, channel(stage) as opened:
        def messages():
            for _ in range(64):
                if attack.over.is_set():
                    return
                yield message
            attack.over.wait(30)

        stream = opened.stream_stream(SERVICE + "ModelStreamInfer")(messages(), timeout=60)
        answers = attack.go(lambda: sum(1 for _ in stream))
        # What is in flight stays there: the memory stops to grow, or the call ends.
        still = Still(stage)
        stage.wait(lambda: answers.done() or still.is_now(), "the stream takes no more")
        attack.over.set()
        stream.cancel()
        error = answers.exception()
        return "cancelled" if error is None or error.code() is grpc.StatusCode.CANCELLED else error.code().name


class Still:
    """Whether a server's memory has stopped to grow: the same peak for so many looks."""

    LOOKS = 60

    def __init__(self, stage):
        self.memory = stage.memory
        self.peak, self.looks = 0, 0

    def is_now(self):
        self.looks = self.looks + 1 if self.memory.peak <= self.peak + MIB else 0
        self.peak = max(self.peak, self.memory.peak)
        return self.looks >= self.LOOKS


def unary_in_flight(stage):
    """40 calls of 8 MiB each for a model that never answers."""
    message = bytes_field(1, "stuck") + input_field("x", "FP32", (1, 4)) + bytes_field(7, bytes(16)) + bytes_field(
        4, bytes_field(1, "p") + bytes_field(2, bytes_field(3, b"x" * SIZE)))
    with channel(stage) as opened, Background() as attack:
        calls = [opened.unary_unary(SERVICE + "ModelInfer").future(message, timeout=60) for _ in range(40)]
        still = Still(stage)
        stage.wait(lambda: all(made.done() for made in calls) or still.is_now(), "no more is taken")
        refusals = sum(made.done() for made in calls)
        for made in calls:
            made.cancel()
        attack.over.set()
        return f"{refusals} of 40 refused"


def http2_bodies(stage):
    """100 streams of one connection, each with 1 MiB of a body that never ends."""
    with Http2(stage.http) as client:
        streams = [client.begin("POST", M, end_stream=False, content_length=str(4 * MIB)) for _ in range(100)]
        sent = dict.fromkeys(streams, 0)
        ended = set()
        # As far as windows go, which the server opens as it reads.
        client.socket.settimeout(2)
        try:
            while len(ended) < len(streams):
                moved = False
                for stream in streams:
                    if stream in ended:
                        continue
                    room = min(client.state.local_flow_control_window(stream), 16384, MIB - sent[stream])
                    if room > 0:
                        client.state.send_data(stream, b"x" * room)
                        sent[stream] += room
                        moved = True
                client.flush()
                if moved:
                    client.socket.settimeout(0.05)
                try:
                    data = client.socket.recv(65536)
                except TimeoutError:
                    if moved:
                        continue
                    break
                finally:
                    client.socket.settimeout(2)
                if not data:
                    return f"closed after {sum(sent.values()) // MIB} MiB"
                for event in client.state.receive_data(data):
                    if type(event).__name__ in ("StreamEnded", "StreamReset"):
                        ended.add(event.stream_id)
        except (ConnectionError, TimeoutError):
            return f"closed after {sum(sent.values()) // MIB} MiB"
        return f"{sum(sent.values()) // MIB} MiB taken, {len(ended)} streams ended"


def slow_bodies(stage):
    """40 connections with 4 MiB of a body each, all but its last byte."""
    body = b" " * (4 * MIB)
    sockets = [open_socket(stage.http) for _ in range(40)]
    try:
        told = {}
        for connection in sockets:
            try:
                connection.sendall(head(M, len(body)) + body[:-1])
                told["taken"] = told.get("taken", 0) + 1
            except (ConnectionError, TimeoutError):
                told["closed"] = told.get("closed", 0) + 1
        stage.must_live()
        return told
    finally:
        for connection in sockets:
            connection.close()


def many_large_at_once(stage):
    """32 JSON bodies of 8 MiB at once."""
    body = data_of("x", "FP64", SIZE // 2, b"1")
    return together(32, lambda _: answered(post(stage.http, "/v2/models/numbers/infer", body, hang_s=60)))


def lying_shapes(stage):
    """Shapes whose product leaves 64 bits, or is far more than their data."""
    told = []
    for shape in ([2**62, 2**62], [2**63 - 1], [2**32, 2**32], [1, 2**61], [-1], [0, 2**62]):
        tensor = {"name": "x", "datatype": "FP32", "shape": shape}
        told.append(refused(post(stage.http, M, {"inputs": [{**tensor, "data": [1]}]})))
        text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 2**63}}]}).encode()
        told.append(refused(post(stage.http, M, text + b"x" * 16, {"Inference-Header-Content-Length": str(len(text))})))
        message = bytes_field(1, "m") + input_field("x", "FP32", [size % 2**64 for size in shape]) + bytes_field(7, bytes(16))
        told.append(grpc_refused(call(stage, "ModelInfer", message)))
    return told


def load(parameters):
    def attack(stage):
        body = json.dumps({"parameters": parameters()}).encode()
        return refused(post(stage.http, "/v2/repository/models/m/load", body))

    return attack


def file_of(size):
    return base64.b64encode(b"x" * size).decode()


def many_files():
    return {"config": "{}", **{f"file:1/{number}": "eA==" for number in range(SIZE // 24)}}


def grpc_load(stage):
    parameter = bytes_field(3, bytes_field(1, "file:1/model.onnx") + bytes_field(2, bytes_field(4, b"x" * (32 * MIB))))
    config = bytes_field(3, bytes_field(1, "config") + bytes_field(2, bytes_field(3, "{" * MIB)))
    return grpc_refused(call(stage, "RepositoryModelLoad", bytes_field(2, "m") + config + parameter))


def log_settings():
    return bytes(b"").join(
        bytes_field(1, bytes_field(1, f"{number:x}") + bytes_field(2, b"\x08\x01")) for number in range(SIZE // 14))


def long_names(stage):
    """Names of 8 MiB, which errors might repeat."""
    name = "n" * SIZE
    told = [grpc_refused(call(stage, "ModelInfer", infer_message(name)))]
    told.append(grpc_refused(call(stage, "ModelInfer", infer_message("m", name=name))))
    told.append(grpc_refused(call(stage, "ModelMetadata", bytes_field(1, name))))
    told.append(refused(post(stage.http, M, {"inputs": [{"name": name, "datatype": "FP32", "shape": [1], "data": [1]}]})))
    told.append(refused(post(stage.http, M, {"inputs": [{"name": "x", "datatype": name, "shape": [1], "data": [1]}]})))
    return told


def heads(stage):
    """A head of 16 MiB, a path of 1 MiB, 10,000 fields."""
    told = []
    for text in (b"GET / HTTP/1.1\r\nA: " + b"x" * (16 * MIB), b"GET /" + b"x" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: x\r\n" % number for number in range(10_000)) + b"\r\n"):
        with open_socket(stage.http) as connection:
            try:
                connection.sendall(text)
                received = connection.recv(65536)
            except ConnectionError:
                received = b""
        told.append(received.split(b"\r\n")[0].decode() or "closed")
        assert b" 200" not in received.split(b"\r\n")[0], told
    return told


def header_bomb(stage):
    """HPACK: a field of 4 kB in the table, and 4,000 mentions of it in one head: 16 MB from 8 kB."""
    with Http2(stage.http) as client:
        client.socket.settimeout(20)
        first = client.begin("GET", "/v2/health/live", x_large="v" * 3900)
        client.answer(first)
        fields = [(":method", "GET"), (":path", "/v2"), (":scheme", "http"), (":authority", "x")]
        client.state.config.validate_outbound_headers = False
        client.state.max_outbound_frame_size = 16384
        client.state.send_headers(client.state.get_next_available_stream_id(), fields + [("x-large", "v" * 3900)] * 4000,
                                  end_stream=True)
        try:
            client.flush()
            for event in client.events():
                if type(event).__name__ in ("ResponseReceived", "StreamReset", "ConnectionTerminated"):
                    return type(event).__name__ + str(dict(getattr(event, "headers", None) or {}).get(":status", ""))
        except (ConnectionError, TimeoutError) as error:
            assert not isinstance(error, TimeoutError), "no answer"
        return "closed"


def case(id, what, attack, **more):
    return Case(id, "requests", what, SETUP, attack, **{"peak_mib": PEAK_MIB, **more})


def many(field):
    """A message of `SIZE` / 2 empty fields."""
    return grpc_infer(lambda: bytes_field(1, "m") + bytes([field << 3 | 2, 0]) * (SIZE // 2))


def deep(opening):
    return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + opening * (SIZE // len(opening))


CASES = [
    case("grpc-empty-inputs", "gRPC: 4 million empty `inputs`, 8 MiB", many(5)),
    case("grpc-empty-outputs", "gRPC: 4 million empty `outputs`, 8 MiB", many(6)),
    case("grpc-parameters", "gRPC: 800,000 parameters, 8 MiB", grpc_infer(lambda: bytes_field(1, "m") + distinct_parameters())),
    case("grpc-empty-raw-contents", "gRPC: 4 million empty `raw_input_contents`, 8 MiB", many(7)),
    case("grpc-tensor-parameters", "gRPC: an input with a million empty parameters", grpc_infer(
        lambda: bytes_field(1, "m") + bytes_field(5, bytes_field(1, "x") + bytes([4 << 3 | 2, 0]) * (SIZE // 2)))),
    case("grpc-empty-texts", "gRPC: 4 million empty `bytes_contents`, 8 MiB", grpc_infer(
        lambda: bytes_field(1, "texts") + input_field("x", "BYTES", [SIZE // 2 - 1], b"\x42\x00" * (SIZE // 2)))),
    case("grpc-packed-varints", "gRPC: 32 million `uint64_contents` of a byte each, 32 MiB that are 256", grpc_infer(
        lambda: bytes_field(1, "integers") + input_field("x", "UINT64", [7], bytes_field(5, b"\x01" * (32 * MIB))))),
    case("grpc-packed-bools", "gRPC: varints of ten bytes for 3 million `bool_contents`, wrong datatype", grpc_infer(
        lambda: bytes_field(1, "m") + input_field("x", "FP32", [7], bytes_field(1, (b"\xff" * 9 + b"\x01") * (3 * MIB))))),
    case("grpc-shape", "gRPC: a shape of 8 million dimensions", grpc_infer(
        lambda: bytes_field(1, "m") + bytes_field(
            5, bytes_field(1, "x") + bytes_field(2, "FP32") + bytes_field(3, b"\x01" * SIZE)))),
    case("grpc-nested", "gRPC: 8 million groups in each other", grpc_infer(nested_groups)),
    case("grpc-gzip-bomb", "gRPC: 16 MiB of empty `inputs`, compressed to 16 KiB", grpc_bomb),
    case("grpc-stream-in-flight", "a stream: 64 messages of 8 MiB for a model that never answers", stream_in_flight,
         refusals=True, fresh=True, peak_mib=2 * MEMORY_MIB + 96),
    case("grpc-unary-in-flight", "gRPC: 40 calls of 8 MiB for a model that never answers", unary_in_flight, refusals=True,
         fresh=True, peak_mib=2 * MEMORY_MIB + 96),
    case("names", "names of models, inputs and datatypes of 8 MiB", long_names),
    case("shapes", "shapes that overflow, sizes that lie", lying_shapes),
    case("json-inputs", "JSON: 2.8 million empty `inputs`", http(
        M, lambda: b'{"inputs":[' + b",".join([b"{}"] * (SIZE // 3)) + b"]}")),
    case("json-outputs", "JSON: 2.8 million empty `outputs`", http(M, listed(b"outputs", b"{}"))),
    case("json-parameters", "JSON: 900,000 parameters", http(M, json_parameters)),
    case("json-unknown", "JSON: an unknown member with 4 million empty lists", http(M, listed(b"unknown", b"[]"))),
    case("json-nested", "JSON: 8 million lists in each other", http(M, lambda: deep(b"["))),
    case("json-nested-objects", "JSON: 1.6 million objects in each other", http(M, lambda: deep(b'{"a":'))),
    case("json-numbers", "JSON: 16 million FP64 of a digit each, 32 MiB that are 128", http(
        "/v2/models/numbers/infer", lambda: data_of("x", "FP64", 16 * MIB, b"1"))),
    case("json-texts", "JSON: 2.8 million empty texts", http(
        "/v2/models/texts/infer", lambda: data_of("x", "BYTES", SIZE // 3, b'""'), answered)),
    case("json-long-text", "JSON: a text of 24 MiB, all of it escapes", http(
        "/v2/models/texts/infer", lambda: data_of("x", "BYTES", 1, b'"' + b"\\u0041" * (4 * MIB) + b'"'), answered)),
    case("json-at-once", "JSON: 32 bodies of 8 MiB at once", many_large_at_once, refusals=True, peak_mib=2 * MEMORY_MIB + 128),
    case("http-gzip-inputs", "24 MiB of empty `inputs`, gzip", http(
        M, lambda: gzip.compress(b'{"inputs":[' + b"{}," * (8 * MIB)), headers={"Content-Encoding": "gzip"})),
    case("http-gzip-spaces", "60 MiB of spaces, gzip", http(
        M, lambda: gzip.compress(b" " * (60 * MIB)), headers={"Content-Encoding": "gzip"})),
    case("http2-bodies", "HTTP/2: 100 bodies of 1 MiB that never end, on one connection", http2_bodies, refusals=True),
    case("slow-bodies", "HTTP: 40 bodies of 4 MiB that lack their last byte", slow_bodies, refusals=True),
    case("generate-text", "`generate` with a member of 24 MiB", http(
        "/v2/models/texts/generate", lambda: json.dumps({"x": "x" * (24 * MIB)}).encode(), answered)),
    case("generate-members", "`generate` with 900,000 members", http("/v2/models/texts/generate", lambda: (
        "{" + ",".join(f'"{number:x}":1' for number in range(SIZE // 9)) + "}").encode())),
    case("generate-nested", "`generate` with 8 million lists in each other", http(
        "/v2/models/texts/generate", lambda: b'{"x":' + b"[" * SIZE)),
    case("load-file", "a load request with a file of 24 MiB in base64", load(
        lambda: {"config": "{}", "file:1/model.onnx": file_of(24 * MIB)})),
    case("load-files", "a load request with 350,000 files", load(many_files)),
    case("load-config", "a load request with a configuration of 24 MiB", load(
        lambda: {"config": '{"parameters":{' + "x" * (24 * MIB)})),
    case("load-config-groups", "a load request with 500,000 instance groups", load(
        lambda: {"config": json.dumps({"name": "m", "backend": "mock", "instance_group": [{"count": 1}] * 500_000})})),
    case("grpc-load-file", "gRPC: a load request with a file of 32 MiB", grpc_load),
    case("logging", "`logging` with 900,000 members", http("/v2/logging", lambda: (
        "{" + ",".join(f'"{number:x}":1' for number in range(SIZE // 9)) + "}").encode(), answered)),
    case("grpc-logging", "gRPC: log settings of 600,000 names",
         lambda stage: call(stage, "LogSettings", log_settings())),
    case("index", "`repository/index` with a body of 32 MiB", http(
        "/v2/repository/index", lambda: b'{"ready":true,"x":[' + b"[]," * (10 * MIB), answered)),
    case("unload", "an unload request with 900,000 parameters", http(
        "/v2/repository/models/nosuch/unload", json_parameters, answered)),
    case("heads", "heads of 16 MiB, paths of 1 MiB, 10,000 fields", heads),
    case("http2-header-bomb", "HTTP/2: a head of 16 MB out of 8 kB of HPACK", header_bomb),
]
