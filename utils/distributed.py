"""Ranks, devices and collectives: the one place, with partial_fc_mhs.py, that talks to torch.distributed.

Every collective works without a process group too, as if there were one rank.

Shapes: W ranks, N rows of one rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Newer torch renames the tensor forms of two collectives and warns about the old names.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Ranks:
    """This process among its peers, and the device that it computes on."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs and files."""
        return self.rank == 0


def init_ranks(device: str = "auto", timeout_s: float = 1800.0, local_rank: int | None = None) -> Ranks:
    """Join the process group that the launcher describes in the environment, if there is one.

    Without a launcher (no ``WORLD_SIZE``) the process stays alone and starts no group.

    Args:
        device: "auto" (CUDA where there is a GPU, else CPU), "cpu" or "cuda".
        timeout_s: seconds after which a collective that a peer does not join is an error.
        local_rank: the launcher's ``--local_rank``; ``LOCAL_RANK`` in the environment goes before it, SLURM's
            ``SLURM_LOCALID`` stands in for both.

    Raises:
        ValueError: an unknown device, CUDA asked for where there is none, more local ranks than GPUs,
            or an environment that names only a part of what a launcher sets.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda', but torch sees no GPU here; use device = 'auto' or 'cpu'")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    local_rank = _local_rank(local_rank)
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU: this machine shows {torch.cuda.device_count()}; "
            "start at most that many processes with --nproc_per_node"
        )
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(chosen)
    if not os.environ.get("WORLD_SIZE", "1").isdigit():
        raise ValueError(f"WORLD_SIZE must be a number of processes, got {os.environ['WORLD_SIZE']!r}")
    if "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, local_rank, chosen)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is set, but {', '.join(missing)} is not: start with torchrun or "
            "python -m torch.distributed.launch, or unset WORLD_SIZE for a single process"
        )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if use_cuda else "gloo",
        timeout=timedelta(seconds=timeout_s),
        device_id=chosen if use_cuda else None,
    )
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, chosen)


def _local_rank(given: int | None) -> int:
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name == "SLURM_LOCALID" and given is not None:
            break
        if name in os.environ:
            return int(os.environ[name])
    if given is None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            "WORLD_SIZE is set, but neither LOCAL_RANK nor SLURM_LOCALID: say which process of its machine this is, "
            "with LOCAL_RANK or --local_rank"
        )
    return given or 0


def close_ranks() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """The number of ranks W, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if get_world_size() > 1:
        dist.barrier()


def all_gather_rows(x: Tensor) -> Tensor:
    """Join every rank's (N, ...) along the first dimension to (W * N, ...), ranks in order; no gradient."""
    if get_world_size() == 1:
        return x
    out = x.new_empty((get_world_size() * x.shape[0], *x.shape[1:]))
    _all_gather(out, x.contiguous())
    return out


def all_gather_objects(value: Any) -> list[Any]:
    """Every rank's picklable value, ranks in order."""
    if get_world_size() == 1:
        return [value]
    out: list[Any] = [None] * get_world_size()
    dist.all_gather_object(out, value)
    return out


def broadcast_object(value: Any, src: int = 0) -> Any:
    """Rank ``src``'s picklable value, on every rank."""
    if get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=src)
    return box[0]


def together(do: Callable[[], T]) -> T:
    """Call ``do``, which has no collective in it, on every rank; an error of one rank is raised on all.

    Raises:
        ValueError, OSError: the first rank's; the others learn its text.
    """
    error: Exception | None = None
    try:
        value = do()
    except (ValueError, OSError) as problem:
        error = problem
    first = next((e for e in all_gather_objects(error) if e is not None), None)
    if first is not None:
        raise first
    return value


def broadcast_(x: Tensor, src: int = 0) -> Tensor:
    """Overwrite ``x`` on every rank with rank ``src``'s."""
    if get_world_size() > 1:
        dist.broadcast(x, src)
    return x


def all_reduce_sum_(x: Tensor) -> Tensor:
    """Overwrite ``x`` with its sum over ranks."""
    if get_world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_max_(x: Tensor) -> Tensor:
    """Overwrite ``x`` with its maximum over ranks."""
    if get_world_size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


class _GatherRows(torch.autograd.Function):
    """Gather in forward; in backward sum over ranks, keep this rank's rows, times W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_gather_rows(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        world_size = get_world_size()
        out = grad.new_empty((grad.shape[0] // world_size, *grad.shape[1:]))
        _reduce_scatter(out, grad.contiguous())
        return out.mul_(world_size)


def gather_rows_with_grad(x: Tensor) -> Tensor:
    """Join every rank's (N, ...) to (W * N, ...) for a loss that is a mean over all W * N rows.

    The gradient that comes back is W times the mean's, because DistributedDataParallel divides by W when it
    averages: after it, the backbone's gradient is that of one process on the whole batch.

    Collectives: one all-gather of N rows forward, one reduce-scatter of W * N rows backward.
    """
    if get_world_size() == 1:
        return x
    return _GatherRows.apply(x)  # type: ignore[no-any-return]


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks in forward, and of the gradients in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum_(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce_sum_(grad.clone())


def sum_over_ranks_with_grad(x: Tensor) -> Tensor:
    """The sum over ranks; one all-reduce forward and one backward."""
    return _SumOverRanks.apply(x)  # type: ignore[no-any-return]


def part_of(n: int, rank: int, world_size: int) -> tuple[int, int]:
    """The half-open block [start, end) of ``n`` things that ``rank`` holds; sizes differ by at most one."""
    each, more = divmod(n, world_size)
    start = rank * each + min(rank, more)
    return start, start + each + (rank < more)
