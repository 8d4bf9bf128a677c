"""Load requests that bring a configuration or a model's files."""

import base64
import json
from pathlib import Path

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from http_client import get, infer, post, tensor
from repository import identity, plus
from server import Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
NOT_POLLED = "failed to load 'm', failed to poll from model repository"
CONFIG = json.dumps({"backend": "onnxruntime", "max_batch_size": 3})


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The temporary directory of servers."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def explicit(repository, temporary):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    with Server(repository, "--model-control-mode=explicit") as server:
        server.repository = repository
        yield server


@pytest.fixture(params=["http", "grpc"])
def client(request, explicit):
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    with module.InferenceServerClient(getattr(explicit, request.param)) as client:
        client.server = explicit
        yield client


def load(server, name="m", **parameters):
    return post(server, f"/v2/repository/models/{name}/load", {"parameters": parameters})


def batch_size(server):
    return get(server, "/v2/models/m/config").json["max_batch_size"]


def served(server, name="m"):
    answer = infer(server, name, ZEROS)
    assert answer.status == 200, answer.body
    return answer.json["model_version"], answer.json["outputs"][0]["data"][0]


def kept(temporary):
    """The directories of models that clients sent. ONNX Runtime leaves a file of its own beside them."""
    return list(temporary.glob("skep-model-*"))


def encoded(model):
    return base64.b64encode(model.SerializeToString()).decode()


def test_r10_a_config_stays_until_an_unload(client):
    client.load_model("m")
    assert batch_size(client.server) == 8
    client.load_model("m", config=CONFIG)
    assert batch_size(client.server) == 3
    client.load_model("m")
    assert batch_size(client.server) == 3
    client.unload_model("m")
    client.load_model("m")
    assert batch_size(client.server) == 8
    assert served(client.server) == ("1", 1)


def test_r10_a_config_stays_until_a_file_changes(explicit):
    assert load(explicit, config=CONFIG).status == 200
    explicit.repository.config("m", "max_batch_size: 5 ")
    assert batch_size(explicit) == 3
    assert load(explicit).status == 200
    assert batch_size(explicit) == 5


def test_r10_a_config_goes_through_the_same_checks(explicit):
    wrong = json.dumps({"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}], "max_batch_size": 2})
    answer = load(explicit, config=wrong)
    assert answer.status == 400
    assert answer.error.startswith("load failed for model 'm': version 1 is at UNAVAILABLE state: Invalid argument: ")
    assert "'z'" in answer.error
    assert load(explicit, config=json.dumps({"name": "n"})).error == (
        NOT_POLLED + ": unexpected directory name 'm' for model 'n', directory name must equal model name"
    )


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "EOF"),
        ("", "EOF"),
        ("[]", "invalid type: sequence"),
        (base64.b64encode(b"{}").decode(), "expected value"),
        ('{"max_batchsize":3}', "unrecognized field name 'max_batchsize'"),
        ('{"max_batch_size":"x"}', "field `max_batch_size`"),
        ('{"max_batch_size":1.5}', "field `max_batch_size`"),
        ('{"input":3}', "field `input`"),
        ('{"instance_group":[{"kind":"KIND_TPU"}]}', "field `instance_group[0].kind`"),
    ],
)
def test_r10_what_is_no_config_is_refused_by_name(explicit, config, text):
    assert load(explicit).status == 200
    answer = load(explicit, config=config)
    assert answer.status == 500
    assert answer.error.startswith(f"{NOT_POLLED}: parameter `config`: ")
    assert text in answer.error
    assert (batch_size(explicit), served(explicit)) == (8, ("1", 1))


@pytest.mark.parametrize("config", ['{"max_batch_size":"3"}', '{"maxBatchSize":3}'])
def test_r10_json_is_protobufs(explicit, config):
    assert load(explicit, config=config).status == 200
    assert batch_size(explicit) == 3


def test_r11_files_make_a_model(client, temporary):
    client.load_model("m")
    files = {"file:7/model.onnx": plus(70).SerializeToString(), "file:notes/a.txt": b"text"}
    client.load_model("m", config=CONFIG, files=files)
    assert served(client.server) == ("7", 70)
    (made,) = kept(temporary)
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == [
        "7/model.onnx",
        "notes/a.txt",
    ]
    assert made.stat().st_mode & 0o077 == 0
    # A load without parameters is the repository's again.
    client.load_model("m")
    assert served(client.server) == ("1", 1)
    client.server.wait_for("unloaded model `m` version 7")
    assert kept(temporary) == []


def test_r11_a_model_that_the_repository_does_not_have(client, temporary):
    client.load_model("new", config=CONFIG, files={"file:1/model.onnx": plus(5).SerializeToString()})
    assert served(client.server, "new") == ("1", 5)
    with pytest.raises(InferenceServerException, match="failed to load 'new', failed to poll from model repository"):
        client.load_model("new")
    assert served(client.server, "new") == ("1", 5)
    client.unload_model("new")
    client.server.wait_for("unloaded model `new` version 1")
    assert kept(temporary) == []
    assert get(client.server, "/v2/models/new/ready").status == 400


def test_r11_files_are_gone_after_a_stop(explicit, temporary):
    assert load(explicit, config=CONFIG, **{"file:1/model.onnx": encoded(plus(2))}).status == 200
    assert len(kept(temporary)) == 1
    assert explicit.stop() == 0
    assert kept(temporary) == []


def test_r11_files_of_a_failed_load_are_gone(explicit, temporary):
    assert load(explicit).status == 200
    answer = load(explicit, config=CONFIG, **{"file:1/model.onnx": base64.b64encode(b"no ONNX").decode()})
    assert answer.status == 400
    assert "version 1 is at READY state: Invalid argument: " in answer.error
    assert kept(temporary) == []
    assert served(explicit) == ("1", 1)


def test_r11_files_need_a_config(explicit):
    answer = load(explicit, **{"file:1/model.onnx": encoded(plus(2))})
    assert answer.status == 500
    assert answer.error == NOT_POLLED + ": `file:` parameters need the parameter `config` beside them"


@pytest.mark.parametrize(
    "path",
    ["", "/", "..", "../x", "1/../../x", "1/..", "/etc/x", "1/", "1//model.onnx", "./x", "1/./x", "1\\x", "a\0b"],
)
def test_r11_nothing_leaves_the_models_directory(explicit, temporary, path):
    answer = load(explicit, config=CONFIG, **{"file:1/model.onnx": encoded(plus(2)), f"file:{path}": ""})
    assert answer.status == 500
    assert "does not name a file inside the model's directory" in answer.error
    assert kept(temporary) == []
    assert not Path("/etc/x").exists()
    assert not (temporary / "x").exists()


def test_r11_http_parameters_of_other_types(explicit):
    for value in (3, True, None, {"a": 1}, [1]):
        for key in ("config", "file:1/model.onnx", "foo"):
            answer = load(explicit, **{key: value})
            assert (answer.status, answer.error) == (500, "attempt to access JSON non-string as string")
    for parameters in (3, None, []):
        answer = post(explicit, "/v2/repository/models/m/load", {"parameters": parameters})
        assert (answer.status, answer.error) == (500, "attempt to get members for non-object")
    answer = load(explicit, foo="x")
    assert (answer.status, answer.error) == (400, "unrecognized load parameter 'foo'.")
    answer = load(explicit, config=CONFIG, **{"file:1/model.onnx": "!!!"})
    assert answer.status == 400
    assert "load parameter 'file:1/model.onnx' is not base64" in answer.error
    answer = post(explicit, "/v2/repository/models/m/load", b"{")
    assert answer.status == 500
    assert answer.error.startswith("failed to parse the request JSON buffer: ")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("config", {"bytes_param": b"{}"}, "invalid value type for load parameter 'config', expected string_param."),
        ("config", {"int64_param": 3}, "invalid value type for load parameter 'config', expected string_param."),
        ("config", {}, "invalid value type for load parameter 'config', expected string_param."),
        ("file:1/x", {"string_param": "x"}, "invalid value type for load parameter 'file:1/x', expected bytes_param."),
        ("foo", {"string_param": "x"}, "unrecognized load parameter 'foo'."),
    ],
)
def test_r11_grpc_parameters_of_other_types(explicit, key, value, text):
    with tritonclient.grpc.InferenceServerClient(explicit.grpc) as client:
        request = pb.RepositoryModelLoadRequest(
            model_name="m", parameters={key: pb.ModelRepositoryParameter(**value)}
        )
        with pytest.raises(Exception) as caught:
            client._client_stub.RepositoryModelLoad(request)
        assert caught.value.code().name == "INVALID_ARGUMENT"
        assert caught.value.details() == text


def test_r13_unload_parameters(explicit):
    with tritonclient.grpc.InferenceServerClient(explicit.grpc) as client:
        stub = client._client_stub
        for value in ({"string_param": "x"}, {"int64_param": 1}):
            with pytest.raises(Exception) as caught:
                parameters = {"unload_dependents": pb.ModelRepositoryParameter(**value)}
                stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m", parameters=parameters))
            assert caught.value.details() == (
                "invalid value type for 'unload_dependents' parameter, expected bool_param."
            )
        other = {"other": pb.ModelRepositoryParameter(bool_param=True)}
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m", parameters=other))
        explicit.wait_for("unload parameter `other` has no effect")
        client.unload_model("m", unload_dependents=True)
        client.unload_model("nosuch")


def test_r11_external_data_travels_beside_the_model(explicit):
    """The file's own name for its data is resolved beside it, in the temporary directory."""
    model = identity("FP32", ["n", 4])
    assert load(explicit, config=CONFIG, **{"file:1/model.onnx": encoded(model)}).status == 200
    answer = infer(explicit, "m", [tensor("INPUT0", "FP32", [2, 4], list(range(8)))])
    assert answer.json["outputs"][0]["data"] == list(range(8))
