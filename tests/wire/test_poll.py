"""Control mode poll: what changes in the repository is served."""

import shutil
import tempfile
from pathlib import Path

import pytest

from http_client import get, infer, post, tensor
from metrics import wait_metric
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


FAILURES = "skep_repository_poll_failures_total"


def failing_polls(server, root, count=2):
    """Waits until so many more polls failed."""
    labels = {"repository": str(root)}
    before = wait_metric(server, FAILURES, lambda _: True, **labels)
    wait_metric(server, FAILURES, lambda value: value >= before + count, **labels)


def said(server, text):
    return sum(text in line for line in server.lines)


def unreadable(path):
    """Something in the place of a directory that nobody can read, not even root."""
    path.symlink_to("x" * 300)


def test_a_repository_that_vanishes_for_a_while_keeps_its_models(repository):
    repository.onnx("m", plus(1))
    away = repository.path.with_name("away")
    with polling(repository) as server:
        assert value(server) == 1
        assert wait_metric(server, FAILURES, lambda _: True, repository=str(repository)) == 0
        repository.path.rename(away)
        failing_polls(server, repository)
        assert (value(server), states(server)["m", "1"]) == (1, "READY")
        assert get(server, "/v2/health/ready").status == 200
        # Nor does a file in its place.
        repository.path.write_text("")
        failing_polls(server, repository)
        repository.path.unlink()
        away.rename(repository.path)
        server.wait_for(f"`{repository}` can be read again")
        assert said(server, f"cannot read `{repository}`, its models stay loaded") == 1
        # Not loaded again either, and watched as before.
        assert executions(server) == [2]
        put(repository, plus(7))
        server.wait_until(lambda: value(server) == 7)
        assert said(server, "unload") == 0


@pytest.mark.parametrize("place", ["m", "m/2"])
def test_a_models_directory_that_cannot_be_read_for_a_while_keeps_the_model(repository, place):
    repository.onnx("m", plus(1))
    repository.onnx("m", plus(2), 2)
    repository.onnx("other", plus(1))
    away, aside = repository.path.with_name("away"), repository.path.with_name("aside")
    with polling(repository) as server:
        assert value(server) == 2
        # Behind a root that is not there, so that no poll sees half of it.
        repository.path.rename(away)
        failing_polls(server, repository)
        (away / place).rename(aside)
        unreadable(away / place)
        away.rename(repository.path)
        server.wait_for(f"cannot read `{repository.path / place}`, its models stay loaded")
        failing_polls(server, repository)
        assert (value(server), states(server)["m", "2"]) == (2, "READY")
        # The others are watched meanwhile.
        put(repository, plus(5), name="other")
        server.wait_until(lambda: value(server, "other") == 5)
        repository.path.rename(away)
        failing_polls(server, repository)
        (away / place).unlink()
        aside.rename(away / place)
        away.rename(repository.path)
        server.wait_for(f"`{repository.path / place}` can be read again")
        assert executions(server) == [2]
        assert said(server, f"cannot read `{repository.path / place}`") == 1
        assert said(server, "unloaded model `m`") == 0
        # Nor was anything tried that had to fail.
        assert not [line for line in server.lines if line.startswith("E")]


def test_a_repository_whose_mount_is_gone_keeps_its_models(repository, tmp_path):
    repository.onnx("m", plus(1))
    link, next_link = tmp_path / "link", tmp_path / "next"
    link.symlink_to(repository.path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other, polling(link) as server:
        assert Path(other).stat().st_dev != repository.path.stat().st_dev
        next_link.symlink_to(other)
        next_link.rename(link)
        server.wait_for(f"cannot read `{link}`, its models stay loaded")
        server.wait_for("it is empty, and on another file system than before: its mount may be gone")
        failing_polls(server, link)
        assert value(server) == 1
        # Models on it are models.
        Repository(Path(other)).onnx("n", plus(2))
        server.wait_until(lambda: value(server, "n") == 2)
        server.wait_for("unloaded model `m` version 1")


def test_an_empty_repository_is_empty(repository):
    repository.onnx("m", plus(1))
    with polling(repository) as server:
        assert value(server) == 1
        shutil.rmtree(repository.path / "m")
        server.wait_for("the repository has no models any more: all models are unloaded")
        server.wait_for("unloaded model `m` version 1")


def test_a_model_that_is_mended_makes_the_server_ready_and_the_log_says_so(repository):
    repository.onnx("m", b"no ONNX")
    with polling(repository, "--exit-on-error=false") as server:
        assert "ready for requests" not in server.log
        put(repository, plus(2))
        server.wait_for("ready for requests: every requested model is loaded")
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


def test_the_log_and_the_metrics_say_each_change_of_readiness_once(repository):
    repository.onnx("m", plus(1))
    with polling(repository) as server:
        assert value(server) == 1
        wait_metric(server, "skep_ready", lambda ready: ready == 1)
        directory = repository.path / "zz"
        directory.mkdir()
        (directory / "config.pbtxt").write_text("max_batch_size: nonsense")
        put(repository, plus(2), name="zz")
        server.wait_for("not ready any more: model `zz` failed to load")
        assert get(server, "/v2/health/ready").status == 400
        wait_metric(server, "skep_ready", lambda ready: ready == 0)
        wait_metric(server, "skep_model_load_failures_total", lambda count: count >= 1, model="zz")
        # Another failure changes nothing.
        put(repository, b"no model", name="y")
        server.wait_for("model `y` version 1: UNAVAILABLE")
        shutil.rmtree(repository.path / "y")
        (directory / "new").write_text("max_batch_size: 0")
        (directory / "new").rename(directory / "config.pbtxt")
        server.wait_for("ready for requests: every requested model is loaded")
        assert get(server, "/v2/health/ready").status == 200
        # A failed load of a model that serves on.
        put(repository, b"no model")
        wait_metric(server, "skep_model_load_failures_total", lambda count: count >= 1, model="m")
        assert (value(server), get(server, "/v2/health/ready").status) == (1, 200)
        assert server.log.count("not ready any more") == 1
        assert server.log.count("ready for requests: every requested model") == 1
        assert "`--strict-readiness=false`" in server.log
        log = server.log
        assert log.index("loading model `m`, 1 KiB of files") < log.index("loaded model `m`")
