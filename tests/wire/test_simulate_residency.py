"""`skep simulate residency`: its outputs, and what it says of flags that make no sense."""

import csv
import json

import pytest

from server import run

SMALL = ["--models", "40", "--hours", "0.2", "--rate", "2"]
POLICIES = ["lru", "lfu", "gdsf", "idle-histogram", "value"]


def simulate(*flags):
    outcome = run("simulate", "residency", *SMALL, *flags)
    assert outcome.stderr == ""
    assert outcome.returncode == 0
    return outcome.stdout


def test_every_request_is_in_a_row_and_no_policy_beats_the_bound(tmp_path):
    rates = tmp_path / "rates.txt"
    rates.write_text("1\n0\n5\n2\n")
    flags = ["--arrival", f"poisson,rates:{rates}:60", "--budget", "10,50"]
    rows = json.loads(simulate(*flags, "--json", "--csv", tmp_path / "rows.csv"))
    (command,) = {row.pop("command") for row in rows}
    assert command.startswith("skep simulate residency ") and command.endswith("rows.csv")
    assert {row["version"] for row in rows} == {run("--version").stdout.split()[1]}
    assert [row["policy"] for row in rows] == 4 * POLICIES
    for row in rows:
        assert row["hits"] + row["cold"] + row["refused"] == row["requests"]
        assert row["hits"] <= row["bound_hits"] and row["foresight_hits"] <= row["bound_hits"]
        assert row["most_used_bytes"] <= row["budget_bytes"]
    with open(tmp_path / "rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["hits"]) for row in table] == [row["hits"] for row in rows]
    assert {row["command"] for row in table} == {command}
    again, other = (json.loads(simulate(*flags, "--json", "--seed", seed)) for seed in ["0", "7"])
    hits = [[row["hits"] for row in found] for found in (rows, again, other)]
    assert hits[0] == hits[1] != hits[2]


def test_a_table_to_read():
    text = simulate("--budget", "20", "--policy", "lru,value")
    lines = text.splitlines()
    assert lines[2].startswith("40 models, 2 requests/s over 0.2 h")
    rows = [line.split()[0] for line in lines[5:11] if line]
    assert rows == ["policy", "lru", "value", "foresight", "bound"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--budget", "0"], "expected percent of all models' bytes from 0.01 to 100, as in 10"),
        (["--budget", "5,5"], "--budget: 5 is given twice"),
        (["--policy", "mru"], "unknown eviction policy `mru`, expected one of lru, lfu, gdsf, idle-histogram, value"),
        (["--arrival", "bursty:4"], "--arrival bursty:4: expected poisson, rates:FILE:STEP_SECONDS, or a file"),
        (["--arrival", "nowhere.csv"], "--arrival nowhere.csv: this is neither a pattern nor a file"),
        (["--sizes", "9-3"], "expected LEAST-MOST in MiB from 1 to 1048576, as in 4-512"),
    ],
)
def test_what_makes_no_sense_is_named(flags, words):
    outcome = run("simulate", "residency", *flags)
    assert outcome.returncode != 0
    assert words in outcome.stderr
    assert outcome.stdout == ""
