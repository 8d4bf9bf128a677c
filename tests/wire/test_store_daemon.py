"""A node's tensor store under servers: one copy of each weight, a daemon that dies and comes back, what it says."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from http_client import post
from process import wait_until, workers
from repository import Repository
from server import BINARY, ROOT, Server, run
from weights import config, files, outputs

KIND = "bert-tiny"
# Longer than any test: what nobody hands back to a daemon is never there.
NO_FILLS = ["--adoption-window", 600]
FILLS = ["--adoption-window", 0]


class Daemon:
    """`skep store serve`, ready on entry and killed on exit."""

    def __init__(self, directory, *flags):
        self.directory = directory
        self.flags = [str(flag) for flag in flags]

    def __enter__(self):
        command = [BINARY, "store", "serve", "--directory", self.directory, *self.flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().startswith("store of tenant `general` at ")
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def ask(directory, what):
    """What `skep store WHAT` says."""
    outcome = run("store", what, "--json", "--directory", directory)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout)


def stat(directory):
    return ask(directory, "stat")["total"]


def stored_tensors(cache):
    """Digest -> bytes of what a model in the store has; weights that are only packed are not among them."""
    [manifest] = (cache / "v1" / "models").glob("*/manifest")
    words = (line.split(" ") for line in manifest.read_text().splitlines())
    return {line[2]: int(line[3]) for line in words if line[0] == "tensor" and line[1] != "source"}


class Asking:
    """Clients that ask servers without pause; at the end every answer must have been the expected one."""

    def __init__(self, expected, *servers):
        self.expected = expected
        self.servers = servers
        self.answers = [0] * len(servers)
        self.over = threading.Event()

    def _ask(self, index):
        while not self.over.is_set():
            assert outputs(self.servers[index], KIND) == self.expected
            self.answers[index] += 1

    def __enter__(self):
        self.pool = ThreadPoolExecutor(len(self.servers))
        self.asking = [self.pool.submit(self._ask, index) for index in range(len(self.servers))]
        return self

    def more(self):
        """Waits until each has a few more answers."""
        enough = [count + 5 for count in self.answers]
        wait_until(
            lambda: any(asking.done() for asking in self.asking)
            or all(count >= least for count, least in zip(self.answers, enough)),
            "more answers",
        )
        self.check()

    def check(self):
        for asking in self.asking:
            if asking.done():
                asking.result()

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown()
        self.check()


@pytest.fixture
def node(tmp_path):
    """One model in threads and in sandboxes, its answer, the cache in which it is baked, a directory of sockets."""
    threads, sandboxes = Repository(tmp_path / "threads"), Repository(tmp_path / "sandboxes")
    threads.generate(KIND, "m", config=config("thread"))
    sandboxes.generate(KIND, "m", config=config("process"))
    with Server(threads, "--weight-cache=off") as server:
        expected = outputs(server, KIND)
    cache = tmp_path / "weights"
    assert run("bake", f"--weight-cache={cache}", threads).returncode == 0
    return threads, sandboxes, expected, cache, tmp_path / "sockets"


def test_a_daemon_that_is_killed_costs_no_request_and_doubles_nothing(node):
    threads, sandboxes, expected, cache, sockets = node
    tensors = stored_tensors(cache)
    flags = [f"--weight-cache={cache}", f"--store={sockets}"]
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(sockets, *FILLS))
        one = stack.enter_context(Server(threads, *flags))
        wait_until(lambda: stat(sockets)["leases"] == len(tensors), "its weights are brought")
        other = stack.enter_context(Server(sandboxes, *flags))
        before = stat(sockets)
        assert before["bytes_stored"] == sum(tensors.values())
        assert before["leases"] == 2 * len(tensors)
        assert (before["misses"], before["hits"]) == (len(tensors), len(tensors))
        asking = stack.enter_context(Asking(expected, one, other))
        asking.more()
        daemon.kill()
        asking.more()

        stack.enter_context(Daemon(sockets, *NO_FILLS))
        # A connection that was handed to a worker is not made again; the other server has the same segments.
        wait_until(lambda: stat(sockets)["leases"] == len(tensors), "handed back")
        after = stat(sockets)
        assert [after[name] for name in ("segments", "bytes_stored", "bytes_padding", "misses")] == [
            before["segments"], before["bytes_stored"], before["bytes_padding"], 0]
        third = stack.enter_context(Server(sandboxes, *flags))
        assert outputs(third, KIND) == expected
        assert (stat(sockets)["hits"], stat(sockets)["misses"]) == (len(tensors), 0)
        asking.more()


def lose_worker(server):
    [worker] = workers(server)
    os.kill(worker, signal.SIGKILL)
    server.wait_for(f"worker process {worker} of model `m` ended by signal 9 (SIGKILL)")


def test_a_worker_is_made_anew_without_a_daemon_and_shares_again_with_one(node):
    threads, sandboxes, expected, cache, sockets = node
    tensors = stored_tensors(cache)
    flags = [f"--weight-cache={cache}", f"--store={sockets}"]
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(Daemon(sockets, *FILLS))
        one = stack.enter_context(Server(threads, *flags))
        wait_until(lambda: stat(sockets)["leases"] == len(tensors), "its weights are brought")
        other = stack.enter_context(Server(sandboxes, *flags, "--model-control-mode=explicit", "--load-model=m"))
        daemon.kill()
        lose_worker(other)
        assert outputs(other, KIND) == expected
        assert "model `m` is loaded without its baked form in a worker process: the tensor store: " in other.log
        # As a first load does.
        for name in ("unload", "load"):
            assert post(other, f"/v2/repository/models/m/{name}").status == 200
        assert outputs(other, KIND) == outputs(one, KIND) == expected

        stack.enter_context(Daemon(sockets, *NO_FILLS))
        wait_until(lambda: stat(sockets)["leases"] == len(tensors), "handed back")
        lose_worker(other)
        assert outputs(other, KIND) == expected
        assert stat(sockets)["leases"] == 2 * len(tensors)
        assert stat(sockets)["bytes_stored"] == sum(tensors.values())
        assert stat(sockets)["misses"] == 0


DONE = struct.pack("<IBQ", 9, 131, 0)


@pytest.mark.parametrize("who", ["server", "worker"])
def test_a_worker_is_made_anew_though_the_daemon_dies_meanwhile(node, who):
    _, sandboxes, expected, cache, sockets = node
    flags = [f"--weight-cache={cache}", f"--store={sockets}"]
    with Daemon(sockets, *FILLS) as daemon, Server(sandboxes, *flags) as server:
        daemon.kill()
        path = sockets / "store.sock"
        path.unlink()
        with socket.create_server(str(path), family=socket.AF_UNIX) as listener:
            lose_worker(server)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(outputs, server, KIND)
                # The server says what the worker may ask for; then it hands the connection on.
                with listener.accept()[0] as connection:
                    if who == "worker":
                        [length] = struct.unpack("<I", connection.recv(4, socket.MSG_WAITALL))
                        restriction = connection.recv(length, socket.MSG_WAITALL)
                        assert (restriction[0], restriction[1:9]) == (9, b"skepstor")
                        connection.sendall(DONE)
                assert answer.result() == expected
        where = " in a worker process" if who == "server" else ""
        server.wait_for(f"model `m` is loaded without its baked form{where}: the tensor store: ")


def test_a_model_that_is_loaded_while_there_is_no_daemon_runs_on_files(node):
    threads, _, expected, cache, sockets = node
    flags = [f"--weight-cache={cache}", f"--store={sockets}", "--model-control-mode=explicit"]
    with Daemon(sockets, *FILLS) as daemon, Server(threads, *flags) as server:
        daemon.kill()
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert outputs(server, KIND) == expected
        server.wait_for("stay in the cache's files: the tensor store: ")
        assert outputs(server, KIND) == expected


def test_a_tensor_that_somebody_changed_is_mended(node):
    threads, _, expected, cache, sockets = node
    whole = files(cache)
    largest = max((cache / "v1" / "tensors").glob("*/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    flags = [f"--weight-cache={cache}", f"--store={sockets}", "--weight-bake=foreground"]
    with Daemon(sockets, *FILLS), Server(threads, *flags) as server:
        assert outputs(server, KIND) == expected
        assert "is made again: " in server.log
        stored = sum(stored_tensors(cache).values())
        wait_until(lambda: stat(sockets)["bytes_stored"] == stored, "its weights are brought")
    assert files(cache) == whole


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("keep_alive", [0, 600])
def test_what_a_server_has_is_listed_and_goes_when_it_is_unloaded(node, isolation, keep_alive):
    threads, sandboxes, expected, cache, sockets = node
    tensors = stored_tensors(cache)
    repository = threads if isolation == "thread" else sandboxes
    flags = [f"--weight-cache={cache}", f"--store={sockets}", "--model-control-mode=explicit"]
    # A session that is kept keeps its weights.
    flags += ["--session-keep-alive-secs=0"]
    with Daemon(sockets, *FILLS, "--keep-alive", keep_alive), Server(repository, *flags) as server:
        assert (stat(sockets)["tensors"], ask(sockets, "ls")) == (0, [])
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert outputs(server, KIND) == expected
        wait_until(lambda: stat(sockets)["leases"] == len(tensors), "its weights are brought")
        listed = ask(sockets, "ls")
        assert {row["digest"]: row["bytes"] for row in listed} == tensors
        assert {(row["tenant"], row["leases"], row["idle_seconds"]) for row in listed} == {("general", 1, None)}
        # What is in use stays.
        assert ask(sockets, "gc") == {"tenants": {"general": {"bytes_freed": 0}}}
        assert stat(sockets)["bytes_leased"] == stat(sockets)["bytes_stored"] == sum(tensors.values())

        assert post(server, "/v2/repository/models/m/unload").status == 200
        wait_until(lambda: stat(sockets)["leases"] == 0, "its leases end")
        if keep_alive:
            idle = stat(sockets)
            assert idle["bytes_stored"] == sum(tensors.values())
            freed = ask(sockets, "gc")["tenants"]["general"]["bytes_freed"]
            assert freed == idle["bytes_stored"] + idle["bytes_padding"]
        wait_until(lambda: stat(sockets)["tensors"] == 0, "its tensors go")
        gone = stat(sockets)
        assert (gone["segments"], gone["bytes_stored"], gone["reclaimed"]) == (0, 0, len(tensors))
        assert ask(sockets, "ls") == []
