"""docs/tutorial.md as a reader runs it: all its commands in one shell, and what they promise.

Ports alone are others: the server takes free ones, and commands behind its start get them in place of the defaults.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from process import wait_until
from server import BINARY, DEADLINE_S, LOCAL_PORTS, ROOT, START_LINES

TUTORIAL = ROOT / "docs/tutorial.md"
SERVE = "skep serve models"
DEFAULT_PORTS = {"http": 8000, "metrics": 8002}


def blocks():
    """Section -> its commands."""
    sections = re.split(r"^## (.+)$", TUTORIAL.read_text(), flags=re.M)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    found = {title: re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S) for title, text in pairs}
    return {title: "\n".join(commands) for title, commands in found.items() if commands}


class Shell:
    """A shell that runs one section after the other, and stops at the first command that fails."""

    def __init__(self, directory):
        self.directory = directory
        path = os.pathsep.join([str(Path(sys.executable).parent), str(Path(BINARY).parent), os.environ["PATH"]])
        self.process = subprocess.Popen(
            ["bash", "-eu"],
            cwd=directory,
            env={**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, commands):
        """What the commands print."""
        # An answer of `curl` ends without a line's end.
        self.process.stdin.write(f"{commands}\necho; echo '--- done ---'\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line == "--- done ---\n":
                return "".join(lines).rstrip("\n")
            lines.append(line)
        raise AssertionError(f"ended with {self.process.wait()} in:\n{commands}\n{''.join(lines)}")


@pytest.fixture
def shell(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.process.stdin.close()
    shell.process.wait(DEADLINE_S)


def ports(log):
    """The ports that a server's log names, by what listens there."""
    text = log.read_text() if log.exists() else ""
    found = {name: START_LINES[name].search(text) for name in DEFAULT_PORTS}
    return {name: int(match[1].rsplit(":", 1)[1]) for name, match in found.items() if match}


def check_answers(text):
    """What `client.py` prints: an answer to each request, or that it could not be in time on this machine."""
    late = r"\d+ refused .*the request can no longer be answered within its latency objective"
    assert re.search(rf"^\d+ answers, median .* ms\n(0 refused|{late})$", text, re.M), text


def test_the_tutorial_runs_as_written(shell, tmp_path):
    sections = blocks()
    assert [title[0] for title in sections] == list("123456789")
    steps = {int(title[0]): commands for title, commands in sections.items()}

    shell.run(steps[1])
    assert "ok      ranker  version 1\n" in shell.run(steps[2])

    start, wait = re.fullmatch(rf"({SERVE} [^\n]+ &\nserver=\$!\n)(.+)", steps[3], re.S).groups()
    shell.run(start.replace(SERVE, f"{SERVE} {' '.join(LOCAL_PORTS)}"))
    log = tmp_path / "skep-tutorial/skep.log"
    try:
        wait_until(lambda: ports(log).keys() == DEFAULT_PORTS.keys(), "a server that listens")
        listens = ports(log)

        def run(commands):
            for name, default in DEFAULT_PORTS.items():
                commands = commands.replace(f"localhost:{default}", f"localhost:{listens[name]}")
            return shell.run(commands)

        run(wait.replace("skep infer ranker", "skep infer ranker --url http://localhost:8000"))
        assert "800 answers" in run(steps[4])
        checked = run(steps[5])
        assert "ok      ranker  version 1, answers within 50 ms\n" in checked
        check_answers(checked)
        seen = run(steps[6])
        sizes = [int(size) for size in re.findall(r'"batch_size": (\d+)', seen)]
        assert sizes and max(sizes) > 1, seen
        assert "skep_batch_end_total{" in seen and "skep_batching_" in seen
        during, metadata = run(steps[7]).rsplit("\n", 1)
        check_answers(during)
        assert json.loads(metadata)["versions"] == ["2"]
        planned = run(steps[8])
        assert "auto" in planned and "1600" in planned
        assert "memory of a server with this model alone" in planned
        run(steps[9])
        assert "stopped" in log.read_text().splitlines()[-1]
    finally:
        # Where a step failed the shell has ended, or stops behind this.
        with contextlib.suppress(BrokenPipeError, OSError):
            shell.run("kill -9 $server 2> /dev/null || true")
