"""Stopping: not ready first, requests in flight are answered, idle connections are no obstacle, exit code 0."""

import contextlib
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http

from http_client import connect, get, infer, request, send, tensor
from metrics import metric, wait_pending
from repository import FOREVER_US, WARMUP, plus
from server import DEADLINE_S, Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
# Two requests, one after the other on the one instance, last twice this long.
LATENCY_US = 400_000
# A stop that waits for nothing ends long before; one that waits for this long has failed.
EXIT_TIMEOUT = "--exit-timeout-secs=10"


def is_ready(address):
    """As a load balancer sees it: a refused connection is not ready."""
    try:
        return request(address, "GET", "/v2/health/ready").status == 200
    except ConnectionError:
        return False


def wait_not_ready(address):
    deadline = time.monotonic() + DEADLINE_S
    while is_ready(address):
        assert time.monotonic() < deadline, "still ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_c11_an_idle_server_stops_with_0(simple_repository, number):
    with Server(simple_repository) as server:
        assert server.stop(number) == 0
        assert f"received {number.name}, stopping" in server.log
        assert "unloaded model `addsub` version 1" in server.log
        assert server.lines[-1].endswith('"stopped"')


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_c11_not_ready_first_and_what_is_in_flight_finishes(repository, number):
    repository.mock(latency_us=LATENCY_US)
    with Server(repository, EXIT_TIMEOUT) as server, ThreadPoolExecutor(2) as pool:
        address = server.http
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        wait_pending(server, "mock", 1)
        server.send_signal(number)
        wait_not_ready(address)
        assert not all(future.done() for future in running)
        answers = [future.result() for future in running]
        assert [answer.status for answer in answers] == [200, 200]
        assert server.wait() == 0


def test_c11_grpc_calls_in_flight_finish(repository):
    repository.mock(latency_us=LATENCY_US)
    with Server(repository, EXIT_TIMEOUT) as server, ThreadPoolExecutor(2) as pool:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            data = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
            data._raw_content = b"\0" * 16
            running = [pool.submit(client.infer, "mock", [data]) for _ in range(2)]
            wait_pending(server, "mock", 1)
            server.send_signal(signal.SIGTERM)
            assert [future.result().as_numpy("y").tolist() for future in running] == [[[0.0] * 4]] * 2
            assert server.wait() == 0


def test_c42_idle_connections_do_not_delay(simple_repository):
    with Server(simple_repository, EXIT_TIMEOUT) as server:
        with connect(server.http) as idle, connect(server.http) as silent, connect(server.metrics) as scraper:
            assert send(idle, "GET", "/v2/health/ready").status == 200
            assert send(scraper, "GET", "/metrics").status == 200
            silent.connect()
            with grpc.insecure_channel(server.grpc) as channel:
                grpc.channel_ready_future(channel).result(DEADLINE_S)
                assert server.stop() == 0
        assert "connections still open" not in server.log


def test_c42_idle_tritonclients_do_not_delay(simple_repository):
    with Server(simple_repository, EXIT_TIMEOUT) as server:
        clients = [
            tritonclient.http.InferenceServerClient(server.http, concurrency=4),
            tritonclient.grpc.InferenceServerClient(server.grpc),
        ]
        for client in clients:
            assert client.is_server_ready()
        assert server.stop() == 0
        for client in clients:
            client.close()


def test_c42_an_open_watch_of_the_health_service_does_not_delay(simple_repository):
    with Server(simple_repository, EXIT_TIMEOUT) as server, grpc.insecure_channel(server.grpc) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert next(watch) == b"\x08\x01"
        assert server.stop() == 0


def test_c11_new_requests_on_an_open_connection_are_refused_or_closed(repository):
    repository.mock(latency_us=LATENCY_US)
    with Server(repository, EXIT_TIMEOUT) as server, ThreadPoolExecutor(1) as pool:
        address = server.http
        first, second = pool.submit(infer, server, "mock", ZEROS), None
        with ThreadPoolExecutor(1) as other:
            second = other.submit(infer, server, "mock", ZEROS)
            wait_pending(server, "mock", 1)
            server.send_signal(signal.SIGTERM)
            wait_not_ready(address)
            with pytest.raises(ConnectionError):
                request(address, "POST", "/v2/models/mock/infer", {"inputs": ZEROS})
            assert (first.result().status, second.result().status) == (200, 200)
        assert server.wait() == 0


def test_c10_the_exit_timeout_bounds_the_wait(repository):
    repository.mock(latency_us=FOREVER_US)
    with Server(repository, "--exit-timeout-secs=1") as server, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        wait_pending(server, "mock", 1)
        assert server.stop() == 1
        assert "still open after 1 s" in server.log
        assert all(future.exception() is not None for future in running)


def test_c11_a_signal_while_models_load_stops_the_server(repository):
    repository.mock(config=WARMUP, latency_us=FOREVER_US)
    with Server(repository, "--exit-timeout-secs=1", until="Started Metrics Service") as server:
        assert get(server, "/v2/health/live").status == 200
        server.send_signal(signal.SIGTERM)
        server.wait(deadline_s=10)
        assert "received SIGTERM while loading models" in server.log


def test_c11_a_second_signal_stops_at_once(repository):
    repository.mock(latency_us=FOREVER_US)
    with Server(repository) as server, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        wait_pending(server, "mock", 1)
        server.send_signal(signal.SIGTERM)
        server.wait_for("received SIGTERM, stopping")
        assert server.stop(signal.SIGINT) == 1
        assert all(future.exception() is not None for future in running)


def test_c11_under_load_every_answer_is_whole_or_the_connection_is_closed(repository):
    repository.mock(config="instance_group { count: 2 }", output="echo", latency_us=2000)
    body = json.dumps({"inputs": [tensor("x", "FP32", [1, 4], [1, 2, 3, 4])]})

    def client(address):
        """Sends on one connection until it is closed; how many answers came."""
        answers = 0
        with contextlib.suppress(ConnectionError), connect(address) as connection:
            while True:
                answer = send(connection, "POST", "/v2/models/mock/infer", body)
                assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [1, 2, 3, 4])
                answers += 1
        return answers

    with Server(repository, EXIT_TIMEOUT) as server, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, server.http) for _ in range(8)]
        deadline = time.monotonic() + DEADLINE_S
        while metric(server, "request_success", "mock") < 100:
            assert time.monotonic() < deadline
        assert server.stop() == 0
        assert sum(future.result() for future in clients) >= 100


def test_c11_a_second_start_on_the_same_port(repository):
    """A port that was just left can be taken again."""
    repository.onnx("m", plus(1))
    with Server(repository) as server:
        address = server.http
        assert infer(server, "m", ZEROS).status == 200
        assert server.stop() == 0
    port = address.rsplit(":", 1)[1]
    ports = ["--http-address=127.0.0.1", f"--http-port={port}", "--grpc-port=0", "--metrics-port=0"]
    with Server(repository, ports=ports) as server:
        assert server.http == address
        assert infer(server, "m", ZEROS).status == 200
