"""Executions that do not end: they cost their own model, and nobody else's."""

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import termios
import time

import grpc

import models
from case import Case
from http_client import get
from metrics import metrics
from repository import FOREVER_US
from stage import HANG_S, ONE, PROCESS, Setup, parameter
from tools import (
    SERVICE, answered, channel, floats, head, infer, infer_message, ints, open_socket, post, refused, status,
)

# Far above what a run of the others takes on a loaded machine, and far below what a hang is.
DEADLINE = parameter("max_execution_ms", 700)
SLOTS = "--cpu-slots=2"
FLAGS = ("--model-control-mode=explicit", "--load-model=*", SLOTS, "--exit-timeout-secs=2", "--session-keep-alive-secs=0")
BOTH = "instance_group { count: 2 kind: KIND_CPU }"
X = [floats("x", (1, 4))]
ENDLESS = 10**12
FLOOD_LINES = 100_000
# Of a flood, what may reach the server's log.
LINES_LET_THROUGH = 5_000


def stuck(process, deadline=DEADLINE, group=ONE):
    """A scripted model that holds every slot for ever."""
    def models_of(repository):
        config = f"{group} {deadline} {PROCESS if process else ''}"
        repository.mock("stuck", config=config, max_batch_size=1, latency_us=FOREVER_US, cpu_threads=2)
        repository.mock("lively", config=f"{ONE} {DEADLINE} {PROCESS if process else ''}", max_batch_size=1)

    return models_of


def spins(backend, process):
    def models_of(repository):
        config = f'backend: "{backend}" {ONE} {DEADLINE} {PROCESS if process else ""}'
        repository.onnx("stuck", models.spinning(), config=config)

    return models_of


def busy(stage, model="stuck", count=1):
    def is_so():
        found = metrics(stage.server)
        return sum(value > 0 for (name, labels), value in found.items()
                   if name == "skep_instance_busy_us" and ("model", model) in labels) >= count

    stage.wait(is_so, f"{count} instances of `{model}` are busy")


def ready(stage, model="stuck"):
    return get(stage.server, f"/v2/models/{model}/ready").status == 200


def hold(stage, stack, count=1, inputs=X):
    """Sends requests, and keeps their connections open; they are answered on these."""
    connections = []
    for _ in range(count):
        connection = stack.enter_context(contextlib.closing(open_socket(stage.http)))
        ask_on(connection, inputs)
        connections.append(connection)
    return connections


def ask_on(connection, inputs=X, model="stuck"):
    body = json.dumps({"inputs": inputs}).encode()
    connection.sendall(head(f"/v2/models/{model}/infer", len(body)) + body)


def status_of(received):
    assert received, "closed without an answer"
    return int(received.split(b" ")[1])


def answer_on(connection):
    """The status of what comes."""
    return status_of(connection.recv(65536))


def answers_on(connections, count, hang_s=HANG_S):
    """The statuses of the first answers that come on any of these connections."""
    told, waiting = [], list(connections)
    deadline = time.monotonic() + hang_s
    while len(told) < count:
        readable, _, _ = select.select(waiting, [], [], max(0, deadline - time.monotonic()))
        assert readable, f"{len(told)} of {count} answers after {hang_s} s"
        for connection in readable:
            told.append(answer_on(connection))
            waiting.remove(connection)
    assert all(400 <= number < 600 for number in told), told
    return told


def beside(inputs=X, count=2, wanted=1):
    """While runs go on that never end, others are answered; runs that are over their deadline are errors."""
    def attack(stage):
        with contextlib.ExitStack() as stack:
            held = hold(stage, stack, count, inputs)
            busy(stage)
            for _ in range(20):
                stage.ask()
            told = answers_on(held, wanted)
            for _ in range(20):
                stage.ask()
            return told

    return attack


def not_ready(inputs=X):
    """In the server itself a run cannot be ended: the model says that it is not ready."""
    def attack(stage):
        with contextlib.ExitStack() as stack:
            [held] = hold(stage, stack, 1, inputs)
            busy(stage)
            assert 400 <= answer_on(held) < 600
            stage.wait(lambda: not ready(stage), "the model is not ready")
            stage.ask()
            # What is sent now is not kept waiting for ever.
            told = infer(stage, "stuck", inputs)
            refused(told)
            return status(told)

    return attack


def made_anew(inputs=X, again=None):
    """A worker that is over its deadline is ended and made again, and the model serves again."""
    def attack(stage):
        before = set(stage.workers())
        with contextlib.ExitStack() as stack:
            [held] = hold(stage, stack, 1, inputs)
            busy(stage)
            stage.ask()
            told = answer_on(held)
            assert 400 <= told < 600, told
        stage.wait(lambda: ready(stage), "the model is ready again")
        assert before - set(stage.workers()), "no worker was ended"
        if again is not None:
            stage.wait(lambda: infer(stage, "stuck", again).status == 200, "the model answers again")
        return told

    return attack


def slow_beside(count=2):
    """No deadline: runs that hold both slots for ever, and others must have their share before these end."""
    def attack(stage):
        with contextlib.ExitStack() as stack:
            held = hold(stage, stack, count)
            busy(stage)
            for _ in range(50):
                stage.ask()
            for connection in held:
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    raise AssertionError(f"the slow run has ended: {connection.recv(100)}")
        return "answered beside them"

    return attack


def waiting_crowd(stage):
    """500 requests for a model that is stuck, whose clients then go."""
    with contextlib.ExitStack() as stack:
        hold(stage, stack, 500)
        busy(stage)
        for _ in range(20):
            stage.ask()
    for _ in range(20):
        stage.ask()
    return "500 came and went"


def client_deadlines(stage):
    """50 calls with deadlines of their own on a model that is stuck."""
    with channel(stage) as opened:
        calls = [opened.unary_unary(SERVICE + "ModelInfer").future(infer_message("stuck"), timeout=0.5) for _ in range(50)]
        told = []
        for made in calls:
            try:
                made.result(HANG_S)
                told.append("OK")
            except grpc.RpcError as error:
                told.append(error.code().name)
    return {name: told.count(name) for name in told}


def unload(process):
    def attack(stage):
        with contextlib.ExitStack() as stack:
            hold(stage, stack, 2)
            busy(stage)
            told = answered(post(stage.http, "/v2/repository/models/stuck/unload"))
            stage.ask()
            if process:
                # The other model's worker stays.
                stage.wait(lambda: len(stage.workers()) == 1, "the stuck worker is gone")
            stage.wait(lambda: not ready(stage), "the model is unloaded")
        return told

    return attack


def load_again(stage):
    """Loads of a model that is stuck, with another configuration each."""
    with contextlib.ExitStack() as stack:
        hold(stage, stack, 1)
        busy(stage)
        told = []
        for count in (2, 3, 1):
            stage.repository.mock("stuck", config=f"instance_group {{ count: {count} kind: KIND_CPU }} {DEADLINE}",
                                  max_batch_size=count, latency_us=FOREVER_US, cpu_threads=2)
            told.append(answered(post(stage.http, "/v2/repository/models/stuck/load")))
            stage.ask()
        return told


def signalled(number, while_busy):
    """A worker that is stopped, or killed, under a run or before it."""
    def attack(stage):
        with contextlib.ExitStack() as stack:
            pids = stage.workers()
            if while_busy:
                [held] = hold(stage, stack)
                busy(stage)
            for pid in pids:
                os.kill(pid, number)
            if not while_busy:
                [held] = hold(stage, stack)
            stage.ask()
            told = answer_on(held)
            assert 400 <= told < 600 or not while_busy, told
        stage.wait(lambda: ready(stage), "the model is ready again")
        stage.wait(lambda: ready(stage, "lively"), "the other one is ready")
        told = [told, status(infer(stage, "lively", X))]
        # Whoever did not notice that it was stopped is ended by the deadline of its next run.
        stage.wait(lambda: infer(stage, "lively", X).status == 200, "it serves again")
        return told

    return attack


def kill_storm(stage):
    """Each worker that comes is killed, eight times, under requests that want one."""
    killed = set()
    while len(killed) < 8:
        with contextlib.ExitStack() as stack:
            hold_lively(stage, stack)
            stage.wait(lambda: set(stage.workers()) - killed, "there is a worker")
            for pid in set(stage.workers()) - killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            stage.ask()
    stage.wait(lambda: infer(stage, "lively", X).status == 200, "the model answers again")
    return f"{len(killed)} killed"


def hold_lively(stage, stack):
    connection = stack.enter_context(contextlib.closing(open_socket(stage.http)))
    ask_on(connection, X, "lively")


def flood(line, times):
    """Writes to a worker's log as the worker could."""
    def attack(stage):
        pid = stage.workers()[0]
        lines = len(stage.server.lines)
        with open(f"/proc/{pid}/fd/2", "wb", buffering=0) as log:
            for _ in range(times):
                log.write(line)

            def taken():
                waiting = fcntl.ioctl(log, termios.FIONREAD, struct.pack("i", 0))
                return struct.unpack("i", waiting)[0] == 0

            stage.ask()
            stage.wait(taken, "the server has read it")
        for _ in range(20):
            stage.ask()
        said = len(stage.server.lines) - lines
        assert said <= LINES_LET_THROUGH, f"{said} lines in the server's log"
        return f"{said} lines in the server's log"

    return attack


def setup(name, models_of, neighbour=None, flags=FLAGS):
    more = {} if neighbour is None else {"neighbour": neighbour}
    return Setup(f"deadlines-{name}", models_of, flags, **more)


def case(id, what, setup, attack, **more):
    # What never ends stays on its stage.
    return Case(id, "deadlines", what, setup, attack, **{"fresh": True, "peak_mib": 64, **more})


THREAD = setup("thread", stuck(False))
THREADS = setup("threads", stuck(False, group=BOTH))
WORKER = setup("worker", stuck(True))
WORKERS = setup("workers", stuck(True, group=BOTH))
SPIN = [ints("n", ENDLESS)]
SHORT = [ints("n", 3)]


def many(repository):
    for number in range(4):
        repository.mock(f"stuck{number}", config=f"{BOTH} {DEADLINE}", max_batch_size=1, latency_us=FOREVER_US, cpu_threads=2)
        repository.mock(f"slow{number}", config=f"{BOTH} {DEADLINE} {PROCESS}", max_batch_size=1,
                        latency_us=FOREVER_US, cpu_threads=2)


def many_stuck(stage):
    """Eight models, each with two instances, all stuck."""
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(4):
            for kind in ("stuck", "slow"):
                for _ in range(2):
                    connection = stack.enter_context(contextlib.closing(open_socket(stage.http)))
                    ask_on(connection, X, f"{kind}{number}")
                    held.append(connection)
        for _ in range(50):
            stage.ask()
        # Workers are ended, so that all of theirs are answered; of models in the server one run each at least.
        told = answers_on(held, 12, 2 * HANG_S)
        return {number: told.count(number) for number in told}


NEIGHBOURS = {
    "worker": f'backend: "onnxruntime" {ONE} {PROCESS}',
    "embedded": f'backend: "embedded" {ONE}',
    "malloc": f'backend: "onnxruntime" {ONE} {parameter("memory_planner", "malloc")}',
}

CASES = [
    case("stuck-thread", "a run in the server that never ends, on both slots", THREAD, beside()),
    case("stuck-threads", "two such runs, on both instances", THREADS, beside(count=4)),
    case("stuck-thread-not-ready", "the same; the model is asked on", THREAD, not_ready()),
    case("stuck-worker", "a run in a worker process that never ends", WORKER, made_anew()),
    case("stuck-workers", "two such runs, on both instances", WORKERS, beside(count=4, wanted=4)),
    case("stuck-many", "eight models, 16 instances in threads and workers, all stuck", setup("many", many), many_stuck),
    *[case(f"slow-beside-{name}", f"runs without a deadline on both slots; the neighbour is {title}",
           setup(f"slow-{name}", stuck(False, deadline="", group=BOTH), config), slow_beside())
      for name, title, config in (
          ("thread", "a thread", None), ("worker", "a worker process", NEIGHBOURS["worker"]),
          ("embedded", "on the embedded engine", NEIGHBOURS["embedded"]),
          ("malloc", "on `malloc`", NEIGHBOURS["malloc"]))],
    case("spin-thread", "a Loop of 10^12 rounds on ONNX Runtime, in the server", setup("spin", spins("onnxruntime", False)),
         beside(SPIN, count=1), comes_back=False),
    case("spin-worker", "the same in a worker process", setup("spin-worker", spins("onnxruntime", True)),
         made_anew(SPIN, SHORT)),
    case("stuck-crowd", "500 requests for a model that is stuck, whose clients then go", THREAD, waiting_crowd),
    case("stuck-client-deadlines", "50 gRPC calls with deadlines of their own on a model that is stuck", THREAD,
         client_deadlines),
    case("unload-stuck-thread", "an unload of a model that is stuck, in the server", THREAD, unload(False)),
    case("unload-stuck-worker", "the same in a worker process", WORKER, unload(True)),
    case("load-stuck", "loads of a model that is stuck, with three other configurations", THREAD, load_again),
    case("worker-stopped-busy", "workers that get SIGSTOP under a run", WORKER, signalled(signal.SIGSTOP, True)),
    case("worker-stopped-idle", "workers that get SIGSTOP before a run", WORKER, signalled(signal.SIGSTOP, False)),
    case("worker-killed-busy", "workers that get SIGKILL under a run", WORKER, signalled(signal.SIGKILL, True)),
    case("worker-kill-storm", "eight workers killed as soon as they are there", WORKER, kill_storm),
    case("worker-log-lines", "a worker that logs 100,000 lines", WORKER,
         flood(b"".join(b"hostile line %d\n" % number for number in range(100)), FLOOD_LINES // 100)),
    case("worker-log-endless", "a worker that logs 64 MiB without a line's end", WORKER, flood(b"x" * (1 << 16), 1024)),
    case("worker-log-garbage", "a worker that logs 4 MiB of bytes that are no text", WORKER,
         flood(bytes(range(256)) * 256, 64)),
]
