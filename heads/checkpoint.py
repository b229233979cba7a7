"""The classifier in a checkpoint: every rank writes the heads that it has updated, any number of ranks read them.

The files are described in heads/saved.py. Heads never updated are left out. A checkpoint after the first one of a
process holds the heads changed since the one before, and links to the files of that one, so that each folder is whole
and may be copied or removed by itself.

Shapes: H heads of this rank, h heads of one block, L classes per head.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heads.arrays import CENTRES, MOMENTUM
from heads.saved import Layer, SavedHeads
from heads.shard import HeadShard
from heads.snapshot import Snapshot
from heads.storage import LAST_STEP, VISITS
from utils.atomic import sync_file, sync_folder
from utils.distributed import get_rank, get_world_size
from utils.log import log
from utils.manifest import DamagedError, FileSum

BLOCK_BYTES = 64 * 2**20  # of one array in memory at once
FULL_FROM = 0.5  # share of the updated heads from which writing the changed ones alone is not worth it


@dataclass
class _Written:
    """A checkpoint's part of this rank."""

    folder: Path
    sums: dict[str, FileSum]  # of its files, by their names in it
    visits_H: Tensor  # as saved
    layers: int


@dataclass(frozen=True)
class HeadPart:
    """What a rank has written."""

    sums: dict[str, FileSum]  # by the files' names below heads/
    written: _Written

    @property
    def is_full(self) -> bool:
        """Whether it shares no file with an earlier checkpoint."""
        return self.written.layers == 1


@dataclass(frozen=True)
class HeadSave:
    """A save that has begun; :meth:`write` may run in any thread, :meth:`close` must be called in the end."""

    snapshot: Snapshot
    last: _Written | None  # what it builds on

    def write(self, folder: Path) -> HeadPart:
        """Write this rank's part below ``folder``, a checkpoint's heads/.

        Raises:
            OSError: the disk is full or not writable.
            FloatingPointError: rows are not finite.
        """
        name = f"rank_{get_rank()}_of_{get_world_size()}"
        mine, done = folder / name, 0 if self.last is None else self.last.layers
        mine.mkdir(parents=True)
        sums = {} if self.last is None else _link(self.last, mine)
        if self.last is None or len(self.snapshot):
            sums |= {f"layer_{done}/{file}": own for file, own in self.snapshot.write(mine / f"layer_{done}").items()}
        for written in (folder, mine, *(child for child in mine.iterdir() if child.is_dir())):
            sync_folder(written)
        written_part = _Written(mine, sums, self.snapshot.counts[VISITS], done + 1)
        return HeadPart({f"{name}/{file}": own for file, own in sums.items()}, written_part)

    def close(self) -> None:
        """Let go of the heads."""
        self.snapshot.close()


@dataclass
class HeadSaver:
    """Writes this rank's part of one checkpoint after the other.

    Args:
        shard: whose heads are saved.
        full_every: of so many checkpoints one holds all updated heads anew; 1: each.
    """

    shard: HeadShard
    full_every: int = 1
    _last: _Written | None = field(default=None, init=False)

    def wants_all(self) -> bool:
        """Whether all updated heads are to be written anew, on every rank if on one."""
        visits_H, last = self.shard.visits, self._last
        return (
            last is None
            or last.layers >= self.full_every
            or int((visits_H != last.visits_H).count_nonzero()) > FULL_FROM * int(visits_H.count_nonzero())
            or not last.folder.is_dir()
        )

    def begin(self, all_heads: bool) -> HeadSave:
        """Hold on to the heads as they are: all updated ones, or those changed since the last checkpoint.

        Raises:
            OSError: an earlier write of heads has failed.
        """
        visits_H, last = self.shard.visits, None if all_heads else self._last
        is_taken_H = visits_H > 0 if last is None else visits_H != last.visits_H
        return HeadSave(Snapshot(self.shard.storage, is_taken_H), last)

    def finish(self, part: HeadPart, folder: Path) -> None:
        """The checkpoint is complete and its heads/ is ``folder``: the next one builds on it."""
        self._last = part.written
        self._last.folder = folder / self._last.folder.name


def save_heads(shard: HeadShard, folder: Path) -> dict[str, FileSum]:
    """Write this rank's updated heads below ``folder``, a checkpoint's heads/; returns the files' sums.

    Raises:
        OSError: the disk is full or not writable.
        FloatingPointError: rows are not finite.
    """
    save = HeadSaver(shard).begin(all_heads=True)
    try:
        return save.write(folder).sums
    finally:
        save.close()


def load_heads(shard: HeadShard, saved: SavedHeads) -> None:
    """Restore this rank's heads, written by any number of ranks.

    Raises:
        DamagedError: a file is not what was written, named.
        ValueError: it was written with another optimizer or number type.
    """
    if not saved.layers:  # nothing of this rank's was ever updated
        return
    states = {name for name in shard.storage.names if name != CENTRES}
    if not saved.state_names ^ states <= {MOMENTUM}:
        raise ValueError(
            f"the checkpoint's classifier has {', '.join(sorted(saved.state_names)) or 'no state'}, this run needs "
            f"{', '.join(sorted(states)) or 'none'}: it was written with another optimizer; set it back, or start a "
            "new run from its model.pt with init_backbone"
        )
    for layer in saved.layers:
        _load_layer(shard, layer)
        layer.forget()
    if MOMENTUM in saved.state_names - states:
        log.info("the checkpoint's momentum of the classifier's rows is dropped: this run uses none")
    if MOMENTUM in states - saved.state_names:
        log.info("the checkpoint holds no momentum of the classifier's rows: it starts from 0")


def _load_layer(shard: HeadShard, layer: Layer) -> None:
    storage, layout, L = shard.storage, shard.layout, shard.layout.head_size
    first, last = np.searchsorted(layer.heads_n, [layout.head_start, layout.head_end]).tolist()
    at_once = max(1, BLOCK_BYTES // (L * shard.embedding_size * shard.dtype.itemsize))
    for start in range(first, last, at_once):
        end = min(start + at_once, last)
        heads_h = torch.from_numpy(layer.heads_n[start:end])
        rows = len(layout.classes_of(heads_h))
        values = {}
        for name in storage.names:
            if name not in layer.arrays:
                values[name] = torch.zeros((rows, shard.embedding_size), dtype=shard.dtype)
                continue
            values[name] = torch.from_numpy(layer.arrays[name].rows(start * L, start * L + rows))
            if values[name].dtype != shard.dtype:
                raise ValueError(
                    f"{layer.path} holds {values[name].dtype}, this run computes in {shard.dtype}: it is of another "
                    "version; export its centres with tools.export_centers"
                )
            if not values[name].isfinite().all():
                raise DamagedError(f"{layer.arrays[name].path} is of no use: it holds values that are not finite")
        counts = {VISITS: torch.from_numpy(layer.counts[VISITS][start:end])}
        if LAST_STEP in storage.counts:
            counts[LAST_STEP] = torch.full_like(counts[VISITS], shard.steps)  # as if updated just now
            if LAST_STEP in layer.counts:
                counts[LAST_STEP] = torch.from_numpy(layer.counts[LAST_STEP][start:end])
        storage.restore(heads_h, values, counts)
        storage.flush()


def _link(last: _Written, mine: Path) -> dict[str, FileSum]:
    """Give the files of an earlier checkpoint names in this one too; copies where the file system has no links."""
    for file in last.sums:
        source, target = last.folder / file, mine / file
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
            sync_file(target)
    return dict(last.sums)
