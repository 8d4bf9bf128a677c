"""ONNX Runtime's telemetry: off unless the user asks for it, in the server, in its workers and in what bakes."""

import re
import shutil

import pytest

from http_client import infer
from repository import plus
from server import Server, run
from test_backends import ZEROS

VARIABLE = "ORT_DISABLE_TELEMETRY"
# ONNX Runtime sends nothing where one of these is set, whatever else was asked for.
CI = [
    "APPVEYOR", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID", "GITHUB_ACTIONS",
    "GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS",
]  # fmt: skip
PROCESS = 'parameters { key: "isolation" value { string_value: "process" } }'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, and the environment of a user rather than of a CI job."""
    for variable in [VARIABLE, *CI]:
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    return home


def files_of_others(home):
    return [path for path in home.rglob("*") if path.is_file() and ".cache/skep" not in str(path)]


def serve(repository, **options):
    """Serves a model in the server and in a worker, and bakes one."""
    repository.onnx("m", plus(1))
    repository.onnx("sandboxed", plus(1), config=PROCESS)
    repository.generate("bert-tiny", "baked")
    with Server(repository, **options) as server:
        for model in ("m", "sandboxed"):
            assert infer(server, model, ZEROS).status == 200
        server.wait_for("runs on its baked form")
        server.stop()


def test_no_file_of_the_library_is_left_behind(repository, home):
    serve(repository)
    assert run("doctor").returncode == 0
    assert run("check", "--load", repository).returncode == 0
    assert files_of_others(home) == []


@pytest.mark.parametrize("value", ["", "no", "2", "FALSE"])
def test_only_0_and_false_ask_for_it(repository, home, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    repository.onnx("m", plus(1))
    assert run("check", "--load", repository).returncode == 0
    assert files_of_others(home) == []


def test_asked_for_it_is_the_librarys_own_affair(repository, home, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    repository.onnx("m", plus(1))
    assert run("check", "--load", repository).returncode == 0
    assert any("onnxruntime" in str(path) for path in files_of_others(home))


def test_nobody_is_connected_to(repository, home, tmp_path):
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("needs strace: `cargo xtask setup --all`")
    trace = tmp_path / "trace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    # -D: the server is the process that is started, and is watched by a grandchild.
    serve(repository, prefix=[strace, "-D", "-f", "-qq", "-e", calls, "-o", trace])
    addresses = re.findall(r"sin6?_addr.*", trace.read_text())
    assert trace.stat().st_size
    assert addresses == []
