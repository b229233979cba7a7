"""The IJB-B and IJB-C tree: lists of images, templates and pairs, checked before any work starts.

Shapes: N images, P pairs of templates.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TARGETS = ("IJBC", "IJBB")
_BYTES_PER_BLOCK = 1 << 22


@dataclass(frozen=True)
class IJBTree:
    """What the lists of one set say. About 0.5 GiB for IJB-C."""

    target: str  # "IJBC" or "IJBB"
    image_folder: Path
    names: list[str]  # N file names in image_folder
    template_ids: NDArray[np.int64]  # (N,)
    media_ids: NDArray[np.int64]  # (N,)
    landmarks: NDArray[np.float32]  # (N, 5, 2) x, y in pixels
    detector_scores: NDArray[np.float32]  # (N,)
    pair_template_1: NDArray[np.int64]  # (P,)
    pair_template_2: NDArray[np.int64]  # (P,)
    pair_label: NDArray[np.int64]  # (P,) 1 for one person, 0 for two


def _parse(text: bytes, dtype: type[np.int64] | type[np.float64]) -> NDArray[Any]:
    """Read whitespace-separated numbers; ValueError where something else stands."""
    if not text.strip():
        return np.empty(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # older numpy only warns, and returns what it read so far
        try:
            return np.fromstring(text, dtype, sep=" ")
        except DeprecationWarning as warning:
            raise ValueError(str(warning)) from None


def _first_bad_line(
    path: Path, text: bytes, columns: int, dtype: type[np.int64] | type[np.float64], named: bool
) -> ValueError:
    """Find the line that does not fit; only called once it is known that there is one."""
    what = f"{'a file name and ' if named else ''}{columns} {'whole ' if dtype is np.int64 else ''}numbers"
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        try:
            fits = len(words) == columns + named and len(_parse(b" ".join(words[named:]), dtype)) == columns
        except ValueError:
            fits = False
        if not fits:
            found = line[:80].decode("utf-8", "replace")
            return ValueError(f"{path}, line {number}: expected {what}, found {found!r}")
    return ValueError(f"{path}: expected {what} a line")


def _every_line_has(text: bytes, columns: int) -> bool:
    """Tell whether each line holds ``columns`` words; a fixed amount of memory, about 60 million words a second."""
    start = 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + _BYTES_PER_BLOCK) + 1 or text.find(b"\n", start) + 1 or len(text)
        block = np.frombuffer(text, np.uint8, end - start, start)
        blank = (block == 32) | ((block >= 9) & (block <= 13))
        begins = ~blank
        begins[1:] &= blank[:-1]
        line_ends = np.flatnonzero(block == 10)
        if block[-1] != 10:  # the text's last line
            line_ends = np.append(line_ends, len(block))
        words_before = np.searchsorted(np.flatnonzero(begins), line_ends)
        if not (np.diff(words_before, prepend=0) == columns).all():
            return False
        start = end
    return True


def read_number_lines(path: Path, columns: int) -> NDArray[np.int64]:
    """Read a list of ``columns`` whole numbers a line, (lines, columns); about 3 million lines a second.

    Raises:
        ValueError: a line that holds something else, by its number, or an empty file.
    """
    text = path.read_bytes().rstrip()
    try:
        flat = _parse(text, np.int64)
    except ValueError:
        raise _first_bad_line(path, text, columns, np.int64, False) from None
    if len(flat) == 0:
        raise ValueError(f"{path} is empty")
    if not _every_line_has(text, columns):
        raise _first_bad_line(path, text, columns, np.int64, False)
    return flat.reshape(-1, columns).astype(np.int64, copy=False)


def read_named_lines(
    path: Path, columns: int, dtype: type[np.int64] | type[np.float64]
) -> tuple[list[str], NDArray[Any]]:
    """Read a list of a file name and ``columns`` numbers a line: N names and (N, columns).

    Raises:
        ValueError: a line that holds something else, by its number, or an empty file.
    """
    text = path.read_bytes().rstrip()
    if not text:
        raise ValueError(f"{path} is empty")
    words = [line.split() for line in text.splitlines()]
    if any(len(line) != columns + 1 for line in words):
        raise _first_bad_line(path, text, columns, dtype, True)
    try:
        names = [line[0].decode() for line in words]
        flat = _parse(b" ".join([word for line in words for word in line[1:]]), dtype)
    except ValueError:
        raise _first_bad_line(path, text, columns, dtype, True) from None
    if len(flat) != columns * len(names):
        raise _first_bad_line(path, text, columns, dtype, True)
    return names, flat.reshape(-1, columns)


def _check_layout(root: Path, target: str) -> tuple[Path, Path, Path, Path]:
    lower = target.lower()
    folder = root / "loose_crop"
    paths = [
        root / "meta" / f"{lower}_{what}.txt" for what in ("face_tid_mid", "template_pair_label", "name_5pts_score")
    ]
    missing = [str(path.relative_to(root)) for path in paths if not path.is_file()]
    missing += [] if folder.is_dir() else ["loose_crop/"]
    if missing:
        where = "" if root.is_dir() else " (that folder does not exist)"
        raise FileNotFoundError(
            f"{root}{where} is no {target} tree: {', '.join(missing)} missing. Expected are meta/ with the "
            f"{lower}_*.txt lists and loose_crop/ with the images; the image path is the folder that holds both, "
            "and the target chooses IJBC or IJBB"
        )
    return folder, paths[0], paths[1], paths[2]


def _check_landmarks(path: Path, other: Path, names: list[str], landmarks: NDArray[np.float64]) -> None:
    """Refuse five points (N, 5, 2) that lie within one pixel: there is no face to align by them."""
    collapsed = np.ptp(landmarks, axis=1).max(axis=1) < 1
    if collapsed.any():
        row = int(collapsed.argmax())
        raise ValueError(
            f"{path}, line {row + 1}: the landmarks of {names[row]} all lie in one point ({collapsed.sum()} such "
            f"images); run the landmark detector on them again, or take their lines out of this list and of {other}"
        )


def _check_images(folder: Path, names: list[str]) -> None:
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries}
    missing = [name for name in names if name not in present and not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images are missing in {folder}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}"
        )


def _check_same_images(first: Path, names_1: list[str], second: Path, names_2: list[str]) -> None:
    for row, (a, b) in enumerate(zip(names_1, names_2, strict=False), 1):
        if a != b:
            raise ValueError(
                f"the lists must name the same images in the same order, but line {row} is {a!r} in {first} "
                f"and {b!r} in {second}"
            )
    if len(names_1) != len(names_2):
        raise ValueError(
            f"the lists must name the same images, but {first} has {len(names_1)} lines and {second} {len(names_2)}"
        )


def _check_pairs(path: Path, pairs: NDArray[np.int64], template_ids: NDArray[np.int64]) -> None:
    known = np.unique(template_ids)
    for column in (0, 1):
        ids = np.unique(pairs[:, column])
        unknown = ids[~np.isin(ids, known)]
        if len(unknown):
            line = int((pairs[:, column] == unknown[0]).argmax()) + 1
            raise ValueError(
                f"{path}, line {line}: template {unknown[0]} has no images ({len(unknown)} such templates)"
            )
    bad = (pairs[:, 2] != 0) & (pairs[:, 2] != 1)
    if bad.any():
        line = int(bad.argmax())
        raise ValueError(f"{path}, line {line + 1}: label {pairs[line, 2]}, expected 0 or 1")
    genuine = int(pairs[:, 2].sum())
    if genuine in (0, len(pairs)):
        raise ValueError(f"{path}: {genuine} of {len(pairs)} pairs are of one person, expected both kinds")


def read_ijb(root: str | Path, target: str = "IJBC") -> IJBTree:
    """Read and check the lists of an IJB tree.

    Args:
        root: the folder that holds ``meta`` and ``loose_crop``.
        target: "IJBC" or "IJBB".

    Raises:
        FileNotFoundError: a list, the image folder or an image is missing.
        ValueError: an unknown target, a malformed line, or lists that disagree.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    folder, image_list, pair_list, landmark_list = _check_layout(Path(root), target)
    names, template_media = read_named_lines(image_list, 2, np.int64)
    landmark_names, points = read_named_lines(landmark_list, 11, np.float64)
    _check_same_images(image_list, names, landmark_list, landmark_names)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"{landmark_list}, line {row + 1}: landmarks or score of {names[row]} are not finite")
    landmarks = points[:, :10].reshape(-1, 5, 2)
    _check_landmarks(landmark_list, image_list, names, landmarks)
    pairs = read_number_lines(pair_list, 3)
    template_ids = template_media[:, 0].astype(np.int64)
    _check_pairs(pair_list, pairs, template_ids)
    _check_images(folder, names)
    return IJBTree(
        target=target,
        image_folder=folder,
        names=names,
        template_ids=template_ids,
        media_ids=template_media[:, 1].astype(np.int64),
        landmarks=landmarks.astype(np.float32),
        detector_scores=points[:, 10].astype(np.float32),
        pair_template_1=np.ascontiguousarray(pairs[:, 0]),
        pair_template_2=np.ascontiguousarray(pairs[:, 1]),
        pair_label=np.ascontiguousarray(pairs[:, 2]),
    )
