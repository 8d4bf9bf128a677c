"""HTTP inference with binary tensor data, in requests and in answers."""

import json

import numpy as np
import pytest

from http_client import HEADER_LENGTH, infer, post, tensor
from repository import Repository, identity, unbatched
from server import Server

FIRST = np.arange(16, dtype=np.int32)
SECOND = np.full(16, 5, dtype=np.int32)


def inputs(first=64, second=64):
    return [
        tensor("INPUT0", "INT32", [1, 16], binary_data_size=first),
        tensor("INPUT1", "INT32", [1, 16], binary_data_size=second),
    ]


BLOB = FIRST.tobytes() + SECOND.tobytes()


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory):
    """`bytes` of shape [-1,-1], and `wide` FP32 [-1,-1]."""
    repository = Repository(tmp_path_factory.mktemp("binary"))
    repository.onnx("bytes", identity("BYTES", ["rows", "columns"]), config=unbatched("BYTES", [-1, -1]))
    repository.onnx("wide", identity("FP32", ["rows", "columns"]), config=unbatched("FP32", [-1, -1]))
    with Server(repository) as server:
        yield server


def test_h9_blobs_are_in_the_order_of_the_inputs(simple):
    answer = infer(simple, "addsub", inputs(), BLOB)
    assert answer.status == 200
    assert answer.json["outputs"][1]["data"] == (FIRST - SECOND).tolist()
    swapped = infer(simple, "addsub", inputs()[::-1], SECOND.tobytes() + FIRST.tobytes())
    assert swapped.json["outputs"] == answer.json["outputs"]


def test_h9_json_and_binary_inputs_mix(simple):
    mixed = [tensor("INPUT0", "INT32", [1, 16], FIRST.tolist()), inputs()[1]]
    answer = infer(simple, "addsub", mixed, SECOND.tobytes())
    assert answer.json["outputs"][0]["data"] == (FIRST + SECOND).tolist()


@pytest.mark.parametrize("missing", [1, 63, 64, 100])
def test_h9_short_data_says_how_much_is_missing(simple, missing):
    answer = infer(simple, "addsub", inputs(), BLOB[:-missing])
    name, bytes_missing = ("INPUT1", missing) if missing <= 64 else ("INPUT0", missing - 64)
    assert answer.status == 400
    assert f"unexpected size for input '{name}', expecting {bytes_missing} additional bytes" in answer.error


def test_h9_additional_data_is_refused(simple):
    answer = infer(simple, "addsub", inputs(), BLOB + b"!")
    assert answer.status == 400
    assert "unexpected additional input data" in answer.error


@pytest.mark.parametrize("size", [0, 60, 63, 65, 68])
def test_h9_sizes_that_contradict_the_shape_are_refused(simple, size):
    answer = infer(simple, "addsub", inputs(first=size), b"\1" * (64 + size))
    assert answer.status == 400
    assert "INPUT0" in answer.error
    assert f"Expected 64, got {size}" in answer.error


@pytest.mark.parametrize("size", [-1, 1.5, "64", 2**70, None, True])
def test_h9_an_invalid_size_is_refused(simple, size):
    answer = infer(simple, "addsub", inputs(first=size), BLOB)
    assert answer.status == 400
    assert "binary_data_size" in answer.error or "no data" in answer.error


def test_h9_binary_data_without_the_header_is_refused(simple):
    answer = post(simple, "/v2/models/addsub/infer", {"inputs": inputs()})
    assert answer.status == 400
    assert HEADER_LENGTH in answer.error


def test_h9_a_header_length_within_the_json_is_refused(simple):
    head = json.dumps({"inputs": inputs()}).encode()
    answer = post(simple, "/v2/models/addsub/infer", head + BLOB, {HEADER_LENGTH: str(len(head) - 1)})
    assert answer.status == 400
    assert "parse" in answer.error


def test_h10_binary_data_output_makes_all_outputs_binary(simple):
    answer = infer(simple, "addsub", inputs(), BLOB, parameters={"binary_data_output": True})
    assert answer.headers["content-type"] == "application/octet-stream"
    head, blob = answer.parts()
    assert [o["parameters"] for o in head["outputs"]] == [{"binary_data_size": 64}] * 2
    assert all("data" not in o for o in head["outputs"])
    assert blob == (FIRST + SECOND).tobytes() + (FIRST - SECOND).tobytes()


def test_h43_each_output_has_its_own_form(simple):
    outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1"}]
    head, blob = infer(simple, "addsub", inputs(), BLOB, outputs=outputs).parts()
    assert head["outputs"][1]["data"] == (FIRST - SECOND).tolist()
    assert blob == (FIRST + SECOND).tobytes()


def strings(*values):
    return b"".join(len(v).to_bytes(4, "little") + v for v in values)


def test_h7_binary_bytes_are_length_and_content(echo_server):
    blob = strings(b"", b"\x00\xff\xfe", b"x" * 3000, "ü".encode())
    request = [tensor("INPUT0", "BYTES", [2, 2], binary_data_size=len(blob))]
    head, got = infer(echo_server, "bytes", request, blob, parameters={"binary_data_output": True}).parts()
    assert head["outputs"][0]["shape"] == [2, 2]
    assert got == blob


@pytest.mark.parametrize(
    "blob",
    [
        strings(b"a"),
        strings(b"a", b"b", b"c"),
        strings(b"a") + b"\x01\x00\x00",
        strings(b"a") + b"\xff\xff\xff\xff",
        strings(b"a") + b"\x02\x00\x00\x00b",
    ],
)
def test_h7_malformed_bytes_are_400(echo_server, blob):
    request = [tensor("INPUT0", "BYTES", [1, 2], binary_data_size=len(blob))]
    answer = infer(echo_server, "bytes", request, blob)
    assert answer.status == 400
    assert "INPUT0" in answer.error


def test_h42_sixteen_mebibytes_come_back_unchanged(echo_server):
    data = np.arange(4 << 20, dtype=np.float32).tobytes()
    request = [tensor("INPUT0", "FP32", [4, 1 << 20], binary_data_size=len(data))]
    head, got = infer(echo_server, "wide", request, data, parameters={"binary_data_output": True}).parts()
    assert head["outputs"][0]["shape"] == [4, 1 << 20]
    assert got == data


def test_h39_zero_elements(echo_server):
    outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    for shape in ([0, 3], [3, 0], [0, 0]):
        request = [tensor("INPUT0", "FP32", shape, binary_data_size=0)]
        head = json.dumps({"inputs": request, "outputs": outputs}).encode()
        answer = post(echo_server, "/v2/models/wide/infer", head, {HEADER_LENGTH: str(len(head))})
        assert answer.status == 200, answer.body
        head, blob = answer.parts()
        assert (head["outputs"][0]["shape"], blob) == (shape, b"")
