"""Parameters of requests, which a scripted model gives back with its answers; headers that become parameters."""

import json

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from http_client import infer, post, tensor
from repository import Repository
from server import Server, serve_and_fail

INPUTS = [tensor("x", "FP32", [1, 4], [0] * 4)]
KINDS = {"text": "ü\n", "whole": -(2**63), "real": 1.5, "yes": True, "no": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("parameters"))
    repository.mock("echo", echo_parameters="true")
    repository.mock("mute")
    patterns = ["--http-header-forward-pattern=^my_|X-Trace", "--grpc-header-forward-pattern=^my_|X-Trace"]
    with Server(repository, "--log-verbose=1", *patterns) as running:
        yield running


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def given_back(server, parameters, headers=None):
    body = json.dumps({"inputs": INPUTS, "parameters": parameters})
    answer = post(server, "/v2/models/echo/infer", body, headers)
    assert answer.status == 200, answer.body
    return answer.json.get("parameters")


def test_h12_parameters_of_every_kind(server):
    assert given_back(server, KINDS) == KINDS
    assert given_back(server, {}) is None
    body = json.dumps({"inputs": INPUTS, "parameters": KINDS, "id": "i"})
    members = list(post(server, "/v2/models/echo/infer", body).json)
    assert members == ["id", "model_name", "model_version", "parameters", "outputs"]
    assert "parameters" not in infer(server, "mute", INPUTS, parameters=KINDS).json


def test_h12_large_numbers_are_reals(server):
    assert given_back(server, {"large": 2**63}) == {"large": float(2**63)}


def test_h12_the_protocols_own_names_are_not_the_users(server):
    own = {"binary_data_output": False, "priority": 1, "timeout": 5, "sequence_id": "a", "sequence_start": True}
    assert given_back(server, {**own, "mine": 1, "Triton_x": 2}) == {"mine": 1, "Triton_x": 2}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"a": None}, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
        ({"a": [1]}, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
        ({"a": {"b": 1}}, "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
        (
            {"triton_x": 1},
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
        ),
        (
            {"priority": -1},
            "Unable to parse 'priority': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        (
            {"timeout": 5.5},
            "Unable to parse 'timeout': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
        ({"sequence_start": 1}, "Unable to parse 'sequence_start': attempt to access JSON non-boolean as boolean"),
        ({"sequence_id": 1.5}, "Unable to parse 'sequence_id': attempt to access JSON non-string as string"),
        (
            {"binary_data_output": "x"},
            "Unable to parse 'binary_data_output': attempt to access JSON non-boolean as boolean",
        ),
    ],
)
def test_h12_invalid_parameters_are_refused_in_tritons_words(server, parameters, expected):
    answer = infer(server, "echo", INPUTS, parameters=parameters)
    assert (answer.status, answer.error) == (400, expected)


def test_h12_parameters_through_the_http_client(server):
    data = httpclient.InferInput("x", [1, 4], "FP32")
    data.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with httpclient.InferenceServerClient(server.http) as client:
        answer = client.infer("echo", [data], parameters=KINDS, priority=1, timeout=5).get_response()
    assert answer["parameters"] == KINDS


def message(**parameters):
    request = pb.ModelInferRequest(model_name="echo", id="i")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(b"\0" * 16)
    for key, value in parameters.items():
        kind = {str: "string_param", int: "int64_param", float: "double_param", bool: "bool_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    return request


def values(parameters):
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()}


def test_g7_parameters_of_every_kind(stub):
    assert values(stub.ModelInfer(message(**KINDS)).parameters) == KINDS
    assert values(stub.ModelInfer(message(priority=1, timeout=5, sequence_id="a", mine=1)).parameters) == {"mine": 1}
    answer = next(stub.ModelStreamInfer(iter([message(**KINDS)])))
    assert values(answer.infer_response.parameters) == {**KINDS, "triton_final_response": True}


@pytest.mark.parametrize(
    ("key", "kind", "value", "expected"),
    [
        ("a", "uint64_param", 5, "invalid value type for 'a' parameter, expected int64_param, bool_param, or string_param."),
        ("priority", "string_param", "x", "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
        ("priority", "int64_param", -1, "invalid value for 'priority', expected value >= 0."),
        ("timeout", "uint64_param", 1, "invalid value type for 'timeout' parameter, expected int64_param."),
        ("sequence_end", "int64_param", 1, "invalid value type for 'sequence_end' parameter, expected bool_param."),
        (
            "triton_x",
            "bool_param",
            True,
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with"
            " 'triton_' are allowed: triton_enable_empty_final_response",
        ),
    ],
)
def test_g7_invalid_parameters_are_refused_in_tritons_words(stub, key, kind, value, expected):
    request = message()
    setattr(request.parameters[key], kind, value)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, expected)


def test_g7_parameters_through_the_grpc_client(server):
    data = grpcclient.InferInput("x", [1, 4], "FP32")
    data.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with grpcclient.InferenceServerClient(server.grpc) as client:
        answer = client.infer("echo", [data], parameters={"mine": "a"}, headers={"my_header": "h"}).get_response()
    assert values(answer.parameters) == {"mine": "a", "my_header": "h"}


def test_h29_headers_become_parameters(server):
    headers = {"MY_one": "1", "xx-x-trace-y": "t", "other": "no", "not_my_one": "no"}
    assert given_back(server, {"mine": 1}, headers) == {"mine": 1, "my_one": "1", "xx-x-trace-y": "t"}
    assert given_back(server, {"my_one": 5}, headers)["my_one"] == "1"


def test_g15_metadata_becomes_parameters(stub):
    metadata = [("my_one", "1"), ("my_one", "2"), ("a-x-trace", "t"), ("other", "no"), ("my_bytes-bin", b"\0\xff")]
    answer = stub.ModelInfer(message(mine=1, my_one=5), metadata=metadata)
    assert values(answer.parameters) == {"mine": 1, "my_one": "2", "a-x-trace": "t"}
    answer = next(stub.ModelStreamInfer(iter([message()]), metadata=metadata)).infer_response
    assert values(answer.parameters) == {"my_one": "2", "a-x-trace": "t", "triton_final_response": True}


@pytest.mark.parametrize("flag", ["--http-header-forward-pattern", "--grpc-header-forward-pattern"])
def test_c24_an_invalid_pattern_ends_the_start(repository, flag):
    code, log = serve_and_fail(repository, f"{flag}=[")
    assert (code, flag in log) == (1, True)


def test_c9_verbose_logs_show_parameters(server):
    infer(server, "mute", INPUTS, id="seen", parameters={"a": 1, "b": "line\nbreak"})
    server.wait_for("[request id: seen] parameters of a request for model 'mute': a=1, b=line\\nbreak")
