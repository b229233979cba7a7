"""The text of list files as people have them: any line end, comments, UTF-8, UTF-16, or bytes of another encoding."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from utils.folders import IMAGE_SUFFIXES

MAX_LINE = 1 << 16  # bytes
# What tells a path from a label. More than folders are searched for: a list of others must be understood.
IMAGE_ENDINGS = (*IMAGE_SUFFIXES, ".gif")
SEPARATORS = {"\t": "tab-separated", ";": "semicolon-separated", ",": "comma-separated", " ": "blank-separated"}

Cells = Callable[[str], list[str]]


class Line(NamedTuple):
    """A line that is neither blank nor a comment."""

    number: int  # from 1
    offset: int  # of its first byte, for :meth:`ListText.at`
    text: str


class ListText:
    """The lines of a list file, which is read anew each time and never kept, unless it is UTF-16.

    Bytes that are no UTF-8 stay what they are (``surrogateescape``), as names of files do, until ``encoding`` is set.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text: a zero byte, or a line above 64 KiB; names the line.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such list")
        self.path, self.encoding = path, ""
        self.comments = 0
        with path.open("rb") as file:
            start = file.read(1 << 12)
        self.kind = ""
        self._copy: bytes | None = None
        wide = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        if not wide and start.count(0) > len(start) / 4 and any(start[::2]):  # letters have a zero byte each
            wide = "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
        if wide:
            self.kind = "UTF-16"
            try:
                text = path.read_bytes().decode(wide)
                self._copy = text.replace("\r\n", "\n").replace("\r", "\n").encode()
            except UnicodeError:
                raise ValueError(f"{path}: expected a text, found bytes that are no UTF-16") from None
        elif b"\r" in start and b"\n" not in start:
            self._copy = path.read_bytes().replace(b"\r", b"\n")

    def lines(self) -> Iterator[Line]:
        """Every line but blank ones and those that start with #, which are counted."""
        self.comments = 0
        with self._open() as file:
            number = at = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    raise ValueError(
                        f"{self.path}, line {number}: longer than {MAX_LINE:,} bytes: it is another kind of file"
                    )
                if b"\0" in raw:
                    raise ValueError(
                        f"{self.path}, line {number}: a zero byte: no text, expected a list in UTF-8 or UTF-16"
                    )
                text = self._decode(raw, at)
                if number == 1 and re.fullmatch(r"sep=.", text):  # Excel's word for the separator
                    at += len(raw)
                    continue
                if text.startswith("#"):
                    self.comments += 1
                elif text.strip():
                    yield Line(number, at, text)
                at += len(raw)

    def at(self, offsets: list[int]) -> Iterator[str]:
        """The lines at these offsets."""
        with self._open() as file:
            for offset in offsets:
                file.seek(offset)
                yield self._decode(file.readline(), offset)

    def _open(self) -> BinaryIO:
        return self.path.open("rb") if self._copy is None else io.BytesIO(self._copy)

    def _decode(self, raw: bytes, offset: int) -> str:
        if offset == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.strip(b"\r\n")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            if self.encoding:
                return raw.decode(self.encoding, "replace")
            return raw.decode("utf-8", "surrogateescape")


def is_image(cell: str) -> bool:
    """Whether a cell ends as the names of images do."""
    return cell.lower().endswith(IMAGE_ENDINGS)


def holds_path(text: str) -> bool:
    """Whether something in a line looks like a path: such a line is no heading."""
    return "/" in text or "\\" in text or any(map(is_image, re.split(r"[\s,;\"]+", text)))


def separated(separator: str) -> Cells:
    """Make a function from a line to its cells, which may be quoted; empty ones at the end are left out."""

    def cells(text: str) -> list[str]:
        if '"' in text:
            try:
                found = next(csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True))
            except (csv.Error, StopIteration):
                found = text.split(separator)
        else:
            found = text.split(separator)
        found = [cell.strip() for cell in found]
        while len(found) > 1 and not found[-1]:
            found.pop()
        return found

    return cells


def blank_separated(before: int, after: int) -> Cells:
    """Make a function from a line to ``before`` words, a path that may hold blanks, and ``after`` words."""

    def cells(text: str) -> list[str]:
        first = text.split(None, before)
        last = first.pop().rsplit(None, after) if len(first) > before else []
        return [*first, *(cell.strip() for cell in last)]

    return cells


def shown(text: str) -> str:
    """A line for an error message."""
    return repr(text if len(text) <= 80 else text[:80] + "...")
