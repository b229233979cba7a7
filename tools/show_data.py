"""Draw some identities of a set, one a row, with their labels and image counts.

    python -m tools.show_data SOURCE OUT.png [--identities 12 | --identities 3,17,20] [--per-identity 10]

SOURCE is a folder with train.rec, a .rec file, a folder of identity folders, or a verification set (.bin), whose
pairs are drawn.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("show_data")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.records.images import find_images, read_labels
from tools.parts.contact_sheet import FACE, Row, check_png, contact_sheet, write_png
from tools.parts.face_sources import AnySource, FolderSource, PairSource, RecordSource, SetSource, open_source
from utils.decode import decode_rgb
from utils.text import any_name_can_be_printed, complain


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="show_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument(
        "--identities",
        default="12",
        metavar="N|IDS",
        help='how many, spread over the set, or which: labels or folders with commas, "7," for label 7 (default: 12)',
    )
    parser.add_argument("--per-identity", type=int, default=10, metavar="M", help="images of each (default: 10)")
    args = parser.parse_args(argv)
    try:
        check_png(args.out)
        if args.per_identity < 1:
            raise ValueError(f"--per-identity must be at least 1, got {args.per_identity}")
        source = open_source(args.source)
        rows = draw_rows(source, args.identities, args.per_identity)
        write_png(args.out, contact_sheet(rows))
    except (ValueError, OSError) as error:
        complain("show_data", error)
        return 2
    print(f"{args.out}: {len(rows)} rows")
    return 0


def draw_rows(source: AnySource, identities: str, per_identity: int) -> list[Row]:
    """Choose identities or pairs and decode their images.

    Args:
        source: where they are.
        identities: a number of them, or labels or names with commas between.
        per_identity: images of each; those of larger identities are spread over all of its images.

    Raises:
        ValueError: an identity that is not there; a record that cannot be read.
    """
    if len(source) == 0:
        raise ValueError(f"{source.path}: no images in it")
    if isinstance(source, PairSource):
        which = _chosen(identities, np.arange(len(source.pairs.issame)), [], "pair")
        same = source.pairs.issame
        return [
            ([f"pair {i}", "one person" if same[i] else "two persons"], _images(source, [2 * i, 2 * i + 1]))
            for i in which
        ]
    positions, labels, names = _labelled(source)
    order = labels.argsort(kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    stops = np.append(starts[1:], len(order))
    rows: list[Row] = []
    for label in _chosen(identities, present, names, "identity"):
        at = int(np.searchsorted(present, label))
        members = positions[order[starts[at] : stops[at]]]
        shown = members[_spread(len(members), per_identity)]
        title = [names[label][:24]] if names else []
        rows.append(([*title, f"label {label}", f"{len(members)} images"], _images(source, shown.tolist())))
    return rows


def _labelled(
    source: RecordSource | FolderSource | SetSource,
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Positions of the images, their labels, and the names of the labels, if they have names."""
    if isinstance(source, FolderSource):
        return np.arange(len(source)), source.labels, source.classes
    if isinstance(source, SetSource):
        return np.flatnonzero(source.labels >= 0), source.labels[source.labels >= 0], source.classes
    span = find_images(source.reader)
    return np.arange(span.start, span.stop), read_labels(source.reader, span), []


def _chosen(text: str, present: NDArray[np.int64], names: list[str], what: str) -> list[int]:
    if "," not in text and text not in names:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f'--identities takes a number, or ids with commas such as 3,17 or "7,"; got {text!r}')
        return [int(present[i]) for i in _spread(len(present), int(text))]
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    chosen = []
    for word in wanted:
        number = names.index(word) if word in names else int(word) if word.isdecimal() else -1
        if not np.isin(number, present):
            span = f"{present[0]} to {present[-1]}" if len(present) else "none"
            raise ValueError(f"there is no {what} {word!r}; labels here: {span}")
        chosen.append(number)
    return chosen


def _spread(n: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` of 0 .. n - 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64))


def _images(source: AnySource, positions: Sequence[int]) -> list[NDArray[np.uint8]]:
    return [_image(source, position) for position in positions]


def _image(source: AnySource, position: int) -> NDArray[np.uint8]:
    """Decode an image; one that is damaged is a red square."""
    try:
        return decode_rgb(source.read(position).encoded)
    except ValueError:
        return np.full((FACE, FACE, 3), (200, 30, 30), np.uint8)


if __name__ == "__main__":
    sys.exit(main())
