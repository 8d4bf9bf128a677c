"""Optional inputs: left out of requests, where the model's file has a default."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper

from http_client import get, infer, tensor
from repository import graph
from server import Server, serve_and_fail

BACKENDS = ["onnxruntime", "embedded"]
X = tensor("x", "FP32", [1, 4], [1, 2, 3, 4])
B = tensor("b", "FP32", [1, 4], [10, 10, 10, 10])


def addition(default=(5, 6, 7, 8), shape=("batch", 4), ir_version=None):
    """`y = x + b`, where `b` may have a default."""
    initializers = [] if default is None else [helper.make_tensor("b", TensorProto.FLOAT, [1, 4], default)]
    inputs = [("x", "FP32", shape), ("b", "FP32", shape)]
    model = graph([helper.make_node("Add", ["x", "b"], ["y"])], inputs, [("y", "FP32", shape)], initializers)
    if ir_version:
        model.ir_version = ir_version
    return model


def config(backend, b="optional: true"):
    return f"""backend: "{backend}" max_batch_size: 4
        input [
          {{ name: "x" data_type: TYPE_FP32 dims: 4 }},
          {{ name: "b" data_type: TYPE_FP32 dims: 4 {b} }}
        ]
        output {{ name: "y" data_type: TYPE_FP32 dims: 4 }}"""


def y(answer):
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_f6_the_graphs_default_stands_in(repository, backend):
    repository.onnx("m", addition(), config=config(backend))
    with Server(repository) as server:
        for _ in range(2):
            assert y(infer(server, "m", [X])) == [6, 8, 10, 12]
            assert y(infer(server, "m", [X, B])) == [11, 12, 13, 14]
            assert y(infer(server, "m", [B, X])) == [11, 12, 13, 14]
        three = tensor("x", "FP32", [3, 4], [0] * 12)
        assert y(infer(server, "m", [three])) == [5, 6, 7, 8] * 3
        inputs = get(server, "/v2/models/m/config").json["input"]
        assert [i["optional"] for i in inputs] == [False, True]
        assert [i["name"] for i in get(server, "/v2/models/m").json["inputs"]] == ["x", "b"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_f6_over_grpc(repository, backend):
    repository.onnx("m", addition(), config=config(backend))
    with Server(repository) as server, tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.ones((1, 4), np.float32))
        assert client.infer("m", [x]).as_numpy("y").tolist() == [[6, 7, 8, 9]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_f6_requests_with_and_without_it_at_once(repository, backend):
    repository.onnx("m", addition(), config=config(backend))
    with Server(repository) as server, ThreadPoolExecutor(8) as pool:
        asked = [(with_b, pool.submit(infer, server, "m", [X, B] if with_b else [X])) for with_b in [True, False] * 50]
        for with_b, future in asked:
            assert y(future.result()) == ([11, 12, 13, 14] if with_b else [6, 8, 10, 12])


def test_f6_counts_are_refused_in_tritons_words(repository):
    repository.onnx("m", addition(), config=config("onnxruntime"))
    start = "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got"
    with Server(repository) as server:
        for inputs, text in (
            ([], "0 inputs for model 'm'. Got input(s) [], but missing required input(s) ['x']."),
            ([B], "1 inputs for model 'm'. Got input(s) ['b'], but missing required input(s) ['x']."),
        ):
            answer = infer(server, "m", inputs)
            assert (answer.status, answer.error) == (400, f"{start} {text} Please provide all required input(s).")
        assert infer(server, "m", [X, X]).status == 400
        answer = infer(server, "m", [X, tensor("z", "FP32", [1, 4], [0] * 4)])
        assert "unexpected inference input 'z' for model 'm'" in answer.error
        answer = infer(server, "m", [X, tensor("b", "FP32", [2, 4], [0] * 8)])
        assert "batch size does not match" in answer.error


@pytest.mark.parametrize("backend", BACKENDS)
def test_f6_a_default_that_the_configuration_does_not_name_is_a_constant(repository, backend):
    repository.onnx("m", addition(), config=f'backend: "{backend}"')
    with Server(repository) as server:
        assert [i["name"] for i in get(server, "/v2/models/m").json["inputs"]] == ["x"]
        assert y(infer(server, "m", [X])) == [6, 8, 10, 12]
        assert infer(server, "m", [X, B]).status == 400


@pytest.mark.parametrize("backend", BACKENDS)
def test_f6_an_input_with_a_default_may_be_required(repository, backend):
    repository.onnx("m", addition(), config=config(backend, ""))
    with Server(repository) as server:
        assert y(infer(server, "m", [X, B])) == [11, 12, 13, 14]
        answer = infer(server, "m", [X])
        assert answer.status == 400
        assert "expected 2 inputs but got 1 inputs" in answer.error


@pytest.mark.parametrize("backend", BACKENDS)
def test_f6_what_the_model_needs_cannot_be_optional(repository, backend):
    repository.onnx("m", addition(None), config=config(backend))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "configuration says that input 'b' is optional, but the model requires it: its file has no default for it" in log


def test_f6_before_ir_version_4_there_are_no_defaults(repository):
    repository.onnx("m", addition(ir_version=3), config=config("onnxruntime"))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "'m', configuration expects 2 inputs, model provides 1" in log


def test_f6_without_batches(repository):
    repository.onnx("m", addition(shape=(1, 4)), config=config("onnxruntime").replace(
        "max_batch_size: 4", "max_batch_size: 0").replace("dims: 4", "dims: [ 1, 4 ]"))
    with Server(repository) as server:
        assert y(infer(server, "m", [X])) == [6, 8, 10, 12]


def test_f6_warm_up_may_leave_it_out(repository):
    warmup = """model_warmup { name: "w" batch_size: 2 inputs { key: "x" value {
        data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }"""
    repository.onnx("m", addition(), config=config("onnxruntime") + warmup)
    with Server(repository) as server:
        assert y(infer(server, "m", [X])) == [6, 8, 10, 12]


def test_f6_the_mock_takes_zeros(repository):
    repository.mock("m", config='input { name: "z" data_type: TYPE_FP32 dims: [ -1, 2 ] optional: true }')
    with Server(repository) as server:
        for batch in (1, 3):
            inputs = [tensor("x", "FP32", [batch, 4], [1] * 4 * batch)]
            assert infer(server, "m", inputs).status == 200
            more = tensor("z", "FP32", [batch, 5, 2], [0] * 10 * batch)
            assert infer(server, "m", [*inputs, more]).status == 200
