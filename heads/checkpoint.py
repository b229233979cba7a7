"""The classifier in a checkpoint: every rank writes the heads that it has updated, any number of ranks read them.

``heads/rank_R_of_W/`` holds ``heads.npy`` (head numbers, ascending), ``visits.npy`` (their updates), for optimizers
that ask for it ``last_step.npy`` (the step of the last one) and, for the centres and each optimizer state,
``NAME.npy`` with one row per class. Heads never updated are left out: their values follow from the seed. Heads are
saved and loaded block by block, so that memory stays small.

Shapes: n heads of one part, L classes per head, D embedding size, C classes, m classes of one block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.arrays import CENTRES, MOMENTUM
from heads.shard import HeadShard, first_centres
from heads.storage import LAST_STEP, VISITS
from utils.distributed import get_rank, get_world_size
from utils.log import log

BLOCK_BYTES = 64 * 2**20  # of one array in memory at once
MERGED_BLOCK_BYTES = 16 * 2**20  # of centres; making initial ones takes about ten times as much
_HEADER_BYTES = 128  # of an .npy file; one without rows cannot be mapped


@dataclass(frozen=True)
class Part:
    """What one rank wrote; the large arrays are mapped, not read."""

    path: Path
    heads_n: NDArray[np.int64]  # the updated heads, ascending
    visits_n: NDArray[np.int32]  # their updates
    last_step_n: NDArray[np.int32] | None  # steps up to the last one, where they were counted
    arrays: dict[str, NDArray[Any]]  # name -> L rows for each of them, fewer for the last head of all

    @property
    def centres(self) -> NDArray[Any]:
        """The centres, (rows, D)."""
        return self.arrays[CENTRES]


def save_heads(shard: HeadShard, folder: Path) -> None:
    """Write this rank's updated heads below ``folder``.

    Raises:
        OSError: the disk is full or not writable.
    """
    storage, layout = shard.storage, shard.layout
    storage.flush()
    mine = folder / f"rank_{get_rank()}_of_{get_world_size()}"
    mine.mkdir(parents=True)
    places_n = storage.visits.nonzero().squeeze(1)
    heads_n = layout.heads_at(places_n)
    rows = sum(len(layout.classes_of(heads_h)) for heads_h in heads_n.split(_heads_at_once(shard)))
    _write_npy(mine / "heads.npy", (len(heads_n),), iter([heads_n.numpy()]))
    for name, count in storage.counts.items():
        _write_npy(mine / f"{name}.npy", (len(heads_n),), iter([count[places_n].numpy()]))
    for name in storage.names:
        _write_npy(mine / f"{name}.npy", (rows, shard.embedding_size), _blocks(shard, heads_n, name))


def load_heads(shard: HeadShard, folder: Path) -> None:
    """Restore this rank's heads from those below ``folder``, written by any number of ranks.

    Raises:
        ValueError: files are missing or damaged, or were written with another optimizer or number type.
    """
    parts = read_parts(folder)
    for part in parts:
        try:
            _load_part(shard, part)
        except (OSError, EOFError) as error:
            raise ValueError(f"{part.path} cannot be read ({error}); use an older checkpoint") from error
    _log_momentum(shard, parts)


def read_parts(folder: Path) -> list[Part]:
    """Open the parts that the ranks left, in the order of their heads.

    Raises:
        ValueError: a part is missing or damaged.
    """
    paths = sorted(folder.glob("rank_*_of_*"), key=lambda path: int(path.name.split("_")[1]))
    if not paths or len(paths) != int(paths[0].name.split("_")[3]):
        raise ValueError(f"{folder} holds {len(paths)} ranks' heads, not all; use an older checkpoint")
    parts = []
    for path in paths:
        try:
            arrays = {
                file.stem: np.load(file, mmap_mode="r" if file.stat().st_size > _HEADER_BYTES else None)
                for file in path.glob("*.npy")
            }
            heads_n, visits_n = (np.array(arrays.pop(name)) for name in ("heads", VISITS))
            last_step_n = np.array(arrays.pop(LAST_STEP)) if LAST_STEP in arrays else None
            parts.append(Part(path, heads_n, visits_n, last_step_n, arrays))
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise ValueError(f"{path} cannot be read ({error}); use an older checkpoint") from error
    return parts


def merged_blocks(
    parts: Sequence[Part], settings: dict[str, int]
) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
    """Yield consecutive classes' centres (m, D), and the updates of their heads (m,), until all C are done.

    Args:
        parts: of every rank.
        settings: the classifier's num_classes, head_size, embedding_size and seed.
    """
    C, L, D, seed = (settings[name] for name in ("num_classes", "head_size", "embedding_size", "seed"))
    dtype = torch.from_numpy(np.empty(0, centres_dtype(parts))).dtype
    heads_at_once = max(1, MERGED_BLOCK_BYTES // (L * D * dtype.itemsize))
    for first_head in range(0, -(-C // L), heads_at_once):
        start, end = first_head * L, min((first_head + heads_at_once) * L, C)
        rows_mD = first_centres(seed, torch.arange(start, end), D, dtype).numpy()
        visits_m = np.zeros(end - start, np.int32)
        for part in parts:
            low, high = np.searchsorted(part.heads_n, [first_head, first_head + heads_at_once])
            if low == high:
                continue
            classes = (part.heads_n[low:high, None] * L + np.arange(L)).ravel()
            classes = classes[classes < C] - start
            rows_mD[classes] = part.centres[low * L : low * L + len(classes)]
            visits_m[classes] = np.repeat(part.visits_n[low:high], L)[: len(classes)]
        yield rows_mD, visits_m


def centres_dtype(parts: Sequence[Part]) -> np.dtype[Any]:
    """The centres' number type; a part without heads cannot tell it."""
    return next((part.centres.dtype for part in parts if len(part.heads_n)), np.dtype(np.float32))


def _load_part(shard: HeadShard, part: Part) -> None:
    storage, layout, L = shard.storage, shard.layout, shard.layout.head_size
    if not set(part.arrays) ^ set(storage.names) <= {MOMENTUM}:
        raise ValueError(
            f"{part.path} holds {', '.join(sorted(part.arrays))}, this run needs {', '.join(sorted(storage.names))}: "
            "it was written with another optimizer"
        )
    first, last = np.searchsorted(part.heads_n, [layout.head_start, layout.head_end])
    for start in range(first, last, _heads_at_once(shard)):
        end = min(start + _heads_at_once(shard), last)
        values = {}
        for name in set(part.arrays) & set(storage.names):
            values[name] = torch.from_numpy(np.array(part.arrays[name][start * L : end * L]))
            if values[name].dtype != shard.dtype:
                raise ValueError(f"{part.path} holds {values[name].dtype}, this run computes in {shard.dtype}")
        for name in set(storage.names) - set(part.arrays):
            values[name] = torch.zeros_like(values[CENTRES])
        counts = {VISITS: torch.from_numpy(part.visits_n[start:end])}
        if LAST_STEP in storage.counts:
            counts[LAST_STEP] = torch.full_like(counts[VISITS], shard.steps)  # as if updated just now
            if part.last_step_n is not None:
                counts[LAST_STEP] = torch.from_numpy(part.last_step_n[start:end])
        storage.restore(torch.from_numpy(part.heads_n[start:end]), values, counts)
        storage.flush()


def _log_momentum(shard: HeadShard, parts: Sequence[Part]) -> None:
    """Say it where only one of the checkpoint and the run has momentum of the rows."""
    saved, used = MOMENTUM in parts[0].arrays, MOMENTUM in shard.storage.names
    if saved and not used:
        log.info("the checkpoint's momentum of the classifier's rows is dropped: this run uses none")
    if used and not saved:
        log.info("the checkpoint holds no momentum of the classifier's rows: it starts from 0")


def _heads_at_once(shard: HeadShard) -> int:
    return max(1, BLOCK_BYTES // (shard.layout.head_size * shard.embedding_size * shard.dtype.itemsize))


def _blocks(shard: HeadShard, heads_n: Tensor, name: str) -> Iterator[NDArray[np.generic]]:
    for heads_h in heads_n.split(_heads_at_once(shard)):
        yield shard.storage.take(shard.storage.fetch(heads_h, [name]))[name].cpu().numpy()


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
