"""Files that say less than the model gives, something else, or that are no ONNX files: what is served, and what is said.

Answers are compared with onnxruntime in Python, to the bit: on threads, in worker processes, and from baked forms.
"""

import io
import json
import os
import zipfile

import numpy as np
import onnx
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


def undeclared():
    """An inner layer that is exposed by its name alone, beside an output that is declared."""
    return model(
        [node("MatMul", ["x", "w"], ["hidden"]), node("Relu", ["hidden"], ["y"])],
        [value("x", FLOAT, ["N", 8])],
        [value("y", FLOAT, ["N", 40000]), onnx.ValueInfoProto(name="hidden")],
        [weights(8, 40000)],
    )


def test_the_runtime_is_asked_what_an_output_is_that_the_file_does_not_declare(place, repository):
    server = place.serve({"inner": (undeclared(), "")}, big=["inner"])
    assert get(server, "/v2/models/inner").json["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [-1, 40000]},
        {"name": "hidden", "datatype": "FP32", "shape": [-1, 40000]},
    ]
    assert_same(server, repository, "inner", {"x": some(3, 8)}, ["y", "hidden"])


def test_the_configuration_may_say_what_an_undeclared_output_is(place, repository):
    config = """max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 8 ] }
        output { name: "hidden" data_type: TYPE_FP32 dims: [ -1 ] }"""
    server = place.serve({"inner": (undeclared(), config)}, big=["inner"])
    assert_same(server, repository, "inner", {"x": some(3, 8)}, ["hidden"])


@pytest.mark.parametrize("config", ["", isolation("process")])
def test_a_wrong_datatype_of_an_undeclared_output_is_refused(repository, config):
    config += """max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 8 ] }
        output { name: "hidden" data_type: TYPE_INT64 dims: [ -1 ] }"""
    repository.onnx("inner", undeclared(), config=config)
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "configuration expects datatype TYPE_INT64 for output 'hidden', model provides TYPE_FP32" in log


def test_the_embedded_backend_computes_what_an_undeclared_output_is(repository):
    repository.onnx("inner", undeclared(), config=EMBEDDED)
    with Server(repository) as server:
        (y, hidden) = get(server, "/v2/models/inner").json["outputs"]
        assert hidden == {"name": "hidden", "datatype": "FP32", "shape": [-1, 40000]}
        feed = {"x": some(3, 8)}
        expected = session(repository.path / "inner/1/model.onnx").run(None, feed)
        got = ask(server, "inner", feed)
        np.testing.assert_allclose(got["hidden"], expected[1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got["y"], expected[0], rtol=1e-4, atol=1e-4)


def test_what_the_embedded_backend_cannot_infer_is_named_with_the_way_out(repository):
    made = finder("n", None, ["m"], declared=False)
    repository.onnx("left", made, config=EMBEDDED)
    repository.onnx("named", made, config=EMBEDDED + 'output { name: "v" }')
    outcome = run("check", repository, "--config=none")
    text = "backend `embedded` cannot infer the type of output `v`: declare it in the configuration, or use backend `onnxruntime`"
    assert f"warning: output `v` is left out: {text}" in outcome.stdout, outcome.stdout
    assert f"model.onnx`: {text}" in outcome.stdout, outcome.stdout


def maps(keys=INT64):
    return helper.make_sequence_type_proto(helper.make_map_type_proto(keys, helper.make_tensor_type_proto(FLOAT, None)))


def classifier():
    """What scikit-learn's converter writes unless told otherwise: labels, and probabilities as a sequence of maps."""
    classes = 12000
    coefficients = np.random.default_rng(0).standard_normal(classes * 32).astype(np.float32)
    linear = node(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_ints=list(range(classes)),
        coefficients=coefficients.tolist(),
        intercepts=[0.0] * classes,
        post_transform="SOFTMAX",
    )
    zip_map = node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=list(range(classes)))
    return model(
        [linear, zip_map],
        [value("x", FLOAT, [None, 32])],
        [value("label", INT64, [None]), helper.make_value_info("probabilities", maps())],
        domains=[("ai.onnx.ml", 3)],
    )


def test_a_classifier_is_served_without_what_the_protocol_cannot_carry(place, repository):
    server = place.serve({"classifier": (classifier(), "")}, big=["classifier"])
    assert [output["name"] for output in get(server, "/v2/models/classifier").json["outputs"]] == ["label"]
    feed = {"x": some(3, 32)}
    expected = session(repository.path / "classifier/1/model.onnx").run(["label"], feed)[0]
    # What has the batch for its only dimension gets another one, as on Triton.
    got = ask(server, "classifier", feed)["label"]
    assert (got.shape, got.tobytes()) == ((3, 1), expected.tobytes())
    said = [line for line in server.lines if "`probabilities` is a sequence of maps" in line]
    assert len(said) == 1, server.log
    assert "zipmap=False" in server.log


def sequence_and_tensor():
    return model(
        [node("SplitToSequence", ["x"], ["parts"], axis=1), node("Relu", ["x"], ["y"])],
        [value("x", FLOAT, ["n", 4])],
        [
            helper.make_value_info("parts", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))),
            value("y", FLOAT, ["n", 4]),
        ],
    )


def optional_and_tensor():
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["n", 4]))
    return model(
        [node("Optional", ["x"], ["maybe"]), node("Relu", ["x"], ["y"])],
        [value("x", FLOAT, ["n", 4])],
        [helper.make_value_info("maybe", kind), value("y", FLOAT, ["n", 4])],
    )


def test_sequences_and_optionals_are_left_out(place, repository):
    server = place.serve({"sequence": (sequence_and_tensor(), ""), "optional": (optional_and_tensor(), "")})
    for name in ("sequence", "optional"):
        assert_same(server, repository, name, {"x": some(3, 4)}, ["y"])
    assert "output `parts` is a sequence of tensors" in server.log
    assert "output `maybe` is an optional" in server.log


def test_check_says_what_is_left_out(repository):
    repository.onnx("classifier", classifier())
    outcome = run("check", repository, "--config=none")
    assert outcome.returncode == 0
    assert outcome.stdout == """\
ok      classifier  version 1
  warning: the protocol supports tensors only, so this output is left out: output `probabilities` is a sequence of maps
    convert the model with `zipmap=False` to get this output as a tensor (skl2onnx: `to_onnx(model, x, options={'zipmap': False})`)
1 model, 0 failed
"""


def test_what_has_no_output_to_serve_or_names_one_is_refused(repository):
    made = classifier()
    del made.graph.output[0]
    repository.onnx("none", made)
    repository.onnx("half", classifier(), config='output { name: "probabilities" }')
    repository.onnx(
        "named",
        classifier(),
        config="""input { name: "x" data_type: TYPE_FP32 dims: [ -1, 32 ] }
            output { name: "probabilities" data_type: TYPE_FP32 dims: [ -1, 12000 ] }""",
    )
    code, log = serve_and_fail(repository, "--exit-on-error=true")
    assert code == 1
    assert "the protocol can carry none of its outputs: output `probabilities` is a sequence of maps" in log
    assert "the protocol supports tensors only, but output `probabilities` is a sequence of maps" in log
    assert log.count("the protocol supports tensors only, but output `probabilities`") >= 2
    assert "zipmap=False" in log


def boxes():
    """A detector whose rows are what it found."""
    nodes = [
        node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=0),
        node("NonZero", ["m"], ["i"]),
        node("Transpose", ["i"], ["found"]),
    ]
    return graph(nodes, [("x", "FP32", ["batch", 4])], [("found", "INT64", ["detections", 1])])


def test_models_whose_first_dimension_is_no_batch_are_not_batched(repository):
    repository.onnx("boxes", boxes())
    time_major = ["seq", "batch", 4]
    repository.onnx("rnn", graph([node("Relu", ["x"], ["y"])], [("x", "FP32", time_major)], [("y", "FP32", time_major)]))
    repository.onnx(
        "last",
        graph(
            [node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
            [("x", "FP32", ["seq", "n", 4])],
            [("y", "FP32", ["n", 4])],
            [numpy_helper.from_array(np.array([0]), "axes")],
        ),
    )
    # Names of its own for each tensor, as converters from TensorFlow give them: the graph tells that it is the batch.
    repository.onnx("unk", graph([node("Relu", ["x"], ["y"])], [("x", "FP32", ["unk__6", 4])], [("y", "FP32", ["unk__7", 4])]))
    outcome = run("check", repository, "--config=none")
    assert outcome.returncode == 0
    for text in (
        "its inputs begin with dimension `batch`, its output `found` with `detections`",
        "dimension 1 of input `x` is `batch`, its first one is `seq`",
        "its inputs begin with dimension `seq`, its output `y` with `n`",
    ):
        assert f"warning: the model is served without batching: {text}" in outcome.stdout, outcome.stdout
    with Server(repository) as server:
        sizes = {name: get(server, f"/v2/models/{name}/config").json["max_batch_size"] for name in ("boxes", "rnn", "last", "unk")}
        assert sizes == {"boxes": 0, "rnn": 0, "last": 0, "unk": 4}
        assert_same(server, repository, "boxes", {"x": some(7, 4)}, ["found"])
        assert_same(server, repository, "rnn", {"x": some(9, 2, 4)}, ["y"])
        assert_same(server, repository, "last", {"x": some(9, 2, 4)}, ["y"])
        assert "model `boxes`: `max_batch_size`: the model is served without batching" in server.log
    repository.config("boxes", "max_batch_size: 8")
    outcome = run("check", repository, "--config=pbtxt", "--model=boxes")
    assert "max_batch_size: 8" in outcome.stdout
    assert "warning: REPO/boxes/config.pbtxt:1:1: max_batch_size is 8, but the first dimension may not be a batch dimension" in (
        outcome.stdout.replace(str(repository), "REPO")
    )


def ort_format(made):
    """The bytes of a model in ONNX Runtime's own format."""
    file = f"{os.environ['XDG_CACHE_HOME']}/made.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = file
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with open(file, "rb") as made:
        return made.read()


def finder(rows, found, more=(), declared=True):
    """What is not zero in `x`: a batch of several requests cannot be told apart, not even where it has a row for each."""
    nodes = [
        node("NonZero", ["x"], ["i"]),
        node("Transpose", ["i"], ["t"], perm=[1, 0]),
        node("GatherND", ["x", "t"], ["v"]),
        *(node("Relu", [name], [f"{name}_out"]) for name in more),
    ]
    inputs = [value("x", FLOAT, [rows, 4]), *(value(name, FLOAT, [name, 4]) for name in more)]
    outputs = [value("v", FLOAT, [found]), *(value(f"{name}_out", FLOAT, [name, 4]) for name in more)]
    made = model(nodes, inputs, outputs)
    if not declared:
        made.graph.output[0].ClearField("type")
    return made


DECIDED = "the size of its output `v` depends on values that are known only in a run (NonZero that gives `i`)"
FINDERS = {
    "named": (finder("n", "found"), "its inputs begin with dimension `n`, its output `v` with `found`"),
    "anonymous": (finder(None, None), DECIDED),
    "two": (finder("n", "found", ["m"]), DECIDED),
    "undeclared": (finder("n", None, declared=False), DECIDED),
}


def put(repository, name, data, config):
    (repository.path / name / "1").mkdir(parents=True)
    (repository.path / name / "1/model.ort").write_bytes(data)
    repository.config(name, config)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_clients_of_models_whose_rows_depend_on_data_do_not_share_a_batch(repository, kind):
    """Completed configurations never batch such a model, in either format: one client would get another one's rows."""
    relu = lambda first, last: graph([node("Relu", ["x"], ["y"])], [("x", "FP32", [first, 4])], [("y", "FP32", [last, 4])])
    for name, (made, _) in FINDERS.items():
        repository.onnx(name, made, config=isolation(kind))
        put(repository, f"{name}_ort", ort_format(made), isolation(kind))
    repository.onnx("batch", relu(None, None), config=isolation(kind))
    # Its dimensions have names, or none.
    put(repository, "batch_ort", ort_format(relu("n", "n")), isolation(kind))
    put(repository, "bare_ort", ort_format(relu(None, None)), isolation(kind))
    put(repository, "stated_ort", ort_format(relu(None, None)), "max_batch_size: 8\n" + isolation(kind))
    sizes = {"batch": 4, "batch_ort": 4, "bare_ort": 0, "stated_ort": 8}
    sizes |= {model: 0 for name in FINDERS for model in (name, f"{name}_ort")}
    with Server(repository) as server:
        got = {name: get(server, f"/v2/models/{name}/config").json["max_batch_size"] for name in sizes}
        assert got == sizes
        for name, (_, why) in FINDERS.items():
            assert f"model `{name}`: `max_batch_size`: the model is served without batching: {why}" in server.log
        for name in ("bare_ort", *(f"{name}_ort" for name in FINDERS)):
            assert f"model `{name}`: `max_batch_size`: the model is served without batching" in server.log
        x = np.array([[1, 0, 2, 3], [0, 0, 4, 0]], np.float32)
        for name in ("named", "named_ort"):
            assert ask(server, name, {"x": x})["v"].tolist() == [1, 2, 3, 4]


def test_outputs_that_are_not_served_do_not_keep_a_model_from_batching(repository):
    made = finder("n", "found", ["m"])
    repository.onnx("some", made, config='output { name: "m_out" }')
    with Server(repository) as server:
        assert get(server, "/v2/models/some/config").json["max_batch_size"] == 4


@pytest.mark.parametrize("file", ["model.ort", "small.ort", "model.onnx"])
def test_ort_files_are_served(place, repository, file):
    directory = repository.path / "own" / "1"
    directory.mkdir(parents=True)
    (directory / file).write_bytes(ort_format(undeclared()))
    named = 'default_model_filename: "small.ort"' if file == "small.ort" else ""
    repository.config("own", place.config + named)
    server = place.serve({})
    metadata = get(server, "/v2/models/own").json
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
    assert [output["name"] for output in metadata["outputs"]] == ["y", "hidden"]
    assert_same(server, repository, "own", {"x": some(3, 8)}, ["y", "hidden"], file)


def test_ort_files_against_their_configuration(repository):
    config = """max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 8 ] }
        output { name: "y" data_type: TYPE_INT64 dims: [ 40000 ] }"""
    (repository.path / "own/1").mkdir(parents=True)
    (repository.path / "own/1/model.ort").write_bytes(ort_format(undeclared()))
    for more in ("", isolation("process")):
        repository.config("own", more + config)
        code, log = serve_and_fail(repository)
        assert code == 1
        assert "configuration expects datatype TYPE_INT64 for output 'y', model provides TYPE_FP32" in log
    repository.config("own", EMBEDDED)
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "ONNX Runtime's own format (`.ort`), which only the onnxruntime backend loads" in log
    repository.config("own", "")
    outcome = run("bake", f"--weight-cache={repository.path.parent / 'cache'}", repository)
    assert "ONNX Runtime's own format" in outcome.stdout + outcome.stderr


def torch_file():
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
            archive.writestr("archive/version", b"3")
        return made.getvalue()


FOREIGN = {
    "empty": (b"", "it is empty: copy or download it again"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n",
        "a pointer of Git LFS, not the file itself: run `git lfs pull`",
    ),
    "page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "an HTML page"),
    "torch": (torch_file(), "a PyTorch file (`torch.save` or TorchScript): export the model with `torch.onnx.export`"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(100), "a TensorFlow Lite model"),
    "safetensors": (
        (64).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(64) + bytes(4),
        "a safetensors file",
    ),
    "savedmodel": (
        b"\x08\x01\x12\x40" + b"\x0a\x0bserving_default saved_model_main_op".ljust(64, b"\xff"),
        "a TensorFlow graph",
    ),
    "json": (b'{"error": "Repository not found"}', "a JSON document"),
}


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_files_of_another_kind_are_named_with_the_way_out(repository, backend):
    for name, (data, _) in FOREIGN.items():
        repository.onnx(name, data, config=f'backend: "{backend}"')
    outcome = run("check", repository, "--json")
    errors = {found["model"]: found["errors"][0]["text"] for found in json.loads(outcome.stdout)}
    for name, (_, text) in FOREIGN.items():
        assert text in errors[name], errors[name]
        assert f"{name}/1/model.onnx" in errors[name]


def test_a_small_file_that_is_cut_while_it_is_served(repository):
    repository.onnx("m", model(
        [node("Add", ["x", "w"], ["y"])], [value("x", FLOAT, ["n", 4096])], [value("y", FLOAT, ["n", 4096])], [weights(4096)]
    ), config=EMBEDDED)
    with Server(repository, "--weight-cache=off") as server:
        before = ask(server, "m", {"x": zeros(1, 4096)})["y"]
        os.truncate(repository.path / "m/1/model.onnx", 0)
        assert ask(server, "m", {"x": zeros(1, 4096)})["y"].tobytes() == before.tobytes()
        assert get(server, "/v2/health/live").status == 200
