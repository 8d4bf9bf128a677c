"""A server that serves a neighbour beside what is attacked: what the neighbour sees, and what memory the server takes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import http_client
import neighbour
from http_client import get, infer, tensor
from process import MIB, children
from repository import Repository, plus
from server import BINARY, Server

HERE = Path(__file__).resolve().parent
# The server that the list compares with does not know flags that came later.
IS_BASELINE = os.environ.get("HOSTILE_BASELINE", "") not in ("", "0")
# Reports record what happens instead of failing, and do not wait as long for what does not come back.
REPORT = os.environ.get("HOSTILE_REPORT")
# What a call may take before it counts as a hang.
HANG_S = 5 if REPORT else 20
# The wire tests' calls have more time.
http_client.DEADLINE_S = HANG_S
# How long memory may take to come back.
RETURN_S = 4 if REPORT else 25
# What allocators may keep beside a tenth of what the process had.
ALLOWANCE = 16 * MIB
# A server that takes more is ended by the test, before it takes the machine with it.
CEILING = 6 << 30
LOOK_S = 0.02

ONE = "instance_group { count: 1 kind: KIND_CPU }"


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


PROCESS = parameter("isolation", "process")


def anonymous_bytes(pid):
    """What a process has of its own: anonymous memory and memory files, of what is shared its part."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return sum(int(kib) for kib in re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", rollup.read(), re.MULTILINE)) * 1024


def family(pid):
    """A process and all that descend from it."""
    found, known = [pid], 0
    while known < len(found):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += children(found[known])
        known += 1
    return found


def family_bytes(pid):
    total = 0
    for one in family(pid):
        # One that has just ended has nothing.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            total += anonymous_bytes(one)
    return total


class Memory:
    """Watches what a server and its children take, all the time; ends the server above `CEILING`."""

    def __init__(self, pid):
        self.pid = pid
        self.peak = 0
        self.ended_for = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self):
        while not self.over.wait(LOOK_S):
            taken = family_bytes(self.pid)
            self.peak = max(self.peak, taken)
            if taken > CEILING:
                self.ended_for = taken
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                return

    def begin(self):
        """What it takes now; from here on the peak counts."""
        # Resets the kernel's own high-water mark of the server, which misses nothing between two looks.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.high_at_first = self._high()
        self.peak = first = family_bytes(self.pid)
        self.first = first
        return first

    def _high(self):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text()):
                return int(found[1]) * 1024
        return 0

    def growth(self):
        """By how much it was above the first, at the most."""
        seen = self.peak - self.first
        return max(seen, self._high() - self.high_at_first if self.high_at_first else 0)

    def close(self):
        self.over.set()
        self.thread.join()


class Neighbour:
    """The process of `neighbour.py`."""

    def __init__(self, server, *more):
        command = [sys.executable, HERE / "neighbour.py", server.http, *map(str, more)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, command):
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def report(self):
        return self.tell("report")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@dataclass(frozen=True)
class Setup:
    """How a stage's server is started. `models` writes models into a repository; the neighbour is there already."""

    name: str
    models: Callable = lambda repository: None
    flags: tuple = ()
    # The neighbour's configuration: an ONNX model unless its backend is the mock.
    neighbour: str = f'backend: "onnxruntime" {ONE}'
    # Called with the directory of the stage before the server starts; gives more arguments of `Server`, and with
    # `beside` a process that goes with the stage.
    prepare: Callable = lambda directory: {}
    # Called with the stage when the server is ready: what a first run costs is no attack's.
    warm: Callable = lambda stage: None


class Stage:
    """A server of a setup with its neighbour; `pause_s` is how long the neighbour waits between its questions."""

    def __init__(self, setup, pause_s=neighbour.PAUSE_S):
        self.setup = setup
        self.pause_s = pause_s

    def __enter__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="skep-hostile-"))
        self.repository = Repository(self.directory / "models")
        self.repository.onnx(neighbour.MODEL, plus(1), config=self.setup.neighbour + " max_batch_size: 8")
        self.setup.models(self.repository)
        more = self.setup.prepare(self.directory)
        self.beside = more.pop("beside", None)
        flags = [flag.replace("{directory}", str(self.directory)) for flag in (*self.setup.flags, *more.pop("flags", ()))]
        self.server = Server(self.repository, *flags, **more)
        try:
            self.server.__enter__()
            self.pid = self.server.process.pid
            self.http, self.grpc = self.server.http, self.server.grpc
            self.neighbour = Neighbour(self.server, self.pause_s)
            for _ in range(50):
                self.ask()
            self.setup.warm(self)
            self.memory = Memory(self.pid)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(AttributeError):
            self.neighbour.close()
        with contextlib.suppress(AttributeError):
            self.memory.close()
        # What was stopped by a signal goes too.
        with contextlib.suppress(AttributeError, FileNotFoundError, ProcessLookupError):
            for pid in family(self.pid)[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.server.__exit__()
        if self.beside is not None:
            self.beside.kill()
            self.beside.wait()
            self.beside.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _ask(self):
        return infer(self.server, neighbour.MODEL, [tensor("x", "FP32", [1, 4], [1, 2, 3, 4])])

    def asked(self):
        """The status of the neighbour's answer."""
        return self._ask().status

    def ask(self):
        """The neighbour, once, on a connection of its own: its answer is right."""
        answer = self._ask()
        assert answer.status == 200, answer.body[:300]
        assert answer.json["outputs"][0]["data"] == [2, 3, 4, 5], answer.body[:300]

    def alive(self):
        return self.server.process.poll() is None

    def must_live(self):
        """Ends an attack early whose server is gone."""
        assert self.alive(), "the server has ended"

    def healthy(self):
        """After an attack: the neighbour, liveness, and that readiness answers."""
        self.ask()
        assert get(self.server, "/v2/health/live").status == 200
        get(self.server, "/v2/health/ready")
        assert get(self.server, f"/v2/models/{neighbour.MODEL}/ready").status == 200

    def workers(self):
        return children(self.pid)

    def wait(self, condition, what, deadline_s=HANG_S):
        """Looks until a condition of the processes holds that no event tells."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            self.must_live()
            assert time.monotonic() < deadline, f"not after {deadline_s} s: {what}"
            # So that looking takes no processor from what is looked at.
            threading.Event().wait(LOOK_S)


assert BINARY.exists(), f"no binary at {BINARY}: `cargo build -p skep`, or set SKEP_BINARY"
