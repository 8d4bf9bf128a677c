"""`skep simulate batching`: its outputs, and what it says of flags that make no sense."""

import csv
import json
import math
import os
import re
import shlex
import xml.etree.ElementTree

import onnx
import pytest

from repository import graph, plus
from server import ROOT, run

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
    (version,) = {row["version"] for row in first}
    assert run("--version").stdout == f"skep {version}\n"
    assert {row["command"] for row in first} == {"skep simulate batching " + " ".join([*SMALL, "--json"])}
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
    panels = [group for group in chart.findall("{http://www.w3.org/2000/svg}g") if group.get("class") != "legend"]
    assert len(panels) == 2**4


def test_loads_are_shares_of_what_the_best_batches_carry(tmp_path):
    """A model whose throughput falls with the batch: its default loads reach beyond what it can carry."""
    measured = tmp_path / "convolutions.csv"
    measured.write_text("batch,ms\n1,2\n2,4.6\n8,24\n")
    flags = ["--table", measured, "--instances", "2", "--max-batch-size", "8", "--slo-ms", "10x", "--arrival", "poisson"]
    flags += ["--requests", "3000", "--seeds", "1", "--policy", "none,bound"]
    assert "2 instances, batches of up to 8; batches of 1 carry 1000 requests/s\n" in simulate(*flags, "--load", "0.5")
    in_time = {(row["policy"], row["load"]): row["in_time"] for row in rows(*flags)}
    for policy in ("none", "bound"):
        assert in_time[policy, 0.8] > 0.99
        assert in_time[policy, 1.5] < 0.75
    (row,) = rows(*flags[:-1], "none", "--rate", "500")
    assert row["load"] == 0.5


def test_tables_to_read():
    overview = simulate(*SMALL, "--policy", "none,bound")
    assert "objective 9.785 ms" in overview
    assert [line.split() for line in overview.splitlines() if line.startswith(" 0.5 ")][0][2] == "0.0"
    details = simulate(*SMALL, "--policy", "triton_default,static_best", "--details")
    assert "max_queue_delay" in details
    assert "Medians of 2 traces of 2000 requests, of which the first 200 do not count." in details


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--table", "affine:1"], ["affine:1", "--table", "expected affine:BASE,PER_INFERENCE"]),
        (["--table", "nosuch.csv"], ["--table nosuch.csv", "or a file of `batch,ms` lines", "No such file"]),
        (["--table", "flat:0"], ["--table", "flat:0", "expected flat:MS with milliseconds above 0"]),
        (["--table", "affine:0,0"], ["--table affine:0,0", "a batch of 1 takes 0 ms"]),
        (["--table", "affine:-1,2"], ["affine:-1,2", "--table", "two numbers of milliseconds from 0"]),
        (["--table", "affine:2,-0.01"], ["affine:2,-0.01", "--table", "two numbers of milliseconds from 0"]),
        (["--table", "flat:-3"], ["flat:-3", "--table", "milliseconds above 0"]),
        (["--table", "/dev/zero"], ["--table /dev/zero", "is larger than 256 MiB"]),
        (["--from-model", "/dev/zero"], ["--from-model /dev/zero", "nor a regular file"]),
        (["--table", "-3"], ["--table -3", "or a file of `batch,ms` lines"]),
        (["--slo-ms", "fast"], ["fast", "--slo-ms", "expected milliseconds above 0"]),
        (["--arrival", "bursty"], ["bursty", "--arrival", "expected bursty:VARIATION"]),
        (["--arrival", "nosuch.csv"], ["--arrival nosuch.csv", "expected poisson, constant", "No such file"]),
        (["--arrival", "posson"], ["this is neither a pattern nor a file", "expected poisson, constant", "a file of recorded requests"]),
        (["--arrival", "poisson:3"], ["`poisson` takes no number, expected poisson, constant"]),
        (["--arrival", "rates:x.txt"], ["expected rates:FILE:STEP_SECONDS"]),
        (["--arrival", "rates:nosuch.txt:60"], ["--arrival rates:nosuch.txt:60", "cannot read `nosuch.txt`"]),
        (["--jitter", "lognormal"], ["lognormal", "--jitter", "or lognormal:DEVIATION"]),
        (["--load", "0"], ["'0'", "--load", "expected a share"]),
        (["--load", "-1"], ["'-1'", "--load", "expected a share"]),
        (["--load", "0.5,-1"], ["'-1'", "--load", "expected a share"]),
        (["--load", "-1,0.5"], ["'-1'", "--load", "expected a share"]),
        (["--rate", "-250"], ["'-250'", "--rate", "expected requests a second from 0.001"]),
        (["--rate", "many"], ["'many'", "--rate", "expected requests a second from 0.001"]),
        (["--slo-ms", "-5x"], ["'-5x'", "--slo-ms", "expected milliseconds above 0"]),
        (["--jitter", "-0.1"], ["'-0.1'", "--jitter", "expected a share from 0"]),
        (["--stretch", "-1"], ["'-1'", "--stretch", "expected a share from 0"]),
        (["--arrival", "bursty:-4"], ["bursty:-4", "--arrival", "expected bursty:VARIATION"]),
        (["--arrival", "periodic:-0.5"], ["periodic:-0.5", "--arrival", "amplitude from 0 to 1"]),
        (["--seeds", "-1"], ["-1", "--seeds", "1..=10000"]),
        (["--seed", "-1"], ["'-1'", "--seed", "as in 7 or 10-19"]),
        (["--seed", "9-3"], ["'9-3'", "--seed", "a range of at most 10000 with both ends"]),
        (["--seed", "3,1-4"], ["--seed: 3 is given twice"]),
        (["--seed", "3", "--seeds", "3"], ["--seed", "cannot be used with"]),
        (["--requests", "-1"], ["-1", "--requests", "10..=10000000"]),
        (["--max-batch-size", "-1"], ["-1", "--max-batch-size", "1..=65536"]),
        (["--request-batch-size", "-1"], ["-1", "--request-batch-size", "1..=65536"]),
        (["--instances", "-2"], ["-2", "--instances", "1..=1024"]),
        (["--policy", "triton:delay=-1"], ["`delay=-1`", "--policy", "whole microseconds"]),
        (["--policy", "triton:size=4"], ["`size=4` is not a setting", "preferred=SIZE+SIZE"]),
        (["--policy", "auto,delay=4"], ["no policy is called `delay=4`"]),
        (["--policy", "triton:preferred=65"], ["--policy", "a batch of 65 is above the largest, which is 64"]),
        (["--from-model", "nosuch"], ["--from-model nosuch", "No such file"]),
        (["--from-model", "docs"], ["--from-model docs", "expected a model's directory"]),
        (["--from-model", "README.md"], ["--from-model README.md", "not an ONNX file"]),
        (["--from-model", "examples/models/digits", "--max-batch-size", "9"], ["the model takes batches of up to 8"]),
        # Said before the model is measured, which is not there.
        (["--from-model", "nosuch", "--max-batch-size", "8", "--policy", "triton:max=128"], ["a batch of 128 is above the largest, which is 8"]),
        (["--from-model", "nosuch", "--max-batch-size", "8", "--request-batch-size", "9"], ["at most --max-batch-size, which is 8"]),
        (["--from-model", "examples/models/digits", "--policy", "triton:max=128"], ["a batch of 128 is above the largest, which is 8"]),
        (["--policy", "triton:timeout=0"], ["`timeout=0`: expected whole microseconds from 1"]),
        (["--policy", "triton:preferred=4+4"], ["`preferred=4+4`: expected each batch size once"]),
        (["--policy", "auto,auto"], ["--policy: auto is given twice"]),
        (["--policy", "auto", "--policy", "none,auto"], ["--policy: auto is given twice"]),
        (["--rate", "4000,4000.0"], ["--rate: 4000 is given twice"]),
        (["--load", "0.5,0.50"], ["--load: 0.5 is given twice"]),
        (["--slo-ms", "10,5x,10.0"], ["--slo-ms: 10 is given twice"]),
        (["--instances", "1,1"], ["--instances: 1 is given twice"]),
        (["--arrival", "poisson,poisson"], ["--arrival: poisson is given twice"]),
        (["--table", "flat:3", "--table", "flat:3"], ["--table: flat:3 is given twice"]),
        (["--gpu-as-cpu"], ["--from-model"]),
        (["--from-model", "examples/models/digits", "--shape", "x:1"], ["no input `x`, it has image"]),
        (["--save-table", "x"], ["--from-model"]),
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
    # clap's advice for what it takes for an unknown flag.
    assert "tip:" not in outcome.stderr


def test_files_that_are_none_are_named_with_their_line(tmp_path):
    for flag, text, words in (
        ("--table", "1,2\n2;3\n", "line 2: expected a batch size and milliseconds as in `8,2.5`, got `2;3`"),
        ("--arrival", "0\n1\nsoon\n", "line 3: expected a number, or a date and time"),
        ("--arrival", "5\n5.7\n5.6\n", "line 3: `5.6` follows `5.7`, expected ascending moments in seconds"),
    ):
        file = tmp_path / "file.csv"
        file.write_text(text)
        outcome = run("simulate", "batching", flag, file)
        assert outcome.returncode == 1
        assert f"{flag} {file}" in outcome.stderr
        assert words in outcome.stderr


def test_settings_of_ones_own_are_those_of_the_batcher():
    """Without a delay or preferred sizes it is Triton's default; `preferred` and `delay` change it."""
    settings = ["triton:delay=0", "triton:preferred=4+8,delay=500", "triton:max=1"]
    table = rows(*SMALL, "--policy", ",".join(["triton_default", *settings, "none"]))
    half = {row["policy"]: row for row in table if row["load"] == 0.5}
    assert list(half) == ["triton_default", *settings, "none"]
    assert half["triton:delay=0"]["goodput"] == half["triton_default"]["goodput"]
    assert half["triton:max=1"]["mean_batch"] == half["none"]["mean_batch"] == 1
    ends = half["triton:preferred=4+8,delay=500"]["ends"]
    assert "preferred_batch_size" in ends and "preferred_batch_size" not in half["triton_default"]["ends"]


def test_rates_are_requests_a_second():
    table = rows(*SMALL[2:], "--rate", "4000,100", "--policy", "auto")
    assert [row["rate"] for row in table] == [100, 4000]
    assert all(math.isclose(row["offered"], row["rate"], rel_tol=0.1) for row in table)
    assert all(math.isclose(row["load"], row["rate"] / 8603.94, rel_tol=0.01) for row in table)
    both = rows(*SMALL, "--rate", "4000", "--policy", "auto")
    assert [row["load"] for row in both] == sorted(row["load"] for row in both)
    assert [round(row["load"], 3) for row in both] == [0.465, 0.5, 1.2]


def test_rates_alone_are_shown_as_such(tmp_path):
    """With their shares beside them; the chart's axes are requests a second, and its texts fit."""
    flags = [*SMALL[2:], "--rate", "3000,4500.5", "--policy", "none,auto"]
    for mode in ([], ["--details"]):
        text = simulate(*flags, *mode, "--svg", tmp_path / "chart.svg")
        (heading,) = [line.split() for line in text.splitlines() if "requests/s " in line and "load" in line and ";" not in line]
        assert heading[:3] == ["rate", "load", "requests/s"]
        first = [line.split()[:2] for line in text.splitlines() if re.match(r" *(3000|4500.5) ", line)]
        assert first == sorted(2 * [["3000", "0.349"], ["4500.5", "0.523"]]) if mode else [["3000", "0.349"], ["4500.5", "0.523"]]
    space = "{http://www.w3.org/2000/svg}"
    chart = xml.etree.ElementTree.parse(tmp_path / "chart.svg").getroot()
    texts = [text.text for text in chart.iter(f"{space}text")]
    assert "Goodput over rate" in texts and "5000" in texts
    assert any(text.startswith("requests/s; load 1 is ") for text in texts)
    subtitle = [text.text for text in chart.findall(f"{space}text") if not text.get("font-size")]
    assert "".join(subtitle) == "requests a second; thin: all requests; bars: the least and the most of 2 traces"
    assert max(map(len, subtitle)) * 6.2 < float(chart.get("width"))


def test_recordings_keep_the_rate(tmp_path):
    """Also where the stretch that counts is much denser than the warm-up."""
    recorded, swinging = tmp_path / "recorded.csv", tmp_path / "rates.txt"
    gaps = [1.0] * 500 + [0.001] * 500
    recorded.write_text("time\n" + "".join(f"{sum(gaps[:index])}\n" for index in range(len(gaps))))
    swinging.write_text("5\n5.7\n0\n0.1\n90\n")
    flags = ["--policy", "none", "--slo-ms", "5x", "--rate", "2000", "--requests", "700", "--seeds", "5"]
    for row in rows(*flags, "--arrival", f"{recorded},rates:{swinging}:60"):
        assert math.isclose(row["offered"], 2000, rel_tol=1e-6), row


def test_chosen_seeds_are_the_traces():
    """The medians of three seeds lie between the least and the most, which are those of single seeds."""
    flags = [*SMALL[:-2], "--policy", "auto,triton_default"]
    assert rows(*flags, "--seed", "0,1")[0]["seed"] == [0, 1]
    strip = [(row["policy"], row["load"], row["goodput"]) for row in rows(*flags, "--seed", "0-2")]
    assert strip == [(row["policy"], row["load"], row["goodput"]) for row in rows(*flags, "--seeds", "3")]
    single = [rows(*flags, "--seed", str(seed)) for seed in (5, 8, 9)]
    together = rows(*flags, "--seed", "5,8-9")
    for row, *alone in zip(together, *single, strict=True):
        for figure in ("goodput", "p99_ms", "in_time"):
            values = sorted(one[figure] for one in alone)
            assert [row[f"{figure}_min"], row[figure], row[f"{figure}_max"]] == values


def test_the_spread_is_in_tables_and_the_chart(tmp_path):
    flags = [*SMALL, "--policy", "triton_default,auto,edf"]
    table = {(row["policy"], row["load"]): row for row in rows(*flags)}
    overview = simulate(*flags, "--svg", tmp_path / "chart.svg").splitlines()
    (index,) = [index for index, line in enumerate(overview) if line.startswith(" 1.2 ")]
    ends = [table["auto", 1.2][f"in_time_{end}"] for end in ("min", "max")]
    assert "{:.1f}..{:.1f}".format(*(100 * end for end in ends)) in overview[index + 1]
    details = simulate(*flags, "--details")
    assert "{:.0f}..{:.0f}".format(*(table["auto", 1.2][f"goodput_{end}"] for end in ("min", "max"))) in details
    text = (tmp_path / "chart.svg").read_text()
    assert 'class="spread"' in text
    # Lines of it end with the space where they break.
    shown = "".join(xml.etree.ElementTree.fromstring(text).itertext())
    assert "bars: the least and the most of 2 traces" in shown.replace("\n", "")
    one = [*flags[:-4], "--seeds", "1", "--policy", "auto"]
    assert ".." not in "".join(simulate(*one).splitlines()[2:])
    simulate(*one, "--svg", tmp_path / "one.svg")
    assert 'class="spread"' not in (tmp_path / "one.svg").read_text()


def test_panels_have_equal_axes_and_no_line_hides_another(tmp_path):
    flags = [*SMALL, "--slo-ms", "2x", "--svg", str(tmp_path / "chart.svg")]
    simulate(*flags)
    space = "{http://www.w3.org/2000/svg}"
    chart = xml.etree.ElementTree.parse(tmp_path / "chart.svg").getroot()
    panels = [group for group in chart.findall(f"{space}g") if group.get("class") != "legend"]
    ticks = [[text.text for text in panel.findall(f"{space}text") if text.get("text-anchor")] for panel in panels]
    assert len(ticks) == 2 and ticks[0] == ticks[1] and "1.25" in ticks[0]
    for panel in panels:
        lines = [path for path in panel.findall(f"{space}path") if path.get("stroke-linejoin")]
        assert len(lines) == len(POLICIES)
        widths = [float(line.get("stroke-width")) for line in lines]
        # The widest is drawn first, and dashes let what is below through.
        assert widths == sorted(widths, reverse=True) and widths[0] > widths[1]
        assert {line.get("stroke"): line.get("stroke-dasharray") for line in lines}["#56b4e9"]
    assert chart.find(f"{space}desc").text.endswith(f": skep simulate batching {' '.join(flags)}")
    shown = "".join(text.text for text in chart.findall(f"{space}text"))
    assert chart.find(f"{space}desc").text in shown


def test_every_output_carries_version_and_command(tmp_path):
    odd = tmp_path / "it's <odd> & long.csv"
    flags = [*SMALL, "--policy", "auto", "--csv", odd, "--svg", tmp_path / "chart.svg"]
    version = run("--version").stdout.strip()
    head = simulate(*flags).splitlines()[0]
    assert head.startswith(f"{version}: skep simulate batching --load 0.5,1.2 ")
    # A shell takes it again.
    assert shlex.split(head.removeprefix(f"{version}: "))[1:] == ["simulate", "batching", *map(str, flags)]
    with odd.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {f"skep {row['version']}: {row['command']}" for row in written} == {head}
    assert (tmp_path / "chart.svg").read_text().count("&lt;odd&gt; &amp; long") >= 1


def test_a_table_is_measured_on_a_model(repository, tmp_path):
    """The configuration's instances, largest batch and objective hold; the batcher's delay is no execution."""
    objective = 'parameters { key: "slo_latency_ms" value { string_value: "80" } }'
    groups = "instance_group { count: 3 kind: KIND_CPU }"
    repository.mock("m", f"{objective} {groups}", max_batch_size=6, latency_us=4000)
    model, saved = repository.path / "m", tmp_path / "saved.csv"
    flags = ["--arrival", "poisson", "--load", "0.5", "--requests", "500", "--policy", "auto,bound"]
    text = simulate("--from-model", model, "--save-table", saved, *flags)
    assert "Latencies of model `m` version 1 on backend `mock`, 3 instances, one execution at a time:" in text
    assert f"{model}, poisson arrivals, objective 80 ms, 3 instances, batches of up to 6;" in text
    comments = [line for line in saved.read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# " + text.splitlines()[0]
    lines = [line for line in saved.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "batch,ms"
    points = {int(batch): float(ms) for batch, ms in (line.split(",") for line in lines[1:])}
    assert list(points) == [1, 2, 4, 6]
    assert all(ms >= 4 for ms in points.values())
    assert comments[2:] == ["# instances: 3", "# max_batch_size: 6", "# slo_ms: 80"]
    again = simulate("--table", saved, *flags)
    assert f"`{saved}` says instances 3, max_batch_size 6, slo_ms 80.\n" in again
    assert again.splitlines()[-5:] == text.splitlines()[-5:]
    # Flags win, and what they overrule is not said.
    other = simulate("--table", saved, "--instances", "1", "--slo-ms", "7", "--max-batch-size", "8", *flags)
    assert f"{saved}, poisson arrivals, objective 7 ms, 1 instance, batches of up to 8;" in other
    assert " says " not in other
    assert f"`{saved}` ends at batches of 6: those up to 8 are extrapolated.\n" in other
    # A link is a model of its own name.
    (tmp_path / "linked").symlink_to(model)
    assert "Latencies of model `linked` version 1" in simulate("--from-model", tmp_path / "linked", *flags)
    table = rows("--from-model", model, "--instances", "1", "--slo-ms", "5x", "--max-batch-size", "2", *flags)
    assert {(row["instances"], row["max_batch_size"], row["table"]) for row in table} == {(1, 2, str(model))}


def test_a_table_of_one_line_says_so(tmp_path):
    table = tmp_path / "one.csv"
    table.write_text("1,2\n")
    note = f"`{table}` has a single size: batches of 2 to 64 are assumed to take as long as 1.\n"
    flags = [*SMALL, "--policy", "none", "--table", table]
    assert simulate(*flags).count(note) == 1
    printed = run("simulate", "batching", *flags, "--json")
    assert (printed.returncode, printed.stderr) == (0, f"note: {note}")
    assert json.loads(printed.stdout)
    assert note not in simulate(*flags, "--max-batch-size", "1")
    table.write_text("# instances: many\n1,2\n")
    refused = run("simulate", "batching", *flags)
    assert refused.returncode == 1
    assert "line 1: `instances: many`: expected a whole number from 1 to 1024" in refused.stderr


@pytest.mark.parametrize("batching", ["", "dynamic_batching {}"])
def test_an_objective_holds_whatever_forms_the_batches(repository, batching):
    parameters = {"slo_latency_ms": "80", "batching_policy": "triton"}
    entries = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    repository.mock("m", " ".join([batching, *entries]), max_batch_size=2, latency_us=1)
    flags = ["--arrival", "poisson", "--load", "0.5", "--requests", "500", "--policy", "none", "--json"]
    outcome = run("simulate", "batching", "--from-model", repository.path / "m", *flags)
    # The load warns that the policy forms the batches.
    assert outcome.returncode == 0, outcome.stderr
    assert {row["slo_ms"] for row in json.loads(outcome.stdout)} == {80}


def test_a_model_for_gpus_is_measured_on_the_cpu(repository):
    repository.mock("m", "instance_group { kind: KIND_GPU }", max_batch_size=2, latency_us=1)
    flags = ["--from-model", repository.path / "m", "--arrival", "poisson", "--load", "0.5", "--requests", "500", "--policy", "none"]
    refused = run("simulate", "batching", *flags)
    assert refused.returncode == 1
    assert "`--gpu-as-cpu`" in refused.stderr
    measured = run("simulate", "batching", "--gpu-as-cpu", *flags)
    assert measured.returncode == 0, measured.stderr
    assert "Latencies of model `m`" in measured.stdout


def test_a_batchers_delay_is_not_measured(repository, tmp_path):
    delay = "dynamic_batching { max_queue_delay_microseconds: 300000 }"
    repository.mock("m", delay, max_batch_size=2, latency_us=1)
    saved = tmp_path / "saved.csv"
    flags = ["--arrival", "poisson", "--load", "0.5", "--requests", "500", "--policy", "none"]
    simulate("--from-model", repository.path / "m", "--save-table", saved, *flags)
    first = next(line for line in saved.read_text().splitlines() if line.startswith("1,"))
    assert float(first.removeprefix("1,")) < 300


def test_a_file_is_measured_as_it_lies(tmp_path):
    """With data beside it, and variable dimensions that a flag gives."""
    flags = ["--arrival", "poisson", "--load", "0.5", "--requests", "500", "--policy", "auto", "--slo-ms", "5x"]
    model = plus(1, shape=("batch", 64))
    value = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(model.graph.initializer[0]).repeat(64), "number")
    model.graph.initializer[0].CopyFrom(value)
    onnx.save_model(model, tmp_path / "one.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").stat().st_size == 256
    text = simulate("--from-model", tmp_path / "one.onnx", "--max-batch-size", "8", *flags)
    assert "Latencies of model `one` version 1 on backend `" in text
    assert [line.split()[0] for line in text.splitlines()[5:9]] == ["1", "2", "4", "8"]
    node = onnx.helper.make_node("Identity", ["ids"], ["y"])
    variable = graph([node], [("ids", "INT64", ("batch", "n"))], [("y", "INT64", ("batch", "n"))])
    onnx.save_model(variable, tmp_path / "two.onnx")
    outcome = run("simulate", "batching", "--from-model", tmp_path / "two.onnx", *flags)
    assert outcome.returncode == 1
    missing = "input `ids` has variable dimensions, [-1], the batch dimension left out"
    assert f"{missing}\n  choose a size for each `?`: --shape ids:?\n" in outcome.stderr
    text = simulate("--from-model", tmp_path / "two.onnx", "--shape", "ids:16", "--max-batch-size", "2", *flags)
    assert "Latencies of model `two`" in text


def test_all_inputs_that_need_a_shape_are_named(repository):
    """Whole, where the model has no batches."""
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["y"])
    inputs = [("a", "FP32", ("n", 4)), ("b", "FP32", (4, "m"))]
    repository.onnx("m", graph([node], inputs, [("y", "FP32", ("n", "m"))]), config="max_batch_size: 0")
    flags = ["--from-model", repository.path / "m", "--arrival", "poisson", "--load", "0.5", "--requests", "500", "--policy", "none"]
    for shapes, words in (
        ([], "input `a` has variable dimensions, [-1,4]\ninput `b` has variable dimensions, [4,-1]\n"),
        ([], "\n  choose a size for each `?`: --shape a:?,4 --shape b:4,?\n"),
        (["--shape", "a:2,4"], "\n  choose a size for each `?`: --shape b:4,?\n"),
    ):
        outcome = run("simulate", "batching", *flags, *shapes)
        assert (outcome.returncode, outcome.stdout) == (1, "")
        assert words in outcome.stderr
    assert "Latencies of model `m`" in simulate(*flags, "--shape", "a:2,4", "--shape", "b:4,3")


SAMPLE = re.compile(
    r"(<!-- Written by tests/wire/test_simulate.py: [^>]*-->\n\n```sh\n\$ (?P<command>skep .*)\n```\n\n```text\n)(?P<text>.*?)(?=```)",
    re.DOTALL,
)


def test_the_documented_sample_is_what_the_command_prints():
    page = ROOT / "docs" / "simulator.md"
    text = page.read_text()
    (sample,) = SAMPLE.finditer(text)
    printed = simulate(*shlex.split(sample["command"])[3:])
    if os.environ.get("SKEP_UPDATE_DOCS") == "1":
        page.write_text(text[: sample.start("text")] + printed + text[sample.end("text") :])
        return
    assert sample["text"] == printed, "docs/simulator.md is stale: set SKEP_UPDATE_DOCS=1 and run this test"
