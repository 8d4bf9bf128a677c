"""Caches of baked models: on full disks, under servers that die or start at once, with files that somebody changed."""

import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from http_client import post
from process import wait_until
from server import BINARY, ROOT, Server, run, serve_and_fail
from weights import config, files, generate, outputs

# Less than what the library writes beside the graph of `bert-tiny`, and than what it packs of the matrix of `packed`.
FILES = [("bert-tiny", 1 << 20), ("packed", 3 << 20)]
ISOLATIONS = ["thread", "process"]


def home(tmp_path):
    """A cache directory of its own for the library, which writes a file there that grows with every process."""
    return {"XDG_CACHE_HOME": str(tmp_path / "home")}


def limited(file_bytes, dies=False):
    """A command that runs another one, which can write files of so many bytes: more is an error, or ends it at once."""
    ignore = "" if dies else "trap '' XFSZ; "
    return ["sh", "-c", f'{ignore}ulimit -c 0; ulimit -f {file_bytes // 512}; exec "$@"', "sh"]


def weights(directory, bakes="foreground"):
    """A cache, and when models are baked: by default before they are loaded."""
    return [f"--weight-cache={directory}", f"--weight-bake={bakes}"]


def cache_of(directory):
    """The same for `skep bake`, which always bakes."""
    return f"--weight-cache={directory}"


def bake(repository, directory):
    """The states of the models' versions."""
    outcome = run("bake", "--json", cache_of(directory), repository)
    assert outcome.returncode == 0, outcome.stderr
    return [row["state"] for row in json.loads(outcome.stdout)]


@pytest.fixture
def expected(repository, tmp_path):
    """Makes a model: its answer without a cache, and what a cache holds of it that nobody disturbed."""

    def made(kind, isolation="thread"):
        generate(repository, kind, config(isolation))
        with Server(repository, "--weight-cache=off") as server:
            answer = outputs(server, kind)
        assert bake(repository, tmp_path / "undisturbed") == ["baked"]
        return answer, files(tmp_path / "undisturbed")

    return made


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(("kind", "file_bytes"), FILES)
def test_a_disk_that_is_full_is_warned_of_and_not_remembered(
        repository, tmp_path, expected, kind, file_bytes, isolation):
    answer, whole = expected(kind, isolation)
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache), env=home(tmp_path), prefix=limited(file_bytes)) as server:
        assert outputs(server, kind) == answer
        in_process = isolation == "process"
        said = "model `m` was not baked: " if in_process else "model.onnx` is loaded without a baked form: "
        warnings = [line for line in server.lines if said in line]
        assert len(warnings) == 1, server.log
        assert "cannot lock" not in server.log
        # The library has a text of its own.
        assert "File too large" in warnings[0] or "external initializers" in warnings[0]
        assert "SIGKILL" not in server.log
    assert not any(path.startswith(("models", "tmp")) for path in files(cache))
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, kind) == answer
    assert files(cache) == whole


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_store_without_memory_is_warned_of_and_does_without(repository, expected, tmp_path, isolation):
    """Memory files are under the same bound."""
    answer, whole = expected("bert-tiny", isolation)
    cache = tmp_path / "undisturbed"
    with Server(repository, *weights(cache), env=home(tmp_path), prefix=limited(1 << 20)) as server:
        if isolation == "process":
            assert "is loaded without its baked form: the tensor store: " in server.log
        else:
            server.wait_for("stay in the cache's files: the tensor store: ")
        assert outputs(server, "bert-tiny") == answer
    assert files(cache) == whole
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, "bert-tiny") == answer
        assert "without its baked form" not in server.log


@pytest.mark.parametrize(("kind", "file_bytes"), FILES)
def test_what_a_server_left_that_died_while_it_baked_is_baked_anew_and_removed(
        repository, tmp_path, expected, kind, file_bytes):
    answer, whole = expected(kind)
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache), env=home(tmp_path), prefix=limited(file_bytes, dies=True), until=None) as server:
        assert server.wait() == -signal.SIGXFSZ
    left = {Path(path).parts[0] for path in files(cache)}
    assert left == {"tmp"}
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, kind) == answer
        assert "baked `" in server.log
    assert files(cache) == whole


def test_a_model_whose_baking_dies_in_a_sandbox_is_served_all_the_same(repository, tmp_path, expected):
    answer, whole = expected("bert-tiny", "process")
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache), env=home(tmp_path), prefix=limited(1 << 20, dies=True)) as server:
        assert outputs(server, "bert-tiny") == answer
        assert "model `m` was not baked: " in server.log
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, "bert-tiny") == answer
    assert files(cache) == whole


def test_a_directory_that_others_may_change_is_not_used(repository, tmp_path, expected):
    answer, whole = expected("bert-tiny")
    cache = tmp_path / "undisturbed"
    cache.chmod(0o777)
    other = tmp_path / "other"
    other.mkdir()
    other.chmod(0o777)
    for directory in (cache, other):
        # Whoever names a directory wants that one used.
        _, log = serve_and_fail(repository, cache_of(directory))
        baking = run("bake", cache_of(directory), repository)
        assert baking.returncode == 1
        for said in (log, baking.stderr):
            words = f"`{directory}` is not a safe place for baked models: everybody may write it (mode 777)"
            assert f"error: --weight-cache: {words}" in said
            assert f"`chmod go-w {directory}` mends that" in said
    home = tmp_path / "home"
    default = home / "skep"
    default.mkdir(parents=True)
    default.chmod(0o777)
    with Server(repository, "--weight-bake=foreground", env={"XDG_CACHE_HOME": str(home)}) as server:
        assert outputs(server, "bert-tiny") == answer
        [warning] = [line for line in server.lines if "baked" in line]
        assert f"`{default}` is not a safe place for baked models: everybody may write it (mode 777)" in warning
        assert f"`chmod go-w {default}` mends that; `--weight-cache DIR` names another directory" in warning
    assert list(default.iterdir()) == []
    assert list(other.iterdir()) == []
    cache.chmod(0o755)
    assert bake(repository, cache) == ["known"]
    assert files(cache) == whole


def test_a_model_that_another_process_never_bakes_is_served_all_the_same(repository, tmp_path, expected):
    answer, whole = expected("bert-tiny", "process")
    cache = tmp_path / "weights"
    for directory in (cache, cache / "v1", cache / "v1" / "making"):
        directory.mkdir(mode=0o700)
    [name] = [path.name for path in (tmp_path / "undisturbed/v1/making").iterdir()]
    with open(cache / "v1/making" / name, "w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        with Server(repository, *weights(cache), "--sandbox-load-timeout-secs=5") as server:
            assert outputs(server, "bert-tiny") == answer
            assert "model `m` was not baked: another process bakes it" in server.log
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, "bert-tiny") == answer
    assert files(cache) == whole


def waiting_for_locks():
    """The processes that wait for a lock of a file."""
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return [int(words[5]) for words in lines if words[1] == "->"]


def test_of_three_that_start_at_once_one_bakes(repository, tmp_path, expected):
    answer, whole = expected("bert-tiny")
    cache = tmp_path / "weights"
    for directory in (cache, cache / "v1"):
        directory.mkdir(mode=0o700)
    with open(cache / "v1" / "lock", "w") as lock:
        # Whoever publishes something shares this lock: the first one waits for it, the others for the first.
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [BINARY, "bake", "--json", cache_of(cache), repository]
        with (
            Server(repository, *weights(cache), until=None) as one,
            Server(repository, *weights(cache), until=None) as other,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as baking,
        ):
            pids = {one.process.pid, other.process.pid, baking.pid}
            wait_until(lambda: len(pids & set(waiting_for_locks())) == 2, "all three have begun")
            fcntl.flock(lock, fcntl.LOCK_UN)
            for server in (one, other):
                server.wait_for("started, ready for requests")
                assert outputs(server, "bert-tiny") == answer
            [state] = [row["state"] for row in json.loads(baking.communicate()[0])]
            assert baking.returncode == 0
            made = [server.log.count("baked `") for server in (one, other)] + [int(state == "baked")]
            assert sorted(made) == [0, 0, 1]
    assert files(cache) == whole


def largest(cache, kind):
    return max((cache / "v1" / kind).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def a_manifest(cache):
    [path] = (cache / "v1" / "models").glob("*/manifest")
    return path


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


TAMPERED = {
    "a tensor changed": lambda cache: flip(largest(cache, "tensors")),
    "a tensor cut short": lambda cache: cut(largest(cache, "tensors")),
    "a tensor gone": lambda cache: largest(cache, "tensors").unlink(),
    "a graph changed": lambda cache: flip(a_manifest(cache).with_name("graph")),
    "a graph gone": lambda cache: a_manifest(cache).with_name("graph").unlink(),
    "a manifest changed": lambda cache: flip(a_manifest(cache)),
    "a manifest cut short": lambda cache: cut(a_manifest(cache)),
    "a manifest gone": lambda cache: a_manifest(cache).unlink(),
}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("what", TAMPERED)
def test_a_form_that_somebody_changed_is_mended(repository, tmp_path, expected, what, isolation):
    answer, whole = expected("bert-tiny", isolation)
    cache = tmp_path / "undisturbed"
    TAMPERED[what](cache)
    assert files(cache) != whole
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, "bert-tiny") == answer
        if what == "a tensor changed":
            assert "is made again: " in server.log
    assert files(cache) == whole


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_files_that_are_cut_short_under_a_model_do_not_touch_it(repository, tmp_path, expected, isolation):
    """Once its weights are in the store nothing of a model depends on the cache; the next load mends that."""
    answer, whole = expected("bert-tiny", isolation)
    cache = tmp_path / "undisturbed"
    explicit = ["--model-control-mode=explicit", "--load-model=m", "--session-keep-alive-secs=0", "--store-keep-alive-secs=0"]
    with Server(repository, *weights(cache), *explicit) as server:
        if isolation == "thread":
            server.wait_for("are in the tensor store, after")
        for path in (cache / "v1").rglob("*"):
            if path.is_file() and path.stat().st_size > 4096:
                os.truncate(path, 0)
        assert outputs(server, "bert-tiny") == answer
        for name in ("unload", "load"):
            assert post(server, f"/v2/repository/models/m/{name}").status == 200
        assert outputs(server, "bert-tiny") == answer
    assert files(cache) == whole
