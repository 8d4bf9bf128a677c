"""Which backend a model gets, what is said when its library is missing, and isolation of failures in it."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from http_client import get, infer, post, tensor
from metrics import metric, wait_pending
from repository import identity, plus
from server import ROOT, WITHOUT_LIBRARY, Server, run, serve_and_fail

FALLBACK = "--allow-backend-fallback"
ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


def library():
    (path,) = (ROOT / "target/venv/lib").glob("python*/site-packages/onnxruntime/capi/libonnxruntime.so.*")
    return path


def platform(server, model="m"):
    return get(server, f"/v2/models/{model}").json["platform"]


def test_no_backend_named_is_onnxruntime_if_its_library_is_found(repository):
    repository.onnx("m", plus(1))
    with Server(repository) as server:
        assert platform(server) == "onnxruntime_onnx"
        assert "opened ONNX Runtime" in server.log


def test_no_backend_named_is_embedded_without_the_library(repository):
    repository.onnx("m", plus(1))
    with Server(repository, **WITHOUT_LIBRARY) as server:
        assert platform(server) == "embedded"
        config = get(server, "/v2/models/m/config").json
        assert (config["backend"], config["instance_group"][0]["count"]) == ("embedded", 1)
        assert infer(server, "m", ZEROS).json["outputs"][0]["data"] == [1] * 4
        assert server.log.count("models that name no backend run on `embedded`") == 1


def test_onnxruntime_without_its_library_fails_with_what_to_do(repository):
    repository.onnx("m", plus(1), config='backend: "onnxruntime"')
    code, log = serve_and_fail(repository, **WITHOUT_LIBRARY)
    assert code == 1
    assert "pip install onnxruntime" in log


def test_fallback_runs_embedded_and_keeps_the_configuration(repository):
    repository.onnx("m", plus(1), config='backend: "onnxruntime"')
    with Server(repository, FALLBACK, **WITHOUT_LIBRARY) as server:
        config = get(server, "/v2/models/m/config").json
        assert (config["backend"], config["platform"]) == ("onnxruntime", "onnxruntime_onnx")
        assert config["instance_group"][0]["count"] == 2
        assert infer(server, "m", ZEROS).json["outputs"][0]["data"] == [1] * 4
        assert "`embedded` stands in" in server.log


def test_fallback_refuses_what_the_embedded_backend_does_not_serve(repository):
    repository.onnx("m", identity("FP16"), config='backend: "onnxruntime"')
    code, log = serve_and_fail(repository, FALLBACK, **WITHOUT_LIBRARY)
    assert code == 1
    assert "FLOAT16" in log


def test_the_library_may_be_named_by_flag_or_environment(repository):
    repository.onnx("m", plus(1), config='backend: "onnxruntime"')
    path = library()
    for args, env in (
        ([f"--onnxruntime-library={path}"], {"ORT_DYLIB_PATH": "/nonexistent"}),
        ([f"--onnxruntime-library={path.parent}"], {"ORT_DYLIB_PATH": "/nonexistent"}),
        ([], {"ORT_DYLIB_PATH": str(path)}),
    ):
        with Server(repository, *args, env=env) as server:
            assert infer(server, "m", ZEROS).status == 200
            assert f"from `{path}`" in server.log


@pytest.fixture
def unusable(tmp_path):
    """What may be named as a library and is none, each with what is said of it."""
    fake = tmp_path / "libonnxruntime.so"
    fake.write_bytes(b"not a library")
    empty = tmp_path / "empty"
    empty.mkdir()
    return {
        "/nonexistent.so": "not there",
        fake: "cannot be opened as a library: ",
        empty: "holds no library of ONNX Runtime",
        "libc.so.6": "is not ONNX Runtime: it has no `OrtGetApiBase`",
    }


@pytest.mark.parametrize("command", ["serve", "check", "bake", "plan", "doctor"])
def test_a_library_that_was_named_and_cannot_be_used_ends_every_command(repository, tmp_path, unusable, command):
    """Nobody who names a library wants another one, or the embedded engine, whatever the models name."""
    repository.onnx("m", plus(1))
    subject = {
        "plan": [repository.path / "m/1/model.onnx"],
        "doctor": [],
        "bake": ["--weight-cache", tmp_path / "cache", repository],
    }.get(command, [repository])
    for path, words in unusable.items():
        for flags, env, named in (
            ([f"--onnxruntime-library={path}"], {}, "--onnxruntime-library"),
            ([], {"ORT_DYLIB_PATH": str(path)}, "ORT_DYLIB_PATH"),
        ):
            outcome = run(command, *subject, *flags, env=env)
            assert outcome.returncode == 1
            said = outcome.stdout if command == "doctor" else outcome.stderr
            assert f"ONNX Runtime cannot be used: {named}: `{path}`: {words}" in said
            assert "name another file or directory, or none" in said
            assert "pip install" not in said
            assert "embedded" not in outcome.stderr


def test_a_plan_without_a_run_needs_no_library(repository):
    repository.onnx("m", plus(1))
    outcome = run("plan", repository.path / "m/1/model.onnx", "--no-run", env={"ORT_DYLIB_PATH": "/nonexistent"})
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_doctor_says_what_was_found():
    found = run("doctor")
    assert found.returncode == 0
    assert re.search(r"backend `onnxruntime`: ONNX Runtime \d+\.\d+\.\d+ from `.+`", found.stdout)
    assert "backend `embedded`" in found.stdout
    places = found.stdout.split("looked at:\n")[1].splitlines()
    columns = [re.match(r"(    \S.*?  +)(`.*`  +)\S", line) for line in places]
    assert len({tuple(map(len, column.groups())) for column in columns}) == 1
    assert found.stdout.count("one that is cut or overwritten while it is mapped ends the server") == 2
    missing = run("doctor", **WITHOUT_LIBRARY)
    assert missing.returncode == 0
    assert "backend `onnxruntime`: not available\n  ONNX Runtime's library was not found\n" in missing.stdout
    assert "models that name no backend run on `embedded`" in missing.stdout
    assert "\n    system " in missing.stdout.split("looked at:\n")[1]
    (loader,) = [line for line in places if "`libonnxruntime.so`" in line]
    assert loader.endswith("  not tried")


def test_mock_outputs(repository):
    repository.mock("echo", output="echo")
    repository.mock("ramp", output="ramp")
    with Server(repository) as server:
        inputs = [tensor("x", "FP32", [2, 4], [5, 6, 7, 8, 1, 2, 3, 4])]
        assert infer(server, "echo", inputs).json["outputs"][0]["data"] == [5, 6, 7, 8, 1, 2, 3, 4]
        assert infer(server, "ramp", inputs).json["outputs"][0]["data"] == list(range(8))


def test_an_error_of_a_backend_answers_its_request_only(repository):
    repository.mock(fail_every=2)
    with Server(repository) as server:
        statuses = [infer(server, "mock", ZEROS).status for _ in range(6)]
        assert statuses == [200, 500] * 3
        assert get(server, "/v2/health/ready").status == 200


@pytest.mark.parametrize("instances", [1, 3])
def test_a_panic_answers_its_request_and_the_instance_is_made_anew(repository, instances):
    repository.mock(config=f"instance_group {{ count: {instances} }}", panic_every=3)
    repository.onnx("other", plus(1))
    with Server(repository) as server:
        answers = [infer(server, "mock", ZEROS) for _ in range(12)]
        assert [a.status for a in answers] == [200, 200, 500] * 4
        assert "panicked" in answers[2].error
        assert infer(server, "other", ZEROS).status == 200
        # Each panic cost an instance; four requests at once find all of them alive again.
        server.wait_for("was restarted after a panic")
        assert metric(server, "request_failure", "mock", reason="BACKEND") == 4
        assert metric(server, "request_success", "mock") == 8
        assert get(server, "/v2/health/live").status == 200


def test_panics_under_load_lose_no_request(repository):
    repository.mock(config="instance_group { count: 2 }", panic_every=5, latency_us=1000)
    with Server(repository) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: infer(server, "mock", ZEROS).status, range(100)))
        assert sorted(answers) == [200] * 80 + [500] * 20
        wait_pending(server, "mock", 0)
        assert server.stop() == 0


def test_a_panic_of_one_request_leaves_the_waiting_ones_alone(repository):
    repository.mock(panic_every=2, latency_us=200_000)
    with Server(repository) as server, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(infer, server, "mock", ZEROS) for _ in range(4)]
        assert sorted(future.result().status for future in running) == [200, 200, 500, 500]


def test_a_failing_load_of_one_model_leaves_the_others(repository):
    repository.mock("bad", load_error="out of luck")
    repository.mock("good")
    with Server(repository, "--model-control-mode=explicit", "--load-model=good") as server:
        answer = post(server, "/v2/repository/models/bad/load")
        assert answer.status >= 400
        assert "out of luck" in answer.error
        assert infer(server, "good", ZEROS).status == 200
        rows = {row["name"]: row for row in post(server, "/v2/repository/index").json}
        assert rows["bad"]["state"] == "UNAVAILABLE"
        assert "out of luck" in rows["bad"]["reason"]
