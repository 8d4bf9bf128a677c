"""`generate` and `generate_stream`: inputs, parameters and outputs as members of one JSON object."""

import json

import pytest

from http_client import connect, get, post, request, send
from repository import DATATYPES, Repository
from server import Server

KINDS = {name: kind for name, (_, _, kind) in DATATYPES.items()}


def scripted(repository, name, tensors, batch=0, **script):
    """A mock whose outputs `<name>_out` are its inputs; `tensors` are (name, datatype, dims)."""
    inputs = "".join(f'input {{ name: "{n}" data_type: {KINDS[d]} dims: {dims} }}\n' for n, d, dims in tensors)
    outputs = "".join(f'output {{ name: "{n}_out" data_type: {KINDS[d]} dims: {dims} }}\n' for n, d, dims in tensors)
    script = {"output": "echo", **script}
    parameters = "".join(f'parameters {{ key: "mock.{k}" value {{ string_value: "{v}" }} }}\n' for k, v in script.items())
    (repository.path / name / "1").mkdir(parents=True)
    repository.config(name, f'backend: "mock" max_batch_size: {batch}\n{inputs}{outputs}{parameters}')


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("generate"))
    scripted(repository, "text", [("text", "BYTES", [1])])
    scripted(repository, "batched", [("text", "BYTES", [1])], batch=8)
    scripted(repository, "two", [("text", "BYTES", [1]), ("number", "INT32", [-1])])
    scripted(repository, "sixteen", [("x", "FP32", [16])], batch=8)
    scripted(repository, "failing", [("text", "BYTES", [1])], fail_every=1)
    scripted(repository, "named", [("id", "BYTES", [1]), ("parameters", "INT32", [1])])
    for datatype in KINDS:
        scripted(repository, datatype.lower(), [("x", datatype, [-1])])
    with Server(repository) as running:
        yield running


def generate(server, model, body, call="generate"):
    return post(server, f"/v2/models/{model}/{call}", body)


def event(answer):
    """The one event of a stream."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body.startswith(b"data: ") and answer.body.endswith(b"\n\n")
    text = answer.body[len("data: ") : -2]
    assert b"\n" not in text
    return json.loads(text)


def test_h17_a_value_in_and_a_value_out(server):
    answer = generate(server, "text", {"text": "hello"})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == b'{"model_name":"text","model_version":"1","text_out":"hello"}'
    assert generate(server, "text", {"text": ["hello"]}).json["text_out"] == "hello"
    assert generate(server, "text/versions/1", {"text": "hello"}).json["text_out"] == "hello"


def test_h17_members_are_in_the_order_of_their_names(server):
    answer = generate(server, "two", {"number": [1, 2], "text": "é\n\"", "id": "a"})
    assert list(answer.json.items()) == [
        ("id", "a"),
        ("model_name", "two"),
        ("model_version", "1"),
        ("number_out", [1, 2]),
        ("text_out", 'é\n"'),
    ]


@pytest.mark.parametrize(("given", "out"), [([], []), ([7], 7), (7, 7), ([1, 2, 3], [1, 2, 3])])
def test_h17_one_element_stands_alone(server, given, out):
    assert generate(server, "int32", {"x": given}).json["x_out"] == out


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("UINT64", [2**64 - 1, 0]),
        ("INT8", [-128, 127]),
        ("INT64", [2**63 - 1, -(2**63)]),
        ("FP32", [1.5, 1.0]),
        ("FP64", [0.1, 1e300]),
        ("BYTES", ["a", ""]),
    ],
)
def test_h17_datatypes(server, datatype, values):
    assert generate(server, datatype.lower(), {"x": values}).json["x_out"] == values
    assert generate(server, datatype.lower(), {"x": values[0]}).json["x_out"] == values[0]


def test_h40_not_a_number(server):
    answer = generate(server, "fp32", b'{"x":[NaN,-Infinity],"y":1}')
    assert b'"x_out":[NaN,-Infinity]' in answer.body


@pytest.mark.parametrize(
    ("model", "given", "out"),
    [
        ("batched", {"text": "a"}, "a"),
        ("batched", {"text": [["a"]]}, "a"),
        ("batched", {"text": ["a", "b"]}, ["a", "b"]),
        ("sixteen", {"x": list(range(32))}, list(range(32))),
    ],
)
def test_h17_elements_are_fitted_into_the_shape(server, model, given, out):
    answer = generate(server, model, given)
    assert answer.json[next(iter(given)) + "_out"] == out


@pytest.mark.parametrize(
    ("model", "given"),
    [("text", {"text": ["a", "b"]}), ("text", {"text": []}), ("sixteen", {"x": [1, 2]}), ("sixteen", {"x": 1})],
)
def test_h17_what_cannot_be_fitted_is_refused(server, model, given):
    answer = generate(server, model, given)
    name = next(iter(given))
    assert (answer.status, answer.error) == (
        400,
        f"The schema can not convert input '{name}' to tensor with proper shape",
    )


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("text", {"text": 5}, "input 'text'"),
        ("text", {"text": None}, "input 'text'"),
        ("text", {"text": {"a": 1}}, "input 'text'"),
        ("int32", {"x": "5"}, "input 'x'"),
        ("int32", {"x": 1.5}, "input 'x'"),
        ("int32", {"x": 2**31}, "2147483648 is not a valid INT32"),
        ("int32", {"x": [1, "a"]}, "input 'x'"),
        ("int32", {"x": [[1, 2], [3, 4]]}, "Shape does not match true shape of 'data' field"),
        ("fp16", {"x": 1}, "receiving FP16 data via JSON is not supported. Please use the binary data format for input x"),
        ("text", {}, "expected 1 inputs but got 0 inputs for model 'text'"),
        ("text", b'{"text":"a","text":"b"}', "input 'text' already exists in request"),
        ("text", b"[1]", "failed to parse the request JSON buffer"),
        ("text", b"null", "failed to parse the request JSON buffer"),
        ("text", b"", "failed to parse the request JSON buffer"),
        ("text", b'{"text":', "failed to parse the request JSON buffer"),
        ("text", b'{"text":"a"} x', "failed to parse the request JSON buffer"),
        ("text", b'{"text":' + b"[" * 100_000, "failed to parse the request JSON buffer"),
        ("text", b'{"text":' + b"[" * 200 + b"]" * 200 + b"}", "400"),
        ("text", {"text": "a", "id": 5}, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ("text", {"text": "a", "more": None}, "parameter 'more' has invalid type. It should be either 'int', 'bool', or 'string'."),
        ("text", {"text": "a", "inputs": []}, "parameter 'inputs' has invalid type"),
        (
            "text",
            {"text": "a", "parameters": {"n": [1]}},
            "Converting keyword: 'parameters': parameter 'n' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (
            "text",
            {"text": "a", "parameters": "str"},
            "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object",
        ),
    ],
)
def test_h17_h44_what_is_wrong_before_the_model_runs_is_a_plain_answer(server, call, model, body, expected):
    answer = generate(server, model, body, call)
    assert answer.status == 400
    assert expected in answer.error or expected == "400"


def test_h17_other_members_are_parameters(server):
    body = {"text": "a", "s": "x", "i": -1, "b": True, "f": 1.5, "triton_x": 1, "priority": 1, "binary_data_output": True}
    assert generate(server, "text", body).status == 200
    assert generate(server, "text", {"parameters": {"text": "inside", "more": 1}}).json["text_out"] == "inside"


def test_h17_inputs_may_have_any_name(server):
    answer = generate(server, "named", {"id": "a", "parameters": 7}).json
    assert (answer["id_out"], answer["parameters_out"], answer["id"]) == ("a", 7, "a")


def test_h17_the_models_error_is_an_answer(server):
    answer = generate(server, "failing", {"text": "a"})
    assert (answer.status, "mock.fail_every" in answer.error) == (500, True)


def test_h17_a_stream_is_one_event(server):
    answer = generate(server, "text", {"text": "a\nb", "id": "i"}, "generate_stream")
    assert answer.status == 200
    assert event(answer) == {"id": "i", "model_name": "text", "model_version": "1", "text_out": "a\nb"}
    assert event(generate(server, "text/versions/1", {"text": "a"}, "generate_stream"))["text_out"] == "a"


def test_h44_the_models_error_is_an_event(server):
    answer = generate(server, "failing", {"text": "a"}, "generate_stream")
    assert answer.status == 500
    assert list(event(answer)) == ["error"]


@pytest.mark.parametrize("call", ["generate", "generate_stream"])
def test_h17_methods_models_and_paths(server, call):
    assert get(server, f"/v2/models/text/{call}").status == 405
    assert request(server.http, "PUT", f"/v2/models/text/{call}", {"text": "a"}).status == 405
    assert generate(server, "text", {"text": "a"}, f"{call}/").status == 404
    for model in ("nope", "text/versions/9"):
        answer = generate(server, model, {"text": "a"}, call)
        assert (answer.status, "Request for unknown model" in answer.error) == (404, True)


def test_h28_streams_one_after_the_other_on_a_connection(server):
    with connect(server.http) as connection:
        for text in ("a", "b"):
            answer = send(connection, "POST", "/v2/models/text/generate_stream", json.dumps({"text": text}))
            assert event(answer)["text_out"] == text
