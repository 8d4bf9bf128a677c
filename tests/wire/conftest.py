"""Fixtures of the wire tests, and the servers' logs in reports of failures."""

import pytest

from repository import Repository
from server import ROOT, Server

LOG_LINES_SHOWN = 60


@pytest.fixture
def repository(tmp_path):
    """An empty model repository."""
    return Repository(tmp_path / "models")


@pytest.fixture(scope="session")
def simple_repository(tmp_path_factory):
    """`addsub` INT32 [-1,16] without a configuration, and `digits` of the examples. Not to be changed by tests."""
    repository = Repository(tmp_path_factory.mktemp("simple") / "models")
    repository.generate("addsub-int32", "addsub")
    repository.copy(ROOT / "examples/models/digits")
    return repository


@pytest.fixture(scope="module")
def simple(simple_repository):
    """A server over `simple_repository`, shared by the tests of a file."""
    with Server(simple_repository) as server:
        yield server


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.failed:
        for server in Server.running:
            log = "\n".join(server.lines[-LOG_LINES_SHOWN:])
            report.sections.append((f"log of skep serve {' '.join(server.args)}", log))
