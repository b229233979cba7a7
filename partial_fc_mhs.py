"""The multi-head-sampling classifier: class centres cut into heads and shared out over ranks.

A step computes and updates only the heads that hold a label of the global batch, so its cost depends on the batch
and the head size, not on the number of classes. Everything outside those heads keeps every bit.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, L classes per head, H = ceil(C / L)
heads, S selected classes of this rank.

Layout: class c lives in head c // L, slot c % L. Rank r holds a contiguous block of heads
(``utils.distributed.share``) and one row of ``weight`` for each class in them; the last head may be short.

Source: Liang et al., Multi-Head Encoding for Extreme Label Classification, TPAMI 2025 (arXiv 2412.10182); with
``head_size=1`` it is PartialFC (An et al., CVPR 2022) or, with ``negative_rate=1``, model-parallel full softmax.
Differs from both authors' code in that the update is sparse, and from the former in that it is exact across ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import sharded_cross_entropy
from utils import hashing
from utils.distributed import (
    all_gather_rows,
    all_reduce_max_,
    all_reduce_sum_,
    as_shard,
    gather_rows_with_grad,
    get_rank,
    get_world_size,
    share,
)

HeadScope = Literal["batch", "own"]

INITIAL_STD = 0.01  # of a centre's elements
_FOR_CENTRES, _FOR_NEGATIVES = 1, 2  # what a random draw is for, so that draws for two purposes differ


@dataclass
class Selection:
    """The heads of this rank that one batch works on."""

    heads_h: Tensor  # (h,) int64, global head numbers, ascending
    rows_S: Tensor  # (S,) int64, rows of the rank's weight, ascending
    columns_G: Tensor  # (G,) int64, the label's place in rows_S, or -1 where another rank holds it
    hidden_GS: Tensor | None  # (G, S) bool, classes outside a sample's softmax; None: there are none


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
    fills the gradient of the selected rows; an optimizer of row_optim.py made on this module updates them in place.

    Args:
        margin_loss: ``logits = margin_loss(cosines_GS, labels_G)``, such as ``losses.ArcFace``.
        embedding_size: D.
        num_classes: C.
        head_size: L; above C it means one head.
        negative_rate: each head that holds no label of the batch takes part with this probability, drawn anew each
            step: 0 is pure multi-head sampling, 1 takes every head.
        head_scope: what a sample's softmax runs over: "batch", all selected classes of all ranks; "own", its own
            head and the drawn ones.
        seed: initial centres are functions of (seed, class), negatives of (seed, step, head).
        amp_dtype: type of the embeddings' exchange, the normalisation and the product; None keeps ``dtype``.
        dtype: of the centres.
        device: of the centres.

    Raises:
        ValueError: an argument outside its range, named with what is allowed.
    """

    def __init__(
        self,
        margin_loss: Callable[[Tensor, Tensor], Tensor],
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
        self.margin_loss = margin_loss
        self.embedding_size = embedding_size
        self.num_classes = num_classes
        self.head_size = head_size
        self.negative_rate = negative_rate
        self.head_scope = head_scope
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.iteration = 0  # training forwards so far
        self.num_heads = -(-num_classes // head_size)
        self.head_start, self.head_end = share(self.num_heads, get_rank(), get_world_size())
        self.class_start = min(self.head_start * head_size, num_classes)
        self.class_end = min(self.head_end * head_size, num_classes)
        rows = self.class_end - self.class_start
        self.weight: Tensor  # (rows, D); rows of a head without visits are not filled yet
        self.visits: Tensor  # (heads of this rank,) int32, updates so far
        self.register_buffer("weight", untouched_zeros((rows, embedding_size), dtype, device))
        self.register_buffer("visits", untouched_zeros((self.head_end - self.head_start,), torch.int32, device))
        self.pending: list[tuple[Selection, Tensor]] = []  # selections since the last zero_grad, with their leaf_SD
        self.leaves: list[Tensor] = []  # the same leaves, as an optimizer's list of parameters
        self.stats: StepStats | None = None

    def extra_repr(self) -> str:
        """The numbers that a printed module shows."""
        return (
            f"num_classes={self.num_classes}, head_size={self.head_size}, heads={self.num_heads}, "
            f"negative_rate={self.negative_rate}, head_scope={self.head_scope!r}, "
            f"classes here=[{self.class_start}, {self.class_end})"
        )

    def select(self, labels_G: Tensor) -> Selection:
        """The heads of this rank for a global batch: those that hold a label, and the drawn ones.

        Raises:
            ValueError: a label outside [0, C).
        """
        lowest, highest = (int(v) for v in labels_G.aminmax())
        if lowest < 0 or highest >= self.num_classes:
            raise ValueError(
                f"labels must be in [0, {self.num_classes - 1}], found {lowest} to {highest}; "
                "set num_classes to the number of identities, or 'auto'"
            )
        device, L = labels_G.device, self.head_size
        head_of_label_G = labels_G // L
        here_G = (head_of_label_G >= self.head_start) & (head_of_label_G < self.head_end)
        drawn_h = self._drawn_heads(device)
        heads_h = torch.cat((head_of_label_G[here_G], drawn_h)).unique()
        classes_S = (heads_h.unsqueeze(1) * L + torch.arange(L, device=device)).flatten()
        if self.head_end == self.num_heads:  # slots past C in the last head never take part
            classes_S = classes_S[classes_S < self.num_classes]
        place_G = torch.searchsorted(heads_h, head_of_label_G) * L + labels_G % L
        columns_G = torch.where(here_G, place_G, -1)
        hidden_GS = None
        if self.head_scope == "own":
            head_of_column_S = classes_S // L
            drawn_S = torch.isin(head_of_column_S, drawn_h)
            hidden_GS = (head_of_label_G.unsqueeze(1) != head_of_column_S) & ~drawn_S
        return Selection(heads_h, classes_S - self.class_start, columns_G, hidden_GS)

    def _drawn_heads(self, device: torch.device) -> Tensor:
        """Global numbers of this rank's heads that take part whatever the labels; (n,) int64, ascending."""
        if self.negative_rate == 0:
            return torch.empty(0, dtype=torch.int64, device=device)
        heads = torch.arange(self.head_start, self.head_end, device=device)
        if self.negative_rate == 1:
            return heads
        key = hashing.key(self.seed, _FOR_NEGATIVES, self.iteration)
        return heads[hashing.uniform(key, heads) < self.negative_rate]

    def gather(self, selection: Selection) -> Tensor:
        """The selected centres (S, D), a copy; those never updated before get their initial values."""
        rows_SD = self.weight[selection.rows_S]
        new_S = self.visits[self.local_head(selection.rows_S)] == 0
        if new_S.any():
            rows_SD[new_S] = self.initial_centres(selection.rows_S[new_S] + self.class_start)
        return rows_SD

    def local_head(self, rows_S: Tensor) -> Tensor:
        """The place in ``visits`` (S,) of each row's head."""
        return (rows_S + self.class_start) // self.head_size - self.head_start

    def initial_centres(self, classes_N: Tensor) -> Tensor:
        """The values (N, D) with which the centres of the given classes start: normal(0, 0.01)."""
        key = hashing.key(self.seed, _FOR_CENTRES)
        return (hashing.normal(key, classes_N, self.embedding_size) * INITIAL_STD).to(self.weight.dtype)

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """The loss of the global batch.

        Args:
            local_embeddings: (B, D), any floating type, not normalised; B is the same on every rank.
            local_labels: (B,) int64 in [0, C).

        Returns:
            The scalar mean over all G samples, the same on every rank, in float32 (float64 stays float64).

        Raises:
            ValueError: shapes that do not fit, a label outside [0, C), labels that are not int64.

        Collectives: all-gather of B labels, all-gather of B * D embeddings in ``amp_dtype``, all-reduce (max) of
        2 * G numbers, all-reduce (sum) of 2 * G + 4 numbers; backward one reduce-scatter of G * D in ``amp_dtype``.
        """
        self._check(local_embeddings, local_labels)
        labels_G = all_gather_rows(local_labels)
        selection = self.select(labels_G)
        x_GD = gather_rows_with_grad(local_embeddings.to(self.amp_dtype or self.weight.dtype))
        leaf_SD = self.gather(selection)
        if self.training and torch.is_grad_enabled():
            leaf_SD.requires_grad_()
            self.pending.append((selection, leaf_SD))
            self.leaves.append(leaf_SD)
            self.iteration += 1

        with torch.autocast(x_GD.device.type, enabled=False):
            eps = max(1e-12, torch.finfo(x_GD.dtype).tiny)
            centres_SD = leaf_SD.to(x_GD.dtype)
            cosines_GS = F.linear(F.normalize(x_GD, eps=eps), F.normalize(centres_SD, eps=eps))
            cosines_GS = cosines_GS.to(torch.promote_types(cosines_GS.dtype, torch.float32)).clamp(-1, 1)
            logits_GS = self.margin_loss(cosines_GS, selection.columns_G)
            if selection.hidden_GS is not None:
                logits_GS = logits_GS.masked_fill(selection.hidden_GS, -torch.inf)
            reduction = _StatsReduction(selection, cosines_GS.detach())
            loss = sharded_cross_entropy(logits_GS, selection.columns_G, reduction.max_, reduction.sum_)
        self.stats = reduction.stats
        return loss

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(f"embeddings must be (B, {self.embedding_size}), got {tuple(embeddings.shape)}")
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"labels must be ({embeddings.shape[0]},) like the embeddings, got {tuple(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64, got {labels.dtype}; use labels.long()")

    def clear_pending(self) -> None:
        """Forget the selections and gradients since the last update."""
        self.pending.clear()
        self.leaves.clear()

    def row_shard(self, rows: Tensor) -> Tensor:
        """Mark a tensor with one row per class of this rank as a shard of the global (C, ...) tensor.

        ``torch.distributed.checkpoint`` then saves it as such and loads it on any number of ranks.
        """
        return as_shard(rows, self.num_classes, self.class_start)

    def shards(self) -> dict[str, Tensor]:
        """The centres and visits as shards that share this module's memory: load into them to load the module."""
        return {
            "weight": self.row_shard(self.weight),
            "visits": as_shard(self.visits, self.num_heads, self.head_start),
        }

    def settings(self) -> dict[str, int]:
        """What the shards mean, and how many draws have been made."""
        names = ("num_classes", "head_size", "embedding_size", "seed", "iteration")
        return {name: getattr(self, name) for name in names}

    def load_settings(self, saved: dict[str, int]) -> None:
        """Go on from the draws of :meth:`settings`.

        Raises:
            ValueError: they belong to other classes, heads, embedding size or seed.
        """
        for name, own in self.settings().items():
            if name != "iteration" and saved[name] != own:
                raise ValueError(
                    f"the checkpoint's classifier has {name} = {saved[name]}, this run has {own}; resume with the "
                    "settings that it was trained with"
                )
        self.iteration = saved["iteration"]


class _StatsReduction:
    """The two reductions of the cross-entropy, carrying the step's statistics along in the same messages."""

    def __init__(self, selection: Selection, cosines_GS: Tensor) -> None:
        self.selection = selection
        self.cosines_GS = cosines_GS
        self.top_G: Tensor | None = None
        self.stats: StepStats | None = None

    def max_(self, logit_G: Tensor) -> Tensor:
        cosines_GS = self.cosines_GS
        if self.selection.hidden_GS is not None:
            cosines_GS = cosines_GS.masked_fill(self.selection.hidden_GS, -torch.inf)
        top_G = cosines_GS.amax(1) if cosines_GS.shape[1] else torch.full_like(logit_G, -torch.inf)
        both_2G = all_reduce_max_(torch.stack((logit_G, top_G)))
        self.top_G = both_2G[1]
        return logit_G.copy_(both_2G[0])

    def sum_(self, sums_2G: Tensor) -> Tensor:
        assert self.top_G is not None
        columns_G = self.selection.columns_G
        here_G = columns_G >= 0
        if self.cosines_GS.shape[1]:
            target_G = self.cosines_GS.gather(1, columns_G.clamp(min=0).unsqueeze(1)).squeeze(1)
        else:
            target_G = torch.zeros_like(self.top_G)
        mine = torch.stack(
            (
                torch.where(here_G, target_G, 0).sum(),
                (here_G & (target_G >= self.top_G)).sum().to(target_G.dtype),
                target_G.new_tensor(float(len(self.selection.heads_h))),
                target_G.new_tensor(float(len(self.selection.rows_S))),
            )
        )
        packed = all_reduce_sum_(torch.cat((sums_2G.flatten(), mine)))
        cosine, correct, heads, classes = packed[-4:].unbind()
        G = len(columns_G)
        self.stats = StepStats(cosine / G, correct / G, heads, classes)
        return sums_2G.copy_(packed[:-4].view_as(sums_2G))


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros that on a CPU take up memory only once they are written."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(np.zeros(shape, numpy_dtype))
