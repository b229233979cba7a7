"""How many planted label mistakes `tools.find_duplicates` finds, and how many of its findings are planted ones.

    python benchmarks/bench_duplicates.py --quick
    python benchmarks/bench_duplicates.py --rec FOLDER --epochs 12 --out FILE.jsonl
    python benchmarks/bench_duplicates.py --read FILE.jsonl

Plants mistakes into a set of faces, trains a small network on it, runs the tool, and compares. Without --rec, the set
is made up, as for `make demo`. See README.md beside this file for what is planted and what each key means.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import usable_cores
from benchmarks.planted_faces import People, Truth, made_up_people, people_of, plant
from benchmarks.records import read_records, write_records
from data.faces import FaceRecords
from tools import find_duplicates
from utils.atomic import write_json
from utils.config import get_config

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
TRAINED = "trained_on.json"  # in the folder: which faces a finished training was on
SEVERAL = 4  # images on both sides of a split that the network can average over
SEARCHES: dict[str, list[str]] = {
    "expected 1": [],
    "expected 10": ["--expected", "10"],
    "expected 100": ["--expected", "100"],
    "near centres": ["--expected", "10", "--near-centres"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print the table, write the file; the exit status."""
    args = _parse(argv)
    try:
        if args.read is not None:
            records = read_records(args.read)
        else:
            with tempfile.TemporaryDirectory(prefix="bench_duplicates_") as folder:
                records = measure(args, args.folder or Path(folder))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bench_duplicates: error: {error}", file=sys.stderr)
        return 2
    print(_table(records))
    if args.out is not None:
        write_records(args.out, records)
    return 0


def measure(args: argparse.Namespace, folder: Path) -> list[Record]:
    """Plant, train, search; a record for each search and kind of mistake.

    Raises:
        ValueError: the folder holds a run of other settings or faces.
        RuntimeError: the training failed, or the tool did.
    """
    if args.rec is None:
        name, people = "made up", made_up_people(args.people, args.images)
    else:
        name, people = args.rec.resolve().name, people_of(args.rec)
    faces = digest(people)
    is_trained = (folder / "run" / "model.pt").is_file()
    if is_trained and (others := differences(folder, args.config, args.epochs, faces)):
        raise ValueError(
            f"{folder / 'run'} is not the run that was asked for ({'; '.join(others)}): give another --folder, or "
            "remove that run to train anew"
        )
    truth = plant(people, folder)
    if not is_trained:
        (folder / TRAINED).unlink(missing_ok=True)
        train(folder, args.config, args.epochs)
        write_json(folder / TRAINED, {"faces": faces})
    counts = np.bincount(FaceRecords(folder / "train").labels)
    common = {
        "set": name,
        "classes": len(counts),
        "train_images": int(counts.sum()),
        "config": Path(args.config).name,
        "epochs": args.epochs,
        "cores": usable_cores(),
    }
    records: list[Record] = []
    for search, options in SEARCHES.items():
        out = folder / search.replace(" ", "_")
        start = time.perf_counter()
        given = [str(folder / "run"), "--test", str(folder / "test"), "--out", str(out), "--overwrite", *options]
        if find_duplicates.main(given):
            raise RuntimeError(f"the search {search!r} failed; its own message stands above")
        seconds = {"search": search, "search_s": round(time.perf_counter() - start, 1)}
        records += [{**common, **seconds, **one} for one in score(out, truth, counts.tolist())]
    return records


def digest(people: People) -> str:
    """Hash of everybody's images; what is planted follows from these alone."""
    sha256 = hashlib.sha256()
    for images in people:
        for image in images:
            sha256.update(hashlib.sha256(image).digest())
        sha256.update(b"next")
    return sha256.hexdigest()


def differences(folder: Path, config: str, epochs: int, faces: str) -> list[str]:
    """In what the run in ``folder`` differs from the one that these settings and faces give; empty: in nothing."""
    path = folder / TRAINED
    if not path.is_file():
        return [f"no {TRAINED} beside it: the training did not finish, or it is not a run of this benchmark"]
    found = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))
    given = json.loads(json.dumps(get_config(config, _settings(folder, epochs)).as_dict(), default=str))
    by_data = {"rec", "output", "num_classes", "num_image"}  # follow from the folder and its faces
    keys = [key for key in given if key not in by_data and found.get(key) != given[key]]
    others = [f"{key} is {found.get(key)!r}, not {given[key]!r}" for key in keys]
    if json.loads(path.read_text(encoding="utf-8")) != {"faces": faces}:
        others.append("other faces")
    return others


def train(folder: Path, config: str, epochs: int) -> None:
    """Train on ``folder``/train in one process, into ``folder``/run; RuntimeError if that fails."""
    command = [sys.executable, "train.py", config, *_settings(folder, epochs)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"train.py ended with {done.returncode}: {done.stdout[-2000:]}")


def _settings(folder: Path, epochs: int) -> list[str]:
    settings = [f"rec={(folder / 'train').resolve()}", f"output={(folder / 'run').resolve()}", "val_targets=[]"]
    return [*settings, f"num_epoch={epochs}", "num_workers=0", "overwrite=True"]


def score(out: Path, truth: Truth, counts: Sequence[int]) -> list[Record]:
    """Hold the tables of a search against what was planted.

    A test person counts as found where the class is that person's, and as wrong where it is another.
    """
    pairs = {(int(row["class_1"]), int(row["class_2"])) for row in _rows(out / "duplicates.csv")}
    doubles = {int(row["class"]) for row in _rows(out / "classes_with_two_people.csv")}
    overlaps = {(int(row["person"].split()[-1]), int(row["class"])) for row in _rows(out / "test_overlap.csv")}
    several = {pair for pair in truth.splits if min(counts[i] for i in pair) >= SEVERAL}
    return [
        {
            **_rates("one person, two labels", pairs, truth.splits),
            f"recall_{SEVERAL}_images": len(pairs & several) / max(len(several), 1),
        },
        _rates("two people, one label", doubles, truth.merges),
        _rates("test person in training", overlaps, set(truth.leaks.items())),
    ]


def _rates(what: str, found: set[Any], planted: set[Any]) -> Record:
    right = len(found & planted)
    precision = right / len(found) if found else None
    return {
        "what": what,
        "planted": len(planted),
        "found": len(found),
        "right": right,
        "precision": precision,
        "recall": right / max(len(planted), 1),
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _table(records: Sequence[Record]) -> PrettyTable:
    table = PrettyTable(["set", "mistake", "search", "planted", "found", "right", "precision", "recall", "seconds"])
    table.align = "r"
    for r in records:
        precision = "-" if r["precision"] is None else f"{r['precision']:.2f}"
        row = [r["set"], r["what"], r["search"], r["planted"], r["found"], r["right"], precision]
        table.add_row([*row, f"{r['recall']:.2f}", r["search_s"]])
    return table


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rec", type=Path, metavar="FOLDER", help="records of real faces; without: made-up ones")
    parser.add_argument("--config", help="recipe (default: configs/lfw_mini with --rec, else configs/demo)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--people", type=int, default=200, metavar="N", help="made-up people (default: 200)")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="images of each (default: 20)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the sets and the run are kept; the same run is not trained again (default: nowhere)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="raw data")
    parser.add_argument("--read", type=Path, nargs="+", metavar="FILE.jsonl", help="show these instead of measuring")
    parser.add_argument("--quick", action="store_true", help="24 made-up people, 1 epoch: does it run?")
    args = parser.parse_args(argv)
    if args.quick:
        args.people, args.images, args.epochs = min(args.people, 24), min(args.images, 8), 1
    args.config = args.config or ("configs/demo" if args.rec is None else "configs/lfw_mini")
    return args


if __name__ == "__main__":
    sys.exit(main())
