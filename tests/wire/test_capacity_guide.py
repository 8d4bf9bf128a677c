"""docs/guides/capacity.md as a reader runs it: its commands in one shell. The ports alone are others."""

import os
import re
import signal

import pytest

from process import wait_until
from server import LOCAL_PORTS, ROOT
from test_tutorial import Shell, ports

GUIDE = ROOT / "docs/guides/capacity.md"


@pytest.fixture
def guide(tmp_path):
    shell = Shell(tmp_path)
    yield shell
    shell.process.stdin.close()
    shell.process.wait(60)


def test_the_guide_runs_as_written(guide, tmp_path):
    steps = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    generate, profile, pack, serve, status = steps
    guide.run(generate)
    profiled = guide.run(profile)
    assert "requests/s" in profiled and (tmp_path / "profiles.html").exists()
    packed = guide.run(pack)
    assert re.search(r"^encoder .* cpu0$", packed, re.M) and "devices  1 used" in packed
    start, wait = serve.split("&\n", 1)
    pid = guide.run(start.replace("skep serve models", f"skep serve models {' '.join(LOCAL_PORTS)}") + "&\necho $!")
    try:
        wait_until(lambda: "http" in ports(tmp_path / "skep.log"), "a server that listens")
        url = f"--url http://localhost:{ports(tmp_path / 'skep.log')['http']}"
        guide.run(wait.replace("--zeros", f"--zeros {url}"))
        shown = guide.run(status.replace("skep status", f"skep status {url}"))
        assert re.search(r"^device +cpu0: CPUs 0-1, ", shown, re.M) and "on cpu0" in shown
    finally:
        os.kill(int(pid), signal.SIGTERM)
