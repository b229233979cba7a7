"""Faces in WebDataset shards, read at random: any order, any number of ranks, as from records.

Shapes: N images.
"""

from __future__ import annotations

import tarfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faces import Encoded, FaceDataset, OnBadSample, Size, read_class_names
from data.shards.index import open_index, samples_between
from data.shards.names import find_shards
from data.shards.records import join_parts
from data.storage import LocalFiles, Range, is_address, open_store

_SLOW_READ_S = 30e-6  # an image that takes longer on average comes from a disk, not from the system's cache
_HINTED_READS = 64  # calls of read_many that give hints after one was slow
_CHUNKS_KEPT = 1024  # chunks remembered as asked for
_KEPT_BYTES = 256 << 20  # of chunks from behind an address, in each process
_MAX_CHUNK = 64 << 20  # bytes


class FaceShards(FaceDataset):
    """The images of a folder of .tar files, a pattern of them, or one; behind an address, of records too.

    The first opening makes an index (``data/shards/index.py``). Labels are whole numbers, or names: then label i is
    the i-th by sorted name. Where they are numbers, a classes.json beside the shards gives names; behind an address
    it is not read.

    Args:
        source: see ``data/shards/names.py``.
        image_size: that every image must have.
        on_bad_sample: whether a sample without an image or a label is an error, or is left out.
        chunk: images that are asked for together; see ``RecordReader``. Behind an address they come as one request,
            and are kept in memory (256 MiB a process).

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: a shard is damaged or compressed.
    """

    def __init__(
        self,
        source: str | Path,
        image_size: Size = (112, 112),
        on_bad_sample: OnBadSample = "stop",
        chunk: int = 0,
    ) -> None:
        self.image_size, self.on_bad_sample, self.chunk = image_size, on_bad_sample, chunk
        self.store = open_store(source)
        self.index = open_index(find_shards(source, self.store), self.store)
        self._hints_left = 0
        self._announced: set[int] = set()
        self._chunks: OrderedDict[int, dict[str, tuple[int, bytes]]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.index.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": OrderedDict()}

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label; see ``FaceDataset.labels``."""
        index = self.index
        if index.problem_count:
            more = f" (the first of {index.problem_count} such samples)" if index.problem_count > 1 else ""
            if self.on_bad_sample == "stop":
                raise ValueError(f'{index.problems[0]}{more}; mend it, or set on_bad_sample = "skip"')
            self.warning = f"{index.problem_count} samples are left out, the first: {index.problems[0]}"
        return np.asarray(index.labels, np.int64)

    def class_names(self) -> Sequence[str | None] | None:
        """The labels where they are names, else the list in classes.json beside the shards."""
        if self.index.names is not None or is_address(self.index.files[0]):
            return self.index.names
        return read_class_names(Path(self.index.files[0]))

    def read(self, index: int) -> tuple[Encoded, int]:
        """The encoded image ``index`` and its label; see ``FaceDataset.read``."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[tuple[Encoded, int]]:
        """Several images and labels, as ``read`` gives them; the disk or the network may serve them in parallel."""
        ranges = self._ranges(indices)
        found = (
            self._read_here(ranges, indices) if isinstance(self.store, LocalFiles) else self._read(ranges, indices)
        )
        result: list[tuple[Encoded, int]] = []
        labels = self.index.labels[np.asarray(indices, np.int64)].tolist()
        for encoded, wanted, label, index in zip(found, ranges, labels, indices, strict=True):
            if len(encoded) < wanted.length:
                raise ValueError(f"{wanted.file}: it has become shorter since its index was made: copy it again")
            if label < 0:
                raise ValueError(f"{self.where(index)}: it has no label, or one that is no identity")
            result.append((join_parts(encoded) if wanted.file.endswith(".rec") else encoded, label))
        return result

    def where(self, index: int) -> str:
        """Shard, name and byte offset of image ``index``; reads its header."""
        (file, offset, _), *_ = self._ranges([index])
        if file.endswith(".rec"):
            return f"{file}: image at byte {offset}"
        try:
            (header,) = self.store.read_many([Range(file, offset - 512, 512)])
            name = f"{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name!r} "
        except (OSError, ValueError, tarfile.TarError):
            name = ""
        return f"{file}: image {name}at byte {offset}"

    def place(self, index: int) -> tuple[str, int]:
        """Shard and byte offset of image ``index``."""
        (file, offset, _), *_ = self._ranges([index])
        return file, offset

    def _ranges(self, indices: Sequence[int]) -> list[Range]:
        at = np.asarray(indices, np.int64)
        if len(at) and not 0 <= (low := int(at.min())) <= (high := int(at.max())) < len(self):
            wrong = low if low < 0 else high
            raise IndexError(f"image {wrong} of {len(self)} in {self.index.files[0]} and other shards")
        files = [self.index.files[i] for i in (np.searchsorted(self.index.starts, at, side="right") - 1).tolist()]
        return list(map(Range, files, self.index.offsets[at].tolist(), self.index.sizes[at].tolist()))

    def _read_here(self, ranges: list[Range], indices: Sequence[int]) -> list[bytes]:
        assert isinstance(self.store, LocalFiles)
        if self.chunk:
            for number in {index // self.chunk for index in indices} - self._announced:
                self.store.will_need(samples_between(self.index, *self._span(number)))
                if len(self._announced) >= _CHUNKS_KEPT:
                    self._announced.clear()
                self._announced.add(number)
        elif self._hints_left:
            self._hints_left -= 1
            self.store.will_need(ranges)
        start = time.perf_counter()
        found = self.store.read_many(ranges)
        if time.perf_counter() - start > _SLOW_READ_S * len(ranges):
            self._hints_left = _HINTED_READS
        return found

    def _read(self, ranges: list[Range], indices: Sequence[int]) -> list[bytes]:
        """From behind an address: the images alone, or the chunks that they lie in."""
        if not self.chunk:
            return self.store.read_many(ranges)
        self._fetch(sorted({index // self.chunk for index in indices} - self._chunks.keys()))
        found = []
        for (file, offset, length), index in zip(ranges, indices, strict=True):
            piece = self._chunks.get(index // self.chunk, {}).get(file)
            if piece is None:
                found += self.store.read_many([Range(file, offset, length)])
            else:
                found.append(piece[1][offset - piece[0] : offset - piece[0] + length])
        for number in dict.fromkeys(index // self.chunk for index in indices):
            if number in self._chunks:
                self._chunks.move_to_end(number)
        kept = sum(len(data) for pieces in self._chunks.values() for _, data in pieces.values())
        while kept > _KEPT_BYTES:
            _, pieces = self._chunks.popitem(last=False)
            kept -= sum(len(data) for _, data in pieces.values())
        return found

    def _fetch(self, numbers: list[int]) -> None:
        pieces = [(n, piece) for n in numbers for piece in samples_between(self.index, *self._span(n))]
        pieces = [(n, piece) for n, piece in pieces if piece.length <= _MAX_CHUNK]
        for (number, piece), data in zip(pieces, self.store.read_many([p for _, p in pieces]), strict=True):
            self._chunks.setdefault(number, {})[piece.file] = piece.offset, data

    def _span(self, number: int) -> tuple[int, int]:
        return number * self.chunk, min((number + 1) * self.chunk, len(self))
