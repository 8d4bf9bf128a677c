"""The same outputs as onnxruntime in Python: every generated model, on ONNX Runtime and on the embedded backend.

On ONNX Runtime the tolerance is 1e-5, on the embedded backend 1e-4 relative plus 1e-4 absolute.
"""

import ctypes
import re
import shutil

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
from onnx import TensorProto

from http_client import get, post
from repository import DATATYPES, Repository
from server import Server, run

BATCHES = (1, 3)
TOLERANCE = {"onnxruntime": {"rtol": 1e-5, "atol": 1e-5}, "embedded": {"rtol": 1e-4, "atol": 1e-4}}
EMBEDDED = {"FP32", "INT32", "INT8", "UINT8", "BOOL", "INT64"}
# Variable dimensions other than the batch.
SEQUENCE = 12
# Token numbers; the smallest vocabulary has a thousand.
TOKENS = 1000


def kinds():
    help_text = " ".join(run("generate", "--help").stdout.split())
    return re.search(r"Kinds: (.*)", help_text).group(1).split(", ")


# No pytest without a binary: the kinds come from it.
KINDS = kinds()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One model at a time, loaded by request: the large ones would not fit beside each other everywhere."""
    repository = Repository(tmp_path_factory.mktemp("parity"))
    with Server(repository, "--model-control-mode=explicit") as server:
        yield repository, server


@pytest.fixture(scope="module", params=KINDS)
def kind(request, models):
    """A kind whose file lies in the repository while it is tested."""
    repository, _ = models
    repository.generate(request.param)
    yield request.param
    shutil.rmtree(repository.path / request.param)


@pytest.fixture(scope="module")
def expected(kind, models):
    """Inputs and onnxruntime's outputs for each batch size."""
    repository, _ = models
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = repository.path / kind / "1/model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    cases = []
    for batch in BATCHES:
        inputs = {i.name: sample(i, batch) for i in session.get_inputs()}
        cases.append((inputs, reference(session, inputs)))
    return cases


PROTOCOL = {f"tensor({name})": datatype for datatype, name in {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "BF16": "bfloat16", "FP32": "float",
    "FP64": "double", "BYTES": "string",
}.items()}  # fmt: skip


def sample(spec, batch):
    """(datatype, values) for an input; BF16 as its bits, BYTES as decimal integers."""
    datatype = PROTOCOL[spec.type]
    shape = [batch, *(SEQUENCE if isinstance(dim, str) else dim for dim in spec.shape[1:])]
    random = np.random.default_rng([batch, len(spec.name)])
    kind = DATATYPES[datatype][0]
    if datatype == "BYTES":
        values = np.array([str(i) for i in random.integers(-99, 99, shape).ravel()], np.object_).reshape(shape)
    elif datatype == "BF16":
        values = (random.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    elif datatype == "BOOL":
        values = random.integers(0, 2, shape).astype(np.bool_)
    elif "mask" in spec.name:
        values = np.ones(shape, kind)
        values[:, SEQUENCE * 3 // 4 :] = 0
    elif "type" in spec.name:
        values = random.integers(0, 2, shape, dtype=kind)
    elif np.issubdtype(kind, np.floating):
        values = random.standard_normal(shape).astype(kind)
    else:
        values = random.integers(0, min(TOKENS, np.iinfo(kind).max), shape, dtype=kind)
    return datatype, values


def reference(session, inputs):
    """Python's onnxruntime, which takes BF16 only as values of its own."""
    names = [o.name for o in session.get_outputs()]
    if any(datatype == "BF16" for datatype, _ in inputs.values()):
        make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
        feeds = {name: make(np.ascontiguousarray(v), TensorProto.BFLOAT16) for name, (_, v) in inputs.items()}
        return dict(zip(names, (raw(o) for o in session.run_with_ort_values(names, feeds)), strict=True))
    return dict(zip(names, session.run(names, {name: v for name, (_, v) in inputs.items()}), strict=True))


def raw(value):
    """The bits of a BF16 value, which numpy has no type for."""
    count = int(np.prod(value.shape()))
    return (
        np.ctypeslib.as_array(ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), (count,))
        .copy()
        .reshape(value.shape())
    )


def encode(values):
    """Bytes of a tensor as gRPC carries them."""
    if values.dtype != np.object_:
        return np.ascontiguousarray(values).tobytes()
    texts = [str(v).encode() for v in values.ravel()]
    return b"".join(len(t).to_bytes(4, "little") + t for t in texts)


def ask(client, model, inputs):
    """Skep's outputs as bytes with their shapes."""
    tensors = []
    for name, (datatype, values) in inputs.items():
        tensors.append(tritonclient.grpc.InferInput(name, list(values.shape), datatype))
        tensors[-1]._raw_content = encode(values)
    answer = client.infer(model, tensors).get_response()
    return {o.name: (list(o.shape), data) for o, data in zip(answer.outputs, answer.raw_output_contents, strict=True)}


def bf16_to_fp32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def compare(got, wanted, datatypes, tolerance):
    assert set(got) == set(wanted)
    for name, (shape, data) in got.items():
        values = wanted[name]
        assert shape == list(values.shape), name
        if values.dtype == np.object_:
            assert data == encode(values), name
            continue
        ours = np.frombuffer(data, values.dtype).reshape(shape)
        if "BF16" in datatypes:
            ours, values = bf16_to_fp32(ours), bf16_to_fp32(values)
        if np.issubdtype(values.dtype, np.floating):
            assert np.isfinite(values).all()
            np.testing.assert_allclose(ours.astype(np.float64), values.astype(np.float64), **tolerance, err_msg=name)
        else:
            assert np.array_equal(ours, values), name


@pytest.mark.parametrize("backend", TOLERANCE)
def test_outputs_are_those_of_onnxruntime(models, kind, expected, backend):
    repository, server = models
    datatypes = {datatype for datatype, _ in expected[0][0].values()}
    repository.config(kind, f'backend: "{backend}" instance_group {{ count: 1 kind: KIND_CPU }}')
    answer = post(server, f"/v2/repository/models/{kind}/load")
    if backend == "embedded" and not datatypes <= EMBEDDED:
        assert answer.status == 400
        assert "which the embedded backend does not serve" in answer.error
        return
    assert answer.status == 200, answer.body
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for inputs, wanted in expected:
            compare(ask(client, kind, inputs), wanted, datatypes, TOLERANCE[backend])
    stats = get(server, f"/v2/models/{kind}/stats").json["model_stats"][0]
    assert stats["inference_count"] == sum(BATCHES)
    assert post(server, f"/v2/repository/models/{kind}/unload").status == 200
