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


def children(pid):
    """The processes that a process's threads started, zombies included."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile; those that start workers do not.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in (thread / "children").read_text().split()]
    return sorted(found)


def workers(server):
    """The worker processes of its sandboxed instances."""
    return children(server.process.pid)


def wait_until(condition, what):
    """Waits for a condition that looks at the server anew each time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
