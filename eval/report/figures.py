"""Pictures of one evaluation: ROC and DET with named operating points, score histogram, sheet of face pairs.

All are drawn on white with colours that stay distinct for the colour-blind and when a dark page inverts them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from eval.report.operating import OperatingPoint, equal_error_rate
from eval.roc import Roc, plot_roc
from utils.opencv import cv2

FACE_SIZE = 112  # pixels
_GAP = 4  # pixels between the two faces of a pair
_MARGIN, _CAPTION, _HEAD = 18, 54, 48  # pixels around, under and over the pairs of a sheet
_GENUINE, _IMPOSTOR, _INK = "#1f77b4", "#d95f02", "0.25"
_OUTLINE = [withStroke(linewidth=3, foreground="white")]


@dataclass(frozen=True)
class FacePair:
    """Two faces as one picture, and what is written under them."""

    image: NDArray[np.uint8]  # (FACE_SIZE, 2 * FACE_SIZE + gap, 3) RGB
    score: float
    first: int  # ids
    second: int
    wrong: bool  # on the wrong side of the threshold


def far_name(far: float) -> str:
    """Write a FAR as "1e-4"."""
    return f"{far:.0e}".replace("e-0", "e-") if far < 1 else f"{far:g}"


def percent(share: float) -> str:
    """Write a share as "95.02 %"."""
    return f"{100 * share:.2f} %"


def _percent_tick(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def png_bytes(picture: Figure | NDArray[np.uint8]) -> bytes:
    """Encode a figure or an RGB image (H, W, 3) as PNG."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png")
        return buffer.getvalue()
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return encoded.tobytes()


def plot_roc_points(name: str, curve: Roc, points: Sequence[OperatingPoint]) -> Figure:
    """Draw the ROC with the TAR written at each point; unresolved points are labelled so."""
    figure = plot_roc({name: curve}, f"ROC, {name}", [point.far for point in points])
    axes: Any = figure.axes[0]
    axes.get_legend().remove()  # of one curve, whose name is the title; it would lie on the notes
    bottom, top = axes.get_ylim()
    if points[0].tar > (bottom + top) / 2:  # the curve, and what is written under it, needs the upper corner
        for note in axes.texts:
            note.set_position((0.015, 0.02))
            note.set_verticalalignment("bottom")
    for i, point in enumerate(points):
        last = i == len(points) - 1
        axes.annotate(
            f"{100 * point.tar:.2f}" if point.resolved else "not\nresolved",
            (point.far, point.tar),
            (-4, -11) if last else (5, -7),
            textcoords="offset points",
            ha="right" if last else "left",
            va="top",
            fontsize=8.5 if point.resolved else 7.5,
            color=_INK if point.resolved else "0.45",
            path_effects=_OUTLINE,
            zorder=4,
        )
    axes.yaxis.set_major_formatter(_percent_tick)
    return figure


def plot_det(name: str, curve: Roc, points: Sequence[OperatingPoint]) -> Figure:
    """Draw the detection error tradeoff: the share of genuine pairs refused against FAR, both logarithmic.

    A share below half a genuine pair, that is 0, lies on the lower edge. Where no threshold errs, there is no line of
    the equal error rate.
    """
    figure = Figure(figsize=(7.2, 5.4), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    floor = 0.5 / curve.genuine
    low, high = points[0].far, points[-1].far
    rates = [max(rate, floor) for rate in (equal_error_rate(curve),) if rate > 0]
    if rates:  # the axes reach past it, so that its line is in the picture
        low, high = min(low, rates[0] / 1.6), min(1.0, max(high, 1.6 * rates[0]))
    inside = curve.far >= low
    far = np.concatenate([[low], curve.far[inside]])
    tar = np.concatenate([[curve.tar[~inside].max(initial=0.0)], curve.tar[inside]])
    axes.plot(far, np.maximum(1 - tar, floor), drawstyle="steps-post", linewidth=1.8, color=_GENUINE, label=name)
    for point in points:
        axes.plot(
            point.far,
            max(1 - point.tar, floor),
            marker="o",
            markersize=5,
            markerfacecolor=_GENUINE if point.resolved else "white",
            markeredgecolor=_GENUINE,
            clip_on=False,
            zorder=3,
        )
    if rates:
        diagonal = np.geomspace(low, 1, 100)
        axes.plot(diagonal, diagonal, color="0.6", linewidth=0.9, linestyle=(0, (4, 3)), label="equal error rate")
    _shade_unresolved(axes, curve, low, high)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    shown = np.concatenate([np.maximum(1 - tar[far <= high], floor), rates])
    axes.set_ylim(max(floor, float(shown.min()) / 1.6), min(1.0, max(4 * floor, 1.6 * float(shown.max()))))
    axes.grid(which="major", color="0.85", linewidth=0.8)
    axes.grid(which="minor", color="0.94", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(_percent_tick)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("False accept rate (FAR)")
    axes.set_ylabel("False reject rate (1 - TAR)")
    axes.set_title(f"DET, {name}")
    axes.legend(loc="best", frameon=False)
    return figure


def _shade_unresolved(axes: Any, curve: Roc, low: float, high: float) -> None:
    if 1 / curve.impostor > low:
        axes.axvspan(low, min(1 / curve.impostor, high), color="0.5", alpha=0.12, linewidth=0)


def plot_score_histogram(
    name: str,
    edges: NDArray[np.float64],
    genuine: NDArray[np.float64],
    impostor: NDArray[np.float64],
    points: Sequence[OperatingPoint],
) -> Figure:
    """Draw the shares of :func:`eval.report.operating.score_histogram`, above on a linear and below on a log scale.

    Vertical lines are the thresholds of the resolved operating points.
    """
    figure = Figure(figsize=(11, 5.6), dpi=130, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (upper, lower):
        for shares, colour, label in ((impostor, _IMPOSTOR, "impostor pairs"), (genuine, _GENUINE, "genuine pairs")):
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.3, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.5, label=label)
        axes.grid(color="0.9", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    width = edges[1] - edges[0]
    upper.set_ylabel(f"Share per {width:.3g} of score")
    upper.yaxis.set_major_formatter(_percent_tick)
    upper.set_ylim(0)
    upper.legend(loc="best", frameon=False)
    lower.set_yscale("log")
    both = np.concatenate([genuine, impostor])
    lower.set_ylim(float(both[both > 0].min()) / 2, 1.0)
    lower.yaxis.set_major_formatter(_percent_tick)
    lower.set_ylabel("the same, log scale")
    lower.set_xlabel("Score (cosine)")
    low, high = float(edges[0]), float(edges[-1])
    lower.set_xlim(low, high)
    drawn = [point for point in points if point.resolved and np.isfinite(point.threshold)]
    for axes in (upper, lower):
        for point in drawn:
            axes.axvline(point.threshold, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
    shown = sorted(drawn, key=lambda point: point.threshold)
    places = _spread([point.threshold for point in shown], 0.022 * (high - low))
    for point, x in zip(shown, places, strict=True):
        upper.annotate(
            far_name(point.far),
            (point.threshold, 1.0),
            (x, 1.04),
            xycoords=("data", "axes fraction"),
            textcoords=("data", "axes fraction"),
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=_INK,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0},
            annotation_clip=False,
        )
    title = f"Scores, {name}"
    upper.set_title(f"{title} (dashed: thresholds at FAR)" if shown else title, pad=44 if shown else 8)
    return figure


def _spread(wanted: Sequence[float], apart: float) -> list[float]:
    """Push ascending places apart to the right, then shift all back by the mean push."""
    placed: list[float] = []
    for x in wanted:
        placed.append(max(x, placed[-1] + apart) if placed else x)
    shift = float(np.mean([a - b for a, b in zip(placed, wanted, strict=True)])) if placed else 0.0
    return [x - shift for x in placed]


def join_faces(first: int, second: int, image_of: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put two faces side by side: (FACE_SIZE, 2 * FACE_SIZE + gap, 3).

    A face whose file is gone or broken by now is a grey field: a report is not lost over a picture.
    """
    out = np.full((FACE_SIZE, 2 * FACE_SIZE + _GAP, 3), 255, np.uint8)
    for which, left in ((first, 0), (second, FACE_SIZE + _GAP)):
        try:
            face = image_of(which)
        except (OSError, ValueError):
            face = np.full((FACE_SIZE, FACE_SIZE, 3), 128, np.uint8)
        if face.shape[:2] != (FACE_SIZE, FACE_SIZE):
            face = cv2.resize(face, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_AREA).astype(np.uint8)
        out[:, left : left + FACE_SIZE] = face
    return out


def draw_sheet(title: str, pairs: Sequence[FacePair], id_word: str, columns: int = 4) -> Figure:
    """Draw pairs in rows, with score and ids under each; those on the wrong side have their score in colour."""
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    height, width = FACE_SIZE + _CAPTION, 2 * FACE_SIZE + _GAP + _MARGIN  # of a cell
    sheet = np.full((rows * height + _HEAD, columns * width + _MARGIN, 3), 255, np.uint8)
    figure = Figure(figsize=(sheet.shape[1] / 110, sheet.shape[0] / 110), dpi=110)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, pair in enumerate(pairs):
        top, left = _HEAD + number // columns * height, _MARGIN + number % columns * width
        sheet[top : top + FACE_SIZE, left : left + pair.image.shape[1]] = pair.image
        middle, under = left + pair.image.shape[1] / 2, top + FACE_SIZE
        style: dict[str, Any] = {"weight": "bold", "color": "#b3261e"} if pair.wrong else {"color": _INK}
        axes.text(middle, under + 5, f"{pair.score:.4f}", ha="center", va="top", fontsize=10.5, **style)
        ids = f"{id_word}s {pair.first} and {pair.second}"
        axes.text(middle, under + 25, ids, ha="center", va="top", fontsize=7.5, color="0.35")
    axes.text(_MARGIN, _HEAD / 2, textwrap.fill(title, columns * 38), va="center", fontsize=9.5, color=_INK)
    axes.imshow(sheet, interpolation="none", aspect="auto")
    return figure
