"""Statistics and metrics: exact counts after known requests, failures included."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tritonclient.grpc

from http_client import get, infer, tensor
from metrics import metric, metrics, wait_pending
from repository import plus
from server import Server

DURATIONS = ("compute_input", "compute_infer", "compute_output")
REASONS = {"REJECTED", "CANCELED", "BACKEND", "OTHER"}


def stats(server, model="m", version=None):
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/stats"
    (only,) = get(server, path).json["model_stats"]
    return only


def send(server, batch, name="m", status=200):
    answer = infer(server, name, [tensor("x", "FP32", [batch, 4], [0] * (4 * batch))])
    assert answer.status == status, answer.body


@pytest.fixture
def server(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    with Server(repository) as server:
        yield server


def test_h15_h24_statistics_of_missing_models_are_an_invalid_argument(server):
    unknown = "requested model 'nosuch' is not available"
    version = "requested model version is not available for model 'm'"
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for model, asked, text in (("nosuch", "", unknown), ("nosuch", "1", unknown), ("m", "9", version)):
            path = f"/v2/models/{model}" + (f"/versions/{asked}" if asked else "") + "/stats"
            answer = get(server, path)
            assert (answer.status, answer.error) == (400, text)
            with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
                client.get_inference_statistics(model, asked)
            assert (caught.value.status(), caught.value.message()) == ("StatusCode.INVALID_ARGUMENT", text)


def test_t1_t2_t3_all_is_zero_before_the_first_request(server):
    got = stats(server)
    assert (got["name"], got["version"]) == ("m", "1")
    assert (got["last_inference"], got["inference_count"], got["execution_count"]) == (0, 0, 0)
    assert got["batch_stats"] == []
    names = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}
    assert got["inference_stats"] == {name: {"count": 0, "ns": 0} for name in names}


def test_t7_t8_a_request_takes_as_long_as_its_parts_and_is_counted_once_answered(repository):
    latency_us = 20_000
    repository.mock("m", latency_us=latency_us)
    with Server(repository) as server, ThreadPoolExecutor(3) as pool:
        for answer in [pool.submit(send, server, 1) for _ in range(3)]:
            answer.result()
        # No waiting: what has been answered is in the statistics.
        got = stats(server)["inference_stats"]
        assert {part: got[part]["count"] for part in ("success", "queue", *DURATIONS)} == dict.fromkeys(
            ("success", "queue", *DURATIONS), 3
        )
        parts = sum(got[part]["ns"] for part in ("queue", *DURATIONS))
        assert 3 * latency_us * 1000 <= got["compute_infer"]["ns"] <= parts <= got["success"]["ns"]


def test_t1_t2_t3_counts_are_exact(server):
    before_ms = time.time_ns() // 1_000_000
    for batch in (1, 3, 3, 8):
        send(server, batch)
    got = stats(server, version="1")
    assert (got["inference_count"], got["execution_count"]) == (15, 4)
    assert before_ms <= got["last_inference"] <= time.time_ns() // 1_000_000
    parts = got["inference_stats"]
    assert {name: parts[name]["count"] for name in parts} == {
        "success": 4, "fail": 0, "queue": 4, "cache_hit": 0, "cache_miss": 0, **{name: 4 for name in DURATIONS},
    }  # fmt: skip
    assert all(type(value) is int for part in parts.values() for value in part.values())
    assert parts["success"]["ns"] >= sum(parts[name]["ns"] for name in ("queue", *DURATIONS)) > 0
    batches = {b["batch_size"]: b for b in got["batch_stats"]}
    assert {size: {b[name]["count"] for name in DURATIONS} for size, b in batches.items()} == {1: {1}, 3: {2}, 8: {1}}


def test_t1_grpc_gives_the_same_statistics(server):
    for batch in (2, 5):
        send(server, batch)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        (got,) = client.get_inference_statistics("m").model_stats
    assert (got.name, got.version, got.inference_count, got.execution_count) == ("m", "1", 7, 2)
    assert got.inference_stats.success.count == got.inference_stats.queue.count == 2
    assert got.inference_stats.success.ns > 0 and got.last_inference > 0
    assert [(b.batch_size, b.compute_infer.count) for b in got.batch_stats] == [(2, 1), (5, 1)]


def test_m1_m4_counters(server):
    for batch in (1, 3, 8):
        send(server, batch)
    assert metric(server, "request_success") == 3
    assert metric(server, "count") == 12
    assert metric(server, "exec_count") == 3
    assert metric(server, "pending_request_count") == 0
    for reason in REASONS:
        assert metric(server, "request_failure", reason=reason) == 0


def test_m6_m10_durations_are_those_of_the_statistics(server):
    for _ in range(5):
        send(server, 1)
    parts = stats(server)["inference_stats"]
    for name, part in (("request", "success"), ("queue", "queue"), *((name, name) for name in DURATIONS)):
        assert metric(server, f"{name}_duration_us") == parts[part]["ns"] // 1000


def test_m2_all_reasons_are_exported(server):
    rows = [dict(labels) for name, labels in metrics(server) if name == "nv_inference_request_failure"]
    assert {row["reason"] for row in rows} == REASONS
    assert {(row["model"], row["version"]) for row in rows} == {("m", "1")}


def test_t6_requests_that_do_not_fit_are_counted_nowhere(server):
    send(server, 9, status=400)
    assert infer(server, "m", [tensor("x", "FP32", [1, 5], [0] * 5)]).status == 400
    assert infer(server, "m", []).status == 400
    got = stats(server)
    assert (got["inference_count"], got["execution_count"]) == (0, 0)
    parts = got["inference_stats"]
    assert (parts["success"]["count"], parts["queue"]["count"]) == (0, 0)
    assert metric(server, "request_success") == 0


def test_m2_t2_failures_of_the_backend(repository):
    repository.mock("m", fail_every=3)
    with Server(repository) as server:
        for number in range(1, 8):
            send(server, 2, status=500 if number % 3 == 0 else 200)
        got = stats(server)
        assert (got["inference_count"], got["execution_count"]) == (10, 5)
        parts = got["inference_stats"]
        assert (parts["success"]["count"], parts["fail"]["count"]) == (5, 2)
        assert parts["fail"]["ns"] > 0
        assert parts["queue"]["count"] == parts["compute_infer"]["count"] == 5
        assert metric(server, "request_failure", reason="BACKEND") == 2
        assert metric(server, "request_failure", reason="OTHER") == 0
        assert (metric(server, "request_success"), metric(server, "count")) == (5, 10)


def test_m5_pending_requests_and_s1_every_request_runs_alone(repository):
    repository.mock("m", latency_us=300_000)
    with Server(repository) as server, ThreadPoolExecutor(3) as pool:
        running = [pool.submit(send, server, 1) for _ in range(3)]
        wait_pending(server, "m", 2)
        for future in running:
            future.result()
        assert metric(server, "pending_request_count") == 0
        assert metric(server, "exec_count") == 3
        # One waited for no other, one for one, one for two.
        assert stats(server)["inference_stats"]["queue"]["ns"] >= 2 * 300_000_000


def test_m2_a_full_queue_rejects(repository):
    parameters = 'parameters { key: "max_queue_size" value { string_value: "1" } }'
    repository.mock("m", config=parameters, latency_us=1_000_000)
    with Server(repository) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, server, 1)
        second = pool.submit(send, server, 1)
        wait_pending(server, "m", 1)
        answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)])
        assert answer.status == 503
        assert "Exceeds maximum queue size" in answer.error
        assert answer.headers["retry-after"]
        first.result(), second.result()
        assert metric(server, "request_failure", reason="REJECTED") == 1
        assert metric(server, "request_success") == 2
        assert stats(server)["inference_stats"]["fail"]["count"] == 1


def test_m1_versions_and_models_are_counted_apart(repository):
    for version in (1, 2):
        repository.onnx("m", plus(version), version, config="version_policy { all {} }")
    repository.onnx('we"ird', plus(1))
    with Server(repository) as server:
        send(server, 1)
        answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)], version=1)
        assert answer.status == 200
        send(server, 3)
        assert metric(server, "count", version="1") == 1
        assert metric(server, "count", version="2") == 4
        assert metric(server, "count", model='we\\"ird') == 0
        all_stats = get(server, "/v2/models/stats").json["model_stats"]
        assert [(s["name"], s["version"], s["inference_count"]) for s in all_stats] == [
            ("m", "1", 1), ("m", "2", 4), ('we"ird', "1", 0),
        ]  # fmt: skip
