"""The index of a record file, made anew from the records themselves."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.records.index import RecordIndex, read_index
from data.records.layout import HEADER, MAGIC, PART
from data.records.layout import MAX_PART as _LENGTH
from utils.atomic import open_atomic

_BUFFER = 1 << 20  # bytes read at a time where records are short
_LINES = 1 << 16  # of the index, written at a time


class Rebuilt(NamedTuple):
    """What stands in a record file: N whole records in the file's order."""

    keys_N: NDArray[np.int64]
    offsets_N: NDArray[np.int64]
    has_own_keys: bool  # the keys are the records' own ids; else they were counted
    has_header: bool  # the first record holds no image, as in insightface's form
    in_parts: int  # records in several parts
    left_out: str  # what follows the last whole record; "": nothing


def read_records(rec_path: Path) -> Rebuilt:
    """Go through a record file from front to back; of an image only the head is read.

    Keys are the ids in the records' headers, which packers set to the key, where no id occurs twice and, after a
    header record, they increase. Otherwise they are counted from 0 on, which is insightface's numbering where a
    header record comes first, and im2rec's. Takes 16 bytes of memory a record.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no whole record, or one is damaged; names its number and offset.
    """
    if not rec_path.is_file():
        raise FileNotFoundError(f"{rec_path}: no such file; expected a .rec file or a folder with train.rec")
    size = rec_path.stat().st_size
    offsets, ids = array("q"), array("Q")
    in_parts, has_header, at, left_out = 0, False, 0, ""
    with rec_path.open("rb", buffering=_BUFFER) as file:
        while at < size:
            try:
                head, end, parts = read_record(file, at, size)
            except EOFError as cut:
                left_out = f"{cut} at byte {at}, the last {size - at:,} bytes of the file"
                break
            except ValueError as error:
                if _is_zero(file, at):
                    left_out = f"zeros from byte {at} on, the last {size - at:,} bytes of the file"
                    break
                raise ValueError(
                    f"{rec_path}: record number {len(offsets)} at byte {at}: {error}; the file is damaged there: "
                    "copy it again"
                ) from None
            flag, _, number, _ = HEADER.unpack(head[: HEADER.size]) if len(head) >= HEADER.size else (0, 0, 0, 0)
            if not offsets:
                has_header = parts == 1 and end - PART.size - HEADER.size - 4 * flag < 4
            offsets.append(at)
            ids.append(number)
            in_parts += parts > 1
            at = end
    if not offsets:
        raise ValueError(f"{rec_path}: no whole record in it{': ' + left_out if left_out else ''}")
    ids_N = np.frombuffer(ids, np.uint64)
    own = _hold_together(ids_N, has_header)
    keys_N = ids_N.astype(np.int64) if own else np.arange(len(ids_N))
    return Rebuilt(keys_N, np.frombuffer(offsets, np.int64), own, has_header, in_parts, left_out)


def write_index(path: Path, found: Rebuilt) -> None:
    """Write an .idx file, complete or not at all."""
    with open_atomic(path) as file:
        for start in range(0, len(found.keys_N), _LINES):
            part = slice(start, start + _LINES)
            pairs = zip(found.keys_N[part].tolist(), found.offsets_N[part].tolist(), strict=True)
            file.write("".join(f"{key}\t{offset}\n" for key, offset in pairs).encode())


def what_is_wrong(path: Path, found: Rebuilt) -> str:
    """Why an existing .idx file does not do for these records; "" if each record is listed once, by whatever key."""
    try:
        index: RecordIndex = read_index(path)
    except (ValueError, OSError) as error:
        return str(error)
    listed = np.sort(index.offsets)
    if strangers := int((~np.isin(listed, found.offsets_N)).sum()):
        return f"{strangers:,} of its {len(listed):,} lines point at no record's start"
    if (listed[1:] == listed[:-1]).any():
        return "two of its lines point at the same record"
    missing = len(found.offsets_N) - len(listed)
    return f"it lists {len(listed):,} of {len(found.offsets_N):,} records" if missing else ""


def read_record(file: BinaryIO, at: int, size: int) -> tuple[bytes, int, int]:
    """The first bytes of a record's payload, where the record ends, and its number of parts.

    Raises:
        EOFError: the file ends within the record.
        ValueError: there is no record.
    """
    head, parts = b"", 0
    while True:
        file.seek(at)
        found = file.read(PART.size + HEADER.size)
        if len(found) < PART.size:
            raise EOFError("a record that is cut short")
        magic, word = PART.unpack_from(found)
        kind, length = word >> 29, word & _LENGTH
        if magic != MAGIC:
            raise ValueError(f"expected the magic {MAGIC:#010x} at byte {at}, got {magic:#010x}")
        if kind not in ((2, 3) if parts else (0, 1)):
            raise ValueError(f"expected a part of kind {'2 or 3' if parts else '0 or 1'} at byte {at}, got {kind}")
        head = head or found[PART.size :][:length]
        at += PART.size + length
        if at > size:
            raise EOFError("a record that is cut short")
        at += -length % 4
        parts += 1
        if kind in (0, 3):
            return head, min(at, size), parts


def _is_zero(file: BinaryIO, at: int) -> bool:
    """Whether nothing but zeros follows, as in a file whose download was not finished."""
    file.seek(at)
    return not any(any(block) for block in iter(lambda: file.read(_BUFFER), b""))


def _hold_together(ids_N: NDArray[np.uint64], has_header: bool) -> bool:
    if int(ids_N.max()) >= 1 << 62 or len(np.unique(ids_N)) < len(ids_N):
        return False
    # In insightface's form the order of the keys says what is an image: identity records follow the images.
    return not has_header or bool((ids_N[1:] > ids_N[:-1]).all())
