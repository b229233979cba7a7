"""Some heads as they are at one moment, written to files in another thread while training goes on changing them.

At that moment the heads' counts are copied, and no rows: when training overwrites a head that is not on disk yet, its
old rows are kept for the writer. So memory holds the heads that one save's time touches, and not all that are saved.

Shapes: H heads of this rank, n heads of the snapshot, h heads of one block or update, S their classes.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
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
    """The rows and counts of some heads at the moment when this is made; one at a time for a storage.

    Training waits for it, so what can be worked out later is left to the thread that writes.

    Args:
        storage: the heads of this rank.
        is_taken_H: which of them; it must not change after.

    Raises:
        OSError: an earlier write has failed.
    """

    def __init__(self, storage: HeadStorage, is_taken_H: Tensor) -> None:
        storage.flush()
        self._storage, self._is_taken_H = storage, is_taken_H
        self.counts = {name: count_H.clone() for name, count_H in storage.counts.items()}
        self._lock = threading.Lock()  # held while a block is read, and while old rows are kept
        self._is_closed = False
        self._next = 0  # heads at places before it are read
        self._kept: dict[int, Rows] = {}  # place of a head -> its (L, D) rows
        self._classes_per_head = storage.layout.head_size
        storage.before_write = self._keep

    def __len__(self) -> int:
        """The number of heads."""
        return int(self._is_taken_H.count_nonzero())

    @cached_property
    def _heads_n(self) -> Tensor:
        """Ascending."""
        return self._storage.layout.heads_at(self._is_taken_H.nonzero().squeeze(1))

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
            sums, places_n = {}, self._storage.layout.places_of(self._heads_n)
            counts = {name: count_H[places_n].numpy() for name, count_H in self.counts.items()}
            for name, values in {"heads": self._heads_n.numpy(), **counts}.items():
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
            self._is_closed, self._next = True, len(self._is_taken_H)
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

        On a GPU this thread and training share the default stream, which keeps their order.
        """
        arrays, L = self._storage.arrays, self._classes_per_head
        at_once = max(1, BLOCK_BYTES // (L * arrays.width * arrays.dtype.itemsize))
        for start in range(0, len(self._heads_n), at_once):
            heads_h = self._heads_n[start : start + at_once]
            places = self._storage.layout.places_of(heads_h).tolist()
            with self._lock:
                if self._is_closed:
                    raise OSError(errno.ECANCELED, "given up")
                rows = {name: value.cpu() for name, value in arrays.read(heads_h, arrays.names).items()}
                kept = [(i, self._kept.pop(place)) for i, place in enumerate(places) if place in self._kept]
                self._next = places[-1] + 1
            for i, old in kept:
                for name, value in old.items():
                    rows[name][i * L : i * L + len(value)] = value
            yield rows

    def _keep(self, heads_h: Tensor) -> None:
        """Keep the rows of heads that are about to be overwritten and not read yet."""
        layout, arrays = self._storage.layout, self._storage.arrays
        places_h = layout.places_of(heads_h)
        with self._lock:
            is_due_h = self._is_taken_H[places_h] & (places_h >= self._next)
            wanted = [place for place in places_h[is_due_h].tolist() if place not in self._kept]
            if not wanted:
                return
            kept_h = layout.heads_at(torch.tensor(wanted))
            rows = {name: value.cpu() for name, value in arrays.read(kept_h, arrays.names).items()}
            for i, place in enumerate(wanted):
                own = slice(i * layout.head_size, (i + 1) * layout.head_size)  # shorter for the last head of all
                self._kept[place] = {name: value[own] for name, value in rows.items()}


def _write_header(file: SummedFile, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
