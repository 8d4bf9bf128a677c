"""What a case is, and how one is played: an attack on a stage, and everything that must hold during and after it."""

import contextlib
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import Callable

from process import MIB
from stage import ALLOWANCE, RETURN_S, Setup, family_bytes


@dataclass(frozen=True)
class Case:
    """`attack` gets the stage, and returns what the attacker was told; what must hold beside the rest it asserts."""

    id: str
    kind: str
    # What the attacker does, for the list.
    what: str
    setup: Setup
    attack: Callable
    # What the server and its processes may take above what they had, in MiB.
    peak_mib: int = 160
    # Whether the neighbour may be refused (429 or 503) meanwhile: the attacker fills a bound that all share.
    refusals: bool = False
    # Whether it needs a server of its own, since it leaves something behind.
    fresh: bool = False
    # Whether it stops the server; the attack itself asserts how.
    ends: bool = False
    # Whether memory is compared: not where the attack itself adds a model that stays.
    comes_back: bool = True


@dataclass
class Outcome:
    """What a case did to the server."""

    id: str
    said: str = ""
    failures: list = field(default_factory=list)
    exit_code: int | None = None
    ended_by_test_mib: int | None = None
    first_mib: int = 0
    growth_mib: int = 0
    left_mib: int = 0
    seconds: float = 0
    answers: dict = field(default_factory=dict)
    health: dict = field(default_factory=dict)

    def json(self):
        return asdict(self)


def play(stage, case):
    """Attacks, and looks at everything; never fails, `Outcome.failures` says what did not hold."""
    outcome = Outcome(case.id)
    first = stage.memory.begin()
    stage.neighbour.report()
    began = time.monotonic()
    try:
        outcome.said = str(case.attack(stage))[:500]
    except Exception as error:  # noqa: BLE001: whatever an attack meets is its outcome.
        outcome.failures.append(f"attack: {type(error).__name__}: {error}"[:1500])
    outcome.seconds = round(time.monotonic() - began, 2)
    if not case.ends and stage.alive():
        # An attack may be over before anybody was asked.
        stage.neighbour.tell("look")
        after(stage, case, outcome, first)
    seen = stage.neighbour.report()
    outcome.answers, outcome.health = seen["answers"], seen["health"]
    outcome.first_mib = first // MIB
    outcome.growth_mib = stage.memory.growth() // MIB
    if outcome.failures:
        # Clients may learn of the server's end before its parent does.
        with contextlib.suppress(subprocess.TimeoutExpired):
            stage.server.process.wait(1)
    outcome.exit_code = stage.server.process.poll()
    if stage.memory.ended_for:
        outcome.ended_by_test_mib = stage.memory.ended_for // MIB
    judge(case, outcome)
    return outcome


def after(stage, case, outcome, first):
    """What holds again once the attack is over."""
    try:
        if case.refusals:
            # What the attacker held is free as soon as the server has seen that it is gone.
            stage.wait(lambda: stage.asked() == 200, "the neighbour is served again")
        stage.healthy()
    except Exception as error:  # noqa: BLE001: as above.
        outcome.failures.append(f"afterwards: {type(error).__name__}: {error}"[:1500])
    # A server that is asked nothing has time to give memory back.
    stage.neighbour.tell("pause")
    allowed = first + first // 10 + ALLOWANCE
    try:
        stage.wait(lambda: family_bytes(stage.pid) <= allowed, "memory is back", RETURN_S)
    except AssertionError:
        outcome.left_mib = (family_bytes(stage.pid) - first) // MIB
        if case.comes_back and stage.alive():
            outcome.failures.append(f"{outcome.left_mib} MiB above the {first // MIB} MiB before are still there")
    stage.neighbour.tell("resume")


def judge(case, outcome):
    """What must hold of every case."""
    if outcome.ended_by_test_mib:
        outcome.failures.append(f"the test ended the server, which took {outcome.ended_by_test_mib} MiB")
    if case.ends:
        if outcome.answers["wrongs"]:
            outcome.failures.append(f"the neighbour's answers: {outcome.answers['wrong']}")
        return
    if outcome.exit_code is not None:
        outcome.failures.append(f"the server ended with {outcome.exit_code}")
    if outcome.growth_mib > case.peak_mib:
        outcome.failures.append(f"memory grew by {outcome.growth_mib} MiB, more than {case.peak_mib}")
    for name, seen in (("the neighbour's answers", outcome.answers), ("health", outcome.health)):
        if seen["wrongs"] or seen["brokens"]:
            outcome.failures.append(f"{name}: {seen['wrongs']} wrong {seen['wrong']}, {seen['brokens']} none {seen['broken']}")
    if outcome.answers["refused"] and not case.refusals:
        outcome.failures.append(f"the neighbour was refused {outcome.answers['refused']} times")
    if not outcome.health["right"]:
        outcome.failures.append("health was never answered")
    if not outcome.answers["right"] and not case.refusals:
        outcome.failures.append("the neighbour had no answer while the attack lasted")
