"""Compressed requests and answers."""

import contextlib
import gzip
import json
import socket
import threading
import zlib

import grpc
import numpy as np
import pytest
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from http_client import HEADER_LENGTH, get, post
from repository import Repository, identity, unbatched
from server import Server

LIMIT = 1 << 20
PATH = "/v2/models/echo/infer"
CODINGS = {"gzip": (gzip.compress, gzip.decompress), "deflate": (zlib.compress, zlib.decompress)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("compression"))
    repository.onnx("echo", identity("FP32", ["n"]), config=unbatched("FP32", [-1]))
    with Server(repository, f"--http-max-input-size={LIMIT}") as running:
        yield running


@pytest.fixture(autouse=True)
def server_lives_on(server):
    yield
    assert post(server, PATH, body(1)).status == 200


def body(count, **members):
    inputs = [{"name": "INPUT0", "datatype": "FP32", "shape": [count], "data": [1] * count}]
    return json.dumps({"inputs": inputs, **members}).encode()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("count", [1, 100_000])
def test_h27_compressed_requests(server, coding, count):
    answer = post(server, PATH, CODINGS[coding][0](body(count)), {"Content-Encoding": coding})
    assert (answer.status, answer.headers["content-encoding"]) == (200, None)
    assert answer.json["outputs"][0]["data"] == [1] * count


def test_h27_either_format_is_accepted_under_either_name(server):
    for coding, pack in (("gzip", zlib.compress), ("deflate", gzip.compress), ("GZIP", gzip.compress)):
        assert post(server, PATH, pack(body(2)), {"Content-Encoding": coding}).status == 200
    assert post(server, PATH, body(2), {"Content-Encoding": "identity"}).status == 200


@pytest.mark.parametrize("coding", CODINGS)
def test_h27_the_length_of_the_json_part_is_that_of_the_plain_body(server, coding):
    data = np.arange(4, dtype=np.float32).tobytes()
    inputs = [{"name": "INPUT0", "datatype": "FP32", "shape": [4], "parameters": {"binary_data_size": 16}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    pack, unpack = CODINGS[coding]
    headers = {"Content-Encoding": coding, "Accept-Encoding": coding, HEADER_LENGTH: str(len(head))}
    answer = post(server, PATH, pack(head + data), headers)
    assert (answer.status, answer.headers["content-encoding"]) == (200, coding)
    plain = unpack(answer.body)
    length = int(answer.headers[HEADER_LENGTH])
    assert json.loads(plain[:length])["outputs"][0]["shape"] == [4]
    assert plain[length:] == data
    raw = post(server, PATH, pack(data), {"Content-Encoding": coding, HEADER_LENGTH: "0"})
    assert raw.parts()[1] == data


@pytest.mark.parametrize("coding", ["br", "x-gzip", "gzip, gzip", "", "foo"])
def test_h27_unknown_codings_are_refused_with_the_known_ones(server, coding):
    answer = post(server, PATH, body(1), {"Content-Encoding": coding})
    assert (answer.status, answer.error) == (501, "Unsupported compression type")
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_h31_decompression_stops_at_the_limit(server, pack):
    """A few kilobytes that would become 64 MiB."""
    bomb = pack(b" " * (1 << 26))
    answer = post(server, PATH, bomb, {"Content-Encoding": "gzip"})
    assert answer.status == 400
    assert str(LIMIT) in answer.error and "--http-max-input-size" in answer.error
    small = pack(b" " * (LIMIT + 1))
    assert str(LIMIT) in post(server, PATH, small, {"Content-Encoding": "gzip"}).error


def test_h27_broken_data_is_refused(server):
    packed = gzip.compress(body(1))
    for broken in (packed[:-1], packed[:20], b"garbage", body(1), packed[:-8] + b"\0" * 8, zlib.compress(b"")[:3]):
        answer = post(server, PATH, broken, {"Content-Encoding": "gzip"})
        assert (answer.status, "cannot be decompressed" in answer.error) == (400, True), broken
    answer = post(server, PATH, b"", {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error) == (400, "nothing to be decompressed")


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate;q=0.9", "deflate"),
        ("identity, gzip", None),
        ("gzip;q=0", None),
        ("*", None),
        ("br", None),
    ],
)
@pytest.mark.parametrize("count", [2, 50_000])
def test_h27_answers_have_the_coding_that_the_client_prefers(server, accept, coding, count):
    answer = post(server, PATH, body(count), {"Accept-Encoding": accept})
    assert (answer.status, answer.headers["content-encoding"]) == (200, coding)
    plain = CODINGS[coding][1](answer.body) if coding else answer.body
    assert json.loads(plain)["outputs"][0]["data"] == [1] * count


def test_h27_only_answers_of_inference_are_compressed(server):
    accept = {"Accept-Encoding": "gzip"}
    error = post(server, PATH, b"{}", accept)
    assert (error.status, error.headers["content-encoding"]) == (400, None)
    generated = post(server, "/v2/models/echo/generate", {"INPUT0": [1]}, accept)
    assert (generated.status, generated.headers["content-encoding"]) == (200, None)
    assert get(server, "/v2").headers["content-encoding"] is None


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_h27_generate_refuses_compressed_requests(server, call):
    packed = gzip.compress(b'{"INPUT0":[1]}')
    answer = post(server, f"/v2/models/echo/{call}", packed, {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error) == (400, "Unsupported content-encoding, only 'identity' is supported.")


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("binary", [True, False])
def test_h27_through_the_http_client(server, coding, binary):
    values = np.arange(1000, dtype=np.float32)
    data = httpclient.InferInput("INPUT0", [1000], "FP32")
    data.set_data_from_numpy(values, binary_data=binary)
    output = httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary)
    with httpclient.InferenceServerClient(server.http) as client:
        result = client.infer(
            "echo",
            [data],
            outputs=[output],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
    assert result.as_numpy("OUTPUT0").tolist() == values.tolist()


class CountingProxy:
    """Passes one connection on, and counts what comes back through it."""

    def __init__(self, address):
        self.target = address
        self.bytes = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        host, port = self.target.rsplit(":", 1)
        with self.listener.accept()[0] as client, socket.create_connection((host, int(port))) as server:
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            with contextlib.suppress(OSError):
                while data := server.recv(65536):
                    self.bytes += len(data)
                    client.sendall(data)

    @staticmethod
    def _pass_on(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)


@pytest.mark.parametrize(("level", "compressed"), [(None, False), ("none", False), ("low", True), ("high", True)])
def test_g10_compression(repository, level, compressed):
    """Requests may always be compressed; answers are if the operator says so."""
    rows, size = 4096, 4096 * 4 * 4
    repository.mock("zeros", max_batch_size=rows)
    request = pb.ModelInferRequest(model_name="zeros")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(b"\0" * size)
    flags = [f"--grpc-infer-response-compression-level={level}"] if level else []
    with Server(repository, *flags) as server:
        for algorithm in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
            proxy = CountingProxy(server.grpc)
            with grpc.insecure_channel(proxy.address) as channel:
                answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, compression=algorithm)
            assert answer.raw_output_contents == [b"\0" * size]
            assert (proxy.bytes < size) == compressed, (algorithm, proxy.bytes)


def test_g10_h31_decompression_stops_at_the_limit(repository):
    """Some kilobytes that would become 64 MiB; the limit does not apply to plain messages."""
    rows = 1 << 22
    repository.mock("zeros", max_batch_size=rows)
    request = pb.ModelInferRequest(model_name="zeros")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(b"\0" * (rows * 16))
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with Server(repository, f"--http-max-input-size={1 << 20}") as server:
        with grpc.insecure_channel(server.grpc, unlimited) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ModelInfer(request, compression=algorithm)
                assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert str(1 << 20) in caught.value.details()
            assert stub.ModelInfer(request).outputs
            small = pb.ModelInferRequest(model_name="zeros")
            small.inputs.add(name="x", datatype="FP32", shape=[1, 4])
            small.raw_input_contents.append(b"\0" * 16)
            answers = stub.ModelStreamInfer(iter([small, small]), compression=grpc.Compression.Gzip)
            assert len(list(answers)) == 2
