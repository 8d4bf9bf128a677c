"""Live configuration: instances, threads and batches follow the rate, from a profile."""

import json
import os
import threading

import pytest

from http_client import get, infer, tensor
from metrics import metrics
from process import wait_until
from repository import Repository, plus
from server import Server, run, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
LIVE = """dynamic_batching { }
    parameters { key: "live_configuration" value { string_value: "1" } }"""
GROUP = "instance_group { }"


def point(instances, threads, batch, millis):
    latency = {"p50_ms": millis, "p95_ms": millis, "p99_ms": millis, "batches": 20}
    return {
        "cpus": instances * threads,
        "instances": instances,
        "threads": threads,
        "batch": batch,
        "latency": latency,
        "requests_per_second": 1e3 * batch * instances / millis,
        "private_bytes": 0,
    }


# One instance has up to 8 inferences in a batch of 10 ms; one thread.
ONE_THREAD = [point(1, 1, batch, 10 + batch) for batch in (1, 2, 4, 8)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A scripted model and its profile, whose figures tests replace."""
    root = tmp_path_factory.mktemp("measured")
    repository = Repository(root / "models")
    repository.mock("m", LIVE + GROUP, latency_us=2000)
    path = root / "profiles.json"
    outcome = run("profile", "--point", "20", "--max-batch", "2", root / "models/m", "--output", path)
    assert outcome.returncode == 0, outcome.stderr
    return repository, json.loads(path.read_text())


def profiled(tmp_path, file, points=None, **changes):
    """A file with other points for its model."""
    file = json.loads(json.dumps(file))
    [model] = file["models"]
    model.update(changes)
    if points:
        model["configurations"] = points
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps(file))
    return path


def model(server, name="m"):
    return next(row for row in get(server, "/v2/skep/residency").json["models"] if row["name"] == name)


def configuration(server):
    return model(server).get("configuration", {})


def shape(server):
    row = configuration(server)
    return row.get("instances"), row.get("threads"), row.get("batch")


def cores():
    return len(os.sched_getaffinity(0))


def test_a_profile_names_the_files_that_it_is_of(measured):
    _, file = measured
    [model] = file["models"]
    assert len(model["model_files"]) == 64 and model["model_files"] != model["files"]


def test_a_model_gets_what_its_profile_recommends(measured, tmp_path):
    repository, file = measured
    # Two threads take half the time.
    points = [point(1, 1, 1, 40), point(1, 1, 2, 80)]
    if cores() > 1:
        points += [point(1, 2, 1, 20), point(1, 2, 2, 40), point(2, 1, 1, 40), point(2, 1, 2, 80)]
    path = profiled(tmp_path, file, points)
    with Server(repository, "--profiles", path) as server:
        expected = (1, min(cores(), 2), 1)
        wait_until(lambda: shape(server) == expected, "the best at rest")
        row = configuration(server)
        assert row["predicted_p95_ms"] == 40 / expected[1]
        assert row["rate"] == 0
        threads = "2 threads" if cores() > 1 else "1 thread"
        assert row["why"].startswith(f"1 instance x {threads}, no batches: predicted p95 ")
        assert row["why"] in run("status", "--url", f"http://{server.http}").stdout
        # A client that asks for the configuration sees that nobody has configured it.
        assert get(server, "/v2/models/m/config").json["instance_group"][0]["count"] == 0
        assert infer(server, "m", ZEROS).status == 200


def test_no_request_is_lost_while_configurations_change(measured, tmp_path):
    repository, file = measured
    # One instance with two threads is sooner, and instances with one thread each serve more. The scripted model is quicker
    # than its profile says, so that the rate is beyond all of them.
    sizes = (1, 2, 4, 8)
    points = [point(count, 1, batch, 40 + batch) for count in range(1, cores() + 1) for batch in sizes]
    if cores() > 1:
        points += [point(1, 2, batch, 30 + batch) for batch in sizes]
    path = profiled(tmp_path, file, points)
    with Server(repository, "--profiles", path) as server:
        # Batches of 4 serve half of what larger ones would.
        wait_until(lambda: shape(server) == (1, min(cores(), 2), 4), "the best at rest")
        stop = threading.Event()
        outcomes = []

        def client():
            while not stop.is_set():
                answer = infer(server, "m", ZEROS)
                outcomes.append((answer.status, answer.body if answer.status != 200 else b""))

        clients = [threading.Thread(target=client) for _ in range(8)]
        for one in clients:
            one.start()
        try:
            wait_until(lambda: shape(server) == (cores(), 1, 8), "what serves the most")
            before = len(outcomes)
            wait_until(lambda: len(outcomes) > before + 200, "requests after the change")
        finally:
            stop.set()
            for one in clients:
                one.join()
        assert {status for status, _ in outcomes} == {200}, [body for status, body in outcomes if status != 200][:3]
        found = metrics(server)
        assert found["skep_residency_decisions_total", frozenset({("kind", "configure")})] >= 1
        [success] = [value for (name, _), value in found.items() if name == "nv_inference_request_success"]
        assert success == len(outcomes)
        assert any("`m` runs otherwise: " in line for line in server.lines)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("instance_group { count: 2 }", "the number of instances"),
        ('parameters { key: "max_instances" value { string_value: "4" } }', "the number of instances"),
        ('parameters { key: "intra_op_thread_count" value { string_value: "2" } }', "the threads of an instance"),
        ("instance_group [ { }, { } ]", "the instances of one group"),
    ],
)
def test_what_is_configured_cannot_be_chosen(repository, setting, what):
    repository.mock("m", LIVE + setting + ("" if "instance_group" in setting else GROUP))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert f"`live_configuration` chooses {what}: remove one of the two" in log


def test_a_model_without_a_profile_is_served_with_one_warning(repository):
    repository.mock("m", LIVE + GROUP)
    with Server(repository) as server:
        assert infer(server, "m", ZEROS).status == 200
        [line] = [line for line in server.lines if "`live_configuration` has no effect" in line]
        assert "the server has no profiles (`--profiles`)" in line
        assert "configuration" not in model(server)


def test_profiles_of_other_files_and_machines_are_refused_with_a_warning(measured, tmp_path):
    repository, file = measured
    path = profiled(tmp_path, file, model_files="00" * 32)
    with Server(repository, "--profiles", path) as server:
        server.wait_for("`live_configuration` has no effect: the profile is of other files")
        assert infer(server, "m", ZEROS).status == 200
    file = json.loads(json.dumps(file))
    file["machine"]["processor"] = "another"
    path = profiled(tmp_path, file)
    with Server(repository, "--profiles", path) as server:
        server.wait_for("ignored, because it was measured on another machine or version: another with ")
        assert infer(server, "m", ZEROS).status == 200


def test_damaged_profiles_end_the_start(measured, tmp_path):
    repository, file = measured
    path = profiled(tmp_path, file, [{**ONE_THREAD[0], "batch": 0}])
    for text, expected in [
        (path.read_text(), "configuration 0: CPUs, instances, threads and batch are"),
        ("{}", "not a profile of `skep profile`"),
        (json.dumps({**file, "models": file["models"] * 2}), "two profiles of model `m`"),
        (json.dumps({**file, "models": [{**file["models"][0], "configurations": []}]}), "has no measured configuration"),
        (json.dumps({**file, "models": [{**file["models"][0], "configurations": [point(1, 1, 1, 1e300)]}]}), "is too large"),
    ]:
        path.write_text(text)
        code, log = serve_and_fail(repository, "--profiles", path)
        assert code != 0 and expected in log, log
    code, log = serve_and_fail(repository, "--profiles", tmp_path / "none.json")
    assert code != 0 and "--profiles" in log


def test_threads_of_a_session_change_without_a_reload(tmp_path):
    """A real model changes between one thread and two."""
    if cores() < 2:
        pytest.skip("two threads need two CPUs")
    repository = Repository(tmp_path / "models")
    repository.onnx("m", plus(1), config=LIVE)
    path = tmp_path / "profiles.json"
    outcome = run("profile", "--point", "20", "--max-batch", "2", repository.path / "m", "--output", path)
    assert outcome.returncode == 0, outcome.stderr
    # At rest two threads are better; at any rate worth the name two instances are.
    points = [point(1, 2, 1, 20), point(1, 2, 2, 40), point(1, 1, 1, 30), point(1, 1, 2, 60), point(2, 1, 1, 30), point(2, 1, 2, 60)]
    path = profiled(tmp_path, json.loads(path.read_text()), points)
    with Server(repository, "--profiles", path) as server:
        wait_until(lambda: shape(server)[:2] == (1, 2), "the best at rest")
        answers = []

        def changed():
            answer = infer(server, "m", ZEROS)
            answers.append((answer.status, answer.json["outputs"][0]["data"]))
            return shape(server)[:2] == (2, 1)

        wait_until(changed, "the best under load")
        assert all(answer == (200, [1.0] * 4) for answer in answers)
        assert get(server, "/v2/models/m/stats").json["model_stats"][0]["inference_count"] == len(answers)
