"""The files in deploy/: they can be read, and every metric and label in them is one of the server's."""

import json
import re

import pytest
import yaml

from http_client import request
from repository import plus
from server import ROOT, Server

DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\b(?:nv|skep|process)_[a-z0-9_]+\b")
# What Prometheus adds to each series, or its Kubernetes service discovery does.
ADDED = {"job", "instance", "namespace", "pod"}
# The adapter's name for a figure of its own.
OWN = {"skep_waiting_requests"}


def documents(name):
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document]


def dashboard():
    return json.loads((DEPLOY / "grafana/skep.json").read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules():
    return [rule for group in documents("prometheus/alerts.yaml")[0]["groups"] for rule in group["rules"]]


def queries():
    """Each query of PromQL, with where it is."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]["query"]
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]
    [scaled] = documents("kubernetes/keda.yaml")
    for number, trigger in enumerate(scaled["spec"]["triggers"]):
        yield f"trigger {number}", trigger["metadata"]["query"]
    config = yaml.safe_load(documents("kubernetes/hpa.yaml")[1]["data"]["config.yaml"])
    for rule in config["rules"]:
        for key in ("seriesQuery", "metricsQuery"):
            yield f"adapter {key}", rule[key]


QUERIES = list(queries())


def catalogue():
    """The names in docs/metrics.md: `a_{b,c}_d` are two, and `_e` after a name replaces its end."""
    names = set()
    rows = [line.split("|")[1] for line in (ROOT / "docs/metrics.md").read_text().splitlines() if line.startswith("| `")]
    for cell in rows:
        last = ""
        for code in re.findall(r"`([^`]+)`", cell):
            inner = re.fullmatch(r"(\w*)\{([\w,]+)\}(\w*)", code)
            made = [inner[1] + part + inner[3] for part in inner[2].split(",")] if inner else [code]
            if code.startswith("_"):
                made = [last.removesuffix("_total_bytes") + code]
            names.update(made)
            last = made[0]
    return names


def family(name):
    """The name in the catalogue: a histogram's series have endings."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if "histogram" in stem or stem == "skep_inference_batch_size" else name


def test_the_catalogue_is_read():
    names = catalogue()
    assert {"nv_inference_count", "nv_cpu_memory_used_bytes", "skep_inference_queue_histogram_ms"} <= names
    assert len(QUERIES) > 40


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_metric_is_in_the_catalogue(where, query):
    found = {family(name) for name in NAME.findall(query)} - OWN
    assert found and found <= catalogue(), found - catalogue()
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing), query


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """The labels of each metric of a server that has most of them."""
    from repository import Repository

    repository = Repository(tmp_path_factory.mktemp("deploy") / "models")
    objective = 'parameters { key: "slo_latency_ms" value { string_value: "50" } }'
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 dynamic_batching {{ }} {objective}")
    repository.onnx("cached", plus(1), config="max_batch_size: 8 response_cache { enable: true }")
    file = tmp_path_factory.mktemp("traces") / "trace.json"
    flags = ["--cache-config=local,size=65536", f"--trace-config=triton,file={file}", "--memory-budget=1073741824"]
    with Server(repository, *flags) as server:
        text = request(server.metrics, "GET", "/metrics").body.decode()
    found = {}
    for name, inner in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', inner))
    return found


def selected(query):
    """Each metric of a query, with the labels that select among its series."""
    for name, selectors in re.findall(r"\b((?:nv|skep|process)_[a-z0-9_]+)(?:\{([^}]*)\})?", query):
        yield name, set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selectors))


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_label_is_one_of_the_metric(labels, where, query):
    known, grouped = set(), set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", query))))
    for name, selecting in selected(query):
        if name in labels:
            assert selecting <= labels[name] | ADDED, (name, selecting, labels[name])
            known |= labels[name]
    if known:
        assert grouped - {"GroupBy"} <= known | ADDED, (grouped, known)


def test_most_metrics_of_the_files_are_served_as_they_are_named(labels):
    used = {name for _, query in QUERIES for name in NAME.findall(query)} - OWN
    # These exist once there is something to count: a load that failed, a repository that is polled.
    later = {"skep_repository_poll_failures_total", "skep_model_load_failures_total", "skep_store_bytes"}
    absent = used - set(labels) - later
    assert not absent, absent


def test_panels_have_places_of_their_own():
    places = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & places and place["x"] + place["w"] <= 24, panel["title"]
        places |= cells
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_alerts_are_explained():
    page = (ROOT / "docs/monitoring.md").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert names == re.findall(r"^\| `(Skep\w+)` \|", page, re.M)
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_autoscaler_uses_the_adapters_figure():
    scaler, adapter = documents("kubernetes/hpa.yaml")
    config = yaml.safe_load(adapter["data"]["config.yaml"])
    names = {rule["name"]["as"] for rule in config["rules"]}
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} == names == OWN
