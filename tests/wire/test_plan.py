"""`skep plan`: its outputs, and what it says of files that are no usage records."""

import csv
import gzip
import io
import json
import re
import xml.etree.ElementTree

import pytest

from server import run

# The greedy strategies need a quarter more than the 12 bytes that are live at most.
RECORDS = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"
TFLITE = (
    "name,first_op,last_op,size_bytes,is_output\nnet/conv,0,1,1605632,0\nnet/relu,1,2,1605632,0\n"
    "net/pool,2,3,401408,0\nIdentity,3,3,4000,1\n"
)
ASSIGNMENT = """BufferAssignment:
allocation 0: size 4, parameter 0, shape |f32[]| at ShapeIndex {}:
 value: <1 p @0> (size=4,offset=0): f32[]
allocation 1: size 64, preallocated-temp:
 value: <3 small @0> (size=64,offset=0): f32[16]{0}
allocation 2: size 192, preallocated-temp:
 value: <4 add @0> (size=128,offset=0): f32[32]{0}
 value: <5 mul @0> (size=64,offset=128): f32[16]{0}
 value: <6 exp @0> (size=128,offset=0): f32[32]{0}
"""
RANGES = "HloLiveRange (max 9):\n  BufferLiveRange:\n    small{}:0-9\n    add{}:1-3\n    mul{}:2-4\n    exp{}:3-6\n"


def plan(*arguments):
    outcome = run("plan", *arguments)
    assert outcome.stderr == ""
    assert outcome.returncode == 0
    return outcome.stdout


@pytest.fixture
def records(tmp_path):
    file = tmp_path / "records.csv"
    file.write_text(RECORDS)
    return file


def valid(document, table):
    """Each plan of a document keeps buffers apart that are live together."""
    rows = {row["id"]: [int(row[name]) for name in ("lower", "upper", "size")] for row in csv.DictReader(io.StringIO(table))}
    assert document["buffers"] == len(rows)
    for strategy in document["strategies"]:
        objects = "objects" in strategy
        assert ("offsets" in strategy) != objects
        places = strategy["objects" if objects else "offsets"]
        assert list(places) == list(rows)
        assert strategy["size"] >= document["lower_bound"]
        assert strategy["optimal"] == (strategy["size"] == document["lower_bound"])
        if objects:
            assert strategy["size"] == sum(strategy["object_sizes"])
        for one, (start, end, size) in rows.items():
            assert size <= (strategy["object_sizes"][places[one]] if objects else strategy["size"] - places[one])
            for other, (second_start, second_end, second_size) in rows.items():
                if one < other and start < second_end and second_start < end:
                    low, high = sorted([(places[one], size), (places[other], second_size)])
                    assert low[0] + (1 if objects else low[1]) <= high[0], (strategy["name"], one, other)


def test_the_table_to_read(records):
    text = plan(records, "--strategy", "offsets.naive", "--strategy", "auto")
    # Times differ from run to run, and so does how many digits they have.
    assert re.sub(r" +\d+\.\d\d m?s +\d+\.\d\d m?s\n", " TIMES\n", text) == (
        "records.csv: 5 buffers, live in steps 0 to 21, 20 B together\n"
        "lower bound: 12 B (12 bytes), this many bytes are live at one moment\n"
        "\n"
        "  strategy             size  bytes  over bound       time   CPU time\n"
        "* auto                 12 B     12     optimal TIMES\n"
        "  offsets.naive        20 B     20    +66.67 % TIMES\n"
        "\n"
        "* the planner that Skep uses\n"
    )


def test_every_strategy_has_a_valid_plan(records):
    document = json.loads(plan(records, "--json"))
    assert (document["buffers"], document["lower_bound"], document["proof"]) == (5, 12, "load")
    names = [strategy["name"] for strategy in document["strategies"]]
    assert names[0] == "auto"
    assert {"objects.greedy_by_size", "offsets.greedy_by_size", "tvm.hill_climb", "xla.spatial"} <= set(names)
    assert document["without_a_plan"] == []
    sizes = [strategy["size"] for strategy in document["strategies"]]
    assert sizes == sorted(sizes)
    assert sizes[0] == 12 < sizes[-1] == 20
    members = ["name", "size", "optimal", "seconds", "cpu_seconds"]
    assert all(list(strategy)[:5] == members for strategy in document["strategies"])
    valid(document, RECORDS)


def test_a_strategy_that_cannot_is_no_error(tmp_path):
    file = tmp_path / "fixed.csv"
    file.write_text("id,lower,upper,size,offset\na,0,9,8,8\nb,0,9,8,\n")
    document = json.loads(plan(file, "--json", "--strategy", "auto", "--strategy", "tvm.hill_climb"))
    assert [strategy["offsets"] for strategy in document["strategies"]] == [{"a": 8, "b": 0}]
    reason = "buffer `a` is fixed, which `tvm.hill_climb` does not support"
    assert document["without_a_plan"] == [{"name": "tvm.hill_climb", "reason": reason}]
    text = plan(file, "--strategy", "tvm.hill_climb")
    assert "2 buffers, 1 of them fixed" in text
    assert f"without a plan:\n  {reason}\n" in text
    outcome = run("plan", file, "--csv", "--strategy", "tvm.hill_climb")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == "error: --csv: no strategy gives a plan\n"


def test_tables_come_back_as_tables(records, tmp_path):
    written = plan(records, "--csv", "--strategy", "objects.greedy_by_size")
    origin, table = written.split("\n", 1)
    assert origin.startswith("# skep ")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert list(rows[0]) == ["id", "lower", "upper", "size", "offset"]
    assert "".join(",".join(list(row.values())[:4]) + "\n" for row in rows) == RECORDS.split("\n", 1)[1]
    # A table with offsets is one of buffers that must not move.
    placed = tmp_path / "placed.csv.gz"
    placed.write_bytes(gzip.compress(written.encode()))
    document = json.loads(plan(placed, "--json", "--strategy", "auto"))
    assert document["strategies"][0]["offsets"] == {row["id"]: int(row["offset"]) for row in rows}


def test_usage_records_and_columns_without_effect(tmp_path):
    file = tmp_path / "net.csv"
    file.write_text(TFLITE)
    document = json.loads(plan(file, "--json", "--strategy", "auto"))
    assert (document["buffers"], document["lower_bound"]) == (3, 3211264)
    file.write_text("id,lower,upper,size,hint,shape\na,0,1,4,0,\n")
    outcome = run("plan", file, "--strategy", "auto")
    assert outcome.returncode == 0
    assert outcome.stderr == "".join(f"warning: `{file}`: column `{name}` has no effect\n" for name in ("hint", "shape"))


@pytest.mark.parametrize("packed", [False, True])
def test_xlas_dumps(tmp_path, packed):
    end = ".gz" if packed else ""
    for name, text in (("m.buffer-assignment.txt", ASSIGNMENT), ("m.live-range.txt", RANGES)):
        (tmp_path / (name + end)).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    file = tmp_path / f"m.buffer-assignment.txt{end}"
    document = json.loads(plan(file, "--json", "--strategy", "auto"))
    # The larger one first; an operation in place has no buffer of its own.
    assert (document["name"], document["buffers"], document["lower_bound"]) == (f"{file.name}, allocation 2", 2, 192)
    assert document["strategies"][0]["offsets"].keys() == {"4 add", "5 mul"}
    other = document["plans"][0]
    assert (other["name"], other["buffers"], other["lower_bound"]) == (f"{file.name}, allocation 1", 1, 64)
    assert plan(file, "--strategy", "auto").count("lower bound: ") == 2
    (tmp_path / f"m.live-range.txt{end}").unlink()
    outcome = run("plan", file)
    assert outcome.returncode == 1
    assert f"expected its live ranges beside it in `{tmp_path}/m.live-range.txt`, which is not there" in outcome.stderr


def test_pictures(records, tmp_path):
    svg, html = tmp_path / "plan.svg", tmp_path / "plan.html"
    records.write_text(RECORDS.replace("b4", '"</script><b>&4"'))
    plan(records, "--svg", svg, "--html", html)
    name = "{http://www.w3.org/2000/svg}"
    picture = xml.etree.ElementTree.parse(svg).getroot()
    titles = [title.text for title in picture.iter(f"{name}title")]
    assert [title.split("\n")[0] for title in titles] == ["b1", "b2", "b3", "</script><b>&4", "b5"]
    assert titles[0].endswith("\nsteps 0 to 2")
    page = html.read_text()
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.S)[1])
    study = data["studies"][0]
    assert study["names"] == ["b1", "b2", "b3", "</script><b>&4", "b5"]
    assert study["plans"][0]["words"] == "auto: 12 B, optimal"
    assert len(study["plans"]) > len(study["offsets"]) > 1
    # Nothing is asked of anybody.
    assert not re.search(r"(src|href)=|url\(|https?:|import ", page)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot read `{}`: No such file or directory (os error 2)"),
        (b"", "`{}` is empty, expected usage records"),
        (gzip.compress(b""), "`{}` is empty, expected usage records"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "`{}`: it is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>", "`{}`: it is an HTML page: "),
        (gzip.compress(b"<html>"), "`{}`: it is an HTML page: "),
        (b"PK\x03\x04....archive/data.pkl", "`{}`: it is a PyTorch file"),
        (gzip.compress(RECORDS.encode())[:40], "`{}`: gzip data ends early, after 40 bytes, of which "),
        (b"\x00\x01\x02", "`{}` has an unknown format, expected an ONNX model, a CSV table, XLA's *-buffer-assignment.txt or *.hlo.pb"),
        (b"id,lower,upper,size\n", "`{}`: expected a line with a buffer, got none"),
        (b"id,lower,upper,size\na,0,4,1\nb,9,4,1\n", "`{}`: line 3: buffer `b` is live from 9 to before 4, expected an end after the start"),
        (b"id,lower,upper,size\na,0,4,9223372036854775807\n", "`{}`: line 2: sizes up to buffer `a` add up to 2^62 bytes or more"),
        (b"id,lower,upper,size\na,0,4,1\na,5,6,1\n", "`{}`: line 3: buffer `a` is in line 2 already, expected names that differ"),
        (b"HloLiveRange (max 3):\n", "`{}` has live ranges without sizes, expected the buffer-assignment.txt beside it"),
        (b"BufferAssignment:\n", "`{}` is a buffer assignment, expected a name that ends with buffer-assignment.txt"),
        (b"\x1a\x05\x00", "`{}` has an unknown format"),
        (b"\x1a\x02\x08\x01", "`{}`: expected a trace of the heap simulator in the buffer assignment, with an allocation, got none"),
        (b"\x08\x09\x3a\x00", "`{}`: not an ONNX file: it holds no graph"),
    ],
)
def test_files_that_are_none_are_named(tmp_path, content, words):
    file = tmp_path / "records"
    if content is not None:
        file.write_bytes(content)
    outcome = run("plan", file)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("error: " + words.format(file))
    assert outcome.stderr.count("\n") == 1


def test_a_directory_without_a_model_is_no_file(tmp_path):
    outcome = run("plan", tmp_path)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr == f"error: `{tmp_path}` is a directory without an ONNX file, expected a file\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], ["<FILE>"]),
        (["--strategy", "offsets.greedy_by_sice"], ["offsets.greedy_by_sice", "'offsets.greedy_by_size'", "objects.naive", "auto"]),
        (["--budget", "0"], ["'0'", "--budget", "expected seconds from 0.001 to 86400, as in 2 or 0.5"]),
        (["--json", "--csv"], ["--json", "--csv"]),
        (["--svg", "/nonexistent/plan.svg"], ["--svg", "there is no directory `/nonexistent`"]),
        (["--html", "/nonexistent/plan.html"], ["--html", "there is no directory `/nonexistent`"]),
    ],
)
def test_what_makes_no_sense_is_named(records, flags, words):
    outcome = run("plan", *flags, *([records] if flags else []))
    assert (outcome.returncode, outcome.stdout) == (1, "")
    for word in words:
        assert word in outcome.stderr


def test_help_lists_the_strategies():
    text = plan("--help")
    assert re.search(r"- auto: +heuristics, then search with proof", text)
    assert re.search(r"- objects\.greedy_by_size: +size classes, then distance", text)


def test_many_buffers_and_little_time(tmp_path):
    file = tmp_path / "many.csv"
    lines = (f"{i},{i},{i + 1 + i * 7919 % 500},{64 + i * 104729 % 100000}" for i in range(100_000))
    file.write_text("id,lower,upper,size\n" + "\n".join(lines) + "\n")
    document = json.loads(plan(file, "--json", "--budget", "0.001", "--svg", tmp_path / "many.svg"))
    assert document["buffers"] == 100_000
    assert document["strategies"][0]["name"] == "auto"
    assert any(row["reason"].endswith("was stopped before it had a plan") for row in document["without_a_plan"])
    # Rectangles that fall together on the same pixels are one.
    assert (tmp_path / "many.svg").stat().st_size < 20_000_000


def test_every_output_says_what_made_it(records, tmp_path):
    svg, page = tmp_path / "plan <1>.svg", tmp_path / "plan.html"
    flags = ["--strategy", "auto", "--svg", svg, "--html", page]
    version = run("--version").stdout.split()[1]
    command = f"skep plan {records} --strategy auto --svg '{svg}' --html {page}"
    document = json.loads(plan(records, *flags, "--json"))
    assert (document["version"], document["command"]) == (version, f"{command} --json")
    description = xml.etree.ElementTree.parse(svg).getroot().find("{http://www.w3.org/2000/svg}desc").text
    assert description == f"skep {version}: {command} --json"
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)[1]
    assert json.loads(data)["from"] == description
    assert plan(records, *flags, "--csv").startswith(f"# skep {version}: {command} --csv\nid,lower,upper,size,offset\n")


def test_buffers_are_called_by_their_names(tmp_path):
    file = tmp_path / "fixed.csv"
    file.write_text("id,lower,upper,size,offset\none,0,9,8,0\nother,0,9,8,7\n")
    words = "line 3: buffers `one` and `other` are live together, and fixed where they overlap"
    assert run("plan", file).stderr == f"error: `{file}`: {words}\n"
