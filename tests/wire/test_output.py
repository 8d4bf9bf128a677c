"""What commands print, to whoever does not read it: a closed pipe ends them quietly, a full disk is an error. Files that
they write on a full disk, and errors that nobody can be told."""

import functools
import os
import re
import signal
import socket
import subprocess

import pytest

from http_client import get, infer, post, request, tensor
from process import wait_until
from repository import Repository, plus
from server import BINARY, DEADLINE_S, ROOT, Server, run

# As a shell says of a process that SIGPIPE ended.
CLOSED = 141
SMALL = ["--load", "0.5", "--slo-ms", "5x", "--arrival", "poisson", "--requests", "200", "--seeds", "1"]
FEW = ["--models", "20", "--hours", "0.1"]
POINTS = ["--cpus", "1", "--max-batch", "1", "--point", "50"]
PACKED = ["--profiles", "{profiles}", "--device", "name=d,cpus=0,memory=1G", "--rate", "m=10,100"]
RECORDS = "id,lower,upper,size\na,0,2,64\nb,1,3,128\n"
TRACE = "op,id,bytes\na,x,3000\na,y,100\nf,x,\na,z,2000\n"
SHORT = ["--application", "SS", "--platform", "tetris,skep", "--minutes", "0.5", "--load", "0.1"]
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
    "replay": ["replay", "{trace}"],
    "replay --json": ["replay", "{trace}", "--json"],
    "replay --csv": ["replay", "{trace}", "--csv"],
    "replay --list": ["replay", "--list"],
    "trace show": ["trace", "show", "{trace}"],
    "trace show --json": ["trace", "show", "{trace}", "--json"],
    "trace record": ["trace", "record", "{models}/m", "--output", "{out}"],
    "simulate": ["simulate", "batching", *SMALL],
    "simulate --json": ["simulate", "batching", *SMALL, "--json"],
    "simulate --details": ["simulate", "batching", *SMALL, "--details"],
    "simulate residency": ["simulate", "residency", *FEW],
    "simulate residency --json": ["simulate", "residency", *FEW, "--json"],
    "simulate cluster": ["simulate", "cluster", *SHORT],
    "simulate cluster --json": ["simulate", "cluster", *SHORT, "--json"],
    "bake": ["bake", "--weight-cache", "{out}", "{models}/m"],
    "bake --json": ["bake", "--json", "--weight-cache", "{out}", "{models}/m"],
    "infer": ["infer", "--zeros", "--url", "{url}", "m"],
    "infer --json": ["infer", "--zeros", "--json", "--url", "{url}", "m"],
    "infer --output": ["infer", "--zeros", "--output", "{out}", "--url", "{url}", "m"],
    "status": ["status", "--all", "--url", "{url}"],
    "status --json": ["status", "--json", "--url", "{url}"],
    "profile": ["profile", *POINTS, "{models}/m"],
    "profile --json": ["profile", "--json", *POINTS, "{models}/m"],
    "pack": ["pack", *PACKED],
    "pack --json": ["pack", "--json", *PACKED],
    "store stat": ["store", "stat", "--directory", "{sockets}"],
    "store ls": ["store", "ls", "--directory", "{sockets}"],
    "store ls --json": ["store", "ls", "--json", "--directory", "{sockets}"],
    "store gc": ["store", "gc", "--directory", "{sockets}"],
}

# These go on, and are tested apart.
DAEMONS = {"serve", "store serve"}
# What each flag does that takes a FILE: those that write one cannot write this one.
FILES = {
    "plan --svg": ["plan", "{records}", "--svg", "{file}"],
    "plan --html": ["plan", "{records}", "--html", "{file}"],
    "replay --html": ["replay", "{trace}", "--html", "{file}"],
    "trace record --output": ["trace", "record", "{models}/m", "--output", "{file}"],
    "profile --output": ["profile", *POINTS, "{models}/m", "--output", "{file}"],
    "profile --html": ["profile", *POINTS, "{models}/m", "--html", "{file}"],
    "simulate batching --csv": ["simulate", "batching", *SMALL, "--csv", "{file}"],
    "simulate residency --csv": ["simulate", "residency", *FEW, "--csv", "{file}"],
    "simulate cluster --csv": ["simulate", "cluster", *SHORT, "--csv", "{file}"],
    "simulate cluster --svg": ["simulate", "cluster", *SHORT, "--svg", "{file}"],
    "simulate cluster --save": ["simulate", "cluster", "--save", "{file}"],
    "simulate batching --svg": ["simulate", "batching", *SMALL, "--svg", "{file}"],
    "simulate batching --save-table": [
        "simulate", "batching", "--from-model", "{models}/m", "--slo-ms", "50", "--seeds", "1", "--requests", "20", "--load", "0.5",
        "--save-table", "{file}",
    ],
}
READ = {"pack --profiles", "pack --rates", "plan --onnxruntime-library", "serve --profiles", "trace record --onnxruntime-library"}


@functools.cache
def help_of(*words):
    outcome = run(*words, "--help")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return outcome.stdout


def subcommands(*words):
    """The words of each subcommand, as `--help` lists them."""
    _, is_group, listed = help_of(*words).partition("\nCommands:\n")
    if not is_group:
        return [words]
    names = re.findall(r"^  ([a-z-]+)", listed.split("\n\n")[0], re.MULTILINE)
    assert names
    return [leaf for name in names for leaf in subcommands(*words, name)]


def test_every_subcommand_is_in_the_tables():
    for part in subcommands():
        is_run = any(arguments[: len(part)] == [*part] and "--help" not in arguments for arguments in COMMANDS.values())
        assert is_run or " ".join(part) in DAEMONS, f"`skep {' '.join(part)}`: nobody tests what it prints"
    flags = {
        f"{' '.join(part)} {flag}"
        for part in subcommands()
        for flag in re.findall(r"^ +(--[a-z-]+) <FILE>", help_of(*part), re.MULTILINE)
    }
    assert flags == {*FILES, *READ}, "a flag that takes a FILE, and is not tested"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What commands are about: models, a server, a store."""
    root = tmp_path_factory.mktemp("output")
    repository = Repository(root / "models")
    repository.onnx("m", plus(1))
    (root / "records.csv").write_text(RECORDS)
    (root / "trace.csv").write_text(TRACE)
    profiled = run("profile", *POINTS, repository.path / "m", "--output", root / "profiles.json")
    assert profiled.returncode == 0, profiled.stderr
    sockets = root / "sockets"
    daemon = [BINARY, "store", "serve", "--directory", sockets, "--keep-alive", BEYOND]
    with subprocess.Popen(daemon, stdout=subprocess.PIPE) as store, Server(repository) as server:
        try:
            assert store.stdout.readline().startswith(b"store of tenant")
            yield {
                "models": repository.path,
                "records": root / "records.csv",
                "trace": root / "trace.csv",
                "profiles": root / "profiles.json",
                "sockets": sockets,
                "url": f"http://{server.http}",
            }
        finally:
            store.kill()


def command(what, places, out):
    return [BINARY, *[part.format(**places, out=out) for part in COMMANDS[what]]]


@pytest.mark.parametrize("what", COMMANDS)
def test_a_closed_output_ends_a_command_quietly(places, tmp_path, what):
    arguments = command(what, places, tmp_path / "out")
    with closed() as output:
        outcome = subprocess.run(arguments, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    assert (outcome.returncode, outcome.stderr) == (CLOSED, b"")


@pytest.mark.parametrize("what", COMMANDS)
def test_a_full_disk_is_an_error(places, tmp_path, what):
    arguments = command(what, places, tmp_path / "out")
    with open("/dev/full", "wb") as output:
        outcome = subprocess.run(arguments, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    text = b"error: cannot write to standard output: No space left on device (os error 28)\n"
    assert (outcome.returncode, outcome.stderr) == (1, text)


def closed():
    """A pipe that nobody reads."""
    unread, written = os.pipe()
    os.close(unread)
    return os.fdopen(written, "wb")


def code(arguments, **streams):
    return subprocess.run([BINARY, *arguments], cwd=ROOT, timeout=DEADLINE_S, **streams).returncode


def test_help_that_nobody_reads_and_on_a_full_disk():
    for part in [(), ("store",), ("simulate",), *subcommands()]:
        with closed() as output:
            assert code([*part, "--help"], stdout=output) == CLOSED, part
        with open("/dev/full", "wb") as output, open(os.devnull, "wb") as errors:
            assert code([*part, "--help"], stdout=output, stderr=errors) == 1, part


@pytest.mark.parametrize("errors", ["closed", "full"])
def test_an_error_that_nobody_can_be_told_is_no_panic(errors, tmp_path):
    wrong = [[*part, "--nosuch"] for part in [(), *subcommands()]]
    wrong += [["plan", "/nowhere"], ["check", "/nowhere"], ["serve", "/nowhere"], ["bake", "/nowhere"]]
    wrong += [["generate", "nosuch", tmp_path / "out"], ["store", "stat", "--directory", "/nowhere"]]
    wrong += [["infer", "m", "--zeros", "--url", "http://127.0.0.1:1"], ["simulate", "batching", "--table", "/nowhere"]]
    wrong += [["doctor", "--onnxruntime-library", "/nowhere"], ["store", "serve", "--directory", "/proc/nowhere"]]
    for arguments in wrong:
        with closed() if errors == "closed" else open("/dev/full", "wb") as stream:
            assert code(arguments, stdout=subprocess.DEVNULL, stderr=stream) == 1, arguments


def test_a_closed_descriptor_is_no_panic(places):
    for arguments in (["doctor"], ["check", places["models"]], ["--help"]):
        outcome = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", BINARY, *arguments], cwd=ROOT)
        assert outcome.returncode == 0, arguments


@pytest.mark.parametrize("what", FILES)
def test_a_file_on_a_full_disk_is_an_error(places, tmp_path, what):
    flag = what.split()[-1]
    for file, words in (
        ("/dev/full", "cannot write `/dev/full`: No space left on device (os error 28)"),
        (tmp_path, f"cannot write `{tmp_path}`: Is a directory (os error 21)"),
        ("/nonexistent/file", "there is no directory `/nonexistent`"),
    ):
        outcome = run(*[part.format(**places, file=file) for part in FILES[what]])
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (1, "", f"error: {flag}: {words}\n")


# A command that runs another one, which can write files of 4 KiB: more is an error.
LIMITED = ["sh", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh", BINARY]


@pytest.mark.parametrize("flags", [[], ["--external-data"], ["--repository", "m"]])
def test_a_model_generated_onto_a_full_disk_is_an_error(tmp_path, flags):
    arguments = ["generate", "mlp", tmp_path / "out", *flags]
    outcome = subprocess.run([*LIMITED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    path = r"/out(\.data|/m/1/model\.onnx)?"
    assert re.fullmatch(
        rf"error: cannot write `{re.escape(str(tmp_path))}{path}`: File too large \(os error 27\)\n", outcome.stderr
    )


def test_answers_on_a_full_disk_are_an_error(repository, tmp_path):
    repository.onnx("wide", plus(1, shape=("batch", 2000)))
    with Server(repository) as server:
        arguments = ["infer", "wide", "--zeros", "--url", f"http://{server.http}", "--output", tmp_path / "out"]
        outcome = subprocess.run([*LIMITED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 1
    words = f"--output: cannot write `{tmp_path}/out/y.npy`: File too large (os error 27)"
    assert outcome.stderr == f"error: {words}\n"


def test_baking_on_a_full_disk_is_an_error(repository, tmp_path):
    repository.generate("mlp", "m")
    arguments = ["bake", "--weight-cache", tmp_path / "cache", repository]
    outcome = subprocess.run([*LIMITED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 1
    assert re.match(rf"failed  {re.escape(str(repository))}/m +version 1 ", outcome.stdout)


@pytest.mark.parametrize("flags", [[], ["--log-file=/dev/full"]])
def test_a_server_serves_on_when_its_log_is_full(repository, flags):
    repository.onnx("m", plus(1))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ports = ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"]
    with open("/dev/full", "wb") as full:
        arguments = [BINARY, "serve", repository, *ports, "--log-verbose=1", *flags]
        with subprocess.Popen(arguments, cwd=ROOT, stderr=full) as server:
            try:
                wait_until(lambda: _is_ready(port), "the server is ready")
                outcome = run("infer", "m", "--zeros", "--url", f"http://127.0.0.1:{port}")
                assert outcome.returncode == 0, outcome.stderr
                server.send_signal(signal.SIGTERM)
                assert server.wait(DEADLINE_S) == 0
            finally:
                server.kill()


def _is_ready(port):
    try:
        return request(f"127.0.0.1:{port}", "GET", "/v2/health/ready").status == 200
    except OSError:
        return False


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
