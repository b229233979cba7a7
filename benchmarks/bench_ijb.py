"""The IJB evaluation against the field's way of doing it, re-created: time of each stage, and memory.

    python benchmarks/bench_ijb.py --quick
    python benchmarks/bench_ijb.py --out docs/results/ijb.jsonl

Two parts. "features": everything but the network, at IJB-C's size, on made-up embeddings. "photos": from photo to
table with the network, on the CPU. Each method runs in a process of its own; both must find the same scores and print
the same table. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prettytable import PrettyTable

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbones import get_model
from benchmarks import ijb_case
from benchmarks.ijb_case import INTERVALS, METHODS, Case
from benchmarks.ijb_made_up import QUICK, Size, write_features_tree, write_photo_tree
from benchmarks.machine import usable_cores
from benchmarks.records import write_records
from eval.ijb.cache import EmbeddingCache

Record = dict[str, Any]


def run_case(case: Case, scores: Path) -> Record:
    """Run one method in a new process; its stages, memory and table. The scores go to a file.

    Raises:
        RuntimeError: the process failed; its own message is on stderr.
    """
    command = [sys.executable, ijb_case.__file__, json.dumps(asdict(case)), str(scores)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.method}, {case.part}: exit code {done.returncode}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def compare(part: str, outcomes: dict[str, Record], folder: Path) -> list[Record]:
    """Records of both methods, a stage each and the total, with the reference's time over the method's own.

    Raises:
        RuntimeError: the methods disagree, so that their times mean nothing.
    """
    scores = {method: np.load(_scores_file(folder, part, method), mmap_mode="r") for method in outcomes}
    reference, ours = (scores[method] for method in METHODS)
    difference = float(np.abs(reference - ours).max())
    tables = [outcomes[method]["table"] for method in METHODS]
    # With the network in between, the layout of its sums differs; that is float32 rounding.
    if difference > (1e-14 if part == "features" else 1e-4) or (part == "features" and tables[0] != tables[1]):
        raise RuntimeError(f"{part}: scores differ by {difference}; tables:\n{tables[0]}\n{tables[1]}")
    records = []
    for method in METHODS:
        stages = outcomes[method]["seconds"]
        theirs = with_totals(outcomes[METHODS[0]]["seconds"])
        for stage, seconds in with_totals(stages).items():
            base = theirs.get(stage)
            records.append(
                {
                    "part": part,
                    "method": method,
                    "stage": stage,
                    "seconds": seconds,
                    "peak_mib": outcomes[method]["peak_mib"],
                    "ratio": None if base is None else base / seconds,
                    "largest_score_difference": difference,
                    "same_table": tables[0] == tables[1],
                }
            )
    return records


def with_totals(stages: dict[str, float]) -> dict[str, float]:
    """Stages, the sum of those that both methods have, and that without the one that gains most."""
    if len(stages) == 1:
        return stages
    total = sum(seconds for stage, seconds in stages.items() if stage != INTERVALS)
    return stages | {"total but matrices": total - stages["landmarks to matrices"], "total": total}


def _scores_file(folder: Path, part: str, method: str) -> Path:
    return folder / f"{part}_{METHODS.index(method)}.npy"


def measure(part: str, case: Case, folder: Path, rounds: int) -> tuple[list[Record], dict[str, Any]]:
    """Measure both methods in turn, ``rounds`` times; of each, the round with the median total counts."""
    found: dict[str, list[Record]] = {method: [] for method in METHODS}
    for number in range(rounds):
        for method in METHODS:
            results = folder / f"{part}_results_{number}"
            own = Case(**asdict(case) | {"method": method, "embeddings": case.embeddings or str(results)})
            outcome = run_case(own, _scores_file(folder, part, method))
            seconds = sum(outcome["seconds"].values())
            print(f"{part}, round {number + 1}, {method}: {seconds:.1f} s", flush=True)
            found[method].append(outcome)
    middle = {
        method: sorted(outcomes, key=lambda one: float(sum(one["seconds"].values())))[(rounds - 1) // 2]
        for method, outcomes in found.items()
    }
    facts = {"rounds": rounds, "list_reader": middle[METHODS[0]].get("list_reader")}
    return compare(part, middle, folder), facts


def measure_features(size: Size, folder: Path, rounds: int) -> list[Record]:
    """Everything but the network."""
    tree, parts = folder / "features", folder / "embeddings"
    print(f"writing lists and embeddings of {size.images:,} images to {folder}", flush=True)
    write_features_tree(tree, EmbeddingCache(parts, size.images), size)
    case = Case("", "features", str(tree), str(parts), size.images)
    records, facts = measure("features", case, folder, rounds)
    return [record | asdict(size) | facts for record in records]


def measure_photos(
    images: int, network: str, batch_size: int, data: Path | None, folder: Path, rounds: int
) -> list[Record]:
    """From photo to table."""
    tree, model = folder / "photos", folder / "model.pt"
    source = write_photo_tree(tree, images, data)
    torch.manual_seed(0)
    torch.save(get_model(network).state_dict(), model)
    case = Case("", "photos", str(tree), "", images, str(model), batch_size)
    records, facts = measure("photos", case, folder, rounds)
    rates = {method: images / r["seconds"] for r in records for method in [r["method"]]}
    return [
        record
        | {"images": images, "network": network, "batch_size": batch_size, "source": source}
        | {"imgs_per_s": rates[record["method"]]}
        | facts
        for record in records
    ]


def table(records: Sequence[Record]) -> PrettyTable:
    """A row per part, method and stage."""
    out = PrettyTable(["part", "method", "stage", "seconds", "reference / this", "peak MiB"])
    out.align = "r"
    for r in records:
        is_last = r["stage"] in ("total", "photo to table")
        out.add_row(
            [
                *(r["part"], r["method"], r["stage"], f"{r['seconds']:.2f}"),
                f"{r['ratio']:.1f}" if r["ratio"] is not None else "-",
                f"{r['peak_mib']:,.0f}" if is_last else "",
            ],
            divider=is_last,
        )
    return out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with --quick applied."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    p.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the records, one a line")
    p.add_argument("--parts", nargs="+", choices=("features", "photos"), default=["features", "photos"])
    p.add_argument("--rounds", type=int, default=1, help="both methods in turn so often; medians count")
    p.add_argument("--images", type=int, help="photos of the second part, default 2000")
    p.add_argument("--network", help="of the second part, default mbf")
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ["MHS_DATA"]) if "MHS_DATA" in os.environ else None,
        help="folder that holds lfw_train/lfw.bin (default: MHS_DATA); made-up photos without it",
    )
    p.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="2.2 GiB for a while")
    args = p.parse_args(argv)
    if args.images is None:
        args.images = 64 if args.quick else 2000
    if args.network is None:
        args.network = "rtiny" if args.quick else "mbf"
    if args.rounds < 1 or args.images < 4 or args.images % 2:
        p.error("--rounds must be at least 1, --images an even number of at least 4")
    return args


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Measure what the command line asks for, print the table, write the records; the records."""
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="bench_ijb_", dir=args.folder) as folder:
        if "features" in args.parts:
            records += measure_features(QUICK if args.quick else Size(), Path(folder), args.rounds)
        if "photos" in args.parts:
            records += measure_photos(
                args.images, args.network, args.batch_size, args.data, Path(folder), args.rounds
            )
    machine = {"cpus": usable_cores(), "torch": torch.__version__, "numpy": np.__version__}
    records = [record | machine for record in records]
    print(table(records))
    if args.out is not None:
        write_records(args.out, records)
    return records


if __name__ == "__main__":
    main()
