"""What commands print, to whoever does not read it: a closed pipe ends them quietly, a full disk is an error."""

import os
import signal
import subprocess

import pytest

from http_client import get, infer, post, tensor
from repository import Repository, plus
from server import BINARY, DEADLINE_S, ROOT, Server, run

# As a shell says of a process that SIGPIPE ended.
CLOSED = 141
SMALL = ["--load", "0.5", "--slo-ms", "5x", "--arrival", "poisson", "--requests", "200", "--seeds", "1"]
RECORDS = "id,lower,upper,size\na,0,2,64\nb,1,3,128\n"
# No moment that a machine can name.
BEYOND = "18446744073709551615"

COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "serve --help": ["serve", "--help"],
    "doctor": ["doctor"],
    "check": ["check", "{models}"],
    "check --json": ["check", "--json", "{models}"],
    "generate": ["generate", "mlp", "{out}"],
    "plan": ["plan", "{records}"],
    "plan --json": ["plan", "--json", "{records}"],
    "plan --csv": ["plan", "--csv", "{records}"],
    "simulate": ["simulate", "batching", *SMALL],
    "simulate --json": ["simulate", "batching", *SMALL, "--json"],
    "simulate --details": ["simulate", "batching", *SMALL, "--details"],
    "bake": ["bake", "--weight-cache", "{out}", "{models}/m"],
    "bake --json": ["bake", "--json", "--weight-cache", "{out}", "{models}/m"],
    "infer": ["infer", "--zeros", "--url", "{url}", "m"],
    "store stat": ["store", "stat", "--directory", "{sockets}"],
    "store ls": ["store", "ls", "--directory", "{sockets}"],
    "store ls --json": ["store", "ls", "--json", "--directory", "{sockets}"],
    "store gc": ["store", "gc", "--directory", "{sockets}"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What commands are about: models, a server, a store."""
    root = tmp_path_factory.mktemp("output")
    repository = Repository(root / "models")
    repository.onnx("m", plus(1))
    (root / "records.csv").write_text(RECORDS)
    sockets = root / "sockets"
    daemon = [BINARY, "store", "serve", "--directory", sockets, "--keep-alive", BEYOND]
    with subprocess.Popen(daemon, stdout=subprocess.PIPE) as store, Server(repository) as server:
        try:
            assert store.stdout.readline().startswith(b"store of tenant")
            yield {
                "models": repository.path,
                "records": root / "records.csv",
                "sockets": sockets,
                "url": f"http://{server.http}",
            }
        finally:
            store.kill()


def command(what, places, out):
    return [BINARY, *[part.format(**places, out=out) for part in COMMANDS[what]]]


@pytest.mark.parametrize("what", COMMANDS)
def test_a_closed_output_ends_a_command_quietly(places, tmp_path, what):
    unread, output = os.pipe()
    os.close(unread)
    arguments = command(what, places, tmp_path / "out")
    with os.fdopen(output, "wb") as output:
        outcome = subprocess.run(arguments, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    assert (outcome.returncode, outcome.stderr) == (CLOSED, b"")


@pytest.mark.parametrize("what", COMMANDS)
def test_a_full_disk_is_an_error(places, tmp_path, what):
    arguments = command(what, places, tmp_path / "out")
    with open("/dev/full", "wb") as output:
        outcome = subprocess.run(arguments, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    text = b"error: cannot write to standard output: No space left on device (os error 28)\n"
    assert (outcome.returncode, outcome.stderr) == (1, text)


def test_an_error_that_nobody_reads_is_no_panic():
    unread, errors = os.pipe()
    os.close(unread)
    with os.fdopen(errors, "wb") as errors:
        outcome = subprocess.run([BINARY, "plan", "/nowhere"], cwd=ROOT, stderr=errors, timeout=DEADLINE_S)
    assert outcome.returncode == 1


def test_a_store_serves_on_when_nobody_reads_what_it_says(tmp_path):
    arguments = [BINARY, "store", "serve", "--directory", tmp_path / "sockets"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as store:
        store.stdout.readline()
        store.stdout.close()
        assert run("store", "stat", "--directory", tmp_path / "sockets").returncode == 0
        store.send_signal(signal.SIGTERM)
        assert store.wait(DEADLINE_S) == 0
        assert store.stderr.read() == b""


def test_a_server_serves_on_when_nobody_reads_its_log(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--log-verbose=2", "--exit-timeout-secs=10") as server:
        address = server.http
        # The reader ends with what it has seen.
        server.ended = True
        get(server, "/v2/health/live")
        server.reader.join(DEADLINE_S)
        server.process.stderr.close()
        server._address = lambda _: address
        for _ in range(3):
            assert infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)]).status == 200
        server.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    "flag",
    [
        "--exit-timeout-secs",
        "--session-keep-alive-secs",
        "--store-keep-alive-secs",
        "--sandbox-load-timeout-secs",
        "--head-timeout-ms",
        "--body-timeout-ms",
        "--write-timeout-ms",
        "--idle-timeout-ms",
        "--grpc-keepalive-time",
        "--grpc-keepalive-timeout",
        "--grpc-max-connection-age",
        "--grpc-max-connection-age-grace",
        "--metrics-interval-ms",
    ],
)
def test_a_time_beyond_all_time_never_comes(repository, flag):
    repository.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=explicit", f"{flag}={BEYOND}") as server:
        for _ in range(2):
            outcome = run("infer", "--zeros", "--url", f"http://{server.http}", "m")
            assert outcome.returncode == 1
            for action in ("load", "unload", "load"):
                answer = _control(server, action)
                assert answer.status == 200
            for url in (f"http://{server.http}", f"grpc://{server.grpc}"):
                outcome = run("infer", "--zeros", "--url", url, "m")
                assert outcome.returncode == 0, outcome.stderr
            assert _control(server, "unload").status == 200
        assert server.stop() == 0
        assert "panicked" not in server.log


def _control(server, action):
    return post(server, f"/v2/repository/models/m/{action}")


def test_poll_beyond_all_time(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=poll", "--repository-poll-secs=1e19") as server:
        assert infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)]).status == 200
        assert server.stop() == 0
        assert "panicked" not in server.log
