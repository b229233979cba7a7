"""Whether a record file agrees with itself: headers, labels, identity records, index.

Shapes: N images, the records [start, stop) of a file in the order of their keys; R records in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.records.layout import EXACT_LABELS, HEADER, MAGIC, PART
from data.records.reader import HeaderScan, RecordReader

_BLOCK = 1 << 20  # records whose headers are examined together
_TAIL_BLOCK = 4096
_SMALLEST_RECORD = PART.size + HEADER.size
_GAP_LOOK = 4096  # bytes searched for a record's start; one in several parts ends a few bytes later than computed


class RecordCheck(NamedTuple):
    """The labels of N images, and what speaks against them."""

    labels_N: NDArray[np.int64]  # -1: the header is damaged, or its label is not to be trusted
    problem: str  # the first of these with file, record and offset; "": there is none
    unlisted: str  # which record of the .rec file its index does not list; "": none


def find_stop(reader: RecordReader) -> int:
    """The position after the last image: where the identity records begin, if there are any.

    An identity record has two labels and no image. A damaged record that follows an image counts as one.
    """
    stop = len(reader)  # the first identity record after the last image, as far as has been searched
    for start in range((len(reader) - 1) // _TAIL_BLOCK * _TAIL_BLOCK, -1, -_TAIL_BLOCK):
        scan = reader.scan_headers(start, start + _TAIL_BLOCK, damaged="mark")
        is_identity = (scan.flags == 2) & ~scan.has_image
        certain = np.flatnonzero(~is_identity & (scan.flags >= 0))
        after = int(certain[-1]) + 1 if len(certain) else 0
        identities = np.flatnonzero(is_identity[after:])
        if len(identities):
            stop = start + after + int(identities[0])
        if len(certain):
            return stop
    return stop


def check_records(reader: RecordReader, start: int, stop: int) -> RecordCheck:
    """Read every header of a file once, and compare labels, identity records and index with each other.

    - A record among the images must hold an image and a label that ``is_whole``.
    - Where most identity records fit the images, an image must have the label of the identity record that claims it.
    - There must be no unlisted record between those that the index lists.

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
    claimed_N = _claimed_labels(reader, start, stop)
    both = (claimed_N >= 0) & (labels_N >= 0)
    contradicted = both & (labels_N != claimed_N)
    if 2 * contradicted.sum() < both.sum():  # else these records number identities in another way
        if contradicted.any() and not problem:
            at = int(contradicted.argmax())
            problem = (
                f"{reader.where(start + at)}: label {labels_N[at]}, but its identity record says that it is of "
                f"identity {claimed_N[at]}; the file or its index is damaged: copy both again"
            )
        labels_N[contradicted] = -1
    return RecordCheck(labels_N, problem, _unlisted_record(reader, np.concatenate(sizes)))


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
            return f"{reader.where(position)}: it holds no image, but stands among the images: copy both files again"
        return no_identity(reader.where(position), float(scan.labels[i]))
    try:
        reader.read_face(position)
    except ValueError as error:
        return str(error)
    return f"{reader.where(position)}: it changed while it was read"


def _claimed_labels(reader: RecordReader, start: int, stop: int) -> NDArray[np.int64]:
    """(N,) the identity that each image belongs to by the identity records' key ranges, -1 where none claims it.

    Identity i is the record ``i`` keys after the first one; keys past 2^24 are rounded and claim nothing.
    """
    claimed_N = np.full(stop - start, -1, np.int64)
    keys = reader.keys
    image_keys, first_identity = keys[start:stop], keys[stop] if stop < len(keys) else 0
    for position in range(stop, len(reader)):
        try:
            header, _ = reader.read_face(position)
        except ValueError:
            continue
        if header.flag == 2 and is_whole(header.label).all() and header.label[0] < header.label[1]:
            low, high = np.searchsorted(image_keys, header.label.astype(np.int64))
            claimed_N[low:high] = keys[position] - first_identity
    return claimed_N


def _unlisted_record(reader: RecordReader, sizes: NDArray[np.int64]) -> str:
    """Which record of the file the index leaves out, "" if none."""
    ends = reader.offsets + PART.size + sizes + -sizes % 4  # of a record in several parts: inside its last part
    size = reader.rec_path.stat().st_size
    if reader.index.is_in_file_order and 0 <= size - int((ends - reader.offsets).sum()) < _SMALLEST_RECORD:
        return ""
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
            return (
                f"{reader.idx_path}: it does not list the record at byte {first + 4 * int(is_start.argmax())} of "
                f"{reader.rec_path.name}; it is cut short, or lines are missing: copy both files again"
            )
    return ""
