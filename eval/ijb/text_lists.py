"""Lists of numbers in text files: pandas reads them, and where it cannot, the wrong line is found and named.

Shapes: L lines, K columns.
"""

from __future__ import annotations

import codecs
import csv
from array import array
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from numpy.typing import NDArray

_LINES_PER_CHUNK = 1 << 20
_SEPARATORS = (" ", r"\s+")  # the first is read faster, and is what IJB has
_NO_PLAIN_LIST = (ValueError, OverflowError)  # what pandas raises; its own errors are ValueErrors
# Decimals to the last bit. Newer pandas always reads them so, and warns of the option.
_EXACT = {"float_precision": "round_trip"} if pd.__version__.startswith(("2.", "3.0.")) else {}

Number = type[np.int64] | type[np.float64]


def read_number_columns(path: Path, columns: int) -> NDArray[np.int32] | NDArray[np.int64]:
    """Read a list of K whole numbers a line. Memory beyond the result: as much again, and a chunk of lines.

    Returns:
        (K, L): each column lies in one piece. int32 where every number fits, as in IJB.

    Raises:
        ValueError: a line that holds something else, by its number, or an empty file.
    """
    for separator in _SEPARATORS:
        try:
            chunks = _list_chunks(path, [np.int64] * columns, separator)
            return np.concatenate([_narrow(np.stack([chunk[i] for i in range(columns)])) for chunk in chunks], axis=1)
        except _NO_PLAIN_LIST:
            continue
    return _narrow(np.ascontiguousarray(_read_line_by_line(path, columns, np.int64, False)[1].T))


def read_named_lines(path: Path, columns: int, dtype: Number) -> tuple[list[str], NDArray[Any]]:
    """Read a list of a file name and K numbers a line: L names and (L, K). Backslashes in names become /.

    Raises:
        ValueError: a line that holds something else, by its number, or an empty file.
    """
    for separator in _SEPARATORS:
        names: list[str] = []
        parts = []
        try:
            for chunk in _list_chunks(path, [object, *[dtype] * columns], separator):
                names += chunk[0].tolist()
                if any("\t" in name for name in names[-len(chunk) :]):  # a blank too, for all but the first separator
                    raise ValueError("a tab between words")
                parts.append(chunk[range(1, columns + 1)].to_numpy())
            return _forward(names), np.concatenate(parts)
        except _NO_PLAIN_LIST:
            continue
    names, numbers = _read_line_by_line(path, columns, dtype, True)
    return _forward(names), numbers


def _forward(names: list[str]) -> list[str]:
    return [name.replace("\\", "/") for name in names]


def read_csv_numbers(path: Path, columns: int) -> NDArray[np.int64]:
    """Read the first K columns of a csv file of whole numbers, below a heading: (L, K).

    Raises:
        ValueError: a line whose first columns are something else, by its number, or no line below the heading.
    """
    try:
        chunks = _chunks(path, [np.int64] * columns, skiprows=1, usecols=range(columns))
        return np.concatenate([chunk.to_numpy() for chunk in chunks])
    except _NO_PLAIN_LIST:
        pass
    what = f"{columns} whole numbers with a comma between, and whatever after another comma"
    lines = [(i, line) for i, line in enumerate(path.read_bytes().splitlines(), 1) if i > 1 and line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no line below its heading")
    return _parse_lines(path, lines, columns, np.int64, what, lambda line: line.split(b",", columns)[:columns])


def _list_chunks(path: Path, dtypes: list[type], separator: str) -> Iterator[Any]:
    """Frames of a list with blanks between its words; ValueError where a line has more words or others."""
    beyond = len(dtypes)
    for chunk in _chunks(path, [*dtypes, object], sep=separator, skip_blank_lines=False):
        if (chunk[beyond] != "").any():
            raise ValueError("more words than expected")
        yield chunk


def _chunks(path: Path, dtypes: list[type], **options: Any) -> Iterator[Any]:
    """Frames of a file's lines, no word taken for missing, quoted or a comment; ValueError for other types."""
    # Told to read int64, pandas takes 5.0 too; left alone, it gives int64 only for whole numbers.
    told = {column: dtype for column, dtype in enumerate(dtypes) if dtype is not np.int64}
    options |= {"names": range(len(dtypes)), "dtype": told, "chunksize": _LINES_PER_CHUNK, **_EXACT}
    options["encoding_errors"] = "surrogateescape"  # names of any bytes, as os.fsdecode has them
    options["low_memory"] = False  # else pandas guesses types by parts of a chunk, and warns where they differ
    with pd.read_csv(path, header=None, na_filter=False, quoting=csv.QUOTE_NONE, **options) as chunks:
        for chunk in chunks:
            if chunk.empty or chunk.dtypes.tolist() != dtypes:
                raise ValueError("other words than expected")
            yield chunk


def _narrow(numbers: NDArray[np.int64]) -> NDArray[np.int32] | NDArray[np.int64]:
    """The same numbers in half the memory, if they fit."""
    narrow = numbers.astype(np.int32)
    return narrow if (narrow == numbers).all() else numbers


def _read_line_by_line(path: Path, columns: int, dtype: Number, named: bool) -> tuple[list[str], NDArray[Any]]:
    """Read a list that pandas cannot, such as one with blank lines at its end, or name its first wrong line."""
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8).rstrip()  # pandas leaves that mark out too
    if not text:
        raise ValueError(f"{path} is empty")
    names: list[str] = []

    def number_words(line: bytes) -> list[bytes]:
        words = line.split()
        names.extend(word.decode("utf-8", "surrogateescape") for word in words[:named])
        return words[named:]

    what = f"{'a file name and ' if named else ''}{columns} {'whole ' if dtype is np.int64 else ''}numbers"
    return names, _parse_lines(path, enumerate(BytesIO(text), 1), columns, dtype, what, number_words)


def _parse_lines(
    path: Path,
    lines: Iterable[tuple[int, bytes]],
    columns: int,
    dtype: Number,
    what: str,
    number_words: Callable[[bytes], list[bytes]],
) -> NDArray[Any]:
    """Numbers of (line number, line), (L, K); ValueError for the first line that does not hold ``what``."""
    parse: Callable[[bytes], Any] = int if dtype is np.int64 else float
    values: array[Any] = array("q" if dtype is np.int64 else "d")
    for number, line in lines:
        try:
            words = number_words(line)
            if len(words) != columns or any(b"_" in word for word in words):  # Python reads 1_000 as 1000
                raise ValueError
            values.extend([parse(word) for word in words])
        except (ValueError, OverflowError):
            found = line.rstrip(b"\r\n")[:80].decode("utf-8", "replace")
            raise ValueError(f"{path}, line {number}: expected {what}, found {found!r}") from None
    return np.frombuffer(values, dtype).reshape(-1, columns)
