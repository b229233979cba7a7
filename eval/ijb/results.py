"""What an IJB evaluation leaves: scores, tables as text and JSON, curves, and the report with pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from embedder.embedder import Embedder
from eval.identification import (
    Identification,
    field_lines,
    identification_table,
    interval_table,
    mean_intervals,
    mean_rates,
)
from eval.ijb.lists import IJBTree
from eval.ijb.run import AlignedImages, VerificationResult, tar_interval_table, tar_table
from eval.ijb.templates import FeatureMode
from eval.report.write import PairScores, Section, Table, model_facts, write_report
from eval.roc import drawable, plot_roc
from utils.atomic import open_atomic


@dataclass
class IJBReport:
    """What one evaluation found, and where it was written."""

    job: str
    tree: IJBTree
    mode: FeatureMode
    stem: Path  # files are stem.npy, stem.txt, ...
    scores: NDArray[np.float64] | None = None  # (P,) cosine of each pair of templates
    verification: VerificationResult | None = None  # 1:1
    identification: dict[str, Identification] = field(default_factory=dict)  # 1:N, by gallery
    files: list[Path] = field(default_factory=list)

    @property
    def method(self) -> str:
        """The row's name in the tables, as the field writes it."""
        return f"{self.job}-{self.tree.target}"

    @property
    def text(self) -> str:
        """The tables and the mode, as they are printed and written."""
        lines = []
        if self.verification is not None:
            lines += [tar_table(self.method, self.verification.tar).get_string(), self.verification.note()]
        if self.identification:
            lines += [identification_table(self.method, self.identification).get_string()]
        lines += self._intervals()
        return "\n".join(line for line in [*lines, f"Mode: {self.mode}"] if line)

    def _intervals(self) -> list[str]:
        """The tables of intervals, and what was drawn."""
        lines = []
        if self.verification is not None:
            lines += [tar_interval_table(self.method, self.verification).get_string()]
            lines += [f"1:1: {self.verification.drawn}."]
        if self.identification:
            people = next(iter(self.identification.values())).people
            lines += [interval_table(self.method, self.identification).get_string()]
            lines += [f"1:N: {people:,} people of the probes drawn again; the galleries stay."]
        return lines

    def write(self, ending: str, fill: Callable[[BinaryIO], Any]) -> None:
        """Write one of the files, complete or not at all."""
        path = self.stem.with_name(self.stem.name + ending)
        with open_atomic(path) as file:
            fill(file)
        self.files.append(path)


def write_results(
    report: IJBReport, embedder: Embedder, model: str, protocol: str, speed: Mapping[str, float], html: bool
) -> None:
    """Write all but the scores: ``.txt``, ``.json``, ``.pdf``, ``.png``, ``_1n.txt``, and ``.html`` if asked for.

    Args:
        report: with what was found; gets the files' names.
        embedder: what made the embeddings.
        model: where it was loaded from.
        protocol: "11", "1n" or "both".
        speed: times and rates to write down.
        html: write the report with pictures.

    Raises:
        OSError: a file cannot be written.
    """
    _write_text(report, ".txt", report.text)
    for result in [r for name, r in report.identification.items() if "+" in name and r.mated == r.probes]:
        _write_text(report, "_1n.txt", "\n".join(field_lines(result)))
    summary = {
        "job": report.job,
        "target": report.tree.target,
        "protocol": protocol,
        "mode": asdict(report.mode),
        "network": embedder.name,
        "model": model,
        "model_sha256": embedder.sha256,
        "precision": embedder.precision,
        "images": len(report.tree.names),
        "templates": len(np.unique(report.tree.template_ids)),
        **_verification_facts(report.verification),
        **_identification_facts(report.identification),
        **speed,
    }
    _write_text(report, ".json", json.dumps(summary, indent=2))
    if report.verification is not None:
        title = f"ROC on {report.tree.target}, 1:1 verification"
        figure = plot_roc({drawable(report.method): report.verification.curve}, title)
        report.write(".pdf", lambda file: figure.savefig(file, format="pdf"))
        report.write(".png", lambda file: figure.savefig(file, format="png"))
    if html:
        report.files += _write_html(report, embedder, model)


def _write_text(report: IJBReport, ending: str, text: str) -> None:
    report.write(ending, lambda file: file.write((text + "\n").encode(errors="surrogateescape")))


def _verification_facts(found: VerificationResult | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "genuine_pairs": found.curve.genuine,
        "impostor_pairs": found.curve.impostor,
        "tar_at_far": {f"{far:g}": value for far, value in found.tar.items()},
        "tar_at_far_interval": {f"{far:g}": list(bounds) for far, bounds in found.interval.items()},
        "interval_method": found.drawn,
        "unresolved_far": [f"{far:g}" for far in found.unresolved],
    }


def _identification_facts(results: Mapping[str, Identification]) -> dict[str, Any]:
    if not results:
        return {}
    apart = [result for name, result in results.items() if "+" not in name]
    names = [*(f"rank-{r}" for r in apart[0].rank), *(f"tpir@fpir={f:g}" for f in apart[0].tpir)]
    means = dict(zip(names, mean_rates(apart), strict=True))
    return {
        "identification": {
            **{name: _facts_of(result) for name, result in results.items()},
            "mean": {name: _known(value) for name, value in means.items()},
            "mean_interval": {name: _bounds(value) for name, value in zip(names, mean_intervals(apart), strict=True)},
        }
    }


def _facts_of(result: Identification) -> dict[str, Any]:
    return {
        "probes": result.probes,
        "mated_probes": result.mated,
        "gallery_templates": result.gallery,
        "rank": {str(rank): share for rank, share in result.rank.items()},
        "tpir_at_fpir": {f"{fpir:g}": _known(share) for fpir, share in result.tpir.items()},
        **_interval_facts(result),
        "threshold_at_fpir": {f"{fpir:g}": _known(value) for fpir, value in result.threshold.items()},
    }


def _interval_facts(result: Identification) -> dict[str, Any]:
    bounds = [_bounds(value) for value in result.intervals()]
    return {
        "rank_interval": dict(zip(map(str, result.rank), bounds, strict=False)),
        "tpir_at_fpir_interval": dict(zip((f"{f:g}" for f in result.tpir), bounds[len(result.rank) :], strict=False)),
    }


def _bounds(bounds: tuple[float, float]) -> list[float] | None:
    return list(bounds) if np.isfinite(bounds).all() else None


def _known(value: float) -> float | None:
    """JSON knows no nan."""
    return value if np.isfinite(value) else None


def _write_html(report: IJBReport, embedder: Embedder, model: str) -> list[Path]:
    tree, found = report.tree, report.verification
    pairs = None
    if found is not None and report.scores is not None:
        pairs = PairScores(
            curve=found.curve,
            scores=report.scores,
            labels=tree.pair_label,
            first=tree.pair_template_1,
            second=tree.pair_template_2,
            image_of=AlignedImages(tree).of_template,
            intervals=found.interval,
            drawn=found.drawn,
        )
    tables = []
    if report.identification:
        table = identification_table(report.method, report.identification)
        rows = [row[1:] for row in table.rows]
        note = "Probes without a mate in a gallery are searched there too: they count in the threshold, not in rates."
        tables = [Table("Identification, 1:N, in percent", table.field_names[1:], rows, note)]
        bounds = interval_table(report.method, report.identification)
        rows = [row[1:] for row in bounds.rows]
        note = "People of the probes are drawn again; the galleries stay as they are."
        tables += [Table("Identification, 95 % intervals", bounds.field_names[1:], rows, note)]
    section = Section(tree.target, str(report.mode), pairs, tables=tables)
    facts = {
        "Job": report.job,
        **model_facts(model, embedder),
        "Images": f"{len(tree.names):,}",
        "Templates": f"{len(np.unique(tree.template_ids)):,}",
    }
    path = report.stem.with_name(report.stem.name + ".html")
    return write_report(path, f"{report.job} on {tree.target}", [section], facts, printed=report.text)
