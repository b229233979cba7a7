"""Some heads as they are at one moment, written to files in another thread while training goes on changing them.

Nothing is copied at that moment: when training overwrites a head that is not on disk yet, its old rows are kept for
the writer. So memory holds the heads that one save's time touches, and not all that are saved.

Shapes: n heads of the snapshot, h heads of one block or update, S their classes.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.arrays import CENTRES, Rows
from heads.storage import HeadStorage
from utils.manifest import FileSum, SummedFile

BLOCK_BYTES = 8 * 2**20  # of one array, read at once while training waits with its own writes


class Snapshot:
    """The rows and counts of heads (n,), ascending, at the moment when this is made; one at a time for a storage.

    Raises:
        OSError: an earlier write has failed.
    """

    def __init__(self, storage: HeadStorage, heads_n: Tensor) -> None:
        storage.flush()
        self._storage, self._heads_n = storage, heads_n
        places_n = storage.layout.places_of(heads_n)
        self._counts = {name: count[places_n].numpy() for name, count in storage.counts.items()}
        self._lock = threading.Lock()  # held while a block is read, and while old rows are kept
        self._is_closed = False
        self._next = 0  # heads before it are read
        self._kept: dict[int, Rows] = {}  # number in the snapshot -> its (L, D) rows
        self._classes_per_head = storage.layout.head_size
        storage.before_write = self._keep

    def __len__(self) -> int:
        """The number of heads."""
        return len(self._heads_n)

    def write(self, folder: Path) -> dict[str, FileSum]:
        """Write it as a layer (heads/saved.py) and let go of the storage; callable in any thread.

        Returns:
            The files' sums by name.

        Raises:
            OSError: the disk failed or is full.
            FloatingPointError: a row is not finite.
        """
        try:
            folder.mkdir(parents=True)
            sums = {}
            for name, values in {"heads": self._heads_n.numpy(), **self._counts}.items():
                with SummedFile(folder / f"{name}.npy") as file:
                    _write_header(file, values.shape, values.dtype)
                    file.write(values.data)
                sums[f"{name}.npy"] = file.sum
            return sums | self._write_rows(folder)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the storage; what is still being written ends with an error."""
        with self._lock:
            self._is_closed, self._next = True, len(self._heads_n)
            self._kept.clear()
        if self._storage.before_write == self._keep:
            self._storage.before_write = None

    def _write_rows(self, folder: Path) -> dict[str, FileSum]:
        storage, layout = self._storage, self._storage.layout
        shape = (len(layout.classes_of(self._heads_n)), storage.arrays.width)
        dtype = torch.empty(0, dtype=storage.arrays.dtype).numpy().dtype
        with ExitStack() as stack:
            files = {name: stack.enter_context(SummedFile(folder / f"{name}.npy")) for name in storage.names}
            for file in files.values():
                _write_header(file, shape, dtype)
            for rows in self._blocks():
                for name, file in files.items():
                    values_SD: NDArray[np.generic] = rows[name].contiguous().numpy()
                    if not np.isfinite(values_SD).all():
                        what = "class centres" if name == CENTRES else f"{name} of class centres"
                        raise FloatingPointError(f"{what} are not finite")
                    file.write(values_SD.data)
        return {f"{name}.npy": file.sum for name, file in files.items()}

    def _blocks(self) -> Iterator[Rows]:
        """The rows on the host, block by block, in the order of the heads.

        Not yet run on a GPU: this thread and training share the default stream there, which keeps their order.
        """
        arrays, L = self._storage.arrays, self._classes_per_head
        at_once = max(1, BLOCK_BYTES // (L * arrays.width * arrays.dtype.itemsize))
        for start in range(0, len(self._heads_n), at_once):
            heads_h = self._heads_n[start : start + at_once]
            with self._lock:
                if self._is_closed:
                    raise OSError(errno.ECANCELED, "given up")
                rows = {name: value.cpu() for name, value in arrays.read(heads_h, arrays.names).items()}
                kept = [
                    (number, self._kept.pop(number))
                    for number in range(start, start + len(heads_h))
                    if number in self._kept
                ]
                self._next = start + len(heads_h)
            for number, old in kept:
                first = (number - start) * L
                for name, value in old.items():
                    rows[name][first : first + len(value)] = value
            yield rows

    def _keep(self, heads_h: Tensor) -> None:
        """Keep the rows of heads that are about to be overwritten and not read yet."""
        with self._lock:
            if self._next == len(self._heads_n):
                return
            number_h = torch.searchsorted(self._heads_n, heads_h).clamp(max=len(self._heads_n) - 1)
            is_here_h = (self._heads_n[number_h] == heads_h) & (number_h >= self._next)
            wanted = [number for number in number_h[is_here_h].tolist() if number not in self._kept]
            if not wanted:
                return
            layout = self._storage.layout
            kept_h = self._heads_n[wanted]
            rows = {
                name: value.cpu() for name, value in self._storage.arrays.read(kept_h, self._storage.names).items()
            }
            for i, number in enumerate(wanted):
                own = slice(i * layout.head_size, (i + 1) * layout.head_size)  # shorter for the last head of all
                self._kept[number] = {name: value[own] for name, value in rows.items()}


def _write_header(file: SummedFile, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
