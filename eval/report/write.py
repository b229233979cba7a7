"""A report of an evaluation: one HTML file that needs no other, and its pictures as PNG beside it.

What is reported is plain data, so that IJB and verification sets share it. Shapes: P pairs, H height, W width.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.embedder import Embedder
from eval.bootstrap import Interval, interval_text
from eval.report.figures import (
    FacePair,
    draw_sheet,
    far_name,
    join_faces,
    percent,
    plot_det,
    plot_roc_points,
    plot_score_histogram,
    png_bytes,
)
from eval.report.operating import (
    Labels,
    OperatingPoint,
    Scores,
    equal_error_rate,
    operating_points,
    score_histogram,
    worst_pairs,
)
from eval.report.page import (
    INTERVAL_TERM,
    PAIR_TERMS,
    FaceSheet,
    PageSection,
    Picture,
    Table,
    Tile,
    render_page,
)
from eval.roc import FAR_GRID, Roc, drawable
from utils.atomic import open_atomic

__all__ = ["PairScores", "Picture", "Section", "Table", "Tile", "model_facts", "write_report"]

_HEADLINE_FAR = 1e-4  # the point that the field quotes
_PACKAGES = ("torch", "numpy", "opencv-python-headless", "opencv-python", "onnxruntime")


@dataclass(frozen=True)
class PairScores:
    """The pairs of one set and what they scored."""

    curve: Roc  # of scores and labels
    scores: Scores  # (P,) higher means more alike
    labels: Labels  # (P,) 1 for a pair of one person, 0 for two
    first: NDArray[np.integer[Any]]  # (P,) id of the pair's first side
    second: NDArray[np.integer[Any]]  # (P,)
    image_of: Callable[[int], NDArray[np.uint8]] | None = None  # id -> (H, W, 3) RGB, its aligned face
    id_word: str = "template"  # what an id counts, a word whose plural takes an s
    fars: Sequence[float] = FAR_GRID  # the operating points, ascending
    intervals: Mapping[float, Interval] = field(default_factory=dict)  # FAR -> 95 % interval of the TAR
    drawn: str = ""  # what the intervals' draws were made of


@dataclass(frozen=True)
class Section:
    """One set in the report; every part but the name may be missing."""

    name: str  # such as "IJBC", also the name of its pictures
    mode: str = ""  # how the embeddings were made and compared
    pairs: PairScores | None = None
    pictures: Sequence[Picture] = ()  # further charts
    headline: Sequence[Tile] = ()  # further numbers to put first, such as an accuracy over folds
    tables: Sequence[Table] = ()  # such as identification, 1:N
    notes: Sequence[str] = ()  # what the reader has to know before believing a number


def write_report(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    *,
    printed: str = "",
    worst: int = 12,
    worst_at_far: float = _HEADLINE_FAR,
    terms: Sequence[tuple[str, str]] = (*PAIR_TERMS, INTERVAL_TERM),
) -> list[Path]:
    """Write the HTML file and its pictures, each complete or not at all.

    With one section the pictures are ``<stem>_roc.png``, ``_det.png``, ``_scores.png``, ``_false_accepts.png`` and
    ``_false_rejects.png``; with several the section's name comes between. Memory beyond the inputs: one copy of
    the impostor scores and about 0.1 GiB (see :mod:`eval.report.operating`).

    Args:
        path: the HTML file; its folder exists.
        title: the page's heading.
        sections: at least one, with different names.
        facts: what was evaluated, in order: model, its hash, network, counts. Date and versions are added.
        printed: the tables as the command printed them, shown when asked for.
        worst: false accepts and false rejects to show of each section, 0 for none.
        worst_at_far: the operating point that decides which pairs are wrong; where there is less than one impostor
            pair for it, the lowest FAR of the grid that is resolved.
        terms: words that the page uses, and what they mean.

    Returns:
        the files, the HTML first.

    Raises:
        ValueError: no sections, or two with names that give the same file names.
        OSError: a file cannot be written.
    """
    path = Path(path)
    slugs = [re.sub(r"\W+", "_", section.name) for section in sections]
    if not sections or len(set(slugs)) < len(slugs):
        raise ValueError(f"a report needs sections with different names, found {[s.name for s in sections]}")
    files: list[Path] = []
    shown = []
    for section, slug in zip(sections, slugs, strict=True):
        stem = path.stem if len(sections) == 1 else f"{path.stem}_{slug}"
        page_section, sheets = _prepare(section, worst, worst_at_far)
        pictures = {picture.kind: picture.png for picture in page_section.pictures}
        for kind, png in (pictures | sheets).items():
            files.append(path.with_name(f"{stem}_{kind}.png"))
            with open_atomic(files[-1]) as file:
                file.write(png)
        shown.append(page_section)
    with open_atomic(path) as file:
        file.write(
            render_page(title, shown, dict(facts) | _provenance(), printed, terms).encode(errors="backslashreplace")
        )
    return [path, *files]


def model_facts(model: str, embedder: Embedder) -> dict[str, str]:
    """What the report says about the network."""
    return {
        "Model": str(model),
        "SHA-256": embedder.sha256,
        "Network": f"{embedder.name}, {embedder.embedding_size} numbers, {embedder.precision}",
    }


def _provenance() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "Date": datetime.now().astimezone().isoformat(" ", "seconds"),
        "Versions": ", ".join(
            f"{name} {number}" for name, number in {"Python": platform.python_version(), **found}.items()
        ),
        "Processor": f"{platform.machine()}, {platform.system()}",
    }


def _prepare(section: Section, worst: int, worst_at_far: float) -> tuple[PageSection, dict[str, bytes]]:
    """Turn a section into what the page shows, and its sheets of faces as PNG by kind."""
    tiles, tables, notes = list(section.headline), list(section.tables), list(section.notes)
    about = [section.mode] if section.mode else []
    pictures: list[Picture] = list(section.pictures)
    face_sheets: list[FaceSheet] = []
    sheets: dict[str, bytes] = {}
    if (pairs := section.pairs) is not None:
        points = operating_points(pairs.curve, pairs.scores, pairs.labels, pairs.fars)
        about.append(f"{pairs.curve.genuine:,} genuine and {pairs.curve.impostor:,} impostor pairs")
        tiles += _tiles(pairs.curve, points)
        tables = [_point_table(points, pairs), *tables]
        notes += _resolution_note(pairs.curve, points)
        pictures = [*_charts(section.name, pairs, points), *pictures]
        if worst and pairs.image_of is not None:
            at = _deciding_point(pairs.curve, pairs.scores, pairs.labels, points, worst_at_far)
            for genuine in (False, True):
                sheet = _face_sheet(pairs, at, genuine, worst, pairs.image_of)
                face_sheets.append(sheet)
                kind = "false_rejects" if genuine else "false_accepts"
                heading = f"{sheet.title}, threshold {_score(at.threshold)} at FAR {far_name(at.far)}"
                heading = f"{drawable(section.name)}: {heading}"
                sheets[kind] = png_bytes(draw_sheet(heading, sheet.pairs, pairs.id_word))
    page = PageSection(section.name, "; ".join(about), tiles, notes, pictures, tables, face_sheets)
    return page, sheets


def _score(threshold: float) -> str:
    return f"{threshold:.4f}" if np.isfinite(threshold) else "none: all are accepted"


def _tiles(curve: Roc, points: Sequence[OperatingPoint]) -> list[Tile]:
    resolved = [point for point in points if point.resolved][:4]
    return [
        *(Tile(f"TAR at FAR {far_name(point.far)}", percent(point.tar)) for point in resolved),
        Tile("Equal error rate", percent(equal_error_rate(curve))),
    ]


def _point_table(points: Sequence[OperatingPoint], pairs: PairScores) -> Table:
    nothing = float("nan"), float("nan")
    rows = [
        (
            far_name(point.far),
            percent(point.tar),
            *([interval_text(pairs.intervals.get(point.far, nothing))] if pairs.intervals else []),
            _score(point.threshold),
            f"{point.false_accepts:,}",
            f"{point.false_rejects:,}",
            "yes" if point.resolved else "not resolved",
        )
        for point in points
    ]
    interval = ["95 % interval"] if pairs.intervals else []
    note = (
        "A pair is accepted when its score is above the threshold. TAR is that of the curve's point whose FAR is "
        "nearest to the one asked for. The curve holds its corners alone, so that fewer impostor pairs may be "
        "accepted than a FAR allows."
    )
    return Table(
        "Operating points",
        ("FAR", "TAR", *interval, "Threshold", "Impostor pairs accepted", "Genuine pairs refused", "Resolved"),
        rows,
        f"{note} Intervals: {pairs.drawn}." if pairs.intervals else note,
    )


def _resolution_note(curve: Roc, points: Sequence[OperatingPoint]) -> list[str]:
    names = [far_name(point.far) for point in points if not point.resolved]
    if not names:
        return []
    return [
        f"Not resolved: FAR {', '.join(names)}. {'Each is' if len(names) > 1 else 'It is'} less than one of the "
        f"{curve.impostor:,} impostor pairs, so the TAR given there is that of another FAR."
    ]


def _charts(name: str, pairs: PairScores, points: Sequence[OperatingPoint]) -> list[Picture]:
    values = "; ".join(
        f"{percent(point.tar)} at FAR {far_name(point.far)}{'' if point.resolved else ' (not resolved)'}"
        for point in points
    )
    edges, genuine, impostor = score_histogram(pairs.scores, pairs.labels)
    middle = (edges[:-1] + edges[1:]) / 2
    means = f"centred on {float(genuine @ middle):.3f} and {float(impostor @ middle):.3f}"
    drawn = drawable(name)
    histogram = plot_score_histogram(drawn, edges, genuine, impostor, points)
    return [
        Picture(
            "roc",
            png_bytes(plot_roc_points(drawn, pairs.curve, points)),
            f"ROC curve of {name}. True accept rate: {values}.",
            "Filled marks are operating points with their TAR in percent, hollow ones are not resolved. A mark is "
            "the curve's nearest point and may lie beside the line.",
        ),
        Picture(
            "det",
            png_bytes(plot_det(drawn, pairs.curve, points)),
            f"DET curve of {name}: false reject rate against false accept rate on logarithmic axes. Equal error "
            f"rate {percent(equal_error_rate(pairs.curve))}.",
            "The same curve by its errors: lower is better, and no error at all lies on the lower edge."
            + (" It meets the dashed line at the equal error rate." if equal_error_rate(pairs.curve) else ""),
        ),
        Picture(
            "scores",
            png_bytes(histogram),
            f"Histogram of scores of {name}: genuine and impostor pairs, {means}, with the thresholds of the "
            "operating points.",
            "Shares of each kind of pair. What lies right of a threshold is accepted: impostor pairs there are false "
            "accepts, genuine pairs left of it false rejects.",
            wide=True,
        ),
    ]


def _deciding_point(
    curve: Roc, scores: Scores, labels: Labels, points: Sequence[OperatingPoint], wanted: float
) -> OperatingPoint:
    if curve.resolves(wanted):
        return operating_points(curve, scores, labels, [wanted])[0]
    return next((point for point in points if point.resolved), points[-1])


def _face_sheet(
    pairs: PairScores, at: OperatingPoint, genuine: bool, worst: int, image_of: Callable[[int], NDArray[np.uint8]]
) -> FaceSheet:
    """Collect the worst pairs of one kind, with their faces."""
    found = []
    for row in worst_pairs(pairs.scores, pairs.labels, genuine, worst).tolist():
        score, first, second = float(pairs.scores[row]), int(pairs.first[row]), int(pairs.second[row])
        wrong = (score > at.threshold) != genuine
        found.append(FacePair(join_faces(first, second, image_of), score, first, second, wrong))
    if genuine:
        title, total = "false rejects", pairs.curve.genuine
        count = f"{at.false_rejects:,} of {total:,} genuine pairs are refused"
    else:
        title, total = "false accepts", pairs.curve.impostor
        count = f"{at.false_accepts:,} of {total:,} impostor pairs are accepted"
    which, verdict = ("lowest genuine", "refused") if genuine else ("highest impostor", "accepted")
    text = (
        f"At FAR {far_name(at.far)} (threshold {_score(at.threshold)}) {count}. "
        f"Shown: the {len(found)} {which} scores, those {verdict} in red."
    )
    return FaceSheet(title, text, found, pairs.id_word, verdict)
