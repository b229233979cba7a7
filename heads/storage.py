"""Where a rank's heads live, and how a step's heads travel to the training device and back.

Every class has one row in each array: its centre, and one more for each name of optimizer state. The arrays lie in
memory of the training device, in host memory, or in files. Host memory and files are read and written by one
background thread in the order of the calls, so that the next step's heads arrive and the last step's leave while this
one computes. A fetch that was asked for before an update still gives the updated rows, bit for bit.

Heads that were never updated cost nothing: their rows are not written, and read as their initial values.

Files have no name: they go with the process, and two runs may share a folder. They are read and written with plain
calls, so that a full disk is an error and the process stays small; the system's cache holds what it can.

Shapes: h heads of one request and S their classes (local numbers, ascending, on the host), D embedding size.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from utils.device import to_device

Place = Literal["device", "host", "file"]
Rows = dict[str, Tensor]  # array name -> (S, D)
CENTRES = "weight"
WRITES_AT_ONCE = 8  # updates that may wait to be written
_MAP_NORESERVE = 0x4000  # Linux: no promise of memory for what may never be touched


@dataclass
class Fetch:
    """Rows on their way; ``HeadStorage.take`` hands them over."""

    heads_h: Tensor
    rows_S: Tensor
    names: Sequence[str] | None
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
        initial: gives the first centres (S, D), where the heads live, of classes that were never updated.
        place: "device", "host", or "file".
        folder: for "file": where the files are made; it should be on a local disk.

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
    ) -> None:
        if place not in ("device", "host", "file"):
            raise ValueError(f"head_storage must be 'device', 'host' or 'file', got {place!r}")
        if place == "file" and folder is None:
            raise ValueError("head_storage = 'file' needs a folder for the files: set head_folder")
        self.rows, self.head_size, self.width = rows, head_size, width
        self.dtype, self.device, self.initial, self.place = dtype, device, initial, place
        self.home = device if place == "device" else torch.device("cpu")  # of the arrays
        self.visits = _untouched_zeros((-(-rows // head_size),), torch.int32, torch.device("cpu"))  # of each head
        self.names: list[str] = []  # of the arrays, the centres first
        self.arrays: dict[str, Tensor] = {}  # name -> (rows, D), for "device" and "host"
        self.waited_s = 0.0  # time that take() was kept waiting
        self._files: dict[str, int] = {}  # name -> descriptor, for "file"
        self._closers: list[weakref.finalize[..., HeadStorage]] = []
        self._failed: Exception | None = None  # a write that failed; nothing is read or written after it
        self._folder = folder
        self._worker = None if place == "device" else _single_threaded_worker(device)
        # Not yet run on a GPU: rows travel on a stream of their own, and the background thread waits for it.
        self._stream = torch.cuda.Stream(device) if self._worker and device.type == "cuda" else None
        self._writing: list[Future[None]] = []
        self._fetches: list[Fetch] = []  # asked for and not taken yet
        self.add(CENTRES)

    def add(self, name: str) -> None:
        """Add an array of zeros that takes up room only where it is written."""
        self.names.append(name)
        if self.place != "file":
            self.arrays[name] = _untouched_zeros((self.rows, self.width), self.dtype, self.home)
            return
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.truncate(self.rows * self._row_bytes)
            self._files[name] = os.dup(file.fileno())
        self._closers.append(weakref.finalize(self, os.close, self._files[name]))

    def fetch(self, heads_h: Tensor, rows_S: Tensor, names: Sequence[str] | None = None) -> Fetch:
        """Start reading the rows of some heads, of all arrays or those named; :meth:`take` still sees later updates.

        Raises:
            OSError: an earlier write has failed.
        """
        self._check_writes()
        if self._worker is None:
            return Fetch(heads_h, rows_S, names, None)
        reading = self._worker.submit(self._bring, heads_h, rows_S, self._fresh(heads_h), names)
        fetch = Fetch(heads_h, rows_S, names, reading)
        self._fetches.append(fetch)
        return fetch

    def take(self, fetch: Fetch) -> Rows:
        """The rows (S, D) on the training device, as of now; they are the caller's to change.

        Raises:
            OSError: they could not be read.
        """
        if fetch.coming is None:
            return self._read(fetch.heads_h, fetch.rows_S, self._fresh(fetch.heads_h), fetch.names)
        started_s = time.monotonic()
        if fetch.coming.exception() is not None:
            self._check_writes()  # a write that failed before it says what to do
        rows = fetch.coming.result()
        if self._stream is not None:
            for value in rows.values():  # made on the other stream, so this one must be known to use it
                value.record_stream(torch.cuda.current_stream(self.device))
        self.waited_s += time.monotonic() - started_s
        self._fetches = [other for other in self._fetches if other is not fetch]
        for newer_S, values in fetch.newer:
            place_S = torch.searchsorted(fetch.rows_S, newer_S).clamp(max=max(len(fetch.rows_S) - 1, 0))
            both = (
                fetch.rows_S[place_S] == newer_S if len(fetch.rows_S) else torch.zeros_like(newer_S, dtype=torch.bool)
            )
            here = to_device(place_S[both], self.device)
            there = to_device(both.nonzero().squeeze(1), self.device)
            for name in rows:
                rows[name][here] = values[name].to(self.device)[there]  # what restore() was given is on the host
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
        self.visits[heads_h] += 1
        if self._worker is None:
            self._write(heads_h, rows_S, values)
            return
        for fetch in self._fetches:
            fetch.newer.append((rows_S, values))
        made = None if self._stream is None else torch.cuda.current_stream(self.device).record_event()
        self._writing.append(self._worker.submit(self._write, heads_h, rows_S, values, made))
        if len(self._writing) > WRITES_AT_ONCE:  # a disk that falls behind must not fill the memory
            self._writing[0].exception()

    def restore(self, heads_h: Tensor, rows_S: Tensor, values: Rows, visits_h: Tensor) -> None:
        """Write values as :meth:`store` does, but set the number of updates."""
        self.store(heads_h, rows_S, values)
        self.visits[heads_h] = visits_h

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: a write has failed, for example because the disk is full.
        """
        for write in self._writing:
            write.exception()
        self._check_writes()

    def close(self) -> None:
        """Wait until everything is written, end the background thread, give up the files.

        Raises:
            OSError: a write has failed.
        """
        try:
            self.flush()
        finally:
            if self._worker is not None:
                self._worker.shutdown(wait=True)
            for close_file in self._closers:
                close_file()

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    @property
    def _block(self) -> int:
        return self.head_size * self._row_bytes

    def _check_writes(self) -> None:
        self._writing = [write for write in self._writing if not write.done()]
        if isinstance(self._failed, OSError):
            raise OSError(
                f"the classifier's heads could not be written to {self._folder}: {self._failed}. Make room there or "
                "set another head_folder, and go on from the last checkpoint with resume = True"
            ) from self._failed
        if self._failed is not None:
            raise self._failed

    def _fresh(self, heads_h: Tensor) -> Tensor:
        return self.visits[heads_h] == 0

    def _read(self, heads_h: Tensor, rows_S: Tensor, fresh_h: Tensor, names: Sequence[str] | None) -> Rows:
        if self._failed is not None:
            raise self._failed
        names = names or self.names
        if not fresh_h.any():
            return self._read_written(heads_h, rows_S, names)
        fresh_S = torch.repeat_interleave(fresh_h, self.head_size)[: len(rows_S)]
        initial = self.initial(rows_S[fresh_S])
        if len(initial) == len(rows_S):
            return {name: initial if name == CENTRES else torch.zeros_like(initial) for name in names}
        written = self._read_written(heads_h[~fresh_h], rows_S[~fresh_S], names)
        old, new = (to_device(mask_S.nonzero().squeeze(1), self.home) for mask_S in (~fresh_S, fresh_S))
        rows = {}
        for name in names:
            rows[name] = torch.zeros((len(rows_S), self.width), dtype=self.dtype, device=self.home)
            rows[name][old] = written[name]
            if name == CENTRES:
                rows[name][new] = initial
        return rows

    def _read_written(self, heads_h: Tensor, rows_S: Tensor, names: Sequence[str]) -> Rows:
        if self.place == "file":
            return self._read_files(heads_h.tolist(), len(rows_S), names)
        here_S = to_device(rows_S, self.home)
        return {name: self.arrays[name].index_select(0, here_S) for name in names}

    def _read_files(self, heads: list[int], S: int, names: Sequence[str]) -> Rows:
        for name in names:
            for head in heads:  # all at once, so that a disk sees the whole request
                os.posix_fadvise(self._files[name], head * self._block, self._block, os.POSIX_FADV_WILLNEED)
        rows = {}
        for name in names:
            rows[name] = torch.empty((S, self.width), dtype=self.dtype)
            data = _bytes_of(rows[name])
            for i, head in enumerate(heads):
                part = data[i * self._block : (i + 1) * self._block]
                read = os.preadv(self._files[name], [part], head * self._block)
                if read != len(part):
                    raise OSError(f"read {read} of {len(part)} bytes of {name} of head {head} in {self._folder}")
        return rows

    def _bring(self, heads_h: Tensor, rows_S: Tensor, fresh_h: Tensor, names: Sequence[str] | None) -> Rows:
        """Read, in the background, and move to the training device beside what it computes."""
        rows = self._read(heads_h, rows_S, fresh_h, names)
        if self._stream is None:
            return {name: value.to(self.device) for name, value in rows.items()}
        with torch.cuda.stream(self._stream):
            moved = {name: value.pin_memory().to(self.device, non_blocking=True) for name, value in rows.items()}
        self._stream.synchronize()
        return moved

    def _fetch_back(self, values: Rows, made: torch.cuda.Event) -> Rows:
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(made)
            host = {
                name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for name, value in values.items()
            }
            for name, value in values.items():
                host[name].copy_(value.detach(), non_blocking=True)
        self._stream.synchronize()
        return host

    def _write(self, heads_h: Tensor, rows_S: Tensor, values: Rows, made: torch.cuda.Event | None = None) -> None:
        """Write; ``made`` says when the values are there, if they must be fetched from a GPU first."""
        if self._failed is not None:
            return
        try:
            if made is not None:
                values = self._fetch_back(values, made)
            values = {name: value.to(self.home) for name, value in values.items()}
            if self.place == "file":
                for name, descriptor in self._files.items():
                    data = _bytes_of(values[name].contiguous())
                    for i, head in enumerate(heads_h.tolist()):
                        _write_all(descriptor, data[i * self._block : (i + 1) * self._block], head * self._block)
            else:
                here_S = to_device(rows_S, self.home)
                for name, array in self.arrays.items():
                    array.index_copy_(0, here_S, values[name])
        except Exception as error:
            self._failed = error
            if self._worker is None:
                raise


def _bytes_of(x: Tensor) -> memoryview:
    array: Any = x.numpy()
    return memoryview(array).cast("B") if x.numel() else memoryview(b"")


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _single_threaded_worker(device: torch.device) -> ThreadPoolExecutor:
    """One background thread in which torch uses no further ones; a second team would get in the training's way.

    The number of OpenMP threads belongs to the calling thread, that of the matrix library to all; hence the reset.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="heads")
    threads = torch.get_num_threads()
    worker.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    if device.type == "cuda":
        worker.submit(torch.cuda.set_device, device).result()
    return worker


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on a CPU take up memory only where they are written, in pages of 4 KiB.

    numpy.zeros would ask for pages of 2 MiB, each cleared as a whole when the first head in it is written.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_MAP_NORESERVE if sys.platform == "linux" else 0)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_DONTFORK)  # loader processes would keep a copy of every page that is updated
    return torch.frombuffer(memory, dtype=dtype).view(shape)
