"""`skep simulate batching`: its outputs, and what it says of flags that make no sense."""

import csv
import json
import math
import xml.etree.ElementTree

import pytest

from server import run

SMALL = ["--load", "0.5,1.2", "--slo-ms", "5x", "--arrival", "poisson", "--requests", "2000", "--seeds", "2"]
NAMES = "policy table slo_ms arrival load instances goodput p50_ms p99_ms rejected mean_batch".split()
POLICIES = "none triton_default static_best static_timeout aimd quantile edf deferred auto bound".split()


def simulate(*flags):
    outcome = run("simulate", "batching", *flags)
    assert outcome.stderr == ""
    assert outcome.returncode == 0
    return outcome.stdout


def rows(*flags):
    return json.loads(simulate(*flags, "--json"))


def test_rows_have_their_members_and_repeat():
    first = rows(*SMALL)
    assert first == rows(*SMALL)
    assert [row["policy"] for row in first] == 2 * POLICIES
    for row in first:
        assert list(row)[: len(NAMES)] == NAMES
        assert (row["table"], row["arrival"], row["instances"]) == ("affine:1.87,0.087", "poisson", 1)
        assert math.isclose(row["slo_ms"], 5 * 1.957)
        assert (row["p50_ms"] is None) == (row["policy"] == "bound")
        assert math.isclose(sum(row["ends"].values()), 0 if row["policy"] == "bound" else 1, abs_tol=1e-9)
    best = {(row["policy"], row["load"]): row["goodput"] for row in first}
    for load in (0.5, 1.2):
        assert all(best[policy, load] <= best["bound", load] for policy in POLICIES)
        assert best["static_best", load] >= best["triton_default", load]
    assert best["triton_default", 0.5] > 4000 > 10 > best["none", 0.5]


def test_every_dimension_is_a_row(tmp_path):
    measured = tmp_path / "measured.csv"
    measured.write_text("batch,ms\n1,2\n8,5\n")
    recorded = tmp_path / "recorded.csv"
    recorded.write_text("TIMESTAMP\n2024-01-01 00:00:00\n2024-01-01 00:00:01.5\n2024-01-01 00:00:02\n")
    flags = ["--table", measured, "--table", "flat:3", "--slo-ms", "10,3x", "--load", "0.2,0.9", "--instances", "1,2"]
    flags += ["--arrival", f"bursty:2,{recorded}", "--policy", "auto,bound", "--max-batch-size", "8", "--requests", "100"]
    table = rows(*flags, "--csv", tmp_path / "rows.csv", "--svg", tmp_path / "chart.svg")
    kinds = {name: {row[name] for row in table} for name in NAMES}
    assert kinds["policy"] == {"auto", "bound"}
    assert kinds["table"] == {str(measured), "flat:3"}
    assert kinds["slo_ms"] == {10, 6, 9}
    assert kinds["arrival"] == {"bursty:2", str(recorded)}
    assert kinds["load"] == {0.2, 0.9}
    assert kinds["instances"] == {1, 2}
    assert len(table) == 2**6
    with (tmp_path / "rows.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["policy"] for row in written] == [row["policy"] for row in table]
    assert [float(row["goodput"]) for row in written] == [row["goodput"] for row in table]
    assert {row["table"] for row in written} == kinds["table"]
    assert [json.loads(row["ends"]) for row in written] == [row["ends"] for row in table]
    chart = xml.etree.ElementTree.parse(tmp_path / "chart.svg").getroot()
    assert chart.tag == "{http://www.w3.org/2000/svg}svg"
    panels = chart.findall("{http://www.w3.org/2000/svg}g")
    assert len(panels) == 2**4


def test_tables_to_read():
    overview = simulate(*SMALL, "--policy", "none,bound")
    assert "objective 9.785 ms" in overview
    assert [line.split() for line in overview.splitlines() if line.startswith("   0.5")][0][2] == "0.0"
    details = simulate(*SMALL, "--policy", "triton_default,static_best", "--details")
    assert "max_queue_delay" in details
    assert "Medians of 2 traces of 2000 requests, of which the first 200 do not count." in details


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--table", "affine:1"], ["affine:1", "--table", "expected affine:BASE,PER_INFERENCE"]),
        (["--table", "nosuch.csv"], ["--table nosuch.csv", "or a file of `batch,ms` lines", "No such file"]),
        (["--table", "flat:0"], ["--table flat:0", "a batch of 1 takes 0 ms"]),
        (["--slo-ms", "fast"], ["fast", "--slo-ms", "expected milliseconds above 0"]),
        (["--arrival", "bursty"], ["bursty", "--arrival", "expected bursty:VARIATION"]),
        (["--arrival", "nosuch.csv"], ["--arrival nosuch.csv", "expected poisson, constant", "No such file"]),
        (["--jitter", "lognormal"], ["lognormal", "--jitter", "or lognormal:DEVIATION"]),
        (["--load", "0"], ["'0'", "--load", "expected a share"]),
        (["--instances", "0"], ["'0'", "--instances", "1..=1024"]),
        (["--policy", "fifo"], ["fifo", "--policy", "expected one or some of none, triton_default"]),
        (["--request-batch-size", "65"], ["--request-batch-size 65", "at most --max-batch-size, which is 64"]),
        (["--svg", "/nonexistent/chart.svg"], ["--svg", "there is no directory `/nonexistent`"]),
    ],
)
def test_what_makes_no_sense_is_named(flags, words):
    outcome = run("simulate", "batching", *flags)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    for word in words:
        assert word in outcome.stderr


def test_files_that_are_none_are_named_with_their_line(tmp_path):
    for flag, text, words in (
        ("--table", "1,2\n2;3\n", "line 2: expected a batch size and milliseconds as in `8,2.5`, got `2;3`"),
        ("--arrival", "0\n1\nsoon\n", "line 3: expected a number, or a date and time"),
    ):
        file = tmp_path / "file.csv"
        file.write_text(text)
        outcome = run("simulate", "batching", flag, file)
        assert outcome.returncode == 1
        assert f"{flag} {file}" in outcome.stderr
        assert words in outcome.stderr
