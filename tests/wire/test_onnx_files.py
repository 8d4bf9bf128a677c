"""Files that say something else than the model gives: what is served, and what is said.

Answers are compared with onnxruntime in Python, to the bit: on threads, in worker processes, and from baked forms.
"""


import os

import numpy as np
import onnxruntime
import pytest
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper

from http_client import get, infer, tensor
from repository import DATATYPES, IR_VERSION, OPSET, graph
from server import Server, run, serve_and_fail

value = helper.make_tensor_value_info
node = helper.make_node
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

# Where instances run, and whether the model is loaded from its baked form.
PLACES = [("thread", False), ("thread", True), ("process", False), ("process", True)]
EMBEDDED = 'backend: "embedded"'


def zeros(*shape):
    return np.zeros(shape, np.float32)


def some(*shape):
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def weights(*shape, name="w"):
    return numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)


def model(nodes, inputs, outputs, initializers=(), domains=()):
    """A model of these `ValueInfoProto`s."""
    made = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(*domain) for domain in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)


def isolation(kind):
    return f'parameters {{ key: "isolation" value {{ string_value: "{kind}" }} }}\n'


def session(file):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if file.read_bytes()[4:8] == b"ORTM":
        options.add_session_config_entry("session.load_model_format", "ORT")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


NUMPY = {kind: name for name, (kind, _, _) in DATATYPES.items() if name != "BF16"}


def ask(server, name, feed, outputs=None):
    """What the server answers: arrays by name."""
    inputs = []
    for key, array in feed.items():
        inputs.append(tritonclient.http.InferInput(key, list(array.shape), NUMPY[array.dtype.type]))
        inputs[-1].set_data_from_numpy(array)
    wanted = outputs and [tritonclient.http.InferRequestedOutput(output) for output in outputs]
    with tritonclient.http.InferenceServerClient(server.http) as client:
        answer = client.infer(name, inputs, outputs=wanted)
        return {output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]}


def assert_same(server, repository, name, feed, outputs, file="model.onnx"):
    """The server gives what onnxruntime gives, to the bit."""
    expected = session(repository.path / name / "1" / file).run(outputs, feed)
    got = ask(server, name, feed)
    assert list(got) == outputs
    for output, array in zip(outputs, expected):
        assert got[output].shape == array.shape
        assert got[output].tobytes() == array.tobytes()


class Place:
    """How the models of a test are loaded and run."""

    def __init__(self, repository, kind, cache):
        self.repository, self.cache, self.server = repository, cache, None
        self.config = isolation(kind)

    def serve(self, models, big=()):
        """A server over models with their configurations. Those of `big` are large enough to be baked, and are if any are."""
        for name, (made, config) in models.items():
            self.repository.onnx(name, made, config=self.config + config)
        if self.cache != "off":
            outcome = run("bake", f"--weight-cache={self.cache}", self.repository)
            assert outcome.returncode == 0, outcome.stderr
            for name in big:
                assert any(line.startswith("baked") and name in line for line in outcome.stdout.splitlines()), outcome.stdout
        self.server = Server(self.repository, f"--weight-cache={self.cache}")
        return self.server.__enter__()


@pytest.fixture(params=PLACES, ids=lambda place: f"{place[0]}-{'baked' if place[1] else 'plain'}")
def place(request, repository, tmp_path):
    kind, baked = request.param
    place = Place(repository, kind, tmp_path / "cache" if baked else "off")
    yield place
    if place.server:
        place.server.__exit__()


def other_shapes():
    """Models whose outputs have other shapes than their files declare."""
    detector = model(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
            node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
            node("Reshape", ["t", "s"], ["y"]),
        ],
        [value("x", FLOAT, ["b", 3, "h", "w_"])],
        [value("y", FLOAT, [256, 2])],
        [weights(2, 3, 3, 3), numpy_helper.from_array(np.array([-1, 2]), "s")],
    )
    # Large enough to be baked.
    head = model(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", FLOAT, ["N", 8])],
        [value("y", FLOAT, ["N", 4])],
        [weights(8, 40000)],
    )
    scalar = model(
        [node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)],
        [value("x", FLOAT, ["N", 4])],
        [value("y", FLOAT, [])],
    )
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"]), node("Add", ["a", "x"], ["ao"]), node("Identity", ["ao"], ["sc"])],
        "body",
        [value("i", INT64, []), value("c", TensorProto.BOOL, []), value("a", FLOAT, None)],
        [value("co", TensorProto.BOOL, []), value("ao", FLOAT, None), value("sc", FLOAT, None)],
    )
    loop = model(
        [node("Squeeze", ["n"], ["n0"]), node("Loop", ["n0", "", "x"], ["y", "steps"], body=body)],
        [value("x", FLOAT, ["N", 4]), value("n", INT64, [1])],
        [value("y", FLOAT, ["N", 4]), value("steps", FLOAT, ["K", "N", 4])],
    )
    return {"detector": detector, "head": head, "scalar": scalar, "loop": loop}


def declared(name):
    return {"detector": "[256,2]", "head": "[-1,4]", "scalar": "[]", "loop": "[-1,-1,4]"}[name]


def test_outputs_of_other_shapes_than_declared_are_passed_on(place, repository):
    server = place.serve({name: (made, "") for name, made in other_shapes().items()}, big=["head"])
    # Before and after the runtime has found out, with and without several requests in a batch.
    for _ in range(2):
        for height, width in [(16, 16), (8, 24), (16, 16)]:
            for batch in (1, 4):
                assert_same(server, repository, "detector", {"x": some(batch, 3, height, width)}, ["y"])
        assert_same(server, repository, "head", {"x": some(3, 8)}, ["y"])
        assert_same(server, repository, "scalar", {"x": some(3, 4)}, ["y"])
        for turns in (2, 0):
            feed = {"x": some(3, 4), "n": np.array([turns])}
            assert_same(server, repository, "loop", feed, ["y", "steps"])
    for name in ("detector", "head", "scalar"):
        said = [line for line in server.lines if f"output `y` of model `{name}` has shape" in line]
        assert len(said) == 1, server.log
        assert f"expected {declared(name)}" in said[0]
    assert "Expected shape from model" not in server.log


def test_a_batch_of_outputs_of_another_shape_is_split(place, repository):
    """Requests that share a batch get their rows each."""
    batching = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 30000000 }"
    config = f"{batching} instance_group {{ count: 1 kind: KIND_CPU }}"
    server = place.serve({"head": (other_shapes()["head"], config)})
    feeds = [some(1, 8), some(3, 8)]
    truth = session(repository.path / "head/1/model.onnx").run(None, {"x": np.concatenate(feeds)})[0]
    with tritonclient.http.InferenceServerClient(server.http, concurrency=2) as client:
        waiting = []
        for feed in feeds:
            inputs = [tritonclient.http.InferInput("x", list(feed.shape), "FP32")]
            inputs[0].set_data_from_numpy(feed)
            waiting.append(client.async_infer("head", inputs))
        got = [request.get_result().as_numpy("y") for request in waiting]
    assert [array.shape for array in got] == [(1, 40000), (3, 40000)]
    assert np.concatenate(got).tobytes() == truth.tobytes()
    statistics = get(server, "/v2/models/head/stats").json["model_stats"][0]
    assert (statistics["inference_count"], statistics["execution_count"]) == (4, 1)


def test_a_configuration_may_leave_open_what_the_file_fixes(repository):
    made = other_shapes()
    repository.onnx("head", made["head"], config='output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }')
    repository.onnx("detector", made["detector"], config='output { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ] }')
    repository.onnx("scalar", made["scalar"], config='output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }')
    with Server(repository) as server:
        assert_same(server, repository, "head", {"x": some(3, 8)}, ["y"])
        assert_same(server, repository, "detector", {"x": some(1, 3, 8, 24)}, ["y"])
        assert_same(server, repository, "scalar", {"x": some(3, 4)}, ["y"])
        assert get(server, "/v2/models/head").json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}]
        assert "clients get the shape" not in server.log
    repository.config("head", 'output { name: "y" data_type: TYPE_FP32 dims: [ 5 ] }')
    assert serve_and_fail(repository)[0] == 1


def test_an_output_that_does_not_begin_with_the_batch_says_what_to_do(repository):
    made = model(
        [node("Transpose", ["x"], ["y"])], [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])]
    )
    repository.onnx("turned", made)
    with Server(repository) as server:
        answer = infer(server, "turned", [tensor("x", "FP32", [3, 4], [0] * 12)])
        assert answer.status == 500
        assert "write `max_batch_size: 0`" in answer.error
        assert ask(server, "turned", {"x": some(4, 4)})["y"].shape == (4, 4)


def test_a_small_file_that_is_cut_while_it_is_served(repository):
    repository.onnx("m", model(
        [node("Add", ["x", "w"], ["y"])], [value("x", FLOAT, ["n", 4096])], [value("y", FLOAT, ["n", 4096])], [weights(4096)]
    ), config=EMBEDDED)
    with Server(repository, "--weight-cache=off") as server:
        before = ask(server, "m", {"x": zeros(1, 4096)})["y"]
        os.truncate(repository.path / "m/1/model.onnx", 0)
        assert ask(server, "m", {"x": zeros(1, 4096)})["y"].tobytes() == before.tobytes()
        assert get(server, "/v2/health/live").status == 200
