"""`skep replay`: memory traces over allocators."""

import gzip
import json

import pytest

import plugins
from server import run

MIB = 1 << 20


def table(events):
    return "op,id,bytes\n" + "".join(f"{op},{block},{size}\n" for op, block, size in events)


def replay(path, *arguments):
    outcome = run("replay", path, "--json", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    return {row["name"]: row for row in document["allocators"]}, document, outcome.stderr


@pytest.fixture
def steps(tmp_path):
    """Weights, and forty steps that allocate the same: sizes that best fit does not pack well."""
    events, block = [], 0

    def malloc(size):
        nonlocal block
        block += 1
        events.append(("a", block, size))
        return block

    for size in (3 * MIB, MIB, 70_000):
        malloc(size)
    for _ in range(40):
        live = []
        for number, size in enumerate([5, 9, 3, 12, 7, 4, 15, 6, 11, 8, 2, 10]):
            live.append(malloc(size * 100_000 + number))
            if number % 3 == 2:
                events.append(("f", live.pop(-2), ""))
        for one in live:
            events.append(("f", one, ""))
    path = tmp_path / "steps.csv.gz"
    path.write_bytes(gzip.compress(table(events).encode()))
    return path


def test_all_allocators_are_compared(steps):
    rows, document, _ = replay(steps)
    assert len(rows) == 17 and {"bfc", "ort_arena", "pytorch_caching", "skep", "planned"} <= set(rows)
    assert document["events"] == 3 + 40 * 24 and document["unmatched"] == {}
    peak, optimum = document["peak_live"], document["optimum"]
    assert peak <= document["optimum_lower_bound"] <= optimum
    for row in rows.values():
        assert row["peak_reserved"] >= peak and row["out_of_memory"] == 0
        assert row["ratio"] == pytest.approx(row["peak_reserved"] / peak)
    assert rows["planned"]["peak_reserved"] <= optimum + 512
    # After three steps it is placed by a plan, and before them on pages.
    best = min(row["peak_reserved"] for name, row in rows.items() if name not in ("planned", "skep"))
    assert rows["skep"]["peak_reserved"] <= 1.02 * best
    assert rows["skep"]["reserved_after_trim"] == 0


def test_a_limit_refuses_what_does_not_fit(steps):
    _, document, _ = replay(steps)
    limit = document["peak_live"] + 2 * MIB
    rows, _, _ = replay(steps, "--limit", str(limit), "--allocator", "buddy", "--allocator", "skep")
    assert rows["skep"]["out_of_memory"] == 0 and rows["skep"]["peak_reserved"] <= limit
    assert rows["buddy"]["out_of_memory"] > 0 and rows["buddy"]["peak_reserved"] <= limit


def test_options_are_told_apart(steps):
    names = ["pytorch_caching", "pytorch_caching:expandable_segments=true", "ort_arena:strategy=same_as_requested"]
    rows, _, _ = replay(steps, *[part for name in names for part in ("--allocator", name)])
    assert list(rows) == names
    assert rows[names[1]]["source_calls"]["take"] == 0 < rows[names[1]]["source_calls"]["commit"]


def test_costs_and_failures_are_parameters(steps):
    only = ["--allocator", "mxnet_naive"]
    rows, _, _ = replay(steps, *only, "--device", "cuda")
    twice, _, _ = replay(steps, *only, "--device", "cuda", "--cost", "take_ns=100000")
    calls = rows["mxnet_naive"]["source_calls"]["take"]
    assert twice["mxnet_naive"]["source_ns"] - rows["mxnet_naive"]["source_ns"] == pytest.approx(calls * 50_000)
    failing, document, _ = replay(steps, *only, "--fail-every", "2")
    assert failing["mxnet_naive"]["source_calls"]["refused"] > 0 and document["cost"]["take_ns"] > 0


def test_what_a_trace_does_not_tell_is_counted(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(table([("a", "x", 100), ("f", "y", ""), ("a", "x", 200), ("a", "z", 0), ("f", "x", "")]))
    _, document, warnings = replay(path, "--allocator", "bfc")
    assert document["unmatched"]["free of an id never allocated"] == 1
    assert sum(document["unmatched"].values()) >= 2
    assert "warning: " in warnings and "free of an id never allocated: 1" in warnings


def test_several_traces_and_a_page(steps, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(table([("a", "</script>", 5000)]))
    page = tmp_path / "page.html"
    outcome = run("replay", steps, other, "--html", page, "--csv", "--allocator", "skep")
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("# skep ") and lines[1].startswith("trace,allocator,events,")
    assert [line.split(",")[1] for line in lines[2:]] == ["skep", "skep"]
    assert page.read_text().count("</script>") == 2
    outcome = run("replay", steps, other, "--json")
    assert [len(trace["allocators"]) for trace in json.loads(outcome.stdout)["traces"]] == [17, 17]


def test_a_model_is_recorded_and_replayed(tmp_path):
    assert run("generate", "cnn", tmp_path / "model.onnx").returncode == 0
    table = tmp_path / "trace.csv"
    outcome = run("trace", "record", tmp_path, "--output", table, "--runs", "4", "--batch", "2")
    assert outcome.returncode == 0, outcome.stderr
    assert f"{table}: " in outcome.stdout
    rows, document, warnings = replay(table, "--allocator", "skep", "--allocator", "planned")
    assert document["events"] > 8 and document["unmatched"] == {} and warnings == ""
    assert rows["planned"]["peak_reserved"] >= document["peak_live"] > 0
    for arguments, words in [
        ([table], "is no ONNX model"),
        ([tmp_path / "none.onnx"], "cannot read"),
        ([tmp_path, "--batch", "1,2"], "--batch: a recording is of one batch size"),
    ]:
        outcome = run("trace", "record", *arguments, "--output", tmp_path / "other.csv")
        assert outcome.returncode == 1 and words in outcome.stderr


def test_all_options_are_listed():
    outcome = run("replay", "--list")
    assert outcome.returncode == 0
    for words in ("pytorch_caching: ", "max_split_size=none", "planned: ", "take_ns="):
        assert words in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--allocator", "bcf"], "there is no allocator `bcf`, expected one of `bfc`"),
        (["--allocator", "bfc:limit=-1"], "option `limit` of allocator `bfc` is `-1`, expected `none`, or a number of bytes"),
        (["--allocator", "bfc:growth=1"], "allocator `bfc` has no option `growth`"),
        (["--limit", "0"], "expected bytes above 0"),
        (["--budget", "-1"], "expected seconds from 0 to 86400"),
        (["--cost", "take=1"], "--cost: cost `take=1`, expected `name=number`"),
        (["--cost", "take_ns=nan"], "cost `take_ns` is `nan`, expected a number from 0 on"),
    ],
)
def test_wrong_arguments_are_named(steps, arguments, words):
    outcome = run("replay", steps, *arguments)
    assert outcome.returncode != 0 and words in outcome.stderr
    assert "panicked" not in outcome.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot read"),
        (b"nothing of interest\n", "cannot read"),
        (b"op,id,bytes\na,x,many\n", "line 2"),
        (b"op,id,bytes\na,x,-5\n", "line 2"),
        (b"op,id,bytes\nf,x,\n", "no allocation that can be followed"),
        (b"\x80\x04c__builtin__\neval\n.", "cannot read"),
        (gzip.compress(b"op,id,bytes\na,x,5\n" * 1000)[:-40], "cannot read"),
        (b'{"traceEvents": [', "cannot read"),
    ],
)
def test_damaged_traces_are_refused(tmp_path, content, words):
    path = tmp_path / "trace"
    path.write_bytes(content)
    outcome = run("replay", path)
    assert outcome.returncode == 1 and words in outcome.stderr, outcome.stderr
    assert "panicked" not in outcome.stderr


def test_huge_blocks_are_refused_and_others_go_on(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(table([("a", "x", 1 << 63), ("a", "y", 1000), ("a", "z", (1 << 62) - 1), ("f", "y", "")]))
    rows, _, _ = replay(path)
    for name, row in rows.items():
        assert row["out_of_memory"] >= 1 and row["peak_in_use"] >= 1000, name


def test_an_allocator_of_your_own_is_in_the_same_table(steps, tmp_path):
    library = plugins.example(tmp_path)
    talking = plugins.wrong(tmp_path, "talking")
    rows, document, warnings = replay(steps, "--allocator", library, "--allocator", "skep", "--allocator", talking)
    assert list(rows) == ["skep", str(library), str(talking)]
    own = rows[str(library)]
    assert own["peak_reserved"] >= document["peak_live"] and own["source_calls"]["take"] > 3
    assert own["reserved_after_trim"] == 0 and rows[str(talking)]["peak_reserved"] == 1 << 30
    assert warnings == "hello from the library\n"
    text = run("replay", steps, "--allocator", library).stdout
    assert str(library) in text and "mean" not in text


def test_a_plugin_that_goes_wrong_costs_its_row(steps, tmp_path):
    lacking = plugins.SOURCE.replace("BODY", "").replace("skep_allocator_destroy", "skep_allocator_end")
    libraries = {name: plugins.wrong(tmp_path, name) for name in ("overlapping", "crashing", "exiting", "right")}
    libraries["lacking"] = plugins.compiled(tmp_path, "lacking", lacking)
    libraries["absent"] = tmp_path / "libabsent.so"
    libraries["options"] = f"{plugins.example(tmp_path)}:size=1"
    chosen = [part for library in libraries.values() for part in ("--allocator", library)]
    page = tmp_path / "page.html"
    outcome = run("replay", steps, "--json", "--html", page, "--allocator", "bfc", *chosen)
    assert outcome.returncode == 1
    rows = {row["name"]: row for row in json.loads(outcome.stdout)["allocators"]}
    assert rows["bfc"]["peak_reserved"] > 0 and rows[str(libraries["right"])]["peak_reserved"] == 1 << 30
    errors = {name: rows[str(library)].get("error", "") for name, library in libraries.items()}
    # The weights are blocks 0 to 2, events 1 to 3.
    assert errors["overlapping"].startswith("at event ") and "overlaps block 4 (900001 bytes at " in errors["overlapping"]
    assert "block 5 (300002 bytes at " in errors["overlapping"]
    assert errors["crashing"].startswith("it crashed with signal 11 at event ")
    assert errors["exiting"].startswith("it ended its process with exit status: 3 at event ")
    assert "lacks the function `skep_allocator_destroy`" in errors["lacking"]
    assert "libabsent.so` cannot be opened as a library: " in errors["absent"]
    assert errors["options"].endswith("options `size=1`") and errors["right"] == ""
    for name, error in errors.items():
        assert error == "" or f"error: {libraries[name]}: {error}" in outcome.stderr, name
    assert "it crashed with signal 11" in page.read_text()
    lines = run("replay", steps, "--csv", *chosen).stdout.splitlines()
    assert len({line.count(",") for line in lines[1:] if '"' not in line}) == 1


@pytest.mark.parametrize("source", ["mmap", "heap"])
def test_real_memory_can_be_used(steps, source):
    rows, document, _ = replay(steps, "--source", source, "--use-blocks", "--allocator", "all")
    assert document["source"] == source and "cost" not in document
    for name, row in rows.items():
        assert row["out_of_memory"] == 0 and row["reserved_after_trim"] >= 0, name
        # Each block is written, and the one before it read where it is still in use.
        assert row["use"]["bytes"] > 40 * 9_000_000 and row["use"]["ns"] > 0, name
        assert 0 < row["source_ns"] < 60e9, name
    simulated, _, _ = replay(steps, "--allocator", "all")
    for name, row in simulated.items():
        assert rows[name]["peak_reserved"] == row["peak_reserved"], name
        assert row["use"] is None
    text = run("replay", steps, "--source", source, "--use-blocks", "--allocator", "bfc").stdout
    assert "page faults" in text


def test_sources_that_do_not_fit_are_refused(steps):
    for arguments, words in [
        (["--source", "mmap", "--device", "cuda"], "--source mmap is a real one: leave them out"),
        (["--source", "heap", "--cost", "take_ns=1"], "--source heap is a real one: leave them out"),
        (["--use-blocks"], "--use-blocks needs memory of this machine, expected --source mmap or heap, got simulated"),
    ]:
        outcome = run("replay", steps, *arguments)
        assert outcome.returncode == 1 and words in outcome.stderr


def test_traces_are_shown_side_by_side(steps, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(table([("a", "x", 100), ("f", "x", ""), ("a", "y", 100), ("f", "z", "")]))
    outcome = run("trace", "show", steps, other, "--json")
    assert outcome.returncode == 0, outcome.stderr
    first, second = json.loads(outcome.stdout)["traces"]
    assert (first["blocks"], first["distinct_sizes"], first["reused_blocks"]) == (3 + 40 * 12, 15, 39 * 12)
    assert first["kept_bytes"] == 4 * MIB + 70_000 and first["lifetimes"]["most"] == 16
    assert second["reuse_distances"]["most"] == 1 and second["unmatched"] == {"free of an id never allocated": 1}
    text = run("trace", "show", steps, other).stdout
    assert str(other) in text and "long-lived" in text
