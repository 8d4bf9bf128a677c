"""The figures of docs/reports/allocators.md, made of memory traces by one command.

    python benchmarks/allocators/report.py SKEP OUT TRACE... [--rounds 5]

A trace whose file name has `train` in it counts as training, any other as inference. OUT gets `tables.md` (all tables),
`ratios.svg`, `costs.svg`, `over-time.svg` and `figures.json` (what they are made of).
"""

import argparse
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

VARIANTS = ["ort_arena:strategy=same_as_requested", "pytorch_caching:expandable_segments=true"]
ALL = [part for name in ["all", *VARIANTS] for part in ("--allocator", name)]
# How much more than the most in use a full device has.
ROOM = 1.3
FULL = "CUDA with 1.3 times the most in use"
# The devices of the cost model, by how the report calls them; a full one beside them.
DEVICES = {
    "host": ["--device", "host"],
    "CUDA": ["--device", "cuda"],
    "CUDA, calls ten times as dear": ["--device", "cuda", "--cost", "take_ns=500000", "--cost", "give_back_ns=200000"],
}
TRAINING, INFERENCE = "#d9822b", "#3b7dd8"
INK, SOFT, RULE = "#1d2329", "#667280", "#e3e7eb"
LINES = {"bfc": "#d4484b", "pytorch_caching": "#e07b27", "ort_arena": "#9b5fb5", "contiguous_best_fit": "#3c9a4a", "skep": "#3b7dd8"}


def run(binary, *arguments):
    outcome = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if outcome.returncode:
        raise SystemExit(outcome.stderr)
    return outcome.stdout


def documents(text):
    document = json.loads(text)
    return document.get("traces", [document])


def label(path):
    return re.sub(r"(\.events)?\.(csv|json|log|hlo\.pb|pickle)(\.gz)?$", "", Path(path).name)


def is_training(path):
    return "train" in Path(path).name


def human(count):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024


def time(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def table(heading, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [heading, ["---"] * len(heading), *rows]]
    return "\n".join(lines) + "\n"


class Drawing:
    """An SVG with text in one font."""

    def __init__(self, width, height):
        self.size = (width, height)
        self.parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']

    def line(self, x1, y1, x2, y2, colour=RULE, dash="", width=1):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
        )

    def text(self, x, y, text, anchor="start", colour=INK, size=12):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{text}</text>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}" fill-opacity="0.75"/>')

    def path(self, points, colour):
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5"/>')

    def bar(self, x, y, width, height, colour):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" fill="{colour}"/>')

    def save(self, path):
        width, height = self.size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, Helvetica, Arial, sans-serif">'
        path.write_text("\n".join([head, *self.parts, "</svg>"]) + "\n")


def log_scale(value, least, most, left, right):
    import math

    value = min(max(value, least), most)
    return left + (math.log(value) - math.log(least)) / (math.log(most) - math.log(least)) * (right - left)


def ranked(figures):
    """Allocators by their mean ratio over all traces, geometric."""
    names = {row["name"] for trace in figures["host"] for row in trace["allocators"]}
    mean = {name: statistics.geometric_mean(ratios(figures["host"], name)) for name in names}
    return sorted(mean, key=mean.get), mean


def ratios(traces, name):
    return [row["ratio"] for trace in traces for row in trace["allocators"] if row["name"] == name]


def draw_ratios(figures, path):
    order, _ = ranked(figures)
    least, most, left, right = 1.0, 8.0, 300, 860
    drawing = Drawing(900, 70 + 24 * len(order))
    for value in (1, 1.25, 1.5, 2, 3, 4, 6, 8):
        x = log_scale(value, least, most, left, right)
        drawing.line(x, 30, x, 34 + 24 * len(order))
        drawing.text(x, 22, f"{value:g}" if value < most else "8 and more", "middle", SOFT, 11)
    for number, name in enumerate(order):
        y = 46 + 24 * number
        drawing.text(left - 14, y + 4, name, "end")
        for trace in figures["host"]:
            [row] = [row for row in trace["allocators"] if row["name"] == name]
            drawing.dot(log_scale(row["ratio"], least, most, left, right), y, TRAINING if is_training(trace["trace"]) else INFERENCE)
    y = 58 + 24 * len(order)
    drawing.dot(left, y, TRAINING)
    drawing.text(left + 10, y + 4, "training", size=11)
    drawing.dot(left + 90, y, INFERENCE)
    drawing.text(left + 100, y + 4, "inference: reserved at most, over the most in use", size=11)
    drawing.save(path)


def cost_of(traces, name):
    """Source time for each event, as a mean over traces; `None` where a request was refused."""
    rows = [(row, trace["events"]) for trace in traces for row in trace["allocators"] if row["name"] == name]
    if any(row["out_of_memory"] for row, _ in rows):
        return None
    return statistics.mean(row["source_ns"] / events for row, events in rows)


def draw_costs(figures, path):
    order, _ = ranked(figures)
    order = [name for name in order if name != "planned"]
    drawing = Drawing(900, 60 + 54 * len(order))
    colours = dict(zip([*DEVICES, FULL], ("#6b7785", "#3b7dd8", "#d4484b", "#3c9a4a")))
    least, most, left, right = 1, 3e5, 300, 780
    for number, name in enumerate(order):
        top = 40 + 54 * number
        drawing.text(left - 14, top + 26, name, "end")
        for row, (device, colour) in enumerate(colours.items()):
            cost = cost_of(figures[device], name)
            end = left if cost is None else log_scale(max(cost, least), least, most, left, right)
            drawing.bar(left, top + 11 * row, end - left, 9, colour)
            drawing.text(end + 6, top + 11 * row + 8, "refuses requests" if cost is None else time(cost), size=10, colour=SOFT)
    x = 20
    for device, colour in colours.items():
        drawing.bar(x, 12, 10, 10, colour)
        drawing.text(x + 15, 21, device, size=11)
        x += 40 + 7 * len(device)
    drawing.save(path)


def thinned(curve, most=400):
    """Of neighbouring points the one with the most reserved: peaks stay."""
    step = max(1, -(-len(curve) // most))
    return [max(curve[at : at + step], key=lambda point: (point[2], point[1])) for at in range(0, len(curve), step)]


def draw_over_time(pages, path):
    drawing = Drawing(900, 70 + 230 * len(pages))
    for number, trace in enumerate(pages):
        top, height, left, right = 40 + 230 * number, 170, 90, 870
        shown = [row for row in trace["allocators"] if row["name"] in LINES]
        most = 1.05 * max(row["reserved"] for row in shown)

        def place(event, count):
            return left + event / trace["events"] * (right - left), top + height * (1 - count / most)

        drawing.text(left, top - 12, label(trace["name"]), size=13)
        for part in range(5):
            y = top + height * part / 4
            drawing.line(left, y, right, y)
            drawing.text(left - 8, y + 4, human(most * (1 - part / 4)), "end", SOFT, 11)
        drawing.path([place(event, used) for event, used, _ in thinned(shown[0]["curve"])], "#b9c2cb")
        for row in shown:
            drawing.path([place(event, reserved) for event, _, reserved in thinned(row["curve"])], LINES[row["name"]])
        if trace["optimum"]:
            y = place(0, trace["optimum"])[1]
            drawing.line(left, y, right, y, "#c62828", "6 4", 1.5)
        drawing.text(right, top + height + 16, f"{trace['events']} events", "end", SOFT, 11)
    x, y = 90, 60 + 230 * len(pages)
    for name, colour in [*LINES.items(), ("in use", "#b9c2cb"), ("offline optimum", "#c62828")]:
        drawing.bar(x, y - 9, 10, 10, colour)
        drawing.text(x + 15, y, name, size=11)
        x += 32 + 6.5 * len(name)
    drawing.save(path)


def ratio_table(figures):
    order, mean = ranked(figures)
    traces = figures["host"]
    heading = ["allocator", "mean", *(label(trace["trace"]) for trace in traces)]
    rows = []
    for name in order:
        rows.append([f"`{name}`", f"{mean[name]:.3f}", *(f"{ratio:.3f}" for ratio in ratios(traces, name))])
    return table(heading, rows)


def cost_table(figures):
    rows = []
    for name in sorted({row["name"] for row in figures["host"][0]["allocators"]}):
        costs = [cost_of(figures[device], name) for device in [*DEVICES, FULL]]
        refused = sum(bool(row["out_of_memory"]) for trace in figures[FULL] for row in trace["allocators"] if row["name"] == name)
        shown = [f"refuses on {refused} of {len(figures[FULL])}" if cost is None else time(cost) for cost in costs]
        rows.append((costs[1], [f"`{name}`", *shown]))
    return table(["allocator", *DEVICES, FULL], [row for _, row in sorted(rows, key=lambda row: row[0])])


def cuda_table(figures):
    order, _ = ranked({"host": figures["CUDA"]})
    traces = figures["CUDA"]
    heading = ["allocator", *(label(trace["trace"]) for trace in traces)]
    return table(heading, [[f"`{name}`", *(f"{ratio:.3f}" for ratio in ratios(traces, name))] for name in order])


def trace_table(shown):
    rows = []
    for trace in shown:
        sizes, lives, reuse = trace["sizes"], trace["lifetimes"], trace["reuse_distances"]
        rows.append([
            label(trace["trace"]), trace["blocks"], human(trace["peak_live"]),
            f"{100 * trace['kept_bytes'] / trace['peak_live']:.0f} %", trace["distinct_sizes"],
            f"{human(sizes['p50'])}, {human(sizes['p99'])}", f"{lives['p50']}, {lives['p99']}",
            f"{100 * trace['reused_blocks'] / trace['blocks']:.0f} %", f"{reuse['p50']}, {reuse['p99']}",
            f"{100 * trace['long_lived_share']:.0f} %",
        ])
    heading = [
        "trace", "blocks", "most in use", "never freed", "sizes", "size p50, p99", "lifetime p50, p99, events",
        "of a size freed before", "events since p50, p99", "long-lived",
    ]
    return table(heading, rows)


def use_table(rounds):
    """Real memory: medians over rounds of the sums over traces."""
    by = {}
    for traces in rounds:
        sums = {}
        for trace in traces:
            for row in trace["allocators"]:
                use = row["use"]
                add = [row["source_ns"], use["ns"], use["page_faults"] or 0, row["huge_pages"], use["bytes"]]
                before = sums.setdefault(row["name"], [0] * len(add))
                sums[row["name"]] = [a + b for a, b in zip(before, add)]
        for name, add in sums.items():
            by.setdefault(name, []).append(add)
    rows = []
    for name, each in by.items():
        source, use, faults, pages, used = (statistics.median(values) for values in zip(*each))
        spread = [values[1] for values in each]
        rows.append((source + use, [
            f"`{name}`", time(source), time(use), f"{min(spread) / use:.2f} to {max(spread) / use:.2f}", f"{faults:.0f}", f"{pages:.0f}", human(used),
        ]))
    heading = ["allocator", "calls of the system", "use of the blocks", "spread of it", "page faults", "pages of 2 MiB", "written and read"]
    return table(heading, [row for _, row in sorted(rows, key=lambda row: row[0])])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("out", type=Path)
    parser.add_argument("traces", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {}
    with tempfile.TemporaryDirectory() as work:
        page = Path(work) / "page.html"
        for device, flags in DEVICES.items():
            more = ["--html", page] if device == "host" else []
            figures[device] = documents(run(args.binary, "replay", *args.traces, "--json", *ALL, *flags, *more))
        figures[FULL] = []
        for path, trace in zip(args.traces, figures["host"]):
            limit = ["--device", "cuda", "--limit", int(ROOM * trace["peak_live"])]
            figures[FULL] += documents(run(args.binary, "replay", path, "--json", "--budget", "0", *ALL, *limit))
        pages = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)[1])["traces"]
    shown = documents(run(args.binary, "trace", "show", *args.traces, "--json"))
    real = ["--source", "mmap", "--use-blocks"]
    rounds = [documents(run(args.binary, "replay", *args.traces, "--json", "--budget", "0", *ALL, *real)) for _ in range(args.rounds)]
    (args.out / "figures.json").write_text(json.dumps({
        "simulated": {
            device: [
                {"trace": label(trace["trace"]), "peak_live": trace["peak_live"], "optimum": trace["optimum"],
                 "allocators": [
                    {key: row[key] for key in ("name", "peak_reserved", "ratio", "source_ns", "out_of_memory", "source_calls", "huge_pages")}
                    for row in trace["allocators"]
                 ]}
                for trace in traces
            ]
            for device, traces in figures.items()
        },
        "traces": [{**trace, "trace": label(trace["trace"])} for trace in shown],
        "real": [
            [{"trace": label(trace["trace"]), "allocators": [
                {"name": row["name"], "source_ns": row["source_ns"], "use": row["use"]} for row in trace["allocators"]
            ]} for trace in traces]
            for traces in rounds
        ],
    }, indent=1))
    draw_ratios(figures, args.out / "ratios.svg")
    draw_costs(figures, args.out / "costs.svg")
    largest = [
        max((page for page in pages if is_training(page["name"]) == wanted), key=lambda page: page["peak_live"], default=None)
        for wanted in (True, False)
    ]
    draw_over_time([page for page in largest if page], args.out / "over-time.svg")
    parts = [
        ("What the traces are like", trace_table(shown)),
        ("Reserved at most, over the most in use; pages of 4 KiB", ratio_table(figures)),
        ("The same with the pages of a CUDA device, 2 MiB", cuda_table(figures)),
        ("What calls of the device cost for each event of a trace, by the cost model", cost_table(figures)),
        ("Real memory of this machine (mmap), all traces together", use_table(rounds)),
    ]
    (args.out / "tables.md").write_text("\n".join(f"## {heading}\n\n{text}" for heading, text in parts))


main()
