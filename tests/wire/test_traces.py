"""Traces of requests: Triton's file, spans of OpenTelemetry, and the settings over both protocols."""

import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from collector import Collector, attributes, events
from http_client import connect, get, infer, post, send, tensor
from metrics import metrics, wait_metric
from repository import FOREVER_US, plus
from server import Server, run, serve_and_fail
from test_ensembles import chain, ensemble, parameter, row, step, value

PATH = "/v2/trace/setting"
ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
ALL_ON = ["--trace-config=level=TIMESTAMPS", "--trace-config=rate=1"]
RUNTIME = [
    "REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END",
    "REQUEST_END",
]  # fmt: skip
HTTP = ["HTTP_RECV_START", "HTTP_RECV_END", *RUNTIME, "HTTP_SEND_START", "HTTP_SEND_END"]
GRPC = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *RUNTIME, "GRPC_SEND_START", "GRPC_SEND_END"]
DEFAULTS = {
    "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_file": "",
    "trace_mode": "triton",
}  # fmt: skip
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.json"


@pytest.fixture
def models(repository):
    repository.onnx("m", plus(1))
    repository.onnx("n", plus(2))
    return repository


def traced(models, path, *flags):
    return Server(models, f"--trace-config=triton,file={path}", *flags)


def wait_written(server, count):
    wait_metric(server, "skep_traces_written_total", lambda value: value == count)


def traces(path):
    """The traces of a file, by id: what is said of each, and its timestamps."""
    found = {}
    for entry in json.loads(path.read_text()):
        trace = found.setdefault(entry["id"], {"timestamps": [], "tensors": []})
        trace["timestamps"] += [(stamp["name"], stamp["ns"]) for stamp in entry.get("timestamps", [])]
        if "activity" in entry:
            trace["tensors"].append((entry["activity"], entry["tensor"]))
        trace.update({key: value for key, value in entry.items() if key not in ("timestamps", "activity", "tensor")})
    return found


def names(trace):
    return [name for name, _ in trace["timestamps"]]


def grpc_input():
    given = grpcclient.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.zeros((1, 4), np.float32))
    return [given]


def test_c22_a_trace_over_http_has_tritons_points_in_order(models, path):
    with traced(models, path, *ALL_ON) as server:
        assert infer(server, "m", ZEROS, id="seven").status == 200
        wait_written(server, 1)
        # The file is whole while the server runs.
        assert len(traces(path)) == 1
        assert infer(server, "n", ZEROS).status == 200
        assert server.stop() == 0
    first, second = traces(path).values()
    assert (first["id"], first["model_name"], first["model_version"], first["request_id"]) == (1, "m", 1, "seven")
    assert (second["id"], second["model_name"]) == (2, "n") and "request_id" not in second
    for trace in (first, second):
        assert names(trace) == HTTP
        times = [ns for _, ns in trace["timestamps"]]
        assert times == sorted(times)
    assert first["timestamps"][-1][1] < second["timestamps"][0][1]


def test_c22_a_trace_over_grpc_and_on_a_stream(models, path):
    with traced(models, path, *ALL_ON) as server:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            client.infer("m", grpc_input(), request_id="one")
            answers = []
            client.start_stream(lambda result, error: answers.append(error or result))
            client.async_stream_infer("m", grpc_input(), request_id="two")
            client.stop_stream()
            assert len(answers) == 1
        assert server.stop() == 0
    assert {trace["request_id"]: names(trace) for trace in traces(path).values()} == {"one": GRPC, "two": GRPC}


def test_c22_compressed_and_generated_responses_are_traced(models, path):
    with traced(models, path, *ALL_ON, "--grpc-infer-response-compression-level=low") as server:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            client.infer("m", grpc_input(), compression_algorithm="gzip")
        assert post(server, "/v2/models/m/generate", {"x": [0, 0, 0, 0]}).status == 200
        assert server.stop() == 0
    assert [names(trace) for trace in traces(path).values()] == [GRPC, HTTP]


def test_c22_one_request_in_a_rate_up_to_a_count(models, path):
    flags = ["--trace-config=level=TIMESTAMPS", "--trace-config=rate=3", "--trace-config=count=2"]
    with traced(models, path, *flags) as server:
        for number in range(12):
            assert infer(server, "m", ZEROS, id=str(number)).status == 200
        assert get(server, PATH).json["trace_count"] == "0"
        assert server.stop() == 0
    assert [trace["request_id"] for trace in traces(path).values()] == ["2", "5"]


def test_c22_tensors_in_a_trace(models, path):
    flags = ["--trace-config=level=TENSORS", "--trace-config=rate=1"]
    with traced(models, path, *flags) as server:
        assert infer(server, "m", [tensor("x", "FP32", [1, 4], [1, 2.5, 3, 4])]).status == 200
        assert server.stop() == 0
    [trace] = traces(path).values()
    assert trace["timestamps"] == []
    (first, given), (second, got) = trace["tensors"]
    assert (first, second) == ("TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_OUTPUT")
    assert (given["name"], given["shape"], given["dtype"]) == ("x", "1,4", "FP32")
    assert [float(value) for value in given["data"].split(",")] == [1, 2.5, 3, 4]
    assert [float(value) for value in got["data"].split(",")] == [2, 3.5, 4, 5]


def test_c22_a_log_frequency_makes_files_of_so_many_traces(models, path, tmp_path):
    with traced(models, path, *ALL_ON, "--trace-config=triton,log-frequency=2") as server:
        for _ in range(3):
            assert infer(server, "m", ZEROS).status == 200
        assert server.stop() == 0
    assert sorted(file.name for file in tmp_path.glob("trace*")) == ["trace.json.0", "trace.json.1"]
    assert [len(traces(tmp_path / f"trace.json.{index}")) for index in (0, 1)] == [2, 1]


def test_c22_a_request_that_fails_is_traced_without_an_execution(models, path):
    with traced(models, path, *ALL_ON) as server:
        assert infer(server, "m", [tensor("x", "INT32", [1, 4], [0] * 4)]).status == 400
        assert infer(server, "nosuch", ZEROS).status == 404
        assert server.stop() == 0
    [trace] = traces(path).values()
    assert names(trace) == [
        "HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "REQUEST_END", "HTTP_SEND_START", "HTTP_SEND_END",
    ]  # fmt: skip


def test_c22_a_client_that_leaves_ends_its_trace(repository, path):
    repository.mock(latency_us=FOREVER_US)
    with traced(repository, path, *ALL_ON, "--exit-timeout-secs=1") as server:
        host, port = server.http.split(":")
        body = json.dumps({"inputs": ZEROS}).encode()
        with socket.create_connection((host, int(port))) as client:
            head = b"POST /v2/models/mock/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            client.sendall(head + body)
            wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1", instance="mock_0_0")
            # Closing it resets the connection, which no client that waits does.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_written(server, 1)
        [trace] = traces(path).values()
    assert names(trace) == ["HTTP_RECV_START", "HTTP_RECV_END", "REQUEST_START", "QUEUE_START"]


def test_c22_the_older_flags(models, path):
    flags = ["--trace-level=TIMESTAMPS", "--trace-rate=1", "--trace-count=5", "--trace-log-frequency=0"]
    with Server(models, f"--trace-file={path}", *flags) as server:
        expected = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "5", "trace_file": str(path)}
        assert get(server, PATH).json == {**DEFAULTS, **expected}
        assert infer(server, "m", ZEROS).status == 200
        assert server.stop() == 0
    assert len(traces(path)) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trace-config=triton,file=/nonexistent/t.json"], "cannot write the trace file `/nonexistent/t.json`"),
        (["--trace-config=level=TIMESTAMPS"], "no trace file is given"),
        (["--trace-config=rate=1", "--trace-rate=1"], "expected --trace-config alone"),
    ],
)
def test_c22_what_cannot_be_is_an_error_at_the_start(models, flags, words):
    code, log = serve_and_fail(models, *flags)
    assert code == 1 and words in log, log


def test_h21_settings_without_a_file(models):
    with Server(models) as server:
        assert list(get(server, PATH).json.items()) == list(DEFAULTS.items())
        refused = post(server, PATH, {"trace_level": ["TIMESTAMPS"]})
        assert refused.status == 400
        assert refused.error == "Attempting to set invalid trace setting :trace file name is not given"
        assert post(server, PATH, {"trace_rate": "5"}).json == {**DEFAULTS, "trace_rate": "5"}
        assert not any(name.startswith("skep_traces_") for name, _ in metrics(server))


def test_h21_settings_of_the_server_and_of_a_model(models, path):
    with traced(models, path) as server, httpclient.InferenceServerClient(server.http) as client:
        mine = {**DEFAULTS, "trace_file": str(path)}
        assert client.get_trace_settings() == client.get_trace_settings("m") == mine
        changed = client.update_trace_settings("m", {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1"})
        assert changed == {**mine, "trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1"}
        assert client.get_trace_settings("m") == changed
        assert client.get_trace_settings() == client.get_trace_settings("n") == mine
        for model in ("m", "n"):
            assert infer(server, model, ZEROS).status == 200
        wait_written(server, 1)
        # What a model does not set follows the server.
        client.update_trace_settings(settings={"trace_count": "9", "log_frequency": "4", "trace_rate": "7"})
        got = client.get_trace_settings("m")
        assert (got["trace_rate"], got["trace_count"], got["log_frequency"]) == ("1", "9", "4")
        cleared = client.update_trace_settings("m", {"trace_level": None, "trace_rate": None})
        assert cleared == client.get_trace_settings() == {
            **mine, "trace_count": "9", "log_frequency": "4", "trace_rate": "7",
        }  # fmt: skip
        everything = {"trace_count": None, "log_frequency": None, "trace_rate": None, "trace_level": None}
        assert client.update_trace_settings(settings=everything) == mine
        assert server.stop() == 0
    [trace] = traces(path).values()
    assert trace["model_name"] == "m" and len(trace["tensors"]) == 2


def test_h21_traces_before_a_change_are_written_when_it_is_answered(models, path):
    with traced(models, path, *ALL_ON, "--trace-config=triton,log-frequency=100") as server:
        # On one connection an answer has left before the next request is read.
        with connect(server.http) as connection:
            body = json.dumps({"inputs": ZEROS})
            for _ in range(2):
                assert send(connection, "POST", "/v2/models/m/infer", body).status == 200
            changed = send(connection, "POST", PATH, json.dumps({"trace_level": ["OFF"]}))
            assert changed.json["trace_level"] == ["OFF"]
            assert len(traces(path.with_name("trace.json.0"))) == 2
            assert send(connection, "POST", "/v2/models/m/infer", body).status == 200
        assert server.stop() == 0
    assert not path.with_name("trace.json.1").exists()


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"trace_file": "x"}, 501, "trace file location can not be updated through network protocol"),
        ({"trace_mode": "opentelemetry"}, 501, "trace mode can not be updated through network protocol"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, 400, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": ["ALL"]}, 400, "unknown trace level 'ALL', expected OFF, TIMESTAMPS or TENSORS"),
        ({"trace_level": "OFF"}, 400, "attempt to access JSON non-array as array"),
        ({"trace_level": [1]}, 400, "attempt to access JSON non-string as string"),
        ({"trace_rate": 5}, 400, "attempt to access JSON non-string as string"),
        ({"trace_rate": "x"}, 400, "Unable to parse 'trace_rate', got: x"),
        ({"trace_rate": "-1"}, 400, "Unable to parse 'trace_rate', value is out of range [ 0 , 4294967295 ], got: -1"),
        ({"trace_count": "-2"}, 400, "Unable to parse 'trace_count', value is out of range [ -1 , 2147483647 ], got: -2"),
        ({"log_frequency": "x"}, 400, "Unable to parse 'log_frequency', got: x"),
        (
            {"trace_level": ["TIMESTAMPS"], "trace_rate": "0"}, 400,
            "Attempting to set invalid trace setting :sample rate must be non-zero",
        ),
        ([], 400, "the body of a trace settings request must be a JSON object"),
    ],
)  # fmt: skip
def test_h21_wrong_changes_change_nothing(models, path, change, status, text):
    with traced(models, path) as server:
        before = get(server, PATH).json
        for target in ("", "/models/m", "/models/m/versions/1"):
            answer = post(server, f"/v2{target}/trace/setting", change)
            assert (answer.status, answer.error) == (status, text)
        if isinstance(change, dict):
            # The same settings are refused together with a right one.
            assert post(server, PATH, {"trace_count": "3", **change}).status == status
        assert get(server, PATH).json == get(server, "/v2/models/m/trace/setting").json == before
        assert post(server, PATH, {"nosuch": 1, "trace_mode": "triton"}).json == before


def test_h21_unknown_models(models, path):
    with traced(models, path) as server:
        for target in ("nosuch", "m/versions/9"):
            for answer in (
                get(server, f"/v2/models/{target}/trace/setting"),
                post(server, f"/v2/models/{target}/trace/setting", {"trace_rate": "1"}),
            ):
                assert answer.status == 404 and "Request for unknown model" in answer.error
        with grpcclient.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException, match="unknown model") as raised:
                client.get_trace_settings("nosuch")
            assert raised.value.status() == "StatusCode.NOT_FOUND"


def test_g1_settings_over_grpc(models, path):
    with traced(models, path) as server, grpcclient.InferenceServerClient(server.grpc) as client:
        mine = {name: value if isinstance(value, list) else [value] for name, value in DEFAULTS.items()}
        mine["trace_file"] = [str(path)]

        def shown(response):
            return {name: list(setting.value) for name, setting in response.settings.items()}

        assert shown(client.get_trace_settings()) == shown(client.get_trace_settings("m")) == mine
        changed = shown(client.update_trace_settings("m", {"trace_level": ["TENSORS"], "trace_rate": "3", "trace_count": "7"}))
        assert changed == {**mine, "trace_level": ["TENSORS"], "trace_rate": ["3"], "trace_count": ["7"]}
        assert shown(client.get_trace_settings()) == mine
        changed = shown(client.update_trace_settings("m", {"trace_level": None, "trace_rate": None, "trace_count": None}))
        assert changed == mine
        for settings, code, text in (
            ({"trace_rate": ["1", "2"]}, "INVALID_ARGUMENT", "expect only 1 value for 'trace_rate'"),
            ({"trace_count": "x"}, "INVALID_ARGUMENT", "Unable to parse 'trace_count', got: x"),
            ({"trace_file": "x"}, "UNIMPLEMENTED", "trace file location can not be updated through network protocol"),
        ):
            with pytest.raises(InferenceServerException) as raised:
                client.update_trace_settings(settings=settings)
            assert (raised.value.status(), raised.value.message()) == (f"StatusCode.{code}", text)


def test_s50_the_steps_of_an_ensemble_are_children_in_the_file(repository, path):
    chain(repository)
    with traced(repository, path, *ALL_ON) as server:
        assert value(server, 3, id="seven") == 14
        assert server.stop() == 0
    found = {trace["model_name"]: trace for trace in traces(path).values()}
    assert list(found) == ["e", "one", "ten"]
    assert "parent_id" not in found["e"]
    assert {found[part]["parent_id"] for part in ("one", "ten")} == {found["e"]["id"]}
    assert {trace["request_id"] for trace in found.values()} == {"seven"}
    # The ensemble has no execution of its own.
    assert names(found["e"]) == [name for name in HTTP if not name.startswith("COMPUTE_")]
    for part in ("one", "ten"):
        assert names(found[part]) == RUNTIME
    ends = {name: dict(trace["timestamps"])["REQUEST_END"] for name, trace in found.items()}
    assert ends["one"] < ends["ten"] < ends["e"]


def test_s50_the_steps_of_an_ensemble_are_child_spans(repository):
    chain(repository)
    with Collector() as collector, otel(repository, collector, *ALL_ON) as server:
        assert infer(server, "e", row(3)).status == 200
        spans = collector.wait_spans(6)
    known = {span.span_id: span for span in spans}
    nested = sorted((known[span.parent_span_id].name if span.parent_span_id else None, span.name) for span in spans[1:])
    assert spans[0].name == "InferRequest" and spans[0].parent_span_id == b""
    assert nested == [("InferRequest", "e"), ("e", "one"), ("e", "ten"), ("one", "compute"), ("ten", "compute")]
    assert len({span.trace_id for span in spans}) == 1
    numbers = {span.name: attributes(span) for span in spans if span.name in ("e", "one", "ten")}
    assert numbers["one"]["triton.trace_parent_id"] == numbers["ten"]["triton.trace_parent_id"] == numbers["e"]["triton.trace_id"]


def test_s55_a_step_that_waits_for_room_is_one_child(repository, path):
    """It is refused first, and made again."""
    bounded = parameter("max_queue_size", "1")
    repository.mock("slow", latency_us=30_000, config=bounded)
    ensemble(repository, step("slow", "x=in", "y=out"))
    with traced(repository, path, *ALL_ON) as server:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(infer, server, "e", row(1), parameters={"timeout": 60_000_000}) for _ in range(8)]
            assert {answer.result().status for answer in asked} == {200}
        assert server.stop() == 0
    found = list(traces(path).values())
    parts = [trace for trace in found if trace["model_name"] == "slow"]
    assert len(parts) == len({trace["parent_id"] for trace in parts}) == 8
    assert all(names(trace) == RUNTIME for trace in parts)


def otel(models, collector, *flags):
    where = ["--trace-config=mode=opentelemetry", f"--trace-config=opentelemetry,url={collector.url}"]
    soon = "--trace-config=opentelemetry,bsp_schedule_delay=1"
    return Server(models, *where, soon, *flags)


def by_name(spans):
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def test_c22_spans_have_tritons_names_and_nest(models):
    with Collector() as collector, otel(models, collector, *ALL_ON) as server:
        assert infer(server, "m", ZEROS, id="seven").status == 200
        spans = by_name(collector.wait_spans(3))
        wait_written(server, 1)
    [(path, headers, message)] = collector.requests
    assert (path, headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
    [resource] = message.resource_spans
    assert attributes(resource.resource) == {"service.name": "skep"}
    assert resource.scope_spans[0].scope.name == "skep"
    root, model, compute = spans["InferRequest"], spans["m"], spans["compute"]
    assert (root.parent_span_id, model.parent_span_id, compute.parent_span_id) == (b"", root.span_id, model.span_id)
    assert root.trace_id == model.trace_id == compute.trace_id and len(root.trace_id) == 16
    assert events(root) == ["HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"]
    assert events(model) == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert events(compute) == RUNTIME[2:6]
    assert attributes(model) == {
        "triton.model_name": "m", "triton.model_version": 1, "triton.trace_id": 1, "triton.trace_parent_id": 0,
        "triton.request_id": "seven",
    }  # fmt: skip
    assert attributes(compute) == {"skep.batch_size": 1, "skep.batch_end": "queue_empty"}
    assert root.start_time_unix_nano <= model.start_time_unix_nano <= compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= model.end_time_unix_nano <= root.end_time_unix_nano
    # Since 1970, and not since the machine's start.
    assert root.start_time_unix_nano > 1_700_000_000 * 10**9


def test_h34_a_client_decides_and_is_the_parent(models):
    flags = ["--trace-config=level=TIMESTAMPS", "--trace-config=rate=1000000"]
    body = json.dumps({"inputs": ZEROS})
    with Collector() as collector, otel(models, collector, *flags) as server:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            client.infer("m", grpc_input(), headers={"traceparent": PARENT, "tracestate": "a=b"})
        for parent in (PARENT[:-1] + "0", "nonsense"):
            assert post(server, "/v2/models/n/infer", body, {"traceparent": parent}).status == 200
        assert post(server, "/v2/models/m/infer", body, {"Traceparent": PARENT}).status == 200
        spans = collector.wait_spans(6)
        assert server.stop() == 0
    assert sorted(span.name for span in collector.spans) == ["InferRequest"] * 2 + ["compute"] * 2 + ["m"] * 2
    assert {span.trace_id.hex() for span in spans} == {PARENT.split("-")[1]}
    roots = [span for span in spans if span.name == "InferRequest"]
    assert {span.parent_span_id.hex() for span in roots} == {PARENT.split("-")[2]}
    assert {span.trace_state for span in roots} == {"a=b", ""}
    assert [events(span)[0] for span in roots] == ["GRPC_WAITREAD_START", "HTTP_RECV_START"]


def test_c22_an_error_is_the_status_of_its_span(models):
    with Collector() as collector, otel(models, collector, *ALL_ON) as server:
        assert infer(server, "m", [tensor("x", "INT32", [1, 4], [0] * 4)]).status == 400
        assert infer(server, "nosuch", ZEROS).status == 404
        with grpcclient.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException):
                client.infer("absent", grpc_input())
        assert server.stop() == 0
    first, model, second, third = collector.spans
    assert model.status.code == 2 and "data-type is 'INT32'" in model.status.message
    assert first.status.code == 0 and second.status.code == third.status.code == 2
    assert "'nosuch' is not found" in second.status.message and "'absent' is not found" in third.status.message


def test_c22_resource_attributes_and_the_last_spans_at_the_stop(models):
    flags = ["--trace-config=opentelemetry,resource=service.name=mine", "--trace-config=opentelemetry,resource=k=v=w"]
    # Longer than the test: the stop sends what waits.
    flags.append("--trace-config=opentelemetry,bsp_schedule_delay=3000000")
    with Collector() as collector, otel(models, collector, *ALL_ON, *flags) as server:
        assert infer(server, "m", ZEROS).status == 200
        assert server.stop() == 0
        assert len(collector.spans) == 3
    [(_, _, message)] = collector.requests
    assert attributes(message.resource_spans[0].resource) == {"service.name": "mine", "k": "v=w"}


def test_c22_a_collector_that_is_away_costs_only_spans(models):
    with Collector() as gone:
        pass
    with otel(models, gone, *ALL_ON) as server:
        for _ in range(3):
            assert infer(server, "m", ZEROS).status == 200
        wait_metric(server, "skep_traces_dropped_total", lambda value: value == 3, reason="output")
        assert server.log.count("cannot write traces to the collector at") == 1
        assert server.stop() == 0


def test_c22_a_collector_that_refuses_is_said(models):
    with Collector(status=503) as collector, otel(models, collector, *ALL_ON) as server:
        assert infer(server, "m", ZEROS).status == 200
        server.wait_for("it answered 503 Service Unavailable")
        collector.status = 200
        assert infer(server, "m", ZEROS).status == 200
        server.wait_for("again")
        assert server.stop() == 0


def test_h21_settings_of_opentelemetry(models):
    with Collector() as collector, otel(models, collector) as server:
        expected = {
            "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "trace_mode": "opentelemetry",
            "bsp_max_queue_size": "2048", "bsp_schedule_delay": "1", "bsp_max_export_batch_size": "512",
            "url": collector.url,
        }  # fmt: skip
        assert get(server, PATH).json == expected
        for change, text in (
            ({"trace_level": ["TENSORS"]}, "level TENSORS is not supported in mode opentelemetry"),
            ({"log_frequency": "5"}, "'log_frequency' is a setting of mode triton"),
        ):
            answer = post(server, PATH, change)
            assert answer.status == 400 and text in answer.error
        assert post(server, PATH, {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"}).status == 200
        assert infer(server, "m", ZEROS).status == 200
        assert len(collector.wait_spans(3)) == 3


def test_c22_help_names_the_flags():
    text = run("serve", "--help").stdout
    for flag in ("config", "file", "level", "rate", "count", "log-frequency"):
        assert f"--trace-{flag}" in text


def test_g1_an_empty_request_shows(models, path):
    with traced(models, path) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.TraceSetting(pb.TraceSettingRequest()).settings["trace_rate"].value == ["1000"]
