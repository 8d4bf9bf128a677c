"""The metrics port: its paths, its text, and every metric beyond the counters that test_statistics.py checks."""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from http_client import get, infer, post, request, tensor
from metrics import metric, metrics, wait_metric
from process import open_files
from repository import plus
from server import Server, run, serve_and_fail

PHASES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
QUANTILES = ("0.5", "0.9", "0.95", "0.99", "0.999")
LABELS = {"model": "m", "version": "1"}


def send(server, batch=1, model="m", status=200):
    answer = infer(server, model, [tensor("x", "FP32", [batch, 4], [0] * (4 * batch))])
    assert answer.status == status, answer.body


def text(server):
    return request(server.metrics, "GET", "/metrics").body.decode()


def figure(server, name, **labels):
    return metrics(server)[name, frozenset(labels.items())]


def families(server):
    """The names of all metrics, in order."""
    return re.findall(r"^# TYPE (\w+) \w+$", text(server), re.M)


@pytest.fixture
def server(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    with Server(repository) as server:
        yield server


def test_m18_paths_and_headers_are_tritons(server):
    for path in ("/metrics", "/metrics/", "/metrics?name=x"):
        answer = request(server.metrics, "GET", path)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert b"nv_inference_count" in answer.body
    for path in ("/", "/v2", "/metrics/x"):
        answer = request(server.metrics, "GET", path)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert answer.body == b""
    answer = request(server.metrics, "HEAD", "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.body == b""
    for method in ("POST", "PUT", "DELETE"):
        answer = request(server.metrics, method, "/metrics")
        assert (answer.status, answer.headers["content-type"]) == (405, "text/plain")
        assert answer.headers["allow"] == "GET,HEAD"
        assert answer.body == b'{"error":"Method Not Allowed"}'


def test_m18_the_text_is_of_the_exposition_format(server):
    send(server)
    lines = text(server).splitlines()
    types, seen = {}, None
    for line in lines:
        if match := re.match(r"# HELP (\w+) \S.*$", line):
            seen = match.group(1)
        elif match := re.match(r"# TYPE (\w+) (counter|gauge|summary|histogram)$", line):
            assert match.group(1) == seen and seen not in types
            types[seen] = match.group(2)
        else:
            name = re.match(r'(\w+)(\{(\w+="([^"\\]|\\.)*",?)*\})? -?[0-9.e+]+$', line).group(1)
            plain = {seen} if types[seen] in ("counter", "gauge") else {f"{seen}{s}" for s in ("_bucket", "_sum", "_count")}
            assert name in plain, line
    assert types["nv_inference_count"] == "counter"
    assert types["nv_inference_pending_request_count"] == "gauge"


def test_m1_m10_m16_names_helps_and_order_are_tritons(server):
    expected = [
        *(f"nv_inference_{name}" for name in ("request_success", "request_failure", "count", "exec_count")),
        *(f"nv_inference_{phase}_duration_us" for phase in PHASES),
        "nv_inference_pending_request_count",
        "nv_model_load_duration_secs",
        *(f"nv_pinned_memory_pool_{what}_bytes" for what in ("total", "used")),
        *(f"nv_cpu_{what}" for what in ("utilization", "memory_total_bytes", "memory_used_bytes")),
    ]
    assert [name for name in families(server) if name.startswith("nv_")] == expected
    for line in (
        "# HELP nv_inference_request_success Number of successful inference requests, all batch sizes",
        "# HELP nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds (includes cached requests)",
        "# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]",
        'nv_inference_request_failure{model="m",reason="REJECTED",version="1"} 0',
        "nv_pinned_memory_pool_total_bytes 268435456",
        "nv_pinned_memory_pool_used_bytes 0",
    ):
        assert line in text(server).splitlines()


def test_m1_without_models_there_are_no_model_metrics(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=explicit") as server:
        assert not any(name.startswith("nv_inference") for name in families(server))
        assert post(server, "/v2/repository/models/m/load").status == 200
        send(server)
        assert metric(server, "count") == 1
        assert post(server, "/v2/repository/models/m/unload").status == 200
        assert 'model="m"' not in text(server)


def test_m11_summaries(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    repository.mock("slow", latency_us=30_000)
    with Server(repository, "--metrics-config=summary_latencies=true") as server:
        for phase in PHASES:
            name = f"nv_inference_{phase}_summary_us"
            assert figure(server, f"{name}_count", **LABELS) == figure(server, f"{name}_sum", **LABELS) == 0
            for quantile in QUANTILES:
                assert f'{name}{{model="m",version="1",quantile="{quantile}"}} Nan\n' in text(server)
        send(server, 4)
        for phase in PHASES:
            name = f"nv_inference_{phase}_summary_us"
            assert figure(server, f"{name}_count", **LABELS) == 1
            total = figure(server, f"{name}_sum", **LABELS)
            assert total == metric(server, f"{phase}_duration_us")
            # One value is every quantile, and exact.
            for quantile in QUANTILES:
                assert figure(server, name, **LABELS, quantile=quantile) == total
        for _ in range(3):
            send(server, model="slow")
        slow = {"model": "slow", "version": "1"}
        median = figure(server, "nv_inference_compute_infer_summary_us", **slow, quantile="0.5")
        assert median >= 30_000 * 127 / 128
        worst = figure(server, "nv_inference_compute_infer_summary_us", **slow, quantile="0.999")
        assert median <= worst <= figure(server, "nv_inference_compute_infer_summary_us_sum", **slow)


def test_m11_quantiles_and_counters_are_settings(repository):
    repository.onnx("m", plus(1))
    flags = ("summary_latencies=true", "counter_latencies=false", "summary_quantiles=0.25:0.05,0.75:0.01")
    with Server(repository, *(f"--metrics-config={flag}" for flag in flags)) as server:
        got = re.findall(r'nv_inference_queue_summary_us\{.*quantile="([^"]*)"\}', text(server))
        assert got == ["0.25", "0.75"]
        assert not any(name.endswith("_duration_us") for name in families(server))
        assert "nv_inference_count" in families(server)


def test_m11_there_are_no_summaries_by_default(server):
    assert "summary" not in text(server)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("nosuch=true", "unknown setting `nosuch`"),
        ("summary_latencies", "expected <key>=<value>"),
        ("summary_latencies=maybe", "expected true or false"),
        ("summary_quantiles=0.5", "expected <quantile>:<error>"),
    ],
)
def test_m11_invalid_settings_are_refused(repository, setting, said):
    code, log = serve_and_fail(repository.path, f"--metrics-config={setting}")
    assert code == 1
    assert setting in log and said in log


def buckets(server, name, **labels):
    """[(upper bound, cumulated count)] in the order written."""
    found = []
    for line in text(server).splitlines():
        if match := re.match(rf'{name}_bucket\{{(.*),le="([^"]*)"\}} (\d+)$', line):
            if dict(re.findall(r'(\w+)="([^"]*)"', match.group(1))) == labels:
                found.append((math.inf if match.group(2) == "+Inf" else float(match.group(2)), int(match.group(3))))
    return found


def test_m12_histograms_of_latency_and_batch_size(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 8")
    repository.mock("slow", latency_us=12_000)
    with Server(repository) as server:
        for batch in (1, 3, 3, 8):
            send(server, batch)
        sizes = dict(buckets(server, "skep_inference_batch_size", **LABELS))
        assert [sizes[bound] for bound in (1, 2, 4, 8, 16, math.inf)] == [1, 1, 3, 4, 4, 4]
        assert figure(server, "skep_inference_batch_size_sum", **LABELS) == 15
        assert figure(server, "skep_inference_batch_size_count", **LABELS) == 4
        send(server, model="slow")
        slow = {"model": "slow", "version": "1"}
        for phase in ("request", "queue", "compute_infer"):
            name = f"skep_inference_{phase}_histogram_ms"
            got = buckets(server, name, **slow)
            assert [bound for bound, _ in got] == sorted({bound for bound, _ in got})
            assert got[-1] == (math.inf, 1) and figure(server, f"{name}_count", **slow) == 1
            assert [count for _, count in got] == sorted(count for _, count in got)
            us = metric(server, f"{phase}_duration_us", "slow")
            assert us <= figure(server, f"{name}_sum", **slow) * 1000 < us + 1
        below = dict(buckets(server, "skep_inference_compute_infer_histogram_ms", **slow))
        assert (below[10], below[math.inf]) == (0, 1)


def test_f23_m12_a_model_sets_its_buckets(repository):
    metrics_of = """model_metrics { metric_control [ {
        metric_identifier { family: "skep_inference_request_histogram_ms" } histogram_options { buckets: [ 0.001, 60000 ] }
    }, {
        metric_identifier { family: "nv_inference_first_response_histogram_ms" } histogram_options { buckets: [ 1 ] }
    } ] }"""
    repository.onnx("m", plus(1), config=metrics_of)
    with Server(repository) as server:
        send(server)
        send(server)
        got = buckets(server, "skep_inference_request_histogram_ms", **LABELS)
        assert got == [(0.001, 0), (60000, 2), (math.inf, 2)]
        assert len(buckets(server, "skep_inference_queue_histogram_ms", **LABELS)) > 3
        assert "it is for decoupled models" in server.log


def test_f23_buckets_that_do_not_ascend_fail_the_load(repository):
    family = 'metric_identifier { family: "skep_inference_queue_histogram_ms" }'
    repository.onnx("m", plus(1), config=f"model_metrics {{ metric_control {{ {family} histogram_options {{ buckets: [ 2, 1 ] }} }} }}")
    code, log = serve_and_fail(repository.path)
    assert code == 1
    assert "ascending" in log and "[2.0, 1.0]" in log


def test_m12_histograms_can_be_left_out(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--metrics-config=histogram_latencies=false") as server:
        send(server)
        assert "histogram_ms" not in text(server)
        assert figure(server, "skep_inference_batch_size_count", **LABELS) == 1


def test_f19_tags_are_labels_of_every_metric_of_the_model(repository):
    tags = r'metric_tags { key: "team" value: "vision" } metric_tags { key: "a_tag" value: "q\"uo\\te" }'
    repository.onnx("m", plus(1), config=tags)
    repository.onnx("plain", plus(1))
    with Server(repository, "--metrics-config=summary_latencies=true") as server:
        for line in text(server).splitlines():
            # A model whose first load failed has no tags.
            if 'model="m"' in line and not line.startswith("skep_model_load_failures_total"):
                assert r'{_a_tag="q\"uo\\te",_team="vision",' in line
            else:
                assert "_team" not in line
        assert r'nv_inference_count{_a_tag="q\"uo\\te",_team="vision",model="m",version="1"} 0' in text(server)


def test_f19_a_tag_that_cannot_name_a_label_fails_the_load(repository):
    repository.onnx("m", plus(1), config='metric_tags { key: "a-b" value: "x" }')
    code, log = serve_and_fail(repository.path)
    assert code == 1
    assert "metric tag 'a-b'" in log


def test_m15_processors_and_memory(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--metrics-interval-ms=20") as server:
        # Some processor works while this asks.
        utilization = wait_metric(server, "nv_cpu_utilization", lambda value: value > 0)
        assert utilization <= 1
        total = figure(server, "nv_cpu_memory_total_bytes")
        assert 0 < figure(server, "nv_cpu_memory_used_bytes") <= total
    with Server(repository, "--allow-cpu-metrics=false", "--allow-gpu-metrics=false") as server:
        assert "nv_cpu" not in text(server)
        assert "without effect" not in server.log


def test_m17_loads_take_time(repository):
    repository.onnx("m", plus(1))
    warmup = 'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }'
    repository.mock("slow", config=warmup, latency_us=50_000)
    with Server(repository) as server:
        assert figure(server, "nv_model_load_duration_secs", **LABELS) > 0
        assert figure(server, "nv_model_load_duration_secs", model="slow", version="1") >= 0.05


def test_m5_instances_report_how_busy_they_are(repository):
    repository.mock("slow", config="instance_group [ { count: 2 kind: KIND_CPU } ]", latency_us=500_000)
    slow = {"model": "slow", "version": "1"}
    with Server(repository, "--metrics-interval-ms=20") as server:
        names = re.findall(r'skep_instance_busy_us\{instance="([^"]*)"', text(server))
        assert len(names) == len(set(names)) == 2
        assert all(figure(server, "skep_instance_busy_us", instance=name, **slow) == 0 for name in names)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(send, server, model="slow")
            wait_metric(server, "skep_device_busy_fraction", lambda value: value > 0, device="cpu")
            running.result()
        busy = [figure(server, "skep_instance_busy_us", instance=name, **slow) for name in names]
        assert max(busy) >= 500_000 and min(busy) == 0
        # Both fall back to nothing once nothing runs; neither is ever more than everything.
        for name in names:
            labels = {"instance": name, **slow}
            wait_metric(server, "skep_instance_busy_fraction", lambda value: value == 0, **labels)
        wait_metric(server, "skep_device_busy_fraction", lambda value: value == 0, device="cpu")


def test_m18_flags(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--allow-metrics=false") as server:
        assert "Metrics Service" not in server.log
        assert get(server, "/v2/health/ready").status == 200
    for flag in ("--metrics-interval-ms=0", "--metrics-interval-ms=x", "--allow-cpu-metrics=maybe"):
        code, log = serve_and_fail(repository.path, flag)
        assert code != 0
        assert flag.split("=")[0] in log


@pytest.mark.parametrize("planner", [None, "malloc", "runtime"])
def test_m5_runs_report_the_memory_of_their_tensors(repository, planner):
    chosen = f'parameters {{ key: "memory_planner" value {{ string_value: "{planner}" }} }}' if planner else ""
    repository.generate("cnn", config=f"max_batch_size: 8 instance_group {{ count: 1 kind: KIND_CPU }} {chosen}")
    instance = {"model": "cnn", "version": "1", "instance": "cnn_0_0"}
    with Server(repository, "--model-control-mode=explicit", "--load-model=cnn") as server:
        shape = get(server, "/v2/models/cnn").json["inputs"][0]["shape"][1:]
        name = get(server, "/v2/models/cnn").json["inputs"][0]["name"]
        for batch in (1, 2, 1, 2, 2):
            count = batch * math.prod(shape)
            answer = infer(server, "cnn", [tensor(name, "FP32", [batch, *shape], [0.5] * count)])
            assert answer.status == 200, answer.body
        if planner == "runtime":
            assert "skep_runs_total{" not in text(server)
            return
        runs = {kind: figure(server, "skep_runs_total", memory=kind, **instance)
                for kind in ("planned", "recorded", "deviated", "unplanned")}
        memory = {kind: figure(server, "skep_run_memory_bytes", kind=kind, **instance)
                  for kind in ("planned", "saved", "used")}
        held = figure(server, "skep_run_memory_reserved_bytes")
        assert memory["used"] > 0
        if planner == "malloc":
            assert runs == {"planned": 0, "recorded": 0, "deviated": 0, "unplanned": 5}
            assert (memory["planned"], memory["saved"], held) == (0, 0, 0)
        else:
            assert runs == {"planned": 3, "recorded": 2, "deviated": 0, "unplanned": 0}
            assert memory["planned"] <= held < memory["planned"] + 65536
            assert memory["saved"] > 0
        assert post(server, "/v2/repository/models/cnn/unload", {}).status == 200
        wait_metric(server, "skep_run_memory_reserved_bytes", lambda value: value == 0)


def test_the_process_and_its_build_are_shown(server):
    figures = {name: (labels, value) for (name, labels), value in metrics(server).items()}
    labels, one = figures["skep_build_info"]
    labels = dict(labels)
    assert (one, labels["version"]) == (1, run("--version").stdout.split()[-1])
    assert labels["protocol"] == get(server, "/v2").json["version"]
    value = {name: value for name, (_, value) in figures.items() if name.startswith("process_")}
    assert sorted(value) == [
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_virtual_memory_bytes",
    ]
    assert 0 < value["process_cpu_seconds_total"] < 3600
    # One more is open while they are counted, and connections come and go.
    assert abs(value["process_open_fds"] - open_files(server)) < 16
    assert value["process_max_fds"] >= value["process_open_fds"]
    assert 1 << 20 < value["process_resident_memory_bytes"] < value["process_virtual_memory_bytes"]
    # The kernel counts from the start of the machine, in hundredths; clocks may have been set since.
    boot, now = Path("/proc/uptime").read_text().split()[0], time.time()
    assert now - float(boot) - 60 < value["process_start_time_seconds"] < now + 60
    assert "# TYPE process_cpu_seconds_total counter" in request(server.metrics, "GET", "/metrics").body.decode()
