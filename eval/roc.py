"""Receiver operating characteristic: true accept rate (TAR) against false accept rate (FAR), and its plot.

Shapes: P pairs, K points of the curve.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from utils.text import plain

_MANY = 1 << 20  # scores that are sorted in threads
_SAMPLE = 10_000  # of them, to split them by
FAR_GRID: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Roc:
    """One curve, its points by ascending FAR."""

    far: NDArray[np.float64]  # (K,)
    tar: NDArray[np.float64]  # (K,)
    genuine: int  # pairs of one person
    impostor: int  # pairs of two persons

    def tar_at(self, far: float) -> float:
        """Give the TAR of the point whose FAR is nearest to ``far``, the highest TAR on a tie."""
        distance = np.abs(self.far - far)
        return float(self.tar[distance == distance.min()].max())

    def resolves(self, far: float) -> bool:
        """Tell whether ``far`` is at least one impostor pair, so that a false accept can be counted there."""
        return far * self.impostor >= 1 - 1e-9


def roc(labels: ArrayLike, scores: ArrayLike) -> Roc:
    """Build the curve: exactly the points of ``sklearn.metrics.roc_curve``, equal scores and dropped points included.

    It differs in sorting impostor and genuine scores separately, values only. Memory beyond the inputs: about
    56 bytes a pair for a moment.

    Args:
        labels: (P,), 1 for a pair of one person, 0 for two.
        scores: (P,), higher means more alike.

    Raises:
        ValueError: only one kind of pair, or scores that are not finite.
    """
    is_genuine, scores_P = np.asarray(labels).astype(bool), np.asarray(scores, np.float64)
    genuine = int(np.count_nonzero(is_genuine))
    impostor = len(is_genuine) - genuine
    if genuine == 0 or impostor == 0:
        raise ValueError(f"a ROC needs pairs of both kinds, found {genuine} genuine and {impostor} impostor")
    bad = int(len(scores_P) - np.count_nonzero(np.isfinite(scores_P)))
    if bad:
        raise ValueError(f"{bad} of {len(scores_P)} scores are not finite")
    false_K, true_K = _accepted(_sorted(scores_P[~is_genuine]), _sorted(scores_P[is_genuine]))
    if len(false_K) > 2:
        corner = np.ones(len(false_K), bool)
        corner[1:-1] = (np.diff(false_K, 2) != 0) | (np.diff(true_K, 2) != 0)
        false_K, true_K = false_K[corner], true_K[corner]
    return Roc(np.r_[0, false_K] / impostor, np.r_[0, true_K] / genuine, genuine, impostor)


def _sorted(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sort many values in threads, each one range of them."""
    workers = min(4, os.cpu_count() or 1)
    if len(scores) < _MANY or workers == 1:
        return np.sort(scores)
    sample = np.sort(scores[:: len(scores) // _SAMPLE])
    limits = [-np.inf, *(sample[len(sample) * i // workers] for i in range(1, workers)), np.inf]
    with ThreadPoolExecutor(workers) as pool:
        ranges = pool.map(
            lambda low, high: np.sort(scores[(scores > low) & (scores <= high)]), limits[:-1], limits[1:]
        )
        return np.concatenate(list(ranges))


def _accepted(
    impostor: NDArray[np.float64], genuine: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Count the pairs of both kinds at or above each score that occurs, the highest score first.

    Args:
        impostor: scores, ascending.
        genuine: scores, ascending.
    """
    impostor_values, false_K = _distinct(impostor)
    genuine_values, true_g = _distinct(genuine)
    # Impostor scores from `place` on lie at or below each genuine one, so that one is counted among the accepted.
    place = len(impostor_values) - np.searchsorted(impostor_values[::-1], genuine_values, side="right")
    spans = np.diff(np.r_[0, place, len(false_K)])
    true_K = np.repeat(np.r_[np.int32(0), true_g], spans)
    following = impostor_values[np.minimum(place, len(impostor_values) - 1)]
    alone = (place == len(impostor_values)) | (following != genuine_values)  # no impostor pair has that score
    before = np.r_[np.int32(0), false_K][place[alone]]
    return np.insert(false_K, place[alone], before), np.insert(true_K, place[alone], true_g[alone])


def _distinct(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Each score that occurs in an ascending array, the highest first, and how many lie at or above it."""
    falling = scores[::-1]
    last = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])
    if len(last) == len(falling):
        return falling, np.arange(1, len(falling) + 1, dtype=np.int32)
    return falling[last], (last + 1).astype(np.int32)


def drawable(name: str) -> str:
    """A name for a picture, without what matplotlib has no letter for or takes for a formula (between two $)."""
    return plain(name).replace("$", r"\$")


def plot_roc(curves: dict[str, Roc], title: str, fars: Sequence[float] = FAR_GRID) -> Figure:
    """Draw curves over a logarithmic FAR axis, with a mark at each FAR of ``fars``.

    A mark is the TAR of the nearest point, so it may lie off the staircase; it is hollow where the FAR is
    less than one impostor pair, and that range is grey.

    Args:
        curves: legend label (see :func:`drawable`) to curve, at least one.
        title: the figure's heading.
        fars: marked points; the first and the last bound the axis.
    """
    figure = Figure(figsize=(7.2, 5.4), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    lowest = 1.0
    for label, curve in curves.items():
        marks = [curve.tar_at(far) for far in fars]
        inside = curve.far >= fars[0]
        # The curve is a staircase, and it starts at the axis with the TAR reached by then.
        far = np.concatenate([[fars[0]], curve.far[inside]])
        tar = np.concatenate([[curve.tar[~inside].max(initial=0.0)], curve.tar[inside]])
        (line,) = axes.plot(far, tar, drawstyle="steps-post", linewidth=1.8, label=label)
        solid = [curve.resolves(x) for x in fars]
        for chosen, fill in ((True, line.get_color()), (False, "white")):
            points = [(x, y) for x, y, s in zip(fars, marks, solid, strict=True) if s is chosen]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    linestyle="none",
                    marker="o",
                    markersize=5,
                    markerfacecolor=fill,
                    markeredgecolor=line.get_color(),
                    clip_on=False,
                    zorder=3,
                )
        lowest = min(lowest, float(tar.min()))
    fewest = min(curve.impostor for curve in curves.values())
    if 1 / fewest > fars[0]:
        axes.axvspan(fars[0], min(1 / fewest, fars[-1]), color="0.5", alpha=0.12, linewidth=0)
        axes.annotate(
            f"less than one of {fewest:,} impostor pairs",
            (0.015, 0.98),
            xycoords="axes fraction",
            va="top",
            fontsize=8,
            color="0.35",
        )
    axes.set_xscale("log")
    axes.set_xlim(fars[0], fars[-1])
    bottom = max(0.0, np.floor(20 * lowest - 0.3) / 20)
    axes.set_ylim(bottom, 1.0 + 0.02 * (1 - bottom))
    axes.grid(which="major", color="0.85", linewidth=0.8)
    axes.grid(which="minor", axis="x", color="0.93", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("False accept rate (FAR)")
    axes.set_ylabel("True accept rate (TAR)")
    axes.set_title(title)
    low = any(curve.tar_at(fars[-1]) < bottom + 0.6 * (1 - bottom) for curve in curves.values())
    axes.legend(loc="upper left" if low else "lower right", frameon=False)
    return figure
