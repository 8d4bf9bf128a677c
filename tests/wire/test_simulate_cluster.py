"""`skep simulate cluster`: its outputs, its scenario files, and what it says of mistakes in them."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import pytest

from server import run

SHORT = ["--minutes", "2", "--load", "0.1", "--application", "SS,QA-Text"]
PLATFORMS = ["infless", "photons", "tetris-ro", "tetris", "modelmesh", "skep", "skep-isolated"]


def simulate(*flags):
    outcome = run("simulate", "cluster", *flags)
    assert outcome.stderr == ""
    assert outcome.returncode == 0
    return outcome.stdout


def test_every_platform_is_in_a_row_of_each_output(tmp_path):
    rates = tmp_path / "rates.txt"
    rates.write_text("1\n0\n5\n2\n")
    flags = [*SHORT, "--arrival", f"stable,rates:{rates}:30"]
    files = ["--csv", tmp_path / "rows.csv", "--svg", tmp_path / "chart.svg"]
    rows = json.loads(simulate(*flags, "--json", *files))
    assert [row["platform"] for row in rows] == 2 * PLATFORMS
    for row in rows:
        assert 0 <= row["late"] <= row["requests"] and row["requests"] > 1000
        assert row["late"] == sum(row["late_of"].values()) and set(row["late_of"]) == {"SS", "QA-Text"}
        assert 0 < row["bound_bytes"] <= row["mean_tensor_bytes"] < row["mean_bytes"] <= row["peak_bytes"]
    with open(tmp_path / "rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["starts"]) for row in table] == [row["starts"] for row in rows]
    words = [element.text for element in ElementTree.parse(tmp_path / "chart.svg").iter() if element.text]
    assert {"stable arrivals", *PLATFORMS} <= set(words)
    again, other = (json.loads(simulate(*flags, "--json", "--seed", seed)) for seed in ["0", "7"])
    late = [[row["mean_bytes"] for row in found] for found in (rows, again, other)]
    assert late[0] == late[1] != late[2]


def test_a_saved_scenario_is_simulated_as_it_was(tmp_path):
    file = tmp_path / "scenario.json"
    assert simulate("--save", file, "--nodes", "3", "--application", "SS", "--load", "2") == ""
    scenario = json.loads(file.read_text())
    assert scenario["nodes"]["count"] == 3
    assert [one["requests_per_s"] for one in scenario["applications"]] == [640]
    flags = ["--minutes", "1", "--platform", "skep", "--json"]
    saved, flagged = (
        json.loads(simulate(*arguments, *flags))[0]
        for arguments in ([file], ["--nodes", "3", "--application", "SS", "--load", "2"])
    )
    assert {**saved, "command": ""} == {**flagged, "command": ""}


def test_profiles_are_read_beside_the_scenario(tmp_path):
    """A table of columns as Tetris publishes them."""
    file = tmp_path / "scenario.json"
    simulate("--save", file, "--application", "SVT")
    scenario = json.loads(file.read_text())
    rows = [f"resnet {cpus} 1 {batch} {100 * batch / cpus + 60} 199.5" for cpus in (2, 4) for batch in (1, 2)]
    (tmp_path / "resnet.txt").write_text("\n".join(rows))
    model = next(model for model in scenario["models"] if model["name"] == "resnet-50")
    del model["formula"], model["cpus"]
    model["profile"] = "resnet.txt"
    file.write_text(json.dumps(scenario))
    (row,) = json.loads(simulate(file, "--minutes", "1", "--platform", "tetris", "--json"))
    assert row["requests"] > 500 and row["unplaced"] == 0
    (tmp_path / "resnet.txt").write_text("resnet 2 1 1 fast 199.5")
    outcome = run("simulate", "cluster", file)
    assert outcome.returncode != 0
    assert "model `resnet-50`" in outcome.stderr and "line 1: expected `NAME CPUS CONCURRENCY" in outcome.stderr


def test_a_table_to_read():
    lines = simulate(*SHORT, "--placement", "theta,random", "--platform", "skep").splitlines()
    assert lines[2] == "32 nodes with 64 CPUs and 128 GiB, 2 minutes."
    titles = [line for line in lines if "requests" in line and "placement" in line]
    assert len(titles) == 2 and titles[0].startswith("arrivals as the scenario says, placement theta, ")
    assert sum(line.startswith("skep ") for line in lines[3:]) == 2


def changed(change):
    def write(path, scenario):
        change(scenario)
        path.write_text(json.dumps(scenario))

    return write


def set_slo(scenario):
    scenario["models"][0]["slo_ms"] = 1


def set_memory(scenario):
    scenario["nodes"]["memory_gib"] = 0.1


def set_rate(scenario):
    scenario["applications"][0]["requests_per_s"] = -1


def set_member(scenario):
    scenario["nodes"]["gpus"] = 1


@pytest.mark.parametrize(
    "change, words",
    [
        (changed(set_slo), "model `ssd`: no configuration that `tetris` may use keeps its objective of 1 ms; the closest one"),
        (changed(set_memory), "a node has 102 MiB and 64 cores"),
        (changed(set_rate), "`applications, `SVT`, requests_per_s` is -1, expected 0 to 10000000"),
        (changed(set_member), "unknown field `gpus`"),
        (lambda path, _: path.write_text("{"), "is not a scenario of `skep simulate cluster`"),
        (lambda path, _: path.unlink(), "SCENARIO: expected four-applications or a file"),
    ],
)
def test_mistakes_in_a_scenario_are_named(tmp_path, change, words):
    file = tmp_path / "scenario.json"
    simulate("--save", file)
    change(file, json.loads(file.read_text()))
    outcome = run("simulate", "cluster", file, "--platform", "tetris", "--minutes", "1")
    assert outcome.returncode != 0
    assert words in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--platform", "triton"], "unknown platform `triton`, expected one of infless, photons"),
        (["--platform", "skep,skep"], "--platform: skep is given twice"),
        (["--placement", "best"], "unknown placement `best`, expected one of theta, least-loaded, random"),
        (["--application", "SVM"], "--application SVM: the scenario has no such application, but SVT, QA-Audio"),
        (["--arrival", "bursty:4"], "arrival bursty:4: expected stable, periodic, bursty, sporadic"),
        (["--minutes", "NaN"], "expected minutes from 0.1 to 1e6"),
        (["--load", "0"], "expected"),
    ],
)
def test_flags_that_make_no_sense_are_named(flags, words):
    outcome = run("simulate", "cluster", *flags)
    assert outcome.returncode != 0
    assert words in outcome.stderr
    assert outcome.stdout == ""
