"""The page of `skep plan --html`, as a person uses it: from a file, with nothing else."""

import pytest
from playwright.sync_api import expect

from browser import DEADLINE_MS
from server import run

RECORDS = "id,lower,upper,size\nfirst,0,50,1048576\nsecond,50,100,1048576\nthird,0,100,1048576\n"


class Plan:
    """A page with a plan, and everything that it asked for and complained of."""

    def __init__(self, browser, file, **settings):
        self.context = browser.new_context(viewport={"width": 1000, "height": 700}, **settings)
        self.context.set_default_timeout(DEADLINE_MS)
        self.page = self.context.new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        # Warnings are about how the tests read pixels.
        self.page.on("console", lambda message: self.errors.extend([message.text] if message.type == "error" else []))
        self.page.goto(file.as_uri())
        self.tip = self.page.locator("#tip")

    def point(self, across, up):
        """Moves the mouse to a share of the plot."""
        box = self.page.locator("canvas").bounding_box()
        left, right, top, bottom = 76, 36, 14, 46
        x = box["x"] + left + across * (box["width"] - left - right)
        y = box["y"] + top + (1 - up) * (box["height"] - top - bottom)
        self.page.mouse.move(x, y)

    def colour(self, across, up):
        """What is drawn there."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        script = """([across, up]) => {
            const canvas = document.querySelector("canvas"), ratio = canvas.width / canvas.clientWidth;
            const x = 76 + across * (canvas.clientWidth - 112), y = 14 + (1 - up) * (canvas.clientHeight - 60);
            return [...canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data];
        }"""
        return self.page.evaluate(script, [across, up])


@pytest.fixture
def plan(chromium, tmp_path):
    """Opens the page of these records."""
    opened = []

    def start(records=RECORDS, *flags, **settings):
        table, page = tmp_path / "records.csv", tmp_path / "plan.html"
        table.write_text(records)
        outcome = run("plan", table, "--html", page, *flags)
        assert outcome.returncode == 0
        opened.append(Plan(chromium, page, **settings))
        return opened[-1]

    yield start
    for one in opened:
        assert one.errors == []
        assert [url for url in one.requests if not url.startswith("file:")] == []
        one.context.close()


def test_buffers_are_drawn_and_named(plan):
    one = plan()
    expect(one.page.locator("h1")).to_have_text("records.csv: 3 buffers, live in steps 0 to 100, 3.00 MiB together")
    seen = set()
    for across, up in ((0.2, 0.25), (0.2, 0.75), (0.8, 0.25), (0.8, 0.75)):
        assert one.colour(across, up)[3] == 255
        one.point(across, up)
        expect(one.tip).to_be_visible()
        seen.add(one.tip.inner_text())
    words = {text.split("\n")[0]: text.split("\n")[1:] for text in seen}
    assert words.keys() == {"first", "second", "third"}
    assert words["first"][0].startswith("1.00 MiB (1048576 bytes) at ")
    assert words["first"][1] == "steps 0 to 49"
    one.point(0.2, 0.99)
    expect(one.tip).to_be_hidden()


def test_another_plan_and_other_colours(plan):
    one = plan()
    plans = one.page.locator("#plan option").all_inner_texts()
    assert plans[0] == "auto: 2.00 MiB, optimal"
    naive = next(words for words in plans if words.startswith("offsets.naive"))
    one.page.select_option("#plan", label=naive)
    # One behind the other, nothing is above the first once it has ended.
    assert one.colour(0.8, 0.1)[3] == 0
    before = one.colour(0.2, 0.1)
    one.page.select_option("#colours", "size")
    assert one.colour(0.2, 0.1) != before


def test_zoom_move_and_find(plan):
    one = plan()
    one.page.fill("#find", "SEC")
    expect(one.page.locator("#found")).to_have_text("1 found")
    one.page.fill("#find", "")
    one.point(0.2, 0.25)
    name = one.tip.inner_text()
    for _ in range(10):
        one.page.mouse.wheel(0, -400)
    # What is under the mouse stays there; it fills the plot by now, above the lower bound's line too.
    assert one.tip.inner_text() == name
    one.point(0.9, 0.9)
    assert one.tip.inner_text() == name
    one.page.dblclick("canvas")
    one.point(0.2, 0.99)
    expect(one.tip).to_be_hidden()


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_light_and_dark(plan, scheme, dark):
    one = plan(color_scheme=scheme)
    paper = one.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") != dark


def test_many_buffers_are_drawn(plan):
    lines = (f"{i},{i},{i + 40},{64 + i * 104729 % 100000}" for i in range(20_000))
    one = plan("id,lower,upper,size\n" + "\n".join(lines) + "\n", "--strategy", "auto")
    assert one.colour(0.5, 0.2)[3] == 255
    one.point(0.5, 0.2)
    expect(one.tip).to_be_visible()
