"""Merge the class centres of a checkpoint: ``python -m tools.export_centers RUN_OR_CHECKPOINT OUT.npy``.

A checkpoint holds the centres in parts, one for each rank that trained, with only the heads that were updated. OUT
gets all centres, (C, D): row i is the centre of identity i, which in a run on an image folder is the i-th name in
classes.json. Centres that no step has touched have their initial values. Memory stays small for any C.

Shapes: C classes, D embedding size, L classes per head, n updated heads of one part.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("export_centers")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training.checkpoint import find_checkpoint, open_saved_heads
from utils.atomic import open_atomic, temporary_name
from utils.text import any_name_can_be_printed, complain, parse_json


def write_centres(checkpoint: Path, out: Path, updates: Path | None = None) -> tuple[int, int, int]:
    """Write the merged centres, complete or not at all.

    Args:
        checkpoint: a folder ``step_N``.
        out: .npy, or .pt with a dictionary of one tensor, "weight".
        updates: .npy to fill with the number of updates of each class's head, (C,) int32; 0: never updated.

    Returns:
        C, D, and the number of classes that were updated.

    Raises:
        ValueError: a damaged checkpoint, or another ending.
        OSError: a file cannot be read or written.
    """
    if out.suffix not in (".npy", ".pt") or (updates is not None and updates.suffix != ".npy"):
        raise ValueError(f"expected OUT as .npy or .pt and --updates as .npy, got {out}, {updates}")
    if updates is not None and updates.resolve() == out.resolve():
        raise ValueError(f"OUT and --updates are the same file, {out}: give two names")
    saved = open_saved_heads(checkpoint)
    C, D = saved.settings["num_classes"], saved.settings["embedding_size"]
    out.parent.mkdir(parents=True, exist_ok=True)
    updated = 0
    visits_C = np.zeros(C if updates is not None else 0, np.int32)
    as_npy = out if out.suffix == ".npy" else temporary_name(out).with_suffix(".npy")
    try:
        with open_atomic(as_npy) as file:
            descr = np.lib.format.dtype_to_descr(saved.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (C, D)}
            np.lib.format.write_array_header_1_0(file, header)
            done = 0
            for rows_mD, visits_m in saved.blocks():
                file.write(rows_mD.data)
                updated += int(np.count_nonzero(visits_m))
                if updates is not None:
                    visits_C[done : done + len(visits_m)] = visits_m
                done += len(visits_m)
        if out.suffix == ".pt":
            with open_atomic(out) as file:  # mapped copy-on-write, so that saving reads it piece by piece
                torch.save({"weight": torch.from_numpy(np.load(as_npy, mmap_mode="c"))}, file)
    finally:
        if as_npy != out:
            as_npy.unlink(missing_ok=True)
    if updates is not None:
        with open_atomic(updates) as file:
            np.save(file, visits_C)
    return C, D, updated


def names_of_classes(checkpoint: Path, count: int) -> Path | None:
    """The run's classes.json, if it has one that names ``count`` identities."""
    path = checkpoint.resolve().parent.parent / "classes.json"
    try:
        names = parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    return path if isinstance(names, list) and len(names) == count else None


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    parser = argparse.ArgumentParser(
        prog="export_centers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run's folder, or a step_N in it")
    parser.add_argument("out", type=Path, help='file to write: .npy (C, D), or .pt, a dictionary with "weight"')
    parser.add_argument(
        "--updates", type=Path, metavar="FILE.npy", help="also write how often each class's head was updated"
    )
    options = parser.parse_args(argv)
    try:
        checkpoint = find_checkpoint(options.source)
        C, D, updated = write_centres(checkpoint, options.out, options.updates)
    except (ValueError, OSError) as error:
        complain("export_centers", error)
        return 2
    print(f"{options.out}: {C:,} x {D} centres of {checkpoint}; {updated:,} updated, {C - updated:,} as they started")
    if names := names_of_classes(checkpoint, C):
        print(f"row i is the i-th name in {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
