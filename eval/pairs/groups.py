"""Groups of people at one threshold: how evenly does a model err?

Shapes: R draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prettytable import PrettyTable

from eval.bootstrap import LEAST_TRIALS, LEVEL, NOTHING, Interval, interval, interval_text, share_interval, shares
from eval.pairs.judged import Judged, accuracy_draws
from eval.pairs.threshold import LEAST_MATCHES, find_threshold

FIGURES = ("accuracy", "true match rate", "false match rate")
_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class GroupRow:
    """One group; figures in the order of FIGURES."""

    name: str
    genuine: int
    impostor: int
    values: tuple[float, ...]
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Spread:
    """How far one figure lies apart over groups."""

    figure: str
    ratio: float  # highest / lowest, inf where the lowest is 0
    ratio_interval: Interval
    std: float  # over groups
    std_interval: Interval
    std_by_chance: float  # 95 % of draws stay below it where all groups are alike; nan without intervals


@dataclass(frozen=True)
class GroupReport:
    """All groups at the threshold of one overall false match rate."""

    rate: float  # asked for, over the pairs of all groups
    threshold: float
    rows: list[GroupRow]
    spreads: list[Spread]
    drawn: str


def compare_groups(groups: Mapping[str, Judged], rate: float | None = None) -> GroupReport:
    """Find the threshold over the pairs of all groups, and each group's figures at it.

    Accuracy is that of the group's own folds, as RFW is reported. The threshold stays in all draws; a group's people
    are drawn by themselves.

    Args:
        groups: by name, at least two.
        rate: false match rate over all groups' impostor pairs; None takes the lowest power of ten that is at least
            10 of them.

    Raises:
        ValueError: fewer than two groups, or too few impostor pairs for the rate.
    """
    if len(groups) < 2:
        raise ValueError(f"groups are compared from two on, found {', '.join(groups) or 'none'}")
    impostor = np.concatenate([group.scores[~group.issame] for group in groups.values()])
    if rate is None:
        enough = [rate for rate in _RATES if rate * len(impostor) >= LEAST_MATCHES]
        rate = enough[0] if enough else _RATES[-1]
    threshold = find_threshold(impostor, rate)
    rows, draws, fewest = [], [], [LEAST_TRIALS] * len(FIGURES)
    for name, group in groups.items():
        accepted = group.scores >= threshold
        values = (group.result.accuracy, float(accepted[group.issame].mean()), float(accepted[~group.issame].mean()))
        drawn_3R = _draws(group, accepted)
        trials = (group.resampler.trials_together, *group.resampler.trials)
        fewest = [min(pair) for pair in zip(fewest, trials, strict=True)]
        bounds = tuple(share_interval(draws_R, n) for draws_R, n in zip(drawn_3R, trials, strict=True))
        rows.append(GroupRow(name, int(group.issame.sum()), int((~group.issame).sum()), values, bounds))
        draws.append(drawn_3R)
    spreads = [
        _spread(figure, [row.values[i] for row in rows], np.stack([drawn[i] for drawn in draws]), fewest[i])
        for i, figure in enumerate(FIGURES)
    ]
    first = next(iter(groups.values()))
    return GroupReport(rate, threshold, rows, spreads, f"in each group {first.drawn}; the threshold stays")


def _draws(group: Judged, accepted: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    correct, above = group.resampler.counts(group.result.correct.astype(np.int8), accepted.astype(np.int8), n_bins=2)
    kinds = (above.genuine_RB, above.impostor_RB)
    return [accuracy_draws(correct), *(np.clip(shares(kind[:, 1], kind.sum(axis=1)), 0, 1) for kind in kinds)]


def _spread(figure: str, values: Sequence[float], draws_GR: NDArray[np.float64], trials: int) -> Spread:
    """How far a figure lies apart; ``trials`` of the group with fewest, without intervals if they are too few."""

    def ratio(rates: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = rates.min(axis=0), rates.max(axis=0)
        out: NDArray[np.float64] = np.divide(high, low, out=np.full_like(high, np.inf), where=low > 0)
        return out

    column = np.array(values)[:, None]
    draws_GR = draws_GR[:, ~np.isnan(draws_GR).any(axis=0)]  # a draw may leave out a kind of pair
    if trials < LEAST_TRIALS or not draws_GR.size:
        return Spread(figure, float(ratio(column)[0]), NOTHING, float(column.std()), NOTHING, math.nan)
    alike_GR = draws_GR - draws_GR.mean(axis=1, keepdims=True)
    return Spread(
        figure,
        float(ratio(column)[0]),
        interval(ratio(draws_GR)),
        float(column.std()),
        interval(draws_GR.std(axis=0)),
        float(np.quantile(alike_GR.std(axis=0), LEVEL)),
    )


def group_cells(report: GroupReport) -> list[list[str]]:
    """A row a group, in percent: figures with their intervals beside them."""
    return [
        [
            row.name,
            f"{row.genuine:,}",
            f"{row.impostor:,}",
            *(
                cell
                for value, bounds, digits in zip(row.values, row.intervals, (2, 2, 4), strict=True)
                for cell in (f"{100 * value:.{digits}f}", interval_text(bounds, digits))
            ),
        ]
        for row in report.rows
    ]


GROUP_HEAD = (
    "Group", "Genuine", "Impostor", "Accuracy %", "95 %", "TAR %", "95 % ", "FMR %", "95 %  ",
)  # fmt: skip
SPREAD_HEAD = ("Over groups", "max / min", "95 %", "std, points", "95 % ", "by chance below")


def spread_cells(report: GroupReport) -> list[list[str]]:
    """A row a figure."""

    def shown(value: float, bounds: Interval, factor: float, digits: int) -> list[str]:
        low, high = (factor * bound for bound in bounds)
        known = np.isfinite([low, high]).all()
        return [
            f"{factor * value:.{digits}f}" if np.isfinite(value) else "-",
            f"{low:.{digits}f} to {high:.{digits}f}" if known else "-",
        ]

    return [
        [
            spread.figure,
            *shown(spread.ratio, spread.ratio_interval, 1, 3),
            *shown(spread.std, spread.std_interval, 100, 4 if spread.figure == FIGURES[2] else 2),
            shown(spread.std_by_chance, NOTHING, 100, 4 if spread.figure == FIGURES[2] else 2)[0],
        ]
        for spread in report.spreads
    ]


def group_tables(report: GroupReport) -> list[PrettyTable]:
    """The groups, and how far they lie apart."""
    tables = []
    for head, rows in ((GROUP_HEAD, group_cells(report)), (SPREAD_HEAD, spread_cells(report))):
        table = PrettyTable(list(head), align="r")
        table.align[head[0]] = "l"
        table.add_rows(rows)
        tables.append(table)
    return tables


def as_json(report: GroupReport) -> dict[str, object]:
    """Every figure; null where there is none."""

    def known(value: float) -> float | None:
        return value if np.isfinite(value) else None

    def with_interval(value: float, bounds: Interval) -> dict[str, object]:
        return {"value": known(value), "interval": [known(bound) for bound in bounds]}

    def name(figure: str) -> str:
        return figure.replace(" ", "_")

    return {
        "false_match_rate": report.rate,
        "threshold": report.threshold,
        "interval_method": report.drawn,
        "groups": {
            row.name: {
                "genuine_pairs": row.genuine,
                "impostor_pairs": row.impostor,
                **{
                    name(figure): with_interval(value, bounds)
                    for figure, value, bounds in zip(FIGURES, row.values, row.intervals, strict=True)
                },
            }
            for row in report.rows
        },
        "spread": {
            name(spread.figure): {
                "max_over_min": with_interval(spread.ratio, spread.ratio_interval),
                "std": with_interval(spread.std, spread.std_interval),
                "std_by_chance": known(spread.std_by_chance),
            }
            for spread in report.spreads
        },
    }
