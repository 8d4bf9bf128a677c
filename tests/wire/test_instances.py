"""Instances that come and go under a model that stays: updates without a reload."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from http_client import get, infer, post, tensor
from metrics import wait_pending
from repository import plus
from server import Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


def load(server, model="m"):
    answer = post(server, f"/v2/repository/models/{model}/load")
    assert answer.status == 200, answer.body


def executions(server, model="m", version="1"):
    stats = get(server, f"/v2/models/{model}/stats").json["model_stats"]
    return {row["version"]: row["execution_count"] for row in stats}.get(version)


def groups(count, more=""):
    return f"instance_group [ {{ count: {count} kind: KIND_CPU {more} }} ]"


def count(server, model="m"):
    return sum(group["count"] for group in get(server, f"/v2/models/{model}/config").json["instance_group"])


def explicit(repository, *models):
    return Server(repository, "--model-control-mode=explicit", *[f"--load-model={model}" for model in models])


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_r9_counts_change_and_statistics_stay(repository, backend):
    repository.onnx("m", plus(1), config=f'backend: "{backend}" {groups(1)}')
    with explicit(repository, "m") as server:
        for expected, instances in enumerate((3, 3, 1, 2), 1):
            assert infer(server, "m", ZEROS).status == 200
            repository.config("m", f'backend: "{backend}" {groups(instances)}')
            load(server)
            assert (count(server), executions(server)) == (instances, expected)
        assert infer(server, "m", ZEROS).status == 200
        assert "unloaded" not in server.log


def test_r9_an_unchanged_model_is_not_loaded_again(repository):
    repository.onnx("m", plus(1))
    with explicit(repository, "m") as server:
        infer(server, "m", ZEROS)
        load(server)
        assert executions(server) == 1
        repository.config("m", "# a comment\n")
        load(server)
        assert executions(server) == 1


@pytest.mark.parametrize("what", ["max_batch_size", "model", "labels"])
def test_r9_anything_else_is_a_reload(repository, what):
    repository.onnx("m", plus(1), config=groups(1))
    with explicit(repository, "m") as server:
        infer(server, "m", ZEROS)
        if what == "max_batch_size":
            repository.config("m", f"max_batch_size: 2 {groups(2)}")
        elif what == "model":
            (repository.path / "m/1/new.onnx").write_bytes(plus(2).SerializeToString())
            (repository.path / "m/1/new.onnx").rename(repository.path / "m/1/model.onnx")
        else:
            (repository.path / "m/labels.txt").write_text("a\n")
        load(server)
        assert executions(server) == 0


def test_r9_a_version_policy_leaves_the_versions_that_stay(repository):
    for version in (1, 2):
        repository.onnx("m", plus(version), version, config="version_policy { all {} }")
    with explicit(repository, "m") as server:
        assert infer(server, "m", ZEROS, version=1).status == 200
        repository.config("m", "version_policy { specific { versions: 1 } }")
        load(server)
        assert get(server, "/v2/models/m").json["versions"] == ["1"]
        server.wait_for("unloaded model `m` version 2")
        assert executions(server) == 1
        repository.onnx("m", plus(3), 3, config="version_policy { all {} }")
        load(server)
        assert get(server, "/v2/models/m").json["versions"] == ["1", "2", "3"]
        assert [executions(server, version=version) for version in "123"] == [1, 0, 0]


def test_r9_more_instances_take_what_waits(repository):
    """One instance would take both requests in turn: with the second one both run at once."""
    repository.mock(latency_us=3_000_000_000, config=groups(1))
    with explicit(repository, "mock") as server, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        wait_pending(server, "mock", 1)
        repository.mock(latency_us=3_000_000_000, config=groups(2))
        load(server, "mock")
        wait_pending(server, "mock", 0)
        server.kill()
        for future in running:
            assert future.exception()


def test_r9_no_request_is_lost_while_instances_come_and_go(repository):
    repository.mock(latency_us=500, config=groups(2))
    with explicit(repository, "mock") as server, ThreadPoolExecutor(4) as pool:
        def ask(_):
            return infer(server, "mock", ZEROS).status

        asked = [pool.submit(ask, number) for number in range(400)]
        for instances in (4, 1, 3, 2, 1, 4):
            repository.mock(latency_us=500, config=groups(instances))
            load(server, "mock")
        assert [future.result() for future in asked] == [200] * 400
        assert executions(server, "mock") == 400


def test_r9_a_busy_instance_that_leaves_finishes_its_request(repository):
    repository.mock(latency_us=700_000, config=groups(2))
    with explicit(repository, "mock") as server, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(infer, server, "mock", ZEROS) for _ in range(3)]
        wait_pending(server, "mock", 1)
        repository.mock(latency_us=700_000, config=groups(1))
        load(server, "mock")
        assert [future.result().status for future in asked] == [200] * 3
        assert count(server, "mock") == 1


def test_r9_instances_that_cannot_start_leave_the_old_ones(repository):
    warmup = """model_warmup { name: "w" batch_size: 1 inputs { key: "x" value {
        data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }"""
    # The first instance's warm-up passes, the second execution fails.
    repository.mock(config=groups(1) + warmup, fail_every=2)
    with explicit(repository, "mock") as server:
        repository.mock(config=groups(3) + warmup, fail_every=2)
        answer = post(server, "/v2/repository/models/mock/load")
        assert answer.status == 400
        assert "version 1 is at READY state: Internal: failed to run warmup 'w'" in answer.error
        assert (count(server, "mock"), executions(server, "mock")) == (1, 2)
        assert get(server, "/v2/models/mock/ready").status == 200
        assert post(server, "/v2/repository/models/mock/unload").status == 200
        server.wait_for("unloaded model `mock` version 1")


def test_r9_a_broken_group_leaves_the_model(repository):
    repository.onnx("m", plus(1), config=groups(1))
    with explicit(repository, "m") as server:
        repository.config("m", "instance_group [ { kind: KIND_GPU } ]")
        answer = post(server, "/v2/repository/models/m/load")
        text = "Invalid argument: instance group m_0 of model m has kind KIND_GPU but no GPUs are available\n" \
            "write `kind: KIND_CPU`, or start with `--gpu-as-cpu`, which serves the groups of every model on the CPU"
        assert (answer.status, answer.error) == (
            400,
            f"load failed for model 'm': version 1 is at READY state: {text};\n",
        )
        assert post(server, "/v2/repository/index").json == [
            {"name": "m", "version": "1", "state": "READY", "reason": text}
        ]
        assert infer(server, "m", ZEROS).status == 200


def test_f12_passive_instances_get_no_requests(repository):
    config = 'instance_group [ { name: "p" passive: true count: 2 }, { name: "q" count: 1 } ]'
    repository.mock(latency_us=3_000_000_000, config=config)
    with Server(repository) as server, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        wait_pending(server, "mock", 1)
        assert get(server, "/v2/models/mock/ready").status == 200
        server.kill()
        for future in running:
            assert future.exception()


def test_f12_passive_instances_warm_up_and_are_updated(repository):
    warmup = """model_warmup { name: "w" batch_size: 1 inputs { key: "x" value {
        data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }"""
    config = 'instance_group [ {{ name: "p" passive: {} count: 2 }}, {{ name: "q" count: 1 }} ]' + warmup.replace(
        "{", "{{"
    ).replace("}", "}}")
    repository.mock(config=config.format("true"))
    with explicit(repository, "mock") as server:
        assert executions(server, "mock") == 3
        repository.mock(config=config.format("false"))
        load(server, "mock")
        assert executions(server, "mock") == 5
        repository.mock(config=config.format("true"))
        load(server, "mock")
        assert infer(server, "mock", ZEROS).status == 200
        assert executions(server, "mock") == 8
        assert post(server, "/v2/repository/models/mock/unload").status == 200
        server.wait_for("unloaded model `mock` version 1")
