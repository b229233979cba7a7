"""A file of landmarks that another detector wrote: ``path,x1,y1,...,x5,y5``, a face a line.

Shapes: (F, 5, 2) landmarks as ``embedder/align.py`` wants them, in pixels of the upright photo.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from embedder.detector import Faces, no_faces
from embedder.landmarks import check_list, check_pixels
from utils.list_columns import is_number
from utils.list_images import SAMPLE, ListedImages
from utils.list_text import Cells, Line, ListText, blank_separated, separated, shown
from utils.paths import ListedPaths

_FORM = "a line is path,x1,y1,...,x5,y5 and, if you like, a score (commas, semicolons, tabs or blanks between)"
_WAY_OUT = "give the folder that holds all photographs as PHOTOS"


class LandmarkTable:
    """The faces of each photograph, by its path below a folder.

    A photo may have several lines, or one without numbers, with nan or with ten equal numbers: no face. Takes about
    300 bytes of memory a face.

    Args:
        path: the file, with a heading or without.
        root: the folder that relative paths start at; others must lead into it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another form, landmarks in another order or as shares of the sides, or a path out of ``root``;
            names file and line.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self._text = path, ListText(path)
        first = [line.text for line in islice(self._text.lines(), 2)]
        if not first:
            raise ValueError(f"{path} is empty: {_FORM}")
        self._cells = _cells_of(first)
        images = self._images(root)
        self._rows: dict[bytes, tuple[int, ...]] = {}
        points, lines = array("d"), array("q")
        for line, entry, numbers in self._entries():
            key = os.fsencode(os.path.relpath(images.path(entry, line.number), root))
            before = self._rows.setdefault(key, ())
            if numbers is not None:
                self._rows[key] = (*before, len(lines))
                points.extend(numbers)
                lines.append(line.number)
        if not self._rows:
            raise ValueError(f"{path} holds a heading and no face: {_FORM}")
        self._points = np.array(points).reshape(-1, 5, 2)
        if len(lines):
            check_pixels(path, self._points, lines)
            check_list(path, self._points, lines)

    def __contains__(self, name: bytes) -> bool:
        """Whether a photograph, by its path below the folder, has a line."""
        return name in self._rows

    def faces(self, name: bytes) -> Faces:
        """The faces of a photograph that has a line; their boxes are those of their five points."""
        rows = list(self._rows[name])
        if not rows:
            return no_faces()
        points = self._points[rows]
        low, high = points.min(axis=1), points.max(axis=1)
        return Faces(np.concatenate([low, high - low], axis=1), points, np.ones(len(rows)))

    def check_names(self, names: Sequence[bytes]) -> str:
        """A note on photographs that only one side knows, "" without any.

        Raises:
            ValueError: no photograph has a line.
        """
        known = sum(name in self._rows for name in names)
        example = os.fsdecode(next(iter(self._rows)))
        if not known:
            raise ValueError(
                f"{self.path}: none of its {len(self._rows):,} paths is a photograph in PHOTOS, such as {example!r}; "
                f"PHOTOS has {os.fsdecode(names[0])!r}: give the folder that the paths start at as PHOTOS"
            )
        if known == len(self._rows):
            return ""
        return (
            f"{self.path}: {len(self._rows) - known:,} of its {len(self._rows):,} paths are no photograph in PHOTOS"
        )

    def _images(self, root: Path) -> ListedImages:
        sample = [entry for _, entry, _ in islice(self._entries(), SAMPLE)]
        return ListedImages(ListedPaths(self.path, root, _WAY_OUT), self._text, sample)

    def _entries(self) -> Iterator[tuple[Line, str, list[float] | None]]:
        """Each line, its path, and its ten numbers, None where they are no face."""
        for place, line in enumerate(self._text.lines()):
            cells = self._cells(line.text)
            numbers = cells[1:11] if 1 < len(cells) < 13 else [""] * 10 if len(cells) == 1 else []
            wrong = len(numbers) != 10 or not all(is_number(cell) or not cell for cell in numbers)
            if wrong and place == 0 and not any(map(is_number, cells)):
                continue  # the heading
            if wrong:
                raise ValueError(f"{self.path}, line {line.number} is {shown(line.text)}: {_FORM}")
            values = [float(cell or "nan") for cell in numbers]
            is_face = bool(np.isfinite(values).all()) and len(set(values)) > 1
            yield line, cells[0], values if is_face else None


def _cells_of(first: Sequence[str]) -> Cells:
    """How the lines are divided, by the first two of them."""
    for separator in "\t;,":
        if any(text.count(separator) >= 10 for text in first):
            return separated(separator)
    words = first[-1].split()
    numbers = 0
    while numbers < len(words) and is_number(words[-1 - numbers]):
        numbers += 1
    return blank_separated(0, 11 if numbers == 11 else 10)
