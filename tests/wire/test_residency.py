"""Residency: requests load models, and idle ones leave when another one needs their room."""

import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from http_client import get, infer, post, tensor
from metrics import metrics
from repository import FOREVER_US, WARMUP, Repository, graph, plus
from server import Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
MIB = 1 << 20
# Room for two tables of 64 MiB, of which the first has brought the library's own memory, and not for loading a third.
TWO_TABLES = f"--memory-budget={256 * MIB}"


def lazy(repository, *flags):
    return Server(repository, "--load-policy=lazy", "--weight-cache=off", "--log-verbose=1", *flags)


def table(number, mebibytes=64):
    """`y` is `x` plus what a table of so many MiB has at `x`, which is a number throughout."""
    values = np.full(mebibytes * MIB // 4, number, np.float32)
    constant = helper.make_tensor("table", TensorProto.FLOAT, values.shape, values.tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "at"], ["found"]),
        helper.make_node("Add", ["x", "found"], ["y"]),
    ]
    return graph(nodes, [("x", "FP32", ("batch", 4))], [("y", "FP32", ("batch", 4))], [constant])


def value(server, model):
    answer = infer(server, model, ZEROS)
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"][0]


def at_once(count, call):
    """What so many calls at once gave."""
    outcomes = [None] * count

    def one(index):
        outcomes[index] = call()

    threads = [threading.Thread(target=one, args=[index]) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def loads(server, model):
    return sum(f"loaded model `{model}` in" in line for line in server.lines)


def states(server):
    return {row["name"]: (row.get("state"), row.get("reason", "")) for row in post(server, "/v2/repository/index").json}


def resident(server):
    return {dict(labels)["model"] for name, labels in metrics(server) if name == "nv_inference_request_success"}


def test_a_known_model_is_ready_and_its_first_request_loads_it(repository):
    repository.onnx("a", plus(1))
    repository.onnx("b", plus(2))
    with lazy(repository) as server:
        assert get(server, "/v2/health/ready").status == 200
        assert resident(server) == set()
        assert states(server) == {"a": ("READY", ""), "b": ("READY", "")}
        assert get(server, "/v2/models/a/ready").status == 200
        assert get(server, "/v2/models/a/versions/1/ready").status == 200
        assert get(server, "/v2/models/a/versions/2/ready").status == 400
        assert get(server, "/v2/models/c/ready").status == 400
        assert get(server, "/v2/models/a/stats").json == {"model_stats": []}
        assert at_once(16, lambda: value(server, "a")) == [1] * 16
        assert loads(server, "a") == 1
        assert resident(server) == {"a"}
        assert infer(server, "a", ZEROS, version=2).status == 404
        assert infer(server, "c", ZEROS).status == 404
        # Metadata is that of the loaded model.
        assert get(server, "/v2/models/b").json["versions"] == ["1"]
        assert resident(server) == {"a", "b"}


def test_grpc_and_generate_load_too(repository):
    for name in ["a", "b", "c"]:
        repository.onnx(name, plus(1))
    with lazy(repository) as server, grpcclient.InferenceServerClient(server.grpc) as client:
        assert client.is_model_ready("a")
        assert not client.is_model_ready("none")
        request = grpcclient.InferInput("x", [1, 4], "FP32")
        request.set_data_from_numpy(np.zeros([1, 4], np.float32))
        assert client.infer("a", [request]).as_numpy("y")[0, 0] == 1
        assert client.get_model_config("b").config.name == "b"
        answer = post(server, "/v2/models/c/generate", {"x": [0, 0, 0, 0]})
        assert answer.status == 200, answer.body
        assert resident(server) == {"a", "b", "c"}
        with pytest.raises(InferenceServerException, match="is not found"):
            client.infer("none", [request])


def test_models_leave_for_others_and_come_back(repository):
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        repository.onnx(name, table(number))
    with lazy(repository, TWO_TABLES, "--eviction-policy=lru") as server:
        assert [value(server, name) for name in names] == [0, 1, 2]
        server.wait_for("model `a` leaves: model `c` needs its room")
        assert resident(server) == {"b", "c"}
        assert states(server)["a"] == ("READY", "")
        assert get(server, "/v2/health/ready").status == 200
        assert value(server, "a") == 0
        server.wait_for("model `b` leaves: model `a` needs its room")
        # One more than has room, all the time.
        answers = at_once(12, lambda: [value(server, name) for name in names])
        assert answers == [[0, 1, 2]] * 12


def test_with_a_budget_the_start_loads_what_has_room(repository):
    for number, name in enumerate(["a", "b", "c"]):
        repository.onnx(name, table(number))
    flags = ["--weight-cache=off", TWO_TABLES, "--model-load-thread-count=1"]
    with Server(repository, *flags) as server:
        assert len(resident(server)) == 2
        assert "is not loaded at the start" in server.log
        assert get(server, "/v2/health/ready").status == 200
        assert [value(server, name) for name in ["a", "b", "c"]] == [0, 1, 2]


def test_a_model_larger_than_the_budget_is_refused(repository):
    repository.onnx("large", table(1, mebibytes=32))
    repository.onnx("small", plus(2))
    with lazy(repository, f"--memory-budget={32 * MIB}") as server:
        answer = infer(server, "large", ZEROS)
        assert answer.status == 500
        assert answer.error == (
            "model 'large' needs about 73 MiB of memory, and the budget for all models is 32 MiB\n"
            "  `--memory-budget` sets it"
        )
        assert value(server, "small") == 2


def test_a_load_that_fails_answers_all_and_is_not_tried_at_once(repository):
    repository.onnx("bad", b"no model")
    repository.onnx("good", plus(1))
    with lazy(repository, "--model-control-mode=explicit") as server:
        answers = at_once(8, lambda: infer(server, "bad", ZEROS))
        assert {answer.status for answer in answers} == {400}
        assert len({answer.error for answer in answers}) == 1
        tries = sum("loading model `bad`" in line for line in server.lines)
        assert infer(server, "bad", ZEROS).error == answers[0].error
        assert sum("loading model `bad`" in line for line in server.lines) == tries == 1
        state, reason = states(server)["bad"]
        assert state == "UNAVAILABLE" and reason
        assert get(server, "/v2/models/bad/ready").status == 400
        assert value(server, "good") == 1
        # An explicit load tries again at once.
        repository.onnx("bad", plus(5))
        assert post(server, "/v2/repository/models/bad/load").status == 200
        assert value(server, "bad") == 5


def test_an_explicit_unload_holds_until_an_explicit_load(repository):
    repository.onnx("m", plus(1))
    with lazy(repository, "--model-control-mode=explicit") as server:
        assert value(server, "m") == 1
        assert post(server, "/v2/repository/models/m/unload").status == 200
        assert infer(server, "m", ZEROS).status != 200
        server.wait_until(lambda: states(server)["m"] == ("UNAVAILABLE", "unloaded"))
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert value(server, "m") == 1


def test_an_idle_model_leaves_after_its_keep_alive(repository):
    repository.onnx("m", plus(1))
    with lazy(repository, "--keep-alive-secs=1") as server:
        assert value(server, "m") == 1
        server.wait_for("model `m` leaves: it was idle for its keep-alive (`--keep-alive-secs`)")
        server.wait_for("unloaded model `m` version 1")
        assert value(server, "m") == 1


def test_a_poll_finds_models_without_loading_them():
    with tempfile.TemporaryDirectory() as path:
        repository = Repository(Path(path))
        repository.onnx("a", plus(1))
        with lazy(repository, "--model-control-mode=poll", "--repository-poll-secs=0.05") as server:
            repository.onnx("b", plus(2))
            server.wait_until(lambda: "b" in states(server))
            server.wait_until(lambda: get(server, "/v2/models/b/ready").status == 200)
            assert resident(server) == set()
            assert value(server, "b") == 2
            repository.onnx("new", plus(3))
            (repository.path / "new/1/model.onnx").rename(repository.path / "b/1/model.onnx")
            server.wait_until(lambda: value(server, "b") == 3)
            shutil.rmtree(repository.path / "b")
            server.wait_until(lambda: infer(server, "b", ZEROS).status != 200)


def test_a_request_does_not_wait_for_ever(repository):
    repository.mock("slow", config=WARMUP, latency_us=FOREVER_US)
    with lazy(repository, "--max-load-wait-ms=100", "--exit-timeout-secs=0") as server:
        answer = infer(server, "slow", ZEROS)
        assert answer.status == 503
        assert answer.error == (
            "model 'slow' is not loaded after 100 ms\n"
            "  `--max-load-wait-ms` and the parameter `max_load_wait_ms` say how long requests wait"
        )
