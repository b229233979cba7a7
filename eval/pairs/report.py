"""The report of ``python -m eval.pairs``: each verification set as a section of one page.

Shapes: n pairs, N = 2n images, D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.bootstrap import NOTHING, interval_text
from eval.pairs.bin_file import PairSet
from eval.pairs.groups import GROUP_HEAD, SPREAD_HEAD, GroupReport, compare_groups, group_cells, spread_cells
from eval.pairs.judged import Judged, can_be_judged, judge, pair_cosines
from eval.pairs.protocol import FARS, PairResult
from eval.report.figures import percent
from eval.report.write import PairScores, Section, Table, Tile, write_report
from eval.roc import roc
from utils.decode import decode_rgb


def pair_section(
    name: str,
    pairs: PairSet,
    embeddings_ND: NDArray[np.float32],
    result: PairResult,
    judged: Judged | None = None,
) -> Section:
    """Make a set's section, without curve and faces where no ROC can be drawn.

    Args:
        name: the set's.
        pairs: its encoded images are kept, to show the worst pairs.
        embeddings_ND: (2n, D), as the network gives them.
        result: of the same embeddings.
        judged: gives the intervals.
    """
    shown = None
    if np.isfinite(embeddings_ND).all() and 0 < np.count_nonzero(pairs.issame) < len(pairs.issame):
        cosines = pair_cosines(embeddings_ND)
        numbers = np.arange(len(pairs.encoded))
        shown = PairScores(
            curve=roc(pairs.issame, cosines),
            scores=cosines,
            labels=pairs.issame,
            first=numbers[0::2],
            second=numbers[1::2],
            image_of=lambda number: decode_rgb(pairs.encoded[number]),
            id_word="image",
            fars=FARS,
            intervals=judged.tar_interval() if judged is not None else {},
            drawn=judged.drawn if judged is not None else "",
        )
    folds = len(result.accuracy_per_fold)
    bounds = NOTHING if judged is None else judged.accuracy_interval()
    within = f" (95 %: {interval_text(bounds)})" if bounds[0] == bounds[0] else ""
    figures = {
        f"Accuracy{within}, {folds} folds ± {100 * result.accuracy_std:.2f}": (
            result.accuracy,
            percent(result.accuracy),
        ),
        "Mean genuine cosine": (result.genuine_cosine, f"{result.genuine_cosine:.3f}"),
        "Mean impostor cosine": (result.impostor_cosine, f"{result.impostor_cosine:.3f}"),
    }
    tiles = [Tile(label, text) for label, (value, text) in figures.items() if not math.isnan(value)]
    return Section(name, pairs=shown, headline=tiles, notes=result.notes())


class PairsReport:
    """Collects sets while they are evaluated, then writes the page; the images of all sets stay in memory for it.

    Args:
        folds: of each group's accuracy.
        is_page: whether a page will be written.
    """

    def __init__(self, folds: int = 10, is_page: bool = True) -> None:
        self.folds, self.is_page = folds, is_page
        self.judged: dict[str, Judged] = {}  # by set; those that have a curve
        self.groups: dict[str, GroupReport] = {}  # by set
        self.notes: list[str] = []  # groups that are left out
        self.sections: list[Section] = []

    def add(self, name: str, pairs: PairSet, embeddings_ND: NDArray[np.float32], result: PairResult) -> None:
        """Add one set; see :func:`pair_section`."""
        judged = None
        if result.accuracy_per_fold.size and can_be_judged(pairs, embeddings_ND):
            judged = self.judged[name] = judge(name, pairs, embeddings_ND, result, self.folds)
        if self.is_page:
            self.sections.append(pair_section(name, pairs, embeddings_ND, result, judged))

    def compare_groups(self, sets_are_groups: bool, rate: float | None) -> None:
        """Compare the groups of each set that has some, or all sets as groups; their tables go into the page.

        Raises:
            ValueError: groups that were asked for, by a rate or as sets, cannot be compared; see
                :func:`eval.pairs.groups.compare_groups`.
        """
        found = {name: judged.groups for name, judged in self.judged.items() if judged.groups}
        self.notes += [f"{name}: {judged.note}" for name, judged in self.judged.items() if judged.note]
        if sets_are_groups:
            found = {"all sets": self.judged}
        for name, groups in found.items():
            try:
                self.groups[name] = compare_groups(groups, rate)
            except ValueError as error:
                if sets_are_groups or rate is not None:
                    raise
                self.notes.append(f"{name}: groups are not compared: {error}")
        if self.is_page:
            tables = {name: group_page_tables(report) for name, report in self.groups.items()}
            self.sections = [
                replace(section, tables=[*section.tables, *tables.get(section.name, [])]) for section in self.sections
            ]
            if sets_are_groups:
                self.sections.insert(0, Section("all sets", tables=tables["all sets"]))


def group_page_tables(report: GroupReport) -> list[Table]:
    """The page's tables of groups."""
    note = (
        f"All at one threshold, {report.threshold:.4f}, where {100 * report.rate:g} % of the impostor pairs of all "
        f"groups are accepted. Accuracy is that of the group's own folds. Intervals: {report.drawn}."
    )
    return [
        Table("Groups", GROUP_HEAD, group_cells(report), note),
        Table(
            "How far groups lie apart",
            SPREAD_HEAD,
            spread_cells(report),
            "The highest group's figure over the lowest's, and the standard deviation over groups in percentage "
            "points. A ratio has no value where the lowest is 0. Noise alone spreads groups, and draws add to "
            "it: groups differ beyond chance where the deviation is above what 95 % of draws of equal groups show.",
        ),
    ]


def write_page(path: Path, sections: list[Section], facts: dict[str, str], flip: bool, printed: str) -> list[Path]:
    """Write the page and its pictures; makes the folder.

    Args:
        path: the HTML file.
        sections: of all sets and models.
        facts: of the models.
        flip: whether embeddings of mirror images were added.
        printed: the tables.

    Raises:
        OSError: a file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "straight + mirrored" if flip else "straight only"
    sections = [replace(section, mode=mode) for section in sections]
    return write_report(path, "Verification of pairs", sections, facts, printed=printed, worst_at_far=1e-3)
