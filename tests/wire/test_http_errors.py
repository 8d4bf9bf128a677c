"""Bad HTTP requests: each gets a clear error in JSON, and the server answers the next request."""

import json
import math
import re
import socket

import pytest

from http2_client import Http2
from http_client import HEADER_LENGTH, get, infer, post, raw, request, tensor
from metrics import wait_metric
from repository import Repository, identity
from server import Server
from test_worst_day import open_socket, read_to_end

PATH = "/v2/models/addsub/infer"
ONES = [1] * 16
GOOD = [tensor("INPUT0", "INT32", [1, 16], ONES), tensor("INPUT1", "INT32", [1, 16], ONES)]


@pytest.fixture(autouse=True)
def server_lives_on(simple):
    """After each test a good request is answered."""
    yield
    answer = infer(simple, "addsub", GOOD)
    assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [2] * 16)


def swap(**members):
    """The good inputs, the first one with other members; `None` takes a member out."""
    first = {**GOOD[0], **members}
    return [{key: value for key, value in first.items() if value is not None}, GOOD[1]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"inputs":[]} trailing',
        b'{"inputs":[],}',
        b"{'inputs':[]}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"parameters":' + b'{"a":' * 10_000,
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_h24_malformed_json_is_400(simple, body):
    answer = post(simple, PATH, body)
    assert answer.status == 400
    assert "failed to parse the request JSON buffer" in answer.error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{}", "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        (b'{"inputs":3}', "Unable to parse 'inputs': attempt to access JSON non-array as array"),
        (b'{"inputs":[3]}', "Unable to parse 'name': attempt to access non-existing object member 'name'"),
        (b'{"inputs":[{}]}', "Unable to parse 'name': attempt to access non-existing object member 'name'"),
        (
            b'{"inputs":[],"outputs":[{"nam":"OUTPUT0"}]}',
            "Unable to parse 'name': attempt to access non-existing object member 'name'",
        ),
        (b'{"inputs":[],"id":{}}', "Unable to parse 'id': attempt to access JSON non-string as string"),
    ],
)
def test_h24_json_of_another_form_is_400_in_tritons_words(simple, body, error):
    answer = post(simple, PATH, body)
    assert (answer.status, answer.error) == (400, error)


@pytest.mark.parametrize("member", ["name", "shape", "datatype"])
def test_h24_missing_members_are_400_and_named(simple, member):
    answer = infer(simple, "addsub", swap(**{member: None}))
    expected = f"Unable to parse '{member}': attempt to access non-existing object member '{member}'"
    assert (answer.status, answer.error) == (400, expected)


def test_h24_inputs_without_data_are_400(simple):
    answer = infer(simple, "addsub", swap(data=None))
    assert answer.status == 400
    assert "But no field is set" in answer.error and "'data'" in answer.error


@pytest.mark.parametrize("depth", [101, 5000])
def test_h6_h41_deep_nesting_is_refused(simple, depth):
    body = (
        '{"inputs":[{"name":"INPUT0","datatype":"INT32","shape":[1,1],"data":' + "[" * depth + "1" + "]" * depth + "}]}"
    )
    answer = post(simple, PATH, body.encode())
    assert answer.status == 400
    assert "100" in answer.error or "recursion" in answer.error


def test_h25_unknown_model(simple):
    answer = infer(simple, "nosuch", GOOD)
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'nosuch' is not found")


def test_h25_f3_unexpected_shape(simple):
    for shape in ([1, 15], [1, 4, 4], [3], []):
        answer = infer(simple, "addsub", swap(shape=shape, data=[1] * math.prod(shape)))
        got = str(shape).replace(" ", "")
        assert answer.status == 400
        assert f"unexpected shape for input 'INPUT0' for model 'addsub'. Expected [-1,16], got {got}" in answer.error


def test_h25_f2_batch_size_beyond_the_maximum(simple):
    inputs = [tensor(name, "INT32", [5, 16], [1] * 80) for name in ("INPUT0", "INPUT1")]
    answer = infer(simple, "addsub", inputs)
    assert answer.status == 400
    assert "inference request batch-size must be <= 4 for 'addsub'" in answer.error


def test_f2_batch_sizes_that_differ(simple):
    inputs = [GOOD[0], tensor("INPUT1", "INT32", [2, 16], [1] * 32)]
    answer = infer(simple, "addsub", inputs)
    assert answer.status == 400
    assert "input 'INPUT1' batch size does not match other inputs for 'addsub'" in answer.error


def test_f2_an_empty_batch(simple):
    inputs = [tensor(name, "INT32", [0, 16], []) for name in ("INPUT0", "INPUT1")]
    answer = infer(simple, "addsub", inputs)
    assert answer.status == 400
    assert "INPUT0" in answer.error


def test_h25_wrong_number_of_inputs(simple):
    answer = infer(simple, "addsub", GOOD[:1])
    assert answer.status == 400
    assert "expected 2 inputs but got 1 inputs for model 'addsub'" in answer.error
    assert "missing required input(s) ['INPUT1']" in answer.error


def test_h25_wrong_datatype(simple):
    answer = infer(simple, "addsub", swap(datatype="FP32"))
    assert answer.status == 400
    assert "inference input 'INPUT0' data-type is 'FP32', but model 'addsub' expects 'INT32'" in answer.error


def test_h24_unknown_datatype_is_named(simple):
    answer = infer(simple, "addsub", swap(datatype="FP31"))
    assert answer.status == 400
    assert "FP31" in answer.error and "INPUT0" in answer.error


def test_h25_unknown_input_is_named(simple):
    answer = infer(simple, "addsub", swap(name="INPUT7"))
    assert (answer.status, answer.error) == (400, "unexpected inference input 'INPUT7' for model 'addsub'")


def test_h25_too_many_inputs_are_counted_before_their_names_are_checked(simple):
    answer = infer(simple, "addsub", [*GOOD, tensor("INPUT7", "INT32", [1, 16], ONES)])
    assert answer.status == 400
    expected = "[request id: <id_unknown>] expected 2 inputs but got 3 inputs for model 'addsub'."
    assert answer.error.startswith(expected)


def test_h24_an_input_given_twice(simple):
    answer = infer(simple, "addsub", [GOOD[0], GOOD[0]])
    assert answer.status == 400
    assert "INPUT0" in answer.error


def test_h24_unknown_output_is_named(simple):
    answer = infer(simple, "addsub", GOOD, outputs=[{"name": "OUTPUT7"}])
    assert answer.status == 400
    assert "unexpected inference output 'OUTPUT7' for model 'addsub'" in answer.error


IMPOSSIBLE_SHAPES = [
    [-1, 16],
    [1, -16],
    [2**62, 16],
    [2**63 - 1, 2**63 - 1],
    [2**31, 2**31, 2**31],
    [1] * 100_000,
    [2**63, 1],
    [1.5, 16],
    ["1", 16],
    None,
    16,
]


@pytest.mark.parametrize("shape", IMPOSSIBLE_SHAPES, ids=lambda shape: str(shape)[:24])
def test_h41_impossible_shapes_are_400(simple, shape):
    inputs = [{**GOOD[0], "shape": shape}, GOOD[1]]
    assert infer(simple, "addsub", inputs).status == 400
    inputs = [{**tensor("INPUT0", "INT32", None, binary_data_size=64), "shape": shape}, GOOD[1]]
    answer = infer(simple, "addsub", inputs, b"\0" * 64)
    assert answer.status == 400
    assert answer.error


def test_h26_ids_are_in_errors_and_in_the_log(repository):
    repository.mock(fail_every=1)
    with Server(repository) as server:
        answer = infer(server, "mock", [tensor("x", "FP32", [1, 4], [0] * 4)], id="order-66")
        assert answer.status == 500
        server.wait_for("[request id: order-66]")
        answer = infer(server, "mock", [tensor("x", "FP32", [1, 5], [0] * 5)], id="order-67")
        assert answer.error.startswith("[request id: order-67] unexpected shape for input 'x'")


def test_h24_codes_by_kind(simple):
    load = post(simple, "/v2/repository/models/addsub/load")
    assert (load.status, load.error) == (503, "explicit model load / unload is not allowed if polling is enabled")
    named = post(simple, "/v2/repository/elsewhere/models/addsub/load")
    assert named.status == 501
    assert "repository_name" in named.error
    # The index of a named repository is that of all.
    index = post(simple, "/v2/repository/index").json
    assert post(simple, "/v2/repository/elsewhere/index").json == index


def head(length, *more):
    lines = [f"POST {PATH} HTTP/1.1", "Host: x", f"Content-Length: {length}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("sent", [0, 1, 50])
def test_h41_truncated_bodies_do_not_hang_or_harm(simple, sent):
    body = json.dumps({"inputs": GOOD}).encode()
    assert b"200 OK" not in raw(simple.http, head(len(body)) + body[:sent], half_close=True)


def test_h41_truncated_binary_body(simple):
    inputs = [tensor(name, "INT32", [1, 16], binary_data_size=64) for name in ("INPUT0", "INPUT1")]
    body = json.dumps({"inputs": inputs}).encode()
    sent = head(len(body) + 128, f"{HEADER_LENGTH}: {len(body)}") + body + b"\0" * 100
    assert b"200 OK" not in raw(simple.http, sent, half_close=True)


def test_h41_truncated_chunked_body(simple):
    sent = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n".encode() + b'{"inputs"'
    assert b"200 OK" not in raw(simple.http, sent, half_close=True)


@pytest.mark.parametrize(
    "data",
    [b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ids=["zeros", "no path", "HTTP 9.9", "HTTP 2"],
)
def test_h41_bytes_that_are_not_http_are_refused(simple, data):
    assert b"200 OK" not in raw(simple.http, data, half_close=True)


def test_h31_c26_json_beyond_the_limit_is_refused(repository):
    repository.onnx("echo", identity())
    with Server(repository, "--http-max-input-size=300") as server:
        small = [tensor("INPUT0", "FP32", [1, 4], [0] * 4)]
        assert infer(server, "echo", small).status == 200
        answer = infer(server, "echo", small, id="x" * 300)
        assert answer.status == 400
        assert "300" in answer.error and "--http-max-input-size" in answer.error
        binary = [tensor("INPUT0", "FP32", [4, 4], binary_data_size=64)]
        assert infer(server, "echo", binary, b"\0" * 64).status == 200


def test_h23_every_route_answers_errors_in_json(simple):
    for answer in (
        get(simple, "/nosuch"),
        post(simple, "/v2"),
        post(simple, "/v2/repository/index", b"{"),
        post(simple, "/v2/repository/index", b"[]"),
        post(simple, "/v2/repository/index", {"ready": 1}),
        post(simple, "/v2/repository/models/addsub/load", {"parameters": 3}),
        post(simple, "/v2/repository/models/addsub/unload", {"parameters": {"unload_dependents": 3}}),
    ):
        assert answer.status >= 400
        assert answer.error


def test_h23_a_long_body_of_a_repository_call_gets_an_error_in_json(simple):
    body = b" " * ((2 << 20) + 1)
    start = f"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = raw(simple.http, start.encode() + body)
    assert b" 200 OK" in answer or b'{"error":' in answer


def test_r5_mode_none_ignores_repository(tmp_path):
    """A model that appears after the start is not served."""
    repository = Repository(tmp_path)
    with Server(repository) as server:
        repository.onnx("late", identity())
        assert get(server, "/v2/models/late").status == 404


@pytest.mark.parametrize(
    ("member", "value", "expected"),
    [
        ("datatype", "FOO", "invalid datatype for input INPUT0"),
        (
            "data",
            None,
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters',"
            " 'shared_memory_region' in 'parameters'. But no field is set",
        ),
        ("parameters", {"binary_data_size": 64}, "But set 'data' 'binary_data_size'"),
        (
            "parameters",
            {"binary_data_size": -1},
            "Unable to parse 'binary_data_size': attempt to access JSON non-unsigned-integer as unsigned-integer",
        ),
    ],
)
def test_h9_h25_inputs_are_refused_in_tritons_words(simple, member, value, expected):
    answer = infer(simple, "addsub", swap(**{member: value}))
    assert (answer.status, expected in answer.error) == (400, True), answer.error


@pytest.mark.parametrize(
    "body",
    [
        [None, None, GOOD, None],
        [],
        [GOOD],
        {"inputs": [list(GOOD[0].values()), GOOD[1]]},
        {"inputs": GOOD, "outputs": [["OUTPUT0", None]]},
        {"inputs": GOOD, "parameters": []},
        {"inputs": [{**GOOD[0], "parameters": []}, GOOD[1]]},
        {"inputs": GOOD, "outputs": [{"name": "OUTPUT0", "parameters": []}]},
    ],
    ids=["request", "empty", "short", "input", "output", "parameters", "parameters of input", "parameters of output"],
)
def test_an_array_in_place_of_an_object_is_refused(simple, body):
    answer = post(simple, PATH, body)
    assert answer.status == 400, answer.body
    assert answer.error


@pytest.mark.parametrize("path", ["load", "unload"])
def test_an_array_as_the_body_of_a_management_call_is_refused(simple, path):
    assert post(simple, f"/v2/repository/models/addsub/{path}", []).status >= 400
    assert post(simple, "/v2/logging", []).status == 400
    assert post(simple, "/v2/models/addsub/generate", []).status == 400


@pytest.mark.parametrize("end", ["one", "chunked", "pipelined", "no body"])
def test_a_half_closed_client_gets_its_answer(simple, end):
    body = json.dumps({"inputs": GOOD}).encode()
    chunked = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
    sent, answers = {
        "one": (head(len(body)) + body, 1),
        "chunked": (chunked + body + b"\r\n0\r\n\r\n", 1),
        "pipelined": ((head(len(body)) + body) * 3, 3),
        "no body": (b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n", 1),
    }[end]
    received = raw(simple.http, sent, half_close=True)
    # The server closes the connection behind the last answer.
    assert received.count(b"HTTP/1.1 200 OK") == answers, received


def test_a_half_closed_client_waits_for_a_slow_model(repository):
    repository.mock(latency_us=300_000)
    body = json.dumps({"inputs": [tensor("x", "FP32", [1, 4], [0] * 4)]}).encode()
    start = f"POST /v2/models/mock/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with Server(repository) as server:
        assert raw(server.http, start + body, half_close=True).startswith(b"HTTP/1.1 200 OK")
    with Server(repository, "--half-close-timeout-ms=0") as server:
        assert raw(server.http, start + body, half_close=True) == b""


def test_a_half_closed_client_gets_all_of_a_long_answer(repository):
    repository.onnx("m", identity(shape=("rows", 1 << 20)), config="max_batch_size: 0")
    rows = 4
    data = bytes(rows << 22)
    inputs = [{"name": "INPUT0", "shape": [rows, 1 << 20], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    start = (
        "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(data)}\r\n\r\n"
    ).encode()
    with Server(repository) as server, open_socket(server.http) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.sendall(start + head + data)
        client.shutdown(socket.SHUT_WR)
        # The server has written what the system takes when it says that the request was answered.
        wait_metric(server, "nv_inference_request_success", lambda count: count == 1, model="m", version="1")
        received = read_to_end(client)
    head, _, body = received.partition(b"\r\n\r\n")
    [length] = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head)
    assert len(body) == int(length) > len(data)


@pytest.mark.parametrize("pause", [False, True])
def test_a_truncated_body_gets_an_error(simple, pause):
    with open_socket(simple.http) as client:
        # With a pause, the server reads the end separately; without one, together with the bytes before it.
        client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n" + head(1000) + b"{")
        if pause:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
            assert get(simple, "/v2/health/live").status == 200
        client.shutdown(socket.SHUT_WR)
        received = read_to_end(client)
    assert b"HTTP/1.1 400 Bad Request" in received
    assert b"the client stopped sending before the end of the body" in received


def test_header_fields_are_bounded(simple, repository):
    def status(server, count):
        fields = b"".join(b"X-%d: 1\r\n" % number for number in range(count - 1))
        request = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n"
        return raw(server.http, request, half_close=True).split(b"\r\n")[0]

    assert status(simple, 100) == b"HTTP/1.1 200 OK"
    assert status(simple, 101) == b"HTTP/1.1 431 Request Header Fields Too Large"
    with Server(repository, "--max-header-fields=300") as server:
        assert status(server, 300) == b"HTTP/1.1 200 OK"
        assert status(server, 301) == b"HTTP/1.1 431 Request Header Fields Too Large"
    with Server(repository, "--max-header-fields=12") as server:
        assert status(server, 12) == b"HTTP/1.1 200 OK"
        with Http2(server.http) as client:
            more = {f"x_{number}": "1" for number in range(13)}
            headers, body = client.answer(client.begin("GET", "/v2/health/ready", **more))
            assert headers[":status"] == "431"
            assert b"the limit is 12 (`--max-header-fields`)" in body
            assert client.answer(client.begin("GET", "/v2/health/ready"))[0][":status"] == "200"
        with Http2(server.grpc) as client:
            headers, _ = client.answer(client.call("ServerLive", b"", **more))
            assert headers["grpc-status"] == "8"
            assert "--max-header-fields" in headers["grpc-message"]


def test_bytes_of_a_head_are_bounded(simple):
    for size, status in ((399 << 10, b"200 OK"), (401 << 10, b"431 Request Header Fields Too Large")):
        start = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nx: "
        fields = b"a" * (size - len(start) - 4)
        assert raw(simple.http, start + fields + b"\r\n\r\n", half_close=True).startswith(b"HTTP/1.1 " + status)
    for address in (simple.http, simple.grpc):
        for size, refused in ((15 << 10, False), (17 << 10, True)):
            with Http2(address) as client:
                headers, _ = client.answer(client.begin("GET", "/v2/health/ready", x="a" * size))
                assert (headers[":status"] == "431") == refused, headers


@pytest.mark.parametrize(
    ("method", "path", "why"),
    [
        *[
            (
                method,
                f"/v2/{kind}sharedmemory{path}",
                "shared memory of clients is not enabled, start the server with --allow-client-shm=true",
            )
            for kind in ("system", "cuda")
            for method, path in (
                ("GET", "/status"),
                ("GET", "/region/r/status"),
                ("POST", "/region/r/register"),
                ("POST", "/region/r/unregister"),
                ("POST", "/unregister"),
            )
        ],
    ],
)
def test_calls_that_are_not_served_are_501(simple, method, path, why):
    answer = request(simple.http, method, path, b"{}" if method == "POST" else None)
    assert (answer.status, answer.error) == (501, why)
