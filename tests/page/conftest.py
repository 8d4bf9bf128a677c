"""Fixtures of the page's tests: servers, and Debian's Chromium to look at their page with."""

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

# The server process and the repositories of the wire tests.
sys.path.append(str(Path(__file__).resolve().parents[1] / "wire"))

from browser import CHROMIUM, DEADLINE_MS, FLAGS, Visit  # noqa: E402
from repository import Repository  # noqa: E402
from server import ROOT, Server  # noqa: E402

expect.set_options(timeout=DEADLINE_MS)


@pytest.fixture(scope="session")
def chromium():
    """The browser, with an empty profile of its own."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: `cargo xtask setup --all` does it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serve(chromium):
    """Starts servers: the arguments are those of `Server`."""
    with ExitStack() as servers:
        yield lambda *args, **options: servers.enter_context(Server(*args, **options))


@pytest.fixture
def visit(chromium, serve):
    """Opens the page of a server; keywords are those of the browser's context (width, colours, touch).

    Visits end before the servers do, or the page would rightly complain of that.
    """
    visits = []

    def start(server, **settings):
        visits.append(Visit(chromium, server, **settings))
        return visits[-1]

    yield start
    for one in visits:
        one.close()


@pytest.fixture(scope="module")
def digits(chromium):
    """A server over the example repository, shared by the tests; none is started where there is no browser."""
    with Server(ROOT / "examples/models") as server:
        yield server


@pytest.fixture
def repository(chromium, tmp_path):
    """An empty model repository."""
    return Repository(tmp_path / "models")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.failed:
        for server in Server.running:
            report.sections.append((f"log of skep serve {' '.join(server.args)}", "\n".join(server.lines[-60:])))
