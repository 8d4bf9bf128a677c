"""Progress and colours: on a terminal alone, never in a pipe."""

import json
import re

import pytest

from repository import Repository, plus
from server import run
from terminal import ESCAPE, WIDTH, run_on_terminal

SMALL = ["--load", "0.5,1.2", "--slo-ms", "5x", "--arrival", "poisson", "--requests", "500", "--seeds", "1"]
SIMULATE = ["simulate", "batching", *SMALL, "--policy", "none,auto,bound"]
# A configuration that a warning is about.
WITHOUT_EFFECT = """parameters { key: "slo_latency_ms" value { string_value: "50" } }
    dynamic_batching { preferred_batch_size: [ 2 ] }"""
GREEN, RED, YELLOW = (f"{ESCAPE}[1;{code}m" for code in (32, 31, 33))


@pytest.fixture
def models(tmp_path):
    """Three of them, names of different lengths; one is no model."""
    repository = Repository(tmp_path / "models")
    repository.onnx("a", plus(1))
    repository.onnx("much_longer", plus(2), version="12")
    repository.onnx("no", b"nothing")
    return repository


def bar(drawn, what, total):
    """The counts that a bar has shown; its last line is gone."""
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9]*[A-Z]", drawn) if what in line]
    assert all(len(line) <= WIDTH for line in lines)
    counts = [int(re.search(rf"\[[=> ]{{24}}\] (\d+)/{total}  \d+s", line)[1]) for line in lines]
    assert counts and counts[0] == 0 and counts == sorted(counts)
    # Cleared at the end.
    assert drawn.rstrip("\r\n").endswith(f"{ESCAPE}[2K") or drawn.endswith("\r")
    return lines


def test_simulate_shows_points_on_a_terminal():
    code, output, errors, drawn = run_on_terminal(*SIMULATE, stderr=True)
    assert (code, errors) == (0, None)
    bar(drawn, "simulating", 2)
    assert output.replace("\r", "") == run(*SIMULATE).stdout


def test_bake_shows_models_on_a_terminal(models, tmp_path):
    flags = ["bake", f"--weight-cache={tmp_path / 'cache'}", models]
    code, output, _, drawn = run_on_terminal(*flags, stderr=True)
    assert code == 1
    assert any("much_longer" in line for line in bar(drawn, "baking", 3))
    assert ESCAPE not in output
    assert [line.split()[0] for line in output.splitlines()][:2] == ["as", "as"]


@pytest.mark.parametrize("env", [{}, {"TERM": "dumb"}])
def test_nothing_is_drawn_for_programs(models, tmp_path, env):
    cache = f"--weight-cache={tmp_path / 'cache'}"
    dumb = [] if env else ["--json"]
    for command in (SIMULATE, ["bake", cache, models]):
        _, output, _, drawn = run_on_terminal(*command, *dumb, stderr=True, env=env)
        assert drawn == ""
        assert output
    for command in (SIMULATE, ["bake", cache, models]):
        outcome = run(*command)
        assert outcome.stderr == ""
        assert ESCAPE not in outcome.stdout


def test_log_lines_stand_beside_the_bar(models, tmp_path):
    """A warning begins a line of its own, whatever is drawn there."""
    models.config("much_longer", WITHOUT_EFFECT)
    _, _, _, drawn = run_on_terminal("bake", f"--weight-cache={tmp_path / 'cache'}", models, stderr=True)
    (warning,) = [line for line in re.split(r"[\r\n]", drawn) if "`dynamic_batching.preferred_batch_size`" in line]
    assert re.match(r"(\x1b\[[0-9]*[A-Z])*W\d{4} ", warning)


def test_the_best_policy_is_coloured():
    code, _, errors, drawn = run_on_terminal(*SIMULATE, stdout=True)
    assert (code, errors) == (0, "")
    assert drawn.count(GREEN) == 2
    (line,) = [line for line in drawn.splitlines() if line.lstrip().startswith("1.2 ")]
    load, rate, none, auto, bound = line.split()
    assert auto.startswith(GREEN) and none == "0.0"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn).replace("\r", "")
    assert plain == run(*SIMULATE).stdout


def test_findings_are_coloured(models):
    models.config("a", WITHOUT_EFFECT)
    coloured = run_on_terminal("check", "--config=none", models, stdout=True)
    assert f"{GREEN}ok    {ESCAPE}[0m  a" in coloured[3]
    assert f"{RED}error:{ESCAPE}[0m " in coloured[3]
    assert f"{YELLOW}warning:{ESCAPE}[0m " in coloured[3]
    plain = run("check", "--config=none", models).stdout
    assert "error: " in plain and ESCAPE not in plain
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert run_on_terminal("check", "--config=none", models, stdout=True, env=env)[3].replace("\r", "") == plain
    # Of an empty value the convention says that it is as if it were not there.
    assert ESCAPE in run_on_terminal("check", "--config=none", models, stdout=True, env={"NO_COLOR": ""})[3]


def test_an_error_is_coloured_where_it_is_read():
    assert run_on_terminal("plan", "/nowhere", stderr=True)[3].startswith(f"{RED}error:{ESCAPE}[0m ")
    assert run("plan", "/nowhere").stderr.startswith("error: ")


def test_columns_of_bake_are_aligned(models, tmp_path):
    lines = run("bake", f"--weight-cache={tmp_path / 'cache'}", models).stdout.splitlines()
    assert len({line.index("version") for line in lines[:2]}) == 1
    rows = json.loads(run("bake", "--json", f"--weight-cache={tmp_path / 'cache'}", models).stdout)
    reasons = [row["reason"] for row in rows]
    assert len({line.index(reason.splitlines()[0]) for line, reason in zip(lines[:2], reasons, strict=False)}) == 1
