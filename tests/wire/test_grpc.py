"""gRPC with hand-made messages: contents, codes, versions, reflection."""

import queue

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from repository import DATATYPES, Repository, identity, plus, unbatched
from server import Server

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`plus` in versions 1 and 2; identities of all datatypes by name, [-1]; scripted `failing`."""
    repository = Repository(tmp_path_factory.mktemp("grpc"))
    for version in (1, 2):
        repository.onnx("plus", plus(version), version, config="version_policy { all {} }")
    for datatype in DATATYPES:
        repository.onnx(datatype, identity(datatype, ["n"]), config=unbatched(datatype, [-1]))
    repository.mock("failing", fail_every=1)
    with Server(repository) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc, options=UNLIMITED) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(model, datatype, shape, raw=None, name="INPUT0", **contents):
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents:
        request.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def failure(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code(), caught.value.details()


def test_g1_health_and_metadata(stub):
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="plus", version="1")).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="nosuch")).ready
    assert "statistics" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="plus"))
    assert list(metadata.versions) == ["1", "2"]
    assert (metadata.platform, metadata.inputs[0].datatype) == ("onnxruntime_onnx", "FP32")
    assert list(metadata.inputs[0].shape) == [-1, 4]


@pytest.mark.parametrize(("version", "served"), [("", "2"), ("1", "1"), ("2", "2")])
def test_g20_an_empty_version_is_the_latest_and_the_id_is_echoed(stub, version, served):
    request = message("plus", "FP32", [1, 4], np.zeros(4, np.float32).tobytes(), name="x")
    request.model_version = version
    request.id = f"id {version}"
    answer = stub.ModelInfer(request)
    assert (answer.model_name, answer.model_version, answer.id) == ("plus", served, request.id)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [float(served)] * 4


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d != "BYTES"])
def test_g2_raw_contents_of_every_datatype(stub, datatype):
    data = np.array([0, 1, 1], DATATYPES[datatype][0]).tobytes()
    answer = stub.ModelInfer(message(datatype, datatype, [3], data))
    assert answer.outputs[0].datatype == datatype
    assert list(answer.outputs[0].shape) == [3]
    assert list(answer.raw_output_contents) == [data]
    assert not answer.outputs[0].HasField("contents")


TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.5]),
    "FP64": ("fp64_contents", [0.1, -1 / 3]),
    "BYTES": ("bytes_contents", [b"", b"\x00\xff"]),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_g3_typed_contents(stub, datatype):
    field, values = TYPED[datatype]
    answer = stub.ModelInfer(message(datatype, datatype, [2], **{field: values}))
    raw = answer.raw_output_contents[0]
    if datatype == "BYTES":
        assert raw == b"\0\0\0\0\x02\0\0\0\x00\xff"
    else:
        assert np.frombuffer(raw, DATATYPES[datatype][0]).tolist() == values


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (message("FP32", "FP32", [1], b"\0" * 4, fp32_contents=[1]), "raw_input_contents"),
        (message("FP32", "FP32", [2], b"\0" * 4), "Expected 8, got 4"),
        (message("FP32", "FP32", [2], fp32_contents=[1]), "Expected 8, got 4"),
        (message("FP32", "FP32", [2], int_contents=[1, 2]), "INPUT0"),
        (message("FP32", "FP32", [2]), "INPUT0"),
        (message("INT8", "INT8", [1], int_contents=[128]), "128"),
        (message("FP16", "FP16", [1], fp32_contents=[1]), "FP16"),
        (message("FP32", "FP31", [1], b"\0" * 4), "FP31"),
        (message("FP32", "INT32", [1], b"\0" * 4), "data-type is 'INT32', but model 'FP32' expects 'FP32'"),
        (message("FP32", "FP32", [-1], b"\0" * 4), "negative"),
        (message("FP32", "FP32", [2**62, 2**62], b"\0" * 4), "INPUT0"),
        (message("FP32", "FP32", [1], b"\0" * 4, name="other"), "unexpected inference input 'other'"),
        (message("BYTES", "BYTES", [2], b"\xff\0\0\0a"), "INPUT0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_g3_g4_bad_contents_are_invalid_arguments(stub, request_, text):
    code, details = failure(stub.ModelInfer, request_)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text in details
    assert stub.ModelInfer(message("FP32", "FP32", [1], b"\0" * 4)).outputs[0].name == "OUTPUT0"


def test_g3_more_raw_contents_than_inputs(stub):
    request = message("FP32", "FP32", [1], b"\0" * 4)
    request.raw_input_contents.append(b"\0")
    code, details = failure(stub.ModelInfer, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in details


def test_f3_requested_outputs(stub):
    request = message("FP32", "FP32", [1], b"\0" * 4)
    request.outputs.add(name="nosuch")
    code, details = failure(stub.ModelInfer, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "unexpected inference output 'nosuch' for model 'FP32'" in details


def test_g4_g20_a_version_that_is_not_a_number(stub):
    for call, request in (
        (stub.ModelInfer, message("FP32", "FP32", [1], b"\0" * 4)),
        (stub.ModelMetadata, pb.ModelMetadataRequest(name="FP32", version="abc")),
        (stub.ModelReady, pb.ModelReadyRequest(name="FP32", version="abc")),
    ):
        if isinstance(request, pb.ModelInferRequest):
            request.model_version = "abc"
        code, details = failure(call, request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("failed to get model version from specified version string 'abc' (details: stol)")
    assert not stub.ModelReady(pb.ModelReadyRequest(name="FP32", version="9")).ready


@pytest.mark.parametrize("version", ["1.0.0", " 1", "1 ", "\t+01", "1st"])
def test_g20_a_version_is_read_as_stol_reads_it(stub, version):
    request = message("FP32", "FP32", [1], b"\0" * 4)
    request.model_version = version
    assert stub.ModelInfer(request).model_version == "1"
    assert stub.ModelReady(pb.ModelReadyRequest(name="FP32", version=version)).ready
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name="FP32", version=version)).versions == ["1"]
    assert not stub.ModelReady(pb.ModelReadyRequest(name="FP32", version="2" + version.strip())).ready


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"hello", "at byte 0 the length is 1819043176 (`hell`: was the length left out?), and 1 bytes follow"),
        (b"\1\0\0\0a\0\0", "2 bytes at byte 5 are too few for a length"),
        (b"\1\0\0\0ab\7\0\0\0", "at byte 5 the length is 1890, and 1 bytes follow"),
    ],
)
def test_g4_a_missing_length_is_shown(stub, data, found):
    request = message("BYTES", "BYTES", [1], data)
    code, details = failure(stub.ModelInfer, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "expected 1 string elements for inference input" in details
    assert f"each element begins with its length as 4 bytes, little-endian; {found}" in details


def test_h13_g4_zero_classes_are_refused_unlike_over_http(stub):
    request = message("FP32", "FP32", [1], b"\0" * 4)
    output = request.outputs.add(name="OUTPUT0")
    output.parameters["classification"].int64_param = 0
    assert failure(stub.ModelInfer, request) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid value for 'classification' parameter, expected >= 0",
    )


def test_g4_codes(stub):
    unknown = message("nosuch", "FP32", [1], b"\0" * 4)
    assert failure(stub.ModelInfer, unknown) == (
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'nosuch' is not found",
    )
    for call, request in (
        (stub.ModelMetadata, pb.ModelMetadataRequest(name="nosuch")),
        (stub.ModelConfig, pb.ModelConfigRequest(name="plus", version="9")),
    ):
        assert failure(call, request)[0] == grpc.StatusCode.NOT_FOUND
    assert failure(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="plus")) == (
        grpc.StatusCode.UNAVAILABLE,
        "explicit model load / unload is not allowed if polling is enabled",
    )
    named = pb.RepositoryIndexRequest(repository_name="elsewhere")
    assert failure(stub.RepositoryIndex, named)[0] == grpc.StatusCode.UNIMPLEMENTED
    version = pb.ModelConfigRequest(name="plus", version="abc")
    assert failure(stub.ModelConfig, version)[0] == grpc.StatusCode.INVALID_ARGUMENT
    failing = message("failing", "FP32", [1, 4], b"\0" * 16, name="x")
    code, details = failure(stub.ModelInfer, failing)
    assert code == grpc.StatusCode.INTERNAL
    assert "fail_every" in details


def test_g7_parameters_of_every_type(stub):
    request = message("FP32", "FP32", [1], b"\0" * 4)
    request.parameters["text"].string_param = "a"
    request.parameters["flag"].bool_param = True
    request.parameters["number"].int64_param = -1
    request.parameters["real"].double_param = 0.5
    assert stub.ModelInfer(request).outputs
    request.parameters["triton_x"].int64_param = 1
    code, details = failure(stub.ModelInfer, request)
    assert (code, "reserved for Triton usage" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_g13_messages_have_no_small_limit(stub):
    data = np.arange(16 * MEBIBYTE, dtype=np.float32).tobytes()
    answer = stub.ModelInfer(message("FP32", "FP32", [16 * MEBIBYTE], data))
    assert answer.raw_output_contents[0] == data


def test_h39_zero_elements(stub):
    answer = stub.ModelInfer(message("FP32", "FP32", [0], b""))
    assert (list(answer.outputs[0].shape), list(answer.raw_output_contents)) == ([0], [b""])


def test_g16_config_is_the_full_message(stub):
    config = stub.ModelConfig(pb.ModelConfigRequest(name="plus")).config
    assert (config.name, config.platform, config.backend) == ("plus", "onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 4
    assert config.version_policy.HasField("all")
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", 11, [4])]
    assert config.instance_group[0].count == 2


def reflection(server, version, request):
    """The first answer of `ServerReflectionInfo`, as bytes."""
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        return next(iter(call(iter([request]))))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_g18_reflection(server, version):
    # ServerReflectionRequest: list_services is field 7, file_containing_symbol field 4.
    services = reflection(server, version, b"\x3a\x01*")
    assert b"inference.GRPCInferenceService" in services
    assert b"grpc.health.v1.Health" in services
    symbol = b"inference.GRPCInferenceService"
    descriptor = reflection(server, version, b"\x22" + bytes([len(symbol)]) + symbol)
    assert b"ModelInferRequest" in descriptor and b"raw_input_contents" in descriptor


def test_g18_requests_of_one_reflection_stream_are_answered_one_after_the_other(server):
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        requests = queue.SimpleQueue()
        answers = call(iter(requests.get, None), timeout=20)
        for _ in range(20):
            requests.put(b"\x3a\x01*")
            assert b"inference.GRPCInferenceService" in next(answers)
        requests.put(None)
        assert not list(answers)


def test_g1_garbage_does_no_harm(server, stub):
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff\xff\xff", b"\x0a\xff", b"\0" * 1000):
            with pytest.raises(grpc.RpcError):
                call(data)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/NoSuch")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert stub.ServerReady(pb.ServerReadyRequest()).ready


def test_g3_contents_of_another_datatype_and_missing_contents(stub):
    for request, expected in (
        (
            message("FP32", "FP32", [1], int_contents=[1]),
            "unexpected explicit tensor data for input tensor 'INPUT0' for model 'FP32' of type 'INT32', expected datatype"
            " 'FP32'",
        ),
        (
            message("FP32", "FP32", [1]),
            "unable to find data for input tensor 'INPUT0' for model 'FP32' in request.",
        ),
    ):
        code, details = failure(stub.ModelInfer, request)
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
