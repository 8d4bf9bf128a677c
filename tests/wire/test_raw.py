"""Raw binary requests: a body that is the one input's data and nothing else."""

import numpy as np
import pytest

from http_client import HEADER_LENGTH, infer, post, tensor
from repository import Repository, identity
from server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("raw"))

    def model(name, datatype, dims, batch=0):
        shape = [f"d{axis}" if dim == -1 else dim for axis, dim in enumerate(dims)]
        kind = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING", "BOOL": "TYPE_BOOL"}[datatype]
        io = f"data_type: {kind} dims: {dims}"
        config = f"""max_batch_size: {batch} input {{ name: "INPUT0" {io} }} output {{ name: "OUTPUT0" {io} }}"""
        repository.onnx(name, identity(datatype, (["batch"] if batch else []) + shape), config=config)

    model("batched", "FP32", [16], batch=8)
    model("batched_variable", "FP32", [-1], batch=8)
    model("fixed", "FP32", [2, 3])
    model("variable", "FP32", [-1])
    model("variable_rows", "FP32", [-1, 3])
    model("two_variable", "FP32", [-1, -1])
    model("flags", "BOOL", [-1])
    model("strings", "BYTES", [-1])
    model("string", "BYTES", [1])
    model("batched_string", "BYTES", [1], batch=8)
    repository.generate("addsub-int32", "addsub")
    with Server(repository) as running:
        yield running


def raw(server, model, data, header="0"):
    return post(server, f"/v2/models/{model}/infer", data, {HEADER_LENGTH: header})


def floats(count):
    return np.arange(count, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("model", "data", "shape"),
    [
        ("batched", floats(16), [1, 16]),
        ("batched_variable", floats(4), [1, 4]),
        ("batched_variable", floats(0), [1, 0]),
        ("fixed", floats(6), [2, 3]),
        ("variable", floats(2), [2]),
        ("variable_rows", floats(6), [2, 3]),
        ("flags", b"\1\0\1", [3]),
    ],
)
def test_h11_the_body_is_the_input(server, model, data, shape):
    answer = raw(server, model, data)
    assert answer.status == 200, answer.body
    head, blob = answer.parts()
    output = head["outputs"][0]
    assert (list(head), head["model_name"]) == (["model_name", "model_version", "outputs"], model)
    assert (output["shape"], output["parameters"], blob) == (shape, {"binary_data_size": len(data)}, data)


@pytest.mark.parametrize("text", [b"hello", b"\5\0\0\0hello", b"", b"\xff\0"])
@pytest.mark.parametrize(("model", "shape"), [("string", [1]), ("batched_string", [1, 1])])
def test_h11_a_string_is_sent_without_its_length(server, model, shape, text):
    head, blob = raw(server, model, text).parts()
    assert head["outputs"][0]["shape"] == shape
    assert blob == len(text).to_bytes(4, "little") + text


def test_h11_without_elements_the_answer_is_json(server):
    answer = raw(server, "variable", b"")
    assert (answer.headers[HEADER_LENGTH], answer.headers["content-type"]) == (None, "application/json")
    assert answer.json["outputs"][0] == {
        "name": "OUTPUT0",
        "datatype": "FP32",
        "shape": [0],
        "parameters": {"binary_data_size": 0},
    }


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("batched", floats(32), "input byte size mismatch for input 'raw_input' for model 'batched'. Expected 64, got 128"),
        ("batched", b"", "input byte size mismatch for input 'raw_input' for model 'batched'. Expected 64, got 0"),
        ("variable", b"\0" * 7, "input byte size mismatch for input 'raw_input' for model 'variable'. Expected 4, got 7"),
        (
            "two_variable",
            floats(4),
            "The shape of the raw input 'INPUT0' can not be deduced because there are more than one variable-sized dimension",
        ),
        (
            "addsub",
            floats(16),
            "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in 'addsub' model configuration",
        ),
        ("strings", b"hello", "For BYTE datatype raw input 'INPUT0', the model must have input shape [1]"),
    ],
)
def test_h11_what_does_not_fit_is_refused(server, model, data, expected):
    answer = raw(server, model, data)
    assert (answer.status, answer.error) == (400, f"[request id: <id_unknown>] {expected}")


def test_h11_version_and_unknown_model(server):
    answer = post(server, "/v2/models/variable/versions/1/infer", floats(2), {HEADER_LENGTH: "0"})
    assert answer.parts()[1] == floats(2)
    assert raw(server, "nope", floats(2)).status == 404


@pytest.mark.parametrize("value", ["-1", "3", "4294967296", "99999999999999999999"])
def test_h9_a_length_out_of_the_body_is_refused(server, value):
    answer = raw(server, "variable", b"{}", value)
    expected = f"inference header size should be in range (0, 2), got: {value}"
    assert (answer.status, answer.error) == (400, expected)


@pytest.mark.parametrize("value", ["abc", "", "0x10", "1e2", "0.0", "1.5", "12abc"])
def test_h9_a_length_that_is_no_number_is_refused(server, value):
    answer = raw(server, "variable", floats(2), value)
    assert answer.status == 400
    assert "Unable to parse Inference-Header-Content-Length" in answer.error


def test_h11_is_for_the_header_alone(server):
    """Without the header an empty body is a mistake, not an input without elements."""
    answer = post(server, "/v2/models/variable/infer", b"")
    assert (answer.status, "failed to parse" in answer.error) == (400, True)


def test_h10_a_named_output_says_for_itself(server):
    """`binary_data_output` is for requests that name no output."""
    inputs = [tensor("INPUT0", "FP32", [2], [1, 2])]
    binary = {"parameters": {"binary_data_output": True}}
    for outputs, is_binary in [
        ([], True),
        ([{"name": "OUTPUT0"}], False),
        ([{"name": "OUTPUT0", "parameters": {}}], False),
        ([{"name": "OUTPUT0", "parameters": {"binary_data": False}}], False),
        ([{"name": "OUTPUT0", "parameters": {"binary_data": True}}], True),
    ]:
        answer = infer(server, "variable", inputs, outputs=outputs, **binary)
        assert (answer.status, answer.headers[HEADER_LENGTH] is not None) == (200, is_binary), outputs
