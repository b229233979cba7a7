"""The histogram of images per identity."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator
from numpy.typing import NDArray


def _count(value: float, _: object) -> str:
    """A tick of an axis of counts; none between them."""
    return f"{value:,.0f}" if value == round(value) else ""


class _SmallTicks(LogFormatter):
    """Those of a logarithmic axis that matplotlib would label."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _count(x, pos) if super().__call__(x, pos) else ""


def draw_histogram(counts: NDArray[np.int64], file: BinaryIO) -> None:
    """Write a PNG: how many identities have how many images, with mean and median.

    Args:
        counts: images of each identity, those without one left out.
        file: where it goes.
    """
    counts = counts[counts > 0]
    most = int(counts.max())
    if most <= 60:
        edges = np.arange(0.5, most + 1)
    else:  # bins that are about equally wide on a logarithmic axis, with whole numbers inside each
        edges = np.unique(np.geomspace(1, most + 1, 50).round()) - 0.5
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(counts, edges.tolist(), color="#3b6ea5", edgecolor="white", linewidth=0.3)
    for value, name, style in ((np.median(counts), "median", "-"), (counts.mean(), "mean", "--")):
        axes.axvline(value, color="#c0392b", linestyle=style, label=f"{name} {value:.3g}")
    axes.set_yscale("log")
    if most > 60:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (axes.xaxis, axes.yaxis):  # where a logarithmic axis is short, its ticks may be halves
        axis.set_major_formatter(FuncFormatter(_count))
        axis.set_minor_formatter(_SmallTicks())
    axes.set_xlabel("images of an identity")
    axes.set_ylabel("identities")
    axes.set_title(f"{counts.sum():,} images of {len(counts):,} identities")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=120)
