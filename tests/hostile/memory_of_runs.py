"""Runs whose memory follows from input values, beyond any machine: an error for that batch, and nothing else."""

import numpy as np

import models
from case import Case
from process import MIB
from stage import ONE, PROCESS, Setup, parameter
from tools import answered, binary_request, infer, ints, post, refused, status, together

LIMIT_MIB = 64
LIMIT = parameter("max_run_memory", f"{LIMIT_MIB}MiB")
# What a limited run, its answer and both forms of it may take: the answer is copied once at the most.
PEAK_MIB = 3 * LIMIT_MIB + 64
# Only far more than a machine has is an error there with the library's own allocator.
IMPOSSIBLE, TOO_MANY, OVERFLOWING = 10**13, 10**10, 2**62
SOME = 5

GRAPHS = {
    "constant-of-shape": (models.constant_of_shape, "`n` into ConstantOfShape"),
    "square": (models.square, "an output declared as `[a,b]`, both `n`, by ConstantOfShape"),
    "range": (models.range_, "the end of Range"),
    "expand": (models.expand, "`n` into Expand"),
    "tile": (models.tile, "`n` into Tile"),
    "pad": (models.pad, "`n` into Pad"),
    "resize": (models.resize, "`n` into Resize"),
    "one-hot": (models.one_hot, "the depth of OneHot"),
    "matmul": (models.matmul, "a column times a row of `n` each"),
    "broadcast": (models.broadcast, "a column plus a row of `n` each"),
    "nonzero": (models.nonzero, "NonZero of `n` ones"),
    "concat": (models.concat, "eight times `n` into Concat"),
    "gather": (models.gather, "`n` indices of Gather"),
    "doubling": (models.doubling, "a Loop that doubles a tensor in each of `n` rounds"),
    "collecting": (models.collecting, "a Loop that keeps a row of each of `n` rounds"),
}
SHORT_LOOPS = {"doubling"}
# What costs time in place of memory is the deadline's.
ENDLESS = {"collecting"}
# A loop's list of results grows by some 50 MB a second, which no allocator of tensors sees.
LONGEST_OF_ENDLESS_MS = 3_000
PLANNERS = ("planned", "malloc", "runtime")


def values_for(name, planner):
    if name in SHORT_LOOPS:
        return [60, 0, 3]
    if name in ENDLESS:
        return [50_000_000, 0, SOME]
    if planner == "runtime":
        return [IMPOSSIBLE, OVERFLOWING, -1, 0, SOME]
    if planner == "embedded":
        return [IMPOSSIBLE, 2**31 - 1, 10**9, -1, 0, SOME]
    if name in ("matmul", "broadcast", "square"):
        return [IMPOSSIBLE, 10**6, OVERFLOWING, -1, 0, SOME]
    return [IMPOSSIBLE, TOO_MANY, OVERFLOWING, -1, 0, SOME]


def sizes(model, values):
    """Each value in turn: those over the limit are errors, the last one is a success."""

    def attack(stage):
        told = []
        for value in values:
            answer = infer(stage, model, [ints("n", value)])
            stage.must_live()
            told.append(f"{value}: {status(answer)}")
            if value > 1000 or (value > 50 and "doubling" in model):
                refused(answer)
            else:
                answered(answer)
        assert answer is not None and answer.status == 200, (told, answer and answer.body[:300])
        return "; ".join(told)

    return attack


def config(planner, process=False, limit=LIMIT, longest_ms=10_000):
    backend = "embedded" if planner == "embedded" else "onnxruntime"
    text = f'backend: "{backend}" {ONE} {limit} {parameter("max_execution_ms", longest_ms)}'
    if planner not in ("embedded", "planned"):
        text += parameter("memory_planner", planner)
    return text + (PROCESS if process else "")


def repository_of(planner, names, process=False):
    def models_of(repository):
        for name in names:
            longest_ms = LONGEST_OF_ENDLESS_MS if name in ENDLESS else 10_000
            repository.onnx(name, GRAPHS[name][0](), config=config(planner, process, longest_ms=longest_ms))
        repository.onnx("outer", models.outer(), config=config(planner, process))
        repository.onnx("intermediates", models.intermediates(), config=config(planner, process))
        if planner != "embedded":
            repository.onnx("strings", models.strings(), config=config(planner, process))

    return models_of


def warm(names):
    """First runs are recorded, and load code."""

    def run(stage):
        for name in (*names, "intermediates"):
            answer = infer(stage, name, [ints("n", SOME)])
            assert answer is not None and answer.status == 200, (name, answer and answer.body)

    return run


def outer(count):
    def attack(stage):
        """800 kB become 160 GB."""
        size = 200_000
        given = {"name": "x", "datatype": "FP32", "shape": [1, size], "parameters": {"binary_data_size": 4 * size}}
        body, headers = binary_request([given], np.ones(size, np.float32).tobytes())
        told = together(count, lambda _: refused(post(stage.http, "/v2/models/outer/infer", body, headers)))
        stage.must_live()
        return told

    return attack


def at_once(model, value, count):
    def attack(stage):
        told = together(count, lambda _: refused(infer(stage, model, [ints("n", value)])))
        stage.must_live()
        answer = infer(stage, model, [ints("n", SOME)])
        assert answer is not None and answer.status == 200, answer and answer.body
        return told

    return attack


def between(stage):
    """The run needs 640 MiB between an input and an output of a few bytes; a few MiB are within the bound."""
    told = [f"640 MiB: {refused(infer(stage, 'intermediates', [ints('n', 160 * MIB)]))}"]
    answer = infer(stage, "intermediates", [ints("n", MIB)])
    assert answer is not None and answer.status == 200, answer and answer.body
    assert answer.json["outputs"][0]["data"] == [-1.0]
    return [*told, "4 MiB: 200"]


def texts(stage):
    """A million texts of a kilobyte."""
    return status(infer(stage, "strings", [ints("n", 10**6)]))


ALL_NAMES = list(GRAPHS)
FEW = ["constant-of-shape", "square", "matmul", "nonzero", "doubling"]
RUNTIME = ["constant-of-shape", "matmul", "nonzero"]
EMBEDDED = ["constant-of-shape", "square", "range", "expand", "tile", "matmul", "concat", "gather"]

WHERE = {
    "planned": ("planned", False, ALL_NAMES),
    "malloc": ("malloc", False, FEW),
    "runtime": ("runtime", False, RUNTIME),
    "embedded": ("embedded", False, EMBEDDED),
    "planned-sandboxed": ("planned", True, FEW),
    "malloc-sandboxed": ("malloc", True, ["constant-of-shape", "matmul"]),
    "runtime-sandboxed": ("runtime", True, ["constant-of-shape", "matmul"]),
    "embedded-sandboxed": ("embedded", True, ["square", "expand", "matmul"]),
}
TITLES = {
    "planned": "ONNX Runtime, `planned`", "malloc": "ONNX Runtime, `malloc`", "runtime": "ONNX Runtime, `runtime`",
    "embedded": "embedded engine",
}


def of_place(place):
    planner, process, names = WHERE[place]
    setup = Setup(f"runs-{place}", repository_of(planner, names, process), warm=warm(names))
    title = TITLES[planner] + (", in a worker process" if process else "")
    # The engine of a worker process is bounded by that process's limit, which has room for what is loaded.
    peak = PEAK_MIB + (160 if planner == "embedded" else 0)

    def case(name, what, attack, **more):
        return Case(f"run-{name}-{place}", "memory of runs", f"{what}: {title}", setup, attack, **{"peak_mib": peak, **more})

    for name in names:
        values = values_for(name, planner)
        shown = ", ".join({IMPOSSIBLE: "10^13", TOO_MANY: "10^10", OVERFLOWING: "2^62", 2**31 - 1: "2^31-1", 10**9: "10^9",
                           10**6: "10^6", 50_000_000: "5·10^7"}.get(value, str(value)) for value in values[:-1])
        yield case(name, f"{shown}: {GRAPHS[name][1]}", sizes(name, values))
    yield case("outer", "`x` of `[1,200000]` into an output declared as `[n,n]`, 160 GB", outer(1))
    if planner != "runtime":
        yield case("intermediates", "640 MiB between a small input and a small output", between, peak_mib=peak + 256)
    if place in ("planned", "embedded", "planned-sandboxed"):
        yield case("outer-at-once", "the same, eight at once", outer(8))
        yield case("at-once", f"10^13 into {names[0]}, eight at once", at_once(names[0], IMPOSSIBLE, 8))
    if place in ("planned", "planned-sandboxed"):
        # What texts hold is memory of C++ that no allocator of tensors sees.
        yield case("strings", "a million texts of 1 KiB between a small input and a small output", texts, peak_mib=1280)


CASES = [case for place in WHERE for case in of_place(place)]
