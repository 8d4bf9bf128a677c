"""The default scheduler: first in, first out, any free instance; cancelled requests do not run; reloads lose none."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import tritonclient.grpc

from http_client import get, infer, post, tensor
from metrics import metric, wait_pending
from repository import FOREVER_US, WARMUP, plus
from server import DEADLINE_S, Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
LATENCY_US = 300_000
# Long enough that what waits behind it can only have left by being cancelled.
LONG_US = 1_000_000


def test_s1_first_in_first_out(repository):
    repository.mock(latency_us=LATENCY_US)
    finished = []

    def one(number):
        assert infer(server, "mock", ZEROS, id=str(number)).status == 200
        finished.append(number)

    with Server(repository) as server, ThreadPoolExecutor(5) as pool:
        running = [pool.submit(one, 0), pool.submit(one, 0)]
        for number in range(1, 4):
            wait_pending(server, "mock", number)
            running.append(pool.submit(one, number))
        for future in running:
            future.result()
    assert finished == [0, 0, 1, 2, 3]


def test_s1_f10_every_instance_takes_one_request(repository):
    repository.mock(config="instance_group { count: 3 }", latency_us=LATENCY_US)
    with Server(repository) as server, ThreadPoolExecutor(5) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(5)]
        wait_pending(server, "mock", 2)
        assert [future.result().status for future in running] == [200] * 5
        assert metric(server, "exec_count", "mock") == 5


def test_m2_a_client_that_leaves_cancels_its_waiting_request(repository):
    repository.mock(latency_us=LONG_US)
    body = json.dumps({"inputs": ZEROS}).encode()
    head = f"POST /v2/models/mock/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    # Closing a connection looks as ending the sending side of it does; such a client may wait for its answer, so by default
    # its request is kept for a while.
    with Server(repository, "--half-close-timeout-ms=0") as server, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        wait_pending(server, "mock", 1)
        host, port = server.http.rsplit(":", 1)
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            with socket.create_connection((host, int(port)), DEADLINE_S) as leaver:
                leaver.sendall(head + body)
                wait_pending(server, "mock", 2)
            wait_pending(server, "mock", 1)
            data = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
            data._raw_content = b"\0" * 16
            call = client.async_infer("mock", [data], callback=lambda result, error: None)
            wait_pending(server, "mock", 2)
            call.cancel()
            wait_pending(server, "mock", 1)
        assert not any(future.done() for future in running)
        assert [future.result().status for future in running] == [200, 200]
        assert metric(server, "request_failure", "mock", reason="CANCELED") == 2
        assert (metric(server, "request_success", "mock"), metric(server, "exec_count", "mock")) == (2, 2)


def test_c40_a_model_that_is_reloading_stays_ready(repository):
    repository.mock()
    flags = ["--model-control-mode=explicit", "--load-model=mock"]
    with Server(repository, *flags) as server:
        repository.mock(config=WARMUP, latency_us=FOREVER_US)
        loading = threading.Thread(target=load_and_be_cut_off, args=[server], daemon=True)
        loading.start()
        for _ in range(20):
            assert get(server, "/v2/models/mock/ready").status == 200
            assert get(server, "/v2/health/ready").status == 200
            assert infer(server, "mock", ZEROS).status == 200
        assert loading.is_alive()
    loading.join(DEADLINE_S)


def load_and_be_cut_off(server):
    try:
        post(server, "/v2/repository/models/mock/load")
    except ConnectionError:
        pass


def test_r8_reloads_lose_no_request(repository):
    repository.onnx("m", plus(0))
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as server:
        over = threading.Event()

        def client():
            answers = []
            while not over.is_set():
                answers.append(infer(server, "m", ZEROS).status)
            return answers

        with ThreadPoolExecutor(2) as pool:
            clients = [pool.submit(client) for _ in range(2)]
            for _ in range(10):
                assert post(server, "/v2/repository/models/m/load").status == 200
            over.set()
            for future in clients:
                assert set(future.result()) == {200}


def test_r6_loads_and_unloads_at_once_leave_a_whole_state(repository):
    repository.onnx("m", plus(0))
    with Server(repository, "--model-control-mode=explicit") as server, ThreadPoolExecutor(4) as pool:
        actions = ["load", "unload", "load", "load", "unload"] * 4
        answers = list(pool.map(lambda a: post(server, f"/v2/repository/models/m/{a}").status, actions))
        assert set(answers) <= {200, 500}
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert infer(server, "m", ZEROS).status == 200
        assert post(server, "/v2/repository/models/m/unload").status == 200
        deadline = time.monotonic() + DEADLINE_S
        while (rows := post(server, "/v2/repository/index").json)[0]["state"] != "UNAVAILABLE":
            assert time.monotonic() < deadline, rows
        assert rows == [{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]
