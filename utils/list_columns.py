"""What the columns of a list have in common, over all of its lines."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from utils.list_text import Line, is_image

_EXACT = 1 << 53  # from here on a float may stand for several whole numbers


@dataclass
class Column:
    """What the cells of one column have in common."""

    n: int = 0
    images: int = 0
    slashes: int = 0
    first: str = ""
    is_constant: bool = True
    plain: Line | None = None  # the first line whose cell does not end as images do
    odd: Line | None = None  # the first line whose cell is no whole number
    n_odd: int = 0
    n_fractions: int = 0
    whole: array[int] = field(default_factory=lambda: array("q"))

    def see(self, cell: str, line: Line) -> None:
        """Count a cell."""
        if not self.n:
            self.first = cell
        self.n += 1
        if is_image(cell):
            self.images += 1
        else:
            self.plain = self.plain or line
        self.slashes += "/" in cell or "\\" in cell
        self.is_constant = self.is_constant and cell == self.first
        number = whole_number(cell)
        if number is None:
            self.odd = self.odd or line
            self.n_odd += 1
            self.n_fractions += is_number(cell)
        elif self.n_odd == 0 and abs(number) < 1 << 62:
            self.whole.append(number)

    @property
    def is_whole(self) -> bool:
        """Whether every cell is a whole number."""
        return self.n_odd == 0

    @property
    def is_distinct(self) -> bool:
        """Whether all are whole numbers, and none comes twice."""
        return len(self.whole) == self.n == len(np.unique(np.frombuffer(self.whole, np.int64)))

    @property
    def is_index(self) -> bool:
        """Whether they are consecutive whole numbers in any order, each once."""
        whole = np.frombuffer(self.whole, np.int64)
        return len(whole) == self.n > 1 and bool((np.diff(np.sort(whole)) == 1).all())


@dataclass
class WordsAround:
    """What stands around the image in each of the lines, divided at blanks."""

    n: int = 0
    pairs: int = 0  # lines with two images
    before: set[int] = field(default_factory=set)  # words before the one that ends as images do
    after: set[int] = field(default_factory=set)
    numbers: int = 1 << 30  # how many whole numbers every line starts with
    are_flags: bool = True  # every line starts with 0 or 1
    is_counting: bool = True  # every line starts with one more than the line before
    last: int | None = None

    def see(self, line: Line) -> None:
        """Count a line, unless no word of it ends as images do."""
        words = line.text.split()
        images = [i for i, word in enumerate(words) if is_image(word)]
        if not images:
            return
        self.n += 1
        self.pairs += len(images) > 1
        self.before.add(images[0])
        self.after.add(len(words) - 1 - images[-1])
        leading = 0
        while leading < images[0] and whole_number(words[leading]) is not None:
            leading += 1
        self.numbers = min(self.numbers, leading)
        self.are_flags = self.are_flags and words[0] in ("0", "1")
        number = whole_number(words[0])
        self.is_counting = self.is_counting and number is not None and self.last in (None, number - 1)
        self.last = number

    def around_path(self) -> tuple[int, int]:
        """How many words are columns before the path, and after it."""
        if not self.n:
            return 0, 1
        after = min(self.after)
        if after == 0:
            return max(1, self.numbers), 0
        is_column = self.before == {1} and (self.are_flags or (self.is_counting and self.n > 1))
        return int(is_column), after


def whole_number(text: str) -> int | None:
    """3 of "3" and of "3.000000", None of anything else, and of what a float cannot hold exactly."""
    digits = text.rstrip("0").removesuffix(".") if "." in text and text[-1:] == "0" else text
    if digits.removeprefix("-").isdecimal():
        return int(digits) if len(digits) < 1000 else None
    if text[-1:] != "0" or not is_number(text) or not float(text).is_integer():
        return None
    return int(float(text)) if abs(float(text)) < _EXACT else None


def is_number(text: str) -> bool:
    """Whether Python reads a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
