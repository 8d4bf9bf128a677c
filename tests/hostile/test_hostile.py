"""Every case of the list against a server that serves somebody else meanwhile.

`HOSTILE_REPORT=FILE` writes what each case did, a JSON object a line, in place of failing; `HOSTILE_BASELINE=1` says
that the binary is one from before the bounds existed, which does not know their flags.
"""

import json

import pytest

import cases
from case import play
from stage import REPORT


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.id)
def test_hostile(case, stages):
    stage = stages.of(case)
    outcome = play(stage, case)
    if case.fresh or case.ends or outcome.failures:
        # What it left behind is no later case's.
        log = stage.server.log
        stages.close()
    if REPORT:
        said = "\n".join(line[:300] for line in log.splitlines()[-5:]) if outcome.failures else ""
        with open(REPORT, "a") as report:
            report.write(json.dumps({"kind": case.kind, **outcome.json(), "log": said}) + "\n")
        return
    if outcome.failures:
        told = "\n".join(outcome.failures)
        pytest.fail(f"{case.what}\n{told}\nthe attacker was told: {outcome.said}\n{outcome}", pytrace=False)


def test_every_case_says_what_88f05dd_did():
    assert {case.id for case in cases.ALL} == set(cases.ON_88F05DD)


def test_there_are_as_many_cases_as_promised():
    assert len(cases.ALL) == len({case.id for case in cases.ALL}) >= 60
