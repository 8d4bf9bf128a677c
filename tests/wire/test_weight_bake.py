"""Baking behind models that run: what they answer meanwhile and afterwards, and what ends it without harm."""

import fcntl
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from http_client import post
from process import wait_until, workers
from repository import Repository
from server import Server, run
from weights import config, files, generate, outputs

KIND = "bert-tiny"
EXPLICIT = ["--model-control-mode=explicit", "--session-keep-alive-secs=0"]
BAKED = "runs on its baked form"


def weights(cache, *more):
    return [f"--weight-cache={cache}", *more]


@pytest.fixture
def model(repository, tmp_path):
    """A model, its answer without a cache, and what a cache holds of it."""

    def made(kind=KIND, isolation="thread"):
        generate(repository, kind, config(isolation))
        with Server(repository, "--weight-cache=off") as server:
            answer = outputs(server, kind)
        assert run("bake", f"--weight-cache={tmp_path / 'undisturbed'}", repository).returncode == 0
        return answer, files(tmp_path / "undisturbed")

    return made


def held(cache):
    """The turn of baking on this node, which nobody gets before it is closed."""
    for directory in (cache, cache / "v1"):
        directory.mkdir(mode=0o700, exist_ok=True)
    turn = open(cache / "v1" / "turn", "w")
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn


def staging(cache):
    return list((cache / "v1" / "tmp").glob("bake-*"))


def stopped_child(server):
    """The process that bakes, stopped before it is done."""
    server.wait_for("baking `")
    found = []

    def program(pid):
        with open(f"/proc/{pid}/cmdline") as line:
            return line.read()

    def there():
        # Not one that has not become another program yet: its parent waits for that.
        own = program(server.process.pid)
        found[:] = [pid for pid in workers(server) if program(pid) != own]
        return found

    wait_until(there, "a process that bakes")
    [child] = found
    os.kill(child, signal.SIGSTOP)
    return child


@pytest.mark.parametrize("kind", [KIND, "packed"])
def test_a_model_answers_before_it_is_baked_and_goes_over_to_its_form(repository, tmp_path, model, kind):
    answer, whole = model(kind)
    cache = tmp_path / "weights"
    turn = held(cache)
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, kind) == answer
        assert files(cache) == {}
        with ThreadPoolExecutor(2) as pool:
            over = []

            def ask():
                while not over:
                    assert outputs(server, kind) == answer

            asking = [pool.submit(ask) for _ in range(2)]
            turn.close()
            try:
                server.wait_for("are in the tensor store")
            finally:
                over.append(True)
            for each in asking:
                each.result()
        assert BAKED in server.log
        assert outputs(server, kind) == answer
        assert not workers(server)
    assert files(cache) == whole
    with Server(repository, *weights(cache)) as server:
        assert outputs(server, kind) == answer
        server.wait_for("are in the tensor store")
        assert "baking `" not in server.log


def test_a_model_in_a_sandbox_is_baked_behind_and_its_next_load_uses_that(repository, tmp_path, model):
    answer, whole = model(isolation="process")
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache), *EXPLICIT, "--load-model=m") as server:
        assert outputs(server, KIND) == answer
        server.wait_for("the next load uses its baked form")
        assert files(cache) == whole
        assert outputs(server, KIND) == answer
        for name in ("unload", "load"):
            assert post(server, f"/v2/repository/models/m/{name}").status == 200
        assert outputs(server, KIND) == answer
        assert server.log.count("baking `") == 1


def test_baking_that_is_off_makes_nothing_and_uses_what_is_there(repository, tmp_path, model):
    answer, whole = model()
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache, "--weight-bake=off")) as server:
        assert outputs(server, KIND) == answer
    assert files(cache) == {}
    with Server(repository, *weights(tmp_path / "undisturbed", "--weight-bake=off")) as server:
        assert outputs(server, KIND) == answer
        server.wait_for("are in the tensor store")
    assert files(tmp_path / "undisturbed") == whole


def test_a_death_in_baking_costs_nothing_and_is_remembered(repository, tmp_path, model):
    answer, whole = model()
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache)) as server:
        os.kill(stopped_child(server), signal.SIGKILL)
        server.wait_for("was not baked, and will not be tried again for 60 min")
        assert "by signal 9 (SIGKILL) while it baked the model" in server.log
        assert outputs(server, KIND) == answer
        wait_until(lambda: not staging(cache), "what it wrote is removed")
    assert files(cache) == {}
    with Server(repository, *weights(cache)) as server:
        server.wait_for("will not be baked for another 60 min, because the last process that tried died: ")
        assert outputs(server, KIND) == answer
        assert "baking `" not in server.log
    outcome = run("bake", "--json", f"--weight-cache={cache}", repository)
    assert [row["state"] for row in json.loads(outcome.stdout)] == ["baked"]
    assert files(cache) == whole
    assert not list((cache / "v1" / "failures").iterdir())


def test_a_stop_while_it_bakes_leaves_nothing(repository, tmp_path, model):
    model()
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache)) as server:
        child = stopped_child(server)
        assert server.stop() == 0
        assert "was cancelled" in server.log
    wait_until(lambda: not os.path.exists(f"/proc/{child}"), "it has ended")
    assert files(cache) == {} and not staging(cache)


def test_an_unload_while_it_bakes_leaves_nothing(repository, tmp_path, model):
    answer, whole = model()
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache), *EXPLICIT, "--load-model=m") as server:
        stopped_child(server)
        assert post(server, "/v2/repository/models/m/unload").status == 200
        server.wait_for("was cancelled: the model is no longer needed")
        wait_until(lambda: not workers(server) and not staging(cache), "it has ended")
        assert not list((cache / "v1" / "failures").iterdir())
        assert post(server, "/v2/repository/models/m/load").status == 200
        server.wait_for("are in the tensor store")
        assert outputs(server, KIND) == answer
    assert files(cache) == whole


def test_what_a_server_left_that_was_killed_while_it_baked_is_removed_at_the_next_start(repository, tmp_path, model):
    answer, _ = model()
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache)) as server:
        child = stopped_child(server)
        server.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{child}"), "it ends with its server")
    [left] = staging(cache)
    with Server(repository, *weights(cache, "--weight-bake=off")) as server:
        assert not left.exists()
        assert outputs(server, KIND) == answer


def add_file(staged):
    (staged / "more").write_bytes(b"x")


def add_tensor(staged):
    (staged / "tensors" / ("0" * 64)).write_bytes(b"x")


def link_tensors(staged):
    (staged / "tensors").rename(staged.parent / "elsewhere")
    (staged / "tensors").symlink_to(staged.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "said"),
    # Where the kernel has Landlock the process cannot follow the link either.
    [(add_file, "is not published: "), (add_tensor, "is not published: "), (link_tensors, "was not baked")],
)
def test_what_is_not_as_it_should_be_is_not_published(repository, tmp_path, model, damage, said):
    answer, _ = model()
    cache = tmp_path / "weights"
    with Server(repository, *weights(cache)) as server:
        child = stopped_child(server)
        [staged] = staging(cache)
        damage(staged)
        os.kill(child, signal.SIGCONT)
        server.wait_for(said)
        assert outputs(server, KIND) == answer
    assert not list((cache / "v1" / "models").iterdir())
    assert not list((cache / "v1" / "tensors").iterdir())


def test_a_form_under_anothers_key_answers_for_nobody(tmp_path):
    shared = Repository(tmp_path / "shared")
    shared.generate(KIND, "m", config=config("thread"))
    shared.generate(KIND, "other", "--seed", 7, config=config("thread"))
    with Server(shared, "--weight-cache=off") as server:
        expected = {name: outputs(server, KIND, name) for name in ("m", "other")}
    assert expected["m"] != expected["other"]
    cache = tmp_path / "weights"
    assert run("bake", f"--weight-cache={cache}", shared).returncode == 0
    one, other = (cache / "v1" / "models").iterdir()
    shutil.rmtree(other)
    shutil.copytree(one, other)
    with Server(shared, *weights(cache, "--weight-bake=foreground")) as server:
        assert {name: outputs(server, KIND, name) for name in expected} == expected
        assert "it was published as the form of key " in server.log
    with Server(shared, *weights(cache)) as server:
        assert {name: outputs(server, KIND, name) for name in expected} == expected
        assert "it was published as the form of key " not in server.log
