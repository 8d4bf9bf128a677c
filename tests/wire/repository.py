"""Model repositories for tests: generated models, hand-made graphs, scripted mocks."""

import shutil

import numpy as np
from onnx import TensorProto, helper

from server import run

OPSET = 17
# The file format of that operator set; onnx's own default is newer than some runtimes.
IR_VERSION = 8

# A scripted latency longer than any test waits.
FOREVER_US = 3_000_000_000
# Makes a scripted model load for as long as its latency.
WARMUP = """model_warmup { name: "w" batch_size: 1 inputs { key: "x" value {
    data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }"""

# Protocol name -> (numpy type, ONNX element type, type in config.pbtxt). BF16 travels as its bits.
DATATYPES = {
    "BOOL": (np.bool_, TensorProto.BOOL, "TYPE_BOOL"),
    "UINT8": (np.uint8, TensorProto.UINT8, "TYPE_UINT8"),
    "UINT16": (np.uint16, TensorProto.UINT16, "TYPE_UINT16"),
    "UINT32": (np.uint32, TensorProto.UINT32, "TYPE_UINT32"),
    "UINT64": (np.uint64, TensorProto.UINT64, "TYPE_UINT64"),
    "INT8": (np.int8, TensorProto.INT8, "TYPE_INT8"),
    "INT16": (np.int16, TensorProto.INT16, "TYPE_INT16"),
    "INT32": (np.int32, TensorProto.INT32, "TYPE_INT32"),
    "INT64": (np.int64, TensorProto.INT64, "TYPE_INT64"),
    "FP16": (np.float16, TensorProto.FLOAT16, "TYPE_FP16"),
    "BF16": (np.uint16, TensorProto.BFLOAT16, "TYPE_BF16"),
    "FP32": (np.float32, TensorProto.FLOAT, "TYPE_FP32"),
    "FP64": (np.float64, TensorProto.DOUBLE, "TYPE_FP64"),
    "BYTES": (np.object_, TensorProto.STRING, "TYPE_STRING"),
}


def graph(nodes, inputs, outputs, initializers=()):
    """A model; inputs and outputs are (name, protocol datatype, shape), where text is a variable dimension."""

    def values(tensors):
        return [helper.make_tensor_value_info(n, DATATYPES[d][1], shape) for n, d, shape in tensors]

    made = helper.make_graph(nodes, "test", values(inputs), values(outputs), list(initializers))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def identity(datatype="FP32", shape=("batch", 4)):
    """`OUTPUT0` is `INPUT0`."""
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    return graph([node], [("INPUT0", datatype, shape)], [("OUTPUT0", datatype, shape)])


def unbatched(datatype, dims):
    """The configuration of an `identity` without a batch dimension, which completion would give it."""
    tensor = f"data_type: {DATATYPES[datatype][2]} dims: {dims}"
    return f'input {{ name: "INPUT0" {tensor} }} output {{ name: "OUTPUT0" {tensor} }}'


def plus(number, shape=("batch", 4)):
    """`y` is `x` plus a number, FP32: versions of a model tell themselves apart by it."""
    constant = helper.make_tensor("number", TensorProto.FLOAT, [], [number])
    node = helper.make_node("Add", ["x", "number"], ["y"])
    return graph([node], [("x", "FP32", shape)], [("y", "FP32", shape)], [constant])


class Repository:
    """A directory of models."""

    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def __fspath__(self):
        return str(self.path)

    __str__ = __fspath__

    def generate(self, kind, name=None, *flags, config=None):
        """A model of `skep generate`."""
        name = name or kind.split(":")[0]
        outcome = run("generate", kind, self.path, "--repository", name, *flags)
        assert outcome.returncode == 0, outcome.stderr
        return self.config(name, config)

    def onnx(self, name, model, version="1", config=None):
        """A hand-made model, or any bytes in its place."""
        directory = self.path / name / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (directory / "model.onnx").write_bytes(data)
        return self.config(name, config)

    def config(self, name, text):
        if text is not None:
            (self.path / name).mkdir(exist_ok=True)
            (self.path / name / "config.pbtxt").write_text(text)
        return name

    def mock(self, name="mock", config="", max_batch_size=8, **script):
        """A scripted model of one instance, input `x` and output `y` FP32 [4]; `latency_us=5` is `mock.latency_us`."""
        (self.path / name / "1").mkdir(parents=True, exist_ok=True)
        if "instance_group" not in config:
            config += " instance_group { count: 1 kind: KIND_CPU }"
        parameters = "".join(
            f'parameters {{ key: "mock.{key}" value {{ string_value: "{value}" }} }}\n' for key, value in script.items()
        )
        return self.config(
            name,
            f"""backend: "mock" max_batch_size: {max_batch_size}
            input {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }}
            output {{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }}
            {config}
            {parameters}""",
        )

    def copy(self, directory, name=None):
        shutil.copytree(directory, self.path / (name or directory.name))
        return self
