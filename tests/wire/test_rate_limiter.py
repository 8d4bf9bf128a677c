"""The rate limiter: executions of instances that declare resources wait until those are free.

Which execution waits shows in the count of pending requests, whose instance is idle. How long an execution takes decides
only how long a test takes.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from http_client import get, infer, post, tensor
from metrics import metrics, wait_metric, wait_pending
from repository import FOREVER_US
from server import Server, run, serve_and_fail

ON = "--rate-limit=execution_count"
# Long enough for a test's requests to be queued behind an execution.
HOLD_US = 700_000
ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


def group(resources, count=1, priority=1):
    return f"instance_group {{ count: {count} kind: KIND_CPU rate_limiter {{ {resources} priority: {priority} }} }}"


def need(name="R", count=1, shared=True):
    return f'resources {{ name: "{name}" count: {count} global: {str(shared).lower()} }}'


def wait_busy(server, model, instance):
    """Waits until an instance executes."""
    labels = {"model": model, "version": "1", "instance": f"{model}_0_{instance}"}
    wait_metric(server, "skep_instance_busy_us", lambda us: us > 0, **labels)


class Requests:
    """Requests that are sent one after another while each is under way."""

    def __init__(self, server):
        self.server = server
        self.pool = ThreadPoolExecutor(16)
        self.sent = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The end of the server ends requests whose executions take forever.
        self.pool.shutdown(wait=False)

    def send(self, model):
        self.sent.append(self.pool.submit(infer, self.server, model, ZEROS))
        return self.sent[-1]

    def hold(self, model):
        """An execution of the model that runs."""
        self.send(model)
        wait_busy(self.server, model, 0)

    def statuses(self):
        return [request.result().status for request in self.sent]


def busy(server, model, instance):
    """The time for which an instance has executed."""
    labels = {"model": model, "version": "1", "instance": f"{model}_0_{instance}"}
    return metrics(server)["skep_instance_busy_us", frozenset(labels.items())]


def test_s60_models_that_share_a_resource_never_run_at_once(repository):
    repository.mock("long", group(need()), latency_us=HOLD_US)
    repository.mock("short", group(need()))
    repository.mock("free")
    with Server(repository, ON) as server, Requests(server) as requests:
        requests.hold("long")
        requests.send("short")
        wait_pending(server, "short", 1)
        assert busy(server, "short", 0) == 0
        # Models without resources do not wait.
        assert infer(server, "free", ZEROS).status == 200
        assert requests.statuses() == [200, 200]


def test_s60_instances_of_one_model_share_resources(repository):
    repository.mock("m", group(need(), count=2), latency_us=HOLD_US)
    with Server(repository, ON, "--cpu-slots=0") as server, Requests(server) as requests:
        requests.hold("m")
        requests.send("m")
        wait_pending(server, "m", 1)
        assert busy(server, "m", 1) == 0
        assert requests.statuses() == [200, 200]


def test_s60_stated_copies_let_that_many_run(repository):
    repository.mock("a", group(need(), count=3), latency_us=HOLD_US)
    with Server(repository, ON, "--rate-limit-resource=R:2", "--cpu-slots=0") as server, Requests(server) as requests:
        requests.hold("a")
        requests.send("a")
        wait_busy(server, "a", 1)
        requests.send("a")
        wait_pending(server, "a", 1)
        assert busy(server, "a", 2) == 0
        assert requests.statuses() == [200] * 3


def test_s60_without_a_number_there_are_as_many_copies_as_the_largest_demand(repository):
    repository.mock("large", group(need(count=2)), latency_us=HOLD_US)
    repository.mock("small", group(need(count=1), count=2))
    with Server(repository, ON, "--cpu-slots=0") as server, Requests(server) as requests:
        requests.hold("large")
        for _ in range(2):
            requests.send("small")
        wait_pending(server, "small", 2)
        assert requests.statuses() == [200] * 3


def test_s60_what_can_never_run_does_not_load(repository):
    repository.mock("m", group(need(count=10)))
    code, log = serve_and_fail(repository, ON, "--rate-limit-resource=R:4")
    assert code == 1
    text = 'Resource count for "R" is limited to 4 which will prevent scheduling of one or more model instances'
    assert f"{text}, the minimum required count is 10" in log.replace('\\"', '"'), log


def test_s60_a_resource_is_of_devices_or_of_the_node(repository):
    repository.mock("a", group(need(shared=True)))
    with Server(repository, ON, "--model-control-mode=explicit", "--load-model=a") as server:
        repository.mock("b", group(need(shared=False)))
        answer = post(server, "/v2/repository/models/b/load", b"")
        assert answer.status == 400
        assert "is present as both global and device-specific resource" in answer.error
        assert post(server, "/v2/repository/models/a/unload", b"").status == 200
        assert post(server, "/v2/repository/models/b/load", b"").status == 200
        assert infer(server, "b", ZEROS).status == 200


@pytest.mark.parametrize("flags", [[], ["--rate-limit=off", "--rate-limit-resource=R:0"]])
def test_c16_without_the_rate_limiter_resources_have_no_effect(repository, flags):
    repository.mock("long", group(need()), latency_us=FOREVER_US)
    repository.mock("short", group(need()))
    with Server(repository, *flags, "--cpu-slots=0") as server, Requests(server) as requests:
        for model in ("long", "short"):
            notice = f"model `{model}`: "
            lines = [line for line in server.lines if notice in line and "rate_limiter.resources" in line]
            assert len(lines) == 1 and "--rate-limit=execution_count" in lines[0], lines
        assert ("--rate-limit-resource: no effect" in server.log) == bool(flags)
        requests.hold("long")
        assert requests.send("short").result().status == 200


def test_a_model_that_leaves_gives_its_resources_back_when_its_execution_ends(repository):
    repository.mock("long", group(need()), latency_us=HOLD_US)
    repository.mock("short", group(need()))
    flags = ["--model-control-mode=explicit", "--load-model=*"]
    with Server(repository, ON, *flags) as server, Requests(server) as requests:
        requests.hold("long")
        requests.send("short")
        wait_pending(server, "short", 1)
        assert post(server, "/v2/repository/models/long/unload", b"").status == 200
        assert requests.statuses() == [200, 200]


def test_an_execution_that_is_ended_gives_its_resources_back(repository):
    lost = 'parameters { key: "isolation" value { string_value: "process" } }'
    limit = 'parameters { key: "max_execution_ms" value { string_value: "500" } }'
    repository.mock("stuck", f"{group(need())} {lost} {limit}", latency_us=FOREVER_US)
    repository.mock("short", group(need()))
    with Server(repository, ON) as server, Requests(server) as requests:
        requests.hold("stuck")
        requests.send("short")
        wait_pending(server, "short", 1)
        assert requests.statuses() == [503, 200]


def test_a_panic_gives_resources_back(repository):
    repository.mock("broken", group(need()), panic_every=1)
    repository.mock("short", group(need()))
    with Server(repository, ON) as server:
        for _ in range(3):
            assert infer(server, "broken", ZEROS).status == 500
            assert infer(server, "short", ZEROS).status == 200


def test_resources_change_with_a_reload_of_the_configuration(repository):
    repository.mock("long", group(need()), latency_us=FOREVER_US)
    repository.mock("short", group(need()))
    flags = ["--model-control-mode=explicit", "--load-model=*", "--cpu-slots=0"]
    with Server(repository, ON, *flags) as server, Requests(server) as requests:
        repository.mock("short", group(need("S")))
        assert post(server, "/v2/repository/models/short/load", b"").status == 200
        requests.hold("long")
        assert requests.send("short").result().status == 200


@pytest.mark.parametrize("slots", ["0", "1", "2"])
def test_many_requests_of_many_models_are_all_answered(repository, slots):
    """With and without slots of cores, which an execution asks for after its resources."""
    repository.mock("a", group(need(count=2) + need("S"), count=2))
    repository.mock("b", group(need(count=1), count=3, priority=2))
    repository.mock("c", group(need("S", count=2), priority=3))
    repository.mock("d")
    with Server(repository, ON, f"--cpu-slots={slots}") as server, ThreadPoolExecutor(16) as pool:
        asked = [model for model in "abcd" for _ in range(50)]
        answers = list(pool.map(functools.partial(infer, server), asked, [ZEROS] * len(asked)))
        assert [answer.status for answer in answers] == [200] * len(asked)
        statistics = {model["name"]: model for model in get(server, "/v2/models/stats").json["model_stats"]}
        assert {name: model["inference_count"] for name, model in statistics.items()} == dict.fromkeys("abcd", 50)


def test_check_names_resources_that_have_no_effect(repository):
    repository.mock("m", group(need()))
    outcome = run("check", repository)
    assert "rate_limiter.resources" in outcome.stdout and "--rate-limit=execution_count" in outcome.stdout
