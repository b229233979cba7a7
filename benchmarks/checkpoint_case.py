"""One configuration of the checkpoint benchmark, measured in a process of its own.

``bench_checkpoint.py`` starts this file once for each configuration and round, with the case as JSON.

Shapes: B batch, n visited heads, L classes per head, S = n * L their classes, D embedding size, C classes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.classifier_case import Case, Record, Rig, Storage
from benchmarks.machine import usable_cores
from heads.arrays import Rows
from heads.checkpoint import load_heads
from heads.shard import HeadShard
from heads.storage import VISITS
from training.checkpoint import open_saved_heads
from training.saving import Saver
from utils.device import prepare_device
from utils.manifest import CHUNK

PIECE = 8 * 2**20  # bytes of one plain read or write
MOST_STEPS = 20_000  # during one save
SAVES = 2  # during training


@dataclass(frozen=True)
class CheckpointCase:
    """One configuration, as its process gets it."""

    storage: Storage
    classes: int
    row_momentum: float
    share: float  # of the heads, visited
    head_size: int
    batch: int
    dim: int
    steps: int  # from a full checkpoint to an incremental one
    folder: str  # where everything is written
    quiet_steps: int  # before a save during training; their median is what steps take without one
    threads: int  # of the products; 0: torch's choice
    dcp_first: bool = False  # a disk is not equally fast all the time: which of the two comes first

    @property
    def heads(self) -> int:
        """Visited heads."""
        return max(1, round(self.share * -(-self.classes // self.head_size)))

    @property
    def row_bytes(self) -> int:
        """Of the visited heads' rows, in all arrays."""
        return 4 * self.heads * self.head_size * self.dim * (2 if self.row_momentum else 1)

    def __str__(self) -> str:
        return f"{self.storage}, {self.classes:,} classes, {self.share:.0%} visited, momentum {self.row_momentum:g}"

    def rig(self) -> Rig:
        """A new classifier with its optimizer."""
        case = Case(
            "mhs", self.storage, self.classes, self.head_size, self.batch, self.dim, 1, "none", 0, 0, False, 0, 0.0
        )
        return Rig(Case(**{**asdict(case), "folder": self.folder, "row_momentum": self.row_momentum}))


class Visited:
    """The heads that a case visits, and labels from them."""

    def __init__(self, case: CheckpointCase) -> None:
        self.case, self.rng = case, np.random.default_rng(0)
        self.heads_n = self.rng.choice(-(-case.classes // case.head_size), case.heads, replace=False)

    def once(self) -> list[Tensor]:
        """Batches (B,) that together visit each head once."""
        B = self.case.batch
        padded = np.resize(self.heads_n, -(-len(self.heads_n) // B) * B)  # the last one begins anew
        return [torch.from_numpy(labels) for labels in (padded * self.case.head_size).reshape(-1, B)]

    def draw(self, steps: int) -> list[Tensor]:
        """Batches (B,) drawn evenly from their classes."""
        size = (steps, self.case.batch)
        labels = self.rng.choice(self.heads_n, size) * self.case.head_size
        labels = np.minimum(labels + self.rng.integers(0, self.case.head_size, size), self.case.classes - 1)
        return [torch.from_numpy(one) for one in labels]


def measure(case: CheckpointCase) -> Record:
    """Run one configuration in this process; what is measured more than once is a list."""
    prepare_device(torch.device("cpu"))
    torch.set_num_threads(case.threads or torch.get_num_threads())
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="torch.distributed")  # it says that there is one process
    visited, rig = Visited(case), case.rig()
    rig.run(visited.once())
    record: Record = {**asdict(case), "row_bytes": case.row_bytes, "plain_write_s": [], "plain_read_s": []}
    del record["folder"]
    record |= {"threads": torch.get_num_threads(), "cores": usable_cores()}
    with tempfile.TemporaryDirectory(dir=case.folder, prefix="checkpoint_") as name:
        folder = Path(name)

        def plain() -> None:
            write_plainly(folder / "plain", case.row_bytes, record["plain_write_s"])
            record["cold_reads"] = read_plainly(folder / "plain", record["plain_read_s"])

        parts: list[Callable[[], Record]] = [
            lambda: without_training(case, visited, rig, folder / "run"),
            lambda: with_dcp(case, rig, folder / "dcp"),
        ]
        plain()
        for part in reversed(parts) if case.dcp_first else parts:
            record |= part()
            plain()
        record |= checksum() | during_training(case, visited, rig, folder)
    rig.close()
    return record


def write_plainly(path: Path, size: int, took: list[float]) -> None:
    """Write a file in sequence with plain calls, until it is on disk."""
    data = np.random.default_rng(1).bytes(PIECE)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, PIECE):
            file.write(data[: size - start])
        os.fsync(file.fileno())
    took.append(time.perf_counter() - started)


def read_plainly(path: Path, took: list[float]) -> bool:
    """Read a file in sequence, and remove it; whether the system was told to forget it before."""
    is_cold = drop_from_cache([path])
    buffer = bytearray(PIECE)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    took.append(time.perf_counter() - started)
    path.unlink()
    return is_cold


def checksum() -> Record:
    """Speed of the checksum in memory, in chunks as files are summed, by CPU time."""
    data = memoryview(np.random.default_rng(2).bytes(32 * CHUNK))
    began_s = time.thread_time()
    for start in range(0, len(data), CHUNK):
        zlib.crc32(data[start : start + CHUNK])
    return {"crc32_gb_per_s": len(data) / 1e9 / (time.thread_time() - began_s)}


def without_training(case: CheckpointCase, visited: Visited, rig: Rig, run: Path) -> Record:
    """A full save, its load, and an incremental save some steps later, while nothing else goes on."""
    shard = shard_of(rig)
    saver = Saver(run, shard, keep=3, full_every=100)
    save(saver, shard, 0)  # a process writes its first two in full: the second is measured
    shutil.rmtree(run / "checkpoints" / "step_0")
    cpu_s = time.process_time()
    full_s = seconds(lambda: save(saver, shard, 1))
    cpu_s = time.process_time() - cpu_s
    first, second = run / "checkpoints" / "step_1", run / "checkpoints" / "step_2"
    full_bytes, full_disk_bytes = bytes_of(first), disk_bytes([first])
    drop_from_cache(files_in(first))
    loaded = case.rig()
    load_s = seconds(lambda: load(shard_of(loaded), first))
    same_rows(shard, shard_of(loaded))
    loaded.close()
    rig.run(visited.draw(case.steps))
    incremental_s = seconds(lambda: save(saver, shard, 2))
    own = [path for path in files_in(second) if path.stat().st_nlink == 1]
    saver.close()
    both_disk_bytes, incremental_bytes = disk_bytes([first, second]), sum(path.stat().st_size for path in own)
    shutil.rmtree(run)
    return {
        "full_bytes": full_bytes,
        "full_save_s": full_s,
        "full_save_cpu_s": cpu_s,
        "load_s": load_s,
        "incremental_bytes": incremental_bytes,
        "incremental_save_s": incremental_s,
        "full_disk_bytes": full_disk_bytes,
        "both_disk_bytes": both_disk_bytes,
    }


def with_dcp(case: CheckpointCase, rig: Rig, folder: Path) -> Record:
    """The same rows by torch.distributed.checkpoint, which needs them in memory, as one tensor for each array."""
    shard = shard_of(rig)
    heads_n = shard.layout.heads_at((shard.visits > 0).nonzero().squeeze(1))
    copied: list[Rows] = []
    copy_s = seconds(lambda: copied.append(shard.storage.arrays.read(heads_n, shard.storage.names)))
    state = {"heads": heads_n, VISITS: shard.visits[shard.layout.places_of(heads_n)], **copied.pop()}
    cpu_s = time.process_time()
    save_s = seconds(partial(dcp_save, state, checkpoint_id=folder))
    cpu_s = time.process_time() - cpu_s
    size = bytes_of(folder)
    drop_from_cache(files_in(folder))
    shapes = {name: (value.shape, value.dtype) for name, value in state.items()}
    del state  # before as much is taken again
    into = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    loaded = case.rig()

    def restore() -> None:
        dcp_load(into, checkpoint_id=folder)
        counts, storage = {VISITS: into.pop(VISITS)}, shard_of(loaded).storage
        storage.restore(into.pop("heads"), into, counts)
        storage.flush()

    load_s = seconds(restore)
    same_rows(shard, shard_of(loaded))
    loaded.close()
    for path in files_in(folder):
        path.unlink()
    return {"copy_s": copy_s, "dcp_save_s": save_s, "dcp_save_cpu_s": cpu_s, "dcp_load_s": load_s, "dcp_bytes": size}


def during_training(case: CheckpointCase, visited: Visited, rig: Rig, folder: Path) -> Record:
    """Full saves while steps go on: how long these are held up, what they take then, and beside a plain write."""
    shard = shard_of(rig)
    saver = Saver(folder / "during", shard, keep=1)
    found: dict[str, list[float]] = {}
    for step in range(SAVES):
        quiet_s = run(found, "", rig, visited.draw(case.quiet_steps))
        began = time.perf_counter()
        begin_s = seconds(partial(saver.begin, step, {"head": shard.settings()}, None))
        run(found, "busy_", rig, visited.draw(MOST_STEPS), lambda: saver.is_writing)
        found.setdefault("during_s", []).append(time.perf_counter() - began)
        finish_s = seconds(saver.finish)
        held = {"begin_ms": begin_s * 1e3, "finish_ms": finish_s * 1e3, "held_steps": (begin_s + finish_s) / quiet_s}
        for name, value in held.items():
            found.setdefault(name, []).append(value)

        run(found, "", rig, visited.draw(case.quiet_steps))
        arguments = (folder / "plain", case.row_bytes, found.setdefault("plain_during_s", []))
        writer = threading.Thread(target=write_plainly, args=arguments)
        writer.start()
        run(found, "plain_", rig, visited.draw(MOST_STEPS), writer.is_alive)
        writer.join()
        (folder / "plain").unlink()
    saver.close()
    return dict(found)


def run(
    found: dict[str, list[float]],
    kind: str,
    rig: Rig,
    batches: Sequence[Tensor],
    goes_on: Callable[[], bool] = lambda: True,
) -> float:
    """Make steps, and keep their median, longest and number, and the mean CPU time of this thread; the median, s."""
    cpu_s = time.thread_time()
    took_s = rig.run(batches, goes_on)
    cpu_s = time.thread_time() - cpu_s
    median_s = float(np.median(took_s))
    values = {
        "step_ms": median_s * 1e3,
        "longest_ms": max(took_s) * 1e3,
        "steps": len(took_s),
        "cpu_ms": cpu_s / len(took_s) * 1e3,
    }
    for name, value in values.items():
        found.setdefault(f"{kind or 'quiet_'}{name}", []).append(value)
    return median_s


def save(saver: Saver, shard: HeadShard, step: int) -> None:
    """Save the classifier and wait for it."""
    saver.begin(step, {"head": shard.settings()}, None)
    saver.finish()


def load(shard: HeadShard, checkpoint: Path) -> None:
    """Load a checkpoint's heads, checked."""
    load_heads(shard, open_saved_heads(checkpoint))


def same_rows(one: HeadShard, other: HeadShard) -> None:
    """RuntimeError unless visits, and the rows of some of the visited heads, are equal to the bit."""
    heads_n = one.layout.heads_at((one.visits > 0).nonzero().squeeze(1))
    heads_n = heads_n[:: max(1, len(heads_n) // 1000)]
    rows, others = (shard.storage.arrays.read(heads_n, shard.storage.names) for shard in (one, other))
    if not torch.equal(one.visits, other.visits) or not all(torch.equal(rows[name], others[name]) for name in rows):
        raise RuntimeError("what was loaded differs from what was saved")


def shard_of(rig: Rig) -> HeadShard:
    """The heads of a rig."""
    assert rig.ours is not None
    return rig.ours.shard


def seconds(do: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def files_in(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def bytes_of(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in files_in(folder))


def disk_bytes(folders: Sequence[Path]) -> int:
    """What files below the folders take on disk; one with several names is counted once, as by du."""
    found = {(s.st_dev, s.st_ino): s.st_blocks * 512 for one in folders for s in map(os.stat, files_in(one))}
    return sum(found.values())


def drop_from_cache(paths: Iterable[Path]) -> bool:
    """Let the system forget what it holds of files that are on disk; False where it has no way to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


if __name__ == "__main__":
    print(json.dumps(measure(CheckpointCase(**json.loads(sys.argv[1])))))
