"""Ranks, devices and collectives: the one place that talks to torch.distributed.

Every collective works without a process group too, as if there were one rank.

Shapes: W ranks, N rows of one rank.
"""

from __future__ import annotations

import os
import platform
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.processes import die_with_parent
from utils.progress import collective, progress

T = TypeVar("T")

_JOIN_POLL_S = 0.05  # between looks of rank 0 at who has come
_LATER_S = 30.0  # that NCCL, which can only abort, leaves the ranks to say who is missing

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
        ConnectionError: the ranks have not come together, in ``timeout_s`` at the latest.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda', but torch sees no GPU here; use device = 'auto' or 'cpu'")
    progress.timeout_s = timeout_s
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
    if "TORCHELASTIC_RUN_ID" in os.environ:  # never for a process that is to outlive the shell that started it
        die_with_parent(signal.SIGTERM)
    _join(chosen, timeout_s)
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, chosen)


def _join(device: torch.device, timeout_s: float) -> None:
    """Start the process group."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    progress.returns_early = device.type == "cuda"
    options: dict[str, Any] = {}
    try:
        if launcher_holds_store():
            options = {"store": _store_of_this_attempt(rank, world_size, timeout_s), "rank": rank}
            options["world_size"] = world_size
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_s + (_LATER_S if progress.returns_early else 0)),
            device_id=device if device.type == "cuda" else None,
            **options,
        )
    except (RuntimeError, TimeoutError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        text = str(error).strip().partition("\n")[0]
        raise ConnectionError(
            f"rank {rank} on {platform.node()} has not met all {world_size} ranks at {where} (timeout_s = "
            f"{timeout_s:g}): {text}. See whether every rank has started, and whether that address can be reached"
        ) from None


def _store_of_this_attempt(rank: int, world_size: int, timeout_s: float) -> Any:
    """Give torchrun's store, below a name that this attempt's ranks alone know.

    torchrun keeps its store when it starts the ranks anew, and an old attempt's addresses are still in it. Nothing
    that it tells a rank is new in every attempt: its count of restarts stays when a node joins or leaves. So
    rank 0 makes a name up, and gives it to each rank as the answer to a word that this rank has made up: old words
    get an answer that nobody reads, and an old answer is to no word of now.
    """
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timeout,
        wait_for_workers=False,
    )
    name = uuid.uuid4().hex
    if rank > 0:
        word = name
        store.set(f"mhs_arcface/word/{rank}", word)
        name = store.get(f"mhs_arcface/answer/{word}").decode()
        store.add(f"mhs_arcface/joined/{name}", 1)
    else:
        _answer_all(store, name, world_size, timeout_s)
    return dist.distributed_c10d.PrefixStore(f"mhs_arcface/attempt/{name}", store)


def _answer_all(store: Any, name: str, world_size: int, timeout_s: float) -> None:
    """Answer every rank's word, and each that follows, until all ranks of now have read their answers."""
    answered: dict[int, str] = {}
    deadline_s = time.monotonic() + timeout_s
    while store.add(f"mhs_arcface/joined/{name}", 0) < world_size - 1:
        for rank in range(1, world_size):
            word = f"mhs_arcface/word/{rank}"
            if store.check([word]) and answered.get(rank) != (text := store.get(word).decode()):
                store.set(f"mhs_arcface/answer/{text}", name)
                answered[rank] = text
        if time.monotonic() > deadline_s:
            raise TimeoutError("not every rank has come in time")
        time.sleep(_JOIN_POLL_S)


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


def shared_store() -> Any:
    """The key-value store that all ranks share, None without a process group; torch has no public name for it."""
    return dist.distributed_c10d._get_default_store() if dist.is_initialized() else None


def launcher_holds_store() -> bool:
    """Whether that store lives in torchrun, and not in rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error may be only a consequence of another rank's end or silence."""
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
        with collective("barrier"):
            dist.barrier()


def all_gather_rows(x: Tensor, what: str = "rows") -> Tensor:
    """Join every rank's (N, ...) along the first dimension to (W * N, ...), ranks in order; no gradient."""
    if get_world_size() == 1:
        return x
    out = x.new_empty((get_world_size() * x.shape[0], *x.shape[1:]))
    with collective("all-gather", what):
        _all_gather(out, x.contiguous())
    return out


def all_gather_objects(value: Any, what: str = "objects") -> list[Any]:
    """Every rank's picklable value, ranks in order."""
    if get_world_size() == 1:
        return [value]
    out: list[Any] = [None] * get_world_size()
    with collective("all-gather", what):
        dist.all_gather_object(out, value)
    return out


def broadcast_object(value: Any, src: int = 0) -> Any:
    """Rank ``src``'s picklable value, on every rank."""
    if get_world_size() == 1:
        return value
    box = [value]
    with collective("broadcast", "an object"):
        dist.broadcast_object_list(box, src=src)
    return box[0]


def together(do: Callable[[], T]) -> T:
    """Call ``do``, which has no collective in it, on every rank; an error of one rank is raised on all.

    Raises:
        ValueError, OSError, FloatingPointError: the first rank's; the others get its text.
    """
    error: Exception | None = None
    try:
        value = do()
    except (ValueError, OSError, FloatingPointError) as problem:
        error = problem
    first = next((e for e in all_gather_objects(error, "errors") if e is not None), None)
    if first is not None:
        raise first
    return value


def broadcast_(x: Tensor, src: int = 0) -> Tensor:
    """Overwrite ``x`` on every rank with rank ``src``'s."""
    if get_world_size() > 1:
        with collective("broadcast", "a tensor"):
            dist.broadcast(x, src)
    return x


def all_reduce_sum_(x: Tensor, what: str = "sums") -> Tensor:
    """Overwrite ``x`` with its sum over ranks."""
    if get_world_size() > 1:
        with collective("all-reduce", what):
            dist.all_reduce(x)
    return x


def all_reduce_max_(x: Tensor, what: str = "maxima") -> Tensor:
    """Overwrite ``x`` with its maximum over ranks."""
    if get_world_size() > 1:
        with collective("all-reduce", what):
            dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


class RowExchange:
    """Joins every rank's rows in forward; in backward sums their gradients over ranks, while other work goes on.

    In one forward, call :meth:`receive`, whatever is to be computed in backward while the gradients travel, and
    :meth:`gather`, in this order: autograd goes through them backwards.
    """

    def __init__(self) -> None:
        self._travelling: tuple[Any, Tensor, Tensor] | None = None  # the collective, its input and its result

    def receive(self, x: Tensor) -> Tensor:
        """``x`` as it is; in backward, where its gradient is waited for."""
        return x if get_world_size() == 1 else _Receive.apply(x, self)

    def gather(self, x: Tensor) -> Tensor:
        """Join every rank's (N, ...) to (W * N, ...) for a loss that is a mean over all W * N rows.

        The gradient that comes back is W times the mean's, because DistributedDataParallel divides by W when it
        averages: after it, the backbone's gradient is that of one process on the whole batch.

        Collectives: one all-gather of N rows forward, one reduce-scatter of W * N rows backward.
        """
        return x if get_world_size() == 1 else _Gather.apply(x, self)

    def send(self, grad: Tensor) -> Tensor:
        """Begin to sum (W * N, ...) over ranks; returns where this rank's (N, ...) will be."""
        grad = grad.contiguous()
        out = grad.new_empty((grad.shape[0] // get_world_size(), *grad.shape[1:]))
        self._travelling = _reduce_scatter(out, grad, async_op=True), grad, out
        return out

    def arrive(self) -> Tensor:
        """Wait for the sum, times W."""
        assert self._travelling is not None
        (work, _, out), self._travelling = self._travelling, None
        with collective("reduce-scatter", "the embeddings' gradients"):
            work.wait()
        return out.mul_(get_world_size())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        return all_gather_rows(x, "embeddings")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.send(grad), None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.arrive(), None


def gather_rows_with_grad(x: Tensor) -> Tensor:
    """Join every rank's rows; see :meth:`RowExchange.gather`."""
    exchange = RowExchange()
    return exchange.gather(exchange.receive(x))


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
