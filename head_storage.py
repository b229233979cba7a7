"""Where a rank's heads live, and how a step's heads travel to the training device and back.

Every class has one row in each array: its centre, and one more for each name of optimizer state. The arrays lie in
memory of the training device, in host memory, or in files. Host memory and files are read and written by one
background thread in the order of the calls, so that the next step's heads arrive and the last step's leave while this
one computes. A fetch that was asked for before an update still gives the updated rows, bit for bit.

Heads that were never updated cost nothing: their rows are not written, and read as their initial values.

Files are mapped into memory. Room for a head is asked of the file system before its first write, so that a full disk
is an error and not a bus error; and the mapping is let go of now and then, so that the process stays small.

Shapes: h heads of one request and S their classes (local numbers, ascending), D embedding size.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Place = Literal["device", "host", "file"]
Rows = dict[str, Tensor]  # array name -> (S, D)
CENTRES = "weight"
WRITES_AT_ONCE = 8  # updates that may wait to be written
READS_PER_MAPPING = 64  # then the pages of mapped files are let go of; they stay in the system's cache


@dataclass
class Fetch:
    """Rows on their way; ``HeadStorage.take`` hands them over."""

    heads_h: Tensor
    rows_S: Tensor
    coming: Future[Rows] | None  # None: read when taken
    newer: list[tuple[Tensor, Rows]] = field(default_factory=list)  # updates made since it was asked for


class HeadStorage:
    """The arrays of one rank.

    Args:
        rows: classes of this rank.
        head_size: L.
        width: D.
        dtype: of every array.
        device: where training computes.
        initial: gives the first centres (S, D), on the labels' device, of classes that were never updated.
        place: "device", "host", or "file".
        folder: for "file": where the files are made; older ones of this rank are emptied.
        rank: in the files' names.

    Raises:
        ValueError: an unknown place, or "file" without a folder.
        OSError: a file cannot be made.
    """

    def __init__(
        self,
        rows: int,
        head_size: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        initial: Callable[[Tensor], Tensor],
        place: Place = "device",
        folder: Path | None = None,
        rank: int = 0,
    ) -> None:
        if place not in ("device", "host", "file"):
            raise ValueError(f"head_storage must be 'device', 'host' or 'file', got {place!r}")
        if place == "file" and folder is None:
            raise ValueError("head_storage = 'file' needs a folder for the files: set head_folder")
        self.rows, self.head_size, self.width = rows, head_size, width
        self.dtype, self.device, self.initial, self.place = dtype, device, initial, place
        self.home = device if place == "device" else torch.device("cpu")  # where numbers of heads are kept
        self.visits = _untouched_zeros((-(-rows // head_size),), torch.int32, self.home)  # updates of each head
        self.arrays: dict[str, Tensor] = {}  # name -> (rows, D)
        self.waited_s = 0.0  # time that take() was kept waiting
        self._files: dict[str, tuple[int, mmap.mmap]] = {}  # name -> descriptor and mapping, for "file"
        self._reads = 0
        self._folder, self._rank = folder, rank
        self._worker = None if place == "device" else _single_threaded_worker()
        self._writing: list[Future[None]] = []
        self._fetches: list[Fetch] = []  # asked for and not taken yet
        self.add(CENTRES)

    @property
    def names(self) -> list[str]:
        """The arrays' names, the centres first."""
        return list(self.arrays)

    def add(self, name: str) -> None:
        """Add an array of zeros that takes up room only where it is written."""
        shape = (self.rows, self.width)
        if self.place != "file" or self.rows == 0:
            self.arrays[name] = _untouched_zeros(shape, self.dtype, self.home)
            return
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank_{self._rank}.{name}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        size = math.prod(shape) * self.dtype.itemsize
        os.ftruncate(descriptor, size)
        mapping = mmap.mmap(descriptor, size)
        mapping.madvise(mmap.MADV_RANDOM)
        self._files[name] = descriptor, mapping
        self.arrays[name] = torch.frombuffer(mapping, dtype=self.dtype).view(shape)

    def fetch(self, heads_h: Tensor, rows_S: Tensor) -> Fetch:
        """Start reading the rows of some heads; later updates are still seen by :meth:`take`.

        Raises:
            OSError: an earlier write has failed.
        """
        self._check_writes()
        heads_h, rows_S = heads_h.to(self.home), rows_S.to(self.home)
        if self._worker is None:
            return Fetch(heads_h, rows_S, None)
        fetch = Fetch(heads_h, rows_S, self._worker.submit(self._read, heads_h, rows_S, self._fresh(heads_h)))
        self._fetches.append(fetch)
        return fetch

    def take(self, fetch: Fetch) -> Rows:
        """The rows (S, D) on the training device, as of now; they are the caller's to change.

        Raises:
            OSError: they could not be read.
        """
        if fetch.coming is None:
            return self._read(fetch.heads_h, fetch.rows_S, self._fresh(fetch.heads_h))
        started_s = time.monotonic()
        rows = {name: t.to(self.device, non_blocking=True) for name, t in fetch.coming.result().items()}
        self.waited_s += time.monotonic() - started_s
        self._fetches = [other for other in self._fetches if other is not fetch]
        for newer_S, values in fetch.newer:
            place_S = torch.searchsorted(fetch.rows_S, newer_S).clamp(max=max(len(fetch.rows_S) - 1, 0))
            both = (
                fetch.rows_S[place_S] == newer_S if len(fetch.rows_S) else torch.zeros_like(newer_S, dtype=torch.bool)
            )
            here, there = place_S[both].to(self.device), both.to(self.device)
            for name, value in values.items():
                rows[name][here] = value[there]
        return rows

    def forget(self, fetch: Fetch) -> None:
        """Give up a fetch that will not be taken."""
        self._fetches = [other for other in self._fetches if other is not fetch]

    def store(self, heads_h: Tensor, rows_S: Tensor, values: Rows) -> None:
        """Write new values of all arrays of some heads, and count an update of each.

        For host memory and files it returns at once and the writing goes on behind: ``values`` must not change after.

        Raises:
            OSError: an earlier write has failed.
        """
        self._check_writes()
        heads_h, rows_S = heads_h.to(self.home), rows_S.to(self.home)
        fresh_h = heads_h[self._fresh(heads_h)] if self._files else heads_h[:0]
        self.visits[heads_h] += 1
        if self._worker is None:
            self._write(fresh_h, rows_S, values)
            return
        for fetch in self._fetches:
            fetch.newer.append((rows_S, values))
        self._writing.append(self._worker.submit(self._write, fresh_h, rows_S, values))
        if len(self._writing) > WRITES_AT_ONCE:  # a disk that falls behind must not fill the memory
            self._raise_if_failed(self._writing.pop(0))

    def restore(self, heads_h: Tensor, rows_S: Tensor, values: Rows, visits_h: Tensor) -> None:
        """Write values as :meth:`store` does, but set the number of updates."""
        self.store(heads_h, rows_S, values)
        self.visits[heads_h.to(self.home)] = visits_h.to(self.home)

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: a write has failed, for example because the disk is full.
        """
        for write in self._writing:
            self._raise_if_failed(write)
        self._writing.clear()

    def close(self) -> None:
        """Wait for the background thread and close the files; what waited is written."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        for descriptor, mapping in self._files.values():
            mapping.flush()
            os.close(descriptor)
        self._files.clear()

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    @property
    def _block(self) -> int:
        return self.head_size * self._row_bytes

    def _check_writes(self) -> None:
        while self._writing and self._writing[0].done():
            self._raise_if_failed(self._writing.pop(0))

    def _raise_if_failed(self, write: Future[None]) -> None:
        error = write.exception()
        if isinstance(error, OSError):
            raise OSError(
                f"the classifier's heads could not be written to {self._folder}: {error}. Make room there or set "
                "another head_folder, and go on from the last checkpoint with resume = True"
            ) from error
        if error is not None:
            raise error

    def _fresh(self, heads_h: Tensor) -> Tensor:
        return self.visits[heads_h] == 0

    def _read(self, heads_h: Tensor, rows_S: Tensor, fresh_h: Tensor) -> Rows:
        if not fresh_h.any():
            return self._read_written(heads_h, rows_S)
        fresh_S = torch.repeat_interleave(fresh_h, self.head_size)[: len(rows_S)]
        initial = self.initial(rows_S[fresh_S])
        if len(initial) == len(rows_S):
            return {name: initial if name == CENTRES else torch.zeros_like(initial) for name in self.names}
        written = self._read_written(heads_h[~fresh_h], rows_S[~fresh_S])
        rows = {}
        for name in self.names:
            rows[name] = torch.zeros((len(rows_S), self.width), dtype=self.dtype, device=self.home)
            rows[name][~fresh_S] = written[name]
        rows[CENTRES][fresh_S] = initial
        return rows

    def _read_written(self, heads_h: Tensor, rows_S: Tensor) -> Rows:
        for descriptor, mapping in self._files.values():
            for head in heads_h.tolist():  # all at once, so that a disk sees the whole request
                os.posix_fadvise(descriptor, head * self._block, self._block, os.POSIX_FADV_WILLNEED)
            if self._reads % READS_PER_MAPPING == 0:
                mapping.madvise(mmap.MADV_DONTNEED)
        self._reads += 1
        rows = {name: array.index_select(0, rows_S) for name, array in self.arrays.items()}
        if self.place != "device" and self.device.type == "cuda":  # pinned memory travels while the GPU computes
            return {name: value.pin_memory() for name, value in rows.items()}
        return rows

    def _write(self, fresh_h: Tensor, rows_S: Tensor, values: Rows) -> None:
        for descriptor, _ in self._files.values():
            for head in fresh_h.tolist():
                end = min((head + 1) * self._block, self.rows * self._row_bytes)
                os.posix_fallocate(descriptor, head * self._block, end - head * self._block)
        for name, array in self.arrays.items():
            array.index_copy_(0, rows_S, values[name].to(self.home))


def _single_threaded_worker() -> ThreadPoolExecutor:
    """One background thread in which torch uses no further ones; a second team would get in the training's way.

    The number of OpenMP threads belongs to the calling thread, that of the matrix library to all; hence the reset.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="heads")
    threads = torch.get_num_threads()
    worker.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    return worker


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on a CPU take up memory only where they are written, in pages of 4 KiB.

    numpy.zeros would ask for pages of 2 MiB, each cleared as a whole when the first head in it is written.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
