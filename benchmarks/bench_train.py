"""Images per second of the full training step, its parts, and the reference's form of it in the same run.

    python benchmarks/bench_train.py --quick
    python benchmarks/bench_train.py --network r18 r50 mbf --ranks 1 2 --out FILE.jsonl
    python benchmarks/bench_train.py --config configs/NAME rec=FOLDER
    python benchmarks/bench_train.py --checkpointing --network r18 vit_t --threads 1 batch_size=24
    python benchmarks/bench_train.py --network r18 mbf --precision float32 --leave-out layout allocator prelu

Every form, precision and rank runs in a process of its own, in rounds that alternate between the forms; see README.md
beside this file for how to read the tables, and for every key.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbones import get_model
from benchmarks import train_case
from benchmarks.launch import run_script
from benchmarks.left_out import CHOICES
from benchmarks.machine import usable_cores
from benchmarks.records import read_records, write_records
from benchmarks.train_case import Form, Record
from benchmarks.train_forms import FLOAT32, check_reference, equal_overrides, laid_over
from benchmarks.train_tables import checkpointing_table, loss_lines, parts_table, speed_table
from utils.config import get_config
from utils.settings import Config
from utils.text import plain

SYNTHETIC = ("rec=synthetic", "num_classes=10000", "num_image=100000", "head_size=12")  # of --network
PRECISION_OVERRIDES = {"float32": FLOAT32, "bf16": ("precision=bf16",), "fp16": ("precision=fp16",)}
LOSS_STEPS = 3  # compared with the reference's form
MEASURED = ("step_ms", "step_ms_p10", "step_ms_p90", "mean_step_ms", "imgs_per_s", "cpu_ms", "watched_step_ms")
MEASURED_TOO = ("rest_share", "all_reduce_span_ms")
PEAKS = ("peak_mib", "cuda_peak_mib")
SHOWN = ("arm", "form", "network", "precision", "ranks", "parts_ms", "first_losses", *MEASURED, *MEASURED_TOO, *PEAKS)


@dataclass(frozen=True)
class Case:
    """One row of the table: a form on so many ranks."""

    arm: str  # its name in the table
    form: Form
    config: str
    overrides: tuple[str, ...]
    ranks: int
    threads: int  # of each rank
    without: tuple[str, ...] = ()  # what ours does without

    def __str__(self) -> str:
        network = next((text for text in reversed(self.overrides) if text.startswith("network=")), self.config)
        return f"{network.removeprefix('network=')}, {self.arm}, {self.ranks} x {self.threads} threads"


def run_case(case: Case, args: argparse.Namespace, trace: Path | None = None) -> Record:
    """Measure one case in new processes, one for each rank; rank 0's record.

    Raises:
        RuntimeError: a process failed; its own message is on stderr.
    """
    text = {
        "form": case.form,
        "config": case.config,
        "overrides": case.overrides,
        "steps": 1 if case.arm == "equal" else args.steps,
        "warm_steps": LOSS_STEPS if case.arm == "equal" else args.warm_steps,
        "part_steps": 0 if case.arm == "equal" else args.part_steps,
        "budget_s": args.budget_s,
        "without": case.without,
        "trace": None if trace is None else str(trace.resolve()),
    }
    return {"arm": case.arm, **run_script(train_case.__file__, json.dumps(text), case.ranks, case.threads)}


def merge(rounds: Sequence[Record]) -> Record:
    """One record of a case from those of its rounds: medians, and the largest peaks."""

    def of(choose: Callable[[list[float]], Any], values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(choose(known)) if known else None

    merged = rounds[0] | {key: of(np.median, [r[key] for r in rounds]) for key in (*MEASURED, *MEASURED_TOO)}
    merged |= {key: of(max, [r[key] for r in rounds]) for key in PEAKS}
    if merged["parts_ms"] is not None:
        merged["parts_ms"] = {
            part: of(np.median, [r["parts_ms"][part] for r in rounds]) for part in merged["parts_ms"]
        }
    return merged | {"rounds": len(rounds), "step_ms_rounds": [r["step_ms"] for r in rounds]}


def measure_all(
    cases: Sequence[Case], args: argparse.Namespace, keep: Callable[[list[Record]], None]
) -> tuple[list[Record], list[Case]]:
    """Measure in rounds; in each, the forms of one network and number of ranks follow each other.

    Returns:
        A record of each case that gave one, and the cases of which a round failed.
    """
    found: dict[Case, list[Record]] = {}
    records: list[Record] = []
    failed: set[Case] = set()
    trace = args.profile
    for number in range(args.rounds):
        for case in cases:
            if case in failed or (number and case.arm == "equal"):
                continue
            try:
                record = run_case(case, args, trace if case.form == "ours" else None)
            except RuntimeError as error:
                failed.add(case)
                print(f"{case}: failed: {error}", flush=True)
                continue
            trace = None if case.form == "ours" else trace  # of the first
            found.setdefault(case, []).append(record)
            print(f"round {number + 1}: {case}: {record['imgs_per_s']:.1f} images/s", flush=True)
            records = [merge(found[c]) for c in cases if c in found]
            keep(records)
    return records, [case for case in cases if case in failed]


def cases_of(args: argparse.Namespace) -> list[Case]:
    """What the command line asks for.

    Raises:
        ValueError, FileNotFoundError: a config, setting or network that is none, or that the reference's form cannot
            have.
    """
    cases = []
    for config, base in _configs(args):
        overrides = (*base, *args.overrides)
        cfg = get_config(config, overrides)  # a mistake shows before anything is measured
        if args.leave_out and cfg.device != "cpu" and torch.cuda.is_available():
            raise ValueError("--leave-out leaves out what is for CPUs: set device=cpu")
        with torch.device("meta"):  # so does one in the network's name
            get_model(**get_config(config, laid_over(overrides, FLOAT32)).network_options())
        for ranks in args.ranks:
            threads = args.threads or max(1, usable_cores() // ranks)
            for arm, form, more in _arms(args, cfg, ranks == args.ranks[0]):
                case = Case(arm, form, config, tuple(laid_over(overrides, more)), ranks, threads)
                cases.append(case)
                if arm.startswith("ours"):
                    cases += [replace(case, arm=f"{arm}, no {one}", without=(one,)) for one in args.leave_out]
    return cases


def _configs(args: argparse.Namespace) -> list[tuple[str, tuple[str, ...]]]:
    """Configs with the overrides that go before the user's."""
    if args.config is not None:
        return [(args.config, ())]
    has_gpu = torch.cuda.is_available()
    size = (f"batch_size={16 if args.quick else 128 if has_gpu else 32}", f"num_workers={4 if has_gpu else 0}")
    return [("configs/base", (f"network={network}", *SYNTHETIC, *size)) for network in args.network]


def _arms(args: argparse.Namespace, cfg: Config, is_first: bool) -> list[tuple[str, Form, Sequence[str]]]:
    """Name, form and further overrides of what is compared."""
    ours: list[tuple[str, tuple[str, ...]]] = [(f" {name}", PRECISION_OVERRIDES[name]) for name in args.precision]
    ours = ours or [("", ())]
    if args.checkpointing:
        return [
            (f"{arm}{name}", "ours", [*precision, f"gradient_checkpointing={arm == 'checkpointed'}"])
            for name, precision in ours
            for arm in ("kept", "checkpointed")
        ]
    arms: list[tuple[str, Form, Sequence[str]]] = [(f"ours{name}", "ours", precision) for name, precision in ours]
    if args.no_reference:
        return arms
    check_reference(cfg)
    arms.insert(0, ("reference", "reference", ()))
    equal = equal_overrides(cfg)
    if is_first and equal is not None:
        arms.append(("equal", "ours", equal))
    return arms


def show(records: Sequence[Record]) -> None:
    """Print the tables of what was measured."""
    pairs = [r for r in records if r["arm"].startswith(("kept", "checkpointed"))]
    timed = [r for r in records if r["arm"] != "equal" and r not in pairs]
    if timed:
        print(f"\n{speed_table(timed)}")
    by_parts = [r for r in timed if r["parts_ms"] is not None]
    for network in dict.fromkeys(r["network"] for r in by_parts):
        print(f"\n{network}: ms of a step by parts, in a pass of its own")
        print(parts_table([r for r in by_parts if r["network"] == network]))
    for line in loss_lines(records):
        print(line)
    if pairs:
        print(f"\ngradient checkpointing\n{checkpointing_table(pairs)}")


def _count(text: str, least: int = 1) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, a number of at least 0, got {text}")
    return seconds


def _check_files(args: argparse.Namespace) -> None:
    """Raise ValueError for a file that cannot be written, before anything is measured for it."""
    for option, path in (("--profile", args.profile), ("--out", args.out)):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            was_there = path.exists()
            with path.open("a"):
                pass
            if not was_there:
                path.unlink()
        except OSError as error:
            raise ValueError(f"{option} {path} cannot be written ({error.strerror}): give another file") from None


def _read(paths: Sequence[Path]) -> list[Record]:
    try:
        records = read_records(paths, SHOWN)
    except OSError as error:
        raise ValueError(
            f"--read {error.filename} cannot be read ({error.strerror}): give files that --out has written"
        ) from None
    except ValueError as error:
        raise ValueError(f"--read {error}") from None
    if not records:
        raise ValueError(f"--read {' '.join(map(str, paths))}: no record there: give files that --out has written")
    return records


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with --quick applied."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings that go before the config's")
    p.add_argument("--config", help="configs/NAME; without it --network on synthetic data")
    p.add_argument("--network", nargs="+", default=None, help="default r18 r50 mbf")
    p.add_argument("--ranks", type=_count, nargs="+", default=[1], help="processes, such as 1 2")
    p.add_argument("--threads", type=_count, help="of each rank; default: the cores divided among the ranks")
    p.add_argument("--precision", nargs="+", choices=tuple(PRECISION_OVERRIDES), default=[], help="of our form")
    p.add_argument("--no-reference", action="store_true", help="leave the reference's form out")
    p.add_argument("--checkpointing", action="store_true", help="with and without gradient checkpointing, instead")
    p.add_argument("--leave-out", nargs="+", choices=CHOICES, default=[], help="ours once more without each of these")
    p.add_argument("--profile", type=Path, metavar="FILE.json", help="a trace of a few steps of the first case")
    p.add_argument("--quick", action="store_true", help="rtiny and few steps, under a minute")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the records, one a line")
    p.add_argument("--read", type=Path, nargs="+", metavar="FILE.jsonl", help="show earlier records, measure nothing")
    p.add_argument("--steps", type=_count, help="timed steps at most, default 20")
    p.add_argument("--warm-steps", type=_count, help="before the clock starts, default 3")
    p.add_argument("--part-steps", type=partial(_count, least=0), help="of the pass by parts, default 5; 0: none")
    p.add_argument("--rounds", type=_count, help="over all forms, default 3")
    p.add_argument("--budget-s", type=_seconds, help="of a case's timed steps, default 60; three are made at least")
    args = p.parse_intermixed_args(argv)
    if args.config is not None and args.network is not None:
        p.error("--config names the network; give network=NAME behind it in place of --network")
    if args.checkpointing and args.leave_out:
        p.error("--checkpointing and --leave-out are measured one at a time")
    usual = {"network": ["r18", "r50", "mbf"], "steps": 20, "warm_steps": 3, "part_steps": 5, "rounds": 3}
    quick = {"network": ["rtiny"], "steps": 5, "warm_steps": 2, "part_steps": 3, "rounds": 1}
    for name, value in (quick | {"budget_s": 3.0} if args.quick else usual | {"budget_s": 60.0}).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.part_steps = 0 if args.checkpointing else args.part_steps
    return args


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Measure what the command line asks for, print the tables, write files; the records.

    Raises:
        SystemExit: a mistake, before anything is measured; or a case has failed, after the tables of the others.
    """
    args = parse(argv)

    def keep(records: list[Record]) -> None:
        if args.out is not None:
            write_records(args.out, records)

    try:
        if args.read is not None:
            records = _read(args.read)
            show(records)
            return records
        cases = cases_of(args)
        _check_files(args)
    except (TypeError, ValueError, OSError) as error:
        raise SystemExit(f"bench_train.py: {plain(str(error))}") from None
    records, failed = measure_all(cases, args, keep)
    show(records)
    if failed:
        raise SystemExit(f"bench_train.py: {len(failed)} of {len(cases)} failed: {'; '.join(map(str, failed))}")
    return records


if __name__ == "__main__":
    main()
