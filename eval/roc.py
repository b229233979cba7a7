"""Receiver operating characteristic: true accept rate (TAR) against false accept rate (FAR), and its plot.

Shapes: P pairs, K points of the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

FAR_GRID: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Roc:
    """One curve, its points by growing FAR."""

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
    """Build the curve with ``sklearn.metrics.roc_curve``.

    Args:
        labels: (P,), 1 for a pair of one person, 0 for two.
        scores: (P,), higher means more alike.

    Raises:
        ValueError: only one kind of pair, or scores that are not finite.
    """
    from sklearn.metrics import roc_curve  # slow to import, and training does not need it

    labels_P, scores_P = np.asarray(labels), np.asarray(scores)
    genuine = int(np.count_nonzero(labels_P))
    impostor = len(labels_P) - genuine
    if genuine == 0 or impostor == 0:
        raise ValueError(f"a ROC needs pairs of both kinds, found {genuine} genuine and {impostor} impostor")
    bad = int(len(scores_P) - np.isfinite(scores_P).sum())
    if bad:
        raise ValueError(f"{bad} of {len(scores_P)} scores are not finite")
    far, tar, _ = roc_curve(labels_P, scores_P, pos_label=1)
    return Roc(far, tar, genuine, impostor)


def plot_roc(curves: dict[str, Roc], title: str, fars: Sequence[float] = FAR_GRID) -> Figure:
    """Draw curves over a logarithmic FAR axis, with a mark at each FAR of ``fars``.

    A mark is the TAR of the nearest point, so it may lie beside the staircase; it is hollow where the FAR is
    less than one impostor pair, and that range is grey.

    Args:
        curves: legend label to curve, at least one.
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
