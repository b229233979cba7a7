"""What checkpoints of the classifier cost: beside plain files, beside training, and by torch.distributed.checkpoint.

python benchmarks/bench_checkpoint.py --quick
python benchmarks/bench_checkpoint.py --folder FOLDER --out docs/results/checkpoint.jsonl
python benchmarks/bench_checkpoint.py --read docs/results/checkpoint.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import checkpoint_case
from benchmarks.checkpoint_case import CheckpointCase
from benchmarks.classifier_case import STORAGES, Record
from benchmarks.records import read_records, write_records

MEMORY_FACTOR = 5  # the same in memory: heads, what is loaded, and DCP's copies
DISK_FACTOR = 6  # most bytes on disk at once, in units of the visited rows: heads, checkpoints, their copies


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the tables, write the file; the exit status."""
    args = _parse(argv)
    try:
        if args.read is not None:
            records = read_records(args.read)
        else:
            args.folder.mkdir(parents=True, exist_ok=True)
            records = measure_all(cases_of(args), range(args.first_round, args.first_round + args.rounds), args.out)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bench_checkpoint: error: {error}", file=sys.stderr)
        return 2
    for title, columns in TABLES.items():
        print(f"\n{title}\n{table(records, columns)}")
    return 0


def cases_of(args: argparse.Namespace) -> list[CheckpointCase]:
    """The configurations that the command line asks for.

    Raises:
        OSError: there is too little room for one.
    """
    cases = []
    for momentum in args.row_momentum:
        for storage in args.storage:
            case = CheckpointCase(
                storage,
                int(args.classes),
                momentum,
                args.share,
                args.head_size,
                args.batch,
                args.dim,
                args.steps,
                str(args.folder),
                args.quiet_steps,
                args.threads,
            )
            check_room(case, args.ram_share)
            cases.append(case)
    return cases


def check_room(case: CheckpointCase, ram_share: float) -> None:
    """OSError if the disk or the machine's memory has too little room for a case."""
    free = shutil.disk_usage(case.folder).free
    memory = ram_share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for need, room, what in (
        (DISK_FACTOR * case.row_bytes, free, "free on the disk: lower --share, or choose another --folder"),
        (MEMORY_FACTOR * case.row_bytes, memory, f"in {ram_share:.0%} of memory: lower --share"),
    ):
        if need > room:
            raise OSError(f"{case}: takes up to {need / 1e9:.1f} GB; there are {room / 1e9:.1f} GB {what}")


def measure_all(cases: Sequence[CheckpointCase], rounds: range, out: Path | None) -> list[Record]:
    """Rounds over all configurations, each in a new process; a record for each of both.

    Raises:
        RuntimeError: a process failed.
    """
    records: list[Record] = []
    for number in rounds:
        for case in cases:
            text = json.dumps(asdict(replace(case, dcp_first=bool(number % 2))))
            done = subprocess.run(
                [sys.executable, checkpoint_case.__file__, text], stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{case}: exit code {done.returncode}")
            records.append({"round": number, **json.loads(done.stdout.splitlines()[-1])})
            print(f"round {number + 1}: {case}: saved in {records[-1]['full_save_s']:.1f} s", flush=True)
            if out is not None:
                write_records(out, records)
    return records


Ratio = Callable[[Record], float]


def _median(r: Record, key: str) -> float:
    return float(np.median(r[key]))


def _gb_per_s(seconds: str, size: str) -> Ratio:
    return lambda r: float(r[size]) / 1e9 / _median(r, seconds)


def _share(of: str, to: str) -> Ratio:
    return lambda r: _median(r, of) / _median(r, to)


def _crc_s(r: Record) -> float:
    return float(r["full_bytes"]) / 1e9 / _median(r, "crc32_gb_per_s")


TABLES: dict[str, dict[str, Ratio]] = {
    "a full checkpoint, nothing beside it (x: times of the plain write or read of as many bytes)": {
        "GB": lambda r: r["full_bytes"] / 1e9,
        "save s": lambda r: _median(r, "full_save_s"),
        "CPU s": lambda r: _median(r, "full_save_cpu_s"),
        "GB/s": _gb_per_s("full_save_s", "full_bytes"),
        "plain GB/s": _gb_per_s("plain_write_s", "row_bytes"),
        "save x": _share("full_save_s", "plain_write_s"),
        "load s": lambda r: _median(r, "load_s"),
        "load GB/s": _gb_per_s("load_s", "full_bytes"),
        "plain read GB/s": _gb_per_s("plain_read_s", "row_bytes"),
        "load x": _share("load_s", "plain_read_s"),
        "CRC-32 GB/s": lambda r: _median(r, "crc32_gb_per_s"),
        "CRC share of save": lambda r: _crc_s(r) / _median(r, "full_save_s"),
    },
    "an incremental checkpoint some steps later": {
        "steps": lambda r: r["steps"],
        "GB": lambda r: r["incremental_bytes"] / 1e9,
        "of full": _share("incremental_bytes", "full_bytes"),
        "save s": lambda r: _median(r, "incremental_save_s"),
        "of full save": _share("incremental_save_s", "full_save_s"),
        "both on disk GB": lambda r: r["both_disk_bytes"] / 1e9,
        "of two full": lambda r: r["both_disk_bytes"] / r["full_disk_bytes"] / 2,
    },
    "a full save during training (held: begin and finish, in steps; x: times of a quiet step), and a plain write": {
        "step ms": lambda r: _median(r, "quiet_step_ms"),
        "begin ms": lambda r: _median(r, "begin_ms"),
        "finish ms": lambda r: _median(r, "finish_ms"),
        "held": lambda r: _median(r, "held_steps"),
        "written in s": lambda r: _median(r, "during_s"),
        "step x": _share("busy_step_ms", "quiet_step_ms"),
        "CPU x": _share("busy_cpu_ms", "quiet_cpu_ms"),
        "longest": _share("busy_longest_ms", "quiet_step_ms"),
        "plain write s": lambda r: _median(r, "plain_during_s"),
        "its step x": _share("plain_step_ms", "quiet_step_ms"),
        "its CPU x": _share("plain_cpu_ms", "quiet_cpu_ms"),
        "its longest": _share("plain_longest_ms", "quiet_step_ms"),
    },
    "torch.distributed.checkpoint, the same rows (x: times of this project's)": {
        "GB": lambda r: r["dcp_bytes"] / 1e9,
        "copy s": lambda r: _median(r, "copy_s"),
        "save s": lambda r: _median(r, "dcp_save_s"),
        "save x": _share("dcp_save_s", "full_save_s"),
        "save CPU x": _share("dcp_save_cpu_s", "full_save_cpu_s"),
        "load s": lambda r: _median(r, "dcp_load_s"),
        "load x": _share("dcp_load_s", "load_s"),
    },
}


def table(records: Sequence[Record], columns: dict[str, Ratio]) -> PrettyTable:
    """A line for each configuration: the median of its rounds, and their range where there are several."""
    groups: dict[tuple[int, float, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r["classes"], r["row_momentum"], r["storage"]), []).append(r)
    out = PrettyTable(["classes", "visited", "momentum", "storage", *columns])
    out.align = "r"
    for (classes, momentum, storage), rounds in groups.items():
        cells = [_cell([value(r) for r in rounds]) for value in columns.values()]
        out.add_row([f"{classes:,}", f"{rounds[0]['share']:.0%}", f"{momentum:g}", storage, *cells])
    return out


def _cell(values: Sequence[float]) -> str:
    text = f"{float(np.median(values)):.3g}"
    return text if min(values) == max(values) else f"{text} ({min(values):.2g}-{max(values):.2g})"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--quick", action="store_true", help="small and once, some seconds")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the records, one a line")
    p.add_argument("--read", type=Path, nargs="+", metavar="FILE.jsonl", help="show earlier records, measure nothing")
    p.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    p.add_argument("--classes", type=float, help="default 1e6")
    p.add_argument("--share", type=float, default=1.0, help="of the heads, visited before the first save; default 1")
    p.add_argument("--storage", nargs="+", choices=STORAGES, help="default all")
    p.add_argument("--row-momentum", type=float, nargs="+", help="default 0 0.9")
    p.add_argument("--head-size", type=int, default=12)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--dim", type=int)
    p.add_argument("--steps", type=int, help="between a full checkpoint and an incremental one, default 200")
    p.add_argument("--quiet-steps", type=int, help="before each save during training, default 60")
    p.add_argument("--threads", type=int, default=0, help="of the products; default torch's choice")
    p.add_argument("--rounds", type=int, help="over all configurations, default 3")
    p.add_argument("--ram-share", type=float, default=0.6, help="refuse what could need more of the memory")
    p.add_argument("--first-round", type=int, default=0, help="its number, to go on with earlier records")
    args = p.parse_args(argv)
    usual = {
        "classes": 1e6,
        "storage": list(STORAGES),
        "row_momentum": [0.0, 0.9],
        "dim": 512,
        "steps": 200,
        "quiet_steps": 60,
    }
    quick = {"classes": 6e3, "storage": ["device"], "row_momentum": [0.9], "dim": 64, "steps": 1, "quiet_steps": 5}
    for name, value in (quick | {"rounds": 1} if args.quick else usual | {"rounds": 3}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not 0 < args.share <= 1:
        p.error(f"--share must be above 0 and at most 1, got {args.share}")
    return args


if __name__ == "__main__":
    sys.exit(main())
