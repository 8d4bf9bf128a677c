"""Control mode poll: what changes in the repository is served."""

import shutil

import pytest

from http_client import get, infer, post, tensor
from repository import Repository, plus
from server import Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


def polling(repository, *flags):
    return Server(repository, "--model-control-mode=poll", "--repository-poll-secs=0.05", *flags)


def states(server):
    return {
        (row["name"], row.get("version")): row.get("state")
        for row in post(server, "/v2/repository/index").json
    }


def value(server, model="m"):
    answer = infer(server, model, ZEROS)
    return answer.json["outputs"][0]["data"][0] if answer.status == 200 else answer.status


def executions(server, model="m"):
    return [row["execution_count"] for row in get(server, f"/v2/models/{model}/stats").json["model_stats"]]


def put(repository, model, version=1, name="m"):
    """A model's file put in the place of another by renaming."""
    directory = repository.path / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (directory / "new").write_bytes(data)
    (directory / "new").rename(directory / "model.onnx")


def test_r7_models_come_and_go(repository):
    repository.onnx("m", plus(1))
    with polling(repository) as server:
        assert value(server) == 1
        put(repository, plus(7), name="new")
        server.wait_until(lambda: value(server, "new") == 7)
        shutil.rmtree(repository.path / "new")
        server.wait_for("unloaded model `new` version 1")
        assert states(server)["new", "1"] == "UNAVAILABLE"
        assert get(server, "/v2/health/ready").status == 200
        assert executions(server) == [1]


def test_r7_versions_come_and_go(repository):
    repository.onnx("m", plus(1), config="version_policy { latest { num_versions: 2 } }")
    with polling(repository) as server:
        assert value(server) == 1
        put(repository, plus(2), 2)
        server.wait_until(lambda: value(server) == 2)
        assert get(server, "/v2/models/m").json["versions"] == ["1", "2"]
        put(repository, plus(3), 3)
        server.wait_until(lambda: get(server, "/v2/models/m").json["versions"] == ["2", "3"])
        shutil.rmtree(repository.path / "m/3")
        server.wait_until(lambda: get(server, "/v2/models/m").json["versions"] == ["1", "2"])


@pytest.mark.parametrize("place", ["m/1/model.onnx", "m/1/model.onnx/model.onnx"])
def test_r7_a_model_file_is_replaced(repository, place):
    file = repository.path / place
    file.parent.mkdir(parents=True)
    file.write_bytes(plus(1).SerializeToString())
    with polling(repository) as server:
        assert value(server) == 1
        # Of the same size: only time and identity tell.
        other = file.with_name("other")
        other.write_bytes(plus(2).SerializeToString())
        other.rename(file)
        server.wait_until(lambda: value(server) == 2)


def test_r7_configuration_and_labels(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8 instance_group { count: 1 }")
    with polling(repository) as server:
        assert value(server) == 1
        # Only instances: the model stays.
        repository.config("m", "max_batch_size: 8 instance_group { count: 3 }")
        server.wait_until(
            lambda: get(server, "/v2/models/m/config").json["instance_group"][0]["count"] == 3
        )
        assert executions(server) == [1]
        repository.config("m", "max_batch_size: 2")
        server.wait_until(lambda: get(server, "/v2/models/m/config").json["max_batch_size"] == 2)
        assert value(server) == 1
        (repository.path / "m/labels.txt").write_text("a\n")
        server.wait_until(lambda: executions(server) == [0])


def test_r7_a_failed_reload_keeps_the_old_model_and_the_next_change_mends_it(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    with polling(repository) as server:
        assert value(server) == 1
        repository.config("m", "broken {")
        server.wait_for("m/config.pbtxt:1:")
        assert value(server) == 1
        assert get(server, "/v2/health/ready").status == 200
        put(repository, b"no ONNX")
        repository.config("m", "max_batch_size: 4")
        server.wait_for("not an ONNX file")
        assert (value(server), states(server)["m", "1"]) == (1, "READY")
        put(repository, plus(3))
        server.wait_until(lambda: value(server) == 3)
        # Failed loads are not tried again until something changes.
        assert sum("not an ONNX file" in line for line in server.lines) == 1


def test_r7_a_model_that_failed_at_the_start_is_mended(repository):
    repository.onnx("m", b"no ONNX")
    with polling(repository, "--exit-on-error=false") as server:
        assert get(server, "/v2/health/ready").status == 400
        put(repository, plus(2))
        server.wait_until(lambda: value(server) == 2)
        assert get(server, "/v2/health/ready").status == 200


def test_r7_requests_do_not_control_a_polling_server(repository):
    repository.onnx("m", plus(1))
    with polling(repository) as server:
        for action in ("load", "unload"):
            answer = post(server, f"/v2/repository/models/m/{action}")
            assert answer.status == 503
            assert answer.error == "explicit model load / unload is not allowed if polling is enabled"


def test_r7_a_stop_does_not_wait_for_the_next_poll(repository):
    repository.onnx("m", plus(1))
    flags = ["--model-control-mode=poll", "--repository-poll-secs=100000", "--exit-timeout-secs=50"]
    with Server(repository, *flags) as server:
        assert server.stop() == 0


def test_r7_r24_c29_a_named_configuration_is_polled_too(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    (repository.path / "m/configs").mkdir()
    with polling(repository, "--model-config-name=small") as server:
        assert get(server, "/v2/models/m/config").json["max_batch_size"] == 8
        (repository.path / "m/configs/small.pbtxt").write_text("max_batch_size: 2")
        server.wait_until(lambda: get(server, "/v2/models/m/config").json["max_batch_size"] == 2)


def test_r24_c29_a_named_configuration_is_taken_where_there_is_one(repository):
    for name in ("a", "b"):
        repository.onnx(name, plus(1), config="max_batch_size: 8")
    (repository.path / "a/configs").mkdir()
    (repository.path / "a/configs/small.pbtxt").write_text("max_batch_size: 2")
    with Server(repository, "--model-config-name=small") as server:
        sizes = [get(server, f"/v2/models/{name}/config").json["max_batch_size"] for name in ("a", "b")]
        assert sizes == [2, 8]


@pytest.fixture
def two(tmp_path):
    """Two repositories, both with `m`."""
    first, second = Repository(tmp_path / "1"), Repository(tmp_path / "2")
    for repository, number in ((first, 1), (second, 2)):
        repository.onnx("m", plus(number))
        repository.onnx(f"only{number}", plus(number))
    return [f"--model-repository={first}", f"--model-repository={second}"]


AMBIGUOUS = (
    "There are 2 identifiers of model 'm' in global map, model namespace must be provided to resolve ambiguity."
)


def test_r23_c21_namespaces(two):
    with Server(*two, "--model-namespacing=true") as server:
        rows = post(server, "/v2/repository/index").json
        assert [(row["name"], row["state"]) for row in rows] == [
            ("m", "READY"),
            ("only1", "READY"),
            ("m", "READY"),
            ("only2", "READY"),
        ]
        assert (value(server, "only1"), value(server, "only2")) == (1, 2)
        assert get(server, "/v2/health/ready").status == 200
        for answer in (infer(server, "m", ZEROS), get(server, "/v2/models/m"), get(server, "/v2/models/m/config")):
            assert (answer.status, answer.error) == (400, AMBIGUOUS)


def test_r23_c21_namespaces_under_control(two):
    with Server(*two, "--model-namespacing=true", "--model-control-mode=explicit") as server:
        assert post(server, "/v2/repository/models/only2/load").status == 200
        assert value(server, "only2") == 2
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert infer(server, "m", ZEROS).error == AMBIGUOUS
        answer = post(server, "/v2/repository/models/m/load", {"parameters": {"config": "{}"}})
        assert answer.status == 500
        assert post(server, "/v2/repository/models/m/unload").status == 200
        assert post(server, "/v2/repository/models/only2/unload").status == 200
        server.wait_for("unloaded model")
        server.wait_until(lambda: all(row.get("state") in (None, "UNAVAILABLE") for row in post(
            server, "/v2/repository/index").json))


def test_r23_polled_namespaces(two, tmp_path):
    with Server(*two, "--model-namespacing=true", "--model-control-mode=poll", "--repository-poll-secs=0.05") as server:
        assert infer(server, "m", ZEROS).error == AMBIGUOUS
        shutil.rmtree(tmp_path / "1/m")
        server.wait_until(lambda: value(server) == 2)


def test_c20_a_load_is_tried_again(repository):
    repository.onnx("m", b"no ONNX", config='backend: "onnxruntime" input { name: "x" data_type: TYPE_FP32 dims: 4 } '
                    'output { name: "y" data_type: TYPE_FP32 dims: 4 }')
    with Server(repository, "--model-load-retry-count=2", "--exit-on-error=false") as server:
        assert sum("model `m` version 1 is tried again" in line for line in server.lines) == 2
