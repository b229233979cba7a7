"""The multi-head-sampling classifier: class centres cut into heads and shared out over ranks.

A step computes and updates only the heads that hold a label of the global batch, so its cost depends on the batch
and the head size, not on the number of classes. Everything outside those heads keeps every bit.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, L classes per head, H = ceil(C / L)
heads, S selected classes of this rank.

Layout: class c lives in head c // L, slot c % L. Rank r holds a contiguous block of heads
(``utils.distributed.part_of``) and one row of ``weight`` for each class in them; the last head may be short.

Source: Liang et al., Multi-Head Encoding for Extreme Label Classification, TPAMI 2025 (arXiv 2412.10182); with
``head_size=1`` it is PartialFC (An et al., CVPR 2022) or, with ``negative_rate=1``, model-parallel full softmax.
Differs from both authors' code in that the update is sparse, and from the former in that it is exact across ranks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.selection import HeadScope, Selection, Shard, draw_heads, select_heads
from heads.storage import CENTRES, Fetch, HeadStorage, Place, Rows
from losses import Margin, cosines, sharded_cross_entropy
from utils import hashing
from utils.device import to_device
from utils.distributed import (
    all_gather_rows,
    all_reduce_max_,
    all_reduce_sum_,
    gather_rows_with_grad,
    get_rank,
    get_world_size,
    part_of,
)

INITIAL_STD = 0.01  # of a centre's elements
_FOR_CENTRES, _FOR_NEGATIVES = 1, 2  # what a random draw is for, so that draws for two purposes differ


@dataclass
class Pending:
    """One forward that waits for the optimizer."""

    selection: Selection
    leaf_SD: Tensor  # the centres, with their gradient after backward
    rows: Rows  # the optimizer's state (and the centres) as fetched


@dataclass
class StepStats:
    """What the last training forward saw, over all ranks; tensors, so that reading is the only wait."""

    positive_cosine: Tensor  # () mean cosine of the samples with their own centres
    top1: Tensor  # () share of samples whose own centre is the nearest of the selected ones
    selected_heads: Tensor  # ()
    selected_classes: Tensor  # ()


class PartialFCMHS(nn.Module):
    """Sharded classifier over C classes that works on the heads holding the batch's labels.

    ``loss = head(local_embeddings, local_labels)`` is the mean over the global batch, equal on all ranks. Backward
    fills the gradient of the selected rows; an optimizer of heads/optim.py made on this module updates them in place.

    Args:
        margin_loss: a margin on cosines, such as ``losses.ArcFace``.
        embedding_size: D.
        num_classes: C.
        head_size: L; above C it means one head.
        negative_rate: each head that holds no label of the batch takes part with this probability, drawn anew each
            step: 0 is pure multi-head sampling, 1 takes every head.
        head_scope: what a sample's softmax runs over: "batch", all selected classes of all ranks; "own", its own
            head and the drawn ones.
        seed: initial centres are functions of (seed, class), negatives of (seed, step, head).
        amp_dtype: type of the embeddings' exchange, the normalisation and the product; None keeps ``dtype``.
        dtype: of the centres, float32 or float64.
        device: where the classifier computes.
        head_storage: where the centres and the optimizer's state live: "device", "host" or "file".
        head_folder: for "file", a folder on a disk of this machine.

    Raises:
        ValueError: an argument outside its range, named with what is allowed.
        OSError: ``head_folder`` cannot be written.
    """

    def __init__(
        self,
        margin_loss: Margin,
        embedding_size: int,
        num_classes: int,
        *,
        head_size: int,
        negative_rate: float = 0.0,
        head_scope: HeadScope = "batch",
        seed: int = 0,
        amp_dtype: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        head_storage: Place = "device",
        head_folder: Path | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("embedding_size", embedding_size),
            ("num_classes", num_classes),
            ("head_size", head_size),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}; amp_dtype sets the type of the product")
        if not 0 <= negative_rate <= 1:
            raise ValueError(f"negative_rate must be in [0, 1], got {negative_rate}")
        if head_scope not in ("batch", "own"):
            raise ValueError(f"head_scope must be 'batch' or 'own', got {head_scope!r}")
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.margin_loss = margin_loss.to(self.device)
        self.embedding_size = embedding_size
        self.num_classes = num_classes
        self.head_size = head_size
        self.negative_rate = negative_rate
        self.head_scope = head_scope
        self.seed = seed
        self.dtype = dtype
        self.amp_dtype = amp_dtype
        self.iteration = 0  # training forwards so far
        self.num_heads = -(-num_classes // head_size)
        self.shard = Shard(num_classes, head_size, *part_of(self.num_heads, get_rank(), get_world_size()))
        self.head_start, self.head_end = self.shard.head_start, self.shard.head_end
        self.class_start, self.class_end = self.shard.class_start, self.shard.class_end
        self.storage = HeadStorage(
            self.class_end - self.class_start,
            head_size,
            embedding_size,
            dtype,
            self.device,
            lambda rows_S: self.initial_centres(to_device(rows_S + self.class_start, self.storage.home)),
            head_storage,
            head_folder,
        )
        self.pending: list[Pending] = []  # forwards since the last zero_grad
        self.leaves: list[Tensor] = []  # their leaf_SD, as an optimizer's list of parameters
        self.stats: StepStats | None = None
        self._announced: deque[tuple[Tensor, Selection, Fetch]] = deque()

    def extra_repr(self) -> str:
        """The numbers that a printed module shows."""
        return (
            f"num_classes={self.num_classes}, head_size={self.head_size}, heads={self.num_heads}, "
            f"negative_rate={self.negative_rate}, head_scope={self.head_scope!r}, "
            f"classes here=[{self.class_start}, {self.class_end})"
        )

    def select(self, labels_G: Tensor, iteration: int) -> Selection:
        """The heads of this rank for a global batch (G,) on the host: those that hold a label, and those drawn.

        Raises:
            ValueError: a label outside [0, C).
        """
        return select_heads(self.shard, labels_G, self.drawn_heads(iteration), self.head_scope, self.device)

    def drawn_heads(self, iteration: int) -> Tensor:
        """Global numbers (n,) of this rank's heads that take part in a forward whatever its labels, ascending."""
        return draw_heads(self.shard, self.negative_rate, hashing.key(self.seed, _FOR_NEGATIVES, iteration))

    def prefetch(self, local_labels: Tensor) -> None:
        """Announce the labels of a coming forward, so that its heads arrive while the ones before it compute.

        Call it for each training forward in their order, at the latest before the forward itself; every rank does.

        Args:
            local_labels: (B,) int64, the very labels that the forward will get; best on the host, as loaders give
                them, so that nothing waits for the device.

        Collectives: the all-gather of B labels, between hosts, that the forward then does without.
        """
        labels_G = all_gather_rows(local_labels.cpu())
        selection = self.select(labels_G, self.iteration + len(self._announced))
        self._announced.append((local_labels, selection, self.storage.fetch(selection.heads_h, selection.rows_S)))

    @property
    def has_announced(self) -> bool:
        """Whether forwards have been announced that have not come yet."""
        return bool(self._announced)

    def forget_prefetched(self) -> None:
        """Drop announced forwards that will not come; every rank does."""
        for _, _, fetch in self._announced:
            self.storage.forget(fetch)
        self._announced.clear()

    def _take(self, local_labels: Tensor, is_training: bool) -> tuple[Selection, Rows]:
        """This forward's heads, announced before or asked for now."""
        if not is_training or not self._announced:
            selection = self.select(all_gather_rows(local_labels.cpu()), self.iteration)
            return selection, self.storage.take(self.storage.fetch(selection.heads_h, selection.rows_S))
        announced, selection, fetch = self._announced[0]
        if announced is not local_labels and not torch.equal(announced.cpu(), local_labels.cpu()):
            raise ValueError("the labels differ from those announced by prefetch; announce forwards in their order")
        self._announced.popleft()
        return selection, self.storage.take(fetch)

    def centres(self, classes_N: Tensor) -> Tensor:
        """The centres (N, D) of some of this rank's classes, given by their global numbers; no collective.

        Raises:
            ValueError: a class that is not here.
        """
        classes_N = classes_N.cpu()
        if len(classes_N) and not self.class_start <= int(classes_N.min()) <= int(classes_N.max()) < self.class_end:
            raise ValueError(
                f"this rank holds classes [{self.class_start}, {self.class_end}), asked for "
                f"{int(classes_N.min())} to {int(classes_N.max())}"
            )
        heads_h = (classes_N // self.head_size).unique()
        classes_S = self.shard.classes_of(heads_h)
        fetch = self.storage.fetch(heads_h - self.head_start, classes_S - self.class_start)
        return self.storage.take(fetch)[CENTRES][torch.searchsorted(classes_S, classes_N).to(self.device)]

    @property
    def weight(self) -> Tensor:
        """The centres (classes of this rank, D) in memory; rows of heads without an update hold zeros still.

        Raises:
            ValueError: they are in a file.
        """
        return self._arrays()[CENTRES]

    def _arrays(self) -> Rows:
        """The centres and the optimizer's state, all written."""
        if self.storage.place == "file":
            raise ValueError("heads in files are no tensor: see centres(), and heads/checkpoint.py for saving them")
        self.storage.flush()
        return self.storage.arrays

    @property
    def visits(self) -> Tensor:
        """Updates of each head of this rank, int32, on the host."""
        return self.storage.visits

    def updates_of(self, rows_S: Tensor) -> Tensor:
        """How often the head of each local class number was updated, (S,) int32 on the training device."""
        return to_device(self.visits[rows_S // self.head_size], self.device)

    def initial_centres(self, classes_N: Tensor) -> Tensor:
        """The values (N, D) with which the centres of the given classes start: normal(0, 0.01)."""
        key = hashing.key(self.seed, _FOR_CENTRES)
        out_ND = torch.empty((len(classes_N), self.embedding_size), dtype=self.dtype, device=classes_N.device)
        for start in range(0, len(classes_N), 65_536):  # hashing takes five times the room of its result
            block = slice(start, start + 65_536)
            torch.mul(hashing.normal(key, classes_N[block], self.embedding_size), INITIAL_STD, out=out_ND[block])
        return out_ND

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """The loss of the global batch.

        Args:
            local_embeddings: (B, D), any floating type, not normalised; B is the same on every rank.
            local_labels: (B,) int64 in [0, C), best on the host.

        Returns:
            The scalar mean over all G samples, the same on every rank, in float32 (float64 stays float64).

        Raises:
            ValueError: shapes that do not fit, a label outside [0, C), labels that are not int64.

        Collectives: all-gather of B labels between hosts (unless announced), all-gather of B * D embeddings in
        ``amp_dtype``, all-reduce (max) of 2 * G numbers, all-reduce (sum) of 2 * G + 3 numbers; backward one
        reduce-scatter of G * D in ``amp_dtype``.
        """
        self._check(local_embeddings, local_labels)
        is_training = self.training and torch.is_grad_enabled()
        selection, rows = self._take(local_labels, is_training)
        x_GD = gather_rows_with_grad(local_embeddings.to(self.amp_dtype or self.dtype))
        leaf_SD = rows[CENTRES]
        if is_training:
            leaf_SD.requires_grad_()
            self.pending.append(Pending(selection, leaf_SD, rows))
            self.leaves.append(leaf_SD)
            self.iteration += 1
        with torch.autocast(x_GD.device.type, enabled=False):
            return self._loss(x_GD, leaf_SD, selection, is_training)

    def _loss(self, x_GD: Tensor, leaf_SD: Tensor, selection: Selection, is_training: bool) -> Tensor:
        eps = max(1e-12, torch.finfo(x_GD.dtype).tiny)
        cosines_GS = cosines(F.normalize(x_GD, eps=eps), leaf_SD).clamp(-1, 1)
        others_G, targets_G = self._extremes(cosines_GS.detach(), selection)
        norms_G = x_GD.to(cosines_GS.dtype).norm(dim=1)
        with torch.no_grad():
            if is_training:
                self.margin_loss.observe(targets_G, norms_G)
            highest_G = self.margin_loss.highest(others_G, targets_G, norms_G)
        logits_GS = self.margin_loss(cosines_GS, selection.columns_G, targets_G, norms_G)
        if selection.hidden_GS is not None:
            logits_GS = logits_GS.masked_fill(selection.hidden_GS, -torch.inf)

        penalty_G = self.margin_loss.penalty(norms_G)
        penalty = cosines_GS.new_zeros(())
        if penalty_G is not None:  # each row counts once: on the rank that holds its target
            penalty = torch.where(selection.columns_G >= 0, penalty_G, 0).sum() / len(penalty_G)
        counts = torch.tensor([len(selection.heads_h), len(selection.rows_S), 0.0], dtype=penalty.dtype)
        counts = to_device(counts, penalty.device)
        counts[2] = penalty.detach()

        def reduce_sum_(sums_2G: Tensor) -> Tensor:
            packed = all_reduce_sum_(torch.cat((sums_2G.flatten(), counts)))
            counts.copy_(packed[-3:])
            return sums_2G.copy_(packed[:-3].view_as(sums_2G))

        loss = sharded_cross_entropy(logits_GS, selection.columns_G, highest_G, reduce_sum_)
        self.stats = StepStats(targets_G.mean(), (targets_G >= others_G).float().mean(), counts[0], counts[1])
        return loss + penalty + (counts[2] - penalty).detach() if penalty_G is not None else loss

    def _extremes(self, cosines_GS: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
        """Each sample's largest cosine with another class of its softmax, and that with its own: (G,), (G,)."""
        columns_G = selection.columns_G
        nowhere_G = cosines_GS.new_full((len(columns_G),), -2.0)  # below every cosine
        both_2G = torch.stack((nowhere_G, nowhere_G))
        if cosines_GS.shape[1]:
            column_G1 = columns_G.clamp(min=0).unsqueeze(1)
            here_G1 = columns_G.unsqueeze(1) >= 0
            target_G1 = cosines_GS.gather(1, column_G1)
            others_GS = cosines_GS.scatter(1, column_G1, torch.where(here_G1, -2.0, target_G1))
            if selection.hidden_GS is not None:
                others_GS.masked_fill_(selection.hidden_GS, -2.0)
            both_2G[0] = others_GS.amax(1)
            both_2G[1] = torch.where(here_G1, target_G1, -2.0).squeeze(1)
        others_G, targets_G = all_reduce_max_(both_2G).unbind()
        return others_G, targets_G

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings must be (B, {self.embedding_size}), got {tuple(embeddings.shape)}")
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"labels must be ({embeddings.shape[0]},) like the embeddings, got {tuple(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64, got {labels.dtype}; use labels.long()")

    def get_extra_state(self) -> dict[str, Any]:
        """This rank's centres, optimizer state and visits, for ``state_dict``.

        heads/checkpoint.py saves for any number of ranks, and heads in files too.
        """
        return {**self._arrays(), "visits": self.visits, **self.settings()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave, on the same rank of as many.

        Raises:
            ValueError: it lacks the state of this run's optimizer, or belongs to another classifier.
        """
        arrays = self._arrays()
        if missing := arrays.keys() - state.keys():
            raise ValueError(f"the classifier was saved without {', '.join(sorted(missing))}: with another optimizer")
        self.load_settings(state)
        for name, array in arrays.items():
            array.copy_(state[name])
        self.visits.copy_(state["visits"])

    def clear_pending(self) -> None:
        """Forget the selections and gradients since the last update."""
        self.pending.clear()
        self.leaves.clear()

    def settings(self) -> dict[str, int]:
        """What the shards mean, and how many draws have been made."""
        names = ("num_classes", "head_size", "embedding_size", "seed", "iteration")
        return {name: getattr(self, name) for name in names}

    def load_settings(self, saved: dict[str, int]) -> None:
        """Go on from the draws of :meth:`settings`; forwards announced before are forgotten.

        Raises:
            ValueError: they belong to other classes, heads, embedding size or seed.
        """
        for name, own in self.settings().items():
            if name != "iteration" and saved[name] != own:
                raise ValueError(
                    f"the checkpoint's classifier has {name} = {saved[name]}, this run has {own}; resume with the "
                    "settings that it was trained with"
                )
        self.forget_prefetched()
        self.iteration = saved["iteration"]
