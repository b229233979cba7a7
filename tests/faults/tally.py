"""The tables of docs/reliability.md, made from the raw data of the faults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paths import ROOT

Row = dict[str, Any]
DAMAGE = ROOT / "docs" / "results" / "checkpoint_damage.jsonl"
HEADINGS = (
    "fault", "injected", "silent", "hangs", "exit status 0", "steps lost", "cause not on the last lines",
    "resumed equal", "gone after (s)",
)  # fmt: skip
INTRODUCTION = """\
# Reliability: what faults do to a run

Each fault is injected into a tiny run (two ranks, one loader process each, started by a launcher as users do), and
the run is watched until no process of it is left. Then it is resumed, and its end is held against the same run
without a fault. `make faults` plays all of them, writes `docs/results/faults.jsonl` and makes this page;
`tests/faults/` defines them. **A figure other than the wished one is a defect that is known**; the list below the
tables says which. Everything ran on CPUs with gloo; what NCCL does between GPUs was not yet run.

How to read the tables:

- *injected*: how often the fault was made to happen, at moments drawn from a seed.
- *silent*: nothing in the whole output names the fault, though the run was lost or its result is wrong. Wished: 0.
- *hangs*: a process was left 30 s after the fault (after the time limit of a collective where only that can notice
  it). Wished: 0.
- *exit status 0*: the launcher reported success for a run that had not finished. Wished: 0.
- *steps lost*: steps that a due checkpoint had kept, and that the resumed run took again. Wished: 0.
- *cause not on the last lines*: the fault is not named in the last 20 lines that the run printed. Wished: 0.
- *resumed equal*: runs that, gone on with, ended with weights, centres, counts of updates and logged losses equal to
  the uninterrupted run's, bit for bit; of those for which that is defined. For faults that a run survives: equal
  without resuming.
- *gone after*: seconds from the fault until all processes were gone, median and longest, of runs that end; it
  includes the launchers' own grace of up to 30 s.
"""


def read(path: Path) -> tuple[Row, list[Row]]:
    """The line about the machine, and the rows; empty where there is no file yet."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return (lines[0], lines[1:]) if lines else ({}, [])


def merge(path: Path, head: Row, name: str, rows: Sequence[Row]) -> None:
    """Put the rows of one scenario in place of its earlier ones."""
    _, before = read(path)
    kept = [row for row in before if row["scenario"] != name]
    path.write_text("".join(json.dumps(row) + "\n" for row in [head, *kept, *rows]))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of the document."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def line_of(fault: str, rows: Sequence[Row]) -> list[object]:
    """One fault's line."""
    played = [row for row in rows if "skipped" not in row and "broken" not in row]
    if not played:
        why = rows[0].get("skipped") or "the scenario broke"
        return [fault, f"0 ({why})", *["-"] * (len(HEADINGS) - 2)]
    lost = [row["lost_steps"] for row in played if row.get("lost_steps") is not None]
    equal = [row["equal"] for row in played if row.get("equal") is not None]
    ends = [row for row in played if row["expect"] in ("ends", "refused", "stops")]
    gone = sorted(row["gone_s"] for row in ends if row["gone_s"] is not None)
    return [
        fault,
        len(played),
        sum(row["silent"] for row in played),
        sum(row["hung"] for row in played),
        sum(row["status"] == 0 for row in ends) if ends else "-",
        sum(lost) if lost else "-",
        sum(not row["said_last"] for row in played),
        f"{sum(equal)} of {len(equal)}" if equal else "-",
        f"{gone[len(gone) // 2]:.1f}, {gone[-1]:.1f}" if gone else "-",
    ]


def by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """Rows by a value, in the order in which the values come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def long_runs(rows: Sequence[Row]) -> str:
    """The table of a long run's processes."""
    headings = (
        "process", "samples", "own memory at the end (MiB)", "KiB more in 1,000 steps, up to step 1,500",
        "from then on", "RSS, from then on", "file handles", "more in 1,000 steps", "threads", "processes of the run",
    )  # fmt: skip

    def span(values: Sequence[int]) -> str:
        return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"

    def growth(row: Row, name: str) -> str:
        return f"{row[f'{name}_per_1000']:.1f} ± {row[f'{name}_per_1000_error']:.1f}"

    return table(
        headings,
        (
            [
                row["moment"], row["samples"], f"{row['own_kib'] / 1024:.0f}",
                f"{row['own_kib_per_1000_before']:.0f}", growth(row, "own_kib"), growth(row, "rss_kib"),
                span(row["handles"]), growth(row, "handles"), span(row["threads"]), span(row["processes"]),
            ]
            for row in rows
        ),
    )  # fmt: skip


def damaged_checkpoints() -> str:
    """The table of damages to checkpoint files, where they were made."""
    if not DAMAGE.exists():
        return "Not yet run.\n"
    rows = [json.loads(line) for line in DAMAGE.read_text().splitlines()]
    rows = [row for row in rows if "outcome" in row]
    outcomes = sorted({row["outcome"] for row in rows})
    lines = [
        [kind, len(found), *(sum(row["outcome"] == outcome for row in found) for outcome in outcomes)]
        for kind, found in by(rows, "kind").items()
    ]
    total = ["all", len(rows), *(sum(row["outcome"] == outcome for row in rows) for outcome in outcomes)]
    return table(("damage", "made", *outcomes), [*lines, total])


def problems(rows: Sequence[Row]) -> list[str]:
    """A line for each kind of thing that was not as wished."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for problem in row.get("problems", ()):
            found.setdefault(f"{row['fault']}: {' '.join(str(problem).split())[:300]}", []).append(str(row["seed"]))
    return [f"- {text}" + (f" ({len(seeds)} times)" if len(seeds) > 1 else "") for text, seeds in found.items()]


def document(head: Row, rows: Sequence[Row]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    faults = [row for row in rows if row["group"] != "Long runs"]
    for group, members in by(faults, "group").items():
        parts += [f"## {group}\n", table(HEADINGS, (line_of(*item) for item in by(members, "fault").items()))]
    wrong = problems(rows)
    parts += ["## What is not as wished\n", "\n".join(wrong) + "\n" if wrong else "Nothing.\n"]
    parts += [
        "## Damaged checkpoints\n",
        "A file of a checkpoint of two ranks, or two swapped ones, are damaged at places drawn from a seed; then "
        "network and heads are read as a resumed run reads them (`docs/results/checkpoint_damage.jsonl`). *A file "
        "named*: the error is one line with a file and the reason, and the checkpoint before is found to be sound.\n",
        damaged_checkpoints(),
    ]
    long = [row for row in rows if row["group"] == "Long runs" and "samples" in row]
    parts += [
        "## Long runs\n",
        "3,000 steps of the tiny recipe with 30 epochs and a checkpoint after each, sampled from step 500 on. Own "
        "memory is what no other process shares (`Private_Dirty`); at first it grows as pages that fork has shared "
        "are written for the first time. Whether what remains of the growth ends, 3,000 steps cannot tell. Growth is "
        "a least-squares fit ± its standard error. Batches on their way hold file handles, so that their number "
        "is never quite constant; only its growth would be a leak.\n",
        long_runs(long) if long else "Not yet run.\n",
    ]
    if head:
        commits = ", ".join(by([row for row in rows if "commit" in row], "commit"))
        parts.append(
            f"Last played on {head['date']} with Python {head['python']}, torch {head['torch']}, {head['cores']} "
            f"cores; the rows are of commits {commits}.\n"
        )
    return "\n".join(parts)


def write(path: Path, data: Path) -> None:
    """Make the document from the raw data."""
    path.write_text(document(*read(data)))
