"""The access log: a line for each request, with what its inference came to."""

import json
import os
import queue
import re
import socket
import struct

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from http2_client import split
from http_client import get, infer, post, tensor
from metrics import wait_metric
from repository import FOREVER_US
from server import Server, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
INFER = "/v2/models/mock/infer"
SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "access"


def served(repository, log, *flags):
    return Server(repository, f"--access-log={log}", "--access-log-format=json", *flags)


def records(server, log):
    """The lines of a server that has stopped, apart from times and addresses, by path."""
    server.stop()
    return [json.loads(line) for line in log.read_text().splitlines()]


def grpc_input(rows=1):
    tensor = grpcclient.InferInput("x", [rows, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((rows, 4), np.float32))
    return [tensor]


def test_an_inference_with_its_phases_and_its_batch(repository, log):
    repository.mock(latency_us=2000)
    with served(repository, log) as server:
        assert infer(server, "mock", ZEROS, id="seven").status == 200
        [record] = records(server, log)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["time"])
    assert record["client"].startswith("127.0.0.1:")
    expected = {
        "protocol": "HTTP/1.1", "method": "POST", "path": INFER, "status": 200, "model": "mock", "version": 1,
        "id": "seven", "batch_size": 1, "reason": "no_batching",
    }
    assert {key: record[key] for key in expected} == expected
    assert record["compute_infer_us"] >= 2000
    phases = ("compute_input_us", "compute_infer_us", "compute_output_us")
    # Each is rounded down by itself.
    assert 0 <= record["compute_us"] - sum(record[phase] for phase in phases) <= 3
    assert record["total_us"] >= record["queue_us"] + record["compute_us"]


def test_bytes_in_and_out(repository, log):
    repository.mock()
    body = json.dumps({"inputs": ZEROS}).encode()
    answers = queue.Queue()
    with served(repository, log) as server:
        assert get(server, "/v2/health/ready").body == b""
        answer = post(server, INFER, body)
        with grpcclient.InferenceServerClient(server.grpc) as client:
            one = client.infer("mock", grpc_input()).get_response().ByteSize()
            client.start_stream(lambda result, error: answers.put(result))
            client.async_stream_infer("mock", grpc_input())
            streamed = answers.get().get_response().ByteSize()
            client.stop_stream()
        rows = records(server, log)
    shown = {(row["path"].split("/")[-1], "id" in row): (row["bytes_in"], row["bytes_out"]) for row in rows}
    assert shown["ready", False] == (0, 0)
    assert shown["infer", True] == (len(body), len(answer.body))
    # A message has a prefix of five bytes.
    prefix = 5
    assert shown["ModelInfer", True][1] == prefix + one
    assert shown["ModelStreamInfer", True][1] <= streamed
    message_in, stream_in = shown["ModelStreamInfer", True][0], shown["ModelStreamInfer", False][0]
    assert stream_in == prefix + message_in
    assert shown["ModelInfer", True][0] == prefix + message_in
    assert shown["ModelStreamInfer", False][1] > streamed


def test_other_requests_and_refusals_say_why(repository, log):
    repository.mock()
    wrong = [tensor("x", "FP32", [1, 5], [0] * 5)]
    with served(repository, log) as server:
        assert get(server, "/v2/health/ready").status == 200
        unknown = infer(server, "other", ZEROS)
        refused = infer(server, "mock", wrong)
        missing = get(server, "/nowhere")
        generated = post(server, "/v2/models/mock/generate", {"x": [0, 0, 0, 0]})
        rows = records(server, log)
    shown = [(row["path"], row["status"], row.get("model"), row.get("error")) for row in rows]
    assert shown == [
        ("/v2/health/ready", 200, None, None),
        ("/v2/models/other/infer", unknown.status, None, unknown.error),
        (INFER, 400, "mock", refused.error),
        ("/nowhere", 404, None, missing.json["error"]),
        ("/v2/models/mock/generate", generated.status, "mock", None),
    ]
    assert "batch_size" not in rows[2]
    assert rows[4]["batch_size"] == 1


def test_grpc_calls_and_each_request_of_a_stream(repository, log):
    repository.mock()
    answers = queue.Queue()
    with served(repository, log) as server:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            client.infer("mock", grpc_input(), request_id="a")
            client.infer("mock", grpc_input(), compression_algorithm="gzip")
            with pytest.raises(InferenceServerException):
                client.infer("other", grpc_input())
            client.start_stream(lambda result, error: answers.put(error))
            client.async_stream_infer("mock", grpc_input(), request_id="s1")
            client.async_stream_infer("other", grpc_input(), request_id="s2")
            assert answers.get() is None
            assert "other" in str(answers.get())
            client.stop_stream()
        rows = records(server, log)
    shown = [(row["path"], row["status"], row.get("id"), row.get("batch_size"), row.get("error")) for row in rows]
    unknown = "Request for unknown model: 'other' is not found"
    # The second request of a stream may be over before the first.
    assert sorted(shown, key=str) == sorted([
        (f"{SERVICE}/ModelInfer", "OK", "a", 1, None),
        (f"{SERVICE}/ModelInfer", "OK", "", 1, None),
        (f"{SERVICE}/ModelInfer", "NOT_FOUND", None, None, unknown),
        (f"{SERVICE}/ModelStreamInfer", "OK", "s1", 1, None),
        (f"{SERVICE}/ModelStreamInfer", "NOT_FOUND", None, None, unknown),
        (f"{SERVICE}/ModelStreamInfer", "OK", None, None, None),
    ], key=str)
    assert {row["protocol"] for row in rows} == {"gRPC"}


def test_a_client_that_leaves_has_no_status(repository, log):
    repository.mock(latency_us=FOREVER_US)
    with served(repository, log, "--exit-timeout-secs=1") as server:
        host, port = server.http.split(":")
        body = json.dumps({"inputs": ZEROS}).encode()
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (INFER.encode(), len(body), body))
            wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1", instance="mock_0_0")
            # Closing it resets the connection, which no client that waits does.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_until(lambda: any(json.loads(line)["path"] == INFER for line in log.read_text().splitlines()))
    [row] = [json.loads(line) for line in log.read_text().splitlines() if INFER in line]
    assert (row["status"], row["model"]) == (None, "mock")


def test_a_stream_that_is_cut_is_no_success(repository, log):
    repository.mock()
    answers = queue.Queue()
    with served(repository, log) as server:
        client = grpcclient.InferenceServerClient(server.grpc)
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer("mock", grpc_input(), request_id="a")
        assert answers.get() is None
        client.stop_stream(cancel_requests=True)
        client.close()
        # A stop that overtakes the client would end the stream itself.
        server.wait_until(lambda: len(log.read_text().splitlines()) == 2)
        rows = records(server, log)
    assert [(row.get("id"), row["status"]) for row in rows] == [("a", "OK"), (None, None)]


def test_restricted_calls_say_why(repository, log):
    repository.mock()
    with served(repository, log, "--http-restricted-api=health:secret=x") as server:
        refused = get(server, "/v2/health/ready")
        assert refused.status == 403
        [row] = records(server, log)
    assert (row["status"], row["error"]) == (403, refused.error)


def test_lines_that_a_slow_file_has_no_room_for_are_said_once(repository, tmp_path):
    repository.mock()
    log = tmp_path / "fifo"
    os.mkfifo(log)
    # Opened for both, so that opening waits for nobody; nothing is read.
    with open(os.open(log, os.O_RDWR), "rb"), Server(repository, f"--access-log={log}") as server:
        with socket.create_connection(split(server.http)) as client:
            requests = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 100
            while "the access log dropped" not in server.log:
                client.sendall(requests)
                assert client.recv(1 << 20)
        assert server.log.count("the access log dropped") == 1


def test_lines_of_words(repository, log):
    repository.mock()
    with Server(repository, f"--access-log={log}") as server:
        assert infer(server, "mock", ZEROS, id="a b").status == 200
        server.stop()
    [line] = log.read_text().splitlines()
    assert re.fullmatch(
        r'\S+Z 127\.0\.0\.1:\d+ HTTP/1\.1 POST /v2/models/mock/infer 200 total_us=\d+ bytes_in=\d+ bytes_out=\d+ model=mock version=1 id="a b" '
        r"queue_us=\d+ compute_us=\d+ batch_size=1 reason=no_batching",
        line,
    )


def test_a_file_that_cannot_be_opened_ends_the_start(repository):
    repository.mock()
    code, log = serve_and_fail(repository, "--access-log=/nowhere/access")
    assert code == 1
    assert "cannot open the access log `/nowhere/access`: No such file or directory" in log
