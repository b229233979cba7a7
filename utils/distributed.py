"""Ranks, devices and collectives: the one place that talks to torch.distributed.

Every collective works without a process group too, as if there were one rank.

Shapes: W ranks, N rows of one rank.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.text import plain

T = TypeVar("T")

_FAILED, _REASON = "mhs_arcface/failed", "mhs_arcface/reason"  # keys of the store that all ranks share
_POLL_S = 0.5  # between looks at them
_GRACE_S = 5.0  # that a rank has to end by itself, and that a failure has to show after its connections break

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
        local_rank: the launcher's ``--local_rank``; ``LOCAL_RANK`` in the environment overrides it; without both,
            SLURM's ``SLURM_LOCALID`` counts.

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
    chosen = torch.device("cuda", _gpu_of(local_rank)) if use_cuda else torch.device("cpu")
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


def _gpu_of(local_rank: int) -> int:
    """The GPU of this process among those that it sees. SLURM may show each task only its own, as number 0."""
    visible = torch.cuda.device_count()
    if visible == 1 and "SLURM_LOCALID" in os.environ and "LOCAL_RANK" not in os.environ:
        return 0
    if local_rank >= visible:
        raise ValueError(
            f"local rank {local_rank} has no GPU: this machine shows {visible}; "
            "start at most that many processes with --nproc_per_node"
        )
    return local_rank


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
    """Leave the process group, if one was joined. Only where every rank does so: others may wait forever."""
    if dist.is_initialized():
        time.sleep(0.1)  # the threads of gloo in torch 2.6 may still want the GIL, which destroying holds
        dist.destroy_process_group()


@contextmanager
def one_fate() -> Iterator[None]:
    """Let an error of one rank end every rank within seconds, each with the first rank's reason.

    The first rank to fail leaves its reason in the store that all ranks share, and raises. A rank whose connections
    break then reports that reason instead of its own; one that waits where no error reaches it, as in NCCL, is ended
    by a thread that looks at the store. The process group is left only on the clean way out: after an error its
    destruction could wait forever for ranks that are gone.

    SystemExit passes: whoever exits has made sure that every rank does.

    Collectives: a barrier at the start and one at the end.
    """
    if get_world_size() == 1:
        yield
        close_ranks()
        return
    _forget_failures()
    watch = _Watch()
    try:
        yield
        barrier()  # still watched: a rank may fail after another has come here
        watch.end()
        close_ranks()
    except (SystemExit, KeyboardInterrupt):
        watch.end()
        raise
    except BaseException as error:
        watch.end()
        if not (_is_lost_connection(error) and watch.wait_for_reason()) and _fail(error):
            raise
        reason = watch.wait_for_reason()
        if reason is None:
            raise
        sys.stdout.flush()
        print(f"rank {get_rank()} ends, because {reason}", file=sys.stderr, flush=True)
        _leave_time_to_read()
        raise SystemExit(1) from None


def _store() -> Any:
    """The key-value store that all ranks share; torch has no public name for it."""
    return dist.distributed_c10d._get_default_store()


def _forget_failures() -> None:
    """Drop what an earlier attempt has left: torchrun's store can stay when it restarts the ranks."""
    if get_rank() == 0:
        for key in (_FAILED, _REASON):
            _store().delete_key(key)
    barrier()


def _fail(error: BaseException) -> bool:
    """Record an error as the reason why all ranks end; False where another rank was first."""
    if get_world_size() == 1:
        return True
    try:
        is_first = bool(_store().add(_FAILED, 1) == 1)
        if is_first:
            text = plain(" ".join(str(error).split()))[:500]
            _store().set(_REASON, f"rank {get_rank()} on {platform.node()} failed: {type(error).__name__}: {text}")
    except RuntimeError:  # the store has gone with the rank that held it
        return True
    _leave_time_to_read()
    return is_first


def speaks(error: BaseException) -> bool:
    """Record an error that every rank or only this one has met as the reason to end; True where it is to be printed.

    That is on one rank: 0 if it has met the error too, else the first.
    """
    is_first = _fail(error)
    if get_rank() == 0 or not is_first:
        return get_rank() == 0
    time.sleep(2 * _POLL_S)
    try:
        return bool(_store().add(_FAILED, 0) == 1)
    except RuntimeError:
        return False


def _leave_time_to_read() -> None:
    """Without torchrun rank 0 holds the store: it waits before it ends, so that the others can read the reason."""
    if get_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        time.sleep(4 * _POLL_S)


class _Watch:
    """A thread that looks whether another rank has failed, and ends this process if it does not end by itself."""

    def __init__(self) -> None:
        self._store = _store()
        self._reason: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def wait_for_reason(self) -> str | None:
        """Why the first rank failed; None if no rank says so within seconds."""
        deadline_s = time.monotonic() + _GRACE_S
        while self._reason is None and time.monotonic() < deadline_s and self._read():
            time.sleep(0.1)
        return self._reason

    def _read(self) -> bool:
        """Look once; False where there is nothing more to read."""
        try:
            if self._store.check([_REASON]):
                self._reason = str(self._store.get(_REASON).decode())
        except RuntimeError:  # the store has gone with the rank that held it
            return False
        return self._reason is None

    def _look(self) -> None:
        while not self._over.wait(_POLL_S) and dist.is_initialized():  # whoever has left may end when it likes
            if self._read():
                continue
            if self._over.wait(_GRACE_S) or not dist.is_initialized():
                return
            reason = self._reason or "rank 0, which held the ranks' store, has ended"
            print(f"rank {get_rank()} ends, because {reason}", file=sys.stderr, flush=True)
            os._exit(1)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error may be only a consequence of another rank's end."""
    words = ("peer", "gloo", "nccl", "socket", "connection", "broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


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
        ValueError, OSError: the first rank's; the others get its text.
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
