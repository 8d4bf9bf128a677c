"""`skep plan` on ONNX models: plans by name, the estimate, and what it says of models that cannot be planned."""

import json
import re

import numpy as np
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from server import ROOT, WITHOUT_LIBRARY, run

MIB = 1 << 20


def plan(*arguments, stderr=""):
    outcome = run("plan", *arguments, "--strategy", "auto")
    assert outcome.stderr == stderr
    assert outcome.returncode == 0
    return outcome.stdout


def generated(tmp_path, kind, *flags):
    file = tmp_path / "model.onnx"
    assert run("generate", kind, file, *flags).returncode == 0
    return file


def small(file, nodes, shape=("n", 8), inputs=("x",), initializers=()):
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in (*inputs, "y")]
    tensors[-1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", tensors[:-1], tensors[-1:], list(initializers))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    return file


def test_a_network_before_and_after_fusion(tmp_path):
    file = generated(tmp_path, "mobilenetv2")
    document = json.loads(plan(file, "--batch", "8,1", "--instances", 1, "--instances", 2, "--json"))
    named = {plan["name"]: plan for plan in (document, *document["plans"])}
    assert list(named) == ["graph", "graph, in place", "fused (predicted)", "recorded"]
    assert named["fused (predicted)"]["strategies"][0]["size"] == 45.9375 * MIB
    assert named["recorded"]["strategies"][0]["size"] == 45.9375 * MIB
    sizes = [plan["strategies"][0]["size"] for plan in named.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert all(plan["strategies"][0]["optimal"] for plan in named.values())
    assert document["batch"] == 8
    assert (document["input_bytes"], document["output_bytes"]) == (8 * 3 * 224 * 224 * 4, 8 * 1000 * 4)
    rows = {(row["batch"], row["instances"]): row for row in document["estimate"]}
    assert list(rows) == [(8, 1), (8, 2), (1, 1), (1, 2)]
    for row in rows.values():
        assert row["total"] == sum(row[name] for name in ("weights", "intermediates", "workspace", "runtime"))
        assert 13 * MIB < row["weights"] < 13.6 * MIB
    assert rows[8, 1]["intermediates"] > 7 * rows[1, 1]["intermediates"]
    text = plan(file)
    assert "smallest plans, compared with `graph`: graph 9.19 MiB; graph, in place 5.74 MiB (-38 %); fused (predicted) 5.74 MiB (-38 %); recorded 5.74 MiB" in text
    assert "fused (predicted): 27 buffers" in text
    assert "recorded: 27 buffers" in text
    assert text.splitlines()[-5].split()[:2] == ["batch", "weights"]
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["1", "2", "4", "8"]


class Network:
    """Convolutions with what follows them in a network, on `x` [batch, 3, 64, 64]."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def weight(self, *dims):
        values = np.random.default_rng(len(self.weights)).standard_normal(dims).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, op, *inputs, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [f"{op}_{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def step(self, x, read, made):
        weight = self.weight(made, read, 3, 3)
        x = self.node("Conv", x, weight, self.weight(made), kernel_shape=[3, 3], pads=[1] * 4)
        return self.node("Relu", x)

    def halved(self, x):
        return self.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def save(self, file, y):
        tensor = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)  # noqa: E731
        inputs, outputs = [tensor("x", ["batch", 3, 64, 64])], [tensor(y, None)]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.weights)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
        return file


def densenet(file):
    """Each step reads what all before it made."""
    net = Network()
    x = net.halved(net.step("x", 3, 32))
    for _ in range(2):
        made = [x]
        for count in range(1, 5):
            joined = made[0] if count == 1 else net.node("Concat", *made, axis=1)
            made.append(net.step(net.step(joined, 32 * count, 64), 64, 32))
        x = net.halved(net.step(net.node("Concat", *made, axis=1), 160, 32))
    return net.save(file, x)


def unet(file):
    """What was made on the way down is read on the way up."""
    net = Network()
    x, channels, skipped = "x", 3, []
    for made in (16, 32, 64, 128):
        x = net.step(net.step(x, channels, made), made, made)
        skipped.append((x, made))
        x, channels = net.halved(x), made
    for skip, made in reversed(skipped):
        x = net.node("ConvTranspose", x, net.weight(channels, made, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
        x = net.step(net.node("Concat", skip, x, axis=1), 2 * made, made)
        channels = made
    return net.save(file, net.step(x, channels, 2))


REAL = {
    "nudenet/320n.onnx": ["--input", "images:2,3,320,320"],
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": ["--input", "x:2,3,48,320"],
    # Dimensions without a name are `?` there, each another one.
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": ["--input", "x:2,3,48,192"],
    "silero_vad/data/silero_vad_16k_sequence.onnx": ["--batch", 1],
    "magika/models/standard_v3_3/model.onnx": ["--batch", 2],
}


def predicted_and_recorded(file, *flags):
    outcome = run("plan", file, *flags, "--strategy", "auto", "--json", "--instances", 1)
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    sizes = {plan["name"]: plan["strategies"][0]["size"] for plan in document["plans"]}
    return sizes["fused (predicted)"], sizes["recorded"]


@pytest.mark.parametrize("file", REAL)
def test_real_networks_need_what_was_predicted(file):
    predicted, recorded = predicted_and_recorded(ROOT / "target/real-models" / file, *REAL[file])
    assert predicted == recorded


@pytest.mark.parametrize("make", [densenet, unet])
def test_networks_whose_blocks_are_kept_need_what_was_predicted(tmp_path, make):
    predicted, recorded = predicted_and_recorded(make(tmp_path / "m.onnx"), "--batch", 2)
    assert predicted == recorded


def test_a_model_that_declares_another_output_is_planned_with_a_warning(tmp_path):
    file = small(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])])
    model = load(str(file))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 9]))
    save(model, str(file))
    words = f"warning: `{file}`: output `y` has shape [2,8], but the file says [n,9]\n"
    outcome = run("plan", file, "--batch", 2, "--no-run")
    assert (outcome.returncode, outcome.stderr) == (0, words)


def test_weights_beside_the_file_are_not_read(tmp_path):
    file = generated(tmp_path, "cnn")
    within = json.loads(plan(file, "--batch", 2, "--json"))["estimate"]
    generated(tmp_path, "cnn", "--external-data")
    (tmp_path / "model.onnx.data").unlink()
    document = json.loads(plan(file, "--batch", 2, "--json", "--no-run"))
    assert document["estimate"] == within
    assert "recorded" not in [plan["name"] for plan in document["plans"]]
    # A model that does not run has its other plans all the same.
    outcome = run("plan", file, "--batch", 2, "--json", "--strategy", "auto")
    assert json.loads(outcome.stdout)["estimate"] == within
    assert outcome.stderr.startswith(f"warning: `{file}`: no recorded plan: ONNX Runtime cannot load"), outcome.stderr
    missing = run("plan", file, **WITHOUT_LIBRARY)
    assert missing.returncode == 0
    assert missing.stderr == (
        f"warning: `{file}`: no recorded plan: ONNX Runtime was not found; `skep doctor` shows where Skep looked\n"
    )


def test_shapes_are_stated(tmp_path):
    file = generated(tmp_path, "bert-tiny")
    outcome = run("plan", file)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    words = "has shape [batch,sequence], whose size is not known; pass `--dim sequence=128` or `--input input_ids:1,128`\n"
    assert outcome.stderr == f"error: `{file}`: input `input_ids` {words}"
    plans = [
        plan(file, "--json", "--batch", 4, *flags)
        for flags in (["--dim", "sequence=64"], ["--input", "input_ids:-1,64"], ["--input", "input_ids:4,64"])
    ]
    documents = [json.loads(text) for text in plans]
    assert documents[0]["lower_bound"] == documents[1]["lower_bound"] == documents[2]["lower_bound"]
    assert documents[0]["estimate"] == documents[1]["estimate"]


def test_the_batch_is_where_a_state_has_it(tmp_path):
    tensor = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)  # noqa: E731
    inputs = [tensor("x", [None, None]), tensor("state", [2, None, 128]), tensor("rate", [])]
    nodes = [
        helper.make_node("Mul", ["x", "rate"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["y"]),
        helper.make_node("Relu", ["state"], ["next"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [tensor("y", None), tensor("next", None)])
    file = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    outcome = run("plan", file, "--input", "x:1,512")
    words = "input `state` has shape [2,?,128], whose size is not known; pass `--input state:2,1,128`"
    assert outcome.stderr == f"error: `{file}`: {words}\n"
    # -1 is the batch size where it is written, and no other input need have a place for it.
    stated = ["--input", "x:-1,512", "--input", "state:2,-1,128", "--json"]
    document = json.loads(plan(file, *stated))
    batches = sorted({row["batch"] for row in document["estimate"]})
    assert (document["batch"], batches) == (1, [1, 2, 4, 8])
    assert json.loads(plan(file, *stated, "--batch", 3))["input_bytes"] == 3 * (512 + 2 * 128) * 4 + 4


def test_a_shape_that_only_a_run_tells(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Cast", ["places"], ["y"], to=1)]
    file = small(tmp_path / "m.onnx", nodes)
    outcome = run("plan", file, "--batch", 2)
    assert outcome.returncode == 1
    assert "tensor `places`" in outcome.stderr
    assert "pass its shape with `--tensor places:1,2`" in outcome.stderr
    assert json.loads(plan(file, "--batch", 2, "--tensor", "places:2,5", "--json"))["lower_bound"] == 2 * 5 * 8


def test_inner_graphs_are_named(tmp_path):
    branch = lambda op: helper.make_graph(  # noqa: E731
        [helper.make_node(op, ["x"], ["b"])], op, [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    choice = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch("Sin"), else_branch=branch("Cos"))
    file = small(tmp_path / "m.onnx", [choice], initializers=[condition])
    words = "tensors within If `choice` are not counted, only the nodes' inputs and outputs"
    text = plan(file, "--batch", 2, stderr=f"warning: `{file}`: {words}\n")
    # What is not counted is not compared.
    summary = next(line for line in text.splitlines() if line.startswith("smallest plans"))
    graphs = [f"{name} at least 0 B" for name in ("graph", "graph, in place", "fused (predicted)")]
    assert summary.startswith("smallest plans: " + "; ".join([*graphs, "recorded "]))
    assert "%" not in summary and summary.count("at least") == 3
    assert "classes are those of one instance, and sums are at least what is said\n" in text
    assert re.search(r"^ +2 .* at least \d", text.splitlines()[-1])
    document = json.loads(plan(file, "--batch", 2, "--json", stderr=f"warning: `{file}`: {words}\n"))
    assert document["not_counted"] == ["If `choice`"]


@pytest.mark.parametrize(
    "nodes, flags, words",
    [
        ([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Exp", ["y"], ["a"])], [], "is on a cycle"),
        ([helper.make_node("Relu", ["z"], ["y"])], [], "tensor `z` is read by"),
        ([helper.make_node("Relu", ["x"], ["y"])], ["--dim", "m=3"], "dimension `m` was given, but the model has none of that name"),
        ([helper.make_node("Relu", ["x"], ["y"])], ["--input", "z:1"], "input `z` was given, but the model has none of that name"),
        ([helper.make_node("Relu", ["x"], ["y"])], ["--input", "x:2,9"], "input `x` has shape [2,9], but the file says [n,8]"),
        ([helper.make_node("Relu", ["x"], ["y"])], ["--input", "x:4294967296,8"], ""),
        ([helper.make_node("Relu", ["x"], ["y"])], ["--input", "x:-2,8"], "expected a name and sizes, as in `ids:1,128`"),
        ([helper.make_node("Relu", ["x"], ["y"])], ["--batch", "0"], "--batch"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path, nodes, flags, words):
    file = small(tmp_path / "m.onnx", nodes)
    outcome = run("plan", file, *flags, "--strategy", "auto")
    if words:
        assert (outcome.returncode, outcome.stdout) == (1, "")
        assert words in outcome.stderr
    else:
        # 128 GiB are a plan like any other, but no run.
        assert outcome.returncode == 0
        assert "no recorded plan: a run would take" in outcome.stderr


def test_damaged_models_are_refused(tmp_path):
    file = generated(tmp_path, "mlp")
    whole = file.read_bytes()
    for name in ("short.onnx", "short"):
        cut = tmp_path / name
        cut.write_bytes(whole[: len(whole) // 2])
        outcome = run("plan", cut)
        assert (outcome.returncode, outcome.stdout) == (1, "")
        assert outcome.stderr.startswith(f"error: `{cut}`")
    # Its name says nothing: content does.
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(whole)
    assert "graph: 4 buffers" in plan(renamed)


def test_flags_of_models_have_no_meaning_elsewhere(tmp_path):
    file = tmp_path / "records.csv"
    file.write_text("id,lower,upper,size\na,0,1,4\n")
    outcome = run("plan", file, "--batch", 2)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"error: --batch is for ONNX models, `{file}` is none\n"


@pytest.mark.parametrize("scaler", ["Scaler", "Normalizer", "Binarizer"])
def test_networks_behind_scalers_need_what_was_predicted(tmp_path, scaler):
    attributes = {"Scaler": {"offset": [0.0] * 64, "scale": [2.0] * 64}, "Normalizer": {"norm": "L2"}, "Binarizer": {"threshold": 0.5}}
    nodes, weights = [helper.make_node(scaler, ["x"], ["t0"], domain="ai.onnx.ml", **attributes[scaler])], []
    widths = [64, 256, 128, 16]
    for at, (read, made) in enumerate(zip(widths, widths[1:], strict=False)):
        weights.append(numpy_helper.from_array(np.ones((read, made), np.float32), f"w{at}"))
        weights.append(numpy_helper.from_array(np.ones(made, np.float32), f"b{at}"))
        nodes.append(helper.make_node("MatMul", [f"t{at}", f"w{at}"], [f"m{at}"]))
        nodes.append(helper.make_node("Add", [f"m{at}", f"b{at}"], [f"a{at}"]))
        nodes.append(helper.make_node("Relu", [f"a{at}"], [f"t{at + 1}" if made != 16 else "y"]))
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name, size in (("x", 64), ("y", 16))]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    file = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(file))
    predicted, recorded = predicted_and_recorded(file, "--batch", 64)
    assert predicted == recorded


def test_a_directory_stands_for_its_one_model(tmp_path):
    models = tmp_path / "models"
    assert run("generate", "mlp", models, "--repository", "m").returncode == 0
    assert "graph: 4 buffers" in plan(models / "m", "--no-run")
    (models / "m/2").mkdir()
    first, second = models / "m/1/model.onnx", models / "m/2/model.onnx"
    second.write_bytes(first.read_bytes())
    words = f"`{models}/m` is a directory with 2 ONNX files, expected one of them, such as `{first}`"
    assert run("plan", models / "m").stderr == f"error: {words}\n"
    (tmp_path / "empty").mkdir()
    words = f"`{tmp_path}/empty` is a directory without an ONNX file, expected a file"
    assert run("plan", tmp_path / "empty").stderr == f"error: {words}\n"
