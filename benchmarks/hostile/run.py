#!/usr/bin/env python3
"""What attacks cost a neighbour: `run.py SKEP_BINARY RESULTS [--only TEXT] [--seconds S] [--baseline]`.

The cases of `tests/hostile`. For each: another model of the same server is asked alone, then while the attack goes on
(again and again, where it leaves nothing behind), then alone once more. Written to the directory RESULTS: `raw.jsonl` with
every case, `README.md` with a table of the neighbour's p50 and p99. `--baseline` is for binaries that do not know the flags
of the suite. Needs the packages of `tests/requirements.txt`; `cargo xtask setup` has installed them into `target/venv`.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WANTED = 2
# The neighbour's pause between an answer and its next question: some hundred answers a second.
PAUSE_S = 0.001
# Of fewer answers than these a p99 says nothing.
ENOUGH = 50
# An attacker is elsewhere: what its client computes should not delay who is measured here.
NICE = 10


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--seconds", type=float, default=1.2, help="for how long each of the three is measured")
    parser.add_argument("--baseline", action="store_true", help="the binary does not know the flags of the suite")
    return parser.parse_args()


def alone(stage, seconds):
    stage.neighbour.report()
    time.sleep(seconds)
    return stage.neighbour.report()


def be_nice(level):
    # Only root may take it back, and a server that is started later would inherit it.
    if os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, level)


def under(stage, case, seconds):
    """The neighbour's report of the attack, how often it ran, and what went wrong."""
    stage.memory.begin()
    stage.neighbour.report()
    began = time.monotonic()
    times, failure = 0, None
    be_nice(NICE)
    while failure is None and (times == 0 or time.monotonic() - began < seconds):
        try:
            case.attack(stage)
        except Exception as error:  # noqa: BLE001: whatever an attack meets is its outcome.
            failure = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        times += 1
        if case.fresh or case.ends:
            break
    be_nice(0)
    took = time.monotonic() - began
    # One attack may be over before the neighbour has asked twice.
    time.sleep(max(0.0, min(seconds, 0.2) - took) if stage.alive() else 0)
    return stage.neighbour.report(), times, took, failure


def measure(stage, case, seconds):
    before = alone(stage, seconds)
    during, times, took, failure = under(stage, case, seconds)
    died = not stage.alive() and not case.ends
    after = alone(stage, seconds) if stage.alive() and failure is None else None
    return {
        "id": case.id, "kind": case.kind, "before": before, "during": during, "after": after, "times": times,
        "seconds": round(took, 3), "failure": failure, "died": died, "exit_code": stage.server.process.poll(),
        "growth_mib": stage.memory.growth() >> 20,
    }


def figure(row, quantile):
    """Alone (the mean of before and after), beside the attack, and their ratio."""
    sides = [side["answers"][quantile] for side in (row["before"], row["after"]) if side and side["answers"][quantile]]
    during = row["during"]["answers"][quantile]
    if not sides or not during:
        return None
    mean = sum(sides) / len(sides)
    return mean, during, during / mean


def line(row):
    cells = [f"`{row['id']}`"]
    for quantile in ("p50_us", "p99_us"):
        found = figure(row, quantile)
        cells += ["", "", ""] if found is None else [f"{found[0]:,.0f}", f"{found[1]:,.0f}", f"{found[2]:.2f}"]
    answers = row["during"]["answers"]
    cells += [str(answers["count"]), str(answers["refused"] or ""), "died" if row["died"] else (row["failure"] or "")[:80]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def commit():
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def readme(rows, options):
    counted = [row for row in rows if row["during"]["answers"]["count"] >= ENOUGH and not row["died"]]
    ratios = [found[2] for row in counted if (found := figure(row, "p99_us"))]
    within = sum(ratio <= WANTED for ratio in ratios)
    head = f"""# What attacks cost a neighbour

- command: `python3 benchmarks/hostile/run.py {' '.join(sys.argv[1:])}`
- date: {datetime.date.today()}
- commit: {commit()}; binary {options.binary}
- machine: {os.cpu_count()} cores, {platform.machine()}; Linux {platform.release()}

The neighbour is asked by one client over one connection, {PAUSE_S * 1000:.0f} ms after each answer; server, attacker and
neighbour's client share the cores; the attacker's threads have a lower priority ({NICE}) where the benchmark runs as root.
*Alone* is the mean of {options.seconds} s before and after the attack, *beside* while it goes on. Cases in which the attack was
not answered as it should be say so. `raw.jsonl` has every case, health's latencies too.

p99 within {WANTED} times: {within} of the {len(ratios)} cases with {ENOUGH} answers and more beside the attack.

| case | p50 alone us | beside | ratio | p99 alone us | beside | ratio | answers | refused | attack |
|---|---|---|---|---|---|---|---|---|---|
"""
    return head + "\n".join(line(row) for row in rows) + "\n"


def main():
    options = arguments()
    os.environ["SKEP_BINARY"] = str(options.binary.resolve())
    # Failures are rows of the table, and what hangs is given up soon.
    os.environ["HOSTILE_REPORT"] = os.devnull
    if options.baseline:
        os.environ["HOSTILE_BASELINE"] = "1"
    sys.path[:0] = [str(ROOT / "tests/hostile"), str(ROOT / "tests/wire")]
    import cases
    from stage import Stage

    options.results.mkdir(parents=True, exist_ok=True)
    rows, stage = [], None
    try:
        with open(options.results / "raw.jsonl", "w") as raw:
            for case in (case for case in cases.ALL if options.only in case.id):
                if stage is None or stage.setup is not case.setup or case.fresh or not stage.alive():
                    if stage is not None:
                        stage.__exit__()
                    stage = Stage(case.setup, PAUSE_S).__enter__()
                row = measure(stage, case, options.seconds)
                rows.append(row)
                raw.write(json.dumps(row) + "\n")
                raw.flush()
                print(line(row), flush=True)
                if case.fresh or case.ends or row["failure"]:
                    stage.__exit__()
                    stage = None
    finally:
        if stage is not None:
            stage.__exit__()
    (options.results / "README.md").write_text(readme(rows, options))


if __name__ == "__main__":
    main()
