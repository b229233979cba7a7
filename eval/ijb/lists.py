"""The IJB-B and IJB-C tree: lists of images, templates, pairs and galleries, checked before any work starts.

Shapes: N images, P pairs of templates, K templates of a gallery or of the probes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedder.landmarks import check_pixels
from eval.ijb.landmarks import check_landmarks
from eval.ijb.templates import template_rows
from eval.ijb.text_lists import read_csv_numbers, read_named_lines, read_number_columns
from utils.paths import ListedPaths

TARGETS = ("IJBC", "IJBB")
PROTOCOLS = ("11", "1n", "both")
GALLERIES = {"IJBC": ("G1", "G2"), "IJBB": ("S1", "S2")}
_NAMED = 5  # errors that a message shows, of many
_WAY_OUT = "copy the images into that folder or, if you trust the lists, give --allow-outside"

T = TypeVar("T")


@dataclass(frozen=True)
class Subjects:
    """Templates and whose they are."""

    template_ids: NDArray[np.int64]  # (K,) ascending, each once
    subject_ids: NDArray[np.int64]  # (K,)


@dataclass(frozen=True)
class IJBTree:
    """What the lists of one set say. About 0.6 GiB for IJB-C."""

    target: str  # "IJBC" or "IJBB"
    image_folder: Path
    names: list[str]  # N file names in image_folder
    template_ids: NDArray[np.int64]  # (N,)
    media_ids: NDArray[np.int64]  # (N,)
    landmarks: NDArray[np.float32]  # (N, 5, 2) x, y in pixels
    detector_scores: NDArray[np.float32]  # (N,)
    pair_template_1: NDArray[np.integer[Any]]  # (P,), P = 0 where only 1:N was asked for
    pair_template_2: NDArray[np.integer[Any]]  # (P,)
    pair_label: NDArray[np.integer[Any]]  # (P,) 1 for one person, 0 for two
    galleries: dict[str, Subjects] = field(default_factory=dict)  # by name; empty where only 1:1 was asked for
    probes: Subjects | None = None
    stamps: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))  # (N, 2) bytes, mtime in ns


@dataclass(frozen=True)
class _Paths:
    folder: Path
    images: Path
    landmarks: Path
    pairs: Path | None
    galleries: dict[str, Path]
    probes: Path | None


class _Problems:
    """What is wrong with a tree, collected so that one run of the program names all of it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.missing = False

    def call(self, do: Callable[[], T]) -> T | None:
        """What ``do`` returns; None, and its error kept, where it fails for what a user can fix."""
        try:
            return do()
        except FileNotFoundError as error:
            self.missing = True
            self.texts.append(str(error))
        except ValueError as error:
            self.texts.append(str(error))
        return None

    def report(self) -> None:
        """Raise all of them as one error, if there are any."""
        if not self.texts:
            return
        numbered = [f"({i}) {text}" for i, text in enumerate(self.texts, 1)]
        text = self.texts[0] if len(numbered) == 1 else f"{len(numbered)} problems: {'; '.join(numbered)}"
        raise FileNotFoundError(text) if self.missing else ValueError(text)


def read_ijb(root: str | Path, target: str = "IJBC", protocol: str = "11", allow_outside: bool = False) -> IJBTree:
    """Read and check the lists of an IJB tree, and that every image is there.

    Args:
        root: the folder that holds ``meta`` and ``loose_crop``.
        target: "IJBC" or "IJBB".
        protocol: "11" reads the list of pairs, "1n" galleries and probes, "both" all of them.
        allow_outside: take images whose names or links lead out of ``loose_crop``.

    Raises:
        FileNotFoundError: a list, the image folder or an image is missing.
        ValueError: an unknown target or protocol, a malformed line, a name that leads out of ``loose_crop``, or lists
            that disagree. An error of either kind lists everything that is wrong, the first few of many.
    """
    paths = _check_layout(Path(root), target, protocol)
    problems = _Problems()
    names, tree = _read_lists(paths, target, problems)
    listed = ListedPaths(paths.images, paths.folder, _WAY_OUT, allow_outside)
    stamps = problems.call(lambda: _check_images(listed, names))
    problems.report()
    assert tree is not None
    assert stamps is not None
    return replace(tree, stamps=stamps)


def read_lists(root: str | Path, target: str = "IJBC", protocol: str = "11") -> IJBTree:
    """Do what :func:`read_ijb` does, without looking at the images; ``stamps`` stays empty."""
    problems = _Problems()
    _, tree = _read_lists(_check_layout(Path(root), target, protocol), target, problems)
    problems.report()
    assert tree is not None
    return tree


def _check_layout(root: Path, target: str, protocol: str) -> _Paths:
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    lower, meta = target.lower(), root / "meta"
    one_to_n = protocol != "11"
    paths = _Paths(
        folder=root / "loose_crop",
        images=meta / f"{lower}_face_tid_mid.txt",
        landmarks=meta / f"{lower}_name_5pts_score.txt",
        pairs=None if protocol == "1n" else meta / f"{lower}_template_pair_label.txt",
        galleries={g: meta / f"{lower}_1N_gallery_{g}.csv" for g in GALLERIES[target]} if one_to_n else {},
        probes=meta / f"{lower}_1N_probe_mixed.csv" if one_to_n else None,
    )
    lists = [paths.images, paths.pairs, paths.landmarks, *paths.galleries.values(), paths.probes]
    missing = [str(path.relative_to(root)) for path in lists if path is not None and not path.is_file()]
    missing += [] if paths.folder.is_dir() else ["loose_crop/"]
    if missing:
        where = "" if root.is_dir() else " (that folder does not exist)"
        raise FileNotFoundError(
            f"{root}{where} is no {target} tree for protocol {protocol}: {', '.join(missing)} missing. Expected are "
            f"meta/ with the {lower}_* lists and loose_crop/ with the images; the image path is the folder that "
            "holds both, and the target chooses IJBC or IJBB"
        )
    return paths


def _read_lists(paths: _Paths, target: str, problems: _Problems) -> tuple[list[str], IJBTree | None]:
    """Read every list: the images' names as far as they are known, and the tree if nothing is missing for it."""
    images = problems.call(lambda: read_named_lines(paths.images, 2, np.int64))
    points = problems.call(lambda: _read_landmarks(paths.landmarks, paths.images))
    if images is not None and points is not None:
        problems.call(lambda: _check_same_images(paths.images, images[0], paths.landmarks, points[0]))
    known = np.unique(images[1][:, 0].astype(np.int64)) if images is not None else None
    pairs = problems.call(lambda: _read_pairs(paths.pairs, known))
    galleries, probes = _read_galleries(paths, known, problems)
    if images is None or points is None or pairs is None:
        return images[0] if images is not None else [], None
    tree = IJBTree(
        target=target,
        image_folder=paths.folder,
        names=images[0],
        template_ids=images[1][:, 0].astype(np.int64),
        media_ids=images[1][:, 1].astype(np.int64),
        landmarks=points[1][:, :10].reshape(-1, 5, 2).astype(np.float32),
        detector_scores=points[1][:, 10].astype(np.float32),
        pair_template_1=pairs[0],
        pair_template_2=pairs[1],
        pair_label=pairs[2],
        galleries=galleries,
        probes=probes,
    )
    return tree.names, tree


def _read_galleries(
    paths: _Paths, known: NDArray[np.int64] | None, problems: _Problems
) -> tuple[dict[str, Subjects], Subjects | None]:
    """Galleries by name, and the probes; what cannot be read is left out and reported."""
    galleries = {}
    for name, path in paths.galleries.items():
        subjects = problems.call(partial(_read_subjects, path, known))
        if subjects is not None:
            galleries[name] = subjects
    probes = problems.call(partial(_read_subjects, paths.probes, known)) if paths.probes is not None else None
    return galleries, probes


def _read_landmarks(path: Path, other: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Names and (N, 11): five points and a score. Points that lie within one pixel cannot align a face."""
    names, points = read_named_lines(path, 11, np.float64)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"{path}, line {row + 1}: landmarks or score of {names[row]} are not finite")
    five = points[:, :10].reshape(-1, 5, 2)
    check_pixels(path, five)
    collapsed = (five.max(axis=1) - five.min(axis=1)).max(axis=1) < 1
    if collapsed.any():
        row = int(collapsed.argmax())
        raise ValueError(
            f"{path}, line {row + 1}: the landmarks of {names[row]} all lie in one point ({collapsed.sum()} such "
            f"images); run the landmark detector on them again, or take their lines out of this list and of {other}"
        )
    check_landmarks(path, names, five)
    return names, points


def _check_same_images(first: Path, names_1: list[str], second: Path, names_2: list[str]) -> None:
    if names_1 == names_2:
        return
    if len(names_1) != len(names_2):
        raise ValueError(
            f"the lists must name the same images, but {first} has {len(names_1)} lines and {second} {len(names_2)}"
        )
    rows = [row for row, (a, b) in enumerate(zip(names_1, names_2, strict=True)) if a != b]
    row = rows[0]
    raise ValueError(
        f"the lists must name the same images in the same order, but line {row + 1} is {names_1[row]!r} in {first} "
        f"and {names_2[row]!r} in {second} ({len(rows)} such lines)"
    )


def _read_pairs(path: Path | None, known: NDArray[np.int64] | None) -> NDArray[np.integer[Any]]:
    """(3, P): first and second template, and 1 for one person or 0 for two; (3, 0) without a list."""
    if path is None:
        return np.empty((3, 0), np.int64)
    pairs = read_number_columns(path, 3)
    bad = (pairs[2] != 0) & (pairs[2] != 1)
    if bad.any():
        line = int(bad.argmax())
        raise ValueError(f"{path}, line {line + 1}: label {pairs[2, line]}, expected 0 or 1")
    genuine = int(pairs[2].sum())
    if genuine in (0, pairs.shape[1]):
        raise ValueError(f"{path}: {genuine} of {pairs.shape[1]} pairs are of one person, expected both kinds")
    for column in pairs[:2]:
        _check_known(path, column, known, 1)
    return pairs


def _read_subjects(path: Path, known: NDArray[np.int64] | None) -> Subjects:
    """Read a gallery or the probes; a template may be on several lines, all of one person."""
    rows = read_csv_numbers(path, 2)
    _check_known(path, rows[:, 0], known, 2)
    templates, first, which = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    subjects = rows[first, 1]
    other = subjects[which] != rows[:, 1]
    if other.any():
        line = int(other.argmax())
        raise ValueError(
            f"{path}: template {rows[line, 0]} is of subject {subjects[which[line]]} on one line and of "
            f"{rows[line, 1]} on another"
        )
    return Subjects(templates, subjects)


def _check_known(path: Path, ids: NDArray[np.integer[Any]], known: NDArray[np.int64] | None, first_line: int) -> None:
    """Refuse templates without images; ``known`` is ascending, None where the images' own list cannot be read."""
    if known is None:
        return
    try:
        template_rows(known, ids)
    except ValueError:
        unknown = ~np.isin(ids, known)
        line, count = int(unknown.argmax()), len(np.unique(ids[unknown]))
        raise ValueError(
            f"{path}, line {line + first_line}: template {ids[line]} has no images ({count} such templates)"
        ) from None


def _check_images(listed: ListedPaths, names: list[str]) -> NDArray[np.int64]:
    """Size in bytes and modification time of each image, (N, 2).

    Raises:
        FileNotFoundError: images are missing.
        ValueError: a name leads out of the folder.
    """
    folder, wanted = listed.root, set(names)
    found: dict[str, tuple[int, int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in wanted and entry.is_file() and not entry.is_symlink():
                status = entry.stat()
                found[entry.name] = (status.st_size, status.st_mtime_ns)
    for line, name in enumerate(names, 1):  # links, and those in folders of their own
        if name not in found and (path := listed.join(name, line)).is_file():
            status = path.stat()
            found[name] = (status.st_size, status.st_mtime_ns)
    if len(found) < len(wanted):
        missing = [name for name in names if name not in found]
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images are missing in {folder}: {', '.join(missing[:_NAMED])}"
            f"{', ...' if len(missing) > _NAMED else ''}"
        )
    return np.array([found[name] for name in names], np.int64).reshape(-1, 2)
