"""How much memory a rank will need, counted before the first step.

The arrays are counted; what glibc loses between freed blocks is one fitted constant, so activations of other networks
are rough: rtiny with batch 256 is predicted 16 % too high. With gradient checkpointing on a CPU
most of it is holes: docs/log.md has figures.

Shapes: G samples of one forward over all ranks, S selected classes of one rank, D embedding size.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from backbones import get_model
from backbones.base import Backbone
from heads.layout import Layout
from training.optimizers import row_states
from utils.log import log
from utils.settings import Config

MIB = 2**20
STATES = {"sgd": 1, "adamw": 2}  # numbers of optimizer state for each weight of the backbone
HASHED_AT_ONCE = 65_536  # rows of one block of heads.shard.first_centres
# Two constants measured on a CPU with torch's wheel and glibc 2.36; elsewhere expect more than the tests' 10 %.
PROCESS = 826 * MIB  # peaks of the classifier runs (sgd, adamw) less their counted arrays: 831 and 821
_CPU_AND_PINNED = ("can't allocate memory", "out of memory")  # what torch says in a plain RuntimeError
HOLES = 15  # largest pieces that glibc cannot use again, at most what is kept; fitted to r18 (24) and mbf (48)
# With gradient checkpointing: of what segments keep one after the other, and in sizes of the network, which is built
# twice more for this plan and leaves its gaps; fitted to the runs of six networks in docs/log.md.
HOLES_OF_SEGMENTS, HOLES_OF_WEIGHTS = 0.8, 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank at the peak of a step, when every one of its heads has been seen."""

    process: int  # Python and the libraries, before anything is built; host memory
    centres: int  # class centres and their optimizer state, if any, where they are kept in memory
    head_cache: int  # copies of some of them on the device
    step: int  # the step's selected rows, their gradients and logits, at most
    backbone: int  # weights, their average, gradients, reduction buckets, optimizer state
    activations: int  # what the backbone keeps for its backward, and the gradients that pass through

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / MIB:.0f}" for field in fields(self))
        return f"about {self.total / MIB:.0f} MiB a rank at the peak ({parts})"


def plan_memory(
    *,
    backbone: nn.Module,
    image_size: tuple[int, int],
    batch_size: int,
    gradient_acc: int,
    world_size: int,
    optimizer: str,
    row_states: int,
    rows: int,
    embedding_size: int,
    head_size: int,
    drawn_rows: int,
    head_storage: str,
    head_cache_gib: float = 0.0,
    sampled_rows: int = 0,
    freeze_backbone: bool = False,
    has_average: bool = False,
    on_gpu: bool = False,
) -> MemoryPlan:
    """Count what a rank allocates.

    Args:
        backbone: the network, on any device; it is copied to the CPU and run on a few blank images.
        image_size: height, width in pixels.
        batch_size: images of one rank in one forward.
        gradient_acc: forwards of one step, whose rows and gradients wait for it.
        world_size: W.
        optimizer: "sgd" or "adamw".
        row_states: numbers of optimizer state for each number of a class centre.
        rows: classes that the rank holds.
        embedding_size: D.
        head_size: L.
        drawn_rows: classes in randomly drawn heads, expected.
        head_storage: "device", "host" or "file".
        head_cache_gib: of the device, at most, for heads of "host" or "file".
        sampled_rows: PartialFC's classes, the batch's own included.
        freeze_backbone: whether the network has neither gradients nor optimizer.
        has_average: whether an average of its weights is kept.
        on_gpu: see :func:`activation_bytes`.
    """
    states, G = STATES[optimizer], batch_size * world_size
    S, row = min(rows, max(G * head_size + drawn_rows, sampled_rows)), embedding_size * 4
    held = (1 + row_states) * S * row  # one forward's centres and state, as fetched
    grad, logits = S * row, G * S * 4
    waiting = (gradient_acc - 1) * (held + grad)  # earlier forwards of the step
    backward = waiting + held + max(5 * logits, grad + 3 * logits)
    union = min(rows, S * gradient_acc)  # the forwards' rows joined for the optimizer
    joined = (2 + row_states) * union * row if gradient_acc > 1 else 0
    temporaries = 2 * union * row if optimizer == "adamw" else 0  # root of the average, and the update
    masked = (1 + row_states) * union * row if on_gpu else 0  # the rows as they were, for a step that does not count
    update = waiting + held + grad + joined + temporaries + masked
    block = min(S, HASHED_AT_ONCE)
    first_visit = waiting + S * row + 5 * block * row  # int64 hashes, angles, radii of one block
    travelling = 0 if head_storage == "device" else held  # the next step's rows
    arrays = rows * row * (1 + row_states)
    if head_cache_gib:
        travelling += held  # those found on the device lie apart from those fetched
    parameters = sum(p.numel() for p in backbone.parameters())
    copies = 1 if freeze_backbone else (3 if world_size > 1 else 2) + states + int(has_average)
    return MemoryPlan(
        process=PROCESS,
        centres=0 if head_storage == "file" else arrays,
        head_cache=min(int(head_cache_gib * 2**30), arrays),
        step=max(backward, update, first_visit) + travelling,
        backbone=parameters * 4 * copies,
        activations=passing_bytes(backbone, image_size, batch_size)
        if freeze_backbone
        else activation_bytes(backbone, image_size, batch_size, parameters * 4, on_gpu),
    )


@contextmanager
def advice_on_memory(cfg: Config, world_size: int) -> Iterator[None]:
    """When memory runs out inside, log what the run needs and what to change; the error is passed on."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            log.error(
                "out of memory; this rank needs %s. Lower batch_size or head_size, or %s",
                plan_of(cfg, world_size),
                "lower head_cache_gib" if cfg.head_cache_gib else "set head_storage",
            )
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no room left; torch's CPU allocator raises a plain RuntimeError."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_AND_PINNED))
    )


def plan_of(cfg: Config, world_size: int) -> MemoryPlan:
    """The plan of the rank that holds the most classes.

    Raises:
        ValueError: the number of identities is left to the data, or ``world_size`` is below 1.
    """
    num_classes = cfg.class_count()
    if num_classes is None:
        raise ValueError("num_classes = 'auto' leaves the number to the data: add num_classes=N")
    if world_size < 1:
        raise ValueError(f"--ranks must be at least 1, got {world_size}")
    head_size, negative_rate, sample_rate = cfg.head_layout()
    rows = Layout.of_rank(num_classes, head_size, 0, world_size).classes_here
    with torch.random.fork_rng(devices=[]):  # a run's own random state, for dropout, stays unchanged
        return plan_memory(
            # A fresh network, since the run's own may talk to other ranks.
            backbone=get_model(**cfg.network_options()),
            image_size=cfg.image_size,
            batch_size=cfg.batch_size,
            gradient_acc=cfg.gradient_acc,
            world_size=world_size,
            optimizer=cfg.optimizer,
            row_states=row_states(cfg, world_size),
            rows=rows,
            embedding_size=cfg.embedding_size,
            head_size=head_size,
            drawn_rows=round(negative_rate * rows),
            sampled_rows=round((sample_rate or 0.0) * rows),
            head_storage=cfg.head_storage,
            head_cache_gib=cfg.head_cache_gib,
            freeze_backbone=cfg.freeze_backbone,
            has_average=cfg.average_decay() > 0,
            on_gpu=cfg.device == "cuda" or (cfg.device == "auto" and torch.cuda.is_available()),
        )


def activation_bytes(
    backbone: nn.Module, image_size: tuple[int, int], batch_size: int, update: int = 0, on_gpu: bool = False
) -> int:
    """What one forward keeps for backward, and the memory that the allocator cannot reuse (HOLES).

    Counted on 2 and 4 blank images and extrapolated linearly to the batch. With gradient checkpointing these are the
    inputs of the segments, and the inside of the one that keeps most, but at least ``update``, the bytes that the
    optimizer makes beside the gradients; glibc uses little of one segment's inside for the next.

    Args:
        backbone: the network; a copy of it runs on the CPU.
        image_size: height, width in pixels.
        batch_size: images of one forward.
        update: bytes of the weights that are trained.
        on_gpu: its allocator is not glibc, so checkpointing is not counted with glibc's holes.
    """
    network = copy.deepcopy(backbone).cpu().train()
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}

    def count(images: int) -> tuple[int, int]:
        """Bytes that are alive at a time, and holes, but for those of the weights."""
        kept, insides, alive = Kept(own), [0], list[Tensor]()  # alive: so that no address is used twice

        def run_segment(segment: nn.Module, x: Tensor) -> Tensor:
            kept.note(x)
            inside = Kept(own | kept.sizes.keys())
            with inside.watching():
                out: Tensor = segment(x)
            insides.append(sum(inside.sizes.values()))
            alive.extend(inside.alive)
            return out

        if isinstance(network, Backbone):
            network.run_segment = run_segment
        blank = torch.zeros(images, 3, *image_size).to(memory_format=torch.channels_last)
        with kept.watching():
            network(blank)
        outside = sum(kept.sizes.values())
        largest = max(tensor.untyped_storage().nbytes() for tensor in (*alive, *kept.alive))
        if any(insides) and not on_gpu:
            return outside + max(insides), int(HOLES_OF_SEGMENTS * sum(insides))
        return outside + max(insides), min(outside + sum(insides), HOLES * largest)

    live, holes = (two + (four - two) * (batch_size - 2) // 2 for two, four in zip(count(2), count(4), strict=True))
    gaps = HOLES_OF_WEIGHTS * update if isinstance(network, Backbone) and network.gradient_checkpointing else 0
    return max(live, update) + holes + (0 if on_gpu else gaps)


class Kept:
    """The storages that autograd keeps for backward, each counted once.

    Args:
        known: addresses of storages that do not count.
    """

    def __init__(self, known: Collection[int]) -> None:
        self.known = frozenset(known)
        self.sizes: dict[int, int] = {}  # bytes at each address
        self.alive: list[Tensor] = []

    def note(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self.alive.append(tensor)
        return tensor

    def watching(self) -> AbstractContextManager[None]:
        """Count what is kept meanwhile."""
        hooks: Any = torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor)
        return hooks  # type: ignore[no-any-return]


def passing_bytes(backbone: nn.Module, image_size: tuple[int, int], batch_size: int) -> int:
    """What a forward without backward holds: a layer's input, output and a shortcut beside them, and HOLES."""
    network = copy.deepcopy(backbone).cpu().eval()
    largest = 0

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, inputs[0].nbytes + output.nbytes + max(inputs[0].nbytes, output.nbytes))

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(watch)
    with torch.no_grad():
        network(torch.zeros(1, 3, *image_size).to(memory_format=torch.channels_last))
    return 2 * largest * batch_size  # as much again is what the allocator cannot reuse
