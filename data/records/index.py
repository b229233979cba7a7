"""The index of a record file: text lines ``key<TAB>byte offset``, read into arrays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_IDX_BLOCK = 1 << 24  # bytes of .idx text parsed at a time
_BOM = b"\xef\xbb\xbf"
_LINE = rb"[ \t]*[0-9]+[ \t]+[0-9]+[ \t]*"
_TAB, _NEWLINE, _ZERO, _NINE = b"\t\n09"


class RecordIndex:
    """Keys and byte offsets of N records, by increasing key; whole numbers throughout, exact up to 2^63.

    Takes 8 bytes a record where the keys are consecutive, as both families are written, and 16 otherwise; forked
    workers share them. No Python object stands for a record.

    Args:
        keys: (N,), in any order, N at least 1.
        offsets: (N,), in the same order.

    Raises:
        ValueError: a key occurs more than once.
    """

    offsets: NDArray[np.int64]  # (N,) in the order of the keys
    is_in_file_order: bool  # offsets increase with the keys, so that a record ends before the next one's offset
    _first: int  # the smallest key
    _keys: NDArray[np.int64] | None  # (N,) increasing; None: consecutive from _first on

    def __init__(self, keys: NDArray[np.int64] | range, offsets: NDArray[np.int64]) -> None:
        assert len(keys) == len(offsets) > 0
        if not isinstance(keys, range):
            if not (keys[1:] > keys[:-1]).all():
                order = keys.argsort(kind="stable")
                keys, offsets = keys[order], offsets[order]
                repeated = keys[1:] == keys[:-1]
                if repeated.any():
                    raise ValueError(
                        f"key {keys[repeated.argmax()]} stands there more than once; each record needs its own "
                        "key: copy the index again"
                    )
            if int(keys[-1]) - int(keys[0]) == len(keys) - 1:
                keys = range(int(keys[0]), int(keys[-1]) + 1)
        self._first = int(keys[0])
        self._keys = None if isinstance(keys, range) else keys
        self.offsets = offsets
        self.is_in_file_order = bool((offsets[1:] > offsets[:-1]).all())

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def keys(self) -> NDArray[np.int64]:
        """(N,) increasing; computed at each call where they are consecutive."""
        return np.arange(self._first, self._first + len(self)) if self._keys is None else self._keys

    def key(self, position: int) -> int:
        """The key of record ``position``, counted by increasing key."""
        return self._first + position if self._keys is None else int(self._keys[position])


def read_index(path: Path) -> RecordIndex:
    """Read an .idx file; meanwhile it takes about 40 bytes a record at most, and a block of text.

    Raises:
        ValueError: the file is empty, a line is not `key<TAB>offset`, or a key is repeated; names file and line.
    """
    keys: list[NDArray[np.int64] | range] = []
    offsets = []
    line = 1
    with path.open("rb") as file:
        while text := file.read(_IDX_BLOCK):
            numbers = _parse(text + file.readline(), path, line)
            if len(numbers):
                keys.append(_as_range(numbers[::2]))
                offsets.append(numbers[1::2].copy())
            line += len(numbers) // 2
    if not keys:
        raise ValueError(
            f"{path}: the index is empty, expected a line `key<TAB>offset` for each record: copy it again"
        )
    try:
        return RecordIndex(_join(keys), np.concatenate(offsets))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _as_range(keys: NDArray[np.int64]) -> NDArray[np.int64] | range:
    """The same keys, as a range where they are consecutive."""
    first, last = int(keys[0]), int(keys[-1])
    if last - first == len(keys) - 1 and (keys[1:] - keys[:-1] == 1).all():
        return range(first, last + 1)
    return keys.copy()


def _join(blocks: list[NDArray[np.int64] | range]) -> NDArray[np.int64] | range:
    ranges = [block for block in blocks if isinstance(block, range)]
    starts = [block.start for block in ranges[1:]]
    if len(ranges) == len(blocks) and starts == [block.stop for block in ranges[:-1]]:
        return range(ranges[0].start, ranges[-1].stop)
    return np.concatenate([np.asarray(block, np.int64) for block in blocks])


def _parse(text: bytes, path: Path, line: int) -> NDArray[np.int64]:
    """``key, offset, key, offset, ...`` of whole lines, the first of which has number ``line``."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    text = (text.removeprefix(_BOM) if line == 1 else text).rstrip(b"\n") + b"\n"
    if text == b"\n":
        return np.empty(0, np.int64)
    numbers = _numbers(text)
    if numbers is None:  # blanks, as an editor or a script may have left them
        numbers = _numbers(b"".join(b"\t".join(one.split()) + b"\n" for one in text[:-1].split(b"\n")))
    if numbers is not None:
        return numbers
    lines = enumerate(text.split(b"\n"), line)
    number, found = next(((n, one) for n, one in lines if not re.fullmatch(_LINE, one)), (line, text))
    raise ValueError(
        f"{path}: line {number} is {found[:60]!r}, expected `key<TAB>offset`, two whole numbers; the index is "
        "damaged: copy it again"
    )


def _numbers(text: bytes) -> NDArray[np.int64] | None:
    """The numbers in lines of the very form; None if a line has another."""
    chars = np.frombuffer(text, np.uint8)
    digit = (chars >= _ZERO) & (chars <= _NINE)
    breaks = chars[~digit]
    regular = len(breaks) % 2 == 0 and (breaks[::2] == _TAB).all() and (breaks[1::2] == _NEWLINE).all()
    numbers = np.fromstring(text, np.int64, sep=" ") if regular else np.empty(0, np.int64)
    return numbers if regular and len(numbers) == len(breaks) else None
