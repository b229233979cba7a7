"""What ``python -m eval.pairs`` says beyond its first table: intervals, groups, a threshold, a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from prettytable import PrettyTable

from embedder.threshold import Threshold
from eval.bootstrap import NOTHING, Interval, Resampler, interval_text
from eval.pairs.groups import as_json as groups_json
from eval.pairs.groups import group_tables
from eval.pairs.judged import Difference, Judged, differences
from eval.pairs.protocol import FARS
from eval.pairs.report import PairsReport
from eval.pairs.threshold import measured_threshold
from eval.report.figures import percent, png_bytes
from eval.report.write import Picture, Section, Table, Tile
from eval.roc import plot_roc, roc
from utils.text import plain


def _known(bounds: Interval) -> list[float | None]:
    """An interval for JSON; null where there is none."""
    return [None if bound != bound else bound for bound in bounds]


def interval_table(judged: Mapping[str, Judged]) -> PrettyTable:
    """95 % intervals in percent, one row a set."""
    tars = {name: one.tar_interval() for name, one in judged.items()}
    fars = [far for far in FARS if any(far in found for found in tars.values())]
    table = PrettyTable(["95 % intervals", "accuracy %", *(f"TAR % at {far:g}" for far in fars)], align="r")
    table.align["95 % intervals"] = "l"
    for name, one in judged.items():
        bounds = [one.accuracy_interval(), *(tars[name].get(far, NOTHING) for far in fars)]
        table.add_row([plain(name), *map(interval_text, bounds)])
    return table


def interval_lines(judged: Mapping[str, Judged]) -> list[str]:
    """The table of intervals, and what was drawn for each set."""
    if not judged:
        return []
    return [
        interval_table(judged).get_string(),
        *(f"{plain(name)}: {plain(one.drawn)}" for name, one in judged.items()),
    ]


def group_lines(report: PairsReport) -> list[str]:
    """The tables of groups."""
    lines = [plain(note) for note in report.notes]
    for name, found in report.groups.items():
        lines.append(
            f"{plain(name)}, groups at one threshold, {found.threshold:.4f}, at {found.rate:g} of all impostor pairs:"
        )
        lines += [table.get_string() for table in group_tables(found)]
    return lines


def set_facts(judged: Judged, report: PairsReport) -> dict[str, Any]:
    """What JSON says of a set beyond its figures."""
    facts: dict[str, Any] = {
        "accuracy_interval": _known(judged.accuracy_interval()),
        "tar_at_far_interval": {f"{far:g}": _known(bounds) for far, bounds in judged.tar_interval().items()},
        "interval_method": judged.drawn,
    }
    if judged.name in report.groups:
        facts["groups"] = groups_json(report.groups[judged.name])
    return facts


def threshold_of(
    judged: Mapping[str, Judged], pooled: bool, rate: float, model: str, flip: bool, color_order: str
) -> Threshold:
    """The threshold at a false match rate, over the pairs of the one set, or of all.

    Args:
        judged: by set.
        pooled: take the pairs of all sets together; people of different sets are different people.
        rate: wanted.
        model: its hash.
        flip: whether embeddings are sums with those of mirror images.
        color_order: in which the network got the channels.

    Raises:
        ValueError: several sets that are not pooled, none with a curve, or too few impostor pairs.
    """
    sets = list(judged.values())
    check_sets(len(sets), pooled)
    if len(sets) == 1:
        one = sets[0]
        return measured_threshold(one.issame, one.scores, one.resampler, rate, model, flip, color_order)
    labels, scores = (np.concatenate([getattr(one, name) for one in sets]) for name in ("issame", "scores"))
    offsets = np.cumsum([0, *(one.resampler.n_people for one in sets)]).tolist()
    first, second = (
        np.concatenate([getattr(one.resampler, side) + k for one, k in zip(sets, offsets, strict=False)])
        for side in ("first", "second")
    )
    return measured_threshold(labels, scores, Resampler(labels, first, second), rate, model, flip, color_order)


def check_sets(n: int, pooled: bool) -> None:
    """Raise ValueError unless ``n`` sets with pairs of both kinds are what one threshold is found on."""
    if n == 0 or (n > 1 and not pooled):
        raise ValueError(f"--threshold-at needs one set with pairs of both kinds, found {n}: name it with --targets")


def threshold_lines(found: Threshold) -> list[str]:
    """Say what was found, in two lines."""
    low, high = found.false_match_rate_interval
    return [
        f"Threshold {found.threshold:.4f} (cosine; at or above it: one person): false match rate "
        f"{found.false_match_rate:.3g}, 95 % interval {low:.3g} to {high:.3g},",
        f"true match rate {percent(found.true_match_rate)}; from {found.impostor_pairs:,} impostor and "
        f"{found.genuine_pairs:,} genuine pairs",
    ]


def model_names(models: list[str]) -> list[str]:
    """Short names that differ: the run's folder or the file, else A and B."""
    paths = [Path(model) for model in models]
    names = [path.parent.name if path.name == "model.pt" and path.parent.name else path.stem for path in paths]
    return names if len(set(names)) == len(names) else [f"{chr(65 + i)} ({name})" for i, name in enumerate(names)]


def compare(reports: list[PairsReport]) -> dict[str, list[Difference]]:
    """The differences of two models, by set that both have."""
    first, second = reports
    return {
        name: differences(judged, second.judged[name])
        for name, judged in first.judged.items()
        if name in second.judged
    }


def _cells(difference: Difference) -> list[str]:
    low, high = (100 * bound for bound in difference.interval)
    gain = 100 * (difference.second - difference.first)
    return [
        difference.figure,
        f"{100 * difference.first:.2f}",
        f"{100 * difference.second:.2f}",
        f"{gain:+.2f}",
        f"{low:+.2f} to {high:+.2f}" if low == low else "-",
        "-" if low != low else "yes" if low > 0 or high < 0 else "no",
    ]


def difference_table(found: Mapping[str, list[Difference]], names: list[str]) -> PrettyTable:
    """Figures of both models in percent, their difference, its interval, and whether that leaves out zero."""
    head = ["set", "figure", *map(plain, names), "difference", "95 % interval", "beyond chance"]
    table = PrettyTable(head, align="r")
    table.align["set"] = table.align["figure"] = "l"
    for name, rows in found.items():
        table.add_rows([[plain(name), *_cells(row)] for row in rows])
    return table


def differences_json(found: Mapping[str, list[Difference]]) -> dict[str, Any]:
    """The differences as plain values."""
    return {
        name: {
            row.figure: {
                "first": row.first,
                "second": row.second,
                "difference": row.second - row.first,
                "interval": _known(row.interval),
            }
            for row in rows
        }
        for name, rows in found.items()
    }


def difference_sections(
    found: Mapping[str, list[Difference]], reports: list[PairsReport], names: list[str]
) -> list[Section]:
    """One section a set, with both curves in one picture."""
    sections = []
    for name, rows in found.items():
        both = [report.judged[name] for report in reports]
        curves = {plain(label): roc(one.issame, one.scores) for label, one in zip(names, both, strict=True)}
        title = f"ROC, {plain(name)}".replace("$", r"\$")
        shown = {label.replace("$", r"\$"): curve for label, curve in curves.items()}
        picture = Picture(
            "both",
            png_bytes(plot_roc(shown, title, FARS)),
            f"ROC curves of {' and '.join(curves)} on {name}.",
            "Both models on the same pairs.",
        )
        note = (
            "Difference: the second model less the first, in percentage points. Both are drawn together: "
            f"{both[0].drawn}. Beyond chance: the interval leaves out zero."
        )
        head = ("Figure", *names, "Difference", "95 % interval", "Beyond chance")
        tiles = [Tile(f"{row.figure}, difference", f"{100 * (row.second - row.first):+.2f}") for row in rows[:4]]
        table = Table("Both models, in percent", head, [_cells(row) for row in rows], note)
        sections.append(
            Section(f"{name}: {names[0]} and {names[1]}", pictures=[picture], headline=tiles, tables=[table])
        )
    return sections
