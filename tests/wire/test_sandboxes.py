"""Instances in worker processes: what they answer, what ends them, what they may not do, and that they go."""

import ctypes
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper

from http_client import get, infer, post, tensor
from metrics import metrics, wait_metric, wait_pending
from process import MIB, private_bytes_of, wait_until, workers
from repository import DATATYPES, FOREVER_US, WARMUP, graph, identity, plus
from server import Server

PROCESS = 'parameters { key: "isolation" value { string_value: "process" } }'
ONE = "instance_group { count: 1 kind: KIND_CPU }"
SECCOMP_MODE_FILTER = "2"


def x(*numbers):
    return [tensor("x", "FP32", [len(numbers) // 4, 4], list(numbers))]


ZEROS = x(0, 0, 0, 0)


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def is_gone(pid):
    """Whether a process has ended; one that init has not yet waited for has."""
    try:
        return status(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def infer_json(server, model, inputs):
    answer = infer(server, model, inputs)
    assert answer.status == 200, answer.body
    return answer.json["outputs"]


def limit(pid, name):
    """A limit of a process, as `/proc` shows it; the soft one."""
    [line] = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()[0]


def kill_idle(server, model):
    """Kills the server's one worker, and waits until the server knows."""
    [pid] = workers(server)
    os.kill(pid, signal.SIGKILL)
    server.wait_for(f"worker process {pid} of model `{model}` ended by signal 9 (SIGKILL)")
    return pid


def restarts(server, model):
    return sum(v for (name, labels), v in metrics(server).items()
               if name == "skep_instance_restarts_total" and ("model", model) in labels)


def wait_restarts(server, model, count):
    server.wait_until(lambda: restarts(server, model) == count)


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_answers_are_those_of_a_thread(repository, backend):
    """Batches of several sizes, growing beyond the first memory, and back."""
    model = plus(1.5, shape=("batch", "n"))
    tensors = 'input { name: "x" data_type: TYPE_FP32 dims: [-1, -1] } output { name: "y" data_type: TYPE_FP32 dims: [-1, -1] }'
    for name, more in (("thread", ""), ("process", PROCESS)):
        repository.onnx(name, model, config=f'backend: "{backend}" {tensors} {more} {ONE}')
    with Server(repository) as server:
        client = tritonclient.http.InferenceServerClient(server.http)
        for shape in ([1, 4], [3, 5], [0, 4], [64, 4096], [1, 1], [300, 5000], [2, 4]):
            values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
            given = tritonclient.http.InferInput("x", shape, "FP32")
            given.set_data_from_numpy(values)
            one, other = (client.infer(name, [given]).as_numpy("y") for name in ("thread", "process"))
            assert one.shape == other.shape == tuple(shape)
            assert one.tobytes() == other.tobytes() == (values + np.float32(1.5)).tobytes()
        client.close()


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_goes_there_and_back(repository, datatype):
    repository.onnx("m", identity(datatype), config=f'backend: "onnxruntime" {PROCESS} {ONE}')
    raw = DATATYPES[datatype][0]
    with Server(repository) as server:
        client = tritonclient.http.InferenceServerClient(server.http)
        values = np.arange(8).reshape(2, 4) % 2
        values = values.astype(str).astype(np.object_) if datatype == "BYTES" else values.astype(raw)
        values = values.astype(np.float32) if datatype == "BF16" else values
        given = tritonclient.http.InferInput("INPUT0", [2, 4], datatype)
        given.set_data_from_numpy(values)
        got = client.infer("m", [given]).as_numpy("OUTPUT0")
        if datatype == "BYTES":
            got = np.vectorize(lambda element: element.decode())(got)
        assert (got == values).all()
        client.close()


def test_outputs_in_memory_of_the_backends_own(repository):
    """Texts and shapes that only the run knows lie beside outputs that were written in place."""
    nodes = [
        helper.make_node("Identity", ["s"], ["texts"]),
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    model = graph(
        nodes,
        [("s", "BYTES", ["k"]), ("x", "FP32", ["n"])],
        [("texts", "BYTES", ["k"]), ("where", "INT64", [1, "found"]), ("y", "FP32", ["n"])],
    )
    tensors = """input { name: "s" data_type: TYPE_STRING dims: -1 } input { name: "x" data_type: TYPE_FP32 dims: -1 }
        output { name: "texts" data_type: TYPE_STRING dims: -1 } output { name: "y" data_type: TYPE_FP32 dims: -1 }
        output { name: "where" data_type: TYPE_INT64 dims: [1, -1] }"""
    repository.onnx("m", model, config=f'backend: "onnxruntime" {tensors} {PROCESS} {ONE}')
    with Server(repository) as server:
        for texts, numbers in ((["a", "", "long" * 50_000], [0, 1, 2]), ([], [0]), (["z"], [3] * 20_000)):
            inputs = [tensor("s", "BYTES", [len(texts)], texts), tensor("x", "FP32", [len(numbers)], numbers)]
            outputs = {output["name"]: output["data"] for output in infer_json(server, "m", inputs)}
            assert outputs["texts"] == texts
            assert outputs["where"] == [index for index, number in enumerate(numbers) if number]
            assert outputs["y"] == [-number for number in numbers]


def test_the_mock_errors_and_parameters_are_as_on_a_thread(repository):
    repository.mock("fails", config=PROCESS, fail_every=2, echo_parameters=1, output="echo")
    repository.mock("broken", config=PROCESS, load_error="no such device")
    with Server(repository, "--exit-on-error=false") as server:
        first, second, third = (infer(server, "fails", x(1, 2, 3, 4), parameters={"mine": 5}) for _ in range(3))
        assert first.json["parameters"] == {"mine": 5}
        assert first.json["outputs"][0]["data"] == third.json["outputs"][0]["data"] == [1, 2, 3, 4]
        assert (second.status, second.error) == (500, "execution 2 fails, as `mock.fail_every` says")
        assert restarts(server, "fails") == 0
        assert "no such device" in server.log
        assert len(workers(server)) == 1


def test_a_worker_that_never_ends_loading_is_ended(repository):
    repository.mock("endless", config=PROCESS, load_latency_us=FOREVER_US)
    repository.mock("other", config=PROCESS, load_latency_us=1)
    with Server(repository, "--exit-on-error=false", "--sandbox-load-timeout-secs=5") as server:
        assert "the worker process of model `endless` was ended: it had not loaded the model after 5 s" in server.log
        assert get(server, "/v2/models/endless/ready").status != 200
        assert len(workers(server)) == 1
        assert infer(server, "other", ZEROS).status == 200


def test_a_panic_costs_the_worker_and_its_batch(repository):
    repository.mock(config=PROCESS, panic_every=2)
    with Server(repository) as server:
        [before] = workers(server)
        assert infer(server, "mock", ZEROS).status == 200
        answer = infer(server, "mock", ZEROS)
        assert answer.status == 500
        assert "execution 2 panics, as `mock.panic_every` says" in answer.error
        assert infer(server, "mock", ZEROS).status == 200
        [after] = workers(server)
        assert before != after
        wait_restarts(server, "mock", 1)
        # What the worker says at its end reaches the server's log.
        server.wait_for(f"worker process {before} of model `mock`: ")


def test_a_worker_that_is_killed_answers_its_batch_and_no_other(repository):
    repository.mock(config=PROCESS, latency_us=FOREVER_US)
    repository.mock("other", config=PROCESS)
    with Server(repository) as server, ThreadPoolExecutor() as pool:
        pair = workers(server)
        running = pool.submit(infer, server, "mock", ZEROS)
        # The instance has it, and the next one waits.
        server.wait_until(lambda: any(
            value > 0 for (name, labels), value in metrics(server).items()
            if name == "skep_instance_busy_us" and ("model", "mock") in labels
        ))
        waiting = pool.submit(infer, server, "mock", ZEROS)
        wait_pending(server, "mock", 1)
        other = pool.submit(infer, server, "other", ZEROS)
        assert other.result().status == 200
        # Killed in turn: `other`, idle, is not missed; `mock` has a batch.
        for pid in pair:
            os.kill(pid, signal.SIGKILL)
        answer = running.result()
        assert answer.status == 500
        assert answer.error == (
            "the worker process of model `mock` ended by signal 9 (SIGKILL) while it ran this batch"
        )
        wait_restarts(server, "mock", 1)
        wait_pending(server, "mock", 0)
        assert not waiting.done()
        # The one that waited is with the new worker, which dies as well.
        [new] = [pid for pid in workers(server) if pid not in pair]
        os.kill(new, signal.SIGKILL)
        assert waiting.result().status == 500
        assert infer(server, "other", ZEROS).status == 200
        wait_restarts(server, "mock", 2)


def test_an_instance_that_is_taken_away_while_it_is_busy_is_not_made_anew(repository):
    def instances(count):
        group = f"instance_group {{ count: {count} kind: KIND_CPU }}"
        repository.mock(config=f"{PROCESS} {group}", max_batch_size=1, latency_us=FOREVER_US)

    def busy(server):
        return {dict(labels)["instance"]: value for (name, labels), value in metrics(server).items()
                if name == "skep_instance_busy_us"}

    instances(2)
    with Server(repository, "--model-control-mode=explicit", "--load-model=mock") as server, ThreadPoolExecutor() as pool:
        answers = [pool.submit(infer, server, "mock", ZEROS) for _ in range(2)]
        server.wait_until(lambda: sum(value > 0 for value in busy(server).values()) == 2)
        instances(1)
        assert post(server, "/v2/repository/models/mock/load").status == 200
        for pid in workers(server):
            os.kill(pid, signal.SIGKILL)
        assert [answer.result().status for answer in answers] == [500, 500]
        server.wait_until(lambda: list(busy(server)) == ["mock_0_0"])
        server.wait_until(lambda: restarts(server, "mock") == 1)
        assert [line for line in server.lines if "instance `mock_0_1` was " in line] == []


def test_one_of_four_dies(repository):
    group = "instance_group { count: 4 kind: KIND_CPU }"
    repository.mock(config=f"{PROCESS} {group}", max_batch_size=1, latency_us=300_000)
    with Server(repository) as server, ThreadPoolExecutor() as pool:
        four = workers(server)
        assert len(four) == 4
        answers = [pool.submit(infer, server, "mock", ZEROS) for _ in range(4)]
        server.wait_until(lambda: sum(
            value > 0 for (name, _), value in metrics(server).items() if name == "skep_instance_busy_us"
        ) == 4)
        os.kill(four[0], signal.SIGKILL)
        assert sorted(answer.result().status for answer in answers) == [200, 200, 200, 500]
        wait_restarts(server, "mock", 1)
        assert set(four[1:]) < set(workers(server))
        assert [infer(server, "mock", ZEROS).status for _ in range(8)] == [200] * 8


def test_a_worker_that_is_killed_while_idle_costs_no_request(repository):
    repository.onnx("m", plus(1), config=f'backend: "embedded" {PROCESS} {ONE}')
    with Server(repository) as server:
        assert infer_json(server, "m", ZEROS)[0]["data"] == [1] * 4
        before = kill_idle(server, "m")
        # Waited for: no zombie stays.
        wait_until(lambda: before not in workers(server), "the worker is waited for")
        assert infer_json(server, "m", ZEROS)[0]["data"] == [1] * 4
        [after] = workers(server)
        assert before != after
        assert restarts(server, "m") == 1


def test_a_model_without_a_living_instance_is_not_ready_until_it_comes_back(repository):
    """The file is gone: no worker can start. Once it is back the instance is, with nobody's help."""
    repository.onnx("m", plus(1), config=f'backend: "embedded" {PROCESS} {ONE}')
    file = repository.path / "m/1/model.onnx"
    with Server(repository) as server:
        file.rename(repository.path / "aside")
        kill_idle(server, "m")
        answer = infer(server, "m", ZEROS)
        assert answer.status == 500
        assert "is no longer the file that the model was loaded from" in answer.error
        server.wait_for("cannot be recreated yet")
        assert get(server, "/v2/models/m/ready").status != 200
        (repository.path / "aside").rename(file)
        server.wait_until(lambda: get(server, "/v2/models/m/ready").status == 200)
        assert infer_json(server, "m", ZEROS)[0]["data"] == [1] * 4
        # Another file under the name is not what was loaded.
        (repository.path / "new").write_bytes(plus(2).SerializeToString())
        (repository.path / "new").rename(file)
        kill_idle(server, "m")
        assert "load the model again" in infer(server, "m", ZEROS).error


def test_an_unload_does_not_wait_for_an_instance_that_stays_away(repository):
    repository.onnx("m", plus(1), config=f'backend: "embedded" {PROCESS} {ONE}')
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as server:
        (repository.path / "m/1/model.onnx").unlink()
        kill_idle(server, "m")
        assert infer(server, "m", ZEROS).status == 500
        server.wait_until(lambda: server.log.count("cannot be recreated yet") > 3)
        assert post(server, "/v2/repository/models/m/unload").status == 200
        server.wait_for("unloaded model `m` version 1")
        assert workers(server) == []


def test_workers_have_few_rights_and_nothing_of_the_servers(repository):
    repository.onnx("ort", plus(1), config=f'backend: "onnxruntime" {PROCESS} {ONE}')
    repository.onnx("emb", plus(1), config=f'backend: "embedded" {PROCESS} {ONE}')
    repository.mock(config=PROCESS)
    # A descriptor that the server's own parent left open.
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        with Server(repository, env={"SECRET": "of the server"}, pass_fds=[read]) as server:
            pids = workers(server)
            assert len(pids) == 3
            for model in ("ort", "emb", "mock"):
                assert infer(server, model, ZEROS).status == 200
            for pid in pids:
                facts = status(pid)
                assert facts["NoNewPrivs"] == "1"
                assert facts["Seccomp"] == SECCOMP_MODE_FILTER
                assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
                assert os.readlink(f"/proc/{pid}/fd/0").startswith("socket:")
                assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
                assert os.readlink(f"/proc/{pid}/fd/2").startswith("pipe:")
                # The kernel ends them before it ends the server, and they leave no image of their memory.
                adjusted = [int(Path(f"/proc/{process}/oom_score_adj").read_text()) for process in (server.process.pid, pid)]
                assert adjusted[1] == min(adjusted[0] + 500, 1000)
                assert limit(pid, "Max core file size") == "0"
                assert limit(pid, "Max data size") == limit(server.process.pid, "Max data size")
                assert b"SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()
                assert os.getpgid(pid) != os.getpgid(server.process.pid)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_a_run_that_takes_too_much_memory_costs_its_worker_at_most(repository, backend):
    """`n` decides how much the run needs: no library that lacks memory takes the server, or all that there is."""
    node = helper.make_node("ConstantOfShape", ["n"], ["y"])
    model = graph([node], [("n", "INT64", [1])], [("y", "FP32", ["m"])])
    bounded = 'parameters { key: "max_run_memory" value { string_value: "64 MiB" } }'
    tensors = 'input { name: "n" data_type: TYPE_INT64 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: -1 }'
    repository.onnx("m", model, config=f'backend: "{backend}" {tensors} {PROCESS} {ONE} {bounded}')
    repository.mock(config=PROCESS)
    with Server(repository) as server:
        assert limit(workers(server)[0], "Max data size") != "unlimited" or limit(
            workers(server)[1], "Max data size") != "unlimited"
        for _ in range(2):
            assert infer_json(server, "m", [tensor("n", "INT64", [1], [3])])[0]["data"] == [0, 0, 0]
            # A GiB.
            assert infer(server, "m", [tensor("n", "INT64", [1], [1 << 28])]).status != 200
            assert infer(server, "mock", ZEROS).status == 200


def external(location, width=4):
    """`y` is `x` and as many ones, which lie in another file; that file's bytes."""
    ones = np.ones(width, np.float32)
    tensors = [("x", "FP32", ["n", width])], [("y", "FP32", ["n", width])]
    model = graph([helper.make_node("Add", ["x", "ones"], ["y"])], *tensors, [numpy_helper.from_array(ones, "ones")])
    [tensor_] = model.graph.initializer
    tensor_.ClearField("raw_data")
    tensor_.data_location = TensorProto.EXTERNAL
    tensor_.external_data.add(key="location", value=location)
    return model, ones.tobytes()


def has_landlock():
    """Whether the kernel has it, in a version that workers use."""
    create_ruleset, ask_version = 444, 1
    return ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), ask_version) >= 2


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
def test_a_worker_opens_the_files_of_its_model(repository, backend):
    """Data beside the model and below it, and files elsewhere that links lead to, the model's own among them."""
    elsewhere = repository.path.parent / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    for name, location in (("beside", "ones"), ("below", "data/ones"), ("model", None)):
        model, data = external(location) if location else (plus(1), b"")
        repository.onnx(name, model, config=f'backend: "{backend}" {PROCESS} {ONE}')
        directory = repository.path / name / "1"
        if location:
            (directory / location).parent.mkdir(exist_ok=True)
            (directory / location).write_bytes(data)
        else:
            (directory / "model.onnx").rename(elsewhere / "model.onnx")
            (directory / "model.onnx").symlink_to(elsewhere / "model.onnx")
    with Server(repository) as server:
        for name in ("beside", "below", "model"):
            assert infer_json(server, name, x(1, 2, 3, 4))[0]["data"] == [2, 3, 4, 5]


def test_a_worker_opens_no_file_of_another_model(repository):
    """A link to the other's directory is one that the embedded engine follows."""
    model, data = external("other/ones")
    other = repository.path / "m/2"
    other.mkdir(parents=True)
    (other / "ones").write_bytes(data)
    for name, more in (("thread", ""), ("process", PROCESS)):
        repository.onnx(name, model, config=f'backend: "embedded" {more} {ONE}')
        (repository.path / name / "1/other").symlink_to(other)
    with Server(repository, "--model-control-mode=explicit") as server:
        assert post(server, "/v2/repository/models/thread/load").status == 200
        assert infer_json(server, "thread", x(1, 2, 3, 4))[0]["data"] == [2, 3, 4, 5]
        answer = post(server, "/v2/repository/models/process/load")
        assert (answer.status == 200) != has_landlock(), answer.body
        assert ("Permission denied" in server.log) == has_landlock()
        assert ("the kernel has no Landlock of" in server.log) != has_landlock()


def test_a_file_that_is_cut_short_ends_its_worker_alone(repository):
    """The embedded engine uses weights where their file is mapped: pages that are gone end the process that reads them. Files of
    up to 1 MiB are copied."""
    width = 1 << 19
    model, data = external("ones", width)
    repository.onnx("m", model, config=f'backend: "embedded" {PROCESS} {ONE}')
    repository.mock("other", config=PROCESS)
    file = repository.path / "m/1/ones"
    file.write_bytes(data)
    with Server(repository, "--weight-cache=off") as server:
        given = np.zeros(width, "<f4").tobytes()
        inputs = [tensor("x", "FP32", [1, width], binary_data_size=len(given))]
        assert infer(server, "m", inputs, given).status == 200
        os.truncate(file, 0)
        answer = infer(server, "m", inputs, given)
        assert (answer.status, answer.error) == (
            500, "the worker process of model `m` ended by signal 7 (SIGBUS) while it ran this batch")
        assert infer(server, "other", ZEROS).status == 200
        wait_until(lambda: get(server, "/v2/models/m/ready").status != 200, "it is not ready")


def test_workers_go_with_instances_models_and_the_server(repository):
    group = "instance_group {{ count: {} kind: KIND_CPU }}"
    repository.mock("m", config=f"{PROCESS} {group.format(3)}")
    repository.mock("n", config=PROCESS)
    with Server(repository, "--model-control-mode=explicit", "--load-model=m", "--load-model=n") as server:
        assert len(workers(server)) == 4
        repository.mock("m", config=f"{PROCESS} {group.format(1)}")
        post(server, "/v2/repository/models/m/load")
        wait_until(lambda: len(workers(server)) == 2, "two instances less")
        # The weights stay where they are: nothing else was loaded again.
        post(server, "/v2/repository/models/m/unload")
        wait_until(lambda: len(workers(server)) == 1, "one model less")
        [last] = workers(server)
        assert server.stop() == 0
        assert is_gone(last)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_go_when_the_server_is_killed(repository, busy):
    repository.mock(config=PROCESS, latency_us=FOREVER_US if busy else 0)
    with Server(repository) as server, ThreadPoolExecutor() as pool:
        [pid] = workers(server)
        if busy:
            answer = pool.submit(infer, server, "mock", ZEROS)
            wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1",
                        instance="mock_0_0")
        server.kill()
        wait_until(lambda: is_gone(pid), "the worker is gone")
        if busy:
            assert answer.exception() is not None


def test_a_model_warms_up_in_its_workers(repository):
    repository.mock("m", config=f"{PROCESS} {WARMUP}", output="ramp")
    repository.mock("bad", config=f"{PROCESS} {WARMUP}", panic_every=1)
    with Server(repository, "--exit-on-error=false") as server:
        assert infer_json(server, "m", ZEROS)[0]["data"] == [0, 1, 2, 3]
        assert get(server, "/v2/models/bad/ready").status != 200
        assert "execution 1 panics" in server.log
        wait_until(lambda: len(workers(server)) == 1, "the worker of the model that failed is gone")


def test_a_worker_keeps_its_weights_and_not_what_loading_them_took(repository):
    # 98 MiB of weights, whose parsing, fusing and packing takes as much several times over.
    repository.generate("resnet50", "m", config=f'backend: "onnxruntime" {ONE} {PROCESS}')
    with Server(repository, "--weight-cache=off") as server:
        (worker,) = workers(server)
        assert 98 * MIB < private_bytes_of(worker) < 147 * MIB
