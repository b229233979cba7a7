"""What a search prints and leaves: tables, JSON, and a page with the curve of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from prettytable import PrettyTable

from embedder.embedder import Embedder
from eval.bootstrap import Interval, interval_text
from eval.identification import Identification
from eval.report.figures import percent, png_bytes
from eval.report.page import INTERVAL_TERM, SEARCH_TERMS
from eval.report.write import Picture, Section, Table, Tile, model_facts, write_report
from eval.search.run import RANKS, SearchResult

_COLOUR = "#1f77b4"


def rate_rows(found: Identification) -> list[tuple[str, float, Interval, float]]:
    """Every rate: name, share, 95 % interval, threshold (nan where none belongs to it)."""
    intervals = found.intervals()
    rows = [
        (f"Rank-{rank}", share, bounds, math.nan)
        for (rank, share), bounds in zip(found.rank.items(), intervals, strict=False)
        if rank in RANKS
    ]
    rows.append(("Mean average precision", found.mean_average_precision, intervals[-1], math.nan))
    rows += [(f"TPIR at FPIR {x.fpir:g}", x.tpir, x.interval, x.threshold) for x in found.open_set]
    rows += [
        (f"TPIR at FPIR {fpir:g}, similarities counted", share, bounds, found.threshold[fpir])
        for (fpir, share), bounds in zip(found.tpir.items(), intervals[len(found.rank) :], strict=False)
        if not math.isnan(share)
    ]
    return rows


def _cells(found: Identification) -> list[list[str]]:
    return [
        [name, f"{100 * share:.2f}", interval_text(bounds), "-" if math.isnan(threshold) else f"{threshold:.4f}"]
        for name, share, bounds, threshold in rate_rows(found)
    ]


def rates_table(found: Identification) -> PrettyTable:
    """A row a rate, in percent."""
    table = PrettyTable(["rate", "%", "95 % interval", "threshold"], align="r")
    table.align["rate"] = "l"
    table.add_rows(_cells(found))
    return table


def counts_line(result: SearchResult) -> str:
    """Say what was searched in what."""
    found = result.found
    templates = "one template a person" if result.is_mean else "one template an image"
    return (
        f"gallery: {result.gallery_images:,} images of {result.gallery_people:,} people, {templates}; probes: "
        f"{found.probes:,} of {found.people:,} people, {found.mated:,} of {found.mated_people:,} with a mate"
    )


def as_json(result: SearchResult) -> dict[str, Any]:
    """Every figure; null where there is none."""
    found = result.found

    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "gallery_images": result.gallery_images,
        "gallery_people": result.gallery_people,
        "gallery_templates": found.gallery,
        "mean_template": result.is_mean,
        "probes": found.probes,
        "probe_people": found.people,
        "mated_probes": found.mated,
        "mated_people": found.mated_people,
        "rates": {
            name: {"value": known(share), "interval": [known(x) for x in bounds], "threshold": known(threshold)}
            for name, share, bounds, threshold in rate_rows(found)
        },
        "cmc": {str(rank): share for rank, share in found.rank.items()},
        "notes": [*result.read, *result.notes],
    }


def plot_cmc(found: Identification) -> Figure:
    """Draw the share of mated probes found among the r most similar, with the band of its 95 % intervals."""
    figure = Figure(figsize=(7.2, 5.4), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    ranks, shares = list(found.rank), list(found.rank.values())
    low, high = zip(*found.intervals()[: len(ranks)], strict=True)
    axes.fill_between(ranks, low, high, color=_COLOUR, alpha=0.15, linewidth=0, label="95 % interval")
    axes.plot(ranks, shares, color=_COLOUR, linewidth=1.8, marker="o", markersize=4, label="share found")
    axes.set_xlim(ranks[0] - 0.3, ranks[-1] + 0.3)
    axes.set_xticks([rank for rank in ranks if rank == 1 or rank % 5 == 0])
    least = min(shares) if math.isnan(low[0]) else min(low)
    bottom = max(0.0, math.floor(20 * least - 0.3) / 20)
    axes.set_ylim(bottom, 1 + 0.02 * (1 - bottom))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
    axes.grid(color="0.85", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("Rank")
    axes.set_ylabel("Mated probes found")
    axes.set_title("Cumulative match characteristic")
    axes.legend(loc="lower right", frameon=False)
    return figure


def write_page(
    path: Path, name: str, result: SearchResult, model: str, embedder: Embedder, flip: bool, printed: str
) -> list[Path]:
    """Write the page and its picture; makes the folder. Raises OSError if a file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = result.found
    rows = rate_rows(found)
    tiles = [Tile(label, percent(share)) for label, share, _, _ in rows if "counted" not in label][:6]
    shares = ", ".join(f"{percent(found.rank[rank])} at rank {rank}" for rank in RANKS if rank in found.rank)
    picture = Picture(
        "cmc",
        png_bytes(plot_cmc(found)),
        f"Share of mated probes found, by rank: {shares}.",
        "The share of mated probes whose mate is among the r most similar templates of the gallery.",
    )
    table = Table(
        "Rates in percent",
        ("Rate", "%", "95 % interval", "Threshold"),
        _cells(found),
        "Shares of the probes with a mate. TPIR: the mate comes first and scores above the threshold, which the "
        "FPIR's share of the probes without a mate exceeds. With similarities counted: the mate scores above the "
        "k-th largest similarity of two people, k = FPIR x probes, as in IJB's 1:N. Intervals: people of the probes "
        "are drawn again, the gallery stays.",
    )
    mode = f"{'straight + mirrored' if flip else 'straight only'}; {counts_line(result)}"
    section = Section(
        name, mode, pictures=[picture], headline=tiles, tables=[table], notes=[*result.read, *result.notes]
    )
    return write_report(
        path,
        "Search in a gallery, 1:N",
        [section],
        model_facts(model, embedder),
        printed=printed,
        terms=(*SEARCH_TERMS, INTERVAL_TERM),
    )
