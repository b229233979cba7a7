"""Play faults and write down what came of them: ``PYTHONPATH=tests python -m faults --out FILE.jsonl``."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from faults import long_run, on_disks, on_launchers, on_ranks, on_two_hosts, tally
from faults.scenario import Scenario, why_not
from faults.stage import Row, Stage
from paths import ROOT

SCENARIOS: dict[str, Scenario] = {
    **on_ranks.SCENARIOS,
    **on_launchers.SCENARIOS,
    **on_disks.SCENARIOS,
    **on_two_hosts.SCENARIOS,
    **long_run.SCENARIOS,
}
OWN = "MHS_FAULTS_OWN_MOUNTS"


def play(name: str, seed: int, references: Path, logs: Path | None = None) -> list[Row]:
    """A scenario's rows; one that says why where it cannot be played or breaks. Its runs' output goes to ``logs``."""
    scenario = SCENARIOS[name]
    reasons = [reason for need in scenario.needs if (reason := why_not(need))]
    about = {"scenario": name, "fault": scenario.fault, "group": scenario.group}
    if reasons:
        return [{**about, "seed": seed, "skipped": reasons[0]}]
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        try:
            rows = scenario.play(Stage(Path(folder), references, seed))
        except Exception:
            rows = [{"seed": seed, "broken": traceback.format_exc()[-3000:], "problems": ["the scenario broke"]}]
        if logs is not None:
            for log in Path(folder).glob("log_*"):
                shutil.copyfile(log, logs / f"{name}_{seed}_{log.name}")
    took_s = round(time.monotonic() - began_s, 1)
    return [{**about, **row, "scenario_s": took_s, "commit": commit()} for row in rows]


def in_own_mounts() -> None:
    """Start over in a mount namespace of its own, so that small disks vanish whatever happens."""
    if OWN not in os.environ and why_not("mounts") is None:
        os.environ[OWN] = "1"
        again = ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "faults", *sys.argv[1:]]
        os.execvp(again[0], again)


@cache
def commit() -> str:
    """What is played: the commit at the start, since the scenarios have been imported then."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def head_line() -> Row:
    """Where and with what the rows were made."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }


def say(row: Row) -> None:
    """One line for the terminal."""
    text = row.get("skipped") or "; ".join(row["problems"]) or "as it should be"
    gone = f" gone after {row['gone_s']} s" if row.get("gone_s") is not None else ""
    print(f"{row['scenario']} {row['seed']} ({row.get('moment', '')}){gone}: {text}", flush=True)
    if "broken" in row:
        print(row["broken"], flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(SCENARIOS), help="these alone")
    parser.add_argument("--leave-out", nargs="+", metavar="NAME", default=[], help="all but these")
    parser.add_argument("--seeds", type=int, help="times that each is played; default: its own number")
    parser.add_argument("--out", type=Path, help="raw data, a JSON object a line; rows of other scenarios are kept")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the runs print, a file for each")
    parser.add_argument("--tally", type=Path, help="write the tables to this document, from --out")
    options = parser.parse_args(argv)
    in_own_mounts()
    commit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every finally
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fault_references_") as references:
        for name in options.only or SCENARIOS:
            if name in options.leave_out:
                continue
            new: list[Row] = []
            for seed in range(options.seeds or SCENARIOS[name].seeds):
                played = play(name, seed, Path(references), options.logs)
                for row in played:
                    say(row)
                new += played
            rows += new
            if options.out:
                tally.merge(options.out, head_line(), name, new)
    if options.tally:
        tally.write(options.tally, options.out)
    return int(any(row.get("problems") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
