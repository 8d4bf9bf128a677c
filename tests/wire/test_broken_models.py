"""Broken models among good ones: each fails with a reason that names it, and the good one is served."""

import onnx
import pytest
from onnx import TensorProto, helper

from http_client import get, infer, post, tensor
from repository import IR_VERSION, Repository, graph, plus
from server import Server

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
XY = [("x", "FP32", ["n", 4])], [("y", "FP32", ["n", 4])]


def node(operator, inputs, outputs, **attributes):
    return graph([helper.make_node(operator, inputs, outputs, **attributes)], *XY)


def truncated():
    data = plus(1).SerializeToString()
    return data[: len(data) // 2]


def flipped():
    data = bytearray(plus(1).SerializeToString())
    for index in range(0, len(data), 3):
        data[index] ^= 0x5A
    return bytes(data)


def no_graph():
    return onnx.ModelProto(ir_version=IR_VERSION, opset_import=[helper.make_opsetid("", 17)])


def future_opset():
    model = plus(1)
    model.opset_import[0].version = 9999
    return model


def short_weights():
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], [1] * 4)
    weights.ClearField("float_data")
    weights.raw_data = b"\0" * 7
    return graph([helper.make_node("Add", ["x", "w"], ["y"])], *XY, [weights])


def external(location):
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], [1] * 4)
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    return graph([helper.make_node("Add", ["x", "w"], ["y"])], *XY, [weights])


BROKEN = {
    "empty": lambda: b"",
    "text": lambda: b"this is no model",
    "truncated": truncated,
    "flipped": flipped,
    "zeros": lambda: b"\0" * 1000,
    "no graph": no_graph,
    "no output": lambda: graph([helper.make_node("Neg", ["x"], ["y"])], XY[0], []),
    "dangling input": lambda: node("Add", ["x", "nowhere"], ["y"]),
    "output that nothing computes": lambda: node("Neg", ["x"], ["z"]),
    "unknown operator": lambda: node("NoSuchOperator", ["x"], ["y"]),
    "cycle": lambda: graph(
        [
            helper.make_node("Add", ["x", "b"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("Neg", ["b"], ["y"]),
        ],
        *XY,
    ),
    "future opset": future_opset,
    "short weights": short_weights,
    "missing side file": lambda: external("nosuch.bin"),
    "side file outside": lambda: external("../../../../etc/passwd"),
    "side file by absolute path": lambda: external("/etc/passwd"),
}


@pytest.fixture(scope="module", params=["onnxruntime", "embedded"])
def server(request, tmp_path_factory):
    """All broken models beside a good one."""
    repository = Repository(tmp_path_factory.mktemp("broken"))
    backend = f'backend: "{request.param}"'
    repository.onnx("good", plus(1), config=backend)
    for name, make in BROKEN.items():
        repository.onnx(name, make(), config=backend)
    with Server(repository, "--exit-on-error=false", "--strict-readiness=false") as server:
        yield server


@pytest.mark.parametrize("name", BROKEN)
def test_r14_r18_a_broken_model_is_unavailable_with_a_reason(server, name):
    (row,) = [row for row in post(server, "/v2/repository/index").json if row["name"] == name]
    assert row["state"] == "UNAVAILABLE"
    assert len(row["reason"]) > 10
    assert "panicked" not in row["reason"]
    assert infer(server, name.replace(" ", "%20"), ZEROS).status in (400, 404, 503)
    assert get(server, f"/v2/models/{name.replace(' ', '%20')}/ready").status == 400
    assert any(f"`{name}`" in line and "UNAVAILABLE" in line for line in server.lines)


def test_r14_a_good_model_among_broken_ones_is_served(server):
    assert infer(server, "good", ZEROS).json["outputs"][0]["data"] == [1] * 4
    assert get(server, "/v2/health/ready").status == 200


def run_time_failure(repository, backend):
    """A graph that loads, and fails when the values of `x` index beyond the table."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3, 4], [0.5] * 12)
    gather = helper.make_node("Gather", ["table", "x"], ["y"])
    model = graph([gather], [("x", "INT64", ["n"])], [("y", "FP32", ["n", 4])], [table])
    repository.onnx("gather", model, config=f'backend: "{backend}"')


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_h24_a_run_that_fails_is_an_error_of_that_request(repository, backend):
    run_time_failure(repository, backend)
    with Server(repository) as server:
        for _ in range(3):
            bad = infer(server, "gather", [tensor("x", "INT64", [1, 1], [7])])
            assert bad.status in (400, 500)
            assert bad.error
            good = infer(server, "gather", [tensor("x", "INT64", [1, 1], [2])])
            assert (good.status, good.json["outputs"][0]["data"]) == (200, [0.5] * 4)
