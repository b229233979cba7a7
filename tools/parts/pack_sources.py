"""What is to be packed: an image folder, or a list of image files with their identities."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from utils.face_list import read_face_list
from utils.folders import IMAGE_SUFFIXES, FolderNotes, identity_folders, image_names
from utils.list_columns import whole_number
from utils.list_images import SAMPLE, ListedImages
from utils.paths import ListedPaths

_WAY_OUT = "give the folder that holds all images as SRC or, if you trust the list, --allow-outside"


class FaceFiles(Protocol):
    """Identities in the order of their labels, and the files of one after the other."""

    names: list[str]  # of the identities

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the paths of each identity's images."""


class FolderFiles:
    """``root/<identity>/<image>``, identities by sorted name as in training.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no identity folder in it.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected <identity>/<image> in it")
        self.root, self.notes = root, FolderNotes(root)
        self.names = identity_folders(root, self.notes)
        if not self.names:
            found = self.notes.left_out.total()
            what = f"{found} images and no folder" if found else "no folder"
            raise ValueError(
                f"{root}: expected a folder for each identity with its images in it ({', '.join(IMAGE_SUFFIXES)}), "
                f"found {what}; put each person's images into a folder, or give --list"
            )

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the paths of each identity's images, sorted by name; ``notes`` is complete after the last.

        ValueError at the end if the people plainly lie one level further down.
        """
        for name in self.names:
            folder = self.root / name
            yield [str(folder / os.fsdecode(image)) for image in image_names(folder, self.notes)]
        self.notes.check_level(self.names)


class ListFiles:
    """The images of a list, in any form that :func:`utils.face_list.read_face_list` finds.

    Identities are sorted by number if all of them are whole numbers, else by name; an identity's images keep the
    order of their lines. Takes 16 bytes of memory a line, 70 while it is read.

    Args:
        list_path: the file.
        root: where relative paths start.
        allow_outside: take paths that lead out of ``root``.
        columns: what the columns are, see ``read_face_list``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no form fits the list, or a path leads out of ``root``; names file and line.
    """

    def __init__(self, list_path: Path, root: Path, allow_outside: bool = False, columns: str = "") -> None:
        self.list_path, self.root = list_path, root
        self.listed = read_face_list(list_path, columns)
        paths = ListedPaths(list_path, root, _WAY_OUT, allow_outside)
        self._images = ListedImages(paths, self.listed.text, self.listed.sample(SAMPLE))
        numbers: dict[str, int] = {}
        offsets, identities, files = array("q"), array("q"), array("q")
        self.missing, self.first_missing = 0, ""
        self.unknown, self.first_unknown = 0, 0  # labels below 0
        is_text = self.listed.form.is_text
        for line, path, identity in self.listed.entries():
            if identity.startswith("-") and not is_text and (whole_number(identity) or 0) < 0:
                self.unknown += 1
                self.first_unknown = self.first_unknown or line.number
                continue
            file = self._images.path(path, line.number)
            if not os.path.lexists(file):
                self.missing += 1
                self.first_missing = self.first_missing or f"line {line.number}: {file}"
            files.append(hash(str(file)))
            offsets.append(line.offset)
            identities.append(numbers.setdefault(identity, len(numbers)))
        if not offsets:
            raise ValueError(
                f"{list_path}: all labels are below 0, which is for people nobody knows; expected others"
            )
        if self.missing == len(offsets):
            raise FileNotFoundError(
                f"{list_path}: none of its {self.missing:,} images is there, the first: {self.first_missing}; give "
                "the folder that the paths start at as SRC"
            )
        self.names, rank, self.order = _in_order(list(numbers), self.listed.form.is_text)
        labels = rank[np.frombuffer(identities, np.int64)]
        self._offsets = np.frombuffer(offsets, np.int64)[labels.argsort(kind="stable")]
        self._counts = np.bincount(labels)
        self.twice, self.of_two = _repeated(np.frombuffer(files, np.int64), labels)

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the paths of each identity's images, in the order of the lines."""
        start = 0
        for count in self._counts.tolist():
            lines = self.listed.text.at(self._offsets[start : start + count].tolist())
            yield [str(self._images.path(self.listed.entry(text, 0)[0], 0)) for text in lines]
            start += count

    def describe(self) -> list[str]:
        """The form that was found, how labels are numbered, and what is missing, a line each."""
        lines = ["; ".join([self.listed.describe(), *self._images.notes]), f"labels: {self.order}"]
        if self.missing:
            lines.append(
                f"missing: {self.missing:,} of {len(self._offsets):,} images, the first {self.first_missing}"
            )
        if self.unknown:
            lines.append(
                f"left out: {self.unknown:,} images whose label is below 0, which stands for nobody known; the first "
                f"in line {self.first_unknown}"
            )
        if self.twice:
            several = f", {self.of_two:,} of them as several people: remove those lines" if self.of_two else ""
            lines.append(f"more than once: {self.twice:,} images are listed, and packed, several times{several}")
        return lines


def _repeated(files: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[int, int]:
    """How many files come more than once, and how many of those with several labels."""
    order = np.lexsort((labels, files))
    same = files[order[1:]] == files[order[:-1]]
    twice = np.unique(files[order[1:]][same])
    other = same & (labels[order[1:]] != labels[order[:-1]])
    return len(twice), len(np.unique(files[order[1:]][other]))


def _in_order(given: list[str], is_text: bool) -> tuple[list[str], NDArray[np.int64], str]:
    """Names in the order of labels, the label of each given name, and that order in words."""
    whole = [None if is_text else whole_number(identity) for identity in given]
    if None not in whole:  # 7 and 7.000000 are one
        distinct = sorted({number for number in whole if number is not None})
        place = {number: i for i, number in enumerate(distinct)}
        spellings = _spellings(given, whole)
        rank = np.array([place[number] for number in whole if number is not None])
        kept = "each keeps its number" if distinct == list(range(len(distinct))) else "numbered from 0 in their order"
        several = [words for words in spellings.values() if len(words) > 1]
        if several:
            kept += f"; {len(several):,} of them are written in several ways, such as {' and '.join(several[0])}: one"
        names = [words[0] if len(words := spellings.get(n, [])) == 1 else str(n) for n in distinct]
        return names, rank, f"whole numbers {distinct[0]} to {distinct[-1]}, {kept}"
    order = sorted(range(len(given)), key=given.__getitem__)
    rank = np.empty(len(given), np.int64)
    rank[order] = np.arange(len(given))
    names = [given[i] for i in order]
    return names, rank, f"names, numbered from 0 in the order of their text: 0 is {names[0]!r}"


def _spellings(given: list[str], whole: list[int | None]) -> dict[int, list[str]]:
    """The ways in which each number is written; 7.000000, as im2rec writes, is only another type of 7."""
    spellings: dict[int, list[str]] = {}
    for text, number in zip(given, whole, strict=True):
        if number is not None and text.isdecimal() and text.isascii():
            spellings.setdefault(number, []).append(text)
    return spellings
