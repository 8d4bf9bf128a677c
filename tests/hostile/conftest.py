"""The hostile suite uses the helpers of the wire tests, and one server at a time."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "wire")]

import pytest  # noqa: E402

from server import Server  # noqa: E402
from stage import Stage  # noqa: E402

LOG_LINES_SHOWN = 60


class Stages:
    """The stage of the last case, kept for the next one of the same setup."""

    def __init__(self):
        self.current = None

    def of(self, case):
        kept = self.current
        if kept is None or kept.setup is not case.setup or case.fresh or not kept.alive():
            self.close()
            self.current = Stage(case.setup).__enter__()
        return self.current

    def close(self):
        if self.current is not None:
            self.current.__exit__()
            self.current = None


@pytest.fixture(scope="session")
def stages():
    stages = Stages()
    yield stages
    stages.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.failed:
        for server in Server.running:
            log = "\n".join(line[:400] for line in server.lines[-LOG_LINES_SHOWN:])
            report.sections.append((f"log of skep serve {' '.join(server.args)}", log))
