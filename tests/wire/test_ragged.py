"""Ragged batches: requests of different shapes run together, flat, and the model is told of their sizes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from onnx import TensorProto, helper

from http_client import get, infer, tensor
from metrics import metric, wait_pending
from repository import graph
from server import Server, serve_and_fail

HOUR_US = 3_600_000_000
BATCH = 3
COLUMNS = [3, 1, 5]


def node(kind, inputs, *outputs):
    return helper.make_node(kind, inputs.split(), list(outputs))


def number(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def model():
    """Gives back what it is told of a batch, and twice its input."""
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2])
    nodes = [
        node("Mul", "X two", "TWICE"),
        node("Identity", "count", "COUNT"),
        node("Identity", "sum", "SUM"),
        node("Slice", "bounds from0 to_last", "starts"),
        node("Slice", "bounds from1 to_end", "ends"),
        node("Sub", "ends starts", "LENGTH"),
        node("Shape", "largest", "largest_shape"),
        node("Shape", "count", "requests"),
        node("Expand", "largest_shape requests", "LARGEST"),
        node("Identity", "shape", "SHAPE"),
        node("Identity", "flat", "FLAT"),
    ]
    inputs = [
        # In between: the order of the model's inputs is not that of the configuration.
        ("count", "INT32", ("n",)),
        ("sum", "FP32", ("n",)),
        ("X", "FP32", ("elements",)),
        ("bounds", "INT32", ("bounds",)),
        ("largest", "FP32", ("largest",)),
        ("shape", "INT32", ("rows", 1)),
        ("flat", "INT32", ("flat",)),
    ]
    outputs = [
        ("TWICE", "FP32", ("elements",)),
        ("COUNT", "INT32", ("n",)),
        ("SUM", "FP32", ("n",)),
        ("LENGTH", "INT32", ("m",)),
        ("LARGEST", "INT64", ("k",)),
        ("SHAPE", "INT32", ("rows", 1)),
        ("FLAT", "INT32", ("flat",)),
    ]
    constants = [two, number("from0", 0), number("from1", 1), number("to_last", -1), number("to_end", 2**31 - 1)]
    return graph(nodes, inputs, outputs, constants)


def told(kind, name, datatype="INT32"):
    return f'batch_input {{ kind: BATCH_{kind} target_name: "{name}" data_type: TYPE_{datatype} source_input: "X" }}\n'


BATCH_INPUTS = (
    told("ELEMENT_COUNT", "count")
    + told("ACCUMULATED_ELEMENT_COUNT", "sum", "FP32")
    + told("ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "bounds")
    + told("MAX_ELEMENT_COUNT_AS_SHAPE", "largest", "FP32")
    + told("ITEM_SHAPE", "shape")
    + told("ITEM_SHAPE_FLATTEN", "flat")
)


def per_request(name, datatype):
    return f'output {{ name: "{name}" data_type: TYPE_{datatype} dims: [ 1 ] reshape {{ shape: [ ] }} }}\n'


CONFIG = f"""max_batch_size: {BATCH} instance_group {{ count: 1 kind: KIND_CPU }}
input {{ name: "X" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }}
output {{ name: "TWICE" data_type: TYPE_FP32 dims: [ -1 ] }}
{per_request("COUNT", "INT32")} {per_request("SUM", "FP32")} {per_request("LENGTH", "INT32")}
{per_request("LARGEST", "INT64")}
output {{ name: "SHAPE" data_type: TYPE_INT32 dims: [ 1 ] }}
{per_request("FLAT", "INT32")}
batch_output {{ target_name: "TWICE" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" }}
{BATCH_INPUTS}
"""
TOGETHER = f"dynamic_batching {{ max_queue_delay_microseconds: {HOUR_US} }}"
EXPECTED = {
    "COUNT": [3, 1, 5],
    "SUM": [3, 4, 9],
    "LENGTH": [3, 1, 5],
    "LARGEST": [5, 5, 5],
    "SHAPE": [3, 1, 5],
    "FLAT": [3, 1, 5],
}


def x(columns, first=0):
    return [tensor("X", "FP32", [1, columns], list(range(first, first + columns)))]


def outputs(answer):
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json["outputs"]}


@pytest.fixture(params=["onnxruntime", "embedded"])
def ragged(request, repository):
    def write(config=CONFIG + TOGETHER):
        repository.onnx("ragged", model(), config=f'backend: "{request.param}" {config}')
        return repository

    return write


def test_f7_f9_s12_every_kind_tells_of_its_batch(ragged):
    with Server(ragged()) as server, ThreadPoolExecutor(BATCH) as pool:
        running = []
        for index, columns in enumerate(COLUMNS):
            running.append(pool.submit(infer, server, "ragged", x(columns, first=10 * index)))
            if index + 1 < BATCH:
                wait_pending(server, "ragged", index + 1)
        answers = [outputs(future.result()) for future in running]
        assert metric(server, "exec_count", "ragged") == 1
    for name, values in EXPECTED.items():
        assert [answer[name]["data"] for answer in answers] == [[value] for value in values], name
    for index, (columns, answer) in enumerate(zip(COLUMNS, answers, strict=True)):
        assert answer["TWICE"]["shape"] == [1, columns]
        assert answer["TWICE"]["data"] == [2 * (10 * index + place) for place in range(columns)]


def test_f9_a_request_alone_is_a_batch_as_well(ragged):
    with Server(ragged(CONFIG)) as server:
        got = outputs(infer(server, "ragged", x(4)))
    assert {name: got[name]["data"] for name in EXPECTED} == {
        "COUNT": [4], "SUM": [4], "LENGTH": [4], "LARGEST": [4], "SHAPE": [4], "FLAT": [4],
    }
    assert got["TWICE"]["data"] == [0, 2, 4, 6]


def test_f7_what_is_not_ragged_still_ends_a_batch(repository):
    """Two inputs: one may differ, the other may not."""
    repository.mock(
        config="""input { name: "r" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
            input { name: "z" data_type: TYPE_FP32 dims: [ -1 ] }
            dynamic_batching { max_queue_delay_microseconds: 3600000000 preferred_batch_size: 2 }""",
        max_batch_size=2,
    )

    def request(ragged, even):
        zeros = [("x", 4), ("r", ragged), ("z", even)]
        return infer(server, "mock", [tensor(n, "FP32", [1, size], [0] * size) for n, size in zeros])

    with Server(repository) as server, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(request, 1, 3)]
        wait_pending(server, "mock", 1)
        running.append(pool.submit(request, 2, 3))
        assert [future.result().status for future in running] == [200, 200]
        assert metric(server, "exec_count", "mock") == 1, "together"
        running = [pool.submit(request, 1, 3)]
        wait_pending(server, "mock", 1)
        # Another shape: the first goes alone.
        running.append(pool.submit(request, 1, 4))
        assert running[0].result().status == 200
        wait_pending(server, "mock", 1)
        running.append(pool.submit(request, 5, 4))
        assert [future.result().status for future in running] == [200, 200, 200]
        assert metric(server, "exec_count", "mock") == 3


def test_f9_the_clients_metadata_has_no_computed_inputs(ragged):
    with Server(ragged()) as server:
        shown = get(server, "/v2/models/ragged").json["inputs"]
        assert shown == [{"name": "X", "datatype": "FP32", "shape": [-1, -1]}]
        extra = infer(server, "ragged", [*x(1), tensor("count", "INT32", [1], [1])])
        assert extra.status == 400


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('source_input: "X"', 'source_input: "Q"', "unknown source input name 'Q'"),
        ("data_type: TYPE_INT32 source_input", "data_type: TYPE_INT64 source_input", "batch input data type must be"),
        ("allow_ragged_batch: true", "", "the model expects 1 dimensions"),
        ('target_name: "flat"', 'target_name: "nosuch"', "it has no batch input 'nosuch'"),
    ],
    ids=str,
)
def test_f9_what_does_not_fit_the_model_fails_the_load(repository, old, new, text):
    assert old in CONFIG
    repository.onnx("ragged", model(), config=CONFIG.replace(old, new))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert text in log
