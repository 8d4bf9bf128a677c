"""The page at `/` in Chromium: drawing, the answer, the server's models, and what happens when something is missing."""

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
from playwright.sync_api import expect

from browser import fits_the_width, hold, pixels, rows, settle, wait_until
from drawing import STROKES, draw, draw_with_finger, draw_with_pen, press, rule
from server import LOCAL_PORTS, ROOT, run

PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
MILLISECONDS = re.compile(r"\d+(\.\d+)? ms")
EMPTY = "–"
INFERENCES = "#models td[data-label=Inferences]"

# A model with the signature of `digits` whose every execution fails.
FAILING_DIGITS = """
backend: "mock" max_batch_size: 8
input { name: "image" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] }
output { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] }
parameters { key: "mock.fail_every" value { string_value: "1" } }
"""


def get(server, path, body=None):
    """The server's answer without a browser."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://{server.http}/{path}", data)) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def infer_body(request):
    return json.loads(request.post_data)["inputs"][0]


# What the page shows.


def test_the_server_and_its_models_are_shown(visit, digits):
    page = visit(digits).open().page
    server = get(digits, "v2")
    expect(page).to_have_title("Skep")
    version = run("--version").stdout.split()[1]
    expect(page.locator("#server")).to_have_text(f"· version {version} · answers as {server['name']} {server['version']}")
    expect(page.locator("#models .backend").nth(1)).not_to_have_text(EMPTY)
    [row] = rows(page)
    config = get(digits, "v2/models/digits/config")
    statistics = get(digits, "v2/models/digits/stats")["model_stats"][0]
    [resident] = get(digits, "v2/skep/residency")["models"]
    assert row.pop("State") == f"READY\n{resident['instances']} instance, {resident['private_bytes'] / 2**20:.0f} MiB"
    # What the last interval was like is another test's.
    intervals = {row.pop(label) for label in ("Rate", "Mean batch", "Mean latency")}
    assert intervals == {EMPTY}
    assert row == {
        "Model": "digits",
        "Version": "1",
        "Backend": config["backend"],
        "Max batch": "8",
        "Inputs → outputs": "image FP32 [-1,1,8,8]\n→ probabilities FP32 [-1,10]",
        "Inferences": str(statistics["inference_count"]),
    }
    boxes = [page.get_by_role("heading", name=name).bounding_box() for name in ("Models of this server", "Draw a digit")]
    assert boxes[0]["y"] < boxes[1]["y"], "the server's models come first"
    expect(page.locator("#fault")).to_be_hidden()
    expect(page.locator("#offline")).to_be_hidden()


def test_drawn_digits_are_recognised(visit, digits):
    page = visit(digits).open().page
    for digit, strokes in STROKES.items():
        draw(page, strokes)
        expect(page.locator("#spoken")).to_have_text(re.compile(rf"looks like an? {digit}, \d+\.\d %"))
        expect(page.locator("#digit")).to_have_text(str(digit))
        shares = [float(text.removesuffix(" %")) for text in page.locator("#bars .value").all_inner_texts()]
        assert len(shares) == 10 and abs(sum(shares) - 100) < 0.6  # ten figures, each rounded by up to 0.05
        assert np.argmax(shares) == digit
        expect(page.locator("#bars .best-bar span").first).to_have_text(str(digit))
        for figure in ("#latency", "#queue", "#compute"):
            expect(page.locator(figure)).to_have_text(MILLISECONDS)
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#digit")).to_be_empty()
        expect(page.locator("#latency")).to_have_text(EMPTY)


def test_bars_are_as_long_as_their_figures(visit, digits):
    page = visit(digits, reduced_motion="reduce").open().page
    draw(page, STROKES[3])
    expect(page.locator("#spoken")).to_contain_text("looks like")
    for bar, text in zip(page.locator("#bars b").all(), page.locator("#bars .value").all_inner_texts(), strict=True):
        share = bar.evaluate("bar => bar.getBoundingClientRect().width / bar.parentElement.clientWidth")
        assert abs(100 * share - float(text.removesuffix(" %"))) < 0.1  # the figure is rounded by up to 0.05


def test_the_inferences_of_the_table_grow_with_the_answers(visit, digits):
    opened = visit(digits).open()
    before = get(digits, "v2/models/digits/stats")["model_stats"][0]["inference_count"]
    draw(opened.page, STROKES[7])
    expect(opened.page.locator("#spoken")).to_contain_text("looks like a 7")
    expect(opened.page.locator(INFERENCES)).to_have_text(str(before + opened.asked("/infer")))


# From the picture to the model's input.


def test_the_model_gets_what_the_rule_makes_of_the_drawing(visit, digits):
    page = visit(digits).open().page
    bodies = []
    page.on("request", lambda request: request.url.endswith("/infer") and bodies.append(infer_body(request)))
    draw(page, STROKES[5])
    expect(page.locator("#spoken")).to_contain_text("looks like a 5")
    sent = bodies[-1]
    assert (sent["name"], sent["datatype"], sent["shape"]) == ("image", "FP32", [1, 1, 8, 8])
    wanted = rule(pixels(page))
    np.testing.assert_allclose(np.reshape(sent["data"], (8, 8)), wanted, atol=1e-9)
    seen = page.evaluate('[...$("seen").getContext("2d").getImageData(0, 0, 8, 8).data]')
    np.testing.assert_allclose(np.reshape(seen, (8, 8, 4))[..., 3], 255 * wanted, atol=1)


def pictures():
    """Pictures on which a rule that is only nearly right goes wrong."""
    random = np.random.default_rng(0)

    def paper(height, width):
        return np.full((height, width, 4), 255, np.uint8)

    yield "empty", paper(9, 9)
    pale = paper(9, 9)
    pale[2:4, 2:4, :3] = 200
    yield "too pale", pale
    dot = paper(5, 7)
    dot[4, 6, :3] = 0
    yield "one pixel in the corner", dot
    yield "transparent black", np.zeros((6, 6, 4), np.uint8)
    wide = paper(40, 30)
    wide[3:5, 1:28, :3] = (10, 120, 60)
    wide[20, 5, :3] = 205
    yield "wide, beyond the picture, colours", wide
    odd = paper(23, 31)
    odd[2:21, 9:14, :3] = 90
    odd[0, 11, :3] = 230
    yield "corner at half a pixel, pale ink outside of the box", odd
    for side in (3, 8, 20, 57):
        yield f"noise {side}", random.integers(0, 256, (side, side + 4, 4), np.uint8)


def test_the_rule_holds_for_any_picture(visit, digits):
    page = visit(digits).open().page
    for name, picture in pictures():
        got = page.evaluate(
            "([data, width]) => toInput(new ImageData(Uint8ClampedArray.from(data), width))",
            [picture.ravel().tolist(), picture.shape[1]],
        )
        np.testing.assert_allclose(np.reshape(got, (8, 8)), rule(picture), atol=1e-9, err_msg=name)


# Ways to draw.


def test_a_finger_draws_and_does_not_scroll(visit, digits):
    page = visit(digits, **PHONE).open().page
    page.locator("#pad").scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    draw_with_finger(page, STROKES[2])
    expect(page.locator("#spoken")).to_contain_text("looks like a 2")
    assert page.evaluate("scrollY") == before


def test_a_pen_draws(visit, digits):
    page = visit(digits).open().page
    draw_with_pen(page, STROKES[4])
    expect(page.locator("#spoken")).to_contain_text("looks like a 4")


def test_a_stroke_may_leave_the_drawing_area(visit, digits):
    page = visit(digits).open().page
    draw(page, [[(50, 10), (50, 50), (130, 110)]])
    expect(page.locator("#spoken")).to_contain_text("looks like")
    page.mouse.move(0, 0)
    press(page, [(-10, -10), (50, 50)])  # began outside: draws nothing
    page.mouse.up()
    assert pixels(page)[100:200, :100, 3].max() == 0


@pytest.mark.parametrize("key", ["Enter", "Space", "Escape"])
def test_the_keyboard_clears(visit, digits, key):
    page = visit(digits).open().page
    draw(page, STROKES[1])
    expect(page.locator("#digit")).to_have_text("1")
    if key != "Escape":
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Clear")).to_be_focused()
    page.keyboard.press(key)
    expect(page.locator("#spoken")).to_have_text("Cleared")
    expect(page.locator("#digit")).to_be_empty()
    assert pixels(page).max() == 0


# When it asks.


def test_an_unfinished_stroke_is_answered_but_not_spoken(visit, digits):
    page = visit(digits).open().page
    press(page, STROKES[7][0])
    expect(page.locator("#digit")).to_have_text("7")
    expect(page.locator("#spoken")).to_be_empty()
    page.mouse.up()
    expect(page.locator("#spoken")).to_contain_text("looks like a 7")


def test_a_stroke_that_ends_while_a_request_is_under_way_is_spoken_too(visit, digits):
    page, held = visit(digits).open().page, []
    hold(page, held, "**/versions/1/stats")  # asked for after each answer
    press(page, [(50, 50)])  # a dot: nothing changes between the request and the end of the stroke
    expect(page.locator("#digit")).not_to_be_empty()
    page.mouse.up()
    held[0].continue_()
    expect(page.locator("#spoken")).to_contain_text("looks like")


def test_one_request_at_a_time_and_the_latest_drawing_wins(visit, digits):
    opened = visit(digits).open()
    page, held = opened.page, []
    hold(page, held)
    with page.expect_request("**/infer"):
        draw(page, [[(80, 12), (45, 90)]])
    draw(page, [[(20, 12), (80, 12)]])
    assert opened.asked("/infer") == len(held) == 1
    held[0].continue_()
    expect(page.locator("#spoken")).to_contain_text("looks like a 7")
    assert opened.asked("/infer") == 2


def test_the_answer_to_a_cleared_drawing_is_not_shown(visit, digits):
    page, held = visit(digits).open().page, []
    hold(page, held)
    with page.expect_request("**/infer"):
        draw(page, STROKES[1])
    page.get_by_role("button", name="Clear").click()
    with page.expect_response("**/versions/1/stats"):  # asked for after an answer has been dealt with
        held[0].continue_()
    expect(page.locator("#digit")).to_be_empty()
    expect(page.locator("#spoken")).to_have_text("Cleared")


def test_a_hidden_page_leaves_the_server_alone(visit, digits):
    opened = visit(digits)
    page = opened.page
    page.clock.install()
    opened.open()

    def show(visible):
        page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            not visible,
        )

    with page.expect_response("**/v2/repository/index"):
        page.clock.run_for(5000)
    expect(page.locator("#models")).to_be_visible()
    show(False)
    before = opened.asked("/v2/repository/index")
    page.clock.run_for(60_000)
    assert opened.asked("/v2/repository/index") == before
    with page.expect_response("**/v2/repository/index"):
        show(True)


# When something is missing.


def test_without_the_model_there_is_nothing_to_draw_on(visit, serve, repository):
    repository.generate("addsub-int32", "addsub")
    server = serve(repository)
    page = visit(server).open().page
    expect(page.locator("#models tbody")).to_contain_text("INPUT0")
    [row] = rows(page)
    assert (row["Model"], row["State"].split("\n")[0], row["Max batch"]) == ("addsub", "READY", "4")
    assert row["Inputs → outputs"].splitlines()[:2] == ["INPUT0 INT32 [-1,16]", "INPUT1 INT32 [-1,16]"]
    expect(page.locator("#pad")).to_be_hidden()
    expect(page.locator("#bars")).to_be_hidden()


def test_an_empty_repository_is_said_to_be_empty(visit, serve, repository):
    server = serve(repository)
    page = visit(server).open().page
    expect(page.locator("#models-note")).to_have_text("The repository is empty.")
    expect(page.locator("#models")).to_be_hidden()
    expect(page.locator("#pad")).to_be_hidden()


def test_another_model_of_that_name_is_not_asked(visit, serve, repository):
    repository.generate("identity-fp32", "digits")
    server = serve(repository)
    opened = visit(server).open()
    expect(opened.page.locator("#models tbody")).to_contain_text("FP32")
    expect(opened.page.locator("#pad")).to_be_hidden()
    assert opened.asked("/infer") == 0


def test_a_model_that_did_not_load_is_shown_with_the_reason(visit, serve, repository):
    repository.copy(ROOT / "examples/models/digits")
    repository.onnx("broken", b"no model")
    server = serve(repository, "--exit-on-error=false")
    page = visit(server).open().page
    [reason] = [row["reason"] for row in get(server, "v2/repository/index", {}) if row["name"] == "broken"]
    expect(page.locator("#models tbody")).to_contain_text("image")
    [broken] = [row for row in rows(page) if row["Model"] == "broken"]
    assert broken["State"] == f"UNAVAILABLE\n{reason}"
    draw(page, STROKES[3])
    expect(page.locator("#spoken")).to_contain_text("looks like a 3")


def test_the_page_loads_no_model_and_shows_what_is_in_memory(visit, serve, repository):
    for name in ["a", "b", "c"]:
        repository.mock(name)
    server = serve(repository, "--load-policy=lazy", "--memory-budget=3000000")
    page = visit(server).open().page
    expect(page.locator("#models td.state")).to_have_text(["READYloads on request"] * 3)
    expect(page.locator("#memory-text")).to_have_text("0 MiB of 3 MiB in use.")
    expect(page.locator("#memory-states")).to_have_text("3 known")
    data = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
    for name in ["a", "b", "c"]:
        get(server, f"v2/models/{name}/infer", {"inputs": [data]})
    with page.expect_response("**/v2/repository/index"):
        pass
    expect(page.locator("#memory-states")).to_have_text("1 known · 2 resident")
    expect(page.locator("#decisions li").first).to_have_text(re.compile("ago: load c: a request needs it"))
    held = "READY1 instance, 1 MiB"
    expect(page.locator("#models td.state")).to_have_text([held, held, "READYloads on request"])


def test_a_drawing_stays_while_the_model_is_loaded_again(visit, serve, repository):
    repository.copy(ROOT / "examples/models/digits")
    server = serve(repository, "--model-control-mode=explicit")
    opened = visit(server).open()
    page = opened.page
    expect(page.locator("#models tbody")).to_contain_text("not loaded")
    expect(page.locator("#pad")).to_be_hidden()
    get(server, "v2/repository/models/digits/load", {})
    expect(page.locator("#pad")).to_be_visible()
    draw(page, STROKES[6])
    expect(page.locator("#spoken")).to_contain_text("looks like a 6")
    get(server, "v2/repository/models/digits/unload", {})
    expect(page.locator("#pad")).to_be_hidden()
    expect(page.locator("#digit")).to_be_empty()
    get(server, "v2/repository/models/digits/load", {})
    expect(page.locator("#digit")).to_have_text("6")
    # The last look at the drawing may have come after the unload.
    opened.errors[:] = [text for text in opened.errors if "status of 400" not in text]


# How the models fare, and where to read more.


def test_rate_batch_and_latency_of_the_last_interval_beside_the_objective(visit, serve, repository):
    objective = 'parameters { key: "slo_latency_ms" value { string_value: "5" } }'
    repository.mock(config=objective, latency_us=20_000)
    server = serve(repository)
    page = visit(server).open().page
    expect(page.locator("#models tbody")).to_contain_text("of 5 ms")
    for _ in range(3):
        get(server, "v2/models/mock/infer", {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [0] * 8}],
        })
    expect(page.locator(INFERENCES)).to_have_text("6")
    [row] = rows(page)
    assert re.fullmatch(r"\d+(\.\d)? /s", row["Rate"]) and row["Rate"] != "0.0 /s"
    assert row["Mean batch"] == "2.0"
    mean, *kept = row["Mean latency"].splitlines()
    assert re.fullmatch(r"\d\d\.\d\d ms of 5 ms", mean) and float(mean.split()[0]) >= 20
    assert kept == ["0.0 % in time", "3 late"]


def test_metrics_and_documentation_are_linked(visit, digits):
    opened = visit(digits).open()
    page = opened.page
    assert page.locator("#metrics").get_attribute("href") == f"http://127.0.0.1:{digits.metrics.rpartition(':')[2]}/metrics"
    page.get_by_role("link", name="Documentation").click()
    page.get_by_role("link", name="batching.md").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Batching")
    page.get_by_role("link", name="skep_batch_end_total").click()
    expect(page).to_have_url(f"http://{digits.http}/docs/metrics.md")


def test_without_metrics_there_is_no_link_to_them(visit, serve):
    page = visit(serve(ROOT / "examples/models", "--allow-metrics=false")).open().page
    expect(page.locator("#metrics")).to_be_hidden()


def test_restricted_calls_are_said_and_not_tried_again(visit, serve):
    server = serve(ROOT / "examples/models", "--http-restricted-api=model-repository:secret=x")
    opened = visit(server)
    page = opened.page
    page.clock.install()
    page.goto(opened.address)
    expect(page.locator("#models-note")).to_contain_text("expecting header 'secret'")
    expect(page.locator("#offline")).to_be_hidden()
    before = len(opened.requests)
    page.clock.run_for(60_000)
    assert len(opened.requests) == before
    opened.expect_errors("403")


# Errors.


def test_an_error_is_shown_in_the_servers_words(visit, digits):
    opened = visit(digits).open()
    page = opened.page
    body = {"inputs": []}
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(digits, "v2/models/digits/infer", body)
    words = json.loads(refused.value.read())["error"]

    page.route("**/infer", lambda route: route.continue_(post_data=json.dumps(body)))
    draw(page, STROKES[1])
    expect(page.locator("#fault")).to_have_text(f"The server says: {words}")
    expect(page.locator("#digit")).to_be_empty()
    expect(page.locator("#offline")).to_be_hidden()
    settle(page)
    opened.expect_errors("400")
    page.unroute_all(behavior="wait")

    draw(page, [[(40, 90), (70, 90)]])
    expect(page.locator("#spoken")).to_contain_text("looks like a 1")
    expect(page.locator("#fault")).to_be_hidden()


def test_a_failed_execution_is_shown_in_the_servers_words(visit, serve, repository):
    repository.config("digits", FAILING_DIGITS)
    (repository.path / "digits" / "1").mkdir()
    server = serve(repository)
    opened = visit(server).open()
    with opened.page.expect_response("**/infer") as failed:
        draw(opened.page, STROKES[1])
    settle(opened.page)
    last = get(server, "v2/models/digits/stats")["model_stats"][0]["inference_stats"]["fail"]["count"]
    words = f"execution {last} fails, as `mock.fail_every` says"
    expect(opened.page.locator("#fault")).to_have_text(f"The server says: {words}")
    [row] = rows(opened.page)
    assert (row["Backend"], row["Inferences"]) == ("mock", "0")
    opened.expect_errors(str(failed.value.status))


def test_what_is_no_answer_of_the_server_is_shown_with_its_status(visit, digits):
    opened = visit(digits).open()
    page = opened.page
    page.route("**/infer", lambda route: route.fulfill(status=502, body="<h1>no <b>upstream</b></h1>"))
    draw(page, STROKES[1])
    expect(page.locator("#fault")).to_have_text("The server says: 502 Bad Gateway: <h1>no <b>upstream</b></h1>")
    settle(page)
    opened.expect_errors("502")


def test_the_page_survives_a_stop_of_the_server(visit, serve):
    server = serve(ROOT / "examples/models")
    opened = visit(server).open()
    page = opened.page
    draw(page, STROKES[8])
    expect(page.locator("#spoken")).to_contain_text("looks like an 8")
    address = server.http
    assert server.stop() == 0

    expect(page.locator("#offline")).to_have_text("The server does not answer. Trying again every 2 seconds.")
    page.get_by_role("button", name="Clear").click()
    draw(page, STROKES[4])
    expect(page.locator("#digit")).to_be_empty()
    wait_until(page, "unanswered")
    expect(page.locator("#fault")).to_be_hidden()  # it would say the same again

    port = address.rpartition(":")[2]
    ports = [f"--http-port={port}" if option == "--http-port=0" else option for option in LOCAL_PORTS]
    server = serve(ROOT / "examples/models", ports=ports)
    assert server.http == address
    expect(page.locator("#spoken")).to_contain_text("looks like a 4")  # the drawing made meanwhile
    expect(page.locator("#offline")).to_be_hidden()
    expect(page.locator("#fault")).to_be_hidden()
    opened.expect_errors("net::ERR_")
    draw(page, [[(60, 40), (60, 41)]])
    expect(page.locator(INFERENCES)).not_to_have_text("0")


# How it looks.


def test_no_width_scrolls_sideways(visit, serve, repository):
    repository.generate("bert-tiny", "a-language-model-with-a-name-that-is-much-too-long-for-any-phone")
    repository.onnx("broken", b"no model")
    repository.copy(ROOT / "examples/models/digits")
    server = serve(repository, "--exit-on-error=false")
    page = visit(server).open().page
    expect(page.locator("#pad")).to_be_visible()
    expect(page.locator("#models tbody")).to_contain_text("last_hidden_state")
    for message in ("", "x" * 300):
        page.evaluate("text => ['offline', 'fault'].forEach(id => showMessage(id, text))", message)
        for width in (320, 390, 735, 736, 1215, 1216, 1600):  # on both sides of each change of the layout
            page.set_viewport_size({"width": width, "height": 700})
            assert fits_the_width(page), width


def test_dark_colours_change_the_look_and_not_the_drawing(visit, digits):
    page = visit(digits, color_scheme="dark").open().page
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.05
    draw(page, STROKES[5])
    expect(page.locator("#spoken")).to_contain_text("looks like a 5")
    drawn = pixels(page)
    assert drawn[drawn[..., 3] == 255][:, :3].max() == 0  # black ink, as the model wants it
    got = page.evaluate("toInput(pen.getImageData(0, 0, pad.width, pad.height))")
    np.testing.assert_allclose(got, rule(drawn).ravel(), atol=1e-9)


def luminance(colour):
    """The relative luminance of a colour as WCAG 2 defines it."""
    channels = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(visit, serve, repository, scheme):
    repository.copy(ROOT / "examples/models/digits")
    repository.onnx("broken", b"no model")
    server = serve(repository, "--exit-on-error=false")
    page = visit(server, color_scheme=scheme).open().page
    draw(page, STROKES[3])
    expect(page.locator("#spoken")).to_contain_text("looks like a 3")
    pairs = page.evaluate(TEXT_ON_BACKGROUND)
    assert {"READY", "UNAVAILABLE", "Clear", "Answer", "3", "text"} <= {text for text, _, _ in pairs}
    for text, front, back in pairs:
        dark, light = sorted((luminance(front), luminance(back)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text!r}: {front} on {back}"  # WCAG 2, level AA


# Every element with text of its own that can be seen: the text, its colour, the first colour behind it. Messages are
# among them.
TEXT_ON_BACKGROUND = """() => {
    for (const id of ["offline", "fault"]) showMessage(id, "text");
    return [...document.body.querySelectorAll("*")].filter(one =>
        one.checkVisibility() && !one.closest(".unseen, script, noscript, .pad") &&
        [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    ).map(one => {
        let behind = one;
        while (/, 0\\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
        return [one.textContent.trim(), getComputedStyle(one).color, getComputedStyle(behind).backgroundColor];
    });
}"""


def test_what_a_screen_reader_finds(visit, digits):
    page = visit(digits, **PHONE).open().page
    draw_with_finger(page, STROKES[9])
    expect(page.get_by_role("status").filter(has_text="looks like a 9")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("img", name="Drawing area")).to_be_visible()
    expect(page.get_by_role("list", name="Probability of each digit").get_by_role("listitem")).to_have_count(10)
    table = page.get_by_role("table", name="Models of this server")
    expect(table.get_by_role("row")).to_have_count(2)
    expect(table.get_by_role("columnheader")).to_have_count(10)
    expect(table.get_by_role("cell")).to_have_count(10)
    assert page.locator("html").get_attribute("lang") == "en"
