"""Model repositories: layout, versions, policies, modes, completion, model files, warm-up."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from http_client import get, infer, post, tensor
from metrics import wait_pending
from repository import Repository, graph, identity, plus
from server import Server, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


def config(server, model):
    answer = get(server, f"/v2/models/{model}/config")
    assert answer.status == 200, answer.body
    return answer.json


def index(server, **members):
    return post(server, "/v2/repository/index", members or None).json


def fails(repository, *texts):
    """The server does not start and says why."""
    code, log = serve_and_fail(repository)
    assert code == 1, log
    for text in texts:
        assert text in log, log


def version_served(server, model="m"):
    answer = infer(server, model, ZEROS)
    assert answer.status == 200, answer.body
    return answer.json["model_version"], answer.json["outputs"][0]["data"][0]


def test_r1_other_files_beside_the_configuration_are_no_harm(repository):
    repository.onnx("m", plus(1))
    for name in ("labels.txt", "README.md", "1/notes.txt"):
        (repository.path / "m" / name).write_text("text")
    (repository.path / "m/configs").mkdir()
    (repository.path / "stray.txt").write_text("a file among the models")
    (repository.path / ".git/objects").mkdir(parents=True)
    with Server(repository) as server:
        assert version_served(server) == ("1", 1)
        assert [row["name"] for row in index(server)] == ["m"]


def test_r2_versions_are_positive_integers_and_the_greatest_is_served(repository):
    for version in (2, 9, 10):
        repository.onnx("m", plus(version), version)
    for other in ("011", "0", "-3", "12a", "+13", "v14", "1.5", " 15", "99999999999999999999"):
        repository.onnx("m", plus(99), other)
    (repository.path / "m/16").write_text("a file, no version")
    with Server(repository) as server:
        assert version_served(server) == ("10", 10)
        assert get(server, "/v2/models/m").json["versions"] == ["10"]


def test_r2_a_model_without_versions_fails(repository):
    repository.onnx("m", plus(1), "v1")
    fails(repository, "m", "has no version", "positive integer")


def test_r3_a_name_must_match_the_directory(repository):
    repository.onnx("m", plus(1), config='name: "n"')
    fails(repository, "unexpected directory name 'm' for model 'n', directory name must equal model name")


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fm", "..%2f..%2fetc", "%2fetc", "a%2fb", "a%5cb", "%00", "%20"])
def test_r3_names_that_leave_the_repository_are_refused(tmp_path, name):
    outside, repository = Repository(tmp_path / "outside"), Repository(tmp_path / "models")
    outside.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=explicit") as server:
        answer = post(server, f"/v2/repository/models/{name}/load")
        assert answer.status >= 400
        assert answer.error
        assert index(server) == []


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", ["10"]),
        ("latest { num_versions: 2 }", ["3", "10"]),
        ("latest { num_versions: 9 }", ["1", "3", "10"]),
        ("all {}", ["1", "3", "10"]),
        ("specific { versions: [ 1, 10 ] }", ["1", "10"]),
        ("specific { versions: 3 versions: 7 }", ["3"]),
    ],
)
def test_r4_version_policy(repository, policy, served):
    text = f"version_policy: {{ {policy} }}" if policy else ""
    for version in (1, 3, 10):
        repository.onnx("m", plus(version), version, config=text)
    with Server(repository) as server:
        assert get(server, "/v2/models/m").json["versions"] == served
        assert version_served(server) == (served[-1], int(served[-1]))
        assert [row["version"] for row in index(server, ready=True)] == served


def test_r4_a_policy_that_selects_nothing_fails(repository):
    repository.onnx("m", plus(1), config="version_policy { specific { versions: [ 2, 3 ] } }")
    fails(repository, "version policy", "m")


def test_r4_one_bad_version_does_not_take_the_others_down(repository):
    repository.onnx("m", plus(1), 1, config="version_policy { all {} }")
    repository.onnx("m", identity("INT32"), 2)
    repository.onnx("m", plus(3), 3)
    with Server(repository, "--exit-on-error=false") as server:
        assert version_served(server) == ("3", 3)
        states = {row["version"]: row["state"] for row in index(server)}
        assert states == {"1": "READY", "2": "UNAVAILABLE", "3": "READY"}
        reason = next(row["reason"] for row in index(server) if row["version"] == "2")
        assert "x" in reason
        assert get(server, "/v2/models/m/versions/2").status == 503
        assert "version 2 is at UNAVAILABLE state" in get(server, "/v2/models/m/versions/2").error


def test_r5_mode_none_refuses_control(simple):
    for action in ("load", "unload"):
        answer = post(simple, f"/v2/repository/models/addsub/{action}")
        assert answer.status == 503
        assert answer.error == "explicit model load / unload is not allowed if polling is enabled"


def test_r6_c2_mode_explicit_starts_only_what_is_named(repository):
    for name in ("a", "b", "c"):
        repository.onnx(name, plus(1))
    with Server(repository, "--model-control-mode=explicit", "--load-model=a", "--load-model=c") as server:
        assert index(server) == [
            {"name": "a", "version": "1", "state": "READY"},
            {"name": "b"},
            {"name": "c", "version": "1", "state": "READY"},
        ]
        assert index(server, ready=True) == [row for row in index(server) if row["name"] != "b"]


def test_r6_c2_a_star_alone_loads_all(repository):
    for name in ("a", "b"):
        repository.onnx(name, plus(1))
    with Server(repository, "--model-control-mode=explicit", "--load-model=*") as server:
        assert [row["name"] for row in index(server, ready=True)] == ["a", "b"]


def test_r6_r8_load_again_takes_the_new_files(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as server:
        assert version_served(server) == ("1", 1)
        repository.onnx("m", plus(5), 2)
        assert version_served(server) == ("1", 1)
        assert post(server, "/v2/repository/models/m/load", {}).status == 200
        assert version_served(server) == ("2", 5)
        repository.onnx("m", b"no ONNX", 3)
        assert post(server, "/v2/repository/models/m/load").status >= 400
        assert version_served(server) == ("2", 5)


def test_r12_r14_unload(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as server:
        assert (
            post(server, "/v2/repository/models/m/unload", {"parameters": {"unload_dependents": False}}).status == 200
        )
        server.wait_for("unloaded model `m` version 1")
        assert index(server) == [{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]
        assert index(server, ready=True) == []
        assert infer(server, "m", ZEROS).status >= 400
        assert get(server, "/v2/models/m/ready").status == 400
        # Unloaded on purpose: the node is ready without it.
        assert get(server, "/v2/health/ready").status == 200
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert version_served(server) == ("1", 1)


def test_r12_unloading_drains(repository):
    repository.mock(latency_us=500_000)
    with Server(repository, "--model-control-mode=explicit", "--load-model=mock") as server:
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
            wait_pending(server, "mock", 1)
            assert post(server, "/v2/repository/models/mock/unload").status == 200
            assert infer(server, "mock", ZEROS).status >= 400
            assert [row["state"] for row in index(server)] == ["UNLOADING"]
            assert [future.result().status for future in running] == [200, 200]
        server.wait_for("unloaded model `mock` version 1")


def test_r15_completion_from_the_model_alone(repository):
    repository.onnx("m", graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [("a", "FP64", ["n", 3, "k"]), ("b", "FP64", ["n", 3, "k"])],
        [("sum", "FP64", ["n", 3, "k"])],
    ))  # fmt: skip
    with Server(repository) as server:
        got = config(server, "m")
    assert (got["backend"], got["platform"]) == ("onnxruntime", "onnxruntime_onnx")
    assert got["default_model_filename"] == "model.onnx"
    assert got["max_batch_size"] == 4
    assert [(i["name"], i["data_type"], i["dims"]) for i in got["input"]] == [
        ("a", "TYPE_FP64", [3, -1]),
        ("b", "TYPE_FP64", [3, -1]),
    ]
    assert [(o["name"], o["data_type"], o["dims"]) for o in got["output"]] == [("sum", "TYPE_FP64", [3, -1])]
    assert got["dynamic_batching"]["preferred_batch_size"] == [4]


def test_r15_no_batching_unless_every_first_dim_is_variable(repository):
    repository.onnx("fixed", identity("FP32", [2, 3]))
    repository.onnx("scalar", identity("FP32", []))
    repository.onnx("vector", identity("FP32", ["n"]))
    with Server(repository) as server:
        got = config(server, "fixed")
        assert (got["max_batch_size"], got["input"][0]["dims"]) == (0, [2, 3])
        assert "dynamic_batching" not in got or got["dynamic_batching"] is None
        assert (config(server, "scalar")["max_batch_size"], config(server, "scalar")["input"][0]["dims"]) == (0, [1])
        # Dims cannot be empty: a tensor of the batch dimension alone is [1] to clients and [] to the model.
        got = config(server, "vector")
        assert (got["max_batch_size"], got["input"][0]["dims"]) == (4, [1])
        assert got["input"][0]["reshape"] == {"shape": []}


def test_r15_a_given_batch_size_is_kept(repository):
    repository.onnx("one", plus(1), config="max_batch_size: 1")
    repository.onnx("many", plus(1), config="max_batch_size: 32")
    with Server(repository) as server:
        assert config(server, "one")["max_batch_size"] == 1
        assert "dynamic_batching" not in config(server, "one")
        assert config(server, "many")["dynamic_batching"]["preferred_batch_size"] == [32]


def test_r15_batching_that_the_model_cannot_do_fails(repository):
    repository.onnx("m", identity("FP32", [2, 3]), config="max_batch_size: 8")
    fails(repository, "model does not support batching", "[2,3]", "8")


def test_r16_a_config_with_inputs_and_outputs_is_taken_as_it_is(repository):
    repository.onnx(
        "m",
        plus(1),
        config="""
        input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]""",
    )
    with Server(repository) as server:
        got = config(server, "m")
        assert (got["max_batch_size"], got["input"][0]["dims"]) == (0, [-1, 4])
        assert "dynamic_batching" not in got
        assert infer(server, "m", [tensor("x", "FP32", [9, 4], [0] * 36)]).status == 200


IO = 'input [ {{ name: "{}" data_type: {} dims: {} }} ] output [ {{ name: "{}" data_type: {} dims: {} }} ]'


@pytest.mark.parametrize(
    ("tensors", "texts"),
    [
        (
            ("z", "TYPE_FP32", "[4]", "y", "TYPE_FP32", "[4]"),
            ["unexpected inference input 'z'", "allowed inputs are: x"],
        ),
        (
            ("x", "TYPE_FP32", "[4]", "z", "TYPE_FP32", "[4]"),
            ["unexpected inference output 'z'", "allowed outputs are: y"],
        ),
        (("x", "TYPE_INT32", "[4]", "y", "TYPE_FP32", "[4]"), ["TYPE_INT32", "TYPE_FP32", "'x'"]),
        (("x", "TYPE_FP32", "[5]", "y", "TYPE_FP32", "[4]"), ["'x'", "[-1,4]", "[-1,5]"]),
        (("x", "TYPE_FP32", "[4]", "y", "TYPE_FP32", "[2,2]"), ["'y'", "[-1,4]", "[-1,2,2]"]),
        (("x", "TYPE_FP32", "[]", "y", "TYPE_FP32", "[4]"), ["'x'", "dims"]),
        (("x", "TYPE_FP32", "[0]", "y", "TYPE_FP32", "[4]"), ["'x'", "dimension must be integer >= 1, or -1"]),
    ],
)
def test_r18_f3_a_config_that_contradicts_the_model_fails_with_both_sides(repository, tensors, texts):
    repository.onnx("m", plus(1), config="max_batch_size: 8 " + IO.format(*tensors))
    fails(repository, *texts)


@pytest.mark.parametrize(
    ("backend", "count"),
    [('backend: "onnxruntime"', 2), ('platform: "onnxruntime_onnx"', 2), ('backend: "embedded"', 1)],
)
def test_r19_default_instance_group_follows_the_backend(repository, backend, count):
    repository.onnx("m", plus(1), config=backend)
    with Server(repository) as server:
        group = config(server, "m")["instance_group"]
    assert [(g["name"], g["kind"], g["count"], g["gpus"]) for g in group] == [("m", "KIND_CPU", count, [])]


WARMUP = """instance_group {{ count: {instances} kind: KIND_CPU }}
model_warmup [ {{ name: "sample" batch_size: 2 count: 3
    inputs: {{ key: "x" value: {{ data_type: TYPE_FP32 dims: [ 4 ] {data} }} }} }} ]"""


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true", 'input_data_file: "raw"'])
def test_r20_warm_up_is_counted(repository, data):
    repository.onnx("m", plus(1), config=WARMUP.format(instances=1, data=data))
    (repository.path / "m/warmup").mkdir()
    (repository.path / "m/warmup/raw").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    with Server(repository) as server:
        stats = get(server, "/v2/models/m/stats").json["model_stats"][0]
        assert (stats["inference_count"], stats["execution_count"]) == (6, 3)
        assert [(b["batch_size"], b["compute_infer"]["count"]) for b in stats["batch_stats"]] == [(2, 3)]


def test_r20_every_instance_warms_up(repository):
    repository.onnx("m", plus(1), config=WARMUP.format(instances=3, data="zero_data: true"))
    with Server(repository) as server:
        assert get(server, "/v2/models/m/stats").json["model_stats"][0]["execution_count"] == 9


def test_r20_a_failing_warm_up_fails_the_load(repository):
    repository.mock(config=WARMUP.format(instances=1, data="zero_data: true"), fail_every=3)
    fails(repository, "failed to run warmup 'sample'", "fail_every")


def test_r20_a_missing_warm_up_file_is_named(repository):
    repository.onnx("m", plus(1), config=WARMUP.format(instances=1, data='input_data_file: "nosuch"'))
    fails(repository, "failed to run warmup 'sample'", "warmup/nosuch")


def test_r21_default_model_filename(repository):
    repository.onnx("m", plus(1), config='default_model_filename: "net.onnx"')
    (repository.path / "m/1/model.onnx").rename(repository.path / "m/1/net.onnx")
    with Server(repository) as server:
        assert version_served(server) == ("1", 1)


def test_r21_a_missing_model_file_names_what_is_there(repository):
    repository.onnx("m", plus(1))
    (repository.path / "m/1/model.onnx").rename(repository.path / "m/1/modell.onnx")
    fails(repository, "m/1/model.onnx", "found `modell.onnx`")


def external(path):
    """`y = x + w`, its weights in a file beside it."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [512], np.full(512, 7, np.float32).tobytes(), raw=True)
    model = graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", "FP32", ["n", 512])],
        [("y", "FP32", ["n", 512])],
        [weights],
    )
    path.parent.mkdir(parents=True)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
@pytest.mark.parametrize("place", ["m/1/model.onnx", "m/1/model.onnx/model.onnx"])
def test_r21_external_data_and_the_directory_form(repository, backend, place):
    external(repository.path / place)
    repository.config("m", f'backend: "{backend}"')
    with Server(repository) as server:
        answer = infer(server, "m", [tensor("x", "FP32", [1, 512], [1] * 512)])
        assert answer.json["outputs"][0]["data"] == [8] * 512


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_r21_missing_external_data_fails_the_load(repository, backend):
    external(repository.path / "m/1/model.onnx")
    (repository.path / "m/1/weights.bin").unlink()
    repository.config("m", f'backend: "{backend}"')
    fails(repository, "weights.bin")


def test_r23_a_name_in_two_repositories_is_unavailable(tmp_path):
    first, second = Repository(tmp_path / "1"), Repository(tmp_path / "2")
    first.onnx("m", plus(1))
    first.onnx("only", plus(1))
    second.onnx("m", plus(2))
    with Server(f"--model-repository={first}", f"--model-repository={second}", "--exit-on-error=false") as server:
        assert get(server, "/v2/models/only/ready").status == 200
        assert get(server, "/v2/models/m/ready").status == 400
        assert "failed to load 'm', failed to poll from model repository: the name is not unique" in server.log
        assert index(server)[0] == {
            "name": "m",
            "state": "UNAVAILABLE",
            "reason": "model appears in two or more repositories",
        }
        assert get(server, "/v2/health/ready").status == 400


def test_r23_a_repository_given_twice_counts_once(repository):
    repository.onnx("m", plus(1))
    with Server(f"--model-repository={repository}", f"--model-repository={repository}") as server:
        assert get(server, "/v2/models/m/ready").status == 200
