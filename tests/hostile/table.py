#!/usr/bin/env python3
"""The list of cases as Markdown: `table.py`. With `table.py REPORT`, what a baseline did, for `on_88f05dd.py`."""

import json
import os
import pprint
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "wire")]

# The list needs no server; the modules do look whether there is one.
os.environ.setdefault("SKEP_BINARY", "/bin/true")

import cases  # noqa: E402

STALL_S = 0.5
HANG_S = 5
LONGEST = 100


def of_signal(code):
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def seconds(found):
    return (found["max_us"] or 0) / 1e6


def said(attack):
    """What an attack's failure says of the server."""
    text = attack.removeprefix("AssertionError: ").split("\n")[0]
    if "panicked" in attack:
        return "a panic"
    if text.startswith(("served with 200", "(200, ")) or text == "a success":
        return "served all the same"
    if "still running" in text:
        return "did not stop"
    if text.startswith("not after "):
        return f"never: {text.split(' s: ', 1)[1]}"
    if "TimeoutError" in text or "no answer" in text:
        return f"no answer within {HANG_S} s"
    return text[:LONGEST]


def told(row, ends):
    """One row of a report in a few words."""
    attack = next((text for text in row["failures"] if text.startswith("attack: ")), "").removeprefix("attack: ")
    if row["ended_by_test_mib"]:
        return f"grew until the test ended it, at {row['ended_by_test_mib']} MiB"
    if row["exit_code"] is not None and not ends:
        return of_signal(row["exit_code"])
    parts = [said(attack)] if attack else []
    waited = seconds(row["answers"])
    if waited >= HANG_S:
        parts.append("the neighbour had no answer")
    elif max(waited, seconds(row["health"])) >= STALL_S:
        parts.append(f"stalled for {max(waited, seconds(row['health'])):.1f} s")
    if any("memory grew" in text for text in row["failures"]):
        parts.append(f"grew by {row['growth_mib']} MiB")
    if any("still there" in text for text in row["failures"]):
        parts.append(f"{row['left_mib']} MiB stayed")
    return "; ".join(parts) or "all right"


def from_report(path):
    ends = {case.id: case.ends for case in cases.ALL}
    rows = (json.loads(line) for line in Path(path).read_text().splitlines())
    found = {row["id"]: told(row, ends.get(row["id"], False)) for row in rows}
    print('"""What the server did on 88f05dd, case by case: measured with `HOSTILE_REPORT`, on two shared cores, 24 GiB."""\n')
    print("ON_88F05DD = {")
    for case in cases.ALL:
        print(f"    {json.dumps(case.id)}: {json.dumps(found.get(case.id, 'not measured'))},")
    print("}")


def main():
    # `table.py | head` ends quietly.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if len(sys.argv) > 1:
        return from_report(sys.argv[1])
    print(f"{len(cases.ALL)} cases.")
    kinds = dict.fromkeys(case.kind for case in cases.ALL)
    for kind in kinds:
        print(f"\n## {kind.capitalize()}\n\n| case | the attack | may grow by | on 88f05dd |\n|---|---|---|---|")
        for case in cases.ALL:
            if case.kind == kind:
                before = cases.ON_88F05DD.get(case.id, "not measured").replace("|", "\\|")
                what = case.what.replace("|", "\\|")
                print(f"| `{case.id}` | {what} | {case.peak_mib} MiB | {before} |")
    return None


if __name__ == "__main__":
    main()
