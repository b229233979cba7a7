"""What an embedding learns with each way to choose a step's classes, and with each rule for their centres.

    python benchmarks/learning.py --quick
    python benchmarks/learning.py features --sweep --out FILE.jsonl
    python benchmarks/learning.py features --out FILE.jsonl --figure FILE.png
    python benchmarks/learning.py many --out FILE.jsonl
    python benchmarks/learning.py faces --rec FOLDER --out FILE.jsonl
    python benchmarks/learning.py --read FILE.jsonl ...

A selection of classes is trained with several seeds, by the default rule and, the most important ones, by others
(learning_arms.py); seeds are paired: equal first weights of the backbone and order of images. See README.md beside
this file for what each task and key means. Runs that FILE holds already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import learning_faces, learning_features
from benchmarks.learning_arms import Arm, Rule, rules_of, selections
from benchmarks.learning_table import draw, settings_of, sweep_table, table

Record = dict[str, Any]
SWEEP_SEEDS = (100,)  # not those of the results
MANY = learning_features.Size(50_000, images=3, batch=256, epochs=3)
QUICK = learning_features.Size(400, images=4, batch=32, epochs=2, test_identities=100)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    arm: Arm
    seed: int
    setting: learning_features.Size | learning_faces.Faces

    def as_record(self) -> Record:
        """What it is; of paths, the names alone."""
        setting = dataclasses.asdict(self.setting)
        for name in setting.keys() & {"rec", "pairs"}:
            setting[name] = Path(setting[name]).name
        return {"task": self.task, "seed": self.seed, **self.arm.as_record(), **setting}

    def is_in(self, record: Record) -> bool:
        """Whether a record is of this run."""
        own = self.as_record()
        return {name: record.get(name) for name in own} == own


def run(job: Job) -> Record:
    """Make one run, in a process with one thread."""
    if isinstance(job.setting, learning_faces.Faces):
        found = learning_faces.train_and_test(job.arm, job.seed, job.setting)
    else:
        found = learning_features.train_and_test(job.arm, job.seed, job.setting)
    return {**job.as_record(), **found, "torch": torch.__version__}


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The runs that the command line asks for."""
    setting: learning_features.Size | learning_faces.Faces
    if args.task == "faces":
        setting = learning_faces.Faces(str(args.rec), str(args.pairs or args.rec / "lfw.bin"))
        classes = learning_faces.count_classes(args.rec)
    else:
        setting = QUICK if args.quick else {"features": learning_features.Size(), "many": MANY}[args.task]
        classes = setting.classes
    chosen = selections(args.task, classes, setting.batch)
    if unknown := set(args.only or ()) - chosen.keys():
        raise ValueError(f"--only: no selection {', '.join(unknown)}; there are {', '.join(chosen)}")
    found = []
    for seed in SWEEP_SEEDS if args.sweep else range(args.seeds):
        for name, options in chosen.items():
            if args.only and name not in args.only:
                continue
            rules = rules_of(args.task, name, args.sweep)
            found += [Job(args.task, Arm(name, *options, rule), seed, setting) for rule in rules]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs, print the tables, write the files; the exit status."""
    args = _parse(argv)
    try:
        records = [record for path in args.read or () for record in _read(path)]
        if args.read is None:
            records = _measure(jobs_of(args), args.out, args.workers)
    except (ValueError, OSError) as error:
        print(f"learning: error: {error}", file=sys.stderr)
        return 2
    swept = [record for record in records if record["seed"] in SWEEP_SEEDS]
    shown = [record for record in records if record["seed"] not in SWEEP_SEEDS]
    for title, some in settings_of(swept).items():
        print(f"{title}: rules, seed {', '.join(map(str, SWEEP_SEEDS))}\n{sweep_table(some)}")
    for title, some in settings_of(shown).items():
        print(f"{title}\n{table(some)}")
    if args.figure is not None and shown:
        draw(shown, args.figure)
    return 0


def _measure(jobs: Sequence[Job], out: Path | None, workers: int) -> list[Record]:
    records = _read(out) if out is not None and out.exists() else []
    missing = [job for job in jobs if not any(job.is_in(record) for record in records)]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        for i, record in enumerate(pool.imap_unordered(run, missing)):
            records.append(record)
            rule = Rule(record["row_lr"], record["row_momentum"], record["row_idle"])
            print(f"{i + 1} of {len(missing)}: {record['selection']}, {rule}", file=sys.stderr, flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return [next(record for record in records if job.is_in(record)) for job in jobs]


def _read(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            records.append(json.loads(line))
            records[-1]["task"], records[-1]["selection"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: not a run of learning.py; take the line out") from None
    return records


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("task", nargs="?", choices=("features", "many", "faces"), default="features")
    p.add_argument("--sweep", action="store_true", help="every rule for every selection, on seeds of its own")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these selections alone")
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N - 1 (default: 5)")
    p.add_argument("--rec", type=Path, metavar="FOLDER", help="faces: records to train on")
    p.add_argument("--pairs", type=Path, metavar="FILE", help="faces: pairs of other people (default: REC/lfw.bin)")
    p.add_argument("--workers", type=int, default=2, metavar="N", help="runs at once, one thread each (default: 2)")
    p.add_argument(
        "--out", type=Path, metavar="FILE", help="raw data, one run a line; what it holds is not run again"
    )
    p.add_argument("--figure", type=Path, metavar="FILE", help="accuracy against classes a step")
    p.add_argument("--read", type=Path, nargs="+", metavar="FILE", help="show earlier runs")
    p.add_argument("--quick", action="store_true", help="a minute: tiny runs that show whether things work")
    args = p.parse_args(argv)
    if args.quick:
        args.seeds = min(args.seeds, 2)
    if args.task == "faces" and args.rec is None and args.read is None:
        p.error("faces needs --rec FOLDER")
    return args


if __name__ == "__main__":
    sys.exit(main())
