"""Every datatype through ONNX Runtime and the embedded backend, on both protocols; scalars and empty tensors."""

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from http_client import infer, tensor
from repository import DATATYPES, Repository, graph, identity, unbatched
from server import Server, serve_and_fail

EMBEDDED = ["FP32", "INT32", "INT8", "UINT8", "BOOL", "INT64"]
CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def onnxruntime(tmp_path_factory):
    """`identity-*` and `addsub-*` of every datatype; `empty-*` of [-1,-1]; `scalar-*`."""
    repository = Repository(tmp_path_factory.mktemp("onnxruntime"))
    for datatype in DATATYPES:
        for kind in ("identity", "addsub"):
            repository.generate(f"{kind}-{datatype.lower()}")
        repository.onnx(f"empty-{datatype}", identity(datatype, ["r", "c"]), config=unbatched(datatype, [-1, -1]))
        repository.onnx(f"scalar-{datatype}", identity(datatype, []))
    with Server(repository) as server:
        yield server


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The same for the datatypes that the embedded backend serves."""
    repository = Repository(tmp_path_factory.mktemp("embedded"))
    backend = 'backend: "embedded" '
    for datatype in EMBEDDED:
        for kind in ("identity", "addsub"):
            repository.generate(f"{kind}-{datatype.lower()}", config=backend)
        config = backend + unbatched(datatype, [-1, -1])
        repository.onnx(f"empty-{datatype}", identity(datatype, ["r", "c"]), config=config)
        repository.onnx(f"scalar-{datatype}", identity(datatype, []), config=backend)
    with Server(repository) as server:
        yield server


def sample(datatype, shape, seed=0, backend="onnxruntime"):
    """Values as tritonclient takes them: BF16 as FP32 that BF16 holds, BYTES as decimal integers."""
    random = np.random.default_rng(seed)
    kind = DATATYPES[datatype][0]
    if datatype == "BYTES":
        return np.array([str(i).encode() for i in random.integers(-99, 99, shape).ravel()], np.object_).reshape(shape)
    if datatype == "BF16":
        return random.integers(-64, 64, shape).astype(np.float32)
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(np.bool_)
    if np.issubdtype(kind, np.floating):
        return random.standard_normal(shape).astype(kind)
    # Halves, so that sums and differences fit but for the unsigned ones, which wrap.
    info = np.iinfo(np.int32 if datatype == "INT64" and backend == "embedded" else kind)
    return random.integers(info.min // 2, info.max // 2, shape, dtype=kind)


def call(server, protocol, model, datatype, inputs):
    """Outputs by name."""
    types = CLIENTS[protocol]
    tensors = []
    for name, data in inputs.items():
        tensors.append(types.InferInput(name, list(data.shape), datatype))
        tensors[-1].set_data_from_numpy(data)
    with types.InferenceServerClient(getattr(server, protocol)) as client:
        result = client.infer(model, tensors)
        names = [o["name"] for o in client.get_model_metadata(model)["outputs"]] if protocol == "http" else None
        names = names or [o.name for o in client.get_model_metadata(model).outputs]
        return {name: result.as_numpy(name) for name in names}


def add_and_subtract(datatype, first, second):
    if datatype == "BYTES":
        first, second = first.astype(np.int64), second.astype(np.int64)
        return [np.vectorize(lambda i: str(i).encode(), otypes=[object])(r) for r in (first + second, first - second)]
    if datatype == "BOOL":
        return first | second, first != second
    if datatype == "FP16":
        wide = first.astype(np.float32), second.astype(np.float32)
        return (wide[0] + wide[1]).astype(np.float16), (wide[0] - wide[1]).astype(np.float16)
    return first + second, first - second


@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize(
    ("backend", "datatype"), [("onnxruntime", d) for d in DATATYPES] + [("embedded", d) for d in EMBEDDED]
)
class TestEveryDatatype:
    @pytest.fixture
    def server(self, request, backend):
        return request.getfixturevalue(backend)

    def test_identity(self, server, backend, protocol, datatype):
        data = sample(datatype, [3, 16], 0, backend)
        got = call(server, protocol, f"identity-{datatype.lower()}", datatype, {"INPUT0": data})["OUTPUT0"]
        assert got.dtype == data.dtype
        assert np.array_equal(got, data)

    def test_addsub(self, server, backend, protocol, datatype):
        first, second = (sample(datatype, [2, 16], seed, backend) for seed in (1, 2))
        got = call(server, protocol, f"addsub-{datatype.lower()}", datatype, {"INPUT0": first, "INPUT1": second})
        for name, expected in zip(("OUTPUT0", "OUTPUT1"), add_and_subtract(datatype, first, second), strict=True):
            assert np.array_equal(got[name], expected), name

    @pytest.mark.parametrize("shape", [[0, 3], [3, 0], [0, 0]], ids=str)
    def test_h39_zero_elements(self, server, protocol, datatype, shape):
        got = call(server, protocol, f"empty-{datatype}", datatype, {"INPUT0": sample(datatype, shape)})["OUTPUT0"]
        assert list(got.shape) == shape

    def test_scalars(self, server, backend, protocol, datatype):
        data = sample(datatype, [1], 0, backend)
        got = call(server, protocol, f"scalar-{datatype}", datatype, {"INPUT0": data})["OUTPUT0"]
        assert list(got.shape) == [1]
        assert np.array_equal(got, data)


def test_h40_not_a_number_and_infinity(onnxruntime):
    values = [float("nan"), float("inf"), float("-inf"), 1.0]
    data = np.array([values * 4], np.float32)
    inputs = [tensor("INPUT0", "FP32", [1, 16], binary_data_size=64)]
    answer = infer(onnxruntime, "identity-fp32", inputs, data.tobytes())
    assert answer.status == 200
    assert b"NaN,Infinity,-Infinity,1.0" in answer.body
    for protocol in CLIENTS:
        got = call(onnxruntime, protocol, "identity-fp32", "FP32", {"INPUT0": data})["OUTPUT0"]
        assert np.array_equal(got, data, equal_nan=True)


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_h39_h41_no_elements_along_a_huge_dimension(request, backend):
    server = request.getfixturevalue(backend)
    for shape in ([0, 2**62], [2**62, 0], [0, 2**63 - 1]):
        answer = infer(server, "empty-FP32", [tensor("INPUT0", "FP32", shape, [])])
        assert answer.status in (200, 400)
        assert answer.status == 400 or answer.json["outputs"][0]["shape"] == shape
    assert infer(server, "empty-FP32", [tensor("INPUT0", "FP32", [1, 1], [1])]).status == 200


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_keeps_every_bit(onnxruntime, datatype):
    # All finite numbers, infinities and signed zeros; not-a-numbers may be quietened.
    bits = np.arange(2**16, dtype=np.uint16)
    exponent = 0x7C00 if datatype == "FP16" else 0x7F80
    is_nan = ((bits & exponent) == exponent) & ((bits & ~np.uint16(exponent | 0x8000)) != 0)
    bits = np.where(is_nan, 0, bits).astype(np.uint16).reshape(4, -1)
    inputs = [tensor("INPUT0", datatype, [4, 2**14], binary_data_size=2**17)]
    answer = infer(onnxruntime, f"empty-{datatype}", inputs, bits.tobytes(), parameters={"binary_data_output": True})
    assert answer.parts()[1] == bits.tobytes()


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in EMBEDDED])
def test_embedded_refuses_other_datatypes_at_load(repository, datatype):
    repository.onnx("m", identity(datatype), config='backend: "embedded"')
    code, log = serve_and_fail(repository)
    assert code == 1
    assert f"has datatype {TensorProto.DataType.Name(DATATYPES[datatype][1])}" in log
    assert "embedded" in log


@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**62])
def test_embedded_refuses_int64_beyond_32_bits_by_request(embedded, protocol, value):
    data = np.zeros([1, 16], np.int64)
    data[0, 5] = value
    with pytest.raises(InferenceServerException) as caught:
        call(embedded, protocol, "identity-int64", "INT64", {"INPUT0": data})
    assert f"input `INPUT0` holds {value} at index 5" in caught.value.message()
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    data[0, 5] = 2**31 - 1
    assert np.array_equal(call(embedded, protocol, "identity-int64", "INT64", {"INPUT0": data})["OUTPUT0"], data)


@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_int32_wraps_around_on_both_backends(request, backend, protocol):
    server = request.getfixturevalue(backend)
    first, second = np.full([1, 16], 2**31 - 1, np.int32), np.full([1, 16], 2, np.int32)
    got = call(server, protocol, "addsub-int32", "INT32", {"INPUT0": first, "INPUT1": second})
    assert np.array_equal(got["OUTPUT0"], first + second)


def test_embedded_refuses_int64_constants_beyond_32_bits_at_load(repository):
    large = helper.make_tensor("large", TensorProto.INT64, [1], [2**40])
    model = graph(
        [helper.make_node("Add", ["x", "large"], ["y"])], [("x", "INT64", ["n"])], [("y", "INT64", ["n"])], [large]
    )
    repository.onnx("m", model, config='backend: "embedded"')
    code, log = serve_and_fail(repository)
    assert code == 1
    assert str(2**40) in log and "`large`" in log


def test_embedded_refuses_hidden_datatypes(repository):
    """FP16 inside of a model whose inputs and outputs are FP32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    repository.onnx(
        "m", graph(nodes, [("x", "FP32", ["n", 4])], [("y", "FP32", ["n", 4])]), config='backend: "embedded"'
    )
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "FLOAT16" in log


@pytest.mark.parametrize(("operator", "attributes"), [("Sign", {}), ("NoSuchOperator", {})])
def test_embedded_refuses_operators_it_computes_wrongly_or_not_at_all(repository, operator, attributes):
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    repository.onnx(
        "m", graph([node], [("x", "FP32", ["n", 4])], [("y", "FP32", ["n", 4])]), config='backend: "embedded"'
    )
    code, log = serve_and_fail(repository)
    assert code == 1
    assert operator in log
