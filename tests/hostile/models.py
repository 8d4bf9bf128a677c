"""Graphs whose memory or time follows from an input's value: each is a few hundred bytes of file and of request."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from repository import OPSET, IR_VERSION, DATATYPES


def const(name, value):
    return numpy_helper.from_array(np.array(value), name)


ONE = const("one", np.ones([1], np.float32))
N = [("n", "INT64", [1])]
ANY = [("y", "FP32", ["any"])]


def graph(nodes, inputs, outputs, initializers=()):
    def values(tensors):
        return [helper.make_tensor_value_info(name, DATATYPES[d][1], shape) for name, d, shape in tensors]

    made = helper.make_graph(nodes, "hostile", values(inputs), values(outputs), list(initializers))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def constant_of_shape():
    return graph([node("ConstantOfShape", "n", "y")], N, ANY)


def square():
    """Its output is declared as `[a,b]`."""
    nodes = [node("Concat", "n n", "shape", axis=0), node("ConstantOfShape", "shape", "y")]
    return graph(nodes, N, [("y", "FP32", ["a", "b"])])


def range_():
    nodes = [node("Squeeze", "n", "end"), node("Range", "zero end step", "y")]
    return graph(nodes, N, [("y", "INT64", ["any"])], [const("zero", np.int64(0)), const("step", np.int64(1))])


def expand():
    return graph([node("Expand", "one n", "y")], N, ANY, [ONE])


def tile():
    return graph([node("Tile", "one n", "y")], N, ANY, [ONE])


def pad():
    nodes = [node("Concat", "zero n", "pads", axis=0), node("Pad", "one pads", "y")]
    return graph(nodes, N, ANY, [ONE, const("zero", np.zeros([1], np.int64))])


def resize():
    nodes = [
        node("Concat", "front n", "sizes", axis=0),
        helper.make_node("Resize", ["picture", "", "", "sizes"], ["y"], mode="nearest"),
    ]
    tensors = [const("picture", np.ones([1, 1, 1, 1], np.float32)), const("front", np.ones([3], np.int64))]
    return graph(nodes, N, [("y", "FP32", [1, 1, 1, "any"])], tensors)


def one_hot():
    tensors = [const("which", np.zeros([1], np.int64)), const("values", np.array([0, 1], np.float32))]
    return graph([node("OneHot", "which n values", "y")], N, [("y", "FP32", [1, "any"])], tensors)


def matmul():
    """A column times a row, each of `n`."""
    nodes = [
        node("Concat", "n unit", "tall", axis=0), node("Concat", "unit n", "wide", axis=0),
        node("Expand", "one tall", "column"), node("Expand", "one wide", "row"), node("MatMul", "column row", "y"),
    ]
    return graph(nodes, N, [("y", "FP32", ["a", "b"])], [ONE, const("unit", np.ones([1], np.int64))])


def broadcast():
    """A column plus a row, each of `n`."""
    model = matmul()
    model.graph.node[-1].op_type = "Add"
    return model


def outer():
    """`x` of `[1,n]` times itself is declared as `[n,n]`: the server knows the output's size before the run."""
    nodes = [node("Transpose", "x", "column"), node("MatMul", "column x", "y")]
    return graph(nodes, [("x", "FP32", [1, "n"])], [("y", "FP32", ["n", "n"])])


def nonzero():
    nodes = [node("Expand", "one n", "ones"), node("NonZero", "ones", "y")]
    return graph(nodes, N, [("y", "INT64", [1, "any"])], [ONE])


def concat():
    nodes = [node("Expand", "one n", "part"), node("Concat", "part " * 8, "y", axis=0)]
    return graph(nodes, N, ANY, [ONE])


def gather():
    nodes = [node("Expand", "first n", "which"), node("Gather", "one which", "y")]
    return graph(nodes, N, ANY, [ONE, const("first", np.zeros([1], np.int64))])


def intermediates():
    """`n` floats between a small input and a small output."""
    nodes = [node("Expand", "one n", "large"), node("Neg", "large", "other"), node("ReduceMax", "other", "y", axes=[0])]
    return graph(nodes, N, [("y", "FP32", [1])], [ONE])


def strings():
    """`n` texts of 1 KiB: no tensor memory, but the texts' own."""
    text = helper.make_tensor("text", TensorProto.STRING, [1], [b"x" * 1024])
    nodes = [node("Expand", "text n", "texts"), node("Shape", "texts", "y")]
    return graph(nodes, N, [("y", "INT64", [1])], [text])


def body(nodes, outputs):
    tensors = [("round", "INT64", []), ("go", "BOOL", [])]
    values = [helper.make_tensor_value_info(name, DATATYPES[d][1], shape) for name, d, shape in tensors]
    return helper.make_graph(
        [node("Identity", "go", "on"), *nodes], "body",
        [*values, helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         *[helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]],
    )


def loop(inner, outputs, result):
    nodes = [node("Squeeze", "n", "rounds"), helper.make_node("Loop", ["rounds", "", "one"], outputs, body=inner)]
    return graph(nodes, N, result, [ONE])


def doubling():
    """Twice as many floats in each of `n` rounds."""
    return loop(body([node("Concat", "v v", "w", axis=0)], ["w"]), ["y"], ANY)


def collecting():
    """A row for each of `n` rounds."""
    nodes = [node("Identity", "v", "w"), node("Identity", "v", "row")]
    return loop(body(nodes, ["w", "row"]), ["last", "y"], [("y", "FP32", ["any", 1])])


def spinning():
    """Nothing but time, for each of `n` rounds."""
    return loop(body([node("Neg", "v", "w")], ["w"]), ["y"], [("y", "FP32", [1])])


def constant(value, floats):
    """`y` is `x` plus so many weights of one value, summed: a model of a known size, and known answers."""
    weights = np.full([floats // 1024, 1024], value, np.float32)
    nodes = [node("MatMul", "x w", "m"), node("ReduceMax", "m", "y", axes=[1], keepdims=1)]
    return graph(nodes, [("x", "FP32", ["batch", floats // 1024])], [("y", "FP32", ["batch", 1])], [const("w", weights)])
