"""Models that are large enough to be baked, their answers to the bit, and what a cache of baked models holds."""

import numpy as np
from onnx import helper, numpy_helper

from http_client import infer, tensor
from repository import graph

# Kind -> inputs of a row: name, datatype, dims, and below what integers are.
KINDS = {
    "mlp": [("input", "FP32", [256], None)],
    # Large enough to be kept.
    "cnn:classes=4000": [("input", "FP32", [3, 32, 32], None)],
    "bert-tiny": [
        ("input_ids", "INT64", [24], 1000),
        ("attention_mask", "INT64", [24], 2),
        ("token_type_ids", "INT64", [24], 2),
    ],
}
ROWS = 3

# The matrix of `packed`.
PACKED_IN, PACKED_OUT = 32768, 17
INPUTS = {**KINDS, "packed": [("x", "FP32", [PACKED_IN], None)]}


def config(isolation, instances=1, backend="onnxruntime"):
    return f"""backend: "{backend}" max_batch_size: 8 instance_group {{ count: {instances} kind: KIND_CPU }}
        parameters {{ key: "isolation" value {{ string_value: "{isolation}" }} }}"""


def request_of(kind, seed=1):
    """Inputs, and their bytes."""
    random = np.random.default_rng(seed)
    inputs, binary = [], b""
    for name, datatype, dims, below in INPUTS[kind]:
        shape = [ROWS, *dims]
        values = random.uniform(-1, 1, shape).astype("<f4") if below is None else random.integers(0, below, shape)
        data = values.tobytes()
        inputs.append(tensor(name, datatype, shape, binary_data_size=len(data)))
        binary += data
    return inputs, binary


def outputs(server, kind, model="m", seed=1):
    """The bytes of all outputs."""
    inputs, binary = request_of(kind, seed)
    answer = infer(server, model, inputs, binary, parameters={"binary_data_output": True})
    assert answer.status == 200, answer.body
    return answer.parts()[1]


def packed():
    """One matrix of 2.1 MiB, of which the library packs 4 MiB: it pads columns to 16 and their multiples."""
    matrix = np.random.default_rng(0).standard_normal((PACKED_IN, PACKED_OUT)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    tensors = [("x", "FP32", ["n", PACKED_IN])], [("y", "FP32", ["n", PACKED_OUT])]
    return graph([node], *tensors, [numpy_helper.from_array(matrix, "w")])


def generate(repository, kind, config):
    """Makes it model `m`."""
    if kind == "packed":
        repository.onnx("m", packed(), config=config)
    else:
        repository.generate(kind, "m", config=config)


def files(cache):
    """Every file of a cache but locks and what is remembered of files: path -> bytes."""
    found = (path for path in (cache / "v1").rglob("*") if path.is_file() and path.name != "seen")
    return {
        str(path.relative_to(cache / "v1")): path.read_bytes()
        for path in found
        if path.relative_to(cache / "v1").parts[0] not in ("lock", "making", "stamps", "turn", "failures")
    }
