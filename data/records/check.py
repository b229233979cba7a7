"""Whether a record file agrees with itself: headers, labels, identity records, index.

Shapes: N images, the records [start, stop) of a file in the order of their keys; R records in all.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.records.identities import KeyRange, compare
from data.records.layout import EXACT_LABELS, HEADER, MAGIC, PART
from data.records.reader import REBUILD, HeaderScan, RecordReader
from data.records.rebuild import read_record

_BLOCK = 1 << 20  # records whose headers are examined together
_TAIL_BLOCK = 4096
_SMALLEST_RECORD = PART.size + HEADER.size
_GAP_LOOK = 4096  # bytes searched for a record's start; one in several parts ends a few bytes later than computed


class RecordCheck(NamedTuple):
    """The labels of N images, as their headers give them, and what speaks against them."""

    labels_N: NDArray[np.int64]  # -1: the header is damaged, or its label is no identity
    problem: str  # the first of these with file, record and offset; "": there is none
    unlisted: str  # which record of the .rec file its index does not list; "": none
    note: str = (
        ""  # in which way identity records and labels disagree, and what else is odd without damaging what is there
    )


def find_stop(reader: RecordReader) -> int:
    """The position after the last image: where the identity records begin, if there are any.

    A record without an image that no image follows is one, whatever its labels; so is a damaged record between such,
    while one that follows an image counts as an image.
    """
    stop = len(reader)  # the first record without an image after the last image, as far as has been searched
    for start in range((len(reader) - 1) // _TAIL_BLOCK * _TAIL_BLOCK, -1, -_TAIL_BLOCK):
        scan = reader.scan_headers(start, start + _TAIL_BLOCK, damaged="mark")
        images = np.flatnonzero(scan.has_image & (scan.flags >= 0))
        after = int(images[-1]) + 1 if len(images) else 0
        others = np.flatnonzero(scan.flags[after:] >= 0)
        if len(others):
            stop = start + after + int(others[0])
        if len(images):
            return stop
    return stop


def check_records(reader: RecordReader, start: int, stop: int) -> RecordCheck:
    """Read every header of a file once, and hold it against the index and the identity records.

    - A record among the images must hold an image and a label that ``is_whole``.
    - There must be no unlisted record between those that the index lists.
    - Identity records only give a note: packers write one for each run of equal labels in their list, so that an
      unsorted list leaves several for a label, and a label without images none. Labels stand in the images' headers.

    Temporary memory: 16 bytes a record.
    """
    labels_N = np.full(stop - start, -1, np.int64)
    sizes: list[NDArray[np.int64]] = []
    problem = ""
    for begin in range(0, len(reader), _BLOCK):
        end = min(begin + _BLOCK, len(reader))
        scan = reader.scan_headers(begin, end, damaged="mark")
        sizes.append(scan.sizes)
        first, last = max(begin, start), min(end, stop)
        if first >= last:
            continue
        inside = slice(first - begin, last - begin)
        good = scan.has_image[inside] & is_whole(scan.labels[inside])
        labels_N[first - start : last - start][good] = scan.labels[inside][good]
        if not (problem or good.all()):
            at = first + int(good.argmin())
            problem = _what_is_wrong(reader, at, scan, at - begin)
    notes = [compare(reader.rec_path, reader.keys[start:stop], labels_N, read_ranges(reader, stop))]
    if start and stop == len(reader) and reader.read_face(0)[0].flag == 0:
        notes.append(
            f"{reader.where(0)}: it has no image and is taken for insightface's header record, though no identity "
            "records follow; all others are images"
        )
    unlisted, cut = _unlisted_record(reader, np.concatenate(sizes))
    return RecordCheck(labels_N, problem, unlisted, "; ".join(note for note in [*notes, cut] if note))


def read_ranges(reader: RecordReader, stop: int) -> list[KeyRange]:
    """What the identity records from position ``stop`` on say; (nan, nan) where that is no range."""
    ranges = []
    for position in range(stop, len(reader)):
        low = high = np.nan
        with contextlib.suppress(ValueError):
            header, _ = reader.read_face(position)
            if header.flag == 2:
                low, high = map(float, header.label)
        ranges.append(KeyRange(reader.index.key(position), low, high))
    return ranges


def is_whole(labels: ArrayLike) -> Any:
    """Whether each label is a whole number that float32 tells apart from its neighbours: 0 to 2^24."""
    found = np.asarray(labels)
    return (found >= 0) & (found <= EXACT_LABELS) & (found == np.rint(found))


def no_identity(where: str, label: float) -> str:
    """What to say of a label that is no identity."""
    is_number = np.isfinite(label) and label == np.rint(label)
    why = f"is not between 0 and {EXACT_LABELS}" if is_number else "is no whole number"
    return f"{where}: label {label} {why}; labels are identities 0, 1, 2, ...: pack them as such"


def _what_is_wrong(reader: RecordReader, position: int, scan: HeaderScan, i: int) -> str:
    if scan.flags[i] >= 0:
        if not scan.has_image[i]:
            return (
                f"{reader.where(position)}: it holds no image, but stands among the images: copy both files again "
                "(or were two files joined with cat? join the original ones with python -m tools.merge_rec)"
            )
        return no_identity(reader.where(position), float(scan.labels[i]))
    try:
        reader.read_face(position)
    except ValueError as error:
        return str(error)
    return f"{reader.where(position)}: it changed while it was read"


def _unlisted_record(reader: RecordReader, sizes: NDArray[np.int64]) -> tuple[str, str]:
    """Which record of the file the index leaves out; and that it leaves out the last one, which is cut short."""
    ends = reader.offsets + PART.size + sizes + -sizes % 4  # of a record in several parts: inside its last part
    size = reader.rec_path.stat().st_size
    if reader.index.is_in_file_order and 0 <= size - int((ends - reader.offsets).sum()) < _SMALLEST_RECORD:
        return "", ""
    order = reader.offsets.argsort(kind="stable")
    starts, ends = np.append(reader.offsets[order], size), np.insert(ends[order], 0, 0)
    for gap in np.flatnonzero(starts - ends >= _SMALLEST_RECORD):
        first, end = int(ends[gap]), int(starts[gap])
        with reader.rec_path.open("rb") as file:
            file.seek(first)
            words = np.frombuffer(file.read(min(end - first, _GAP_LOOK) // 4 * 4), "<u4")
        # Nothing but the head of a part holds the magic on such a boundary; parts 2 and 3 belong to a listed record.
        is_start = (words[:-1] == MAGIC) & (words[1:] >> 29 < 2)
        if is_start.any():
            at = first + 4 * int(is_start.argmax())
            if end == size and _is_cut(reader, at, size):
                return "", (
                    f"{reader.rec_path}: it ends within the record at byte {at}, which is left out with all that "
                    "may have followed; copy it again to have them"
                )
            return (
                f"{reader.idx_path}: it does not list the record at byte {at} of {reader.rec_path.name}; it is cut "
                f"short, or lines are missing: copy both files again, or {REBUILD.format(reader.rec_path)}"
            ), ""
    return "", ""


def _is_cut(reader: RecordReader, at: int, size: int) -> bool:
    """Whether the file ends before the record at this offset does."""
    with reader.rec_path.open("rb") as file, contextlib.suppress(ValueError):
        try:
            read_record(file, at, size)
        except EOFError:
            return True
    return False
