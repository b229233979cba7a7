"""The classifier in a checkpoint: every rank writes the heads that it has updated, any number of ranks read them.

``heads/rank_R_of_W/`` holds ``heads.npy`` (global head numbers, ascending), ``visits.npy`` (their updates) and, for
the centres and each optimizer state, ``NAME.npy`` with one row per class. Heads without an update are not there:
their values follow from the seed. Saving and loading go head block by head block, so that memory stays small.

Shapes: n heads, L classes per head, D embedding size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from partial_fc_mhs import PartialFCMHS
from utils.distributed import get_rank, get_world_size

BLOCK_BYTES = 64 * 2**20  # of one array in memory at once


def save_heads(head: PartialFCMHS, folder: Path) -> None:
    """Write this rank's updated heads below ``folder``.

    Raises:
        OSError: the disk is full or not writable.
    """
    storage = head.storage
    storage.flush()
    mine = folder / f"rank_{get_rank()}_of_{get_world_size()}"
    mine.mkdir(parents=True)
    heads_n = storage.visits.nonzero().squeeze(1)
    rows = sum(len(_rows_of(head, chunk)) for chunk in heads_n.split(_heads_at_once(head)))
    _write_npy(mine / "heads.npy", (len(heads_n),), iter([(heads_n + head.head_start).numpy()]))
    _write_npy(mine / "visits.npy", (len(heads_n),), iter([storage.visits[heads_n].numpy()]))
    for name in storage.names:
        _write_npy(mine / f"{name}.npy", (rows, head.embedding_size), _blocks(head, heads_n, name))


def load_heads(head: PartialFCMHS, folder: Path) -> None:
    """Take over this rank's share of the heads below ``folder``, written by any number of ranks.

    Raises:
        ValueError: files are missing or damaged, or were written with another optimizer or number type.
    """
    parts = sorted(folder.glob("rank_*_of_*"), key=lambda path: int(path.name.split("_")[1]))
    if not parts or len(parts) != int(parts[0].name.split("_")[3]):
        raise ValueError(f"{folder} holds {len(parts)} ranks' heads, not all; resume from an older checkpoint")
    for part in parts:
        try:
            _load_part(head, part)
        except (OSError, EOFError) as error:
            raise ValueError(f"{part} cannot be read ({error}); resume from an older checkpoint") from error


def _load_part(head: PartialFCMHS, part: Path) -> None:
    storage, L = head.storage, head.head_size
    arrays = {
        path.stem: np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None) for path in part.glob("*.npy")
    }
    heads_n, visits_n = arrays.pop("heads"), arrays.pop("visits")
    if set(arrays) != set(storage.names):
        raise ValueError(
            f"{part} holds {', '.join(sorted(arrays))}, this run needs {', '.join(sorted(storage.names))}: it was "
            "written with another optimizer"
        )
    first, last = np.searchsorted(heads_n, [head.head_start, head.head_end])
    for start in range(first, last, _heads_at_once(head)):
        end = min(start + _heads_at_once(head), last)
        heads_h = torch.from_numpy(np.array(heads_n[start:end])) - head.head_start
        values = {}
        for name, array in arrays.items():
            block = torch.from_numpy(np.array(array[start * L : end * L]))
            if block.dtype != head.dtype:
                raise ValueError(f"{part} holds {block.dtype}, this run computes in {head.dtype}")
            values[name] = block
        visits_h = torch.from_numpy(np.array(visits_n[start:end]))
        storage.restore(heads_h, _rows_of(head, heads_h), values, visits_h)
        storage.flush()


def _heads_at_once(head: PartialFCMHS) -> int:
    return max(1, BLOCK_BYTES // (head.head_size * head.embedding_size * head.dtype.itemsize))


def _rows_of(head: PartialFCMHS, heads_h: torch.Tensor) -> torch.Tensor:
    """Local class numbers of some heads, given by their local numbers."""
    return head.shard.classes_of(heads_h + head.head_start) - head.class_start


def _blocks(head: PartialFCMHS, heads_n: torch.Tensor, name: str) -> Iterator[NDArray[np.generic]]:
    for heads_h in heads_n.split(_heads_at_once(head)):
        fetch = head.storage.fetch(heads_h, _rows_of(head, heads_h), [name])
        yield head.storage.take(fetch)[name].cpu().numpy()


def _write_npy(path: Path, shape: tuple[int, ...], blocks: Iterator[NDArray[np.generic]]) -> None:
    """Write an array block by block, with plain writes: a full disk is an error, not a crash."""
    with path.open("wb") as file:
        first = next(blocks, np.empty((0, *shape[1:]), np.float32))
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(first.tobytes())
        for block in blocks:
            file.write(block.tobytes())
        file.flush()
        os.fsync(file.fileno())
