"""Ensembles: models whose steps are requests to other models (S50 to S55, R13)."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import helper

from http_client import get, infer, post, tensor
from metrics import metric, metrics, wait_pending
from repository import FOREVER_US, graph, plus
from server import Server, run

EXPLICIT = "--model-control-mode=explicit"
ROW = "data_type: TYPE_FP32 dims: [ 4 ]"


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def step(model, inputs, outputs, version=-1):
    """A step; tensors are `of_model=of_ensemble`, several separated by spaces."""

    def mapped(name, pairs):
        pairs = [pair.split("=") for pair in pairs.split()]
        return " ".join(f'{name} {{ key: "{key}" value: "{value}" }}' for key, value in pairs)

    maps = f"{mapped('input_map', inputs)} {mapped('output_map', outputs)}"
    return f'step {{ model_name: "{model}" model_version: {version} {maps} }}'


def ensemble(repository, *steps, name="e", inputs="in", outputs="out", extra="", bound="", batch=4, tensors=ROW):
    """An ensemble of FP32 rows of 4."""
    (repository.path / name / "1").mkdir(parents=True, exist_ok=True)
    sides = [f'{side} {{ name: "{one}" {tensors} }}' for side, names in (("input", inputs), ("output", outputs)) for one in names.split()]
    text = f'platform: "ensemble" max_batch_size: {batch}\n' + "\n".join(sides)
    return repository.config(name, f"{text}\nensemble_scheduling {{ {bound} {' '.join(steps)} }}\n{extra}")


def chain(repository, **settings):
    """`out` is `in` + 1 + 10."""
    repository.onnx("one", plus(1))
    repository.onnx("ten", plus(10))
    return ensemble(repository, step("ten", "x=middle", "y=out"), step("one", "x=in", "y=middle"), **settings)


def row(value, name="in", batch=1):
    return [tensor(name, "FP32", [batch, 4], [value] * 4 * batch)]


def value(server, asked, model="e", **members):
    answer = infer(server, model, row(asked), **members)
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"][0]


def error(answer):
    assert answer.status != 200, answer.body
    return answer.json["error"]


def stats(server, model="e"):
    return get(server, f"/v2/models/{model}/stats").json["model_stats"][0]


def counts(server, model):
    """Inferences, executions, requests that ended well."""
    found = stats(server, model)
    return found["inference_count"], found["execution_count"], found["inference_stats"]["success"]["count"]


def index(server):
    rows = post(server, "/v2/repository/index").json
    return {row["name"]: (row.get("state"), row.get("reason", "")) for row in rows}


def is_ready(server, model="e"):
    return get(server, f"/v2/models/{model}/ready").status == 200


def test_s50_tensors_flow_by_name_whatever_the_order_of_the_steps(repository):
    chain(repository)
    with Server(repository) as server:
        assert value(server, 1) == 12
        with httpclient.InferenceServerClient(server.http) as http, grpcclient.InferenceServerClient(server.grpc) as grpc:
            for client, module in ((http, httpclient), (grpc, grpcclient)):
                x = module.InferInput("in", [3, 4], "FP32")
                data = np.arange(12, dtype=np.float32).reshape(3, 4)
                x.set_data_from_numpy(data)
                result = client.infer("e", [x], request_id="mine")
                assert np.array_equal(result.as_numpy("out"), data + 11)
            assert http.get_model_metadata("e") == {
                "name": "e",
                "versions": ["1"],
                "platform": "ensemble",
                "inputs": [{"name": "in", "datatype": "FP32", "shape": [-1, 4]}],
                "outputs": [{"name": "out", "datatype": "FP32", "shape": [-1, 4]}],
            }
            config = http.get_model_config("e")
            assert (config["platform"], config["backend"], config["instance_group"]) == ("ensemble", "", [])
            assert config["ensemble_scheduling"]["step"][0] == {
                "model_name": "ten",
                "model_version": -1,
                "input_map": {"x": "middle"},
                "output_map": {"y": "out"},
                "model_namespace": "",
            }
            assert grpc.get_model_config("e").config.ensemble_scheduling.step[1].model_name == "one"


def test_s50_steps_run_in_parallel_and_join(repository):
    """Each batcher waits for two requests: both branches have to be under way at once for the two requests to meet."""
    x, y = [("a", "FP32", ("batch", 4)), ("b", "FP32", ("batch", 4))], [("y", "FP32", ("batch", 4))]
    repository.onnx("sum", graph([helper.make_node("Add", ["a", "b"], ["y"])], x, y))
    repository.onnx("one", plus(1), config="max_batch_size: 8 dynamic_batching { }")
    ensemble(
        repository,
        step("one", "x=in", "y=left"),
        step("one", "x=left", "y=leftmost"),
        step("one", "x=in", "y=right"),
        step("sum", "a=leftmost b=right", "y=out"),
    )
    with Server(repository) as server:
        assert value(server, 1) == (1 + 2) + (1 + 1)
        # Three steps run on one model; a batch of two is what the parallel ones may share.
        assert counts(server, "one")[2] == 3
        assert counts(server, "sum")[2] == 1


def test_s50_parallel_steps_share_a_batch(repository):
    repository.onnx("one", plus(1), config="max_batch_size: 8 dynamic_batching { }")
    ensemble(repository, step("one", "x=in", "y=out"), step("one", "x=in", "y=other"), outputs="out other")
    with Server(repository, env={"TRITONSERVER_DELAY_SCHEDULER": "2"}) as server:
        assert value(server, 1) == 2
        assert counts(server, "one") == (2, 1, 2)


def test_s50_only_the_steps_that_the_wanted_outputs_need_run(repository):
    chain(repository)
    repository.mock("broken", fail_every=1)
    ensemble(
        repository,
        step("one", "x=in", "y=out"),
        step("broken", "x=in", "y=bad"),
        name="two",
        outputs="out bad",
    )
    with Server(repository) as server:
        assert value(server, 1, "two", outputs=[{"name": "out"}]) == 2
        assert counts(server, "broken")[2] == 0
        assert "in ensemble 'two', " in error(infer(server, "two", row(1)))


def test_s50_a_step_names_a_version(repository):
    for version in (1, 2):
        repository.onnx("m", plus(version), version, config="version_policy { all { } }")
    ensemble(repository, step("m", "x=in", "y=out", 1), name="first")
    ensemble(repository, step("m", "x=in", "y=out"), name="latest")
    with Server(repository) as server:
        assert (value(server, 0, "first"), value(server, 0, "latest")) == (1, 2)


def test_s53_parts_batch_across_ensembles_and_clients(repository):
    repository.onnx("one", plus(1), config="max_batch_size: 8 dynamic_batching { }")
    for name in ("e", "f"):
        ensemble(repository, step("one", "x=in", "y=out"), name=name)
    with Server(repository, env={"TRITONSERVER_DELAY_SCHEDULER": "3"}) as server, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(value, server, 1, "e"), pool.submit(value, server, 2, "f")]
        direct = pool.submit(infer, server, "one", row(3, "x"))
        assert [call.result() for call in calls] == [2, 3]
        assert direct.result().json["outputs"][0]["data"] == [4] * 4
        assert counts(server, "one") == (3, 1, 3)


def test_s53_an_ensemble_has_its_own_statistics(repository):
    chain(repository)
    with Server(repository) as server:
        for batch in (1, 1, 3):
            assert infer(server, "e", row(1, batch=batch)).status == 200
        for model in ("e", "one", "ten"):
            assert counts(server, model) == (5, 3, 3)
        found = stats(server)["inference_stats"]
        parts = [stats(server, model)["inference_stats"] for model in ("one", "ten")]
        assert found["compute_infer"]["ns"] == sum(part["compute_infer"]["ns"] for part in parts)
        assert found["success"]["ns"] >= sum(part["success"]["ns"] for part in parts)
        assert {batch["batch_size"] for batch in stats(server)["batch_stats"]} == {1, 3}
        assert metric(server, "request_success", model="e") == 3
        labels = [dict(labels) for _, labels in metrics(server)]
        assert not any("instance" in one for one in labels if one.get("model") == "e")


def test_s53_the_error_of_a_step_is_the_ensembles(repository):
    repository.mock("broken", fail_every=1)
    ensemble(repository, step("broken", "x=in", "y=out"))
    with Server(repository) as server:
        answer = infer(server, "e", row(1))
        assert answer.status == infer(server, "broken", row(1, "x")).status
        assert error(answer).startswith("in ensemble 'e', ")
        assert stats(server)["inference_stats"]["fail"]["count"] == 1
        assert metric(server, "request_failure", model="e", reason="OTHER") == 1
        assert metric(server, "request_failure", model="broken", reason="BACKEND") == 2


def test_s51_requests_are_checked_as_for_any_model(repository):
    chain(repository)
    with Server(repository) as server:
        assert "inference request batch-size must be <= 4 for 'e'" in error(infer(server, "e", row(1, batch=5)))
        assert "unexpected inference input 'x' for model 'e'" in error(infer(server, "e", row(1, "x")))
        wrong = [tensor("in", "FP32", [1, 3], [1] * 3)]
        assert "unexpected shape for input 'in' for model 'e'. Expected [-1,4], got [1,3]" in error(infer(server, "e", wrong))
        assert counts(server, "one")[2] == 0


BAD = {
    "missing": (step("nosuch", "x=in", "y=out"), {}, "ensemble 'bad' contains models that are not available or ambiguous: nosuch"),
    "failed": (step("sick", "x=in", "y=out"), {}, "ensemble 'bad' contains models that are not available or ambiguous: sick"),
    "version": (step("one", "x=in", "y=out", 3), {}, "not available or ambiguous: one version 3"),
    "input": (step("one", "z=in", "y=out"), {}, "ensemble tensor 'in' is mapping to non-existing input 'z' in model 'one'"),
    "output": (step("one", "x=in", "z=out"), {}, "ensemble tensor 'out' is mapping to non-existing output 'z' in model 'one'"),
    "unmapped": (step("sum", "a=in", "y=out"), {}, "input 'b' in model 'sum' is not mapped to any ensemble tensors"),
    "datatype": (
        step("one", "x=in", "y=out"),
        {"tensors": "data_type: TYPE_INT32 dims: [ 4 ]"},
        "ensemble tensor 'in': inconsistent data type: INT32 is inferred from the ensemble's configuration while FP32 is inferred from model 'one'",
    ),
    "shape": (
        step("one", "x=in", "y=out"),
        {"tensors": "data_type: TYPE_FP32 dims: [ 5 ]"},
        "inconsistent shape: [-1,5] is inferred from the ensemble's configuration while [-1,4] is inferred from model 'one'",
    ),
    "batch": (
        step("one", "x=in", "y=out"),
        {"batch": 64},
        "ensemble 'bad' allows maximum batch size 64, but it contains model 'one' which only allows maximum batch size to be 8",
    ),
    "undefined": (step("one", "x=nothing", "y=out"), {}, "ensemble tensor 'nothing', which step 0 reads,"),
    "twice": (step("one", "x=in", "y=out") + step("one", "x=in", "y=out"), {}, "ensemble tensor 'out' is written by steps 0 and 1"),
    "unused": (step("one", "x=in", "y=out") + step("one", "x=in", "y=dead"), {}, "ensemble tensor 'dead' is unused"),
    "circle": (
        step("one", "x=in", "y=out") + step("sum", "a=in b=q", "y=p") + step("one", "x=p", "y=q"),
        {},
        "steps of ensemble 'bad' wait for each other's tensors: 1 ('sum'), 2 ('one')",
    ),
    "itself": (step("bad", "in=in", "out=out"), {}, "circular dependency between ensembles: bad -> bad"),
    "instances": (step("one", "x=in", "y=out"), {"extra": "instance_group { count: 1 }"}, "instance group should not be specified for ensemble 'bad'"),
}


@pytest.mark.parametrize("case", BAD)
def test_s51_what_cannot_work_is_refused_at_the_load(repository, case):
    steps, settings, text = BAD[case]
    repository.onnx("one", plus(1), config="max_batch_size: 8")
    x, y = [("a", "FP32", ("batch", 4)), ("b", "FP32", ("batch", 4))], [("y", "FP32", ("batch", 4))]
    repository.onnx("sum", graph([helper.make_node("Add", ["a", "b"], ["y"])], x, y))
    repository.onnx("sick", b"no model")
    ensemble(repository, steps, name="bad", **settings)
    with Server(repository, EXPLICIT) as server:
        answer = post(server, "/v2/repository/models/bad/load")
        assert answer.status == 400 and text in error(answer), answer.body
        state, reason = index(server)["bad"]
        assert state == "UNAVAILABLE" and text.split(":")[0] in reason
        assert not is_ready(server, "bad")
    outcome = run("check", repository, "--model", "bad")
    assert outcome.returncode == 1
    assert case == "failed" or text in " ".join(outcome.stdout.split()), outcome.stdout


def test_s52_a_load_loads_the_parts_first(repository):
    chain(repository)
    ensemble(repository, step("e", "in=in", "out=middle"), step("one", "x=middle", "y=out"), name="outer")
    repository.onnx("other", plus(5))
    # One thread: no load waits for another one on it.
    with Server(repository, EXPLICIT, "--model-load-thread-count=1") as server:
        assert post(server, "/v2/repository/models/outer/load").status == 200
        assert value(server, 1, "outer") == 13
        states = {name: state for name, (state, _) in index(server).items()}
        assert states == {"e": "READY", "one": "READY", "ten": "READY", "outer": "READY", "other": None}
    with Server(repository, EXPLICIT, "--load-model=outer") as server:
        assert value(server, 1, "outer") == 13
    with Server(repository, "--model-load-thread-count=1") as server:
        assert value(server, 1, "outer") == 13


def test_s52_ensembles_of_each_other_are_refused(repository):
    repository.onnx("one", plus(1))
    for name, other in (("a", "b"), ("b", "a")):
        ensemble(repository, step(other, "in=in", "out=out"), name=name)
    with Server(repository, "--strict-readiness=false", "--exit-on-error=false") as server:
        for name in "ab":
            state, reason = index(server)[name]
            assert state == "UNAVAILABLE" and "not available" in reason
    outcome = run("check", repository)
    assert "circular dependency between ensembles: a -> b -> a" in outcome.stdout


def test_s52_an_ensemble_is_as_ready_as_its_parts(repository):
    chain(repository)
    with Server(repository, EXPLICIT, "--load-model=e") as server:
        assert post(server, "/v2/repository/models/one/unload").status == 200
        server.wait_until(lambda: not is_ready(server))
        text = "ensemble 'e' contains models that are not available or ambiguous: one"
        state, reason = index(server)["e"]
        assert state == "UNAVAILABLE" and text in reason
        answer = infer(server, "e", row(1))
        assert answer.status == 503 and text in error(answer)
        assert get(server, "/v2/health/ready").status == 400
        # Another version of the part is used from the next request on.
        repository.onnx("one", plus(2))
        assert post(server, "/v2/repository/models/one/load").status == 200
        assert is_ready(server) and value(server, 1) == 13
        repository.onnx("one", plus(3))
        assert post(server, "/v2/repository/models/one/load").status == 200
        assert value(server, 1) == 14
        # One that does not fit makes the ensemble unavailable, and one that does makes it available.
        repository.onnx("one", plus(1, ("batch", 5)))
        assert post(server, "/v2/repository/models/one/load").status == 200
        assert not is_ready(server)
        assert "inconsistent shape" in error(infer(server, "e", row(1)))
        repository.onnx("one", plus(4))
        assert post(server, "/v2/repository/models/one/load").status == 200
        assert is_ready(server) and value(server, 1) == 15


def unload(server, model, dependents):
    with httpclient.InferenceServerClient(server.http) as client:
        client.unload_model(model, unload_dependents=dependents)


def test_r13_dependents_are_unloaded_with_a_part(repository):
    chain(repository)
    ensemble(repository, step("e", "in=in", "out=out"), name="outer")
    with Server(repository, EXPLICIT, "--load-model=outer") as server:
        unload(server, "one", True)
        server.wait_until(lambda: all(state != "READY" for name, (state, _) in index(server).items() if name in ("one", "e", "outer")))
        assert index(server)["outer"] == index(server)["e"] == ("UNAVAILABLE", "unloaded")
        assert index(server)["ten"][0] == "READY"
        assert get(server, "/v2/health/ready").status == 200


def test_r13_an_ensemble_takes_the_parts_that_came_with_it(repository):
    chain(repository)
    ensemble(repository, step("ten", "x=in", "y=out"), name="f")
    repository.onnx("asked", plus(5))
    ensemble(repository, step("asked", "x=in", "y=middle"), step("one", "x=middle", "y=out"), name="g")
    with Server(repository, EXPLICIT) as server:
        for model in ("asked", "e", "f", "g"):
            assert post(server, f"/v2/repository/models/{model}/load").status == 200
        unload(server, "e", False)
        assert is_ready(server, "one") and is_ready(server, "ten")
        assert post(server, "/v2/repository/models/e/load").status == 200
        # `ten` serves another ensemble, and so does `one`.
        unload(server, "e", True)
        assert is_ready(server, "ten") and is_ready(server, "one")
        # `asked` was asked for.
        unload(server, "g", True)
        assert not is_ready(server, "one") and is_ready(server, "asked")


def test_s54_so_many_requests_are_under_way(repository):
    repository.mock("slow", latency_us=FOREVER_US)
    ensemble(
        repository,
        step("slow", "x=in", "y=out"),
        bound="max_inflight_requests: 2",
        extra=parameter("max_queue_size", 1),
    )
    with Server(repository) as server, ThreadPoolExecutor(4) as pool:
        sockets = [ask(server, "e")]
        server.wait_until(lambda: runs_now(server, "slow_0_0"))
        sockets.append(ask(server, "e"))
        wait_pending(server, "slow", 1)
        waits = pool.submit(infer, server, "e", row(1), parameters={"timeout": 200_000})
        wait_pending(server, "e", 1)
        assert "Exceeds maximum queue size" in error(infer(server, "e", row(1)))
        answer = waits.result()
        assert answer.status == 503 and "Request timeout expired" in error(answer)
        assert metric(server, "request_failure", model="e", reason="REJECTED") == 2
        # A client that leaves makes room, and what waits in the part's queue is gone with it.
        waits = ask(server, "e")
        wait_pending(server, "e", 1)
        sockets.pop().close()
        wait_pending(server, "e", 0)
        wait_pending(server, "slow", 1)
        waits.close()
        wait_pending(server, "slow", 0)
        assert metric(server, "request_failure", model="e", reason="CANCELED") == 2


def runs_now(server, instance):
    """Whether an instance has begun a batch."""
    busy = [figure for (name, labels), figure in metrics(server).items() if name == "skep_instance_busy_us" and ("instance", instance) in labels]
    return busy[0] > 0


def ask(server, model, tensor="in"):
    """A request whose answer nobody reads."""
    host, port = server.http.rsplit(":", 1)
    body = json.dumps({"inputs": row(1, tensor)}).encode()
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_s54_a_full_queue_of_a_step_is_the_ensembles_error(repository):
    repository.mock("slow", parameter("max_queue_size", 1), latency_us=FOREVER_US)
    repository.onnx("one", plus(1))
    ensemble(repository, step("one", "x=in", "y=middle"), step("slow", "x=middle", "y=out"))
    with Server(repository) as server:
        sockets = [ask(server, "e")]
        server.wait_until(lambda: counts(server, "one")[2] == 1)
        sockets.append(ask(server, "e"))
        wait_pending(server, "slow", 1)
        answer = infer(server, "e", row(1))
        assert answer.status == 503
        assert error(answer) == "in ensemble 'e', Exceeds maximum queue size"
        for connection in sockets:
            connection.close()


def test_s54_a_request_with_time_left_waits_for_room_in_a_steps_queue(repository):
    repository.mock("slow", parameter("max_queue_size", 1), latency_us=100_000)
    repository.onnx("one", plus(1))
    ensemble(repository, step("one", "x=in", "y=middle"), step("slow", "x=middle", "y=out"))
    with Server(repository) as server, ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(infer, server, "e", row(1), parameters={"timeout": 60_000_000}) for _ in range(6)]
        assert [call.result().status for call in calls] == [200] * 6
        assert counts(server, "slow")[2] == 6 == counts(server, "e")[2]
        # Four of them at least were refused at first: one runs, one waits.
        assert metric(server, "request_failure", model="slow", reason="REJECTED") >= 4


CHOICE = 'input { name: "go" data_type: TYPE_BOOL dims: [ 1 ] }'


def test_conditions_choose_between_steps(repository):
    for name, number in (("one", 1), ("ten", 10), ("more", 100)):
        repository.onnx(name, plus(number))
    conditions = {"step[0].condition": "go", "step[1].condition": "!go", "step[2].condition": "go"}
    ensemble(
        repository,
        step("one", "x=in", "y=out"),
        step("ten", "x=in", "y=out"),
        step("more", "x=out", "y=much"),
        outputs="out much",
        extra=CHOICE + "\n" + "".join(parameter(key, text) for key, text in conditions.items()),
    )
    with Server(repository) as server:
        for go, expected in ((True, {"out": 2, "much": 102}), (False, {"out": 11})):
            answer = infer(server, "e", [*row(1), tensor("go", "BOOL", [1, 1], [go])])
            assert answer.status == 200, answer.body
            assert {one["name"]: one["data"][0] for one in answer.json["outputs"]} == expected
        assert [counts(server, name)[2] for name in ("one", "ten", "more")] == [1, 1, 1]
        # What is not wanted does not run, whatever its condition.
        both = [*row(1), tensor("go", "BOOL", [1, 1], [True])]
        assert infer(server, "e", both, outputs=[{"name": "out"}]).status == 200
        assert [counts(server, name)[2] for name in ("one", "ten", "more")] == [2, 1, 1]


def test_a_step_has_its_own_priority_and_timeout(repository):
    policy = """dynamic_batching { priority_levels: 2 default_priority_level: 2
        default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 60000000 } }"""
    repository.mock("slow", policy, latency_us=FOREVER_US)
    settings = parameter("step[0].timeout_ms", 100) + parameter("step[0].priority", 1)
    ensemble(repository, step("slow", "x=in", "y=out"), extra=settings)
    with Server(repository) as server:
        # It runs for as long as the server does.
        blocks = ask(server, "slow", "x")
        server.wait_until(lambda: runs_now(server, "slow_0_0"))
        assert error(infer(server, "e", row(1))) == "in ensemble 'e', Request timeout expired"
        blocks.close()


def test_s55_the_timeout_and_parameters_go_with_the_request(repository):
    policy = "dynamic_batching { default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 60000000 } }"
    repository.mock("slow", policy, latency_us=FOREVER_US)
    repository.mock("echo", echo_parameters=1)
    ensemble(repository, step("slow", "x=in", "y=out"))
    with Server(repository) as server:
        blocks = [ask(server, "e"), ask(server, "e")]
        wait_pending(server, "slow", 1)
        answer = infer(server, "e", row(1), parameters={"timeout": 50_000})
        assert error(answer) == "in ensemble 'e', Request timeout expired"
        for connection in blocks:
            connection.close()


def test_optional_inputs_stay_omitted(repository):
    x, z = ('{ name: "%s" data_type: TYPE_FP32 dims: 4 %s }' % part for part in (("x", ""), ("z", "optional: true")))
    (repository.path / "m/1").mkdir(parents=True)
    text = f'backend: "mock" max_batch_size: 8 input [ {x}, {z} ] output [ {{ name: "y" data_type: TYPE_FP32 dims: 4 }}, {{ name: "w" data_type: TYPE_FP32 dims: 4 }} ]\n'
    repository.config("m", text + parameter("mock.output", "echo"))
    spare = 'input { name: "spare" data_type: TYPE_FP32 dims: [ 4 ] optional: true }'
    ensemble(repository, step("m", "x=in z=spare", "y=out w=given"), outputs="out given", extra=spare)
    with Server(repository) as server:
        for inputs, expected in ((row(1), 0), ([*row(1), *row(5, "spare")], 5)):
            outputs = infer(server, "e", inputs).json["outputs"]
            assert [output["data"][0] for output in outputs] == [1, expected]


def test_f22_responses_of_ensembles_are_kept(repository):
    chain(repository, extra="response_cache { enable: true }")
    with Server(repository, "--cache-config=local,size=1048576") as server:
        assert [value(server, 1) for _ in range(3)] == [12] * 3
        found = stats(server)
        assert found["execution_count"] == 1 == counts(server, "one")[1]
        parts = found["inference_stats"]
        assert (parts["cache_hit"]["count"], parts["cache_miss"]["count"], parts["success"]["count"]) == (2, 1, 3)


def test_parts_are_loaded_by_the_first_request(repository):
    chain(repository)
    with Server(repository, "--load-policy=lazy") as server:
        assert is_ready(server)
        assert value(server, 1) == 12
        assert is_ready(server, "one")


def test_a_stop_lets_ensembles_end_before_their_parts(repository):
    for name in ("a", "b", "c"):
        repository.mock(name, latency_us=150_000)
    ensemble(repository, step("a", "x=in", "y=p"), step("b", "x=p", "y=q"), step("c", "x=q", "y=out"))
    ensemble(repository, step("e", "in=in", "out=out"), name="outer")
    with Server(repository) as server, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(infer, server, name, row(1)) for name in ("e", "outer")]
        server.wait_until(lambda: counts(server, "a")[1] >= 1)
        server.process.send_signal(signal.SIGTERM)
        assert [call.result().status for call in calls] == [200, 200]
        assert server.process.wait(timeout=60) == 0


def test_worker_processes_are_parts_as_well(repository):
    repository.onnx("one", plus(1), config=parameter("isolation", "process"))
    repository.onnx("ten", plus(10))
    ensemble(repository, step("one", "x=in", "y=middle"), step("ten", "x=middle", "y=out"))
    with Server(repository) as server:
        assert value(server, 1) == 12


def test_many_clients_each_get_their_own(repository):
    repository.onnx("one", plus(1), config="max_batch_size: 8 dynamic_batching { } instance_group { count: 2 }")
    ensemble(
        repository,
        step("one", "x=in", "y=p"),
        step("one", "x=p", "y=out"),
        step("one", "x=p", "y=other"),
        outputs="out other",
        bound="max_inflight_requests: 3",
    )

    def client(number):
        with httpclient.InferenceServerClient(server.http) as http:
            for asked in range(30):
                x = httpclient.InferInput("in", [1 + asked % 3, 4], "FP32")
                data = np.full((1 + asked % 3, 4), number * 100 + asked, np.float32)
                x.set_data_from_numpy(data)
                result = http.infer("e", [x])
                assert np.array_equal(result.as_numpy("out"), data + 2)
                assert np.array_equal(result.as_numpy("other"), data + 2)

    with Server(repository) as server, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(client, number) for number in range(8)]:
            done.result()
        assert counts(server, "e")[2] == 240
        assert counts(server, "one")[2] == 720
