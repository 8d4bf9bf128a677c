"""What a server takes of the machine, as the kernel counts it."""

import contextlib
import os
import re
import time
from pathlib import Path

from server import DEADLINE_S

MIB = 1 << 20


def private_bytes_of(pid):
    """Memory that is the process's alone."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return sum(int(kib) * 1024 for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup.read(), re.MULTILINE))


def private_bytes(server):
    return private_bytes_of(server.process.pid)


def open_files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def of_threads(pid, read):
    """What `read` finds at each thread of a process; a thread may end while it is being read."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(read(thread))
    return found


def children(pid):
    """The processes that a process's threads started, zombies included."""
    started = of_threads(pid, lambda thread: (thread / "children").read_text().split())
    return sorted(int(child) for children in started for child in children)


def workers(server):
    """The worker processes of its sandboxed instances."""
    return children(server.process.pid)


def wait_until(condition, what):
    """Waits for a condition, which is asked again and again."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
