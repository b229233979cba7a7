"""Where a rank's heads are kept: arrays in device or host memory, or in files. Only reading and writing.

Every class has one row in each array: its centre, and one more for each name of optimizer state. What was never
written takes up no room.

Files have no name: they vanish with the process, and two runs may share a folder. They are read and written with
plain calls, so that a full disk is an error and the process stays small; the system's cache holds what it can.

Shapes: h heads of one request and S their classes, D embedding size.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.layout import Layout
from utils.device import to_device

Rows = dict[str, Tensor]  # array name -> (S, D)
CENTRES = "weight"
MOMENTUM = "momentum_buffer"  # the only state that a run may begin or end in the middle
_MAP_NORESERVE = 0x4000  # Linux: reserve no memory for what may never be touched


class HeadArrays(ABC):
    """The arrays of one rank.

    Args:
        layout: which classes they hold.
        width: D.
        dtype: of every array.
        home: the device that rows are read to and written from.
    """

    def __init__(self, layout: Layout, width: int, dtype: torch.dtype, home: torch.device) -> None:
        self.layout, self.width, self.dtype, self.home = layout, width, dtype, home
        self.names: list[str] = []  # the centres first

    @abstractmethod
    def add(self, name: str) -> None:
        """Add an array of zeros."""

    @abstractmethod
    def read(self, heads_h: Tensor, names: Sequence[str]) -> Rows:
        """Copies of the rows of some heads; zeros where nothing was written.

        Raises:
            OSError: the disk failed.
        """

    @abstractmethod
    def write(self, heads_h: Tensor, values: Rows) -> None:
        """Overwrite the rows of some heads in all arrays.

        Raises:
            OSError: the disk failed or is full.
        """

    def close(self) -> None:  # noqa: B027
        """Release what is held outside memory."""


class MemoryArrays(HeadArrays):
    """Tensors in the memory of the training device or the host."""

    def __init__(self, layout: Layout, width: int, dtype: torch.dtype, home: torch.device) -> None:
        super().__init__(layout, width, dtype, home)
        self.tensors: dict[str, Tensor] = {}  # name -> (classes here, D)

    def add(self, name: str) -> None:
        """See :meth:`HeadArrays.add`."""
        self.names.append(name)
        self.tensors[name] = untouched_zeros((self.layout.classes_here, self.width), self.dtype, self.home)

    def read(self, heads_h: Tensor, names: Sequence[str]) -> Rows:
        """See :meth:`HeadArrays.read`."""
        rows_S = to_device(self.layout.rows_of(heads_h), self.home)
        return {name: self.tensors[name].index_select(0, rows_S) for name in names}

    def write(self, heads_h: Tensor, values: Rows) -> None:
        """See :meth:`HeadArrays.write`."""
        rows_S = to_device(self.layout.rows_of(heads_h), self.home)
        for name, tensor in self.tensors.items():
            tensor.index_copy_(0, rows_S, values[name])


class FileArrays(HeadArrays):
    """One sparse file for each array, read and written head by head.

    Args:
        layout: which classes they hold.
        width: D.
        dtype: of every array.
        folder: where the files are made; it should be on a local disk.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, layout: Layout, width: int, dtype: torch.dtype, folder: Path) -> None:
        super().__init__(layout, width, dtype, torch.device("cpu"))
        self.folder = folder
        self.row_bytes = width * dtype.itemsize
        self.block = layout.head_size * self.row_bytes  # bytes of a whole head
        self.files: dict[str, int] = {}  # name -> descriptor
        self._closers: list[weakref.finalize[..., FileArrays]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str) -> None:
        """See :meth:`HeadArrays.add`."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(self.layout.classes_here * self.row_bytes)
            self.files[name] = os.dup(file.fileno())
        self.names.append(name)
        self._closers.append(weakref.finalize(self, os.close, self.files[name]))

    def read(self, heads_h: Tensor, names: Sequence[str]) -> Rows:
        """See :meth:`HeadArrays.read`."""
        places = self.layout.places_of(heads_h).tolist()
        for name in names if hasattr(os, "posix_fadvise") else ():
            for place in places:  # all at once, so that a disk sees the whole request
                os.posix_fadvise(self.files[name], place * self.block, self.block, os.POSIX_FADV_WILLNEED)
        rows = {}
        for name in names:
            rows[name] = torch.empty((len(self.layout.classes_of(heads_h)), self.width), dtype=self.dtype)
            data = _bytes_of(rows[name])
            for i, place in enumerate(places):
                part = data[i * self.block : (i + 1) * self.block]
                if missing := _read_all(self.files[name], part, place * self.block):
                    raise OSError(
                        f"read {len(part) - missing} of {len(part)} bytes of {name} of head {int(heads_h[i])} in "
                        f"{self.folder}"
                    )
        return rows

    def write(self, heads_h: Tensor, values: Rows) -> None:
        """See :meth:`HeadArrays.write`."""
        for name, descriptor in self.files.items():
            data = _bytes_of(values[name].contiguous())
            for i, place in enumerate(self.layout.places_of(heads_h).tolist()):
                _write_all(descriptor, data[i * self.block : (i + 1) * self.block], place * self.block)

    def close(self) -> None:
        """Close the files, which deletes them."""
        for close_file in self._closers:
            close_file()


def _bytes_of(x: Tensor) -> memoryview:
    array: Any = x.numpy()
    return memoryview(array).cast("B") if x.numel() else memoryview(b"")


def _read_all(descriptor: int, data: memoryview, offset: int) -> int:
    """Fill ``data``, in as many calls as the system needs; returns the bytes that the file lacks.

    One call reads at most 2 GiB on Linux, and a head can be longer.
    """
    while data:
        if hasattr(os, "preadv"):
            read = os.preadv(descriptor, [data], offset)
        else:
            found = os.pread(descriptor, len(data), offset)
            read = len(found)
            data[:read] = found
        if read == 0:
            break
        data, offset = data[read:], offset + read
    return len(data)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
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
