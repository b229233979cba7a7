"""One configuration of the classifier benchmark, measured in a process of its own.

``bench_classifier.py`` starts this file once for each configuration and rank, with the case as JSON.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, L classes per head, S selected classes
of one rank.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.baselines import DenseMHS, DensePartialFC, FullSoftmax, NormalisedMHS
from benchmarks.machine import peak_mib
from heads.optim import RowSGD
from losses import ArcFace
from partial_fc_mhs import PartialFCMHS
from utils.device import prepare_device
from utils.distributed import all_reduce_sum_, barrier, broadcast_object, close_ranks, init_ranks

Record = dict[str, Any]
Storage = Literal["device", "host", "file"]

METHODS = ("mhs", "mhs_dense", "mhs_normalised", "partial_fc", "full_softmax")
STORAGES = ("device", "host", "file")
SAMPLE_RATE = 0.1  # of partial_fc
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
GIB = 2**30
# Peak of the dense forms, measured at 1e5 and 2e5 classes, in arrays of C * D floats: centres, gradient, decayed
# gradient, momentum, and what an allocator that keeps freed memory cannot reuse.
DENSE_ARRAYS = {"mhs_dense": 6.0, "mhs_normalised": 9.0, "partial_fc": 6.5, "full_softmax": 7.0}
LOGIT_ARRAYS = 5  # of G * S floats that live at once


@dataclass(frozen=True)
class Case:
    """One configuration, as its process gets it."""

    method: str
    storage: Storage
    classes: int
    head_size: int
    batch: int  # of one rank
    dim: int
    ranks: int
    amp: str  # "none" or "bf16"
    steps: int  # timed, at most
    identities: int  # that labels are drawn from
    even_labels: bool  # draw from all classes instead
    warm_steps: int  # before the clock starts, after the first visits
    budget_s: float  # of the timed steps; at least three are made
    folder: str = ""  # of head_storage = "file"
    row_momentum: float = 0.0  # of mhs; the dense forms have MOMENTUM
    cache_gib: float = 0.0  # of mhs in "host" and "file": head_cache_gib

    def __str__(self) -> str:
        momentum = f", momentum {self.row_momentum:g}" if self.row_momentum else ""
        cache = f" + {self.cache_gib:g} GiB" if self.cache_gib else ""
        return (
            f"{self.method}, {self.storage}{cache}, {self.classes:,} classes, L {self.head_size}, B {self.batch}"
            f"{momentum}"
        )

    @property
    def row_arrays(self) -> int:
        """Numbers kept for each number of a centre: itself and, where there is momentum, its own."""
        return 2 if self.row_momentum or self.method != "mhs" else 1

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The type of the products; None is float32."""
        return torch.bfloat16 if self.amp == "bf16" else None

    def memory_bytes(self) -> float:
        """What the arrays of all ranks will hold at most, in memory."""
        row = 4 * self.dim
        if self.method == "mhs":
            arrays = self.row_arrays * row * self.touched_classes()
            cached = min(self.ranks * self.cache_gib * GIB, arrays)
            return cached if self.storage == "file" else arrays + cached
        columns = self.classes * {"partial_fc": SAMPLE_RATE, "full_softmax": 1.0}.get(self.method, 0.0)
        logits = 4 * self.ranks * self.batch * columns * LOGIT_ARRAYS
        return DENSE_ARRAYS[self.method] * row * self.classes + logits

    def touched_classes(self) -> int:
        """Classes in the heads that the run can visit, at most."""
        visits = self.ranks * self.batch * (self.steps + self.warm_steps) if self.even_labels else self.identities
        return min(self.classes, visits * self.head_size)

    def obstacle(self, ram_share: float) -> str | None:
        """Why this machine cannot run it, or None."""
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        need = self.memory_bytes()
        if need > ram_share * ram:
            return f"needs {need / GIB:.1f} GiB, {ram_share:.0%} of memory are {ram_share * ram / GIB:.1f} GiB"
        array = 4.0 * self.dim * self.classes
        if self.method == "mhs" and self.storage != "file" and array > ram:
            return f"needs {self.row_arrays * array / GIB:.1f} GiB of addresses; --storage file takes any size"
        if self.method == "mhs" and self.storage == "file":
            on_disk, free = (
                4.0 * self.row_arrays * self.dim * self.touched_classes(),
                shutil.disk_usage(self.folder).free,
            )
            if on_disk > 0.9 * free:
                return f"needs {on_disk / GIB:.1f} GiB on disk, {self.folder} has {free / GIB:.1f} GiB free"
        return None


def sampled_classifier(
    case: Case, amp: torch.dtype | None, device: torch.device | str = "cpu"
) -> tuple[PartialFCMHS, RowSGD]:
    """This project's classifier of a case and its optimizer; ``amp`` is the type of the products, None float32."""
    classifier = PartialFCMHS(
        ArcFace(64.0, 0.5),
        case.dim,
        case.classes,
        head_size=case.head_size,
        amp_dtype=amp,
        head_storage=case.storage,
        head_folder=Path(case.folder) if case.storage == "file" else None,
        head_cache_gib=case.cache_gib,
        device=device,
    )
    return classifier, RowSGD(classifier.shard, LR, case.row_momentum, WEIGHT_DECAY)


class Rig:
    """The classifier of a case with its optimizer, and how to make one step."""

    def __init__(self, case: Case) -> None:
        margin = ArcFace(64.0, 0.5)
        self.case = case
        self.ours: PartialFCMHS | None = None
        self.dense: FullSoftmax | None = None
        self.optimizer: torch.optim.Optimizer
        amp = case.amp_dtype
        if case.method == "mhs":
            self.ours, self.optimizer = sampled_classifier(case, amp)
        else:
            if case.method == "mhs_dense":
                self.dense = DenseMHS(margin, case.dim, case.classes, head_size=case.head_size, amp_dtype=amp)
            elif case.method == "mhs_normalised":
                self.dense = NormalisedMHS(margin, case.dim, case.classes, head_size=case.head_size, amp_dtype=amp)
            elif case.method == "partial_fc":
                self.dense = DensePartialFC(margin, case.dim, case.classes, sample_rate=SAMPLE_RATE, amp_dtype=amp)
            else:
                self.dense = FullSoftmax(margin, case.dim, case.classes, amp_dtype=amp)
            self.optimizer = torch.optim.SGD(self.dense.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.inputs = [torch.randn(case.batch, case.dim).requires_grad_() for _ in range(4)]

    def run(self, batches: Sequence[Tensor], goes_on: Callable[[], bool] = lambda: True) -> list[float]:
        """Make one step for each batch of labels (B,), as long as ``goes_on`` says so; seconds of each."""
        took = []
        for i, labels in enumerate(batches):
            x_BD = self.inputs[i % len(self.inputs)]
            begin = time.perf_counter()
            if self.ours is not None:
                for coming in batches[:2] if i == 0 else batches[i + 1 : i + 2]:
                    self.ours.shard.prefetch(coming)
                loss = self.ours(x_BD, labels)
            else:
                assert self.dense is not None
                loss = self.dense(x_BD, labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            took.append(time.perf_counter() - begin)
            x_BD.grad = None
            if not goes_on():
                break
        if self.ours is not None:
            self.ours.shard.forget_prefetched()
        return took

    def waited_s(self) -> float | None:
        """Seconds that steps have waited for the disk so far; None where nothing counts them."""
        return None if self.ours is None or self.case.storage == "device" else self.ours.shard.storage.waited_s

    def hit_rate(self) -> float | None:
        """Share of the heads found in the cache since this was last asked; None without a cache."""
        cache = None if self.ours is None else self.ours.shard.storage.cache
        return None if cache is None else cache.hit_rate()

    def selected_classes(self) -> int:
        """Classes of all ranks in the last step's softmax."""
        if self.ours is not None:
            assert self.ours.stats is not None
            return int(self.ours.stats.selected_classes)
        assert self.dense is not None
        return int(all_reduce_sum_(torch.tensor(self.dense.selected_rows)))

    def finish_writing(self) -> float | None:
        """Wait for what is still being written in the background; seconds."""
        if self.ours is None:
            return None
        begin = time.perf_counter()
        self.ours.shard.storage.flush()
        return time.perf_counter() - begin

    def close(self) -> None:
        """Release files and memory."""
        if self.ours is not None:
            self.ours.shard.storage.close()


class Labels:
    """The labels of a case, the same in every run; each rank takes its part of a global batch."""

    def __init__(self, case: Case, rank: int) -> None:
        self.case = case
        self.mine = slice(rank * case.batch, (rank + 1) * case.batch)
        self.rng = np.random.default_rng(0)
        self.identities = self.rng.choice(case.classes, min(case.identities, case.classes), replace=False)

    def first_visits(self) -> tuple[list[Tensor], list[Tensor]]:
        """Batches that visit each identity once: those where every sample opens a new head, and then the others."""
        G = self.case.ranks * self.case.batch
        opening = np.unique(self.identities // self.case.head_size, return_index=True)[1]
        opening = self.rng.permutation(opening)
        opening = opening[: len(opening) // G * G]
        rest = np.delete(self.identities, opening)
        if len(rest) % G:
            rest = np.concatenate((rest, self.rng.choice(self.identities, -len(rest) % G)))
        new = self.identities[opening]
        return [self._part(b) for b in new.reshape(-1, G)], [self._part(b) for b in rest.reshape(-1, G)]

    def draw(self, steps: int) -> list[Tensor]:
        """Batches drawn from the identities, or from all classes with ``even_labels``."""
        size = (steps, self.case.ranks * self.case.batch)
        if self.case.even_labels:
            return [self._part(b) for b in self.rng.integers(0, self.case.classes, size)]
        return [self._part(b) for b in self.rng.choice(self.identities, size)]

    def _part(self, labels_G: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(labels_G[self.mine].astype(np.int64))


def measure(case: Case) -> Record | None:
    """Run one configuration in this process; the record on rank 0, None on the others."""
    ranks = init_ranks("cpu", timeout_s=600)
    prepare_device(ranks.device)
    torch.manual_seed(ranks.rank)
    baseline_mib = peak_mib()
    labels = Labels(case, ranks.rank)
    rig = Rig(case)
    first_s: list[float] = []
    if case.method == "mhs" and not case.even_labels:
        opening, rest = labels.first_visits()
        first_s = rig.run(opening)
        rig.run(rest)
    warm_s = rig.run(labels.draw(case.warm_steps))
    steps = broadcast_object(min(case.steps, max(3, int(case.budget_s / min(warm_s)))))
    batches = labels.draw(steps)
    barrier()
    waited_before, _ = rig.waited_s(), rig.hit_rate()
    step_ms = np.array(rig.run(batches)) * 1e3
    waited_after, flush_s = rig.waited_s(), rig.finish_writing()
    waited_share = None
    if waited_before is not None and waited_after is not None:
        waited_share = (waited_after - waited_before) * 1e3 / step_ms.sum()
    hit_rate, selected = rig.hit_rate(), rig.selected_classes()
    peak = peak_mib()
    rig.close()
    del rig
    floor_ms = floor_step_ms(case, -(-selected // case.ranks), min(steps, 50))
    close_ranks()
    if ranks.rank:
        return None
    return {
        "method": case.method,
        "storage": case.storage,
        "classes": case.classes,
        "head_size": case.head_size,
        "batch": case.batch,
        "dim": case.dim,
        "ranks": case.ranks,
        "amp": case.amp,
        "identities": case.identities,
        "even_labels": case.even_labels,
        "row_momentum": case.row_momentum if case.method == "mhs" else MOMENTUM,
        "cache_gib": case.cache_gib,
        "step_ms": float(np.median(step_ms)),
        "step_ms_p10": float(np.percentile(step_ms, 10)),
        "step_ms_p90": float(np.percentile(step_ms, 90)),
        "first_visit_ms": float(np.median(first_s)) * 1e3 if first_s else None,
        "flush_ms": None if flush_s is None else flush_s * 1e3,
        "floor_ms": floor_ms,
        "disk_wait_share": waited_share,
        "hit_rate": hit_rate,
        "peak_mib": peak,
        "baseline_mib": baseline_mib,
        "selected_classes": selected,
        "steps": len(step_ms),
    }


def floor_step_ms(case: Case, selected: int, repeats: int) -> float:
    """What no step can avoid: three products on S rows, one read and one write of these rows and, if any, momentum.

    Rows are moved as whole heads between buffers that exist already and where they live: arrays in memory as large as
    what the ``identities`` touch, or with ``storage`` "file" files as large, read and written by plain calls.
    """
    L, D, G = case.head_size, case.dim, case.ranks * case.batch
    heads = max(1, min(selected // L, case.classes // L))
    stored = max(heads, min(case.identities, case.classes // L // case.ranks))
    buffers = [torch.zeros(heads, L * D) for _ in range(case.row_arrays)]
    dtype = case.amp_dtype or torch.float32
    x_GD = torch.randn(G, D).to(dtype)
    rows_SD = torch.randn(heads * L, D).to(dtype)
    logits_GS, grad_x_GD, grad_rows_SD = x_GD @ rows_SD.T, torch.empty_like(x_GD), torch.empty_like(rows_SD)
    grad_GS = torch.randn_like(logits_GS)
    took = []
    with ExitStack() as stack:
        homes = [_FloorArray() for _ in buffers]
        if case.storage == "file":
            homes = [_FloorFile(stack.enter_context(tempfile.TemporaryFile(dir=case.folder))) for _ in buffers]
        for home in homes:
            home.fill(stored, L * D)
        for _ in range(max(3, repeats)):
            chosen = torch.randperm(stored)[:heads].sort().values
            begin = time.perf_counter()
            for home, buffer in zip(homes, buffers, strict=True):
                home.read(chosen, buffer)
            torch.mm(x_GD, rows_SD.T, out=logits_GS)
            torch.mm(grad_GS, rows_SD, out=grad_x_GD)
            torch.mm(grad_GS.T, x_GD, out=grad_rows_SD)
            for home, buffer in zip(homes, buffers, strict=True):
                home.write(chosen, buffer)
            took.append(time.perf_counter() - begin)
    return float(np.median(took)) * 1e3


class _FloorArray:
    """Heads in memory."""

    def fill(self, heads: int, numbers: int) -> None:
        self.array = torch.zeros(heads, numbers).add_(1)

    def read(self, chosen: Tensor, buffer: Tensor) -> None:
        torch.index_select(self.array, 0, chosen, out=buffer)

    def write(self, chosen: Tensor, buffer: Tensor) -> None:
        self.array.index_copy_(0, chosen, buffer)


class _FloorFile(_FloorArray):
    """Heads in a file, one call for each."""

    def __init__(self, file: IO[bytes]) -> None:
        self.descriptor = file.fileno()

    def fill(self, heads: int, numbers: int) -> None:
        self.block = numbers * 4
        for head in range(heads):
            os.pwrite(self.descriptor, bytes(self.block), head * self.block)

    def read(self, chosen: Tensor, buffer: Tensor) -> None:
        data = memoryview(cast(Any, buffer.numpy())).cast("B")
        for i, head in enumerate(chosen.tolist()):
            os.preadv(self.descriptor, [data[i * self.block : (i + 1) * self.block]], head * self.block)

    def write(self, chosen: Tensor, buffer: Tensor) -> None:
        data = memoryview(cast(Any, buffer.numpy())).cast("B")
        for i, head in enumerate(chosen.tolist()):
            os.pwrite(self.descriptor, data[i * self.block : (i + 1) * self.block], head * self.block)


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
