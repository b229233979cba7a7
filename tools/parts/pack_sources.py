"""What is to be packed: an image folder, or a list of image files with their identities."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from data.folders import IMAGE_SUFFIXES, FolderNotes, identity_folders, image_names
from utils.paths import ListedPaths

_WAY_OUT = "give the folder that holds all images as SRC or, if you trust the list, --allow-outside"

Form = Literal["path identity", "path\tidentity", "im2rec", "insightface"]


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
    r"""The lines of a text file, in one of these forms, which the first line decides.

    - ``path identity``, the identity being what follows the last blank, or ``path\tidentity``;
    - im2rec's ``index\tlabel\tpath``, further labels between label and path being left out;
    - insightface's ``1\tpath\tlabel``, what follows being left out; a 0 in front says that the face is not aligned.

    Identities are sorted by number if all of them are whole numbers, else by name; an identity's images keep the
    order of their lines. Takes 16 bytes of memory a line, 40 while it is read.

    Args:
        list_path: the file.
        root: where relative paths start.
        allow_outside: take paths that lead out of ``root``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no line, or one of another form or that leads out of ``root``; names file and line.
    """

    def __init__(self, list_path: Path, root: Path, allow_outside: bool = False) -> None:
        if not list_path.is_file():
            raise FileNotFoundError(f"{list_path}: no such list; expected lines such as path<TAB>identity")
        self.list_path, self.root = list_path, root
        listed = ListedPaths(list_path, root, _WAY_OUT, allow_outside)
        self._form: Form | None = None
        numbers: dict[str, int] = {}
        offsets, identities = array("q"), array("q")
        with list_path.open("rb") as file:
            at = 0
            for number, line in enumerate(file, 1):
                if line.strip(b"\r\n \t\xef\xbb\xbf"):
                    path, identity = self._fields(line, number)
                    listed.join(path, number)
                    offsets.append(at)
                    identities.append(numbers.setdefault(identity, len(numbers)))
                at += len(line)
        if not numbers:
            raise ValueError(f"{list_path}: the list is empty, expected lines such as path<TAB>identity")
        given = list(numbers)
        whole = [_whole_number(identity) for identity in given]
        order = sorted(range(len(given)), key=given.__getitem__)
        self.names = [given[i] for i in order]
        if None not in whole:  # 7 and 7.000000 are one
            distinct = sorted({number for number in whole if number is not None})
            place = {number: i for i, number in enumerate(distinct)}
            self.names = list(map(str, distinct))
            rank = np.array([place[number] for number in whole if number is not None])
        else:
            rank = np.empty(len(given), np.int64)
            rank[order] = np.arange(len(given))
        labels = rank[np.frombuffer(identities, np.int64)]
        self._offsets = np.frombuffer(offsets, np.int64)[labels.argsort(kind="stable")]
        self._counts = np.bincount(labels)

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the paths of each identity's images, in the order of the lines."""
        start = 0
        with self.list_path.open("rb") as file:
            for count in self._counts.tolist():
                paths = []
                for offset in self._offsets[start : start + count].tolist():
                    file.seek(offset)
                    paths.append(str(self.root / self._fields(file.readline(), 0)[0]))
                yield paths
                start += count

    def _fields(self, line: bytes, number: int) -> tuple[str, str]:
        """The path and the identity in a line."""
        text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n"))
        if self._form is None:
            self._form = _form_of(text)
        path, identity = "", ""
        if self._form == "path identity":
            *before, identity = text.rsplit(maxsplit=1) or [""]
            path = "".join(before)
        else:
            fields = [field.strip() for field in text.split("\t")]
            if self._form == "path\tidentity" and len(fields) == 2:
                path, identity = fields
            elif self._form == "im2rec" and len(fields) >= 3 and _is_number(fields[1]):
                path, identity = fields[-1], fields[1]
            elif self._form == "insightface" and len(fields) >= 3:
                path, identity = fields[1:3]
                if fields[0] == "0":
                    raise ValueError(
                        f"{self.list_path}: line {number} starts with 0, which marks a face that is not aligned: "
                        "align and crop the faces first"
                    )
        if not path.strip() or not identity:
            shown = {"im2rec": "index\tlabel\tpath", "insightface": "1\tpath\tlabel"}.get(self._form, self._form)
            raise ValueError(
                f"{self.list_path}: line {number} is {text[:80]!r}, expected {shown.replace(chr(9), '<TAB>')!r} like "
                "the first line; correct or remove it"
            )
        return path.strip(), identity


def _form_of(line: str) -> Form:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) == 1:
        return "path identity"
    if len(fields) == 2:
        return "path\tidentity"
    return "im2rec" if _is_number(fields[1]) else "insightface"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole_number(text: str) -> int | None:
    """3 of "3" and of "3.000000", None of anything else."""
    if text.removeprefix("-").isdecimal():
        return int(text)
    if not _is_number(text) or not float(text).is_integer():
        return None
    return int(float(text))
