"""Residency, model by model: parameters that decide when a model is loaded, instances that follow the load, and what the
server says about it."""

import json
import threading

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from http_client import get, infer, post, tensor
from metrics import metrics
from repository import FOREVER_US, WARMUP, plus
from server import Server, run, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
MIB = 1 << 20


def parameters(**values):
    entries = (f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items())
    return "".join(entries)


def status(server, *states):
    query = f"?state={','.join(states)}" if states else ""
    return get(server, f"/v2/skep/residency{query}").json


def models(server, *states):
    return {model["name"]: model for model in status(server, *states)["models"]}


def states(server):
    return {name: model["state"] for name, model in models(server).items()}


def test_a_model_decides_for_itself_when_it_is_loaded(repository):
    repository.onnx("plain", plus(1))
    repository.onnx("lazy", plus(2), config=parameters(load_policy="lazy"))
    with Server(repository, "--weight-cache=off") as server:
        assert states(server) == {"lazy": "known", "plain": "resident"}
        assert infer(server, "lazy", ZEROS).status == 200
        assert states(server) == {"lazy": "resident", "plain": "resident"}


def test_eager_and_pinned_models_are_loaded_at_a_lazy_start(repository):
    repository.onnx("plain", plus(1))
    repository.onnx("eager", plus(2), config=parameters(load_policy="eager"))
    repository.onnx("pinned", plus(3), config=parameters(min_instances=2, load_policy="lazy"))
    with Server(repository, "--weight-cache=off", "--load-policy=lazy", "--keep-alive-secs=1") as server:
        found = models(server)
        assert found["plain"]["state"] == "known"
        assert (found["pinned"]["state"], found["pinned"]["pinned"], found["pinned"]["instances"]) == ("resident", True, 2)
        server.wait_for("model `eager` leaves: it was idle")
        server.wait_until(lambda: states(server)["eager"] == "known")
        assert states(server)["pinned"] == "resident"
        assert models(server, "known")["eager"]["decision"]["what"] == "expire"


def test_pinned_models_beyond_the_budget_are_refused_with_their_sum(repository):
    for name in ["a", "b", "c"]:
        repository.mock(name, config=parameters(min_instances=1))
    code, log = serve_and_fail(repository, f"--memory-budget={5 * MIB // 2}", "--model-load-thread-count=1")
    assert code != 0
    assert "is not loaded: the 3 models that never leave (`min_instances`) need about 3 MiB of memory together" in log
    assert "and the budget is 2 MiB: " in log
    assert "raise `--memory-budget`, or set `min_instances` to 0 for some of them" in log


@pytest.mark.parametrize(
    "given, error",
    [
        (dict(load_policy="never"), "load_policy"),
        (dict(min_instances=3, max_instances=2), "3 is more than `max_instances`, which is 2"),
        (dict(max_instances=0), "max_instances"),
        (dict(max_load_wait_ms="soon"), "max_load_wait_ms"),
    ],
)
def test_contradictions_are_refused(repository, given, error):
    repository.onnx("m", plus(1), config=parameters(**given))
    code, log = serve_and_fail(repository)
    assert code != 0
    assert error in log


def test_a_request_waits_as_long_as_it_or_its_model_says(repository):
    repository.mock("slow", config=WARMUP + parameters(max_load_wait_ms=50), latency_us=FOREVER_US)
    repository.mock("patient", config=WARMUP, latency_us=FOREVER_US)
    flags = ["--load-policy=lazy", "--exit-timeout-secs=0", "--model-load-thread-count=2"]
    with Server(repository, *flags) as server, grpcclient.InferenceServerClient(server.grpc) as client:
        answer = infer(server, "slow", ZEROS)
        assert (answer.status, answer.error.splitlines()[0]) == (503, "model 'slow' is not loaded after 50 ms")
        body = {"inputs": ZEROS, "parameters": {"timeout": 20_000}}
        expected = "model 'patient' is not loaded after 20 ms\n  the request's `timeout` says how long it waits"
        answer = post(server, "/v2/models/patient/infer", body)
        assert (answer.status, answer.error) == (503, expected)
        answer = post(server, "/v2/models/patient/generate", {"x": [0, 0, 0, 0], "timeout": 20_000})
        assert (answer.status, answer.error) == (503, expected)
        request = grpcclient.InferInput("x", [1, 4], "FP32")
        request.set_data_from_numpy(np.zeros([1, 4], np.float32))
        with pytest.raises(InferenceServerException, match="after 20 ms"):
            client.infer("patient", [request], timeout=20_000)
        assert models(server)["patient"]["waiting"] == 0


def test_a_configuration_that_comes_with_a_load_counts(repository):
    repository.mock("m")
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as server:
        config = get(server, "/v2/models/m/config").json
        config["parameters"]["max_instances"] = {"string_value": "3"}
        config["parameters"]["min_instances"] = {"string_value": "1"}
        assert "max_instances" not in models(server)["m"]
        load = {"parameters": {"config": json.dumps(config)}}
        assert post(server, "/v2/repository/models/m/load", load).status == 200
        found = models(server)["m"]
        assert (found["min_instances"], found["max_instances"], found["pinned"]) == (1, 3, True)


def test_instances_follow_the_load_and_no_request_is_lost(repository):
    repository.mock("m", config=parameters(max_instances=3), max_batch_size=1, latency_us=20_000)
    repository.mock("fixed", max_batch_size=1, latency_us=20_000)
    with Server(repository) as server:
        assert models(server)["m"]["max_instances"] == 3
        assert "max_instances" not in models(server)["fixed"]
        stop, bad = threading.Event(), []

        def client(model):
            while not stop.is_set():
                answer = infer(server, model, ZEROS)
                if answer.status != 200:
                    bad.append(answer.body)

        threads = [threading.Thread(target=client, args=[model]) for model in ["m", "fixed"] for _ in range(6)]
        for thread in threads:
            thread.start()
        server.wait_until(lambda: models(server)["m"]["instances"] == 3)
        stop.set()
        for thread in threads:
            thread.join()
        assert bad == []
        assert models(server)["fixed"]["instances"] == 1
        decisions = [row for row in status(server)["decisions"] if row["what"] == "scale"]
        assert {row["model"] for row in decisions} == {"m"}
        assert "instead of" in decisions[0]["why"]


def test_instances_are_not_added_without_room(repository):
    repository.mock("m", config=parameters(max_instances=3), max_batch_size=1, latency_us=20_000)
    with Server(repository, f"--memory-budget={3 * MIB // 2}") as server:
        stop = threading.Event()

        def client():
            while not stop.is_set():
                infer(server, "m", ZEROS)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        server.wait_for("model `m` scales: its load keeps")
        server.wait_until(lambda: "has no room for more" in models(server)["m"]["decision"]["why"])
        stop.set()
        for thread in threads:
            thread.join()
        assert models(server)["m"]["instances"] == 1


def test_a_model_that_is_loaded_right_after_its_unload_counts(repository):
    repository.generate("bert-tiny", "m")
    with Server(repository, "--weight-cache=off", "--model-control-mode=explicit") as server:
        for _ in range(10):
            for call in ("load", "unload", "load"):
                assert post(server, f"/v2/repository/models/m/{call}", {}).status == 200
            assert states(server) == {"m": "resident"}
            assert models(server)["m"]["private_bytes"] > MIB
        assert post(server, "/v2/repository/models/m/unload", {}).status == 200
        server.wait_until(lambda: status(server)["memory"]["used"] == 0)


def test_what_is_in_memory_is_shown(repository):
    repository.onnx("a", plus(1))
    repository.onnx("b", plus(2))
    repository.onnx("bad", b"no model")
    with Server(repository, "--weight-cache=off", "--load-policy=lazy", "--memory-budget=1073741824") as server:
        assert infer(server, "a", ZEROS).status == 200
        assert infer(server, "bad", ZEROS).status == 400
        # The uses of a model are counted ten times a second.
        server.wait_until(lambda: models(server)["a"]["requests"] == 1)
        shown = status(server)
        assert shown["memory"]["budget"] == 1 << 30
        assert shown["states"]["resident"] == 1 and shown["states"]["known"] == 2
        [fail, *_] = shown["decisions"]
        assert (fail["model"], fail["what"]) == ("bad", "fail")
        assert list(models(server, "resident")) == ["a"]
        assert sorted(models(server, "known", "stored")) == ["b", "bad"]
        assert models(server)["bad"]["failure"]
        found = models(server)["a"]
        assert found["measured"] and found["versions"] == ["1"] and found["loads"] == 1 and found["instances"] == 2
        wrong = get(server, "/v2/skep/residency?state=cold")
        assert wrong.status == 400
        assert wrong.error == "unknown state 'cold', expected one of known, stored, wanted, loading, resident, leaving"
        wrong = get(server, "/v2/skep/residency?tensors=yes")
        assert (wrong.status, wrong.error) == (400, "unknown value 'yes' of `tensors`, expected true or false")

        found = metrics(server)
        assert found["skep_residency_budget_bytes", frozenset()] == 1 << 30
        assert found["skep_residency_models", frozenset({("state", "resident")})] == 1
        assert found["skep_residency_decisions_total", frozenset({("kind", "load")})] == 2

        url = f"--url=http://{server.http}"
        text = run("status", url).stdout
        assert "of 1.00 GiB" in text and "last decisions" in text
        assert "bad" not in text.split("last decisions")[0]
        assert "failed: " in run("status", url, "--all").stdout
        document = json.loads(run("status", url, "--json", "--state=known").stdout)
        assert [model["name"] for model in document["models"]] == ["b", "bad"]
        refused = run("status", url, "--state=cold")
        assert refused.returncode == 1 and "unknown state 'cold'" in refused.stderr
        refused = run("status", f"--url=grpc://{server.grpc}")
        assert refused.returncode == 1 and "over HTTP alone" in refused.stderr


def test_series_of_metrics_are_for_the_chosen_models(repository):
    for name in ["vision-a", "vision-b", "text"]:
        repository.mock(name)
    with Server(repository, "--metrics-models=vision-*") as server:
        found = metrics(server)
        shown = {dict(labels).get("model") for _, labels in found} - {None}
        assert shown == {"vision-a", "vision-b"}
        assert found["skep_metrics_models_left_out", frozenset()] == 1


def test_worker_processes_count(repository):
    group = "instance_group { count: 1 kind: KIND_CPU }"
    repository.onnx("thread", plus(1), config=group)
    repository.onnx("process", plus(1), config=group + parameters(isolation="process"))
    flags = ["--weight-cache=off", "--load-policy=lazy", "--model-load-thread-count=1"]
    with Server(repository, *flags) as server:
        for name in ["thread", "process"]:
            assert infer(server, name, ZEROS).status == 200
        found = models(server)
        # The worker has a runtime library of its own, and a model of a few hundred bytes has not.
        assert found["process"]["private_bytes"] > 5 * MIB
        assert found["thread"]["loads"] == found["process"]["loads"] == 1
