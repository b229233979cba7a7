"""What is wrong with a set of faces, from what ``data_scan`` read: labels, sizes, duplicates, files that disagree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.records.check import read_ranges
from data.records.identities import compare
from data.records.layout import EXACT_LABELS
from tools.parts.data_scan import Seen
from tools.parts.face_sources import AnySource, FolderSource, PairSource, Place, RecordSource, SetSource
from tools.parts.record_output import config_lines, pair_config_lines

FOLDS = 10  # of the cross-validation of a verification set
Size = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """Something to see to."""

    kind: str
    detail: str
    places: tuple[Place, ...] = ()

    def __str__(self) -> str:
        shown = "; ".join(str(place) for place in self.places[:4])
        more = f"; and {len(self.places) - 4} more" if len(self.places) > 4 else ""
        return f"{shown}{more}{': ' if shown else ''}{self.detail}"

    def as_dict(self) -> dict[str, Any]:
        """For a line of problems.jsonl."""
        return {"kind": self.kind, "detail": self.detail, "places": [place._asdict() for place in self.places]}


@dataclass
class Findings:
    """What the set is, in words and figures."""

    rows: dict[str, str] = field(default_factory=dict)  # the table
    config_lines: list[str] = field(default_factory=list)
    images: int = 0
    identities: int = 0  # with at least one image
    num_classes: int = 0  # the largest label + 1
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # (num_classes,) images of each
    duplicates_within: int = 0  # images that equal an earlier one of the same identity
    duplicates_across: int = 0  # groups of equal images with several identities


def find_problems(
    source: AnySource, seen: Seen, image_size: Size = (112, 112), num_classes: int | None = None
) -> tuple[Findings, list[Problem]]:
    """Draw the conclusions.

    Args:
        source: what was read.
        seen: what was found in it.
        image_size: (height, width) that every image should have.
        num_classes: labels must lie below it; None: their own largest one decides.
    """
    found = Findings(images=int(seen.is_image.sum()))
    found.rows = {"source": str(source.path), "form": source.form, "images": f"{found.images:,}"}
    problems = [Problem("unreadable", text, (source.place(i),)) for i, text in seen.unreadable]
    problems += [Problem("undecodable", text, (source.place(i),)) for i, text in seen.undecodable]
    for kind, count in seen.changed.items():
        found.rows[f"images with {kind}"] = f"{count:,}"
    problems += _without_image(source, seen)
    problems += _sizes(source, seen, image_size, found)
    if isinstance(source, PairSource):
        problems += _pairs(source, seen, found)
        found.config_lines = pair_config_lines(source.path)
    else:
        problems += _labels(source, seen, found, num_classes)
        problems += _duplicates(source, seen, found)
        if isinstance(source, RecordSource):
            problems += _index(source, seen) + _header(source, seen, found) + _property(source, found, image_size)
        elif isinstance(source, SetSource):
            problems += [Problem("left out", text) for text in source.left_out]
        else:
            problems += _folder(source, found)
        is_usual = source.path.name == "train.rec"
        rec = source.rec if isinstance(source, SetSource) else source.path.parent if is_usual else source.path
        found.config_lines = config_lines(rec, num_classes or found.num_classes, found.images)
    if found.images == 0:
        found.config_lines = []
        problems.append(Problem("no images", "there is nothing to train on", (Place(str(source.path)),)))
    found.rows["problems"] = f"{len(problems):,}" if problems else "none"
    return found, problems


def _without_image(source: AnySource, seen: Seen) -> list[Problem]:
    """Empty files, and records of labels alone that are neither the header nor identity records."""
    without = sorted(i for i, _, _ in seen.ranges)
    if isinstance(source, RecordSource):
        if without and without[0] == 0:
            return []  # insightface's form, see _header
        last = int(np.flatnonzero(seen.is_image)[-1]) if seen.is_image.any() else -1
        without = [i for i in without if i < last]
    return [Problem("undecodable", "there is no image in it", (source.place(i),)) for i in without]


def _sizes(source: AnySource, seen: Seen, image_size: Size, found: Findings) -> list[Problem]:
    common = seen.size_counts().most_common()
    words = [f"{height} x {width}: {count:,}" for (height, width), count in common[:4]]
    found.rows["height x width"] = ", ".join(words) + (f", {len(common) - 4} other sizes" if len(common) > 4 else "")
    found.rows["undecodable"] = f"{len(seen.undecodable):,}"
    odd = (seen.sizes[:, 0] > 0) & (seen.sizes != image_size).any(1)
    found.rows["of another size"] = f"{odd.sum():,}"
    expected = f"expected {image_size[0]} x {image_size[1]}"
    return [
        Problem("odd size", f"{seen.sizes[i, 0]} x {seen.sizes[i, 1]} pixels, {expected}", (source.place(int(i)),))
        for i in np.flatnonzero(odd)
    ]


def _labels(source: AnySource, seen: Seen, found: Findings, num_classes: int | None) -> list[Problem]:
    labels = seen.labels
    limit = np.inf if num_classes is None else num_classes
    is_label = np.isfinite(labels) & (labels == np.rint(labels)) & (labels >= 0) & (labels < 2**53)
    problems = [
        Problem(
            "label",
            f"label {labels[i]:.10g} is "
            + (f"not below num_classes = {num_classes}" if is_label[i] else "no whole number from 0 on"),
            (source.place(int(i)),),
        )
        for i in np.flatnonzero(seen.is_image & (~is_label | (labels >= limit)))
    ]
    good = labels[seen.is_image & is_label].astype(np.int64)
    if len(good) == 0:
        return problems
    found.num_classes = int(good.max()) + 1
    if found.num_classes > 10 * len(good) + 1000:  # labels that count something else
        text = f"labels reach {good.max()} with {len(good)} images: number the identities 0, 1, 2, ..."
        return [*problems, Problem("label", text, (Place(str(source.path)),))]
    found.counts = np.bincount(good)
    present = found.counts[found.counts > 0]
    found.identities = len(present)
    found.rows["identities"] = f"{found.identities:,}"
    missing = np.flatnonzero(found.counts == 0)
    gaps = f"{len(missing):,} of them without an image" if len(missing) else "none missing"
    found.rows["labels"] = f"{good.min()} to {good.max()}, {gaps}"
    found.rows["images of an identity"] = (
        f"{present.min()} to {present.max()}, median {np.median(present):g}, mean {present.mean():.3g}"
    )
    if len(missing):
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        text = f"no image has label {some} ({len(missing)} labels): each takes a row of the classifier for nothing"
        problems.append(Problem("label gap", text, (Place(str(source.path)),)))
    return problems


def _groups(digests: NDArray[np.uint64], positions: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    """The positions of each digest that occurs more than once, in order."""
    order = positions[digests[positions].argsort(kind="stable")]
    ordered = digests[order]
    edges = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1], append=~ordered[-1:]))
    for i in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[i] : edges[i + 1]]


def _duplicates(source: AnySource, seen: Seen, found: Findings) -> list[Problem]:
    """Equal files under several identities: at least one label is wrong."""
    problems = []
    for group in _groups(seen.digests, np.flatnonzero(seen.is_image)):
        labels = np.unique(seen.labels[group])
        if len(labels) > 1:
            names = ", ".join(f"{label:g}" for label in labels[:6])
            places = tuple(source.place(int(i)) for i in group[:100])
            text = f"the same image {len(group)} times under {len(labels)} identities ({names})"
            problems.append(Problem("duplicate across identities", text, places))
        found.duplicates_within += len(group) - len(labels)
    found.duplicates_across = len(problems)
    found.rows["exact duplicates"] = (
        f"{found.duplicates_within:,} within an identity, {found.duplicates_across:,} images under several identities"
    )
    return problems


def _pairs(source: PairSource, seen: Seen, found: Findings) -> list[Problem]:
    issame, digests = source.pairs.issame, seen.digests.reshape(-1, 2)
    found.rows["pairs"] = f"{len(issame):,}: {issame.sum():,} of one person, {(~issame).sum():,} of two"
    found.rows["different images"] = f"{len(np.unique(seen.digests)):,}"
    problems = []
    for i in np.flatnonzero(digests[:, 0] == digests[:, 1]):
        text = "a pair of one image with itself, marked as " + ("one person" if issame[i] else "two persons")
        problems.append(Problem("pair", text, (source.place(2 * int(i)), source.place(2 * int(i) + 1))))
    if len(issame) < FOLDS:
        text = f"{len(issame)} pairs are fewer than the {FOLDS} folds of the cross-validation"
        problems.append(Problem("pair", text, (Place(str(source.path)),)))
    elif issame.all() or not issame.any():
        problems.append(Problem("pair", "all pairs have the same mark", (Place(str(source.path)),)))
    return problems


def _folder(source: FolderSource, found: Findings) -> list[Problem]:
    notes = source.notes
    found.rows["links out of the folder"] = f"{notes.count:,}, followed: {notes.first}" if notes.count else "none"
    if notes.deeper:
        found.rows["deeper than <identity>/<image>"] = f"{notes.deeper:,} images, taken"
    found.rows["files left out"] = f"{notes.left_out.total():,}" if notes.left_out else "none"
    problems = [
        Problem(
            "identity without images", "fill or remove it: training refuses it", (Place(str(source.path / name)),)
        )
        for name, count in zip(source.classes, source.counts, strict=True)
        if count == 0
    ]
    try:
        notes.check_level(source.classes)
    except ValueError as error:
        problems.append(Problem("another level", str(error)))
    if notes.left_out:
        problems.append(Problem("other files", notes.left_out_text(), (Place(str(source.path)),)))
    return problems


def _index(source: RecordSource, seen: Seen) -> list[Problem]:
    """Whether the records lie one after another, as the index says, and are the ones that it means."""
    reader, problems = source.reader, []
    offsets, size = reader.offsets, source.path.stat().st_size
    order = offsets.argsort(kind="stable")
    ends = offsets[order] + seen.stored[order].astype(np.int64)
    following = np.append(offsets[order][1:], size)
    known = seen.stored[order] > 0
    if offsets[order[0]] > 0:
        text = f"the index begins at byte {offsets[order[0]]}: what lies before is in no line of it"
        problems.append(Problem("index", text, (Place(str(source.path), None, 0),)))
    for i in np.flatnonzero(known & (ends != following)):
        left = following[i] - ends[i]
        what = f"{left} bytes behind it are" if left > 0 else f"the last {-left} bytes of it are also"
        which = "in no line of the index" if left > 0 else "in another record"
        problems.append(Problem("index", f"{what} {which}", (source.place(int(order[i])),)))
    # Packers store the key in the header, or nothing; swapped lines of the index show here.
    keys = reader.keys
    differ = seen.is_image & (seen.ids != keys)
    agree = int((seen.is_image & ~differ & (seen.ids > 0)).sum())
    exchanged = differ & np.isin(seen.ids, keys[differ])  # a merged file keeps other numbers
    if agree > differ.sum():
        for i in np.flatnonzero(exchanged):
            text = f"the record says that it is number {seen.ids[i]}: the index may belong to another file"
            problems.append(Problem("index", text, (source.place(int(i)),)))
    return problems


def _header(source: RecordSource, seen: Seen, found: Findings) -> list[Problem]:
    """In insightface's form: the key range in record 0, and each identity's range of keys."""
    at = {position for position, _, _ in seen.ranges}
    if 0 not in at:
        return []
    source.form = "record file in insightface's form"
    found.rows["form"] = source.form
    keys, images = source.reader.keys, np.flatnonzero(seen.is_image)
    problems = []
    if len(images) == 0:
        return []
    end, count = int(keys[images[-1]]) + 1, sum(position > images[-1] for position, _, _ in seen.ranges)
    _, said_end, said_stop = next(entry for entry in seen.ranges if entry[0] == 0)
    rounding = 0 if end + count <= EXACT_LABELS else np.spacing(np.float32(end + count))
    if max(abs(end - said_end), abs(end + count - said_stop)) > rounding:
        text = (
            f"it announces keys {said_end:.0f} and {said_stop:.0f} where images and identities end, found {end} and "
        )
        text += f"{end + count}; mxnet readers follow it"
        problems.append(Problem("header", text, (source.place(0),)))
    for position, _, _ in sorted(seen.ranges):
        if 0 < position < images[-1]:
            problems.append(
                Problem("header", "a record without an image among the images", (source.place(position),))
            )
    labels = np.where(np.isfinite(seen.labels[images]), seen.labels[images], -1).astype(np.int64)
    note = compare(source.path, keys[images], labels, read_ranges(source.reader, int(images[-1]) + 1))
    found.rows["identity records"] = f"{count:,}{'; ' + note if note else ''}"
    if end > EXACT_LABELS:
        found.rows["identity records"] += f"; those past key {EXACT_LABELS:,} not compared, float32 rounds there"
    return problems


def _property(source: RecordSource, found: Findings, image_size: Size) -> list[Problem]:
    path = source.path.parent / "property"
    if not path.is_file():
        return []
    text = path.read_text(errors="replace").strip()
    found.rows["property"] = text[:60]
    expected = f"{found.num_classes},{image_size[0]},{image_size[1]}"
    if [number.strip() for number in text.split(",")] == expected.split(","):
        return []
    return [Problem("property", f"it says {text[:60]!r}, the records {expected!r}", (Place(str(path)),))]
