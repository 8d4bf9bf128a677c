"""Drawing on the page as people do, and the rule from picture to input as examples/README.md words it."""

import numpy as np

# Strokes of points (x, y) in percent of the drawing area, y downward.
STROKES = {
    0: [[(50, 12), (30, 20), (20, 50), (30, 80), (50, 88), (70, 80), (80, 50), (70, 20), (50, 12)]],
    1: [[(40, 25), (55, 10), (55, 90)]],
    2: [[(25, 28), (35, 14), (55, 10), (72, 22), (70, 40), (25, 88), (78, 88)]],
    3: [[(25, 20), (50, 10), (70, 20), (72, 35), (50, 48), (70, 58), (75, 75), (55, 90), (25, 85)]],
    4: [[(60, 10), (20, 62), (82, 62)], [(62, 40), (62, 92)]],
    5: [[(75, 12), (30, 12), (27, 46), (50, 40), (72, 52), (74, 72), (58, 88), (25, 84)]],
    6: [[(65, 10), (38, 35), (25, 65), (38, 88), (60, 88), (74, 72), (62, 55), (40, 58), (28, 70)]],
    7: [[(20, 12), (80, 12), (45, 90)]],
    8: [[(70, 22), (50, 10), (32, 22), (40, 42), (64, 58), (72, 76), (50, 90), (28, 76), (38, 56), (62, 42), (70, 22)]],
    9: [[(72, 30), (58, 12), (35, 14), (26, 32), (40, 48), (62, 44), (72, 30), (70, 60), (60, 90)]],
}
STEPS = 5  # events between two points


def points_on(page, stroke):
    """The stroke in coordinates of the window, into which the drawing area is scrolled."""
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    return [(box["x"] + x / 100 * box["width"], box["y"] + y / 100 * box["height"]) for x, y in stroke]


def press(page, stroke):
    """Draws a stroke with the mouse and leaves the button down."""
    first, *others = points_on(page, stroke)
    page.mouse.move(*first)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=STEPS)


def draw(page, strokes):
    """Draws with the mouse."""
    for stroke in strokes:
        press(page, stroke)
        page.mouse.up()


def draw_with_finger(page, strokes):
    """Draws as a finger on a touch screen."""
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        points = [{"x": x, "y": y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    for stroke in strokes:
        first, *others = points_on(page, stroke)
        touch("touchStart", first)
        for point in others:
            touch("touchMove", point)
        touch("touchEnd")


def draw_with_pen(page, strokes):
    """Draws as a stylus."""
    session = page.context.new_cdp_session(page)

    def move(kind, point, buttons):
        x, y = point
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1}
        session.send("Input.dispatchMouseEvent", {**event, "pointerType": "pen"})

    for stroke in strokes:
        points = points_on(page, stroke)
        move("mousePressed", points[0], 1)
        for point in points[1:]:
            move("mouseMoved", point, 1)
        move("mouseReleased", points[-1], 0)


def overlap(start, end, size):
    """How much of [start, end] lies in each of `size` pixels."""
    pixels = np.arange(size)
    return np.clip(np.minimum(end, pixels + 1) - np.maximum(start, pixels), 0, None)


def rule(pixels):
    """RGBA pixels (height, width, 4) as the model's input, cell by cell."""
    pixels = np.asarray(pixels, np.float64)
    luminance = pixels[..., :3] @ (0.299, 0.587, 0.114) / 255
    alpha = pixels[..., 3] / 255
    ink = 1 - (luminance * alpha + (1 - alpha))
    rows, columns = np.nonzero(ink > 0.25)
    cells = np.zeros((8, 8))
    if rows.size == 0:
        return cells
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    side = max(bottom - top, right - left)
    y0, x0, cell = (top + bottom - side) / 2, (left + right - side) / 2, side / 8
    for r in range(8):
        high = overlap(y0 + r * cell, y0 + (r + 1) * cell, ink.shape[0])
        for c in range(8):
            wide = overlap(x0 + c * cell, x0 + (c + 1) * cell, ink.shape[1])
            cells[r, c] = high @ ink @ wide / cell**2
    return cells / cells.max()
