"""Loads and unloads beside inference: they take nothing from it, and a stop waits for none of them."""

import contextlib
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from http_client import get, infer, post, send, tensor
from metrics import wait_metric
from repository import FOREVER_US, plus
from server import BINARY, DEADLINE_S, ROOT, Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
EXPLICIT = "--model-control-mode=explicit"
# More than any pool of threads has places.
LOADS = 520


def state(server, model):
    rows = post(server, "/v2/repository/index").json
    return next((row.get("state") for row in rows if row["name"] == model), None)


def begin_load(server, pool, model):
    """A load that does not end, once it runs."""
    load = pool.submit(post, server, f"/v2/repository/models/{model}/load")
    server.wait_until(lambda: state(server, model) == "LOADING")
    return load


def test_loads_that_never_end_keep_neither_inference_nor_the_stop(repository):
    repository.mock("slow", load_latency_us=FOREVER_US)
    repository.onnx("m", plus(1, ("batch", "width")))
    # Large enough to be parsed off the reactor.
    large = [tensor("x", "FP32", [1, 80_000], [0] * 80_000)]
    with Server(repository, EXPLICIT, "--load-model=m") as server, ThreadPoolExecutor(LOADS) as pool:
        loads = [begin_load(server, pool, "slow")]
        loads += [pool.submit(post, server, "/v2/repository/models/slow/load") for _ in range(LOADS - 1)]
        for _ in range(5):
            assert infer(server, "m", ZEROS).status == 200
            assert infer(server, "m", large).status == 200
            assert get(server, "/v2/health/live").status == 200
        assert not any(load.done() for load in loads)
        assert server.stop() == 0
        answers = [load.result() for load in loads]
        assert {answer.status for answer in answers} == {503}
        assert {answer.error for answer in answers} == {"the server is stopping, the call is cancelled"}
        assert "abandoned 1 running loads or unloads" in server.log
        assert server.lines[-1].endswith('"stopped"')


def test_different_models_wait_in_a_bounded_queue_and_the_next_one_is_refused(repository):
    names = [f"slow{number}" for number in range(6)]
    for name in names:
        repository.mock(name, load_latency_us=FOREVER_US)
    repository.onnx("m", plus(1))
    flags = ["--model-load-thread-count=2", "--max-waiting-loads=3"]
    with Server(repository, EXPLICIT, "--load-model=m", *flags) as server, ThreadPoolExecutor(8) as pool:
        loads = [begin_load(server, pool, name) for name in names[:2]]
        # The index and an unload have places of their own.
        assert post(server, "/v2/repository/models/m/unload").status == 200
        waiting = [pool.submit(post, server, f"/v2/repository/models/{name}/load") for name in names[2:]]
        server.wait_until(lambda: any(load.done() for load in waiting))
        refused = [load for load in waiting if load.done()]
        assert len(refused) == 1
        answer = refused[0].result()
        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert "3 loads and unloads are waiting" in answer.error
        assert "--max-waiting-loads" in answer.error
        assert server.stop() == 0
        assert all(load.result().status == 503 for load in loads)


def test_many_loads_of_a_model_all_get_the_outcome_of_files_as_they_are(repository):
    repository.onnx("m", plus(1))
    with Server(repository, EXPLICIT) as server, ThreadPoolExecutor(32) as pool:
        calls = [pool.submit(post, server, "/v2/repository/models/m/load") for _ in range(200)]
        assert {call.result().status for call in calls} == {200}
        assert infer(server, "m", ZEROS).json["outputs"][0]["data"][0] == 1
        repository.onnx("m", plus(2))
        calls = [pool.submit(post, server, "/v2/repository/models/m/load") for _ in range(200)]
        # Each answer is about a load that began after it was asked for.
        assert calls[0].result().status == 200
        assert infer(server, "m", ZEROS).json["outputs"][0]["data"][0] == 2
        assert {call.result().status for call in calls} == {200}
        repository.onnx("m", b"no ONNX", 2)
        answers = [call.result() for call in [pool.submit(post, server, "/v2/repository/models/m/load") for _ in range(50)]]
        assert {answer.status for answer in answers} == {400}
        assert len({answer.error for answer in answers}) == 1


def test_an_unload_comes_after_the_load_before_it(repository):
    repository.mock("slow", load_latency_us=500_000)
    with Server(repository, EXPLICIT) as server, ThreadPoolExecutor(2) as pool:
        load = begin_load(server, pool, "slow")
        assert post(server, "/v2/repository/models/slow/unload").status == 200
        assert load.result().status == 200
        server.wait_until(lambda: state(server, "slow") == "UNAVAILABLE")


def test_a_load_at_the_start_holds_up_no_stop(repository):
    repository.mock("slow", load_latency_us=FOREVER_US)
    with Server(repository, until="Started Metrics Service") as server:
        server.wait_until(lambda: state(server, "slow") == "LOADING")
        assert server.stop() == 0
        assert "received SIGTERM while loading models" in server.log


@pytest.mark.parametrize("seconds", ["18446744073709551615", "9223372036854775807"])
def test_an_exit_timeout_beyond_all_time_is_none(repository, seconds):
    repository.mock(latency_us=300_000)
    with Server(repository, f"--exit-timeout-secs={seconds}") as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(infer, server, "mock", ZEROS)
        server.wait_until(lambda: get(server, "/v2/models/mock/stats").status == 200)
        assert running.result().status == 200
        assert server.stop() == 0
        assert "panicked" not in server.log


def test_a_stop_ends_in_time_though_nobody_reads_the_log(repository):
    repository.mock()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    port = address.rsplit(":", 1)[1]
    ports = ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"]
    unread, log = os.pipe()
    fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, 4096)
    command = [BINARY, "serve", repository, "--log-verbose=2", "--exit-timeout-secs=1", *ports]
    process = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        os.close(log)

        def is_answered():
            try:
                with contextlib.closing(http.client.HTTPConnection(address, timeout=1)) as connection:
                    return send(connection, "GET", "/v2/health/live").status == 200
            except OSError:
                return False

        deadline = time.monotonic() + DEADLINE_S
        while not is_answered():
            assert process.poll() is None and time.monotonic() < deadline
        # Each request is a few lines: the pipe fills, and all that log wait for whoever might read it.
        while is_answered():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 1
    finally:
        process.kill()
        process.wait()
        os.close(unread)


def test_a_run_that_never_ends_ends_with_the_time(repository):
    repository.mock(latency_us=FOREVER_US)
    with Server(repository, "--exit-timeout-secs=0") as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(infer, server, "mock", ZEROS)
        wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1", instance="mock_0_0")
        assert server.stop() == 1
        assert "model versions" in server.log
        assert running.exception() is not None
