"""The dynamic batcher: which batches are formed, by priority, time-out, order and bound.

A scripted model's only instance is held by one request; what the tests send meanwhile waits, and which batches came of
it shows in the statistics. The time that an execution takes decides nothing but how long a test takes.
"""

import functools
import queue
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from http_client import get, infer, post, tensor
from metrics import metric, metrics, wait_metric, wait_pending
from repository import FOREVER_US
from server import DEADLINE_S, Server, run, serve_and_fail

# Long enough for a test's requests to be queued behind an execution.
HOLD_US = 700_000
HOUR_US = 3_600_000_000
MAX = 8


def batching(settings="", more=""):
    return f"dynamic_batching {{ {settings} }} {more}"


def zeros(rows, columns=4):
    return [tensor("x", "FP32", [rows, columns], [0] * (rows * columns))]


class Model:
    """Requests to the scripted model `mock`, sent one after another while each is under way."""

    def __init__(self, server):
        self.server = server
        self.pool = ThreadPoolExecutor(64)
        self.answers = []
        self.waiting = 0
        # In the order in which they were answered.
        self.finished = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    def _run(self, tag, inputs, parameters):
        answer = infer(self.server, "mock", inputs, parameters=parameters)
        self.finished.append(tag)
        return answer

    def hold(self, rows=1):
        """Occupies the instance."""
        self.held_rows = rows
        self.send_at_once(rows, tag="hold")
        wait_metric(self.server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1",
                    instance="mock_0_0")

    def send_at_once(self, rows=1, tag=None, columns=4, **parameters):
        future = self.pool.submit(self._run, tag, zeros(rows, columns), parameters)
        self.answers.append(future)
        return future

    def queue(self, rows=1, tag=None, columns=4, **parameters):
        """Sends a request that has to wait, and waits until it does."""
        future = self.send_at_once(rows, tag, columns, **parameters)
        self.waiting += 1
        wait_pending(self.server, "mock", self.waiting)
        return future

    def statuses(self):
        return [future.result().status for future in self.answers]

    def batches(self):
        """{batch size: executions}, without the request that held the instance."""
        stats = get(self.server, "/v2/models/mock/stats").json["model_stats"][0]
        sizes = {row["batch_size"]: row["compute_infer"]["count"] for row in stats["batch_stats"]}
        sizes[self.held_rows] -= 1
        return {size: count for size, count in sizes.items() if count}


def ends(server):
    """{why a batch was not larger: executions}"""
    values = metrics(server)
    return {
        dict(labels)["reason"]: int(value)
        for (name, labels), value in values.items()
        if name == "skep_batch_end_total" and value
    }


def policy(server, name, **labels):
    """A figure of what forms the batches; none where it has no such figure."""
    return metrics(server).get((f"skep_batching_{name}", frozenset({"model": "mock", "version": "1", **labels}.items())))


def held(repository, settings="", more="", rows=(), **script):
    """Sends requests of so many rows behind one that holds the instance: sizes of the batches, reasons of their ends."""
    repository.mock(config=batching(settings, more), max_batch_size=MAX, latency_us=HOLD_US, **script)
    with Server(repository) as server, Model(server) as model:
        # So large that it waits for nothing itself.
        model.hold(rows=MAX)
        for each in rows:
            model.queue(each)
        assert set(model.statuses()) == {200}
        return model.batches(), ends(server)


def test_s2_what_waits_for_the_instance_leaves_together(repository):
    sizes, reasons = held(repository, rows=[1] * 5)
    assert sizes == {5: 1}
    assert reasons == {"max_batch_size": 1, "queue_empty": 1}


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [([1] * 10, {8: 1, 2: 1}), ([6, 4], {6: 1, 4: 1}), ([5, 6, 2], {5: 1, 8: 1})],
    ids=str,
)
def test_s2_a_batch_takes_from_the_head_what_fits(repository, rows, sizes):
    got, reasons = held(repository, rows=rows)
    assert got == sizes
    assert reasons["max_batch_size"] >= 2


@pytest.mark.parametrize(
    ("rows", "settings", "sizes"),
    [
        # The largest preferred size that can be reached.
        ([1] * 7, f"preferred_batch_size: [ 4, 6 ] max_queue_delay_microseconds: {2 * HOLD_US}", {6: 1, 1: 1}),
        ([1] * 5, "preferred_batch_size: 4", {4: 1, 1: 1}),
        # None of them is reached: up to the largest.
        ([3, 2, 4], "preferred_batch_size: [ 4, 6 ]", {5: 1, 4: 1}),
    ],
    ids=str,
)
def test_s4_preferred_sizes_leave_first(repository, rows, settings, sizes):
    got, reasons = held(repository, settings, rows=rows)
    assert got == sizes
    assert reasons["preferred_batch_size"] >= 1


def test_s3_a_full_batch_does_not_wait_for_the_delay(repository):
    repository.mock(config=batching(f"max_queue_delay_microseconds: {HOUR_US}"), max_batch_size=MAX)
    with Server(repository) as server, Model(server) as model:
        for _ in range(MAX - 1):
            model.queue()
        # The instance is free all the time; the eighth request makes the batch whole.
        model.send_at_once()
        assert set(model.statuses()) == {200}
        assert metric(server, "exec_count", "mock") == 1
        assert ends(server) == {"max_batch_size": 1}


def test_s3_the_delay_ends_without_any_further_request(repository):
    repository.mock(config=batching(f"max_queue_delay_microseconds: {HOLD_US}"), max_batch_size=MAX)
    with Server(repository) as server, Model(server) as model:
        for _ in range(3):
            model.queue()
        assert set(model.statuses()) == {200}
        assert metric(server, "exec_count", "mock") == 1
        assert ends(server) == {"queue_delay": 1}
        queued_us = metric(server, "queue_duration_us", "mock")
        assert queued_us >= HOLD_US, "the oldest waited for all of it"


def test_s1_without_a_batcher_nothing_is_joined(repository):
    repository.mock(max_batch_size=MAX, latency_us=HOLD_US // 5)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        for _ in range(3):
            model.queue()
        assert set(model.statuses()) == {200}
        assert model.batches() == {1: 3}
        assert ends(server) == {"no_batching": 4}


def variable(repository, settings="", **script):
    """A scripted model whose requests may have any number of columns."""
    repository.mock(config=batching(settings), max_batch_size=MAX, **script)
    path = repository.path / "mock/config.pbtxt"
    path.write_text(path.read_text().replace("dims: [ 4 ]", "dims: [ -1 ]"))


def test_s5_other_shapes_end_a_batch(repository):
    variable(repository, latency_us=HOLD_US, output="echo")
    with Server(repository) as server, Model(server) as model:
        model.hold()
        for columns in (2, 2, 3, 2):
            model.queue(columns=columns)
        answers = [future.result() for future in model.answers]
        assert [answer.json["outputs"][0]["shape"] for answer in answers[1:]] == [[1, 2], [1, 2], [1, 3], [1, 2]]
        assert model.batches() == {2: 1, 1: 2}
        assert ends(server)["shape_change"] == 2


def test_s3_one_arrival_can_send_two_batches(repository):
    """The one that has no room for it, and its own, which is full."""
    settings = batching(f"max_queue_delay_microseconds: {HOUR_US}", "instance_group { count: 2 }")
    repository.mock(config=settings, max_batch_size=MAX)
    with Server(repository) as server, Model(server) as model:
        model.queue(rows=2)
        model.send_at_once(rows=MAX)
        assert model.statuses() == [200, 200]
        assert ends(server) == {"max_batch_size": 2}


def test_each_request_of_a_batch_gets_its_own_answer(repository):
    repository.mock(config=batching(), max_batch_size=MAX, latency_us=HOLD_US, output="echo")

    def own(client, number):
        data = np.full((number, 4), number, np.float32)
        given = httpclient.InferInput("x", data.shape, "FP32")
        given.set_data_from_numpy(data)
        np.testing.assert_array_equal(client.infer("mock", [given]).as_numpy("y"), data)

    with Server(repository) as server, Model(server) as model:
        model.hold()
        with httpclient.InferenceServerClient(server.http, concurrency=3) as client:
            running = []
            for number in (1, 2, 3):
                running.append(model.pool.submit(own, client, number))
                wait_pending(server, "mock", number)
            for future in running:
                future.result()
        assert model.batches() == {6: 1}


PRIORITIES = "priority_levels: 3 default_priority_level: 2"


def test_s7_higher_levels_are_served_first(repository):
    repository.mock(config=batching(PRIORITIES), max_batch_size=1, latency_us=HOLD_US // 5)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        for tag, priority in [("c", 3), ("b", 0), ("a", 1), ("b2", 2), ("beyond", 77), ("a2", 1)]:
            model.queue(tag=tag, priority=priority)
        assert set(model.statuses()) == {200}
        # Level 2 is the default: of those that name none, or one that is not there.
        assert model.finished == ["hold", "a", "a2", "b", "b2", "beyond", "c"]


def test_s7_priorities_over_grpc(repository):
    repository.mock(config=batching(PRIORITIES), max_batch_size=1, latency_us=HOLD_US // 5)
    finished = queue.Queue()
    with Server(repository) as server, Model(server) as model:
        model.hold()
        given = grpcclient.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(np.zeros((1, 4), np.float32))
        with grpcclient.InferenceServerClient(server.grpc) as client:
            for waiting, priority in enumerate((3, 2, 1), 1):
                done = functools.partial(lambda tag, result, error: finished.put((tag, error)), priority)
                client.async_infer("mock", [given], done, priority=priority)
                wait_pending(server, "mock", waiting)
            assert [finished.get(timeout=DEADLINE_S) for _ in range(3)] == [(1, None), (2, None), (3, None)]


def test_s8_a_level_has_a_queue_of_its_own(repository):
    policy = "priority_queue_policy { key: 3 value { max_queue_size: 1 } }"
    repository.mock(config=batching(f"{PRIORITIES} {policy}"), latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        model.queue(priority=3)
        refused = model.send_at_once(priority=3).result()
        assert (refused.status, refused.error) == (503, "Exceeds maximum queue size")
        model.queue(priority=2)
        model.queue(priority=2)
        assert sorted(model.statuses()) == [200] * 4 + [503]


FULL = "default_queue_policy { max_queue_size: 2 }"


def test_s9_a_full_queue_refuses_at_once(repository):
    repository.mock(config=batching(FULL), latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        # Requests count, whatever their batch sizes.
        model.queue(rows=3)
        model.queue(rows=2)
        refused = infer(server, "mock", zeros(1))
        assert (refused.status, refused.error) == (503, "Exceeds maximum queue size")
        assert refused.headers["Retry-After"] == "1"
        with grpcclient.InferenceServerClient(server.grpc) as client:
            given = grpcclient.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.zeros((1, 4), np.float32))
            with pytest.raises(InferenceServerException, match="Exceeds maximum queue size") as error:
                client.infer("mock", [given])
            assert error.value.status() == "StatusCode.UNAVAILABLE"
        assert set(model.statuses()) == {200}
        assert model.batches() == {5: 1}
        assert metric(server, "request_failure", "mock", reason="REJECTED") == 2


def timeout_policy(action="REJECT", timeout_us=HOUR_US, override=True):
    return f"""default_queue_policy {{ timeout_action: {action} default_timeout_microseconds: {timeout_us}
        allow_timeout_override: {"true" if override else "false"} }}"""


def test_s10_a_request_that_has_waited_too_long_is_refused_while_the_instance_is_busy(repository):
    repository.mock(config=batching(timeout_policy(timeout_us=1000)), latency_us=FOREVER_US)
    with Server(repository) as server, Model(server) as model:
        model.pool.submit(ignore_the_end, server)
        wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1", instance="mock_0_0")
        # Answered although no instance will be free for an hour.
        refused = infer(server, "mock", zeros(1))
        assert (refused.status, refused.error) == (503, "Request timeout expired")
        assert refused.headers["Retry-After"] == "1"
        with grpcclient.InferenceServerClient(server.grpc) as client:
            given = grpcclient.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.zeros((1, 4), np.float32))
            with pytest.raises(InferenceServerException, match="Request timeout expired") as error:
                client.infer("mock", [given])
            assert error.value.status() == "StatusCode.UNAVAILABLE"
        assert policy(server, "given_up_total", action="REJECT") == 2
        assert metric(server, "request_failure", "mock", reason="REJECTED") == 2
        server.kill()


def ignore_the_end(server):
    """A request whose server ends before its answer."""
    try:
        infer(server, "mock", zeros(1))
    except OSError:
        pass


def test_s10_a_shorter_time_out_of_ones_own_counts_where_it_may(repository):
    repository.mock(config=batching(timeout_policy()), latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        model.queue(tag="patient")
        refused = model.send_at_once(timeout=1000).result()
        assert (refused.status, refused.error) == (503, "Request timeout expired")
        assert [answer.result().status for answer in model.answers] == [200, 200, 503]


@pytest.mark.parametrize(
    "policy",
    [
        timeout_policy(override=False),
        # With a default of 0 none counts, on Triton as here.
        timeout_policy(timeout_us=0),
    ],
    ids=["not allowed", "no default"],
)
def test_s10_a_time_out_of_ones_own_that_does_not_count(repository, policy):
    repository.mock(config=batching(policy), latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        assert ("allow_timeout_override`: no effect" in server.log) == ("microseconds: 0" in policy)
        model.hold()
        model.queue(timeout=1)
        assert model.statuses() == [200, 200]


def test_s10_delayed_requests_are_served_behind_the_others(repository):
    repository.mock(config=batching(timeout_policy("DELAY")), max_batch_size=1, latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        model.queue(tag="late", timeout=1)
        model.queue(tag="fresh")
        assert set(model.statuses()) == {200}
        assert model.finished == ["hold", "fresh", "late"]


def test_s6_answers_leave_in_the_order_of_requests(repository):
    """The first request takes long, the second on another instance does not: its answer waits."""
    repository.mock(
        config=batching("preserve_ordering: true", "instance_group { count: 2 }"),
        latency_us_per_item=HOLD_US // MAX,
        max_batch_size=MAX,
    )
    with Server(repository) as server, Model(server) as model:
        model.send_at_once(rows=MAX, tag="first")
        wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="mock", version="1", instance="mock_0_0")
        assert model.send_at_once(rows=1, tag="second").result().status == 200
        # It was executed long before the first, which is done now as well.
        assert metric(server, "exec_count", "mock") == 2
        assert set(model.statuses()) == {200}


def test_s6_a_request_that_expires_keeps_its_place(repository):
    repository.mock(
        config=batching(f"preserve_ordering: true {timeout_policy()}"),
        latency_us=HOLD_US,
    )
    with Server(repository) as server, Model(server) as model:
        model.hold()
        refused = model.send_at_once(timeout=1).result()
        assert (refused.status, refused.error) == (503, "Request timeout expired")
        # Not before the request that came before it.
        assert metric(server, "exec_count", "mock") == 1
        assert model.statuses() == [200, 503]


def test_s13_a_cancelled_request_leaves_the_queue_and_its_batch(repository):
    repository.mock(config=batching(), latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        model.queue(rows=2)
        with grpcclient.InferenceServerClient(server.grpc) as client:
            given = grpcclient.InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.zeros((1, 4), np.float32))
            call = client.async_infer("mock", [given], lambda result, error: None)
            wait_pending(server, "mock", 2)
            call.cancel()
            wait_pending(server, "mock", 1)
        model.queue(rows=1)
        assert set(model.statuses()) == {200}
        assert model.batches() == {3: 1}
        assert metric(server, "request_failure", "mock", reason="CANCELED") == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("preferred_batch_size: 9", "dynamic batching preferred size must be <= max batch size for mock"),
        ("preferred_batch_size: 0", "dynamic batching preferred size must be positive for mock"),
        ("priority_levels: 2", "default priority level must be in range [1, 2] for mock"),
        (
            "priority_levels: 1 default_priority_level: 1 priority_queue_policy { key: 2 value {} }",
            "priority queue policy must have priority level in range [1, 1] for mock",
        ),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "Only one priority level is allowed when 'preserve_ordering' is true for mock",
        ),
        (
            "preserve_ordering: true " + timeout_policy("DELAY"),
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for mock",
        ),
    ],
    ids=str,
)
def test_s14_settings_that_contradict_each_other_fail_the_load(repository, settings, text):
    repository.mock(config=batching(settings), max_batch_size=MAX)
    code, log = serve_and_fail(repository)
    assert code == 1
    assert text in log
    assert "`dynamic_batching." in log


def test_the_node_bounds_what_waits_over_all_models(repository):
    for name in ("mock", "other"):
        repository.mock(name, config=batching(), latency_us=HOLD_US)
    with Server(repository, "--max-waiting-requests=2") as server, Model(server) as model:
        model.hold()
        running = model.pool.submit(infer, server, "other", zeros(1))
        wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, model="other", version="1",
                    instance="other_0_0")
        model.queue()
        waiting = model.pool.submit(infer, server, "other", zeros(1))
        wait_pending(server, "other", 1)
        for name in ("mock", "other"):
            refused = infer(server, name, zeros(1))
            assert refused.status == 503
            assert refused.error == (
                "Exceeds maximum queue size of the server: 2 requests wait for its models (`--max-waiting-requests`)"
            )
        assert (running.result().status, waiting.result().status) == (200, 200)
        assert set(model.statuses()) == {200}
        # There is room again.
        assert infer(server, "mock", zeros(1)).status == 200


def test_a_panic_in_mid_batch_answers_each_request_once(repository):
    repository.mock(config=batching(), latency_us=HOLD_US, panic_every=2)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        for _ in range(5):
            model.queue()
        statuses = model.statuses()
        # The instance was made again.
        assert infer(server, "mock", zeros(1)).status == 200
        assert statuses == [200] + [500] * 5
        assert metric(server, "request_failure", "mock", reason="BACKEND") == 5
        assert metric(server, "request_success", "mock") == 2
        assert ends(server) == {"queue_empty": 3}


def test_every_reason_is_counted_from_the_start(repository):
    repository.mock(config=batching())
    with Server(repository) as server:
        reasons = {dict(labels)["reason"] for name, labels in metrics(server) if name == "skep_batch_end_total"}
    assert reasons >= {
        "no_batching", "queue_empty", "max_batch_size", "preferred_batch_size", "queue_delay", "shape_change",
    }


def test_the_hook_for_tests_holds_each_batcher_once(repository):
    repository.mock(config=batching(), max_batch_size=MAX)
    with Server(repository, env={"TRITONSERVER_DELAY_SCHEDULER": "3"}) as server, Model(server) as model:
        model.queue()
        model.queue()
        model.send_at_once()
        assert set(model.statuses()) == {200}
        assert metric(server, "exec_count", "mock") == 1
        assert infer(server, "mock", zeros(1)).status == 200
    code, log = serve_and_fail(repository, env={"TRITONSERVER_DELAY_SCHEDULER": "many"})
    assert code == 1
    assert "TRITONSERVER_DELAY_SCHEDULER is `many`, expected a number of requests" in log


def test_what_forms_batches_shows(repository):
    repository.mock(config=batching(f"preferred_batch_size: 6 max_queue_delay_microseconds: {HOLD_US}"), max_batch_size=MAX)
    repository.mock("plain", max_batch_size=MAX)
    with Server(repository) as server, Model(server) as model:
        assert policy(server, "last_batch_size") is None
        for _ in range(6):
            model.send_at_once()
        assert set(model.statuses()) == {200}
        assert policy(server, "policy_info", policy="triton") == 1
        assert policy(server, "policy_info", model="plain", policy="none") == 1
        assert (policy(server, "cap"), policy(server, "target")) == (MAX, 6)
        assert (policy(server, "cap", model="plain"), policy(server, "target", model="plain")) == (1, 1)
        assert policy(server, "last_batch_size", reason="preferred_batch_size") == 6
        # Only where there is an objective.
        names = {name for name, _ in metrics(server)}
        assert names.isdisjoint({f"skep_batching_{name}" for name in ("objective_us", "arrival_rate", "latency_us")})


@pytest.mark.parametrize("how", ["stop", "unload", "reload"])
def test_what_ends_a_model_ends_its_delays(repository, how):
    """What waits for others is served at once when nothing more can come."""
    delayed = batching(f"max_queue_delay_microseconds: {HOUR_US}")
    repository.mock(config=delayed)
    with Server(repository, "--model-control-mode=explicit", "--load-model=mock") as server, Model(server) as model:
        model.queue()
        if how == "stop":
            server.send_signal()
        elif how == "unload":
            assert post(server, "/v2/repository/models/mock/unload").status == 200
        else:
            repository.mock(config=delayed, max_batch_size=3)
            assert post(server, "/v2/repository/models/mock/load").status == 200
        assert model.statuses() == [200]


def objective(**parameters):
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["auto", "edf", "deferred", "aimd", "quantile"])
def test_slo_what_waits_leaves_together(repository, name):
    # An objective that nothing here breaks, and no `dynamic_batching`.
    more = objective(slo_latency_ms=3600, batching_policy=name)
    repository.mock(config=more, max_batch_size=MAX, latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold(rows=MAX)
        # `deferred` would hold fewer back for as long as the objective allows.
        waiting = MAX if name == "deferred" else 4
        for _ in range(waiting):
            model.queue()
        assert set(model.statuses()) == {200}
        # One full batch has kept the objective by then: the cap of `aimd` grew from 1 to 2.
        assert model.batches() == ({2: 2} if name == "aimd" else {waiting: 1})
        assert "dynamic_batching" not in get(server, "/v2/models/mock/config").json


def test_slo_a_request_that_will_be_late_is_refused_while_the_instance_is_busy(repository):
    repository.mock(config=objective(slo_latency_ms=20), latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        refused = infer(server, "mock", zeros(1))
        assert refused.status == 503
        assert refused.error == "the request can no longer be answered within its latency objective"
        assert policy(server, "given_up_total", action="REJECT") == 1
        assert metric(server, "exec_count", "mock") == 0
        assert model.statuses() == [200]
        # It takes longer than the objective, and is still tried.
        assert infer(server, "mock", zeros(1)).status == 200


def test_slo_late_requests_are_served_behind_the_others(repository):
    more = objective(slo_latency_ms=3_600_000, slo_miss_action="DELAY", batching_policy="edf")
    repository.mock(config=more, max_batch_size=1, latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold()
        model.queue(tag="late", timeout=1)
        model.queue(tag="fresh")
        assert set(model.statuses()) == {200}
        assert model.finished == ["hold", "fresh", "late"]
        assert policy(server, "given_up_total", action="DELAY") == 1
        assert policy(server, "given_up_total", action="REJECT") == 0


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"slo_latency_ms": "soon"}, "expected a number of milliseconds above 0"),
        ({"slo_latency_ms": 5, "batching_policy": "eager"}, "expected one of `auto`, `triton`, `aimd`"),
        ({"batching_policy": "edf"}, "needs a latency objective"),
    ],
    ids=str,
)
def test_slo_objectives_that_cannot_be_meant_fail_the_load(repository, parameters, text):
    repository.mock(config=objective(**parameters))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert text in log


def test_slo_what_it_overrules_is_named(repository):
    settings = "preferred_batch_size: 4 max_queue_delay_microseconds: 100"
    repository.mock(config=batching(settings, objective(slo_latency_ms=50)), max_batch_size=MAX)
    with Server(repository) as server:
        for field in ("preferred_batch_size", "max_queue_delay_microseconds"):
            assert server.log.count(f"`dynamic_batching.{field}`: no effect: `batching_policy` `auto` forms the batches") == 1


def test_slo_what_the_policy_has_learned_shows(repository):
    # All sizes are measured when it loads, since together they take far less than the second that measuring may take.
    more = objective(slo_latency_ms=3_600_000)
    repository.mock(config=more, max_batch_size=6, latency_us=2_000, latency_us_per_item=1_000)
    with Server(repository) as server, Model(server) as model:
        assert policy(server, "policy_info", policy="auto") == 1
        assert policy(server, "objective_us") == HOUR_US
        latencies = {
            int(dict(labels)["batch_size"]): us for (name, labels), us in metrics(server).items()
            if name == "skep_batching_latency_us"
        }
        assert sorted(latencies) == [1, 2, 4, 6]
        # Never sooner than the script says.
        assert all(us >= 2_000 + 1_000 * size for size, us in latencies.items())
        assert policy(server, "arrival_rate") == 0
        assert policy(server, "target") == 1
        assert infer(server, "mock", zeros(1)).status == 200
        assert policy(server, "arrival_rate") > 0
        assert policy(server, "last_batch_size", reason="queue_empty") == 1


def test_slo_the_cap_shows(repository):
    repository.mock(config=objective(slo_latency_ms=3_600_000, batching_policy="aimd"), max_batch_size=MAX)
    with Server(repository) as server:
        for cap in (1, 2):
            # A policy hears of an execution once its answers are on their way.
            wait_metric(server, "skep_batching_cap", lambda value: value == cap, model="mock", version="1")
            assert infer(server, "mock", zeros(cap)).status == 200


def slo(server, outcome):
    labels = {"model": "mock", "version": "1", "outcome": outcome}
    return metrics(server)["skep_slo_requests_total", frozenset(labels.items())]


def slo_statistics(server):
    """The same over HTTP and over gRPC, without the objective."""
    over_http = get(server, "/v2/models/mock/stats").json["model_stats"][0]["slo_stats"]
    assert over_http.pop("objective_ns") == HOLD_US // 2 * 1000
    return over_http


@pytest.mark.parametrize("name", ["auto", "triton"])
def test_slo_answers_are_counted_against_the_objective(repository, name):
    # Each execution takes twice as long as an answer may, so one that runs is late; what waits behind it is given up,
    # unless the policy does not know of the objective.
    more = objective(slo_latency_ms=HOLD_US // 2 / 1000, batching_policy=name)
    repository.mock(config=more, max_batch_size=MAX, latency_us=HOLD_US)
    with Server(repository) as server, Model(server) as model:
        model.hold(rows=MAX)
        model.queue()
        statuses = model.statuses()
        given_up = statuses.count(503)
        assert (name == "auto") == (given_up == 1)
        expected = {"in_time": 0, "late": len(statuses) - given_up, "given_up": given_up}
        assert {outcome: slo(server, outcome) for outcome in expected} == expected
        assert slo_statistics(server) == expected


def test_slo_answers_in_time_are_counted(repository):
    repository.mock(config=objective(slo_latency_ms=3_600_000), max_batch_size=MAX)
    repository.mock("without")
    with Server(repository) as server:
        for model in ("mock", "without"):
            assert infer(server, model, zeros(1)).status == 200
        assert (slo(server, "in_time"), slo(server, "late"), slo(server, "given_up")) == (1, 0, 0)
        models = {dict(labels)["model"] for name, labels in metrics(server) if name.startswith("skep_slo_")}
        assert models == {"mock"}
        assert "slo_stats" not in get(server, "/v2/models/without/stats").json["model_stats"][0]


def test_slo_an_objective_below_one_execution_is_said_at_load(repository):
    repository.mock(config=objective(slo_latency_ms=5), latency_us=20_000)
    repository.mock("fine", config=objective(slo_latency_ms=3_600_000), latency_us=1)
    said = r"`slo_latency_ms` is 5, and an execution of one inference takes 2\d\.\d+ ms by itself"
    with Server(repository) as server:
        [warning] = [line for line in server.lines if "by itself" in line]
        assert re.search("model `mock` version 1: " + said, warning)
    outcome = run("check", "--config", "none", "--load", repository)
    assert outcome.returncode == 0
    assert re.search(r"ok      mock  version 1, answers within 5 ms\n  warning: .*:\d+:\d+: version 1: .*" + said, outcome.stdout)
    assert outcome.stdout.count("by itself") == 1


def test_slo_a_batch_that_waited_for_more_in_vain_says_so(repository):
    # `deferred` waits for a full batch as long as the deadline allows.
    more = objective(slo_latency_ms=200, batching_policy="deferred")
    repository.mock(config=more, max_batch_size=MAX, latency_us=1)
    with Server(repository) as server:
        assert infer(server, "mock", zeros(1)).status == 200
        assert ends(server) == {"waited": 1}


def test_slo_executions_that_are_too_slow_are_said_where_nothing_could_be_measured(repository):
    more = objective(slo_latency_ms=5, slo_miss_action="DELAY")
    repository.mock(config=more, latency_us=20_000, max_batch_size=1)
    path = repository.path / "mock/config.pbtxt"
    path.write_text(path.read_text().replace("dims: [ 4 ]", "dims: [ -1 ]"))
    with Server(repository) as server:
        assert "longer than `slo_latency_ms` allows" not in server.log
        for _ in range(9):
            assert infer(server, "mock", zeros(1)).status == 200
        assert server.log.count("instance `mock_0_0`: executions of one inference take longer than `slo_latency_ms` allows") == 1
