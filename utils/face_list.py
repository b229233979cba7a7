"""Lists of images with labels: which form a list has is found by looking at all of its lines.

A list is read twice: once to find the form, once for its lines. Nothing that grows with it is kept but 8 bytes a line
for each column of whole numbers, while the form is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import eq
from pathlib import Path

from utils.list_columns import Column, WordsAround, is_number
from utils.list_roles import FORMS, PATH_NAMES, SWITCH, AmbiguousError, FormError, find_roles
from utils.list_text import (
    SEPARATORS,
    Cells,
    Line,
    ListText,
    blank_separated,
    holds_path,
    is_image,
    separated,
    shown,
)

_WORDS = ("path", "label", "name", "-")
_TRIED = 1000  # lines after which a separator that has divided none is given up
_FEW = 0.1  # a smaller share of labels that are no numbers, among numbers, is a mistake


@dataclass(frozen=True)
class FaceForm:
    """Where in a line path and label are."""

    separator: str
    cells: Cells
    columns: int
    path: int
    label: int
    heading: str = ""  # the first line, if it only names the columns
    announced: str = ""  # the line before it, if it only says how many follow, as in CelebA's lists
    flag: int | None = None  # insightface's column of 1 for an aligned face and 0 for another
    is_text: bool = False  # labels are names, even if they look like numbers

    def describe(self, lines: int) -> str:
        """Name the form."""
        parts = [f"list: {lines:,} lines", SEPARATORS[self.separator]]
        if self.heading:
            parts.append(f"heading line {shown(self.heading)}")
        parts.append(f"path in column {self.path + 1}, label in column {self.label + 1}")
        others = [str(i + 1) for i in range(self.columns) if i not in (self.path, self.label)]
        if others:
            parts.append(f"column{'s' if len(others) > 1 else ''} {', '.join(others)} left out")
        return ", ".join(parts)


@dataclass
class FaceList:
    """A list whose form is known."""

    text: ListText
    form: FaceForm
    count: int  # lines with an image
    repeated: int = 0  # heading lines that came again

    def entries(self) -> Iterator[tuple[Line, str, str]]:
        """Each line with its path and its label, as they are written; raises ValueError for another form."""
        for line in self.text.lines():
            if line.text not in (self.form.heading, self.form.announced):
                yield line, *self.entry(line.text, line.number)

    def sample(self, n: int) -> list[str]:
        """About ``n`` paths from all over the list."""
        every = -(-self.count // n)
        skipped = self.form.heading, self.form.announced
        lines = (line for line in self.text.lines() if line.text not in skipped)
        return [self.entry(line.text, line.number)[0] for line in islice(lines, 0, None, every)]

    def entry(self, text: str, number: int) -> tuple[str, str]:
        """The path and the label in a line."""
        form = self.form
        cells = form.cells(text)
        if form.flag is not None and cells[form.flag] == "0":
            raise ValueError(
                f"{self.text.path}: line {number} starts with 0, which in insightface lists marks a face "
                f"that is not aligned: align and crop the faces first; if column 1 is something else, {SWITCH}"
            )
        return cells[form.path], cells[form.label]

    def describe(self) -> str:
        """Name the form, in one line."""
        more = [f"{self.text.comments} comments"] * bool(self.text.comments)
        more += [f"the heading again {self.repeated} times"] * bool(self.repeated) + [self.text.kind] * bool(
            self.text.kind
        )
        return ", ".join([self.form.describe(self.count), *more])


def read_face_list(path: Path, columns: str = "") -> FaceList:
    """Find the form of a list of images with labels.

    Args:
        path: the file.
        columns: a word for each column, with commas between: path, label, name or -; "": found out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no line, no form fits all lines, or two columns could be labels; says how to settle it.
    """
    text = ListText(path)
    words = _words(columns)
    problems: list[FormError] = []
    found: list[tuple[bool, FaceList]] = []
    for separator in SEPARATORS:
        try:
            whole, listed = _read(text, separator, words)
            found.append((whole, listed))
            if whole:
                break
        except AmbiguousError:
            raise
        except FormError as error:
            problems.append(error)
    if not found:
        raise max(problems, key=lambda problem: problem.fits)
    return next((listed for whole, listed in found if whole), found[0][1])


def _words(columns: str) -> list[str]:
    words = [word.strip() for word in columns.split(",")] if columns else []
    labels = sum(word in ("label", "name") for word in words)
    if words and (words.count("path") != 1 or labels != 1 or not set(words).issubset(_WORDS)):
        raise ValueError(
            f"--columns must have one path, one label or name, and - for every other column, such as path,-,label; "
            f"got {columns!r}"
        )
    return words


def _read(text: ListText, separator: str, words: Sequence[str]) -> tuple[bool, FaceList]:
    """The list read with one separator, and whether all paths end as images do; FormError if that is not its form."""
    cells = _blank_cells(text, words) if separator == " " else separated(separator)
    rows = ((line, cells(line.text)) for line in text.lines())
    first = next(rows, None)
    announced = first[0].text if first is not None and first[0].text.strip().isdecimal() else ""
    if announced and len(announced) < 16 and (second := next(rows, None)) is not None:
        first = second
    else:
        announced = ""
    if first is None:
        raise ValueError(f"{text.path}: the list is empty; {FORMS}")
    head, head_row = first
    may_name_columns = not holds_path(head.text)
    table = _Table(text, separator, len(words), head.text if _is_heading_like(head_row) else None, head_row)
    if not may_name_columns:
        table.see(head, head_row)
    for line, row in rows:
        table.see(line, row)
        if table.problem and not table.count and line.number > _TRIED:
            raise table.problem
    columns = table.columns
    is_heading = may_name_columns and _is_heading(head_row, columns)
    is_heading = is_heading and (table.heading is not None or not table.is_like_head)
    heading = head.text if is_heading else ""
    if may_name_columns and not heading:
        table.see(head, head_row)
    if table.problem:
        table.problem.fits = table.count
        raise table.problem
    if not table.count:
        raise ValueError(f"{text.path}: the list holds a heading and no line below it; {FORMS}")
    heading_cells = head_row if heading else []
    if heading and not words and len(head_row) < len(columns):  # a comma in a name: labels would be halves of names
        raise FormError(
            f"{text.path}: the heading {shown(head.text)} names {len(head_row)} columns, but the lines below it have "
            f"{len(columns)}: put names that hold what separates columns in quotes, name all columns, or {SWITCH}",
            table.count,
        )
    count, repeated = table.count, table.repeated
    if announced and int(announced) != count:
        raise FormError(
            f"{text.path}: its first line announces {announced.strip()} images, but {count:,} follow: the list is "
            "cut short, or the first line does not belong to it: remove it",
            count,
        )
    names = [cell.lower() for cell in heading_cells]
    path, label, flag = (*_given(words), None) if words else find_roles(text, columns, names, separator)
    plain = columns[path].plain
    if plain and columns[path].images and not words:
        raise FormError(
            f"{text.path}: line {plain.number} is {shown(plain.text)}, expected {len(columns)} "
            f"{SEPARATORS[separator]} columns and a path that ends as an image does; correct or remove it, or "
            f"{SWITCH}; {FORMS}",
            columns[path].images,
        )
    is_text = bool(words) and words[label] == "name"
    _check_labels(text, columns[label], is_text)
    form = FaceForm(separator, cells, len(columns), path, label, heading, announced, flag, is_text)
    return columns[path].images == columns[path].n, FaceList(text, form, count, repeated)


class _Table:
    """The columns of a list, filled line by line."""

    def __init__(self, text: ListText, separator: str, width: int, heading: str | None, first: Sequence[str]) -> None:
        self.text, self.separator, self.heading, self._first = text, separator, heading, first
        self.is_like_head = False  # a line has a cell of the first line, which then is no heading
        self.columns = [Column() for _ in range(width)]
        self.count = self.repeated = 0
        self.problem: FormError | None = None

    def see(self, line: Line, row: list[str]) -> None:
        """Take a line in, or keep the first that has other columns; one that repeats the heading is counted."""
        if line.text == self.heading and self.count:
            self.repeated += 1
            return
        if not self.columns and len(row) > 1:
            self.columns += [Column() for _ in row]
        if len(row) < 2 or len(row) != len(self.columns) or "" in row or "\t" in "".join(row):
            self.problem = self.problem or _wrong(self.text, line, self.separator, len(self.columns), self.count)
            return
        for column, cell in zip(self.columns, row, strict=True):
            column.see(cell, line)
        self.is_like_head = self.is_like_head or any(map(eq, self._first, row))
        self.count += 1


def _wrong(text: ListText, line: Line, separator: str, columns: int, fits: int) -> FormError:
    like = " like the other lines" if fits else ""
    what = f"{columns} {SEPARATORS[separator]} columns{like}" if fits or columns > 2 else "a path and a label"
    return FormError(
        f"{text.path}: line {line.number} is {shown(line.text)}, expected {what}; correct or remove it; {FORMS}", fits
    )


def _is_heading_like(row: Sequence[str]) -> bool:
    return any(c.lower() in PATH_NAMES for c in row) and not any(is_image(c) or is_number(c) for c in row)


def _is_heading(row: Sequence[str], columns: Sequence[Column]) -> bool:
    """Whether a first line without an image names the columns: by known names, or because it is unlike all others."""
    if _is_heading_like(row):
        return True
    if len(row) != len(columns) or not columns[0].n or any(is_number(cell) for cell in row):
        return False
    both = list(zip(row, columns, strict=True))
    if any(column.images == column.n for column in columns):
        return True
    is_path = any(column.slashes == column.n and "/" in cell for cell, column in both)
    return any(column.is_whole for column in columns) and not is_path


def _given(words: Sequence[str]) -> tuple[int, int]:
    return words.index("path"), next(i for i, word in enumerate(words) if word in ("label", "name"))


def _check_labels(text: ListText, column: Column, is_text: bool) -> None:
    """Refuse a few names among numbers: one odd line would number all identities anew."""
    if is_text or not column.n_odd or column.odd is None:
        return
    if column.n_odd < _FEW * column.n or (column.n_odd == 1 < column.n - 1):
        raise FormError(
            f"{text.path}: line {column.odd.number} is {shown(column.odd.text)}, but the labels of "
            f"{column.n - column.n_odd:,} other lines are whole numbers: correct or remove it or, if labels are "
            "names, give --columns with name instead of label, such as --columns path,name",
            column.n - column.n_odd,
        )


def _blank_cells(text: ListText, words: Sequence[str]) -> Cells:
    """How many words stand before and after a path that may itself hold blanks."""
    if words:
        return blank_separated(words.index("path"), len(words) - 1 - words.index("path"))
    seen = WordsAround()
    for line in islice(text.lines(), 1, None):  # the first may name the columns
        seen.see(line)
    if not seen.after:
        for line in islice(text.lines(), 1):
            seen.see(line)
    if seen.pairs == seen.n > 0:
        raise FormError(
            f"{text.path}: two images on each line, expected one: a list of pairs is read by tools.make_bin and "
            f"eval.pairs; {FORMS}",
            seen.n,
        )
    return blank_separated(*seen.around_path())
