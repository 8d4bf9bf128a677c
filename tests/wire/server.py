"""A `skep serve` process under test: started on free ports, watched through its log, stopped by a signal."""

import atexit
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / os.environ.get("SKEP_BINARY", "target/debug/skep")

# Baked models of these tests are nobody else's.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="skep-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# Nothing here takes seconds; a server that is still silent after this long hangs.
DEADLINE_S = 60

START_LINES = {
    "http": re.compile(r"Started HTTPService at ([^\"]+)\""),
    "grpc": re.compile(r"Started GRPCInferenceService at ([^\"]+)\""),
    "metrics": re.compile(r"Started Metrics Service at ([^\"]+)\""),
}
# Ready, or not if a model failed: `READY` is what a server says that is.
STARTED = "started, "
READY = "started, ready for requests"
# Where ONNX Runtime's library is not found: neither below the working directory nor by the active Python.
WITHOUT_LIBRARY = {
    "cwd": "/",
    "env": {"PATH": "", "HOME": "/nonexistent", "VIRTUAL_ENV": "", "CONDA_PREFIX": "", "ORT_DYLIB_PATH": ""},
}
LOCAL_PORTS = [f"--{name}-{what}" for name in ("http", "grpc", "metrics") for what in ("address=127.0.0.1", "port=0")]


class Server:
    """One process. As a context manager it has loaded its models on entry and is gone on exit.

    `until` is the log line to wait for on entry; `None` returns at once. `prefix` is a command that runs the server.
    """

    running = []

    def __init__(self, *args, until=STARTED, env=None, ports=None, pass_fds=(), prefix=(), cwd=ROOT):
        self.args = [str(arg) for arg in args] + (LOCAL_PORTS if ports is None else ports)
        self.until = until
        self.env = {**os.environ, **(env or {})}
        self.pass_fds = pass_fds
        self.prefix = prefix
        self.cwd = cwd
        self.process = None
        self.seen = []
        self.unfinished = b""
        self.changed = threading.Condition()
        self.ended = False

    def __enter__(self):
        self.process = subprocess.Popen(
            [*self.prefix, BINARY, "serve", *self.args],
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=self.pass_fds,
        )
        os.set_blocking(self.process.stderr.fileno(), False)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        Server.running.append(self)
        try:
            if self.until:
                self.wait_for(self.until)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.kill()
        if self in Server.running:
            Server.running.remove(self)

    def _read(self):
        while not self.ended:
            select.select([self.process.stderr], [], [])
            self._take()

    def _take(self):
        """Takes what the pipe holds now."""
        with self.changed:
            while not self.ended:
                try:
                    piece = os.read(self.process.stderr.fileno(), 1 << 16)
                except BlockingIOError:
                    break
                self.ended = not piece
                *lines, self.unfinished = (self.unfinished + (piece or b"\n")).split(b"\n")
                # The end of the log ends its last line; an empty one is none.
                self.seen += [line.decode(errors="replace") for line in lines if piece or line]
            self.changed.notify_all()

    @property
    def lines(self):
        """The log's lines until now: all that the server wrote before its last answer are among them."""
        if self.process:
            self._take()
        return self.seen

    @property
    def log(self):
        return "\n".join(self.lines)

    def wait_for(self, text, deadline_s=DEADLINE_S):
        """Waits until a log line holds `text`; fails at once when the process ends without it."""

        def found():
            return any(text in line for line in self.lines)

        with self.changed:
            self.changed.wait_for(lambda: found() or self.ended, deadline_s)
            assert found(), f"no log line holds {text!r}:\n{self.log}"

    def wait_until(self, condition, deadline_s=DEADLINE_S):
        """Asks until `condition` holds; each look is a request, so this is no busy loop."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < deadline, f"not after {deadline_s} s:\n{self.log}"

    def _address(self, name):
        for line in self.lines:
            if match := START_LINES[name].search(line):
                return match.group(1)
        raise AssertionError(f"no start line for {name}:\n{self.log}")

    @property
    def http(self):
        return self._address("http")

    @property
    def grpc(self):
        return self._address("grpc")

    @property
    def metrics(self):
        return self._address("metrics")

    def send_signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, deadline_s=DEADLINE_S):
        """The exit code, once the process has ended by itself."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s} s:\n{self.log}") from None
        self.reader.join(DEADLINE_S)
        return code

    def stop(self, number=signal.SIGTERM, deadline_s=DEADLINE_S):
        self.send_signal(number)
        return self.wait(deadline_s)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(DEADLINE_S)


def run(*args, env=None, cwd=ROOT):
    """Runs a `skep` command that ends by itself."""
    return subprocess.run(
        [BINARY, *[str(arg) for arg in args]],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def serve_and_fail(*args, env=None, cwd=ROOT):
    """Runs a server that cannot start: its exit code and its log."""
    outcome = run("serve", *args, *LOCAL_PORTS, env=env, cwd=cwd)
    return outcome.returncode, outcome.stderr
