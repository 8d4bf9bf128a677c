"""Commands on a terminal: what they draw there, and what goes into a pipe beside it."""

import fcntl
import os
import pty
import struct
import subprocess
import termios

from server import BINARY, DEADLINE_S, ROOT

ESCAPE = "\x1b"
WIDTH = 100


def run_on_terminal(*args, stdout=False, stderr=False, env=None):
    """Runs a `skep` command with these streams on a terminal and the others in pipes: exit code, output, errors, terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, WIDTH, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [BINARY, *[str(arg) for arg in args]],
        cwd=ROOT,
        env={**clean, "TERM": "xterm", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=slave if stdout else subprocess.PIPE,
        stderr=slave if stderr else subprocess.PIPE,
    ) as process:
        os.close(slave)
        # Pipes hold what these commands print; the terminal has to be read while they draw.
        drawn = b""
        with os.fdopen(master, "rb", buffering=0) as terminal:
            while piece := _read(terminal):
                drawn += piece
        output, errors = process.communicate(timeout=DEADLINE_S)
    texts = (None if text is None else text.decode() for text in (output, errors, drawn))
    return process.returncode, *texts


def _read(terminal):
    try:
        return terminal.read(1 << 16)
    except OSError:
        # Nobody holds its other end any more.
        return b""
