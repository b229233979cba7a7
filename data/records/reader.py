"""RecordIO files (.rec with its .idx) as mxnet writes them, in numpy and the standard library.

The layout is in ``layout.py``, the index in ``index.py``; ``writer.py`` writes what this file reads.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.pread import one_pread, read_at
from data.records.index import RecordIndex, read_index
from data.records.layout import HEADER, MAGIC, MAGIC_BYTES, MAX_PART, PART, Header, unpack

_FIRST_READ = 8192  # bytes, where the index does not tell a record's length: most 112 x 112 faces are shorter
_MAX_FIRST_READ = 1 << 20  # bytes that the index may ask for before the record itself was seen
_SLOW_READ_S = 30e-6  # a record that takes longer on average comes from a disk, not from the system's cache
_HINTED_READS = 64  # calls of read_many that give hints after one was slow
_CHUNKS_KEPT = 1024  # chunks remembered as asked for
_WRITE = "write records from any other set: python -m tools.convert_set SET OUT --to records"
REBUILD = "make the index anew from the .rec file: python -m tools.rebuild_index {}"
_open_lock = threading.Lock()


class HeaderScan(NamedTuple):
    """The headers of N consecutive records, as columns."""

    flags: NDArray[np.int64]  # (N,); -1 for a damaged record where these are marked, its size then 0
    labels: NDArray[np.float32]  # (N,): each record's first label
    sizes: NDArray[np.int64]  # (N,): bytes of payload, header included

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """(N,): whether anything follows the header and the labels."""
        return self.sizes > HEADER.size + 4 * self.flags


class RecordReader:
    """Random access to the records of one .rec file.

    The index is read at once, sorted by key; the .rec file is opened at the first read, anew in every process,
    so that a reader may be forked or pickled into workers at any time. Reads go through ``pread``: threads may share
    a reader, and its memory is that of the index (8 bytes a record, 16 where keys are not consecutive) however much
    is read.

    Args:
        rec_path: the .rec file.
        idx_path: its index, by default beside it, ending in .idx.
        chunk: records; a read of one asks the system for the whole chunk of that many consecutive keys around it.
            For disks that seek slowly, together with an order that stays within few chunks at a time
            (``data.sampler``). 0: off.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the index is empty or malformed, repeats a key, or points outside the .rec file.
    """

    index: RecordIndex
    _fd: int | None = None
    _pid = -1  # the process that opened _fd

    def __init__(self, rec_path: str | Path, idx_path: str | Path | None = None, chunk: int = 0) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = self.rec_path.with_suffix(".idx") if idx_path is None else Path(idx_path)
        self.chunk = chunk
        for path, way in ((self.rec_path, _WRITE), (self.idx_path, REBUILD.format(self.rec_path))):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; expected {self.rec_path.name} with its index "
                    f"{self.idx_path.name}: copy both from one place, or {way}"
                )
        self._size = self.rec_path.stat().st_size
        try:
            self.index = read_index(self.idx_path)
        except ValueError as error:
            raise ValueError(f"{error}, or {REBUILD.format(self.rec_path)}") from None
        bad = (self.offsets > self._size - PART.size) | (self.offsets % 4 != 0)
        if bad.any():
            raise self._damaged(int(bad.argmax()), f"expected a multiple of 4 inside the file's {self._size} bytes")
        self._hints_left = 0
        self._announced: set[int] = set()  # chunks asked for

    @property
    def keys(self) -> NDArray[np.int64]:
        """(N,) increasing; computed at each call where they are consecutive."""
        return self.index.keys

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(N,) byte offsets, in the order of keys."""
        return self.index.offsets

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None, "_pid": -1}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the .rec file; the next read opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == os.getpid():
            os.close(fd)

    def read_at(self, position: int) -> bytes:
        """The payload of record ``keys[position]``, parts joined.

        Raises:
            ValueError: there is no whole record at its offset; names file, key, offset, and what was found.
        """
        if self.chunk:
            return bytes(self.read_many((position,))[0])
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)} in {self.rec_path}")
        offset, length = int(self.offsets[position]), _FIRST_READ
        if self.index.is_in_file_order:
            end = int(self.offsets[position + 1]) if position + 1 < len(self) else self._size
            length = min(end - offset, _MAX_FIRST_READ)
        block = read_at(self._open(), length, offset)
        magic, word = PART.unpack_from(block) if len(block) >= PART.size else (0, 0)
        if magic == MAGIC and word <= len(block) - PART.size:
            return block[PART.size : PART.size + word]
        return self._read_with_care(block, position, offset)

    def read_many(self, positions: Sequence[int] | NDArray[np.int64]) -> list[memoryview]:
        """The payloads of records ``keys[positions]``, in the order given; raises as :meth:`read_at`.

        They are views of what was read, without a copy. While reads turn out slow, the system is told all of the
        call's records before the first is read, so that a disk serves them in its own order, in parallel.
        """
        at = np.asarray(positions, np.int64)
        if len(at) and not 0 <= (low := int(at.min())) <= (high := int(at.max())) < len(self):
            raise IndexError(f"record {low if low < 0 else high} of {len(self)} in {self.rec_path}")
        offsets = self.offsets[at]
        lengths = self._first_reads(at, offsets)
        if self.chunk:
            self._announce_chunks(at)
        elif self._hints_left:
            self._hints_left -= 1
            self._will_need(offsets, lengths)
        start = time.perf_counter()
        payloads = self._read_all(at.tolist(), offsets.tolist(), lengths.tolist())
        if time.perf_counter() - start > _SLOW_READ_S * len(at):
            self._hints_left = _HINTED_READS
        return payloads

    def will_need(self, start: int, stop: int) -> None:
        """Tell the system that records ``keys[start:stop]`` will be read soon; does nothing where it cannot."""
        if self.index.is_in_file_order and stop > start:
            end = int(self.offsets[stop]) if stop < len(self) else self._size
            first = int(self.offsets[start])
            self._will_need(np.array([first]), np.array([end - first]))

    def scan_headers(
        self, start: int = 0, stop: int | None = None, damaged: Literal["raise", "mark"] = "raise"
    ) -> HeaderScan:
        """The headers of records ``keys[start:stop]``, without their images.

        Vectorised over a temporary memory map: of each record only the page with its first bytes is read.
        Temporary memory is about 100 bytes a record, so call it for a million or so at a time.

        Raises:
            ValueError: a record is damaged, or too short for its header, and these are not to be marked.
        """
        offsets = self.index.offsets[start:stop]
        words = np.memmap(self.rec_path, "<u4", mode="r", shape=(self._size // 4,))
        at = offsets // 4
        magics, parts = words[at], words[at + 1]
        sizes = (parts & MAX_PART).astype(np.int64)
        usable = np.minimum(at + 8, len(words) - 1)
        flags = words[np.minimum(at + 2, usable)].astype(np.int64)
        first = np.where(flags > 0, words[usable], words[np.minimum(at + 3, usable)])
        labels = first.astype("<u4").view("<f4").astype(np.float32)
        irregular = (magics != MAGIC) | (parts > MAX_PART) | (offsets + PART.size + sizes > self._size)
        irregular |= sizes < HEADER.size + 4 * flags
        for i in np.flatnonzero(irregular):  # in several parts, or damaged
            try:
                header, image = self.read_face(start + int(i))
            except ValueError:
                if damaged == "raise":
                    raise
                flags[i], labels[i], sizes[i] = -1, np.nan, 0
                continue
            size = HEADER.size + 4 * header.flag + len(image)
            flags[i], labels[i], sizes[i] = header.flag, header.label[0], size
        return HeaderScan(flags, labels, sizes)

    def read_face(self, position: int) -> tuple[Header, memoryview]:
        """Header and encoded image of record ``keys[position]``; raises as :meth:`read_at`, and for a cut header."""
        payload = self.read_at(position)
        try:
            return unpack(payload)
        except ValueError as error:
            raise ValueError(f"{self.where(position)}: {error}; pack the faces again") from None

    def where(self, position: int) -> str:
        """File, key and byte offset of record ``keys[position]``, for the start of an error message."""
        return f"{self.rec_path}: record key {self.index.key(position)} at byte {self.offsets[position]}"

    def _first_reads(self, at: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes to read first: up to the next record where the index tells."""
        if not self.index.is_in_file_order:
            return np.full(len(at), _FIRST_READ)
        last = len(self) - 1
        ends = self.offsets[np.minimum(at + 1, last)]
        ends[at == last] = self._size
        lengths: NDArray[np.int64] = np.minimum(ends - offsets, _MAX_FIRST_READ)
        return lengths

    def _read_all(self, at: list[int], offsets: list[int], lengths: list[int]) -> list[memoryview]:
        """The payloads of records, given each one's position, offset and bytes to read first."""
        pread, first = one_pread(), PART.size
        blocks: list[bytes] = list(map(pread, repeat(self._open()), lengths, offsets))
        try:
            heads: list[tuple[int, int]] = list(map(PART.unpack_from, blocks))
        except struct.error:  # the file has become shorter since it was opened, or a read was cut short
            heads = [PART.unpack_from(block) if len(block) >= first else (0, 0) for block in blocks]
        payloads = []
        for block, (magic, word) in zip(blocks, heads, strict=True):
            if magic == MAGIC and word <= len(block) - first:  # whole, since the kind is in the word's upper bits
                payloads.append(memoryview(block)[first : first + word])
            else:
                i = len(payloads)
                payloads.append(memoryview(self._read_with_care(block, at[i], offsets[i])))
        return payloads

    def _read_with_care(self, block: bytes, position: int, offset: int) -> bytes:
        """A record that did not come whole with its first bytes ``block``: longer, in parts, or damaged."""
        if len(block) < PART.size:
            block = read_at(self._open(), PART.size, offset)
        kind, length = self._part(block, position, offset)
        if kind == 0:
            return self._exactly(length, position, offset)
        if kind != 1:
            raise self._damaged(position, f"expected a record's start (part kind 0 or 1), got kind {kind}")
        parts = [self._exactly(length, position, offset)]
        while kind != 3:
            offset += PART.size + length + -length % 4
            kind, length = self._part(read_at(self._open(), PART.size, offset), position, offset)
            if kind not in (2, 3):
                raise self._damaged(position, f"expected part kind 2 or 3 at byte {offset}, got {kind}")
            parts.append(self._exactly(length, position, offset))
        return MAGIC_BYTES.join(parts)

    def _open(self) -> int:
        """The file's descriptor in this process."""
        fd = self._fd
        if fd is None or self._pid != os.getpid():
            with _open_lock:
                if self._fd is None or self._pid != os.getpid():
                    self._fd = os.open(self.rec_path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                    self._pid = os.getpid()
                fd = self._fd
        return fd

    def _announce_chunks(self, at: NDArray[np.int64]) -> None:
        for number in np.unique(at // self.chunk).tolist():
            if number not in self._announced:
                self.will_need(number * self.chunk, min((number + 1) * self.chunk, len(self)))
                if len(self._announced) >= _CHUNKS_KEPT:
                    self._announced.clear()
                self._announced.add(number)

    def _will_need(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        if hasattr(os, "posix_fadvise"):
            fd = self._open()
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _part(self, block: bytes, position: int, offset: int) -> tuple[int, int]:
        magic, word = PART.unpack_from(block) if len(block) >= PART.size else (None, 0)
        if magic != MAGIC:
            found = "the file's end (truncated)" if magic is None else f"{magic:#010x}"
            raise self._damaged(position, f"expected the magic {MAGIC:#010x} at byte {offset}, got {found}")
        return word >> 29, word & MAX_PART

    def _exactly(self, length: int, position: int, offset: int) -> bytes:
        start = offset + PART.size
        if start + length > self._size:  # before memory is taken for what a damaged length asks for
            raise self._damaged(
                position, f"truncated: expected {length} bytes at byte {start}, got {max(0, self._size - start)}"
            )
        data = read_at(self._open(), length, start)
        if len(data) < length:
            raise self._damaged(position, f"truncated: expected {length} bytes at byte {start}, got {len(data)}")
        return data

    def _damaged(self, position: int, problem: str) -> ValueError:
        return ValueError(
            f"{self.where(position)}: {problem}; the file is damaged, or {self.idx_path.name} belongs to "
            f"another: copy both again; where the index alone is at fault, {REBUILD.format(self.rec_path)}"
        )
