"""HTTP inference with tensor data as JSON: what is accepted, and what the answer looks like."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from http_client import connect, get, infer, post, raw, request, send, tensor
from repository import Repository, identity, plus, unbatched
from server import Server

ONES, TWOS = [1] * 16, [2] * 16
INPUTS = [tensor("INPUT0", "INT32", [1, 16], ONES), tensor("INPUT1", "INT32", [1, 16], TWOS)]


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    """Identity models `INT64`, `BYTES` and so on, of shape [-1,-1]."""
    repository = Repository(tmp_path_factory.mktemp("identities"))
    for datatype in ("BOOL", "INT64", "UINT64", "INT8", "FP32", "FP64", "BYTES", "FP16", "BF16"):
        repository.onnx(datatype, identity(datatype, ["rows", "columns"]), config=unbatched(datatype, [-1, -1]))
    with Server(repository) as server:
        yield server


def echo(server, datatype, shape, data):
    answer = infer(server, datatype, [tensor("INPUT0", datatype, shape, data)])
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]


def test_h5_answer_has_tritons_members_in_order(simple):
    answer = infer(simple, "addsub", INPUTS, id="seven", outputs=[{"name": "OUTPUT1"}])
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["id", "model_name", "model_version", "outputs"]
    assert answer.json == {
        "id": "seven",
        "model_name": "addsub",
        "model_version": "1",
        "outputs": [{"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 16], "data": [-1] * 16}],
    }


def test_h5_f3_all_outputs_when_none_is_asked_for(simple):
    answer = infer(simple, "addsub", INPUTS)
    assert "id" not in answer.json
    assert [o["name"] for o in answer.json["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    assert answer.json["outputs"][0]["data"] == [3] * 16


def test_f3_outputs_come_in_the_order_asked_for(simple):
    names = ["OUTPUT1", "OUTPUT0"]
    answer = infer(simple, "addsub", INPUTS, outputs=[{"name": name} for name in names])
    assert [o["name"] for o in answer.json["outputs"]] == names


def test_h5_inputs_may_come_in_any_order(simple):
    answer = infer(simple, "addsub", INPUTS[::-1])
    assert answer.json["outputs"][1]["data"] == [-1] * 16


def test_h5_h33_infer_on_a_version(repository):
    for version in (1, 2):
        repository.onnx("m", plus(version), version, config="version_policy { all {} }")
    with Server(repository) as server:
        for version, expected in ((None, 2), (1, 1), (2, 2)):
            answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)], version=version)
            assert answer.json["model_version"] == str(version or 2)
            assert answer.json["outputs"][0]["data"] == [expected] * 4
        answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)], version=3)
        assert (answer.status, answer.error) == (404, "Request for unknown model: 'm' version 3 is not found")


def test_h6_flat_and_nested_data_are_the_same(identities):
    for data in ([1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], [[[1], [2], [3]], [[4], [5], [6]]]):
        assert echo(identities, "INT64", [2, 3], data)["data"] == [1, 2, 3, 4, 5, 6]


def test_h6_booleans_are_true_and_false(identities):
    assert echo(identities, "BOOL", [1, 2], [True, False])["data"] == [True, False]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [("INT64", [2**63 - 1, -(2**63), 2**53 + 1]), ("UINT64", [2**64 - 1, 0, 2**53 + 1]), ("INT8", [-128, 127, 0])],
)
def test_h6_integers_are_exact(identities, datatype, values):
    assert echo(identities, datatype, [1, 3], values)["data"] == values


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_h6_floats_survive_a_round_trip(identities, datatype):
    values = [0.5, -1.25, 1e-30, 3e38, 7, 0]
    got = echo(identities, datatype, [1, 6], values)["data"]
    assert got == (values if datatype == "FP64" else pytest.approx(values, rel=1e-7))


def test_h6_fp64_keeps_all_its_digits(identities):
    assert echo(identities, "FP64", [1, 2], [0.1, 1 / 3])["data"] == [0.1, 1 / 3]


def test_h6_single_floats_are_written_with_all_their_digits(identities):
    values = np.array([0.1, 1 / 3, 1e-7, 123456.789], np.float32).tolist()
    assert echo(identities, "FP32", [1, 4], values)["data"] == values


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [1, 3], [1, 2]),
        ("FP32", [1, 3], [1, 2, 3, 4]),
        ("FP32", [1, 1], ["1"]),
        ("FP32", [1, 1], [None]),
        ("FP32", [1, 1], [{}]),
        ("FP32", [1, 1], [True]),
        ("INT64", [1, 1], [1.5]),
        ("INT64", [1, 1], [2**63]),
        ("INT8", [1, 1], [128]),
        ("INT8", [1, 1], [-129]),
        ("UINT64", [1, 1], [-1]),
        ("BOOL", [1, 1], [2]),
        ("BYTES", [1, 1], [1]),
    ],
)
def test_h6_h41_data_that_does_not_fit_is_400_and_named(identities, datatype, shape, data):
    answer = infer(identities, datatype, [tensor("INPUT0", datatype, shape, data)])
    assert answer.status == 400
    assert "INPUT0" in answer.error
    assert echo(identities, datatype, [0, 1], [])["data"] == []


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("number", ["1e400", "-1e400"])
def test_h6_h41_numbers_beyond_all_floats_are_400(identities, datatype, number):
    body = f'{{"inputs":[{{"name":"INPUT0","datatype":"{datatype}","shape":[1,1],"data":[{number}]}}]}}'
    answer = post(identities, f"/v2/models/{datatype}/infer", body.encode())
    assert answer.status == 400
    assert answer.error


def test_h6_wrong_count_says_expected_and_got(identities):
    error = infer(identities, "FP32", [tensor("INPUT0", "FP32", [1, 3], [1, 2])]).error
    assert "expected 3 elements, got 2" in error


def test_h7_bytes_are_json_strings(identities):
    values = ["", "plain", 'quote " and \\', "ünïcødé", "line\nfeed", "\u0000"]
    assert echo(identities, "BYTES", [2, 3], values)["data"] == values


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_h8_half_precision_has_no_json_form(identities, datatype):
    answer = infer(identities, datatype, [tensor("INPUT0", datatype, [1, 1], [1.0])])
    assert answer.status == 400
    assert datatype in answer.error
    inputs = [tensor("INPUT0", datatype, [1, 1], binary_data_size=2)]
    answer = infer(identities, datatype, inputs, b"\x00\x3c", outputs=[{"name": "OUTPUT0"}])
    assert answer.status == 400
    assert datatype in answer.error


def test_h26_ids_are_echoed(simple):
    for given in ("a", "ünï", 'with "quotes"', "x" * 1000):
        assert infer(simple, "addsub", INPUTS, id=given).json["id"] == given


def test_h12_parameters_of_any_scalar_are_accepted(simple):
    parameters = {"mine": "text", "number": 3, "real": 0.5, "flag": True}
    answer = infer(simple, "addsub", INPUTS, parameters=parameters)
    assert answer.status == 200


@pytest.mark.parametrize("parameters", [{"triton_x": 1}, {"mine": [1]}, {"mine": {}}, {"binary_data_output": 3}])
def test_h12_reserved_and_malformed_parameters_are_400(simple, parameters):
    answer = infer(simple, "addsub", INPUTS, parameters=parameters)
    assert answer.status == 400
    key = next(iter(parameters))
    assert (key if key != "triton_x" else "reserved for Triton usage") in answer.error


def test_h28_one_connection_serves_many_requests(simple):
    body = json.dumps({"inputs": INPUTS}).encode()
    with connect(simple.http) as connection:
        connection.connect()
        sock = connection.sock
        for _ in range(20):
            assert send(connection, "POST", "/v2/models/addsub/infer", body).status == 200
            assert send(connection, "GET", "/v2/models/nosuch").status == 404
        assert connection.sock is sock


def test_h28_chunked_bodies(simple):
    body = json.dumps({"inputs": INPUTS}).encode()
    chunks = (body[i : i + 7] for i in range(0, len(body), 7))
    answer = request(simple.http, "POST", "/v2/models/addsub/infer", chunks)
    assert answer.status == 200
    assert answer.json["outputs"][0]["data"] == [3] * 16


def test_h28_expect_100_continue(simple):
    body = json.dumps({"inputs": INPUTS}).encode()
    head = (
        f"POST /v2/models/addsub/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    answer = raw(simple.http, head.encode() + body)
    assert b" 200 OK\r\n" in answer and answer.endswith(b"}")


def test_h28_pipelined_requests_are_answered_in_order(simple):
    paths = ["/v2/models/nosuch", "/v2", "/v2/models/addsub"]
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths[:-1]]
    requests.append(f"GET {paths[-1]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = raw(simple.http, "".join(requests).encode())
    assert answer.find(b"nosuch") < answer.find(b'"extensions"') < answer.find(b'"inputs"')
    assert b'"inputs"' in answer


def test_h28_many_clients_at_once(simple):
    def one(number):
        first = tensor("INPUT0", "INT32", [1, 16], [number] * 16)
        answer = infer(simple, "addsub", [first, INPUTS[1]], id=str(number))
        return answer.json["id"], answer.json["outputs"][0]["data"]

    with ThreadPoolExecutor(8) as pool:
        for number, (given, data) in enumerate(pool.map(one, range(64))):
            assert (given, data) == (str(number), [number + 2] * 16)
