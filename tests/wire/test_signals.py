"""Signals other than those that stop a server: none of them ends it or drops a request."""

import os
import signal
import subprocess
import threading

import pytest

from http_client import get, infer, tensor
from process import wait_until, workers
from repository import plus
from server import BINARY, DEADLINE_S, Server
from test_worst_day import is_busy

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
NOTHING = [signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
EVERY = [signal.SIGHUP, *NOTHING]


def test_signals_drop_no_request(repository):
    repository.mock(latency_us=500_000)
    with Server(repository) as server:
        answers = []
        request = threading.Thread(target=lambda: answers.append(infer(server, "mock", ZEROS).status))
        request.start()
        wait_until(lambda: is_busy(server), "the request runs")
        for number in EVERY:
            server.send_signal(number)
        for number in NOTHING:
            server.wait_for(f"ignored {number.name}; SIGTERM stops the server")
        server.wait_for("received SIGHUP: no file to read again")
        request.join(DEADLINE_S)
        assert answers == [200]
        assert get(server, "/v2/health/ready").status == 200
        assert server.stop() == 0


def test_hangup_opens_the_log_file_again(simple_repository, tmp_path):
    log, moved = tmp_path / "skep.log", tmp_path / "skep.log.1"
    with Server(simple_repository, f"--log-file={log}", until=None) as server:

        def wait_for(path, text):
            server.wait_until(lambda: path.exists() and text in path.read_text())

        wait_for(log, "ready for requests")
        log.rename(moved)
        server.send_signal(signal.SIGHUP)
        wait_for(log, "received SIGHUP: opened this log file again")
        assert "received SIGHUP" not in moved.read_text()
        server.send_signal(signal.SIGUSR1)
        wait_for(log, "ignored SIGUSR1")
        # A name that cannot be opened any more: the log stays in the old file.
        log.rename(moved)
        log.mkdir()
        server.send_signal(signal.SIGHUP)
        wait_for(moved, "received SIGHUP, still logging to the old file: cannot open log file")
        assert server.stop() == 0
        assert "stopped" in moved.read_text()


def test_workers_do_not_end_by_signals_for_servers(repository):
    """As `killall -HUP skep` sends them to all processes of the name."""
    config = 'parameters { key: "isolation" value { string_value: "process" } } instance_group { count: 1 kind: KIND_CPU }'
    repository.onnx("m", plus(1), config=config)
    with Server(repository) as server:
        assert infer(server, "m", ZEROS).status == 200
        [worker] = workers(server)
        for number in EVERY:
            os.kill(worker, number)
        assert infer(server, "m", ZEROS).status == 200
        assert workers(server) == [worker]


@pytest.mark.parametrize("number", EVERY)
def test_a_store_goes_on(tmp_path, number):
    command = [BINARY, "store", "serve", "--directory", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert "store of tenant" in daemon.stdout.readline()
            daemon.send_signal(number)
            assert f"ignored {number.name}" in daemon.stdout.readline()
            daemon.terminate()
            assert "received SIGTERM" in daemon.stdout.readline()
            assert daemon.wait(DEADLINE_S) == 0
        finally:
            daemon.kill()
