"""Tables and the figure of learning.py."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prettytable import PrettyTable

from benchmarks.learning_arms import CUSTOMARY, SPARSE, Rule

Record = dict[str, Any]
Group = tuple[str, Rule]  # selection, rule
FULL = "full softmax"
# 97.5 % quantiles of Student's t, by degrees of freedom; the last one, a little too wide, beyond.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


def metrics_of(record: Record) -> list[str]:
    """The names of its figures, the first two being those that rules are chosen by."""
    if "rank1" in record:
        return ["rank1", "tar_0.0001", "tar_1e-05"]
    return ["accuracy", "tar_0.1", "tar_0.01"]


def settings_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records that may be compared, by what they have in common."""
    found: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        common = ("classes", "images", "rec", "batch", "epochs")
        found[f"{r['task']}: {', '.join(f'{name} {r[name]}' for name in common if name in r)}"].append(r)
    return dict(found)


def groups_of(records: Sequence[Record]) -> dict[Group, dict[int, Record]]:
    """Runs that differ in nothing but the seed: seed to record, for each selection and rule."""
    groups: dict[Group, dict[int, Record]] = defaultdict(dict)
    for r in records:
        groups[r["selection"], Rule(r["row_lr"], r["row_momentum"], r["row_idle"])][r["seed"]] = r
    return dict(groups)


def score(runs: dict[int, Record]) -> float:
    """What rules are chosen by: the mean of two figures over seeds."""
    first, second, _ = metrics_of(next(iter(runs.values())))
    return statistics.fmean((r[first] + r[second]) / 2 for r in runs.values())


def best_rules(records: Sequence[Record]) -> dict[str, Rule]:
    """The rule with the highest score for each selection."""
    best: dict[str, tuple[float, Rule]] = {}
    for (selection, rule), runs in groups_of(records).items():
        best[selection] = max(best.get(selection, (-1.0, rule)), (score(runs), rule), key=lambda pair: pair[0])
    return {selection: rule for selection, (_, rule) in best.items()}


def sweep_table(records: Sequence[Record]) -> PrettyTable:
    """The score of each selection with each rule, in percent; the best of a row is marked."""
    groups, best = groups_of(records), best_rules(records)
    rules = list(dict.fromkeys(rule for _, rule in groups))
    shown = PrettyTable(["selection", *map(str, rules)], align="r")
    for selection in best:
        row = []
        for rule in rules:
            runs = groups.get((selection, rule))
            mark = "*" if rule == best[selection] else ""
            row.append("" if runs is None else f"{mark}{100 * score(runs):.1f}")
        shown.add_row([selection, *row])
    return shown


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences, and half of its 95 % interval (nan for a single one)."""
    n = len(differences)
    if n < 2:
        return differences[0], float("nan")
    quantile = _T[min(n - 2, len(_T) - 1)]
    return statistics.fmean(differences), quantile * statistics.stdev(differences) / n**0.5


def reference(groups: dict[Group, dict[int, Record]]) -> dict[int, Record]:
    """Full softmax with the rule that serves it best."""
    return max((runs for (selection, _), runs in groups.items() if selection == FULL), key=score, default={})


def table(records: Sequence[Record]) -> PrettyTable:
    """Mean and standard deviation over seeds, in percent; and what is gained over full softmax, seed by seed."""
    groups = groups_of(records)
    names, full = metrics_of(records[0]), reference(groups)
    shown = PrettyTable(
        [
            "selection",
            "rule",
            "classes a step",
            "negatives",
            *names,
            *(f"{name} - full" for name in names),
        ],
        align="r",
    )
    for (selection, rule), runs in groups.items():
        some = next(iter(runs.values()))
        row = [selection, str(rule), f"{100 * some['share']:.1f} %", f"{some['negatives']:,.0f}"]
        for name in names:
            values = [100 * r[name] for r in runs.values()]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            row.append(f"{statistics.fmean(values):.1f}{spread}")
        for name in names:
            common = sorted(runs.keys() & full.keys())
            gained, half = interval([100 * (runs[s][name] - full[s][name]) for s in common] or [float("nan")])
            row.append("" if runs is full or not common else f"{gained:+.1f} ± {half:.1f}")
        shown.add_row(row)
    return shown


def draw(records: Sequence[Record], path: Path) -> None:
    """Accuracy against the share of classes that a step works on, a panel for each task.

    Shown are the default rule, insightface's, and full softmax at its best.
    """
    settings = settings_of(records)
    figure = Figure(figsize=(6.5 * len(settings), 5), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for axes, (title, some) in zip(panels, settings.items(), strict=True):
        name, groups = metrics_of(some[0])[0], groups_of(some)
        full, points = reference(groups), []
        for (selection, rule), runs in groups.items():
            if rule not in (SPARSE, CUSTOMARY) and runs is not full:
                continue
            values = [100 * r[name] for r in runs.values()]
            share, mean = 100 * next(iter(runs.values()))["share"], statistics.fmean(values)
            colour = "tab:blue" if rule == SPARSE else "black" if runs is full else "tab:orange"
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(share, mean, spread, fmt="s" if runs is full else "o", color=colour, capsize=2)
            points.append((mean, share, selection, colour))
        axes.set(xscale="log", xlabel="classes that a step works on, %", ylabel=f"{name}, %", title=title)
        axes.set_xlim(right=400)
        axes.grid(alpha=0.3)
        _label(axes, points)
    looks = (("tab:blue", "no momentum"), ("tab:orange", "momentum 0.9, kept"), ("black", "full softmax at its best"))
    handles = [figure.axes[0].plot([], [], "o", color=colour, label=label)[0] for colour, label in looks]
    figure.axes[0].legend(handles=handles, loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _label(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the selections beside their points (height, share, name, colour), none over another."""
    low, high = axes.get_ylim()
    gap = (high - low) / 28
    taken: list[tuple[float, float]] = []
    for mean, share, selection, colour in sorted(points):
        free = (
            mean + sign * step * gap / 4
            for step in range(200)
            for sign in (1, -1)
            if low + gap < mean + sign * step * gap / 4 < high - gap
            and not any(
                abs(mean + sign * step * gap / 4 - other) < gap and 0.15 < share / at < 7 for other, at in taken
            )
        )
        height = next(free, mean)
        taken.append((height, share))
        axes.annotate(
            selection,
            (share, mean),
            (share * 1.12, height),
            fontsize=7,
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3, "linewidth": 0.5},
        )
