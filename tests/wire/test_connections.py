"""Connections: how many, how long, over which protocol and address; what ends them."""

import contextlib
import json
import re
import resource
import select
import socket

import pytest
import tritonclient.grpc
import tritonclient.http

from http2_client import Http2, infer_message, split
from http_client import HEADER_LENGTH, connect, get, infer, request, send, tensor
from metrics import metrics
from process import MIB, open_files, private_bytes, wait_until
from repository import plus
from server import DEADLINE_S, Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"

IDLE_CONNECTIONS = 10_000
# Both ends of a connection are descriptors: the test's own, and the server's; some of each are other things.
OTHER_FILES = 600
# What an open connection may cost of the server's own memory: a task, its socket, nothing of what it might send.
BYTES_PER_IDLE_CONNECTION = 16 << 10


def open_socket(address):
    return socket.create_connection(split(address), DEADLINE_S)


def read_to_end(connection):
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from repository import Repository

    repository = Repository(tmp_path_factory.mktemp("connections") / "models")
    repository.onnx("m", plus(1))
    with Server(repository) as server:
        yield server


def test_h28_http2_by_prior_knowledge(server):
    body = json.dumps({"inputs": ZEROS}).encode()
    with Http2(server.http) as client:
        ready = client.begin("GET", "/v2/health/ready")
        assert client.answer(ready)[0][":status"] == "200"
        streams = []
        for _ in range(20):
            streams.append(client.begin("POST", "/v2/models/m/infer", end_stream=False))
            client.data(streams[-1], body, end_stream=True)
        answers = dict.fromkeys(streams, b"")
        ended = 0
        for event in client.events():
            if type(event).__name__ == "DataReceived":
                answers[event.stream_id] += event.data
            ended += type(event).__name__ == "StreamEnded"
            if ended == len(streams):
                break
        assert [json.loads(answer)["outputs"][0]["data"] for answer in answers.values()] == [[1.0] * 4] * 20


def test_h28_pipelined_requests_are_answered_in_order(server):
    paths = ["/v2/health/live", "/v2", "/v2/models/m", "/nosuch"]
    requests = "".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths[:-1])
    requests += f"GET {paths[-1]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with open_socket(server.http) as connection:
        connection.sendall(requests.encode())
        received = read_to_end(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"200", b"404"]
    assert received.index(b'"extensions"') < received.index(b'"platform"')


def test_h28_a_connection_is_kept_for_many_requests(server):
    with connect(server.http) as connection:
        assert send(connection, "GET", "/v2/health/ready").status == 200
        first = connection.sock
        for _ in range(20):
            assert send(connection, "POST", "/v2/models/m/infer", json.dumps({"inputs": ZEROS})).status == 200
            assert send(connection, "GET", "/nosuch").status == 404
        assert connection.sock is first


def test_c6_ten_thousand_idle_connections_cost_little_and_others_are_served(repository):
    repository.onnx("m", plus(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(IDLE_CONNECTIONS, hard - OTHER_FILES)
    try:
        # This test is not about the time for a head, however slow the machine.
        with Server(repository, "--head-timeout-ms=3600000") as server, contextlib.ExitStack() as connections:
            assert infer(server, "m", ZEROS).status == 200
            before = private_bytes(server)
            for _ in range(count):
                connections.enter_context(open_socket(server.http))
            wait_until(lambda: open_files(server) > count, f"{count} connections are open")
            for _ in range(20):
                assert infer(server, "m", ZEROS).status == 200
            assert metrics(server)
            assert private_bytes(server) - before < count * BYTES_PER_IDLE_CONNECTION
            connections.close()
            wait_until(lambda: open_files(server) < 100, "the connections are closed")
            assert server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_c6_connections_over_the_limit_replace_idle_ones(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--max-connections=3") as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(open_socket(server.http)) for _ in range(3)]
        for connection in held:
            connection.sendall(READY)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(6):
            assert infer(server, "m", ZEROS).status == 200
        assert metrics(server), "the port of metrics has places of its own"
        closed, _, _ = select.select(held, [], [], DEADLINE_S)
        assert closed and all(read_to_end(connection) == b"" for connection in closed)


def test_c6_a_server_out_of_descriptors_goes_on(repository):
    repository.onnx("m", plus(1))
    with Server(repository) as server, contextlib.ExitStack() as stack:
        assert infer(server, "m", ZEROS).status == 200
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (open_files(server) + 3, hard))
        for _ in range(8):
            stack.enter_context(open_socket(server.http))
        server.wait_for("cannot accept a connection")
        for _ in range(3):
            assert infer(server, "m", ZEROS).status == 200
        assert server.log.count("cannot accept a connection") == 1, "once a minute is enough"
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert server.stop() == 0


@pytest.mark.parametrize("address", ["[::1]", "[::]"])
def test_c6_c7_c8_ipv6(repository, address):
    repository.onnx("m", plus(1))
    ports = [f"--{name}-{what}" for name in ("http", "grpc", "metrics") for what in (f"address={address}", "port=0")]
    with Server(repository, ports=ports) as server:
        places = [server.http, server.grpc, server.metrics]
        assert all(place.startswith(f"{address}:") for place in places)
        http, grpc, figures = [place.replace("[::]", "[::1]") for place in places]
        assert request(http, "POST", "/v2/models/m/infer", {"inputs": ZEROS}).status == 200
        assert request(figures, "GET", "/metrics").status == 200
        with tritonclient.grpc.InferenceServerClient(grpc) as client:
            assert client.is_model_ready("m")
        if address == "[::]":
            port = split(server.http)[1]
            assert request(f"127.0.0.1:{port}", "GET", "/v2/health/ready").status == 200, "IPv4 is taken too"


def test_c28_connections_end_at_their_age_and_calls_get_a_grace_period(repository):
    repository.mock(latency_us=2_000_000)
    flags = ["--grpc-max-connection-age=300", "--grpc-max-connection-age-grace=60000"]
    with Server(repository, *flags) as server:
        with Http2(server.grpc) as idle:
            assert "ConnectionTerminated" in idle.until_closed()
        data = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        data._raw_content = b"\0" * 16
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            assert client.infer("mock", [data]).as_numpy("y").shape == (1, 4)
            assert client.is_server_ready(), "a client opens the next connection by itself"


def test_c28_a_call_longer_than_the_grace_period_is_cut_off(repository):
    repository.mock(latency_us=3_000_000_000)
    flags = ["--grpc-max-connection-age=200", "--grpc-max-connection-age-grace=200", "--exit-timeout-secs=1"]
    with Server(repository, *flags) as server, Http2(server.grpc) as client:
        client.call("ModelInfer", infer_message("mock"))
        assert "StreamEnded" not in client.until_closed()


def test_c28_g12_a_silent_grpc_client_is_pinged(repository):
    repository.onnx("m", plus(1))
    flags = ["--grpc-keepalive-time=100", "--grpc-keepalive-timeout=200"]
    with Server(repository, *flags) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client, open_socket(server.grpc) as dead:
            assert client.is_server_ready()
            dead.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            ping = bytes([0, 0, 8, 6, 0])
            assert ping in read_to_end(dead), "asked, and closed without an answer"
            assert client.is_server_ready(), "who answers stays"


def test_c28_g12_flags_on_pings_are_accepted_and_named(simple_repository):
    flags = [
        "--grpc-keepalive-permit-without-calls=1",
        "--grpc-http2-max-pings-without-data=0",
        "--grpc-http2-min-recv-ping-interval-without-data=1000",
        "--grpc-http2-max-ping-strikes=0",
    ]
    with Server(simple_repository, *flags) as server:
        for flag in flags:
            assert server.log.count(f"accepted without effect: {flag.split('=')[0]}:") == 1


def test_c42_idle_connections_of_every_kind_do_not_delay_a_stop(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--exit-timeout-secs=30") as server, contextlib.ExitStack() as stack:
        half = stack.enter_context(open_socket(server.http))
        half.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost")
        for address in (server.http, server.grpc):
            silent = stack.enter_context(Http2(address))
            silent.begin("GET", "/v2/health/ready")
        assert server.stop(deadline_s=20) == 0
        assert "connections still open" not in server.log


def test_c6_idle_connections_are_closed_after_a_time(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--idle-timeout-ms=200") as server:
        with open_socket(server.http) as idle:
            idle.sendall(READY)
            assert read_to_end(idle).startswith(b"HTTP/1.1 200")
        with Http2(server.http) as idle:
            stream = idle.begin("GET", "/v2/health/ready")
            assert idle.answer(stream)[0][":status"] == "200"
            assert "ConnectionTerminated" in idle.until_closed()


def test_c6_limits_must_be_positive(simple_repository):
    from server import serve_and_fail

    for flag in ("--max-connections=0", "--head-timeout-ms=0", "--max-request-memory=0"):
        code, log = serve_and_fail(simple_repository, flag)
        assert code == 1
        assert flag.split("=")[0] in log


def test_h9_large_binary_inputs_arrive_whole(repository):
    """Put together from many pieces, behind JSON parts of all lengths modulo the alignment."""
    repository.onnx("m", plus(1, shape=("batch", 250_000)))
    with Server(repository) as server, connect(server.http) as connection:
        for padding in (0, 1, 33, 63):
            head = {
                "id": "x" * padding,
                "inputs": [tensor("x", "FP32", [1, 250_000], binary_data_size=1_000_000)],
                "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
            }
            head = json.dumps(head).encode()
            answer = send(
                connection, "POST", "/v2/models/m/infer", head + bytes(1_000_000), {HEADER_LENGTH: str(len(head))}
            )
            assert answer.status == 200, answer.body
            assert answer.parts()[1] == b"\0\0\x80\x3f" * 250_000
        assert private_bytes(server) < 500 * MIB
        assert get(server, "/v2/health/ready").status == 200
