"""Draw what each augmentation does to faces, and time it.

    python -m tools.show_augment SOURCE OUT.png [--columns 8] [--seed 0] [--quick]

Each row shows an original and several draws of one operation, always applied, or of one of the sets with its own
probabilities. SOURCE is what ``tools.show_data`` takes. Prints the images/s of each on this machine's CPU for batches
of 128, and those of the flip alone.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("show_augment")

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prettytable import PrettyTable
from torch import Tensor

from backbones.base import to_network_input
from data.augment import OPERATIONS, PRESETS, Augmentation
from tools.parts.contact_sheet import FACE, Row, check_png, contact_sheet, write_png
from tools.parts.face_sources import open_source
from utils.decode import decode_rgb
from utils.device import prepare_device
from utils.text import any_name_can_be_printed, complain

BATCH = 128


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="show_augment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="draws per row (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    parser.add_argument("--quick", action="store_true", help="time 5 batches of each instead of 40")
    args = parser.parse_args(argv)
    try:
        if args.columns < 1:
            raise ValueError(f"--columns must be at least 1, got {args.columns}")
        check_png(args.out)
        faces = read_faces(args.source, BATCH)
        write_png(args.out, contact_sheet(draw_rows(faces, args.columns, args.seed)))
    except (ValueError, OSError) as error:
        complain("show_augment", error)
        return 2
    prepare_device(torch.device("cpu"))  # as training does
    print(_table(time_all(faces, 5 if args.quick else 40)))
    print(f"{args.out}: {len(OPERATIONS) + len(PRESETS)} rows")
    return 0


def read_faces(path: str, count: int) -> Tensor:
    """(n, 112, 112, 3) uint8 faces spread over the source, at most ``count``; ValueError if there are none."""
    source = open_source(path)
    if len(source) == 0:
        raise ValueError(f"{path}: no images in it")
    found: list[NDArray[np.uint8]] = []
    for position in np.unique(np.linspace(0, len(source) - 1, 2 * count).round().astype(int)):
        encoded = source.read(int(position)).encoded
        if len(encoded) and len(found) < count:
            image = decode_rgb(encoded)
            if image.shape == (FACE, FACE, 3):
                found.append(image)
    if not found:
        raise ValueError(f"{path}: no image of {FACE} x {FACE} pixels; align or resize the faces to that size")
    return torch.from_numpy(np.stack(found))


def draw_rows(faces: Tensor, columns: int, seed: int) -> list[Row]:
    """One row for each operation and each set: another face, an original and ``columns`` draws of it."""
    rows: list[Row] = []
    choices: dict[str, str | dict[str, float]] = {name: {name: 1.0, "flip": 0.0} for name in OPERATIONS}
    choices |= {f'"{name}"': name for name in PRESETS}
    for number, (name, choice) in enumerate(choices.items()):
        face = faces[number * len(faces) // len(choices)]
        changed = Augmentation(choice, seed)(face.expand(columns, -1, -1, -1), torch.arange(columns), 0)
        rows.append(([name, *_words(name)], [face.numpy(), *changed.numpy()]))
    return rows


def _words(name: str) -> list[str]:
    """What an operation or a set does, in lines of about 24 letters."""
    if name not in OPERATIONS:
        return [f"{key} {p:g}" for key, p in (*PRESETS[name.strip('"')].items(), ("flip", 0.5))]
    lines = [""]
    for word in OPERATIONS[name].meaning.split():
        if len(lines[-1]) + len(word) > 24:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def time_all(faces: Tensor, batches: int) -> dict[str, float]:
    """Images/s of the flip alone, each set and each operation on every image, all measured in turn."""
    choices: dict[str, str | dict[str, float] | None] = {"flip alone": None}
    choices |= {f'augment = "{name}"': name for name in PRESETS}
    choices |= {f"{name} on all": {name: 1.0} for name in OPERATIONS}
    images = faces[torch.arange(BATCH) % len(faces)]
    made = {name: Augmentation(choice, 0) for name, choice in choices.items()}
    seconds = dict.fromkeys(choices, 0.0)
    for turn in range(batches + 1):
        for name, augmentation in made.items():
            start = time.perf_counter()
            to_network_input(augmentation(images, torch.arange(turn * BATCH, (turn + 1) * BATCH), 0))
            if turn:  # the first turn warms up
                seconds[name] += time.perf_counter() - start
    return {name: batches * BATCH / spent for name, spent in seconds.items()}


def _table(rates: dict[str, float]) -> PrettyTable:
    table = PrettyTable(["augmentation", "images/s", "ms a batch of 128", "times the flip's"], align="r")
    table.align["augmentation"] = "l"
    baseline = rates["flip alone"]
    for name, rate in rates.items():
        table.add_row([name, f"{rate:,.0f}", f"{1000 * BATCH / rate:.1f}", f"{baseline / rate:.1f}"])
    return table


if __name__ == "__main__":
    sys.exit(main())
