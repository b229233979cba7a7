"""What class means as first centres are worth, on people whom the starting network has never seen.

    python benchmarks/moving_on.py --quick
    python benchmarks/moving_on.py --rec LFW_FOLDER --recipe configs/lfw_mini --out FILE.jsonl
    python benchmarks/moving_on.py --read FILE.jsonl

Half of the people of a record set train a network, the old run. The other half are new: a run on them starts from
that network, with random centres or with class means, all of it or the classifier alone. Verification is on the set's
own pairs, people of neither half. Without --rec the set is made up, as for `make demo`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.planted_faces import people_of
from benchmarks.records import read_records, write_records
from data.records.writer import write_face_records
from tools import make_demo_faces

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
STARTS = ("random", "class_means")
FIRST = 10  # steps whose mean loss and cosine are called the first ones; as many are the last ones


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the table, write the file; the exit status."""
    args = _parse(argv)
    try:
        if args.read is not None:
            records = read_records(args.read)
        else:
            with tempfile.TemporaryDirectory(prefix="moving_on_") as folder:
                records = measure(args, args.folder or Path(folder))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"moving_on: error: {error}", file=sys.stderr)
        return 2
    print(_table(records))
    if args.out is not None:
        write_records(args.out, records)
    return 0


def measure(args: argparse.Namespace, folder: Path) -> list[Record]:
    """Train the old run, then every new one; a record for each.

    Raises:
        ValueError: the set has no pairs.
        RuntimeError: a training failed.
    """
    rec = args.rec
    if rec is None:
        rec = folder / "faces" / "train"
        if not rec.is_dir():
            people = [
                f"--{kind}identities={n}" for kind, n in (("", args.people), ("test-", args.tested), ("ijb-", 8))
            ]
            make_demo_faces.main([str(rec.parent), *people])
    pairs = sorted(rec.glob("*.bin"))
    if not pairs:
        raise ValueError(f"{rec} holds no .bin with pairs of other people")
    old, new = split(rec, folder)
    common = [f"val_targets={pairs[0].resolve()}", "num_workers=0", "frequent=1", "save_all_states=False"]
    recipe = str(args.recipe)
    start = train(
        folder / "old", [recipe, f"rec={old}", f"num_epoch={args.old_epochs}", *common], reuse=args.folder is not None
    )
    records = []
    for seed in range(args.seeds):
        for frozen, lr in [(False, lr) for lr in args.lr] + [(True, lr) for lr in args.frozen_lr]:
            for first in STARTS:
                run = folder / "new"
                settings = [f"rec={new}", f"num_epoch={args.epochs}", f"lr={lr}", f"seed={seed}", "warmup_epoch=0"]
                settings += [f"init_backbone={start / 'model.pt'}", f"freeze_backbone={frozen}"]
                settings += [] if first == "random" else [f"init_centres={first}"]
                train(run, [recipe, *settings, *common])
                record = {"set": "made up" if args.rec is None else rec.resolve().name, "recipe": Path(recipe).name}
                record |= {"old_epochs": args.old_epochs, "epochs": args.epochs, "lr": lr, "frozen": frozen}
                records.append({**record, "centres": first, "seed": seed, **figures(run)})
    return records


def split(rec: Path, folder: Path) -> tuple[Path, Path]:
    """Write the people of even and of odd numbers, as two sets of records."""
    people = people_of(rec)
    halves = folder / "old_people", folder / "new_people"
    for half, path in enumerate(halves):
        if not path.is_dir():
            write_face_records(path, people[half::2])
    return halves[0].resolve(), halves[1].resolve()


def train(run: Path, settings: Sequence[str], reuse: bool = False) -> Path:
    """Train in one process into ``run``; RuntimeError if that fails."""
    if reuse and (run / "model.pt").is_file():
        return run
    command = [sys.executable, "train.py", *settings, f"output={run.resolve()}", "overwrite=True"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"train.py ended with {done.returncode}: {done.stdout[-2000:]}")
    return run


def figures(run: Path) -> Record:
    """What a run's metrics say: the mean of its first and last steps, and its pairs before and after."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    accuracies = [value for line in lines for key, value in line.items() if key.endswith("/accuracy")]
    tars = [value for line in lines for key, value in line.items() if key.endswith("/tar_at_far_0.1")]
    found: Record = {"steps": len(steps)}
    for name in ("loss", "positive_cosine", "top1"):
        found[f"first_{name}"] = float(np.mean([line[name] for line in steps[:FIRST]]))
        found[f"last_{name}"] = float(np.mean([line[name] for line in steps[-FIRST:]]))
    found |= {"accuracy_before": accuracies[0], "accuracy": accuracies[-1]}
    return found | {"tar_0.1_before": tars[0], "tar_0.1": tars[-1]}


def _table(records: Sequence[Record]) -> PrettyTable:
    """A row for each setting, its figures the mean over seeds."""
    keys = ("set", "epochs", "frozen", "lr", "centres")
    shown = ("first_loss", "last_loss", "first_top1", "last_top1", "accuracy_before", "accuracy", "tar_0.1")
    table = PrettyTable([*keys, "seeds", *shown, "accuracy gain"])
    rows: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        rows.setdefault(tuple(record[key] for key in keys), []).append(record)
    for row, same in rows.items():
        means = [f"{np.mean([one[key] for one in same]):.3f}" for key in shown]
        random = {one["seed"]: one["accuracy"] for one in rows.get((*row[:-1], "random"), [])}
        gains = [100 * (one["accuracy"] - random[one["seed"]]) for one in same if one["seed"] in random]
        gain = f"{np.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})" if gains else ""
        table.add_row([*row, len(same), *means, "" if row[-1] == "random" else gain])
    return table


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rec", type=Path, metavar="FOLDER", help="records and a .bin; without: made-up faces")
    parser.add_argument("--recipe", default="configs/demo", help="of all runs (default: configs/demo)")
    parser.add_argument("--people", type=int, default=400, metavar="N", help="made-up people (default: 400)")
    parser.add_argument("--old-epochs", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="of the new runs (default: 1)")
    parser.add_argument("--lr", type=float, nargs="*", default=[0.01, 0.05], help="of new runs of the whole")
    parser.add_argument("--frozen-lr", type=float, nargs="*", default=[0.1], help="of the classifier alone")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--folder", type=Path, help="where sets and the old run are kept and used again")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="raw data")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE.jsonl", help="show these instead of measuring")
    parser.add_argument(
        "--quick", action="store_true", help="24 made-up people, one seed, the classifier alone: does it run?"
    )
    args = parser.parse_args(argv)
    args.tested = 60
    if args.quick:
        args.tested = 8
        args.people, args.old_epochs, args.epochs, args.seeds = 24, 1, 1, 1
        args.lr, args.frozen_lr = [], args.frozen_lr[:1]
    return args


if __name__ == "__main__":
    sys.exit(main())
