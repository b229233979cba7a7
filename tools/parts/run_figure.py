"""The picture of runs: loss, rate, accuracy, speed and waiting, by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from tools.parts.run_curves import RunCurves, smoothed

_COLOURS = ("#3b6ea5", "#c0392b", "#2e8b57", "#8e5ea2", "#d98e04", "#16a0a0", "#7f6a55", "#555555")
_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP*X"
_PANELS = (  # name in the metrics, title, axis, factor, whether it is smoothed
    ("loss", "loss", "loss", 1.0, True),
    ("learning_rate", "learning rate", "rate", 1.0, False),
    ("images_per_s", "speed, all ranks together", "images a second", 1.0, True),
    ("data_wait_share", "waiting for data", "% of the time", 100.0, True),
)
_ACCURACY = "/accuracy"
_FEW = 20  # points up to which each gets a marker: a line through two or three neighbours is hardly seen


def draw_runs(runs: Sequence[RunCurves], window: int | None, file: BinaryIO) -> None:
    """Write a PNG.

    Args:
        runs: at least one.
        window: log lines in a mean; None: a fortieth of each run's.
        file: where it goes.
    """
    figure = Figure(figsize=(11, 10), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2)
    places = (grid[0, :], grid[1, 0], grid[2, 0], grid[2, 1])
    for place, (name, title, unit, factor, is_smoothed) in zip(places, _PANELS, strict=True):
        _draw_figure(figure.add_subplot(place), runs, name, (title, unit, factor), window if is_smoothed else 1)
    _draw_accuracy(figure.add_subplot(grid[1, 1]), runs)
    last = max(int(curve.steps_N[-1]) for run in runs for curve in run.curves.values())
    for axes in figure.axes:
        axes.set_xlim(-0.02 * last, 1.02 * last or 1.0)
    handles = [Line2D([], [], color=_colour(i), linestyle=_style(i), lw=2, label=_short(run.name))
               for i, run in enumerate(runs)]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
    figure.savefig(file, format="png", dpi=110)


def _draw_figure(
    axes: Any, runs: Sequence[RunCurves], name: str, words: tuple[str, str, float], window: int | None
) -> None:
    title, unit, factor = words
    widths = []
    for number, run in enumerate(runs):
        if (curve := run.curves.get(name)) is None:
            continue
        values = factor * curve.values_N
        width = max(1, len(values) // 40) if window is None else window
        widths.append(width)
        dot = "o" if len(values) <= _FEW else None
        if width > 1:
            axes.plot(curve.steps_N, values, color=_colour(number), lw=0.6, alpha=0.35)
        look: dict[str, Any] = {"color": _colour(number), "ls": _style(number), "lw": _width(number, len(runs))}
        axes.plot(curve.steps_N, smoothed(values, width), marker=dot, markersize=4, **look)
    if widths and max(widths) > 1:
        lines = str(widths[0]) if len(set(widths)) == 1 else f"{min(widths)} to {max(widths)}"
        title += f" (thin: as logged, thick: mean of {lines} log lines)" if name == "loss" else " (smoothed likewise)"
    _finish(axes, title, unit, bool(widths))
    if name != "loss":
        axes.set_ylim(bottom=0)


def _draw_accuracy(axes: Any, runs: Sequence[RunCurves]) -> None:
    sets = sorted({name for run in runs for name in run.curves if name.endswith(_ACCURACY)})
    for number, run in enumerate(runs):
        for which, name in enumerate(sets):
            if (curve := run.curves.get(name)) is not None:
                marker = _MARKERS[which % len(_MARKERS)]
                axes.plot(
                    curve.steps_N, 100 * curve.values_N, color=_colour(number), ls=_style(number),
                    lw=0.7 * _width(number, len(runs)), marker=marker, markersize=4,
                )  # fmt: skip
    _finish(axes, "verification accuracy", "% of the pairs", bool(sets))
    if sets:
        handles = [Line2D([], [], color="#333333", ls="", marker=_MARKERS[i % len(_MARKERS)], markersize=5,
                          label=_short(name.removesuffix(_ACCURACY))) for i, name in enumerate(sets)]  # fmt: skip
        axes.legend(handles=handles, fontsize=8, loc="lower right")


def _finish(axes: Any, title: str, unit: str, has_figures: bool) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if unit == "images a second":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:,g}"))
    axes.spines[["top", "right"]].set_visible(False)
    if not has_figures:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none in these runs", ha="center", va="center", transform=axes.transAxes, color="#777777")


def _width(number: int, count: int) -> float:
    """Of a line: those drawn first are wider, so that equal ones show below one another."""
    return 1.5 + 1.5 * (count - 1 - number) / max(count - 1, 1)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _style(number: int) -> Any:
    return _STYLES[number // len(_COLOURS) % len(_STYLES)]


def _short(name: str) -> str:
    """A name that the picture has room for, and that matplotlib takes as it is."""
    shown = name if len(name) <= 40 else "..." + name[-37:]
    return shown.replace("$", r"\$").lstrip("_") or "run"
