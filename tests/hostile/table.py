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

STALL_S = 0.3
HANG_S = 5


def of_signal(code):
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def seconds(found):
    return (found["max_us"] or 0) / 1e6


def told(row, ends):
    """One row of a report in a few words."""
    parts = []
    attack = next((text for text in row["failures"] if text.startswith("attack: ")), "").removeprefix("attack: ")
    if row["ended_by_test_mib"]:
        return f"grew until the test ended it at {row['ended_by_test_mib']} MiB"
    if row["exit_code"] is not None and not ends:
        return of_signal(row["exit_code"])
    if "TimeoutError" in attack or "no answer" in attack or "not after" in attack or "still running" in attack:
        parts.append("hung: " + ("no answer" if "not after" not in attack else attack.split("s: ", 1)[1].split("\n")[0] + ": never"))
    elif attack:
        parts.append(attack.removeprefix("AssertionError: ").split("\n")[0][:110])
    if (waited := seconds(row["answers"])) >= HANG_S:
        parts.append("the neighbour had no answer")
    elif max(waited, seconds(row["health"])) >= STALL_S:
        parts.append(f"stalled for {max(waited, seconds(row['health'])):.1f} s")
    if any("memory grew" in text for text in row["failures"]):
        parts.append(f"grew by {row['growth_mib']} MiB")
    if any("still there" in text for text in row["failures"]):
        parts.append(f"{row['left_mib']} MiB stayed")
    if not parts:
        return "all right"
    return "; ".join(parts)


def from_report(path):
    ends = {case.id: case.ends for case in cases.ALL}
    rows = (json.loads(line) for line in Path(path).read_text().splitlines())
    found = {row["id"]: told(row, ends.get(row["id"], False)) for row in rows}
    print('"""What the server did on 88f05dd, case by case: measured with `HOSTILE_REPORT`, on two cores with 24 GiB."""\n')
    print(f"ON_88F05DD = {pprint.pformat(found, width=118, sort_dicts=False)}")


def main():
    if len(sys.argv) > 1:
        return from_report(sys.argv[1])
    print(f"{len(cases.ALL)} cases.")
    kinds = dict.fromkeys(case.kind for case in cases.ALL)
    for kind in kinds:
        print(f"\n## {kind.capitalize()}\n\n| case | the attack | may grow by | on 88f05dd |\n|---|---|---|---|")
        for case in cases.ALL:
            if case.kind == kind:
                before = cases.ON_88F05DD.get(case.id, "not measured").replace("|", "\\|")
                print(f"| `{case.id}` | {case.what.replace('|', chr(92) + '|')} | {case.peak_mib} MiB | {before} |")
    return None


if __name__ == "__main__":
    main()
