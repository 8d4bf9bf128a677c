"""Debian's Chromium on the page of a server, and what the tests read from the page."""

import base64
from pathlib import Path

import numpy as np
from playwright.sync_api import expect

CHROMIUM = Path("/usr/bin/chromium")

# The browser must neither need nor use anything outside; in a container it has neither a sandbox nor a GPU.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# The page looks at the server every 2 to 5 seconds; what has not happened after this long will not happen.
DEADLINE_MS = 60_000


class Visit:
    """A page of one server, with everything that it asked for and complained of."""

    def __init__(self, browser, server, **settings):
        self.context = browser.new_context(**settings)
        self.context.set_default_timeout(DEADLINE_MS)
        self.page = self.context.new_page()
        self.address = f"http://{server.http}/"
        self.requests = []
        self.errors = []
        self.page.on("request", lambda request: self.requests.append((request.method, request.url)))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)

    def _heard(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self):
        """Loads the page and waits until it has spoken to the server."""
        self.page.goto(self.address)
        expect(self.page.locator("#server")).not_to_be_empty()
        expect(self.page.locator("#models-note")).not_to_have_text("Asking the server …")
        return self

    def asked(self, end):
        """How many requests went to addresses with this end."""
        return sum(url.endswith(end) for _, url in self.requests)

    def expect_errors(self, text):
        """The console's complaints are about `text`, and there are some."""
        assert self.errors and all(text in error for error in self.errors), self.errors
        self.errors.clear()

    def close(self):
        """Ends the visit. Nothing may have been asked of others, and no error left unexpected."""
        self.context.close()
        elsewhere = [url for _, url in self.requests if not url.startswith((self.address, "data:"))]
        assert not elsewhere
        assert not self.errors, self.errors


def rows(page):
    """The table of models: the lines of each cell, by label."""
    return page.locator("#models tbody tr").evaluate_all(
        """rows => rows.map(row => Object.fromEntries([...row.cells].map(
            cell => [cell.dataset.label, [...cell.firstChild.children].map(line => line.textContent).join("\\n")])))"""
    )


def pixels(page):
    """What is on the drawing area, RGBA."""
    coded = page.evaluate(
        """() => {
            const { data } = pen.getImageData(0, 0, pad.width, pad.height);
            let text = "";
            for (let i = 0; i < data.length; i += 4096) text += String.fromCharCode(...data.subarray(i, i + 4096));
            return btoa(text);
        }"""
    )
    return np.frombuffer(base64.b64decode(coded), np.uint8).reshape(-1, page.evaluate("pad.width"), 4)


def wait_until(page, condition):
    """Waits for an expression of the page's own variables. (The page's content policy forbids what Playwright has.)"""
    page.evaluate(
        """deadline => new Promise((done, fail) => {
            const look = () => CONDITION ? done()
                : performance.now() > deadline ? fail(new Error("never: CONDITION")) : requestAnimationFrame(look);
            look();
        })""".replace("CONDITION", condition),
        page.evaluate("performance.now()") + DEADLINE_MS,
    )


def settle(page):
    """Waits until the drawing as it is has been dealt with."""
    wait_until(page, "!asking && lookTimer === null")


def hold(page, held, address="**/infer"):
    """Keeps the first request to an address back, in `held`."""
    page.route(address, lambda route: route.continue_() if held else held.append(route))


def fits_the_width(page):
    """Whether neither the page nor a part of it would have to scroll sideways."""
    return page.evaluate(
        """[document.documentElement, ...document.querySelectorAll("section")].every(
            one => one.scrollWidth <= one.clientWidth)"""
    )
