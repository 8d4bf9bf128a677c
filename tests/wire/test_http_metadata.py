"""HTTP: metadata of the server and of models, and configurations as JSON."""

import pytest

from http_client import get
from repository import plus
from server import Server, run


def test_h2_c39_server_metadata(simple):
    answer = get(simple, "/v2")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    metadata = answer.json
    assert sorted(metadata) == ["extensions", "name", "version"]
    assert metadata["name"] == "triton"
    major, minor, patch = metadata["version"].split(".")
    assert int(major) == 2 and int(minor) >= 51 and int(patch) >= 0
    # Skep names itself before Triton's extensions.
    own = run("--version").stdout.split()[-1]
    assert metadata["extensions"][0] == f"skep({own})"


def test_h3_extensions_that_are_served_are_listed(simple):
    wanted = {"binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"}
    assert wanted <= set(get(simple, "/v2").json["extensions"])


def test_c23_server_name_is_what_id_says(repository):
    with Server(repository, "--id=kitchen") as server:
        assert get(server, "/v2").json["name"] == "kitchen"


@pytest.mark.parametrize("path", ["/v2/models/addsub", "/v2/models/addsub/versions/1"])
def test_h2_model_metadata_has_the_batch_dimension(simple, path):
    tensors = [{"name": None, "datatype": "INT32", "shape": [-1, 16]}]
    assert get(simple, path).json == {
        "name": "addsub",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{**tensors[0], "name": name} for name in ("INPUT0", "INPUT1")],
        "outputs": [{**tensors[0], "name": name} for name in ("OUTPUT0", "OUTPUT1")],
    }


def test_h2_model_metadata_lists_the_versions_that_are_served(repository):
    for version in (1, 2, 10):
        repository.onnx("m", plus(version), version, config="version_policy { specific { versions: [1, 10] } }")
    with Server(repository) as server:
        assert get(server, "/v2/models/m").json["versions"] == ["1", "10"]
        assert get(server, "/v2/models/m/versions/10").json["versions"] == ["10"]


@pytest.mark.parametrize("path", ["/v2/models/addsub/config", "/v2/models/addsub/versions/1/config"])
def test_h4_f24_config_has_numbers_enum_names_and_defaults(simple, path):
    config = get(simple, path).json
    assert config["name"] == "addsub"
    assert (config["platform"], config["backend"]) == ("onnxruntime_onnx", "onnxruntime")
    assert config["max_batch_size"] == 4
    assert config["default_model_filename"] == "model.onnx"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    # 64-bit integers are numbers, not strings as proto3's JSON has them.
    assert config["input"][0]["dims"] == [16]
    assert config["input"][0]["data_type"] == "TYPE_INT32"
    assert config["input"][0]["format"] == "FORMAT_NONE"
    # In the order of the protocol's own files.
    assert list(config)[:6] == ["name", "platform", "backend", "runtime", "version_policy", "max_batch_size"]
    # Defaults are present.
    assert config["input"][0]["optional"] is False
    assert config["input"][0]["is_shape_tensor"] is False
    assert config["parameters"] == {}
    assert config["model_warmup"] == []
    assert config["optimization"]["input_pinned_memory"] == {"enable": True}
    assert config["dynamic_batching"]["preferred_batch_size"] == [4]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    group = config["instance_group"][0]
    assert (group["name"], group["kind"], group["count"]) == ("addsub", "KIND_CPU", 2)


def test_h4_f24_large_numbers_stay_numbers(repository):
    repository.onnx("m", plus(1), config="version_policy { specific { versions: [1, 9007199254740993] } }")
    with Server(repository) as server:
        policy = get(server, "/v2/models/m/config").json["version_policy"]
        assert policy == {"specific": {"versions": [1, 9007199254740993]}}


@pytest.mark.parametrize("suffix", ["", "/config"])
def test_h23_h24_h25_unknown_models_are_404(simple, suffix):
    answer = get(simple, f"/v2/models/nosuch{suffix}")
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'nosuch' is not found")


@pytest.mark.parametrize("suffix", ["", "/config"])
def test_h33_unknown_versions_are_named(simple, suffix):
    answer = get(simple, f"/v2/models/addsub/versions/2{suffix}")
    assert answer.status == 404
    assert answer.error == "Request for unknown model: 'addsub' version 2 is not found"


@pytest.mark.parametrize("version", ["abc", "1.0", "-1", "%2b1"])
def test_h33_paths_with_a_version_that_is_not_a_number_are_unknown(simple, version):
    answer = get(simple, f"/v2/models/addsub/versions/{version}")
    assert (answer.status, answer.error) == (404, "Not Found")


def test_h33_numbers_that_are_not_versions_are_refused(simple):
    answer = get(simple, "/v2/models/addsub/versions/99999999999999999999")
    assert answer.status == 400
    assert answer.error.startswith("failed to get model version from specified version string '99999999999999999999'")
    answer = get(simple, "/v2/models/addsub/versions/0")
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'addsub' version 0 is not found")
    assert get(simple, "/v2/models/addsub/versions/%ff").status == 400
    assert get(simple, "/v2/models/addsub/versions/01").json["versions"] == ["1"]


@pytest.mark.parametrize("name", ["%ff", "%00", "..", "%2e%2e%2f", "a" * 5000, "%20"])
def test_h23_odd_model_names_get_an_error_body(simple, name):
    answer = get(simple, f"/v2/models/{name}/config")
    assert answer.status in (400, 404)
    assert answer.error


def test_r3_model_names_may_hold_spaces_and_other_letters(repository):
    repository.onnx("ein Mödell", plus(1))
    with Server(repository) as server:
        answer = get(server, "/v2/models/ein%20M%C3%B6dell")
        assert (answer.status, answer.json["name"]) == (200, "ein Mödell")
