"""RecordIO files (.rec with its .idx) as mxnet writes them, in numpy and the standard library.

A record is ``uint32 magic``, ``uint32 word`` (upper 3 bits: 0 whole, 1 first, 2 middle, 3 last part; lower
29 bits: length of the part), the part, zeros up to a multiple of 4 bytes; all little-endian. A payload that
holds the magic on a 4-byte boundary is cut there: the magic is left out and put back between the parts.

A face record's payload is the 24-byte header ``uint32 flag, float32 label, uint64 id, uint64 id2``, then
``flag`` float32 labels if flag > 0 (the header's own label then means nothing), then the encoded image.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_MAX_PART = (1 << 29) - 1  # bytes: the length field has 29 bits
_FIRST_READ = 8192  # bytes: most 112 x 112 faces come whole with the first read
_IDX_BLOCK = 1 << 26  # bytes of .idx text parsed at a time
_TAB, _NEWLINE, _ZERO, _NINE = b"\t\n09"
_seek_lock = threading.Lock()


class Header(NamedTuple):
    """What stands before the image in a face record."""

    flag: int  # 0: one label in the header itself; n > 0: a vector of n labels follows it
    label: NDArray[np.float32]  # (n,), or (1,) where flag is 0
    id: int
    id2: int


class HeaderScan(NamedTuple):
    """The headers of N consecutive records, as columns."""

    flags: NDArray[np.int64]  # (N,)
    labels: NDArray[np.float32]  # (N,): each record's first label
    sizes: NDArray[np.int64]  # (N,): bytes of payload, header included

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """(N,): whether anything follows the header and the labels."""
        return self.sizes > _HEADER.size + 4 * self.flags


def pack(label: float | Sequence[float] | NDArray[Any], image: bytes = b"", id: int = 0) -> bytes:
    """Put a header before an encoded image.

    Args:
        label: a scalar gives flag 0; a vector of n labels gives flag n. Stored as float32.
        image: the encoded image, empty for a record of labels alone.
        id: the header's id; insightface stores the record's key there.

    Raises:
        ValueError: ``label`` is an empty vector or has more than one dimension.
    """
    labels = np.asarray(label, "<f4")
    if labels.ndim == 0:
        return _HEADER.pack(0, float(labels), id, 0) + image
    if labels.ndim > 1 or len(labels) == 0:
        raise ValueError(f"a label is a number or a vector of at least one, got shape {labels.shape}")
    return _HEADER.pack(len(labels), 0.0, id, 0) + labels.tobytes() + image


def unpack(payload: bytes | memoryview) -> tuple[Header, memoryview]:
    """Split a face record's payload into its header and the encoded image, without a copy of the image.

    Raises:
        ValueError: the payload is shorter than its header, or than the labels that the header announces.
    """
    view = memoryview(payload)
    if len(view) < _HEADER.size:
        raise ValueError(f"a face record starts with a header of {_HEADER.size} bytes, got {len(view)} bytes")
    flag, label, id_, id2 = _HEADER.unpack_from(view)
    if flag == 0:
        return Header(0, np.array([label], np.float32), id_, id2), view[_HEADER.size :]
    end = _HEADER.size + 4 * flag
    if len(view) < end:
        raise ValueError(f"the header announces {flag} labels, {end} bytes with it, got {len(view)} bytes")
    return Header(flag, np.frombuffer(view[_HEADER.size : end], "<f4"), id_, id2), view[end:]


class RecordReader:
    """Random access to the records of one .rec file.

    The index is read at once, sorted by key; the .rec file is opened at the first read, anew in every process,
    so that a reader may be forked or pickled into workers at any time.

    Args:
        rec_path: the .rec file.
        idx_path: its index, by default beside it with the ending .idx.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the index is empty or malformed, repeats a key, or points outside the .rec file.
    """

    keys: NDArray[np.int64]  # (N,) increasing
    offsets: NDArray[np.int64]  # (N,) byte offsets, in the order of keys
    _fd: int | None = None
    _pid = -1  # the process that opened _fd

    def __init__(self, rec_path: str | Path, idx_path: str | Path | None = None) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = self.rec_path.with_suffix(".idx") if idx_path is None else Path(idx_path)
        for path in (self.rec_path, self.idx_path):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; expected {self.rec_path.name} with its index "
                    f"{self.idx_path.name}: copy both from one place, or pack the faces again"
                )
        self._size = self.rec_path.stat().st_size
        self.keys, self.offsets = _read_idx(self.idx_path)
        bad = (self.offsets > self._size - _PART.size) | (self.offsets % 4 != 0)
        if bad.any():
            raise self._damaged(int(bad.argmax()), f"expected a multiple of 4 inside the file's {self._size} bytes")

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None, "_pid": -1}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the .rec file; the next read opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == os.getpid():
            os.close(fd)

    def read(self, key: int) -> bytes:
        """The payload of the record with this key; ValueError if there is none, or if it is damaged."""
        i = int(np.searchsorted(self.keys, key))
        if i == len(self.keys) or self.keys[i] != key:
            span = f"{len(self.keys)} keys from {self.keys[0]} to {self.keys[-1]}"
            raise ValueError(f"{self.idx_path}: no record has key {key}; it lists {span}")
        return self.read_at(i)

    def read_at(self, position: int) -> bytes:
        """The payload of record ``keys[position]``, parts joined.

        Raises:
            ValueError: there is no whole record at its offset; names file, key, offset, and what was found.
        """
        if not 0 <= position < len(self.keys):
            raise IndexError(f"record {position} of {len(self.keys)} in {self.rec_path}")
        offset = int(self.offsets[position])
        block = self._pread(_FIRST_READ, offset)
        kind, length = self._part(block, position, offset)
        if kind == 0:
            if _PART.size + length <= len(block):
                return block[_PART.size : _PART.size + length]
            return self._exactly(length, position, offset)
        if kind != 1:
            raise self._damaged(position, f"expected a record's start (part kind 0 or 1), got kind {kind}")
        parts = [self._exactly(length, position, offset)]
        while kind != 3:
            offset += _PART.size + length + -length % 4
            kind, length = self._part(self._pread(_PART.size, offset), position, offset)
            if kind not in (2, 3):
                raise self._damaged(position, f"expected part kind 2 or 3 at byte {offset}, got {kind}")
            parts.append(self._exactly(length, position, offset))
        return _MAGIC_BYTES.join(parts)

    def scan_headers(self, start: int = 0, stop: int | None = None) -> HeaderScan:
        """The headers of records ``keys[start:stop]``, without their images.

        Vectorised over a temporary memory map: of each record only the page with its first bytes is read.
        Temporary memory is about 100 bytes a record, so call it for a million or so at a time.

        Raises:
            ValueError: a record is damaged, or too short for its header.
        """
        offsets = self.offsets[start:stop]
        words = np.memmap(self.rec_path, "<u4", mode="r", shape=(self._size // 4,))
        at = offsets // 4
        magics, parts = words[at], words[at + 1]
        sizes = (parts & _MAX_PART).astype(np.int64)
        usable = np.minimum(at + 8, len(words) - 1)
        flags = words[np.minimum(at + 2, usable)].astype(np.int64)
        first = np.where(flags > 0, words[usable], words[np.minimum(at + 3, usable)])
        labels = first.astype("<u4").view("<f4").astype(np.float32)
        irregular = (magics != MAGIC) | (parts > _MAX_PART) | (offsets + _PART.size + sizes > self._size)
        irregular |= sizes < _HEADER.size + 4 * flags
        for i in np.flatnonzero(irregular):  # in several parts, or damaged
            payload = self.read_at(start + int(i))
            try:
                header, _ = unpack(payload)
            except ValueError as error:
                raise ValueError(f"{self.where(start + int(i))}: {error}") from None
            flags[i], labels[i], sizes[i] = header.flag, header.label[0], len(payload)
        return HeaderScan(flags, labels, sizes)

    def where(self, position: int) -> str:
        """File, key and byte offset of record ``keys[position]``, to start an error message with."""
        return f"{self.rec_path}: record key {self.keys[position]} at byte {self.offsets[position]}"

    def _pread(self, length: int, offset: int) -> bytes:
        if self._fd is None or self._pid != os.getpid():
            self._fd = os.open(self.rec_path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._pid = os.getpid()
        if hasattr(os, "pread"):
            return os.pread(self._fd, length, offset)
        with _seek_lock:  # Windows
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, length)

    def _part(self, block: bytes, position: int, offset: int) -> tuple[int, int]:
        magic, word = _PART.unpack_from(block) if len(block) >= _PART.size else (None, 0)
        if magic != MAGIC:
            found = "the file's end (truncated)" if magic is None else f"{magic:#010x}"
            raise self._damaged(position, f"expected the magic {MAGIC:#010x} at byte {offset}, got {found}")
        return word >> 29, word & _MAX_PART

    def _exactly(self, length: int, position: int, offset: int) -> bytes:
        start = offset + _PART.size
        data = self._pread(length, start)
        if len(data) < length:
            raise self._damaged(position, f"truncated: expected {length} bytes at byte {start}, got {len(data)}")
        return data

    def _damaged(self, position: int, problem: str) -> ValueError:
        return ValueError(
            f"{self.where(position)}: {problem}; the file is damaged, or {self.idx_path.name} belongs to "
            "another: copy both again"
        )


class RecordWriter:
    """Writes a .rec file and its .idx, complete or not at all.

    A context manager: both files grow under temporary names, get their own on a clean exit, and are removed
    if an exception leaves the block.

    Args:
        rec_path: the .rec file; an older one is replaced at the end.
        idx_path: its index, by default beside it with the ending .idx.
    """

    def __init__(self, rec_path: str | Path, idx_path: str | Path | None = None) -> None:
        self.rec_path = Path(rec_path)
        self.idx_path = self.rec_path.with_suffix(".idx") if idx_path is None else Path(idx_path)
        self._rec_tmp = _temporary_name(self.rec_path)
        self._idx_tmp = _temporary_name(self.idx_path)
        self._end = 0  # bytes written

    def __enter__(self) -> RecordWriter:
        self._idx: TextIO = self._idx_tmp.open("w", newline="\n")
        self._rec: BinaryIO = self._rec_tmp.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._rec.close()
            self._idx.close()
            if kind is None:
                self._rec_tmp.replace(self.rec_path)
                self._idx_tmp.replace(self.idx_path)
        finally:
            self._rec_tmp.unlink(missing_ok=True)
            self._idx_tmp.unlink(missing_ok=True)

    def write(self, key: int, payload: bytes) -> None:
        """Append one record.

        Raises:
            ValueError: a part of the payload has 2^29 bytes or more, or the key is negative.
        """
        if key < 0:
            raise ValueError(f"{self.rec_path}: keys start at 0, got {key}")
        parts = _split(payload)
        if max(map(len, parts)) > _MAX_PART:
            raise ValueError(f"{self.rec_path}: record key {key}: {len(payload)} bytes are over {_MAX_PART}")
        last = len(parts) - 1
        chunks = []
        for i, part in enumerate(parts):
            kind = 0 if last == 0 else 1 if i == 0 else 3 if i == last else 2
            chunks += [_PART.pack(MAGIC, kind << 29 | len(part)), part, bytes(-len(part) % 4)]
        record = b"".join(chunks)
        self._idx.write(f"{key}\t{self._end}\n")
        self._rec.write(record)
        self._end += len(record)


def write_face_records(
    folder: str | Path, faces: Sequence[Sequence[bytes]], image_size: tuple[int, int] = (112, 112)
) -> None:
    """Write train.rec, train.idx and property in insightface's form.

    Record 0 has the labels ``[end, end + identities]``; images are keys 1 .. end - 1, identity by identity;
    keys from ``end`` on hold each identity's half-open range of keys.

    Args:
        folder: made if missing.
        faces: the encoded images of each identity; identity i gets label i.
        image_size: (height, width) of the images, for ``property``.

    Raises:
        ValueError: no identity, an identity without an image, or more identities than a float32 label tells apart.
    """
    empty = next((i for i, images in enumerate(faces) if len(images) == 0), None)
    if len(faces) == 0 or empty is not None:
        raise ValueError("no identities to write" if empty is None else f"identity {empty} has no image")
    if len(faces) > 1 << 24:
        raise ValueError(f"{len(faces)} identities, but float32 labels are exact up to {1 << 24}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starts = np.cumsum([1, *map(len, faces)]).tolist()
    end = starts[-1]
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(0, pack([end, end + len(faces)]))
        for label, images in enumerate(faces):
            for key, image in enumerate(images, starts[label]):
                writer.write(key, pack(label, image, key))
        for i in range(len(faces)):
            writer.write(end + i, pack(starts[i : i + 2], id=end + i))
    property_tmp = _temporary_name(folder / "property")
    property_tmp.write_text(f"{len(faces)},{image_size[0]},{image_size[1]}\n")
    property_tmp.replace(folder / "property")


def _temporary_name(path: Path) -> Path:
    """A name beside ``path``, this process's own, to write under before the rename."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _split(payload: bytes) -> list[bytes]:
    """Cut at every magic on a 4-byte boundary, leaving the magic out."""
    parts, start, found = [], 0, payload.find(_MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            parts.append(payload[start:found])
            start = found + 4
        found = payload.find(_MAGIC_BYTES, found + 4 if found % 4 == 0 else found + 1)
    return [*parts, payload[start:]]


def _read_idx(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and offsets of an .idx file, sorted by key; no Python object per line."""
    blocks = []
    line = 1
    with path.open("rb") as file:
        while text := file.read(_IDX_BLOCK):
            blocks.append(_parse_idx(text + file.readline(), path, line))
            line += len(blocks[-1]) // 2
    pairs = np.concatenate(blocks).reshape(-1, 2) if blocks else np.empty((0, 2), np.int64)
    if len(pairs) == 0:
        raise ValueError(f"{path}: the index is empty, expected a line `key<TAB>offset` for each record")
    keys, offsets = pairs[:, 0].copy(), pairs[:, 1].copy()
    if not (keys[1:] > keys[:-1]).all():
        order = keys.argsort(kind="stable")
        keys, offsets = keys[order], offsets[order]
        repeated = keys[1:] == keys[:-1]
        if repeated.any():
            raise ValueError(
                f"{path}: key {keys[repeated.argmax()]} stands there more than once; each record needs "
                "its own key: pack the faces again"
            )
    return keys, offsets


def _parse_idx(text: bytes, path: Path, line: int) -> NDArray[np.int64]:
    """``key, offset, key, offset, ...`` of whole lines, the first of which has number ``line``."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    text = text.rstrip(b"\n") + b"\n"
    if text == b"\n":
        return np.empty(0, np.int64)
    chars = np.frombuffer(text, np.uint8)
    digit = (chars >= _ZERO) & (chars <= _NINE)
    breaks = chars[~digit]
    regular = len(breaks) % 2 == 0 and (breaks[::2] == _TAB).all() and (breaks[1::2] == _NEWLINE).all()
    numbers = np.fromstring(text, np.int64, sep=" ") if regular else np.empty(0, np.int64)
    if regular and len(numbers) == len(breaks):
        return numbers
    rows = enumerate(text.split(b"\n"), line)
    number, row = next((n, row) for n, row in rows if not re.fullmatch(rb"[0-9]+\t[0-9]+", row))
    raise ValueError(
        f"{path}: line {number} is {row[:60]!r}, expected `key<TAB>offset`, two whole numbers; the index is "
        "damaged: copy it again or pack the faces again"
    )
