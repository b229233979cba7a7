"""Lists of numbers in text files, read fast and to the line: a wrong line is named.

Shapes: L lines, K columns.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTES_PER_BLOCK = 1 << 19  # its intermediate arrays stay in the processor's cache
_SHORT_WORD, _LONGEST_WORD = 9, 18  # digits that fit into int32 and int64 whatever they are
_EXACT_DIGITS = 15  # of which every whole number is a float64
_NEWLINE, _SPACE, _MINUS, _POINT, _ZERO = 10, 32, 45, 46, np.uint8(48)
_POWERS = np.array([float(10**power) for power in range(_EXACT_DIGITS + 1)])
_MINUS_DIGIT = np.uint8(253)  # a minus sign, as a digit: 45 - 48

Number = type[np.int64] | type[np.float64]


def read_number_columns(path: Path, columns: int) -> NDArray[np.int32] | NDArray[np.int64]:
    """Read a list of K whole numbers a line, in threads, about 15 million lines a second on two cores.

    Memory beyond the result: the file's bytes, and a few blocks.

    Returns:
        (K, L): each column lies in one piece. int32 where every number has nine digits at most, as in IJB.

    Raises:
        ValueError: a line that holds something else, by its number, or an empty file.
    """
    text, end = _read(path)
    blocks = _blocks(text, end)
    lines = [text.count(b"\n", *block) for block in blocks]
    lines[-1] += 1  # the text's last line has no end
    first = np.cumsum([0, *lines])
    out = np.empty((columns, first[-1]), np.int32)

    def read(number: int) -> bool:
        found = _plain_lines(text, blocks[number], columns, False, False)
        if found is None or found[1].dtype != np.int32:
            return False
        out[:, first[number] : first[number + 1]] = found[1]
        return True

    with _threads() as pool:
        plain = all(pool.map(read, range(len(blocks))))
    return out if plain else np.ascontiguousarray(_careful_lines(path, text[:end], columns, np.int64, False)[1].T)


def read_named_lines(path: Path, columns: int, dtype: Number) -> tuple[list[str], NDArray[Any]]:
    """Read a list of a file name and K numbers a line, in threads: L names and (L, K).

    Raises:
        ValueError: a line that holds something else, by its number, or an empty file.
    """
    text, end = _read(path)
    blocks = _blocks(text, end)
    with _threads() as pool:
        found = list(pool.map(lambda b: _plain_lines(text, b, columns, True, dtype is np.float64), blocks))
    parts = [part for part in found if part is not None]
    if len(parts) < len(blocks):
        return _careful_lines(path, text[:end], columns, dtype, True)
    numbers = np.concatenate([numbers for _, numbers in parts], axis=1)
    return [name for names, _ in parts for name in names], np.ascontiguousarray(numbers.T)


def read_csv_numbers(path: Path, columns: int) -> NDArray[np.int64]:
    """Read the first K columns of a csv file of whole numbers, below a heading: (L, K).

    Raises:
        ValueError: a line whose first columns are something else, by its number, or no line below the heading.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if number == 1 or not line.strip():
            continue
        words = line.split(",", columns)[:columns]
        try:
            row = [int(word) for word in words]
        except ValueError:
            row = []
        if len(row) != columns or any(abs(value) >= 1 << 63 for value in row):
            raise ValueError(
                f"{path}, line {number}: expected {columns} whole numbers with a comma between, and whatever after "
                f"another comma, found {line[:80]!r}"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no line below its heading")
    return np.array(rows, np.int64)


def _read(path: Path) -> tuple[bytes, int]:
    """A file's bytes, and where they end but for blanks."""
    text = path.read_bytes()
    end = len(text)
    while end and text[end - 1 : end].isspace():
        end -= 1
    if not end:
        raise ValueError(f"{path} is empty")
    return text, end


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _blocks(text: bytes, end: int) -> list[tuple[int, int]]:
    """Cut the text up to ``end`` after line ends, into ranges of about a block."""
    blocks, start = [], 0
    while start < end:
        limit = min(start + _BYTES_PER_BLOCK, end)
        cut = text.rfind(b"\n", start, limit) + 1 or text.find(b"\n", start, end) + 1 or end
        cut = end if limit == end else cut
        blocks.append((start, cut))
        start = cut
    return blocks


def _words(block: NDArray[np.uint8], columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Where the words of a text start and end, and whether each line has ``columns`` of them."""
    inside = np.zeros(len(block) + 2, bool)
    np.logical_and(block != _SPACE, (block - np.uint8(9)) > 4, out=inside[1:-1])  # 9 to 13 are blanks too
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    line_ends = np.flatnonzero(block == _NEWLINE)
    if block[-1] != _NEWLINE:
        line_ends = np.append(line_ends, len(block))
    fits = (
        len(starts) == columns * len(line_ends)
        and bool((ends[columns - 1 :: columns] <= line_ends).all())
        and bool((starts[columns::columns] > line_ends[:-1]).all())
    )
    return starts, ends, fits


def _plain_lines(
    text: bytes, span: tuple[int, int], columns: int, named: bool, decimal: bool
) -> tuple[list[str], NDArray[Any]] | None:
    """Read a block of lines: names and (K, lines). None where a line does not fit, or is not as plain as most are.

    Plain are digits, and in decimals one point a number and a sign before it, and names in ASCII.
    """
    block = np.frombuffer(text, np.uint8, span[1] - span[0], span[0])
    starts, ends, fits = _words(block, columns + named)
    if not fits:
        return None
    names: list[str] = []
    if named:
        block = block.copy()
        starts, ends = starts.reshape(-1, columns + 1), ends.reshape(-1, columns + 1)
        places = list(zip(starts[:, 0].tolist(), ends[:, 0].tolist(), strict=True))
        block_text = text[slice(*span)]
        if not block_text.isascii():
            return None
        names = [block_text[a:b].decode() for a, b in places]
        edges = np.zeros(len(block) + 1, np.int8)
        edges[starts[:, 0]], edges[ends[:, 0]] = 1, -1
        block[np.cumsum(edges[:-1], dtype=np.int8) > 0] = _SPACE
        starts, ends = np.ascontiguousarray(starts[:, 1:]).ravel(), np.ascontiguousarray(ends[:, 1:]).ravel()
    numbers = _decimals(block, starts, ends) if decimal else _whole(block - _ZERO, starts, ends, columns)
    if numbers is None:
        return None
    return names, numbers.reshape(-1, columns).T if decimal else numbers


def _whole(
    digits: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], columns: int
) -> NDArray[np.int32] | NDArray[np.int64] | None:
    """Values of words of digits alone, by columns (K, words / K); None where there are others."""
    lengths = ends - starts
    if np.count_nonzero(digits < 10) != lengths.sum() or lengths.max() > _LONGEST_WORD:
        return None
    dtype = np.int32 if lengths.max() <= _SHORT_WORD else np.int64
    out = np.empty((columns, len(starts) // columns), dtype)
    for column, value in enumerate(out):
        last, length = ends[column::columns] - 1, lengths[column::columns]
        value[:] = digits[last]
        for power in range(1, int(length.max())):
            digit = digits[last - power].astype(dtype)  # another word's or a blank where this one has ended
            value += np.where(length > power, digit, 0) * 10**power
    return out


def _decimals(
    block: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Values of words such as 46.060 and -3.5; None where there are others.

    Digits without the point are a whole number below 2^53, and the power of ten is exact too, so that their quotient
    is the nearest float64: what any correct reader gives.
    """
    points = np.flatnonzero(block == _POINT)
    if len(points) != len(starts) or (points < starts).any() or (points >= ends).any():
        return None
    minus = block[starts] == _MINUS
    before = np.arange(len(points))  # points in the words before this one
    decimals = ends - 1 - points
    digits = block[block != _POINT] - _ZERO
    starts, ends = starts - before + minus, ends - before - 1
    if np.count_nonzero(digits == _MINUS_DIGIT) != minus.sum() or (ends - starts).max() > _EXACT_DIGITS:
        return None
    if (ends <= starts).any():
        return None  # a point alone
    whole = _whole(digits, starts, ends, 1)
    if whole is None:
        return None
    value: NDArray[np.float64] = whole[0] / _POWERS[decimals]
    return np.where(minus, -value, value)


def _careful_lines(
    path: Path, text: bytes, columns: int, dtype: Number, named: bool
) -> tuple[list[str], NDArray[Any]]:
    """Read what is not plain, or name the line that does not fit."""
    lines = [line.split() for line in text.split(b"\n")]
    try:
        names = [line[0].decode() for line in lines] if named else []
        flat = _parse(b" ".join([word for line in lines for word in line[named:]]), dtype)
    except (ValueError, IndexError):
        raise _first_bad_line(path, text, columns, dtype, named) from None
    if any(len(line) != columns + named for line in lines) or len(flat) != columns * len(lines):
        raise _first_bad_line(path, text, columns, dtype, named)
    return names, flat.reshape(-1, columns)


def _parse(text: bytes, dtype: Number) -> NDArray[Any]:
    """Read whitespace-separated numbers; ValueError where something else stands."""
    if not text.strip():
        return np.empty(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # older numpy only warns, and returns what it read so far
        try:
            return np.fromstring(text, dtype, sep=" ")
        except DeprecationWarning as warning:
            raise ValueError(str(warning)) from None


def _first_bad_line(path: Path, text: bytes, columns: int, dtype: Number, named: bool) -> ValueError:
    """Find the line that does not fit; only called once it is known that there is one."""
    what = f"{'a file name and ' if named else ''}{columns} {'whole ' if dtype is np.int64 else ''}numbers"
    for number, line in enumerate(text.split(b"\n"), 1):
        words = line.split()
        try:
            fits = len(words) == columns + named and len(_parse(b" ".join(words[named:]), dtype)) == columns
            b"".join(words[:named]).decode()
        except ValueError:
            fits = False
        if not fits:
            found = line.rstrip(b"\r")[:80].decode("utf-8", "replace")
            return ValueError(f"{path}, line {number}: expected {what}, found {found!r}")
    return ValueError(f"{path}: expected {what} a line")
