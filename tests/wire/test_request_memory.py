"""`--max-request-memory`: the memory that the server really uses for requests and answers, however few bytes they are sent as; and
that others are answered meanwhile."""

import contextlib
import gzip
import json
import struct
import threading

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2

from http2_client import Http2, infer_message
from http_client import connect, get, infer, post, send, tensor
from metrics import metrics
from process import MIB, open_files, private_bytes, wait_until
from repository import Repository, graph, plus
from server import DEADLINE_S, Server
from test_worst_day import head, open_socket, read_to_end

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
MEMORY = 64 * MIB
# What the server takes beside the memory of requests while it is under load: buffers of connections and of the reactor,
# and what the allocator keeps.
OTHER = 48 * MIB
WRITE_MS = 400
# Elements of a large answer: 16 MiB.
LARGE = 4 << 20
# gRPC's code.
RESOURCE_EXHAUSTED = "8"


# Half a second a request, one at a time.
SLOW = """backend: "mock" max_batch_size: 1 instance_group { count: 1 kind: KIND_CPU }
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
parameters { key: "mock.latency_us" value { string_value: "500000" } }"""


def expand():
    """`y` is `x` LARGE times: a small request with a large answer."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], np.array([1, LARGE]))
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    # Without a batch dimension: each answer is memory of its own.
    return graph([node], [("x", "FP32", (1, 1))], [("y", "FP32", (1, LARGE))], [shape])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("memory") / "models")
    repository.onnx("m", plus(1))
    repository.onnx("wide", plus(1, shape=("batch", 400_000)))
    repository.onnx("large", expand())
    repository.config("slow", SLOW)
    (repository.path / "slow" / "1").mkdir()
    flags = [f"--write-timeout-ms={WRITE_MS}", "--exit-timeout-secs=1"]
    with Server(repository, *flags, f"--max-request-memory={MEMORY}") as server:
        assert infer(server, "m", ZEROS).status == 200
        # What the model keeps for its runs is not what requests take.
        for _ in range(4):
            assert post(server, "/v2/models/large/infer", large_body()).status == 200
        yield server
        assert infer(server, "m", ZEROS).status == 200


@contextlib.contextmanager
def bounded(server):
    """Memory stays within the bound while the block runs, and others are answered; all is given back behind it."""
    before = private_bytes(server)
    done, most, answers = threading.Event(), [0], []

    def look():
        with connect(server.http) as connection:
            while not done.is_set():
                answers.append(send(connection, "GET", "/v2/health/live").status)
                most[0] = max(most[0], private_bytes(server) - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(DEADLINE_S)
    assert set(answers) == {200}
    assert most[0] < MEMORY + OTHER, f"{most[0] >> 20} MiB"
    wait_until(lambda: used(server) == 0, "all memory of requests is given back")


def used(server):
    return metrics(server)["skep_request_memory_bytes", frozenset({("kind", "used")})]


def of_grpc(server, message, method="ModelInfer"):
    """Status and text of a call."""
    channel = grpc.insecure_channel(
        server.grpc, options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    )
    with channel, pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(message, timeout=DEADLINE_S)
    return failure.value.code(), failure.value.details()


def repeated(number, count, data=b""):
    """A field of a message again and again, as it travels."""
    return (bytes([number << 3 | 2, len(data)]) + data) * count


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (repeated(5, 8 * MIB), grpc.StatusCode.INVALID_ARGUMENT, "the request has more than 4096 inputs and outputs"),
        (repeated(6, 8 * MIB), grpc.StatusCode.INVALID_ARGUMENT, "the request has more than 4096 inputs and outputs"),
        (repeated(7, 8 * MIB), grpc.StatusCode.INVALID_ARGUMENT, "the request has more than 4096 raw input contents"),
        (repeated(4, 4 * MIB, b"\x0a\0"), grpc.StatusCode.INVALID_ARGUMENT, "the request has more than 4096 parameters"),
    ],
    ids=["inputs", "outputs", "raw contents", "parameters"],
)
def test_entries_of_a_message_are_bounded_before_it_is_decoded(server, message, code, text):
    with bounded(server):
        for _ in range(3):
            assert of_grpc(server, message) == (code, text)


def typed(field, values):
    """An input of packed values."""
    contents = service_pb2.InferTensorContents(**{field: values}).SerializeToString()
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="BOOL", shape=[1]).SerializeToString()
    tensor += bytes([5 << 3 | 2]) + varint(len(contents)) + contents
    return bytes([5 << 3 | 2]) + varint(len(tensor)) + tensor


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize(
    "message",
    [typed("int64_contents", [1] * (16 * MIB)), typed("bytes_contents", [b""] * (8 * MIB))],
    ids=["numbers", "strings"],
)
def test_typed_contents_are_charged_for_their_decoded_form(server, message):
    """A byte that becomes eight, and two that become thirty-two."""
    with bounded(server):
        code, text = of_grpc(server, message)
        assert (code, "memory of requests is full" in text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), text


def test_a_fitting_message_of_many_elements_is_answered(server):
    """Decoded on another thread, and charged."""
    message = service_pb2.ModelInferRequest(model_name="wide")
    contents = service_pb2.InferTensorContents(fp32_contents=[1.5] * 400_000)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 400_000], contents=contents)
    with bounded(server), grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = service_pb2.ModelInferResponse.FromString(call(message.SerializeToString(), timeout=DEADLINE_S))
    assert answer.raw_output_contents[0] == np.full(400_000, 2.5, np.float32).tobytes()


MANY = MIB


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("models/m/infer", '{"inputs":[%s]}' % ",".join(['{"name":"","shape":[],"datatype":""}'] * 400_000)),
        ("models/m/infer", '{"inputs":[],"parameters":{"a":[%s]}}' % ",".join(['{"a":0}'] * MANY)),
        ("models/m/infer", '{"inputs":[{"parameters":{"a":[%s]}}]}' % ",".join(['{"a":0}'] * MANY)),
        ("models/m/infer", '{"inputs":[{"shape":[%s]}]}' % ",".join(["1"] * 4 * MANY)),
        ("models/m/infer", '{"inputs":[],"id":[%s]}' % ",".join(["[]"] * 2 * MANY)),
        ("models/m/infer", '{"x":[%s]}' % ",".join(['{"a":0}'] * MANY)),
        ("models/m/generate", "{%s}" % ",".join(f'"{n}":0' for n in range(MANY))),
        ("models/m/generate", '{"a":[%s]}' % ",".join(['{"a":0}'] * MANY)),
        ("models/m/generate", '{"parameters":{"a":[%s]}}' % ",".join(['{"a":0}'] * MANY)),
        ("repository/models/m/load", '{"parameters":{"file:x":[%s]}}' % ",".join(['{"a":0}'] * MANY)),
        ("repository/models/m/unload", '{"x":[%s]}' % ",".join(['{"a":0}'] * MANY)),
        ("repository/index", '{"x":[%s]}' % ",".join(['{"a":0}'] * MANY)),
        ("logging", '{"log_info":[%s]}' % ",".join(['{"a":0}'] * MANY)),
    ],
)
def test_unused_json_takes_no_memory(server, path, body):
    """8 MiB of objects would be more than half a gigabyte."""
    with bounded(server):
        answer = post(server, f"/v2/{path}", body)
    assert answer.status in (400, 500, 503), answer.status
    assert answer.error


def test_json_data_is_charged_for_its_decoded_form(server):
    """15 MiB of text that is 60 MiB of numbers."""
    count = 15 * MIB // 2
    body = '{"inputs":[{"name":"x","datatype":"FP64","shape":[%d],"data":[%s]}]}' % (count, ",".join(["1"] * count))
    with bounded(server):
        answer = post(server, "/v2/models/m/infer", body)
    assert (answer.status, "memory of requests is full" in answer.error) == (503, True), answer.error
    assert answer.headers["Retry-After"]


def test_messages_of_management_calls_are_short(server):
    with bounded(server):
        code, text = of_grpc(server, bytes(2 * MIB), "LogSettings")
        assert (code, text) == (
            grpc.StatusCode.OUT_OF_RANGE,
            "a message has 2097152 bytes, this call accepts at most 1048576",
        )
        packed = gzip.compress(bytes(2 * MIB))
        with Http2(server.grpc) as client:
            path = "/inference.GRPCInferenceService/LogSettings"
            kind = {"content_type": "application/grpc", "te": "trailers", "grpc_encoding": "gzip"}
            stream = client.begin("POST", path, end_stream=False, **kind)
            client.data(stream, struct.pack(">BI", 1, len(packed)) + packed, end_stream=True)
            headers = client.answer(stream)[0]
            assert (headers["grpc-status"], "1048576" in headers["grpc-message"]) == (RESOURCE_EXHAUSTED, True)


def test_requests_of_a_stream_in_flight_share_the_bound(server):
    """The model takes its time: of 60 requests of 4 MiB each about 15 fit, the next one ends the stream."""
    message = infer_message("slow", shape=(1, MIB), data=bytes(4 * MIB))
    with bounded(server), grpc.insecure_channel(server.grpc) as channel:
        calls = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = calls(iter([message] * 60), timeout=DEADLINE_S)
        with pytest.raises(grpc.RpcError) as failure:
            list(answers)
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def large_body(binary=True):
    return json.dumps({
        "inputs": [tensor("x", "FP32", [1, 1], [0.1])],
        "outputs": [{"name": "y", "parameters": {"binary_data": binary}}],
    }).encode()


def ask_large(stack, server, protocol):
    """Asks for a large answer that is never read."""
    body = large_body()
    if protocol == "http1":
        reader = stack.enter_context(open_socket(server.http))
        reader.sendall(head(len(body), "/v2/models/large/infer") + body)
    elif protocol == "http2":
        reader = stack.enter_context(Http2(server.http))
        stream = reader.begin("POST", "/v2/models/large/infer", end_stream=False)
        reader.data(stream, body, end_stream=True)
    else:
        reader = stack.enter_context(Http2(server.grpc))
        method = "ModelInfer" if protocol == "grpc" else "ModelStreamInfer"
        reader.call(method, infer_message("large", shape=(1, 1), data=bytes(4)))
    return reader


def asked(server):
    """Requests for large answers that have been answered, also with an error."""
    names = ("nv_inference_request_success", "nv_inference_request_failure")
    return sum(value for (name, labels), value in metrics(server).items() if name in names and ("model", "large") in labels)


@pytest.mark.parametrize("protocol", ["http1", "http2", "grpc", "stream"])
def test_unread_answers_share_the_limit_and_are_given_up(server, protocol):
    """30 of 16 MiB: those that do not fit are refused, the others given up when nothing of them was taken for so long."""
    files = open_files(server)
    before = asked(server)
    with bounded(server), contextlib.ExitStack() as stack:
        for _ in range(30):
            ask_large(stack, server, protocol)
        wait_until(lambda: asked(server) >= before + 30, "all have run, or were refused")
        wait_until(lambda: used(server) == 0, "what the answers held is given back")
        if protocol == "http1":
            wait_until(lambda: open_files(server) <= files + 30, "connections that take nothing are closed")


def test_an_answer_beyond_the_bound_is_refused_and_can_be_tried_again(server):
    """Each element is `0.10000000149011612` in JSON."""
    with bounded(server):
        answer = post(server, "/v2/models/large/infer", large_body(binary=False))
    assert (answer.status, "memory of requests is full" in answer.error) == (503, True), answer.error
    assert answer.headers["Retry-After"]
    assert post(server, "/v2/models/large/infer", large_body()).status == 200


def test_a_compressed_answer_is_charged(server):
    with bounded(server):
        answer = post(server, "/v2/models/large/infer", large_body(), {"Accept-Encoding": "gzip"})
    assert answer.status == 200
    assert answer.headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize("protocol", ["http2", "grpc"])
def test_pings_do_not_keep_an_unread_answer(server, protocol):
    """The answer is reset; what else the connection asks for is answered before and after."""
    with bounded(server), contextlib.ExitStack() as stack:
        reader = ask_large(stack, server, protocol)
        reset = False
        for event in unacknowledged(reader):
            name = type(event).__name__
            if name == "StreamReset":
                assert event.stream_id == 1
                reset = True
                break
            if name in ("DataReceived", "PingAckReceived"):
                reader.state.ping(b"12345678")
                reader.flush()
        assert reset
        reader.state.increment_flow_control_window(16 * MIB)
        if protocol == "http2":
            assert reader.answer(reader.begin("GET", "/v2/health/ready"))[0][":status"] == "200"
        else:
            assert reader.answer(reader.call("ServerLive", b""))[0]["grpc-status"] == "0"


def unacknowledged(client):
    """Events without any window opened."""
    for frame in client.frames():
        yield from client.state.receive_data(frame)
        client.flush()


def test_a_reader_of_a_byte_at_a_time_is_given_up(server):
    """Over HTTP/2, where each byte is a window of its own; the connection's other answers go on."""
    with bounded(server), contextlib.ExitStack() as stack:
        reader = ask_large(stack, server, "http2")
        reset = False
        for event in unacknowledged(reader):
            if type(event).__name__ == "StreamReset":
                reset = True
                break
            reader.state.increment_flow_control_window(1)
            reader.state.increment_flow_control_window(1, 1)
            reader.flush()
        assert reset


def test_an_http2_connection_needs_no_request(tmp_path):
    repository = Repository(tmp_path / "models")
    repository.onnx("m", plus(1))
    with Server(repository, "--head-timeout-ms=200") as server, contextlib.ExitStack() as stack:
        patient = [stack.enter_context(Http2(address)) for address in (server.http, server.grpc)]
        with open_socket(server.http) as silent, open_socket(server.grpc) as another:
            # Those that say nothing are closed meanwhile: the time of a head is over for all.
            assert read_to_end(silent) == b""
            assert b"200" not in read_to_end(another)
        assert patient[0].answer(patient[0].begin("GET", "/v2/health/ready"))[0][":status"] == "200"
        assert patient[1].answer(patient[1].call("ServerLive", b""))[0]["grpc-status"] == "0"


def test_load_requests_are_charged_with_their_files(server):
    """48 MiB of base64: it fits as it comes, and not with what becomes of it."""
    body = '{"parameters":{"file:1/model.onnx":"%s"}}' % ("A" * (48 * MIB))
    with bounded(server):
        answer = post(server, "/v2/repository/models/m/load", body)
    assert (answer.status, "memory of requests is full" in answer.error) == (503, True), answer.error


def test_the_gauges_show_use_and_limit(server):
    figures = metrics(server)
    assert figures["skep_request_memory_bytes", frozenset({("kind", "limit")})] == MEMORY
    assert figures["skep_request_memory_bytes", frozenset({("kind", "used")})] == 0


def test_unread_streams_are_charged_and_do_not_block_the_others(tmp_path):
    """Eight streams send as much as they may and read nothing; a call on the same connection is answered."""
    repository = Repository(tmp_path / "models")
    repository.onnx("m", plus(1, shape=("batch", 128 << 10)))
    message = infer_message("m", shape=(1, 128 << 10), data=bytes(512 << 10))
    sent = 0
    with Server(repository, "--exit-timeout-secs=1") as server, Http2(server.grpc) as client:
        # The server says at first how much it takes.
        assert client.answer(client.call("ServerLive", b""))[0]["grpc-status"] == "0"
        for _ in range(8):
            path = "/inference.GRPCInferenceService/ModelStreamInfer"
            stream = client.begin("POST", path, end_stream=False, content_type="application/grpc", te="trailers")
            data = memoryview((struct.pack(">BI", 0, len(message)) + message) * 8)
            while room := min(client.state.local_flow_control_window(stream), 1 << 14, len(data)):
                client.data(stream, bytes(data[:room]))
                data = data[room:]
                sent += room
        assert sent > 15 * MIB
        wait_until(lambda: used(server) > 15 * MIB, "what was sent is counted")
        live = client.call("ServerLive", b"")
        for event in unacknowledged(client):
            if type(event).__name__ == "DataReceived":
                # The connection's window opens, no stream's does.
                client.state.increment_flow_control_window(event.flow_controlled_length)
                client.flush()
            if type(event).__name__ == "StreamEnded" and event.stream_id == live:
                break
        else:
            raise AssertionError("the connection closed before the call was answered")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_requests_that_fill_their_windows_do_not_block_the_connection(server, protocol):
    """Whatever number of requests is not read, another one has room: the connection takes what all streams together may."""
    with Http2(getattr(server, protocol)) as client:
        # The server says at first how much it takes.
        client.answer(client.begin("GET", "/v2/health/live"))
        settings = client.state.remote_settings
        window = client.state.outbound_flow_control_window
        assert window >= settings.max_concurrent_streams * settings.initial_window_size, (window, settings)
