"""Tests and tables of a GPU in one command: ``python -m benchmarks.gpu --out DIR``; see docs/gpu.md.

It needs torch 2.6 or newer, no network, and no file beside this repository. Leaves DIR/gpu.json and DIR/gpu.md,
rewritten after every row, so that a run that is ended early has left what it found.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.page import make_page
from benchmarks.gpu.rows import TABLES, Row, all_rows, chosen, quick_rows
from benchmarks.gpu.suite import run_suite
from benchmarks.gpu.training import known_settings
from benchmarks.gpu.worker import Worker, scratch_folder
from benchmarks.machine import usable_cores
from utils.atomic import temporary_name
from utils.text import complain

TESTS_SHARE = 0.4  # of the time, that tests may take
LEAST_S = 20.0  # that a row which fitted is given: a process that starts anew needs some of them
_DEVICE = re.compile(r"cpu|cuda(:(?P<index>\d+))?")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="folder for gpu.json and gpu.md, made if missing")
    p.add_argument("--minutes", type=float, default=8.0, help="for all together; rows that do not fit are left out")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"tables ({', '.join(TABLES)}) or names")
    p.add_argument("--skip-tests", action="store_true", help="tables alone")
    p.add_argument("--skip-tables", action="store_true", help="tests alone")
    p.add_argument("--device", default="cuda", help="cuda (default), cuda:N, or cpu with --quick")
    p.add_argument("--quick", action="store_true", help="tiny sizes, to see whether everything works")
    p.add_argument("--list", action="store_true", help="print the rows in their order and end")
    return p.parse_args(argv)


class Call:
    """One call of the command: what it has found so far, and its files."""

    def __init__(self, options: argparse.Namespace, rows: Sequence[Row]) -> None:
        self.options, self.rows = options, list(rows)
        self.begin_s = time.monotonic()
        self.budget_s = float(options.minutes * 60)
        self.found: dict[str, Any] = {
            "is_gpu": options.device != "cpu",
            "command": shlex.join(["python", "-m", "benchmarks.gpu", *options.argv]),
            "budget_s": self.budget_s,
            "took_s": 0.0,
            "rows": [],
            "left_out": [],
        }

    @property
    def left_s(self) -> float:
        """Of the time."""
        return self.budget_s - (time.monotonic() - self.begin_s)

    def keep(self) -> None:
        """Write both files anew."""
        self.found["took_s"] = time.monotonic() - self.begin_s
        for name, text in (("gpu.json", json.dumps(self.found, indent=1)), ("gpu.md", make_page(self.found))):
            path = self.options.out / name
            temporary = temporary_name(path)
            temporary.write_text(text)
            temporary.replace(path)

    def run_tests(self) -> None:
        """The tests marked ``gpu``."""
        limit_s = max(60.0, self.left_s * TESTS_SHARE)
        tell(f"tests, at most {limit_s:.0f} s")
        try:
            self.found["suite"] = run_suite(limit_s, tell)
        except OSError as error:
            self.found["suite"] = {
                "counts": {"ERROR": 1},
                "tests": {"all": f"ERROR {error}"},
                "files": {},
                "took_s": 0.0,
            }
        self.keep()

    def run_tables(self) -> None:
        """The rows that fit, in their order."""
        with scratch_folder() as folder:
            worker = Worker(self.options.device, Path(folder))
            try:
                self.found["facts"] = worker.ask("facts", {}, 120)
                self.keep()
                for row in self.rows:
                    self._run_row(worker, row)
            finally:
                worker.close()

    def _run_row(self, worker: Worker, row: Row) -> None:
        if self.left_s < row.estimate_s:
            why = f"about {row.estimate_s:.0f} s, {max(self.left_s, 0.0):.0f} s were left"
            self.found["left_out"].append({"name": row.name, "table": row.table, "left_out": why})
            return
        begin_s = time.monotonic()
        limit_s = min(row.limit_s, max(self.left_s, LEAST_S))
        answer = worker.ask(row.kind, row.case, limit_s)
        took_s = time.monotonic() - begin_s
        record = {**answer, "table": row.table, "kind": row.kind, "name": row.name, "row_s": took_s}
        if record.pop("is_late", False) and limit_s < row.limit_s:  # no fault of the row's
            del record["error"]
            record["left_out"] = f"cut after {took_s:.0f} s: the time was over"
        self.found["left_out" if "left_out" in record else "rows"].append(record)
        tell(f"{row.name}: {_in_short(record)} ({took_s:.0f} s)")
        self.keep()


def _in_short(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"FAILED, {record['error'].splitlines()[0]}"
    if "left_out" in record:
        return f"left out, {record['left_out']}"
    keys = ("images_per_s", "step_ms", "classifier_share", "waits_per_step", "bf16_tflop_per_s", "planned_device_mib")
    return ", ".join(f"{key} {record[key]:.4g}" for key in keys if key in record)


def tell(text: str) -> None:
    """A line for whoever waits."""
    print(text, flush=True)


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for arguments that this machine, or anyone, cannot follow; --list needs no GPU."""
    device, count = options.device, torch.cuda.device_count()
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise ValueError(f"--device must be cuda, cuda:N or cpu, got {device}")
    if options.skip_tests and options.skip_tables:
        raise ValueError("--skip-tests and --skip-tables together leave nothing to do: give one of them")
    if not 0 < options.minutes < math.inf:
        raise ValueError(f"--minutes must be a number above 0, got {options.minutes:g}")
    if options.list:
        return
    if options.out is None:
        raise ValueError("--out is missing: give a folder for gpu.json and gpu.md, or --list to see the rows alone")
    if device == "cpu":
        if not options.quick:
            raise ValueError("--device cpu needs --quick: on a CPU it only shows whether everything works")
    elif not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here; --device cpu --quick walks every path without one")
    elif int(match["index"] or 0) >= count:
        known = ", ".join(f"cuda:{index}" for index in range(count))
        raise ValueError(f"--device {device} is not among those that torch sees: {known}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"--out must be a folder, and a file is in its place, got {out}: give another, it is made if missing"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, 1 if a test or a row failed, 2 for what the user can fix."""
    options = parse(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _check(options)
        rows = quick_rows() if options.quick else all_rows(usable_cores(), known_settings())
        rows = chosen(rows, options.only)
        if options.list:
            print("\n".join(f"{row.estimate_s:4.0f} s  {row.name}" for row in rows))
            return 0
        _make_folder(options.out)
        call = Call(options, rows)
        call.keep()
    except (ValueError, OSError) as error:
        complain("benchmarks.gpu", error)
        return 2
    if not options.skip_tests:
        call.run_tests()
    if not options.skip_tables:
        call.run_tables()
    call.keep()
    failed = [row["name"] for row in call.found["rows"] if "error" in row]
    suite = call.found.get("suite", {"tests": {}})
    failed += [name for name, verdict in suite["tests"].items() if verdict.startswith(("FAILED", "ERROR"))]
    tell(f"{options.out / 'gpu.md'} and {options.out / 'gpu.json'}, {call.found['took_s']:.0f} s")
    for name in failed:
        tell(f"FAILED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
