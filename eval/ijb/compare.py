"""Compare two models on IJB, 1:1, from the scores that two evaluations left.

    python -m eval.ijb.compare results/IJBC/a.npy results/IJBC/b.npy --image-path .../IJBC --png both.png

Both are drawn together, so that what they share does not widen the interval of their difference.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("eval.ijb.compare")

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prettytable import PrettyTable

from eval.bootstrap import Interval, Resampler, bounded_fars, interval, linked_people, tar_draws
from eval.ijb.lists import TARGETS, read_lists
from eval.roc import FAR_GRID, Roc, drawable, plot_roc, roc
from utils.atomic import open_atomic, write_json
from utils.npy import load_npy
from utils.text import any_name_can_be_printed, complain, plain


@dataclass(frozen=True)
class Comparison:
    """TARs of two models on the same pairs, at each FAR that has an interval, see ``bounded_fars``."""

    names: tuple[str, str]
    curves: tuple[Roc, Roc]
    intervals: dict[float, Interval]  # FAR -> 95 % of second - first
    drawn: str

    def table(self) -> PrettyTable:
        """A row a FAR, in percent."""
        table = PrettyTable(
            ["FAR", *map(plain, self.names), "difference", "95 % interval", "beyond chance"], align="r"
        )
        for far, (low, high) in self.intervals.items():
            first, second = (curve.tar_at(far) for curve in self.curves)
            table.add_row(
                [
                    f"{far:g}",
                    f"{100 * first:.2f}",
                    f"{100 * second:.2f}",
                    f"{100 * (second - first):+.2f}",
                    f"{100 * low:+.2f} to {100 * high:+.2f}",
                    "yes" if low > 0 or high < 0 else "no",
                ]
            )
        return table


def compare_scores(
    labels: NDArray[np.integer[Any]],
    people: tuple[NDArray[np.int32], NDArray[np.int32]],
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    names: tuple[str, str],
) -> Comparison:
    """Compare two models' scores of the same pairs.

    Args:
        labels: (P,) 1 for a pair of one person, 0 for two.
        people: (P,) of both sides.
        scores: (P,) of both models.
        names: of both.
    """
    curves = roc(labels, scores[0]), roc(labels, scores[1])
    resampler = Resampler(labels, *people)
    fars = bounded_fars(resampler, FAR_GRID, scores)
    first, second = tar_draws(resampler, scores, fars)
    gains = {far: interval(second[:, i] - first[:, i]) for i, far in enumerate(fars)}
    return Comparison(names, curves, gains, resampler.method("as genuine pairs join their templates"))


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    parser = argparse.ArgumentParser(prog="eval.ijb.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, help="JOB.npy of eval_ijbc.py")
    parser.add_argument("second", type=Path, help="another, of the same set")
    parser.add_argument("--image-path", required=True, help="the folder that holds meta/, as for eval_ijbc.py")
    parser.add_argument("--target", default="IJBC", type=str.upper, choices=TARGETS, help="default IJBC")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures there")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="draw both curves there")
    options = parser.parse_args(argv)
    try:
        _compare(options)
    except (ValueError, OSError) as error:
        complain("eval.ijb.compare", error)
        return 2
    return 0


def _compare(options: argparse.Namespace) -> None:
    paths = (options.first, options.second)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}: expected RESULT_DIR/{options.target}/JOB.npy of eval_ijbc.py")
    if paths[0] == paths[1]:
        raise ValueError(f"{paths[0]} is given twice: expected the scores of two models")
    scores = [load_npy(path) for path in paths]
    tree = read_lists(options.image_path, options.target)
    for path, own in zip(paths, scores, strict=True):
        if own.shape != tree.pair_label.shape:
            raise ValueError(
                f"{path} holds scores of shape {own.shape}, but {options.target} in {options.image_path} has "
                f"{len(tree.pair_label):,} pairs: give scores of that set"
            )
    names = (paths[0].stem, paths[1].stem) if paths[0].stem != paths[1].stem else tuple(map(str, paths))
    people = linked_people(tree.pair_label, tree.pair_template_1, tree.pair_template_2)
    found = compare_scores(tree.pair_label, people, (scores[0], scores[1]), (names[0], names[1]))
    print(found.table().get_string())
    print(f"Difference: the second less the first. {found.drawn}.")
    if options.out is not None:
        first, second = ({f"{far:g}": curve.tar_at(far) for far in found.intervals} for curve in found.curves)
        bounds = {f"{far:g}": list(value) for far, value in found.intervals.items()}
        facts = {"first": str(paths[0]), "second": str(paths[1]), "first_tar": first, "second_tar": second}
        write_json(options.out, facts | {"difference_interval": bounds, "interval_method": found.drawn})
    if options.png is not None:
        curves = dict(zip(map(drawable, found.names), found.curves, strict=True))
        figure = plot_roc(curves, f"ROC on {options.target}, 1:1 verification")
        with open_atomic(options.png) as file:
            figure.savefig(file, format="png")


if __name__ == "__main__":
    sys.exit(main())
