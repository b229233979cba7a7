"""What the classifier is measured against: the same loss with one dense parameter and a dense optimizer.

Each form keeps a block of centres as an ``nn.Parameter`` that ``torch.optim.SGD`` sweeps as a whole, so gradient,
momentum and weight decay cost in proportion to the number of classes, whatever the batch selects. They differ only in
which rows take part in the softmax. Written for these measurements, after the papers' descriptions, and meant to be
good of their kind: products are divided by the centres' lengths instead of normalising a copy of all centres first.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, S selected rows of this rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import sharded_cross_entropy
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


class FullSoftmax(nn.Module):
    """Model-parallel softmax over every class; each rank holds a contiguous block of whole units.

    Args:
        margin_loss: ``logits = margin_loss(cosines_GS, labels_G)``, such as ``losses.ArcFace``.
        embedding_size: D.
        num_classes: C.
        unit: classes that must stay on one rank, the head size where there are heads.
        amp_dtype: type of the embeddings' exchange, the normalisation and the product; None keeps ``dtype``.
        dtype: of the centres.
    """

    def __init__(
        self,
        margin_loss: Callable[[Tensor, Tensor], Tensor],
        embedding_size: int,
        num_classes: int,
        *,
        unit: int = 1,
        amp_dtype: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        start, end = part_of(-(-num_classes // unit), get_rank(), get_world_size())
        self.class_start, self.class_end = min(start * unit, num_classes), min(end * unit, num_classes)
        self.margin_loss = margin_loss
        self.amp_dtype = amp_dtype
        rows = self.class_end - self.class_start
        self.weight = nn.Parameter(torch.empty(rows, embedding_size, dtype=dtype).normal_(0, INITIAL_STD))
        self.selected_rows = 0  # S of the last forward

    def choose(self, positives_P: Tensor) -> Tensor | None:
        """The rows (S,) of this rank that take part, ascending; None means every row.

        Args:
            positives_P: (P,) int64, rows that hold a label of the global batch, with repetitions.
        """
        return None

    def gather(self, rows_S: Tensor) -> Tensor:
        """The centres (S, D) of some rows, with a gradient to the whole parameter."""
        return self.weight.index_select(0, rows_S)

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """The mean loss of the global batch; see ``PartialFCMHS.forward``.

        Collectives: all-gather of B labels, all-gather of B * D embeddings, all-reduce (max) of G numbers, all-reduce
        (sum) of 2 * G numbers; backward one reduce-scatter of G * D.
        """
        labels_G = all_gather_rows(local_labels)
        x_GD = gather_rows_with_grad(local_embeddings.to(self.amp_dtype or self.weight.dtype))
        here_G = (labels_G >= self.class_start) & (labels_G < self.class_end)
        row_G = labels_G - self.class_start
        rows_S = self.choose(row_G[here_G])
        centres_SD: Tensor = self.weight
        place_G = row_G
        if rows_S is not None:
            centres_SD = self.gather(rows_S)
            place_G = torch.searchsorted(rows_S, row_G)
        columns_G = torch.where(here_G, place_G, -1)
        self.selected_rows = centres_SD.shape[0]
        products_GS = F.linear(F.normalize(x_GD), centres_SD.to(x_GD.dtype))
        lengths_S = centres_SD.norm(dim=1).clamp(min=1e-12)
        cosines_GS = (products_GS.to(lengths_S.dtype) / lengths_S).clamp(-1, 1)
        logits_GS = self.margin_loss(cosines_GS, columns_G)
        if self.selected_rows:
            highest_G = logits_GS.detach().amax(1)
        else:
            highest_G = logits_GS.new_full((len(labels_G),), -torch.inf)
        return sharded_cross_entropy(logits_GS, columns_G, all_reduce_max_(highest_G), all_reduce_sum_)


class DensePartialFC(FullSoftmax):
    """PartialFC: the batch's own classes, filled up with random ones to a fixed share of the rank's block.

    Source: An et al., Killing Two Birds with One Stone, CVPR 2022. The draw gives each class a random number, as
    published implementations do, and is therefore one more pass over all classes.

    Args:
        sample_rate: the share of classes that take part, in (0, 1].
    """

    def __init__(
        self,
        margin_loss: Callable[[Tensor, Tensor], Tensor],
        embedding_size: int,
        num_classes: int,
        *,
        sample_rate: float = 0.1,
        amp_dtype: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(margin_loss, embedding_size, num_classes, amp_dtype=amp_dtype, dtype=dtype)
        self.sample_rate = sample_rate

    def choose(self, positives_P: Tensor) -> Tensor | None:
        """See :meth:`FullSoftmax.choose`."""
        positives = positives_P.unique()
        wanted = max(int(self.sample_rate * len(self.weight)), len(positives))
        priority = torch.rand(len(self.weight), device=self.weight.device)
        priority[positives] = 1.0  # above every drawn number
        return priority.topk(wanted, sorted=False).indices.sort().values


class DenseMHS(FullSoftmax):
    """Multi-head sampling with the softmax over all selected heads, on a dense parameter.

    Source: Liang et al., Multi-Head Encoding for Extreme Label Classification, TPAMI 2025 (arXiv 2412.10182).
    Differs from the authors' code in that ranks share the centres.

    Args:
        head_size: L, classes per head.
    """

    def __init__(
        self,
        margin_loss: Callable[[Tensor, Tensor], Tensor],
        embedding_size: int,
        num_classes: int,
        *,
        head_size: int,
        amp_dtype: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(margin_loss, embedding_size, num_classes, unit=head_size, amp_dtype=amp_dtype, dtype=dtype)
        self.head_size = head_size

    def choose(self, positives_P: Tensor) -> Tensor | None:
        """See :meth:`FullSoftmax.choose`."""
        heads_h = (positives_P // self.head_size).unique()
        rows_S: Tensor = (
            heads_h.unsqueeze(1) * self.head_size + torch.arange(self.head_size, device=heads_h.device)
        ).flatten()
        return rows_S[rows_S < len(self.weight)]


class NormalisedMHS(DenseMHS):
    """The same, but every centre is normalised in every step, and the selected ones are taken from the result.

    This is the order of the MHE authors' code; it adds several passes over all classes, forward and backward.
    """

    def gather(self, rows_S: Tensor) -> Tensor:
        """See :meth:`FullSoftmax.gather`."""
        return F.normalize(self.weight).index_select(0, rows_S)
