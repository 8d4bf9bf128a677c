"""Loads, unloads and stops that pile up: inference goes on, and a stop ends in its time."""

import collections
import contextlib
import os
import signal

import models
from case import Case
from deadlines import DEADLINE, ONE, X, ask_on, busy
from repository import FOREVER_US, plus
from stage import HANG_S, PROCESS, Setup
from tools import Deaf, answered, head, infer, open_socket, post, status, together
import answers

LOADS = 520
EXIT_S = 2
# What is far more than the exit timeout, and far less than what a stop takes that waits for what never ends.
STOPPED_S = 12
FLAGS = ("--model-control-mode=explicit", "--load-model=neighbour", "--load-model=lively", f"--exit-timeout-secs={EXIT_S}",
         "--session-keep-alive-secs=0", "--cpu-slots=2")


def models_of(repository):
    repository.mock("lively", max_batch_size=1)
    repository.mock("slow", load_latency_us=1_500_000)
    repository.mock("endless", load_latency_us=FOREVER_US)
    repository.mock("stuck", config=f"{ONE} {DEADLINE}", max_batch_size=1, latency_us=FOREVER_US, cpu_threads=2)
    repository.mock("patient", max_batch_size=1, latency_us=FOREVER_US)
    repository.mock("sandboxed", config=f"{ONE} {PROCESS}", max_batch_size=1, latency_us=FOREVER_US)
    for number in range(60):
        repository.mock(f"many{number}", load_latency_us=100_000)
    answers.models_of(repository)


SETUP = Setup("management", models_of, FLAGS)


def loads(stage, stack, model, count=LOADS):
    """Load requests under way, each on a connection of its own."""
    path = f"/v2/repository/models/{model}/load"
    connections = []
    for _ in range(count):
        connection = stack.enter_context(contextlib.closing(open_socket(stage.http, 3 * HANG_S)))
        connection.sendall(head(path, 0))
        connections.append(connection)
    return connections


def first_line(connection):
    try:
        return connection.recv(65536).split(b"\r\n")[0].decode()[9:] or "closed"
    except ConnectionError:
        return "closed"


def load(stage, model):
    assert status(post(stage.http, f"/v2/repository/models/{model}/load")) == 200


def many_loads_of_one(stage):
    with contextlib.ExitStack() as stack:
        under_way = loads(stage, stack, "slow")
        for _ in range(50):
            stage.ask()
        told = collections.Counter(first_line(connection) for connection in under_way)
    assert status(infer(stage, "slow", X)) == 200
    return dict(told)


def endless_loads(stage):
    """Loads that never end, and everything else beside them."""
    with contextlib.ExitStack() as stack:
        loads(stage, stack, "endless")
        for _ in range(50):
            stage.ask()
        told = [answered(post(stage.http, "/v2/repository/index"))]
        told.append(status(infer(stage, "lively", X)))
        assert told == [200, 200], told
        # Another model's load waits at most for a place; those that never end have not taken all of these.
        return told


def loads_of_many(stage):
    told = together(60, lambda number: status(post(stage.http, f"/v2/repository/models/many{number}/load", hang_s=3 * HANG_S)))
    assert told == {"200": 60}, told
    together(60, lambda number: status(post(stage.http, f"/v2/repository/models/many{number}/unload", hang_s=3 * HANG_S)))
    return told


def loads_and_unloads(stage):
    """40 of each at once, of one model: each is answered."""
    def one(number):
        verb = ("load", "unload")[number % 2]
        return answered(post(stage.http, f"/v2/repository/models/many0/{verb}", hang_s=2 * HANG_S))

    return together(80, one)


def loads_of_nothing(stage):
    return together(50, lambda _: [answered(post(stage.http, f"/v2/repository/models/none{n}/load")) for n in range(10)][0])


def broken_configurations(stage):
    texts = ["", "{", "backend", '{"max_batch_size":1e99}', '{"instance_group":[{"count":2000000000}]}', '{"name":"other"}',
             '{"max_batch_size":-1}', '{"input":[{"name":"x","dims":[' + ",".join(["1"] * 100_000) + "]}]}", "\0" * 1000]
    told = []
    for text in texts * 5:
        told.append(answered(post(stage.http, "/v2/repository/models/lively/load", {"parameters": {"config": text}})))
        stage.must_live()
    answered(post(stage.http, "/v2/repository/models/lively/load"))
    return dict(collections.Counter(told))


def broken_files(stage):
    """A repository that is looked at all the time, in which models come cut short, empty, as links and pipes."""
    whole = plus(7).SerializeToString()
    for number in range(10):
        name = f"churn{number}"
        path = stage.directory / "aside" / "1"
        path.mkdir(parents=True)
        file = path / "model.onnx"
        if number % 5 == 0:
            file.write_bytes(whole[: len(whole) // 2])
        elif number % 5 == 1:
            file.write_bytes(b"")
        elif number % 5 == 2:
            file.write_bytes(os.urandom(4096))
        elif number % 5 == 3:
            file.symlink_to("/dev/zero")
        else:
            os.mkfifo(file)
        os.rename(path.parent, stage.repository.path / name)
        stage.wait(lambda: name in stage.server.log, f"`{name}` was looked at")
        stage.ask()
    return "10 models came broken"


def stops(prepare, code=None):
    """SIGTERM ends the server in its time, whatever is under way; the neighbour is right until then."""
    def attack(stage):
        with contextlib.ExitStack() as stack:
            prepare(stage, stack)
            for _ in range(5):
                stage.ask()
            stage.server.send_signal(signal.SIGTERM)
            got = stage.server.wait(STOPPED_S)
            assert got in (0, 1), f"ended with {got}"
            assert code is None or got == code, f"ended with {got}, expected {code}"
            return f"ended with {got}"

    return attack


def with_loads(stage, stack):
    loads(stage, stack, "endless")


def with_a_queue_of_loads(stage, stack):
    """More of one model than load at once, each of which ends soon."""
    for number in range(60):
        connection = stack.enter_context(contextlib.closing(open_socket(stage.http)))
        connection.sendall(head(f"/v2/repository/models/many{number}/load", 0))
    loads(stage, stack, "slow", 200)


def with_a_run(model):
    def prepare(stage, stack):
        load(stage, model)
        connection = stack.enter_context(contextlib.closing(open_socket(stage.http)))
        ask_on(connection, X, model)
        busy(stage, model)

    return prepare


def with_a_stopped_worker(stage, stack):
    with_a_run("sandboxed")(stage, stack)
    for pid in stage.workers():
        os.kill(pid, signal.SIGSTOP)


def with_unread_answers(stage, stack):
    load(stage, "wide")
    client = stack.enter_context(Deaf(stage.http))
    streams = [answers.over_http2(client) for _ in range(20)]
    while len(client.got) < 1 and client.take(1):
        pass
    return streams


def with_slow_bodies(stage, stack):
    for _ in range(50):
        connection = stack.enter_context(contextlib.closing(open_socket(stage.http)))
        connection.sendall(head("/v2/models/lively/infer", 10_000) + b"{")


def polled(repository):
    repository.onnx("other", models.expand())


def case(id, what, attack, setup=SETUP, **more):
    return Case(id, "management", what, setup, attack, **{"fresh": True, "peak_mib": 96, **more})


CASES = [
    case("loads-of-one", f"{LOADS} loads of one model that takes 1.5 s, at once", many_loads_of_one),
    case("loads-endless", f"{LOADS} loads of a model that never ends to load", endless_loads, comes_back=False),
    case("loads-of-many", "loads of 60 models at once, and unloads", loads_of_many),
    case("loads-and-unloads", "40 loads and 40 unloads of one model, at once", loads_and_unloads),
    case("loads-of-nothing", "500 loads of models that are not there", loads_of_nothing, fresh=False),
    case("load-broken-configurations", "45 loads whose configurations are invalid, or ask for 2 billion instances",
         broken_configurations),
    case("poll-broken-files", "a polled repository with models cut short, links to /dev/zero, pipes", broken_files,
         Setup("poll", polled, ("--model-control-mode=poll", "--repository-poll-secs=0.1", "--exit-on-error=false"))),
    case("stop-loads", f"SIGTERM under {LOADS} loads that never end", stops(with_loads), ends=True),
    case("stop-queue", "SIGTERM under 260 loads of which few run at once", stops(with_a_queue_of_loads), ends=True),
    case("stop-stuck-thread", "SIGTERM under a run that never ends, with slots", stops(with_a_run("stuck")), ends=True),
    case("stop-patient-thread", "SIGTERM under a run that never ends", stops(with_a_run("patient"), 1), ends=True),
    case("stop-stuck-worker", "SIGTERM under a run of a worker that never ends", stops(with_a_run("sandboxed")), ends=True),
    case("stop-stopped-worker", "SIGTERM under a worker that got SIGSTOP", stops(with_a_stopped_worker), ends=True),
    case("stop-unread", "SIGTERM under answers that nobody reads", stops(with_unread_answers), ends=True),
    case("stop-slow-bodies", "SIGTERM under bodies that do not come", stops(with_slow_bodies), ends=True),
]
