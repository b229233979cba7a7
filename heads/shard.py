"""One rank's heads: which classes they hold, with which centres they start, and which of them a step works on.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, L classes per head, h heads of one
request, S their classes, N any number of classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.arrays import CENTRES, MOMENTUM, MemoryArrays, Rows
from heads.layout import Layout
from heads.selection import HeadScope, Selection, check_labels, draw_heads, sample_classes, select_heads
from heads.storage import LAST_STEP, Fetch, HeadStorage, Place
from utils import hashing
from utils.device import to_device
from utils.distributed import all_gather_rows, get_rank, get_world_size

INITIAL_STD = 0.01  # of a centre's elements
_FOR_CENTRES, _FOR_NEGATIVES = 1, 2  # what a random draw is for, so that draws for two purposes differ


@dataclass
class Pending:
    """One forward that awaits the optimizer."""

    selection: Selection
    leaf_SD: Tensor  # the centres, with their gradient after backward
    rows: Rows  # the optimizer's state (and the centres) as fetched


def first_centres(seed: int, classes_N: Tensor, embedding_size: int, dtype: torch.dtype) -> Tensor:
    """The initial centres (N, D) of the given classes, on their device: normal(0, 0.01)."""
    key = hashing.key(seed, _FOR_CENTRES)
    out_ND = torch.empty((len(classes_N), embedding_size), dtype=dtype, device=classes_N.device)
    for start in range(0, len(classes_N), 65_536):  # hashing takes five times the memory of its result
        block = slice(start, start + 65_536)
        torch.mul(hashing.normal(key, classes_N[block], embedding_size), INITIAL_STD, out=out_ND[block])
    return out_ND


class HeadShard:
    """The heads of this rank, among those of all ranks.

    Args:
        num_classes: C.
        embedding_size: D.
        head_size: L; above C it means one head.
        sample_rate: PartialFC's rule in place of ``negative_rate``, for heads of one class: the batch's classes and
            random others, together this share of all, see :func:`heads.selection.sample_classes`. None: no such rule.
        negative_rate: each head that holds no label of the batch takes part with this probability, drawn anew each
            step: 0 is pure multi-head sampling, 1 takes every head.
        head_scope: what a sample's softmax runs over: "batch", all selected classes of all ranks; "own", its own
            head and the drawn ones.
        head_storage: where the centres and the optimizer's state live: "device", "host" or "file".
        head_folder: for "file", a folder on a disk of this machine.
        seed: initial centres are functions of (seed, class), negatives of (seed, step, head).
        dtype: of the centres, float32 or float64.
        device: where the classifier computes.

    Raises:
        ValueError: an argument outside its range, named with what is allowed.
        OSError: ``head_folder`` cannot be written.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        head_size: int,
        negative_rate: float = 0.0,
        sample_rate: float | None = None,
        head_scope: HeadScope = "batch",
        head_storage: Place = "device",
        head_folder: Path | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = {"num_classes": num_classes, "embedding_size": embedding_size, "head_size": head_size}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= negative_rate <= 1:
            raise ValueError(f"negative_rate must be in [0, 1], got {negative_rate}")
        if sample_rate is not None and not (0 <= sample_rate <= 1 and head_size == 1 and negative_rate == 0):
            raise ValueError(
                "sample_rate must be in [0, 1], with head_size = 1 and negative_rate = 0; got "
                f"{sample_rate} with {head_size} and {negative_rate}"
            )
        if head_scope not in ("batch", "own"):
            raise ValueError(f"head_scope must be 'batch' or 'own', got {head_scope!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}; amp_dtype sets the type of the product")
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.embedding_size, self.dtype, self.seed = embedding_size, dtype, seed
        self.negative_rate, self.sample_rate, self.head_scope = negative_rate, sample_rate, head_scope
        self.layout = Layout.of_rank(num_classes, head_size, get_rank(), get_world_size())
        self.storage = HeadStorage(
            self.layout, embedding_size, dtype, self.device, self.initial_centres, head_storage, head_folder
        )
        self.iteration = 0  # training forwards so far
        self.steps = 0  # optimizer steps so far
        self.doubt: Tensor | None = None  # whether the last step does not count, where only the device knows so far
        self._idle_factors: Callable[[Tensor, bool], Tensor] | None = None
        self._catch_up: Callable[[Rows, Tensor], None] | None = None
        self.pending: list[Pending] = []  # forwards since the last zero_grad
        self.leaves: list[Tensor] = []  # their leaf_SD, as an optimizer's list of parameters
        self._announced: deque[tuple[Tensor, Selection, Fetch]] = deque()

    def initial_centres(self, classes_N: Tensor) -> Tensor:
        """The initial centres (N, D) of the given classes; see :func:`first_centres`."""
        return first_centres(self.seed, classes_N, self.embedding_size, self.dtype)

    def select(self, labels_G: Tensor, iteration: int) -> Selection:
        """The heads of this rank for a global batch (G,) on the host: those that hold a label, and those drawn.

        Raises:
            ValueError: a label outside [0, C).
        """
        check_labels(labels_G, self.layout.num_classes)
        drawn_h = self.drawn_heads(iteration, labels_G)
        return select_heads(self.layout, labels_G, drawn_h, self.head_scope, self.device)

    def drawn_heads(self, iteration: int, labels_G: Tensor) -> Tensor:
        """This rank's heads (n,) that are drawn for a forward, ascending; PartialFC's rule needs its labels (G,)."""
        layout, key = self.layout, hashing.key(self.seed, _FOR_NEGATIVES, iteration)
        if self.sample_rate is None:
            return draw_heads(layout, self.negative_rate, key)
        return sample_classes(
            layout.num_classes, self.sample_rate, key, labels_G, layout.class_start, layout.class_end
        )

    def prefetch(self, local_labels: Tensor) -> None:
        """Announce the labels of a coming forward, so that its heads arrive while earlier ones compute.

        Call it on every rank, for each training forward in order, at the latest just before the forward itself.

        Args:
            local_labels: (B,) int64, the very labels that the forward will get; best on the host, as loaders give
                them, so that nothing waits for the device.

        Collectives: the all-gather of B labels, between hosts, that the forward then skips.
        """
        selection = self.select(all_gather_rows(local_labels.cpu(), "labels"), self.iteration + len(self._announced))
        self._announced.append((local_labels, selection, self.storage.fetch(selection.heads_h)))

    @property
    def has_announced(self) -> bool:
        """Whether announced forwards are still to come."""
        return bool(self._announced)

    def forget_prefetched(self) -> None:
        """Drop announced forwards that will not come; call it on every rank."""
        for _, _, fetch in self._announced:
            self.storage.forget(fetch)
        self._announced.clear()

    def take(self, local_labels: Tensor) -> tuple[Selection, Rows]:
        """The heads of a training forward, announced before or asked for now; see :meth:`prefetch`.

        Raises:
            ValueError: other labels were announced.
        """
        if not self._announced:
            return self.look(local_labels)
        announced, selection, fetch = self._announced[0]
        if announced is not local_labels and not torch.equal(announced.cpu(), local_labels.cpu()):
            raise ValueError("the labels differ from those announced by prefetch; announce forwards in their order")
        self._announced.popleft()
        return selection, self._present(selection.classes_S, self.storage.take(fetch))

    def look(self, local_labels: Tensor) -> tuple[Selection, Rows]:
        """The heads of a forward that trains nothing: announcements are kept.

        Collectives: the all-gather of B labels.
        """
        selection = self.select(all_gather_rows(local_labels.cpu(), "labels"), self.iteration)
        return selection, self._present(selection.classes_S, self.storage.take(self.storage.fetch(selection.heads_h)))

    def count_idle_steps(
        self, idle_factors: Callable[[Tensor, bool], Tensor], catch_up: Callable[[Rows, Tensor], None]
    ) -> None:
        """Note each head's last step, and bring rows fetched to the present by these; see ``RowOptimizer``."""
        self.storage.count(LAST_STEP)
        self._idle_factors, self._catch_up = idle_factors, catch_up

    def _present(self, classes_S: Tensor, rows: Rows) -> Rows:
        """Fetched rows after the steps in which their heads were idle."""
        if self._catch_up is None or self._idle_factors is None or not len(classes_S):
            return rows
        places_S = self.layout.places_of(classes_S // self.layout.head_size)
        last_S = self.storage.counts[LAST_STEP][places_S].long()
        factors = self._to_rows(self._idle_factors(self.steps - last_S, False))
        if self.doubt is not None:
            last_S = self.storage.last_steps_before(places_S)
            others = self._to_rows(self._idle_factors(self.steps - 1 - last_S, True))
            factors = torch.where(self.doubt > 0, others, factors)
        with torch.no_grad():
            self._catch_up(rows, factors)
        return rows

    def _to_rows(self, factors: Tensor) -> Tensor:
        """On the device and in the type of the rows."""
        return to_device(factors.to(self.dtype), self.device)

    def expect_update(self, selection: Selection, rows: Rows) -> Tensor:
        """Make the centres (S, D) of a training forward a leaf of autograd, and keep it for the optimizer."""
        leaf_SD = rows[CENTRES].requires_grad_()
        self.pending.append(Pending(selection, leaf_SD, rows))
        self.leaves.append(leaf_SD)
        self.iteration += 1
        return leaf_SD

    def clear_pending(self) -> None:
        """Forget the selections and gradients since the last update."""
        self.pending.clear()
        self.leaves.clear()

    def centres(self, classes_N: Tensor) -> Tensor:
        """The centres (N, D) of some of this rank's classes; no collective.

        Raises:
            ValueError: a class that is not here.
        """
        classes_N, layout = classes_N.cpu(), self.layout
        start, end = layout.class_start, layout.class_end
        if len(classes_N) and not start <= int(classes_N.min()) <= int(classes_N.max()) < end:
            raise ValueError(
                f"this rank holds classes [{start}, {end}), asked for {int(classes_N.min())} to "
                f"{int(classes_N.max())}"
            )
        heads_h = (classes_N // layout.head_size).unique()
        classes_S, names = layout.classes_of(heads_h), None if self._catch_up else [CENTRES]
        rows = self._present(classes_S, self.storage.take(self.storage.fetch(heads_h, names)))
        return rows[CENTRES][to_device(torch.searchsorted(classes_S, classes_N), self.device)]

    @property
    def visits(self) -> Tensor:
        """Updates of each head of this rank, int32, on the host."""
        return self.storage.visits

    def updates_of(self, classes_S: Tensor) -> Tensor:
        """How often the head of each class was updated, (S,) int32 on the training device."""
        return to_device(self.visits[self.layout.places_of(classes_S // self.layout.head_size)], self.device)

    def tensors(self) -> Rows:
        """The centres and the optimizer's state in memory, once all is written, (classes of this rank, D) each.

        Rows of heads never updated still hold zeros.

        Raises:
            ValueError: they are in files.
        """
        if not isinstance(self.storage.arrays, MemoryArrays):
            raise ValueError("heads in files are no tensor: see centres(), and heads/checkpoint.py for saving them")
        self.storage.flush()
        return self.storage.arrays.tensors

    @property
    def weight(self) -> Tensor:
        """The centres among :meth:`tensors`."""
        return self.tensors()[CENTRES]

    def state_dict(self) -> dict[str, Any]:
        """This rank's centres, optimizer state and visits; heads/checkpoint.py saves for any number of ranks."""
        return {**self.tensors(), **self.storage.counts, **self.settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, for the same rank and number of ranks.

        Raises:
            ValueError: it holds the state of another optimizer, or belongs to another classifier.
        """
        tensors = self.tensors()
        saved = {name for name, value in state.items() if isinstance(value, Tensor) and value.ndim == 2}
        if not saved ^ tensors.keys() <= {MOMENTUM}:  # momentum may begin or end here
            raise ValueError(
                f"the classifier was saved with {', '.join(sorted(saved))}, this run needs "
                f"{', '.join(sorted(tensors))}: it was trained with another optimizer"
            )
        self.load_settings(state)
        for name, tensor in tensors.items():
            tensor.copy_(state.get(name, torch.zeros_like(tensor)))
        for name, count in self.storage.counts.items():
            count.copy_(state.get(name, torch.full_like(count, self.steps)))

    def settings(self) -> dict[str, int]:
        """What the shards mean, how many draws and how many steps have been made."""
        return {
            "num_classes": self.layout.num_classes,
            "head_size": self.layout.head_size,
            "embedding_size": self.embedding_size,
            "seed": self.seed,
            "iteration": self.iteration,
            "steps": self.steps,
        }

    def load_settings(self, saved: dict[str, int]) -> None:
        """Continue from the draws of :meth:`settings`; forwards already announced are forgotten.

        Raises:
            ValueError: they belong to other classes, heads, embedding size or seed.
        """
        for name, own in self.settings().items():
            if name not in ("iteration", "steps") and saved[name] != own:
                raise ValueError(
                    f"the checkpoint's classifier has {name} = {saved[name]}, this run has {own}; resume with the "
                    "settings that it was trained with"
                )
        self.forget_prefetched()
        self.doubt = None
        self.iteration = saved["iteration"]
        self.steps = saved.get("steps", saved["iteration"])  # older checkpoints counted forwards alone
