"""Sequences: requests of one correlation id run in order, on one slot, with a state that the server keeps."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from onnx import helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from http_client import get, post
from metrics import metric, metrics, wait_metric, wait_pending
from repository import FOREVER_US, graph
from sequence_models import DIRECT, HOUR_US, Caller, accumulator, config, control, node, oldest, state
from server import Server, run, serve_and_fail

STRATEGIES = pytest.mark.parametrize("strategy", [DIRECT, oldest(4)], ids=["direct", "oldest"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc", "stream"])
ENGINES = pytest.mark.parametrize("engine", ["onnxruntime", "embedded"])


def wait_slots(server, used, model="sum"):
    labels = {"model": model, "version": "1", "state": "used"}
    wait_metric(server, "skep_sequence_slots", lambda value: value == used, **labels)


def wait_sequences(server, waiting, model="sum"):
    wait_metric(server, "skep_sequences_waiting", lambda value: value == waiting, model=model, version="1")


def refusal(call, *args, **rest):
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **rest)
    return caught.value.message()


@pytest.fixture
def sums(repository):
    """A repository with the model `sum`, configured as the keyword arguments say."""

    def write(engine="onnxruntime", **settings):
        corrid = settings.get("corrid", "UINT64").replace("STRING", "BYTES")
        batch = "n" if settings.get("batch", 2) else None
        if not (repository.path / "sum").exists():
            repository.onnx("sum", accumulator(corrid, batch))
        repository.config("sum", f'backend: "{engine}" {config(**settings)}')
        return repository

    return write


@ENGINES
@STRATEGIES
@PROTOCOLS
def test_s30_s33_s37_a_sequence_is_told_of_its_steps_and_keeps_its_state(sums, engine, strategy, protocol):
    # The embedded backend has no UINT64.
    corrid = "INT32" if engine == "embedded" else "UINT64"
    with Server(sums(engine, strategy=strategy, corrid=corrid)) as server, Caller(server, protocol) as caller:
        first = caller.step(7, 5, start=True)
        assert first == {"SUM": [5], "STARTED": [1], "ENDED": [False], "ID": [7], "READIES": [1], "ROWS": [1]}
        middle = caller.step(7, 6)
        assert (middle["SUM"], middle["STARTED"], middle["ENDED"]) == ([11], [-1], [False])
        last = caller.step(7, 7, end=True)
        assert (last["SUM"], last["STARTED"], last["ENDED"]) == ([18], [-1], [True])
        # The end has freed the slot, and the next sequence begins with zeros.
        wait_slots(server, 0)
        alone = caller.step(8, 3, start=True, end=True)
        assert (alone["SUM"], alone["STARTED"], alone["ENDED"], alone["ID"]) == ([3], [1], [True], [8])
        assert metric(server, "exec_count", "sum") == 4


@STRATEGIES
@PROTOCOLS
def test_s30_triton_s_refusals(sums, strategy, protocol):
    with Server(sums(strategy=strategy)) as server, Caller(server, protocol) as caller:
        nameless = "inference request to model 'sum' must specify a non-zero or non-empty correlation ID"
        assert nameless in refusal(caller.step, 0, 1, start=True)
        if protocol != "stream":
            assert nameless in refusal(caller.step, "", 1, start=True)
        unstarted = (
            "inference request for sequence 37469245 to model 'sum' must specify the START flag on the first request "
            "of the sequence"
        )
        assert unstarted in refusal(caller.step, 37469245, 1)
        assert unstarted in refusal(caller.step, 37469245, 1, end=True)
        batch = "inference request to model 'sum' must specify batch-size 1 due to requirements of sequence batcher"
        assert batch in refusal(caller.step, 5, 1, start=True, shape=(2, 1))
        # A refused start starts nothing; one that fits does.
        assert "must specify the START flag" in refusal(caller.step, 5, 1)
        assert caller.sum(5, 1, start=True, end=True) == 1
        assert "must specify the START flag" in refusal(caller.step, 5, 1)


@STRATEGIES
def test_s30_ids_are_numbers_or_strings(sums, strategy):
    with Server(sums(strategy=strategy, corrid="STRING", batch=4)) as server:
        for protocol in ("http", "grpc", "stream"):
            with Caller(server, protocol) as caller:
                assert caller.step("a b", 1, start=True)["ID"] == [b"a b"]
                # A number is another id than its text.
                assert caller.step("12", 5, start=True)["ID"] == [b"12"]
                assert caller.step(12, 7, start=True)["ID"] == [b"12"]
                sums_of = [caller.sum(sequence, 1, end=True) for sequence in ("a b", "12", 12)]
                assert sums_of == [2, 6, 8]
        with Caller(server, "http") as caller:
            assert "longer than 128 bytes" in refusal(caller.step, "x" * 129, 1, start=True)


@pytest.mark.parametrize(("corrid", "largest"), [("INT64", 2**63 - 1), ("UINT32", 2**32 - 1), ("INT32", 2**31 - 1)])
def test_s33_the_id_has_the_models_type(sums, corrid, largest):
    with Server(sums(corrid=corrid)) as server, Caller(server, "http") as caller:
        assert caller.step(largest, 1, start=True, end=True)["ID"] == [largest]
        assert "takes the correlation ID as" in refusal(caller.step, "text", 1, start=True)
        if corrid != "INT64":
            assert f"cannot hold {largest + 1}" in refusal(caller.step, largest + 1, 1, start=True)


@STRATEGIES
def test_s30_a_start_on_a_live_id_begins_again(sums, strategy):
    with Server(sums(strategy=strategy)) as server, Caller(server, "grpc") as caller:
        assert caller.sum(1, 5, start=True) == 5
        assert caller.sum(1, 6) == 11
        assert caller.sum(1, 7, start=True) == 7
        assert caller.sum(1, 8, end=True) == 15
        wait_slots(server, 0)


def test_s31_slots_that_are_not_ready_are_empty_rows(sums):
    with Server(sums()) as server, Caller(server, "http") as caller:
        assert caller.sum(1, 10, start=True) == 10
        second = caller.step(2, 20, start=True)
        # The first sequence's row is there, and not ready.
        assert (second["SUM"], second["ROWS"], second["READIES"]) == ([20], [2], [1])
        first = caller.step(1, 1)
        assert (first["SUM"], first["ROWS"], first["READIES"]) == ([11], [2], [1])
        assert caller.sum(2, 2, end=True) == 22
        # A batch has rows up to the last slot that a sequence has.
        assert caller.step(1, 1, end=True)["ROWS"] == [1]
        # Rows without a request are no inferences.
        assert metric(server, "count", "sum") == 5
        statistics = get(server, "/v2/models/sum/stats").json["model_stats"][0]
        sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in statistics["batch_stats"]}
        assert sizes == {1: 2, 2: 3}


def test_s31_a_batch_waits_for_the_utilization_that_it_should_have(sums):
    wait = f"direct {{ max_queue_delay_microseconds: {HOUR_US} minimum_slot_utilization: 1 }}"
    with Server(sums(strategy=wait)) as server, ThreadPoolExecutor(2) as pool:
        for step in range(3):
            place = {"start": step == 0, "end": step == 2}
            with Caller(server, "http") as one, Caller(server, "grpc") as two:
                running = [pool.submit(one.step, 1, 1, **place)]
                wait_pending(server, "sum", 1)
                running.append(pool.submit(two.step, 2, 10, **place))
                answers = [future.result() for future in running]
            assert [answer["SUM"] for answer in answers] == [[step + 1], [10 * (step + 1)]]
            assert [answer["READIES"] for answer in answers] == [[2], [2]]
        assert metric(server, "exec_count", "sum") == 3


def test_s32_the_oldest_requests_of_candidates_form_batches(sums):
    wait = oldest(4, f"max_queue_delay_microseconds: {HOUR_US} preferred_batch_size: [ 2 ]")
    with Server(sums(strategy=wait, batch=4)) as server, ThreadPoolExecutor(2) as pool:
        for step in range(3):
            place = {"start": step == 0, "end": step == 2}
            with Caller(server, "http") as one, Caller(server, "grpc") as two:
                running = [pool.submit(one.step, 1, 1, **place)]
                wait_pending(server, "sum", 1)
                running.append(pool.submit(two.step, 2, 10, **place))
                answers = [future.result() for future in running]
            assert [answer["SUM"] for answer in answers] == [[step + 1], [10 * (step + 1)]]
            assert [answer["ROWS"] for answer in answers] == [[2], [2]]
        assert metric(server, "exec_count", "sum") == 3


@STRATEGIES
def test_requests_of_one_sequence_run_in_the_order_of_a_stream(sums, strategy):
    """Many at once, without waiting for answers, of several sequences."""
    strategy = strategy.replace("4", "8")
    with Server(sums(strategy=strategy, batch=8)) as server, Caller(server, "stream") as caller:
        for step in range(20):
            for sequence in range(1, 6):
                place = {"sequence_start": step == 0, "sequence_end": step == 19}
                inputs = [caller.input(sequence)]
                caller.client.async_stream_infer("sum", inputs, sequence_id=sequence, request_id=f"{sequence} {step}", **place)
        got = {}
        for _ in range(100):
            answer = caller.answers.get(timeout=60)
            assert not isinstance(answer, Exception), answer
            got[answer.get_response().id] = answer.as_numpy("SUM").item()
        expected = {f"{sequence} {step}": sequence * (step + 1) for sequence in range(1, 6) for step in range(20)}
        assert got == expected
        wait_slots(server, 0)


def test_a_large_request_of_a_stream_is_not_overtaken(repository):
    """Its decoding, on another thread, takes longer than that of the next ones."""
    more = 'input { name: "more" data_type: TYPE_FP32 dims: [ -1 ] } sequence_batching { }'
    repository.mock("bulky", config=more)

    def message(step):
        made = pb.ModelInferRequest(model_name="bulky")
        for name, elements in (("x", 4), ("more", 1 if step else 1 << 20)):
            given = made.inputs.add(name=name, datatype="FP32", shape=[1, elements])
            given.contents.fp32_contents.extend([0] * elements)
        made.parameters["sequence_id"].int64_param = 1
        made.parameters["sequence_start"].bool_param = step == 0
        return made

    with Server(repository) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter([message(step) for step in range(4)])))
        assert [answer.error_message for answer in answers] == [""] * 4


def test_s32_answers_keep_their_order_if_that_is_asked_for(sums):
    """A sequence that waits for a candidate's place holds back no other answers."""
    with Server(sums(strategy=oldest(1, "preserve_ordering: true"))) as server, ThreadPoolExecutor(1) as pool:
        with Caller(server, "http") as one, Caller(server, "grpc") as two:
            assert one.sum(1, 1, start=True) == 1
            waiting = pool.submit(two.sum, 2, 10, start=True, end=True)
            wait_sequences(server, 1)
            assert one.sum(1, 1) == 2
            assert "must specify the START flag" in refusal(one.step, 3, 1)
            assert one.sum(1, 1, end=True) == 3
            assert waiting.result() == 10


@STRATEGIES
def test_s35_further_sequences_wait_for_a_slot_in_order(sums, strategy):
    strategy = strategy.replace("4", "1")
    with Server(sums(strategy=strategy, batch=1)) as server, ThreadPoolExecutor(3) as pool:
        with Caller(server, "grpc") as live:
            assert live.sum(1, 1, start=True) == 1
            # A client over HTTP cannot go from thread to thread.
            clients = [Caller(server, "grpc") for _ in range(3)]
            waiting = []
            for index, client in enumerate(clients):
                waiting.append(pool.submit(client.sum, index + 2, 10 * index, start=True))
                wait_sequences(server, index + 1)
            slots = metrics(server)
            free = ("skep_sequence_slots", frozenset({"model": "sum", "version": "1", "state": "free"}.items()))
            assert slots[free] == 0
            for index, future in enumerate(waiting):
                # Whoever has the slot ends.
                holder = live if index == 0 else clients[index - 1]
                holder.step(index + 1, 0, end=True)
                assert future.result() == 10 * index
                wait_sequences(server, 2 - index)


@STRATEGIES
def test_s35_a_wait_for_a_slot_may_end(sums, strategy):
    strategy = strategy.replace("4", "1")
    with Server(sums(strategy=strategy, batch=1)) as server, Caller(server, "grpc") as caller:
        assert caller.sum(1, 1, start=True) == 1
        expired = "timeout of the corresponding sequence has been expired"
        assert expired in refusal(caller.step, 2, 1, start=True, timeout=1000)
        assert "must specify the START flag" in refusal(caller.step, 2, 1)
        assert caller.sum(1, 1, end=True, timeout=1000) == 2


@STRATEGIES
def test_waiting_sequences_are_bounded_by_parameters(sums, strategy):
    strategy = strategy.replace("4", "1")
    none = 'parameters { key: "max_waiting_sequences" value { string_value: "0" } }'
    with Server(sums(strategy=strategy, batch=1, more=none)) as server, Caller(server, "grpc") as caller:
        assert caller.sum(1, 1, start=True) == 1
        assert "Exceeds maximum queue size" in refusal(caller.step, 2, 1, start=True)
        assert caller.sum(1, 1, end=True) == 2
        assert caller.sum(2, 1, start=True, end=True) == 1
    brief = 'parameters { key: "max_sequence_wait_ms" value { string_value: "1" } }'
    with Server(sums(strategy=strategy, batch=1, more=brief)) as server, Caller(server, "http") as caller:
        assert caller.sum(1, 1, start=True) == 1
        assert "timeout of the corresponding sequence" in refusal(caller.step, 2, 1, start=True)
        assert caller.sum(1, 1, end=True) == 2


@STRATEGIES
def test_s34_idle_sequences_end(sums, strategy):
    with Server(sums(strategy=strategy, idle_us=1000)) as server, Caller(server, "http") as caller:
        assert caller.sum(1, 1, start=True) == 1
        wait_slots(server, 0)
        assert "must specify the START flag" in refusal(caller.step, 1, 1)


@STRATEGIES
def test_s40_a_cancelled_request_takes_the_waiting_ones_of_its_sequence_with_it(repository, strategy):
    repository.mock("slow", config=f"sequence_batching {{ {strategy} }}", latency_us=FOREVER_US)
    with Server(repository, "--exit-timeout-secs=0") as server:
        with grpcclient.InferenceServerClient(server.grpc) as client:
            given = grpcclient.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.zeros((1, 4), np.float32))
            failures = []

            def send(start=False):
                def done(result, error):
                    failures.append(error)

                return client.async_infer("slow", [given], done, sequence_id=1, sequence_start=start)

            send(start=True)
            wait_slots(server, 1, "slow")
            wait_pending(server, "slow", 0)
            second = send()
            wait_pending(server, "slow", 1)
            send()
            wait_pending(server, "slow", 2)
            second.cancel()
            wait_pending(server, "slow", 0)
            labels = {"model": "slow", "version": "1", "reason": "CANCELED"}
            wait_metric(server, "nv_inference_request_failure", lambda count: count == 2, **labels)
            assert "must specify the START flag" in refusal(client.infer, "slow", [given], sequence_id=1)


@STRATEGIES
def test_a_failed_request_does_not_end_its_sequence(repository, strategy):
    repository.mock("flaky", config=f"sequence_batching {{ {strategy} }}", fail_every=2)
    with Server(repository) as server, Caller(server, "http", "flaky") as caller:
        given = caller.module.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(np.zeros((1, 4), np.float32))

        def step(**place):
            return caller.client.infer("flaky", [given], sequence_id=1, **place)

        step(sequence_start=True)
        assert "must specify" not in refusal(step)
        step()
        assert "must specify" not in refusal(step, sequence_end=True)
        assert "must specify the START flag" in refusal(step)


@STRATEGIES
def test_sequences_run_on_several_instances_and_in_worker_processes(sums, strategy):
    process = 'parameters { key: "isolation" value { string_value: "process" } }'
    for more in ("", process):
        with Server(sums(strategy=strategy, count=2, more=more)) as server:
            callers = [Caller(server, "grpc") for _ in range(4)]
            with ThreadPoolExecutor(4) as pool:
                for step in range(5):
                    place = {"start": step == 0, "end": step == 4}
                    running = [pool.submit(c.sum, i + 1, i + 1, **place) for i, c in enumerate(callers)]
                    assert [future.result() for future in running] == [(i + 1) * (step + 1) for i in range(4)]
            wait_slots(server, 0)


@STRATEGIES
def test_a_model_without_a_batch_dimension_has_sequences_as_well(sums, strategy):
    with Server(sums(strategy=strategy, batch=0)) as server, Caller(server, "http") as caller:
        assert caller.sum(1, 5, start=True, shape=(1,)) == 5
        assert caller.sum(1, 6, shape=(1,)) == 11
        assert caller.sum(1, 7, end=True, shape=(1,)) == 18


def test_an_unload_ends_live_sequences(sums):
    with Server(sums(), "--model-control-mode=explicit", "--load-model=sum") as server:
        with Caller(server, "http") as caller:
            assert caller.sum(1, 5, start=True) == 5
            assert post(server, "/v2/repository/models/sum/unload").status == 200
            assert post(server, "/v2/repository/models/sum/load").status == 200
            assert "must specify the START flag" in refusal(caller.step, 1, 1)
            assert caller.sum(1, 6, start=True) == 6
            # A load that changes nothing, or only the number of instances, keeps them.
            sums(count=2)
            assert post(server, "/v2/repository/models/sum/load").status == 200
            assert caller.sum(1, 7) == 13
            sums(count=1)
            assert post(server, "/v2/repository/models/sum/load").status == 200
            assert caller.sum(1, 8, end=True) == 21


def test_s37_a_state_begins_with_a_file_and_is_shown_if_it_is_listed(sums):
    initial = 'initial_state { name: "i" data_type: TYPE_INT32 dims: [ 1 ] data_file: "begin" }'
    more = 'output { name: "NEXT" data_type: TYPE_INT32 dims: [ 1 ] }'
    repository = sums(state=state(initial), more=more)
    directory = repository.path / "sum" / "initial_state"
    directory.mkdir()
    (directory / "begin").write_bytes(np.array([100], np.int32).tobytes())
    assert run("check", repository).returncode == 0
    with Server(repository) as server, Caller(server, "grpc") as caller:
        assert caller.step(1, 5, start=True)["NEXT"] == [105]
        assert caller.step(1, 6, end=True)["NEXT"] == [111]
        assert caller.sum(1, 1, start=True) == 101
        metadata = get(server, "/v2/models/sum").json
        assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT"]
        # An answer without it updates the state as well.
        only = caller.client.infer("sum", [caller.input(2)], outputs=[grpcclient.InferRequestedOutput("SUM")], sequence_id=1)
        assert [output.name for output in only.get_response().outputs] == ["SUM"]
        assert caller.sum(1, 1, end=True) == 104
    (directory / "begin").write_bytes(b"123")
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "initial_state/begin` as the initial state of `STATE`" in log
    assert run("check", repository).returncode != 0


@ENGINES
@STRATEGIES
def test_s37_a_state_may_grow(repository, engine, strategy):
    """Sequences whose states have other shapes run in batches of their own."""
    nodes = [node("Concat", "STATE INPUT", "NEXT", axis=1), node("Concat", "STATE INPUT", "ALL", axis=1)]
    shape = ("n", "length")
    inputs = [("INPUT", "INT32", ("n", 1)), ("STATE", "INT32", shape)]
    model = graph(nodes, inputs, [("NEXT", "INT32", shape), ("ALL", "INT32", shape)])
    empty = 'initial_state { name: "none" data_type: TYPE_INT32 dims: [ 0 ] zero_data: true }'
    repository.onnx(
        "grow",
        model,
        config=f"""backend: "{engine}" max_batch_size: 4 instance_group {{ count: 1 kind: KIND_CPU }}
            input {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }}
            output {{ name: "ALL" data_type: TYPE_INT32 dims: [ -1 ] }}
            sequence_batching {{ {strategy} {state(empty, "[ -1 ]")} }}""",
    )
    with Server(repository) as server, ThreadPoolExecutor(3) as pool:
        callers = [Caller(server, "grpc", "grow") for _ in range(3)]
        seen = [[] for _ in callers]
        for step in range(6):
            running = {}
            for index, caller in enumerate(callers):
                if step >= index:
                    seen[index].append(10 * index + step)
                    running[index] = pool.submit(caller.step, index + 1, seen[index][-1], start=step == index)
            for index, future in running.items():
                assert future.result()["ALL"] == seen[index]


def test_s37_states_count_as_memory_of_requests(repository):
    wide = 1 << 20
    one = helper.make_tensor("one", 1, [], [1])
    nodes = [node("Add", "STATE one", "NEXT"), node("Identity", "INPUT", "OUT")]
    tensors = [("INPUT", "FP32", ("n", 1)), ("STATE", "FP32", ("n", wide))]
    model = graph(nodes, tensors, [("OUT", "FP32", ("n", 1)), ("NEXT", "FP32", ("n", wide))], [one])
    kept = f'state {{ input_name: "STATE" output_name: "NEXT" data_type: TYPE_FP32 dims: [ {wide} ] }}'
    repository.onnx(
        "wide",
        model,
        config=f"""max_batch_size: 1 input {{ name: "INPUT" data_type: TYPE_FP32 dims: [ 1 ] }}
            output {{ name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }}
            sequence_batching {{ {oldest(64)} max_sequence_idle_microseconds: {HOUR_US} {kept} }}""",
    )
    with Server(repository, "--max-request-memory=34603008") as server, Caller(server, "http", "wide") as caller:
        given = caller.module.InferInput("INPUT", [1, 1], "FP32")
        given.set_data_from_numpy(np.zeros((1, 1), np.float32))

        def step(sequence, **place):
            return caller.client.infer("wide", [given], sequence_id=sequence, **place)

        live = 0
        while True:
            try:
                step(live + 1, sequence_start=True)
            except InferenceServerException as error:
                assert "memory" in error.message(), error
                break
            live += 1
        # Each has 4 MiB.
        assert 4 <= live <= 8
        for sequence in range(1, live + 1):
            try:
                step(sequence, sequence_end=True)
            except InferenceServerException as error:
                assert "memory" in error.message(), error
        step(100, sequence_start=True, sequence_end=True)


def test_the_wire_shows_sequences(sums):
    with Server(sums(strategy=oldest(3), idle_us=0)) as server:
        assert "sequence" in get(server, "/v2").json["extensions"]
        shown = get(server, "/v2/models/sum/config").json["sequence_batching"]
        assert shown["max_sequence_idle_microseconds"] == 1_000_000
        assert shown["oldest"]["max_candidate_sequences"] == 3
        assert shown["oldest"]["preferred_batch_size"] == [2]
        start = shown["control_input"][0]
        assert start["name"] == "START"
        assert start["control"][0]["kind"] == "CONTROL_SEQUENCE_START"
        assert start["control"][0]["fp32_false_true"] == [-1, 1]
        assert shown["state"][0]["input_name"] == "STATE"
        stats = get(server, "/v2/models/sum/stats").json["model_stats"][0]["sequence_stats"]
        assert stats == {"used_slots": 0, "free_slots": 3, "waiting_sequences": 0}
        inputs = get(server, "/v2/models/sum").json["inputs"]
        assert inputs == [{"name": "INPUT", "datatype": "INT32", "shape": [-1, 1]}]


def test_a_generate_request_may_belong_to_a_sequence(sums):
    with Server(sums()) as server:

        def generate(**members):
            return post(server, "/v2/models/sum/generate", {"INPUT": 5, **members})

        assert "non-zero or non-empty correlation ID" in generate().json["error"]
        assert generate(sequence_id=3, sequence_start=True).json["SUM"] == 5
        assert generate(parameters={"sequence_id": 3, "sequence_end": True}).json["SUM"] == 10
        assert "must specify the START flag" in generate(sequence_id=3).json["error"]


def test_an_ensemble_passes_sequences_on(sums):
    repository = sums()
    repository.config(
        "whole",
        """platform: "ensemble" max_batch_size: 2
        input { name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] } output { name: "SUM" data_type: TYPE_INT32 dims: [ 1 ] }
        ensemble_scheduling { step { model_name: "sum" model_version: -1
            input_map { key: "INPUT" value: "INPUT" } output_map { key: "SUM" value: "SUM" } } }""",
    )
    (repository.path / "whole" / "1").mkdir()
    with Server(repository) as server, Caller(server, "grpc", "whole") as caller:
        assert caller.sum(1, 5, start=True) == 5
        assert caller.sum(1, 6) == 11
        assert caller.sum(1, 7, end=True) == 18
        assert "must specify the START flag" in refusal(caller.step, 1, 1)
        assert "non-zero or non-empty correlation ID" in refusal(caller.step, 0, 1)


def test_a_warm_up_is_a_sequence_of_its_own(sums):
    warmup = """model_warmup { name: "w" batch_size: 2 inputs { key: "INPUT" value {
        data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } } }"""
    with Server(sums(more=warmup)) as server, Caller(server, "http") as caller:
        assert caller.step(1, 5, start=True)["ROWS"] == [1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"more": "response_cache { enable: true }"}, "Response Cache does not currently support model sum with sequence batching"),
        ({"sequences": "iterative_sequence: true"}, "`sequence_batching.iterative_sequence` of model `sum` is not supported yet"),
        ({"sequences": control("NOSUCH", "START", "int32_false_true: [ 0, 1 ]")}, "specifies multiple CONTROL_SEQUENCE_START tensors"),
        ({"strategy": "oldest { }"}, "must specify maximum candidate sequences > 0"),
        ({"state": ""}, "configuration expects 5 inputs, model provides 6"),
        ({"corrid": "INT64"}, "configuration expects datatype TYPE_INT64 for input 'CORRID', model provides TYPE_UINT64"),
    ],
    ids=str,
)
def test_what_does_not_fit_fails_the_load(repository, settings, text):
    repository.onnx("sum", accumulator(), config=config(**settings))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert text in log
