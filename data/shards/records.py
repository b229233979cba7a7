"""A record file behind an address: read once from one end to the other, to find its images and labels.

Here on a disk, ``data/records/`` reads record files, which checks more of them and needs no index of ours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.records.check import is_whole, no_identity
from data.records.index import read_index
from data.records.layout import HEADER, MAGIC, MAGIC_BYTES, MAX_PART, PART, unpack
from data.shards.tar import Samples, Window
from data.storage import Range, Store

_MAX_LABELS = 1024  # of one record
_MAX_INDEX = 8 << 30  # bytes of an .idx file


class _Record(NamedTuple):
    """A record, as far as it is of interest."""

    start: int  # its byte offset
    image: int  # that of its image; with ``size`` bytes, between them the heads of further parts
    size: int  # 0: no image
    label: float


def scan_records(file: str, size: int, store: Store) -> Samples:
    """The images of a .rec file with its .idx beside it, in the order of their keys, as ``FaceRecords`` has them.

    Raises:
        FileNotFoundError: there is no .idx file.
        ValueError: a record is damaged, or the index belongs to another file.
    """
    records = _read_all(Window(file, size, store))
    starts = np.array([record.start for record in records], np.int64)
    offsets = _read_index(file.removesuffix(".rec") + ".idx", store)
    at = np.searchsorted(starts, offsets)
    if len(starts) == 0 or (starts[np.minimum(at, len(starts) - 1)] != offsets).any():
        raise ValueError(f"{file}: no record begins where its index says: copy both files again")
    if len(offsets) < len(starts):
        raise ValueError(f"{file}: its index lists {len(offsets)} of {len(starts)} records: copy both files again")
    rows, problems = [], []
    for record in (records[i] for i in at.tolist()):
        if record.size == 0:
            continue
        label = int(record.label) if is_whole(record.label) else -1
        if label < 0:
            problems.append(no_identity(f"{file}: the record at byte {record.start}", record.label))
        rows.append((record.image, record.size, label))
    found = np.array(rows, np.int64).reshape(-1, 3)
    return Samples(found[:, 0].copy(), found[:, 1].copy(), found[:, 2].copy(), problems)


def join_parts(data: bytes) -> bytes:
    """The image in the bytes from its start to its record's end.

    A record whose content holds the magic on a 4-byte boundary is cut there, so that the magic stands on one only
    where a part begins.
    """
    at = data.find(MAGIC_BYTES)
    while at >= 0 and at % 4:
        at = data.find(MAGIC_BYTES, at + 1)
    if at < 0:
        return data
    pieces = [data[:at]]  # without padding: it was cut on a 4-byte boundary
    while at >= 0:
        _, word = PART.unpack_from(data, at)
        length = word & MAX_PART
        pieces.append(data[at + PART.size : at + PART.size + length])
        following = at + PART.size + length + -length % 4
        at = following if following < len(data) else -1
    return MAGIC_BYTES.join(pieces)


def _read_all(window: Window) -> list[_Record]:
    records, at = [], 0
    while at < window.size:
        start = at
        kind, length = _part(window, at)
        if kind not in (0, 1):
            raise ValueError(f"{window.file}: part {kind} of a record at byte {at}, expected a record's start")
        head = window.at(at + PART.size, min(length, HEADER.size + 4 * _MAX_LABELS))
        try:
            header, _ = unpack(head)
        except ValueError as error:
            raise ValueError(f"{window.file}: record at byte {at}: {error}: copy it again") from None
        image = at + PART.size + HEADER.size + 4 * header.flag
        end = at + PART.size + length
        at = end + -length % 4
        while kind not in (0, 3):
            kind, length = _part(window, at)
            if kind not in (2, 3):
                raise ValueError(f"{window.file}: expected a further part of the record {start} at byte {at}")
            end = at + PART.size + length
            at = end + -length % 4
        records.append(_Record(start, image, max(0, end - image), float(header.label[0])))
    return records


def _part(window: Window, at: int) -> tuple[int, int]:
    head = window.at(at, PART.size)
    magic, word = PART.unpack(head) if len(head) == PART.size else (0, 0)
    length = word & MAX_PART
    if magic != MAGIC or at + PART.size + length > window.size:
        raise ValueError(f"{window.file}: no whole record at byte {at}; it is damaged or cut short: copy it again")
    return word >> 29, length


def _read_index(file: str, store: Store) -> NDArray[np.int64]:
    """The records' byte offsets in the order of their keys."""
    (facts,) = store.facts([file])
    if facts.size > _MAX_INDEX:
        raise ValueError(f"{file}: {facts.size} bytes are too many for an index")
    with tempfile.TemporaryDirectory(prefix="mhs_index_") as folder:
        path = Path(folder) / "train.idx"
        with path.open("wb") as out:
            for start in range(0, facts.size, 8 << 20):
                (block,) = store.read_many([Range(file, start, min(8 << 20, facts.size - start))])
                out.write(block)
        try:
            return read_index(path).offsets
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), file)) from None
