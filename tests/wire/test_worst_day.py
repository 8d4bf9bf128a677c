"""Clients at their worst: too slow, too much, gone. Each is ended in time and in bounded memory; others are served."""

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper

from http2_client import Http2, infer_message, split
from http_client import connect, get, infer, post, raw, send, tensor
from metrics import metric, metrics, wait_pending
from process import MIB, open_files, private_bytes, wait_until
from repository import FOREVER_US, Repository, graph, plus
from server import DEADLINE_S, Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
SHORT = ["--head-timeout-ms=300", "--body-timeout-ms=300", "--write-timeout-ms=300"]
MEMORY = 32 * MIB
# gRPC's codes.
DEADLINE_EXCEEDED = "4"
RESOURCE_EXHAUSTED = "8"
# Elements of the answer that nobody reads: far more than sockets hold.
LARGE = 16 << 20


def expand():
    """`y` is `x` LARGE times: a small request with a large answer."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], np.array([1, LARGE]))
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    return graph([node], [("x", "FP32", ("batch", 1))], [("y", "FP32", ("batch", LARGE))], [shape])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("worst") / "models")
    repository.onnx("m", plus(1))
    repository.onnx("large", expand())
    return repository


@pytest.fixture(scope="module")
def server(models):
    """Short of time and memory."""
    with Server(models, *SHORT, f"--max-request-memory={MEMORY}") as server:
        assert infer(server, "m", ZEROS).status == 200
        yield server
        assert infer(server, "m", ZEROS).status == 200


def head(length, path="/v2/models/m/infer", **headers):
    lines = [f"POST {path} HTTP/1.1", "Host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += ["Transfer-Encoding: chunked"] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def open_socket(address):
    return socket.create_connection(split(address), DEADLINE_S)


def read_to_end(connection):
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def trickle(connection, data):
    """Sends byte by byte, each when the one before has had time to arrive; what the server says before it closes."""
    deadline = time.monotonic() + DEADLINE_S
    for byte in data:
        assert time.monotonic() < deadline, "the server still reads"
        connection.settimeout(0.02)
        try:
            connection.sendall(bytes([byte]))
            return connection.recv(65536)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    raise AssertionError("the server has read all of it")


@pytest.mark.parametrize("sent", [b"", b"POST /v2", b"GET / HTTP/1.1\r\nHost: x\r\nX-Header: "])
def test_h28_a_head_that_does_not_come_is_waited_for_so_long(server, sent):
    with open_socket(server.http) as slow:
        slow.sendall(sent)
        assert infer(server, "m", ZEROS).status == 200
        assert b"200" not in read_to_end(slow)


def test_h28_a_second_head_that_does_not_come_is_waited_for_so_long(server):
    with open_socket(server.http) as slow:
        slow.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /v2/health")
        assert read_to_end(slow) == b""


def test_h28_a_head_byte_by_byte_has_no_longer(server):
    with open_socket(server.http) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert trickle(slow, b"X-Header: " + b"x" * 10_000) == b""


def test_h28_a_body_that_does_not_come_is_told_so(server):
    with open_socket(server.http) as slow:
        slow.sendall(head(1000) + b"{")
        assert infer(server, "m", ZEROS).status == 200
        answer = read_to_end(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"less than 1024 bytes of it arrived within 0.3 s" in answer


def test_h28_a_body_byte_by_byte_is_told_so(server):
    with open_socket(server.http) as slow:
        slow.sendall(head(100_000))
        assert trickle(slow, b" " * 100_000).startswith(b"HTTP/1.1 408 ")


def test_h28_a_body_that_is_slow_but_comes_is_read(server):
    """Longer in all than one time limit, yet with enough in each."""
    body = json.dumps({"inputs": ZEROS}).encode().ljust(40 * 2048)
    with open_socket(server.http) as slow:
        slow.sendall(head(len(body)))
        for start in range(0, len(body), 2048):
            slow.sendall(body[start : start + 2048])
            # Each piece is on its own: another request is answered between two of them.
            assert get(server, "/v2/health/live").status == 200
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_h28_a_declared_length_reserves_nothing(server):
    before = private_bytes(server)
    with contextlib.ExitStack() as stack:
        liars = [stack.enter_context(open_socket(server.http)) for _ in range(20)]
        for liar in liars:
            liar.sendall(head((2 << 30) - 1) + b"x" * 100)
        assert infer(server, "m", ZEROS).status == 200
        assert private_bytes(server) - before < 20 * MIB
        assert all(read_to_end(liar).startswith(b"HTTP/1.1 408 ") for liar in liars)


def test_h28_a_length_over_the_limit_is_refused_at_once(server):
    for sent in (b"", b"x" * 100_000):
        answer = raw(server.http, head((2 << 30) + 1) + sent)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"it is longer than 2147483648 bytes" in answer


def test_h28_a_refusal_reaches_a_client_that_still_sends(server):
    """A connection closed with unread bytes would be reset before the refusal is read."""
    with connect(server.http) as connection:
        answer = send(connection, "POST", "/v2/models/m/infer", b"x" * (MEMORY + 16 * MIB))
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert f"the bound is {MEMORY} bytes" in answer.error


def test_h28_an_endless_body_is_bounded(server):
    before = private_bytes(server)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with open_socket(server.http) as endless:
        endless.sendall(head(None))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 4 * MEMORY:
                endless.sendall(chunk)
                sent += len(chunk)
        answer = read_to_end(endless)
    assert b"503" in answer.split(b"\r\n")[0] or not answer
    assert private_bytes(server) - before < 3 * MEMORY


def test_h28_many_at_once_share_the_bound(server):
    """Bodies of 5 MiB each, all but the last byte sent: six fit, the others are refused; then there is room again."""
    size = 5 * MIB
    body = json.dumps({"inputs": ZEROS}).encode().ljust(size)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_socket(server.http)) for _ in range(12)]
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(head(size) + body[:-1])
        # Small requests find no room either, or they do: but they are answered.
        assert infer(server, "m", ZEROS).status in (200, 503)
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.sendall(body[-1:])
        statuses = [read_status(client) for client in clients]
    assert set(statuses) <= {b"200", b"503", b"408"}, statuses
    assert statuses.count(b"503") >= 6, statuses
    wait_until(lambda: infer(server, "m", ZEROS).status == 200, "room again")


def test_h31_what_a_request_becomes_counts_in_the_memory_of_requests(server):
    """Kilobytes that would become less than a request may have, and more than all of them together may."""
    bomb = gzip.compress(json.dumps({"inputs": ZEROS}).encode() + b" " * (40 * MIB))
    answer = post(server, "/v2/models/m/infer", bomb, {"Content-Encoding": "gzip"})
    assert (answer.status, "memory" in answer.error) == (503, True), answer.error
    packed = gzip.compress(infer_message("m", shape=(1, 10 * MIB), data=bytes(40 * MIB)))
    with Http2(server.grpc) as client:
        path = "/inference.GRPCInferenceService/ModelInfer"
        kind = {"content_type": "application/grpc", "te": "trailers", "grpc_encoding": "gzip"}
        stream = client.begin("POST", path, end_stream=False, **kind)
        message = struct.pack(">BI", 1, len(packed)) + packed
        for at in range(0, len(message), 1 << 14):
            client.data(stream, message[at : at + (1 << 14)], end_stream=at + (1 << 14) >= len(message))
        headers = client.answer(stream)[0]
        assert (headers["grpc-status"], "memory" in headers["grpc-message"]) == (RESOURCE_EXHAUSTED, True), headers


def read_status(connection):
    with contextlib.suppress(ConnectionError):
        received = connection.recv(65536)
        return received.split(b" ")[1] if received else b""
    return b""


def test_h28_clients_that_vanish_in_mid_body_leave_nothing_behind(server):
    for _ in range(20):
        with open_socket(server.http) as leaver:
            leaver.sendall(head(10 * MIB) + b"x" * (8 * MIB))
    body = json.dumps({"inputs": ZEROS}).encode().ljust(MEMORY - MIB)

    def all_fits():
        with connect(server.http) as connection:
            return send(connection, "POST", "/v2/models/m/infer", body).status == 200

    wait_until(all_fits, "all memory is free again")


def test_h28_a_large_answer_comes_whole(models):
    body = json.dumps({
        "inputs": [tensor("x", "FP32", [1, 1], [1])],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }).encode()
    with Server(models) as server:
        with connect(server.http) as connection:
            assert len(send(connection, "POST", "/v2/models/large/infer", body).parts()[1]) == 4 * LARGE
        with Http2(server.http) as client:
            stream = client.begin("POST", "/v2/models/large/infer", end_stream=False)
            client.data(stream, body, end_stream=True)
            headers, answer = client.answer(stream)
            assert (headers[":status"], int(headers["content-length"])) == ("200", len(answer))
        with Http2(server.grpc) as client:
            stream = client.call("ModelInfer", infer_message("large", shape=(1, 1), data=bytes(4)))
            headers, answer = client.answer(stream)
            assert (headers["grpc-status"], len(answer) > 4 * LARGE) == ("0", True)


@pytest.mark.parametrize(
    ("length", "status"), [(MEMORY - MIB, DEADLINE_EXCEEDED), ((2 << 30) - 1, RESOURCE_EXHAUSTED)]
)
def test_g13_a_declared_message_reserves_nothing_and_ends(server, length, status):
    """One that could never fit is refused by its length, before the first of its bytes."""
    before = private_bytes(server)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Http2(server.grpc)) for _ in range(10)]
        streams = [client.call("ModelInfer", prefix=length) for client in clients]
        assert infer(server, "m", ZEROS).status == 200
        assert private_bytes(server) - before < 20 * MIB
        for client, stream in zip(clients, streams, strict=True):
            assert client.answer(stream)[0]["grpc-status"] == status


def test_g13_a_call_of_one_message_ends_though_its_client_never_ends_it(server):
    """The message is there and whole; what it takes of the memory is free again after the time of a body."""
    message = infer_message("m", shape=(1, 4), data=bytes(16))
    with Http2(server.grpc) as client:
        stream = client.begin(
            "POST", "/inference.GRPCInferenceService/ModelInfer", end_stream=False,
            content_type="application/grpc", te="trailers")
        client.data(stream, struct.pack(">BI", 0, len(message)) + message, end_stream=False)
        assert client.answer(stream)[0]["grpc-status"] == DEADLINE_EXCEEDED


def test_g13_messages_share_the_bound(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        data = tritonclient.grpc.InferInput("x", [1, MEMORY // 4], "FP32")
        data._raw_content = bytes(MEMORY)
        with pytest.raises(tritonclient.grpc.InferenceServerException) as failure:
            client.infer("m", [data])
        assert failure.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert f"the bound is {MEMORY} bytes" in failure.value.message()
        assert client.is_server_ready()


def test_g9_g13_a_message_over_tritons_bound_is_refused(server):
    with Http2(server.grpc) as client:
        stream = client.call("ModelInfer", prefix=2 << 30)
        assert client.answer(stream)[0]["grpc-status"] not in ("0", "2")


def test_g9_a_flood_of_cancelled_calls_ends_the_connection(server):
    with Http2(server.grpc) as client, contextlib.suppress(ConnectionError):
        # All in one piece: a call that is cancelled after the server took it up is an ordinary one.
        for _ in range(3000):
            client.state.reset_stream(client.prepare("POST", "/inference.GRPCInferenceService/ServerLive", False))
        client.flush()
        assert "ConnectionTerminated" in client.until_closed()
    assert infer(server, "m", ZEROS).status == 200


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server whose model never finishes: what is sent to it waits."""
    repository = Repository(tmp_path_factory.mktemp("busy") / "models")
    repository.mock(latency_us=FOREVER_US)
    with Server(repository, "--half-close-timeout-ms=300") as server:
        threading.Thread(target=hold, args=[server], daemon=True).start()
        # Before any test's request: the first one that comes is the one that runs for ever.
        wait_until(lambda: is_busy(server), "the instance has a batch")
        yield server


def is_busy(server):
    return any(value > 0 for (name, _), value in metrics(server).items() if name == "skep_instance_busy_us")


def hold(server):
    """Keeps the one instance busy until the server is gone."""
    with contextlib.suppress(Exception):
        infer(server, "mock", ZEROS)


def cancelled(server):
    return metric(server, "request_failure", "mock", reason="CANCELED")


BODY = json.dumps({"inputs": ZEROS}).encode()


@pytest.mark.parametrize(
    "request_bytes",
    [
        head(len(BODY), "/v2/models/mock/infer") + BODY,
        head(None, "/v2/models/mock/infer") + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
        b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n" + head(len(BODY), "/v2/models/mock/infer") + BODY,
    ],
    ids=["one", "chunked", "kept alive"],
)
@pytest.mark.parametrize("end", ["close", "reset"])
def test_b19_a_client_that_leaves_cancels_its_http_request(busy, request_bytes, end):
    before = cancelled(busy)
    with open_socket(busy.http) as leaver:
        leaver.sendall(request_bytes)
        wait_pending(busy, "mock", 1)
        if end == "reset":
            leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_pending(busy, "mock", 0)
    assert cancelled(busy) == before + 1


def test_b19_a_client_that_leaves_cancels_all_its_http2_requests(busy):
    before = cancelled(busy)
    with Http2(busy.http) as leaver:
        for _ in range(5):
            leaver.data(leaver.begin("POST", "/v2/models/mock/infer", end_stream=False), BODY, end_stream=True)
        wait_pending(busy, "mock", 5)
    wait_pending(busy, "mock", 0)
    assert cancelled(busy) == before + 5


def test_g9_a_stream_that_is_reset_cancels_its_request(busy):
    before = cancelled(busy)
    with Http2(busy.grpc) as client:
        streams = [client.call("ModelInfer", infer_message("mock")) for _ in range(2)]
        wait_pending(busy, "mock", 2)
        client.state.reset_stream(streams[0])
        client.flush()
        wait_pending(busy, "mock", 1)
        assert cancelled(busy) == before + 1
    wait_pending(busy, "mock", 0)
    assert cancelled(busy) == before + 2


def test_g9_a_deadline_cancels_at_the_server_too(busy):
    """The client here says how long it waits, but leaves the counting to the server."""
    before = cancelled(busy)
    with Http2(busy.grpc) as client:
        stream = client.call("ModelInfer", infer_message("mock"), grpc_timeout="300m")
        headers, _ = client.answer(stream)
        assert headers["grpc-status"] == DEADLINE_EXCEEDED
        assert "deadline" in headers["grpc-message"]
        # The connection goes on.
        live = client.call("ServerLive", b"")
        assert client.answer(live)[0]["grpc-status"] == "0"
    wait_pending(busy, "mock", 0)
    assert cancelled(busy) == before + 1


def test_g9_a_client_with_a_deadline_sees_it(busy):
    data = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    data._raw_content = bytes(16)
    before = cancelled(busy)
    with tritonclient.grpc.InferenceServerClient(busy.grpc) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.infer, "mock", [data], client_timeout=0.5)
        with pytest.raises(tritonclient.grpc.InferenceServerException) as failure:
            call.result(DEADLINE_S)
        assert failure.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    wait_pending(busy, "mock", 0)
    assert cancelled(busy) == before + 1
