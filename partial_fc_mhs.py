"""The multi-head-sampling classifier: class centres cut into heads and shared out over ranks.

A step computes and updates only the heads that hold a label of the global batch, so its cost depends on the batch
and the head size, not on the number of classes. Everything outside those heads stays bit-identical.

This file is the method: gather, cosines, margin, one packed all-reduce, softmax. Which heads live on this rank, how
they are chosen, stored and moved: see ``heads/``.

Shapes: W ranks, B batch of one rank, G = W * B, D embedding size, C classes, L classes per head, H = ceil(C / L)
heads, S selected classes of this rank.

Source: Liang et al., Multi-Head Encoding for Extreme Label Classification, TPAMI 2025 (arXiv 2412.10182); with
``head_size=1`` and ``sample_rate`` it is PartialFC (An et al., CVPR 2022), with ``negative_rate=1`` model-parallel
full softmax. Differs from both authors' code in that the update is sparse, and that it is exact across ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.arrays import CENTRES
from heads.selection import Selection
from heads.shard import HeadShard
from losses import LateCentres, Margin, cosines, sharded_cross_entropy
from utils.device import to_device
from utils.distributed import RowExchange, all_reduce_max_, all_reduce_sum_


@dataclass
class StepStats:
    """What the last training forward saw, over all ranks; tensors, so that only reading them waits."""

    positive_cosine: Tensor  # () mean cosine of the samples with their own centres
    top1: Tensor  # () share of samples whose own centre is the nearest of the selected ones
    selected_heads: Tensor  # ()
    selected_classes: Tensor  # ()


class PartialFCMHS(nn.Module):
    """Sharded classifier over C classes that works on the heads holding the batch's labels.

    ``loss = classifier(local_embeddings, local_labels)`` is the mean over the global batch, equal on all ranks.
    Backward fills the gradient of the selected rows; an optimizer of ``heads/optim.py`` made on ``classifier.shard``
    updates them in place.

    Args:
        margin_loss: a margin on cosines, such as ``losses.ArcFace``.
        embedding_size: D.
        num_classes: C.
        amp_dtype: type of the exchange of the normalised embeddings and of the product; None keeps the centres'.
        shard: what :class:`heads.shard.HeadShard` takes, ``head_size`` (L) at least; also ``negative_rate``,
            ``sample_rate``, ``head_scope``, ``head_storage``, ``head_folder``, ``head_cache_gib``, ``seed``,
            ``dtype``, ``device``.

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
        amp_dtype: torch.dtype | None = None,
        **shard: Any,
    ) -> None:
        super().__init__()
        self.shard = HeadShard(num_classes, embedding_size, **shard)
        self.margin_loss = margin_loss.to(self.shard.device)
        self.amp_dtype = amp_dtype
        self.stats: StepStats | None = None

    def extra_repr(self) -> str:
        """The numbers that a printed module shows."""
        shard, layout = self.shard, self.shard.layout
        return (
            f"num_classes={layout.num_classes}, head_size={layout.head_size}, heads={layout.num_heads}, "
            f"negative_rate={shard.negative_rate}, sample_rate={shard.sample_rate}, head_scope={shard.head_scope!r}, "
            f"classes here=[{layout.class_start}, {layout.class_end})"
        )

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """The loss of the global batch.

        Args:
            local_embeddings: (B, D), any floating type, not normalised; B is the same on every rank.
            local_labels: (B,) int64 in [0, C), best on the host.

        Returns:
            The scalar mean over all G samples, the same on every rank, in float32 (float64 stays float64).

        Raises:
            ValueError: shapes that do not fit, a label outside [0, C), labels that are not int64.

        Collectives: all-gather of B labels between hosts (unless announced by ``shard.prefetch``), all-gather of
        B * D embeddings in ``amp_dtype`` (with their lengths, in float32, if the margin needs these), all-reduce
        (max) of 2 * G numbers, all-reduce (sum) of 2 * G + 3 numbers; backward one reduce-scatter of the size of
        the embeddings' gather, while the centres' gradient is computed.
        """
        self._check(local_embeddings, local_labels)
        is_training = self.training and torch.is_grad_enabled()
        selection, rows = self.shard.take(local_labels) if is_training else self.shard.look(local_labels)
        centres_SD = self.shard.expect_update(selection, rows) if is_training else rows[CENTRES]
        with torch.autocast(local_embeddings.device.type, enabled=False):
            return self._loss(local_embeddings.to(self.shard.dtype), centres_SD, selection, is_training)

    def _loss(self, x_BD: Tensor, centres_SD: Tensor, selection: Selection, is_training: bool) -> Tensor:
        # Embeddings of all ranks; in backward their gradients travel while the centres' are computed.
        exchange, amp_dtype = RowExchange(), self.amp_dtype or self.shard.dtype
        unit_BD = F.normalize(x_BD)
        if self.margin_loss.needs_norms:
            both_BE = exchange.receive(torch.cat((unit_BD, x_BD.norm(dim=1, keepdim=True)), 1))
            centres = LateCentres(centres_SD)
            unit_GD, norms_G1 = exchange.gather(both_BE).split((x_BD.shape[1], 1), 1)
            unit_GD, norms_G = unit_GD.to(amp_dtype).contiguous(), norms_G1.squeeze(1)
        else:
            unit_BD = exchange.receive(unit_BD.to(amp_dtype))
            centres = LateCentres(centres_SD)
            unit_GD, norms_G = exchange.gather(unit_BD), None

        # Cosines; over all ranks each sample's own one and the best of the others.
        cosines_GS = cosines(unit_GD, centres).clamp(-1, 1)
        others_G, targets_G = self._extremes(cosines_GS.detach(), selection)

        # Margin.
        with torch.no_grad():
            if is_training:
                self.margin_loss.observe(targets_G, norms_G)
            highest_G = self.margin_loss.highest(others_G, targets_G, norms_G)
        logits_GS = self.margin_loss(cosines_GS, selection.columns_G, targets_G, norms_G)
        if selection.hidden_GS is not None:
            logits_GS = logits_GS.masked_fill(selection.hidden_GS, -torch.inf)
        penalty_G = None if norms_G is None else self.margin_loss.penalty(norms_G)
        penalty = cosines_GS.new_zeros(())
        if penalty_G is not None:  # each row counts once: on the rank that holds its target
            penalty = torch.where(selection.columns_G >= 0, penalty_G, 0).sum() / len(penalty_G)

        # Softmax over ranks: its sums, the penalty and the counts travel in one all-reduce.
        counts = torch.tensor([len(selection.heads_h), len(selection.classes_S), 0.0], dtype=penalty.dtype)
        counts = to_device(counts, penalty.device)
        counts[2] = penalty.detach()

        def reduce_sum_(sums_2G: Tensor) -> Tensor:
            packed = all_reduce_sum_(torch.cat((sums_2G.flatten(), counts)), "the softmax's sums")
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
        others_G, targets_G = all_reduce_max_(both_2G, "the largest cosines").unbind()
        return others_G, targets_G

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.shard.embedding_size:
            raise ValueError(f"embeddings must be (B, {self.shard.embedding_size}), got {tuple(embeddings.shape)}")
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"labels must be ({embeddings.shape[0]},) like the embeddings, got {tuple(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64, got {labels.dtype}; use labels.long()")

    def get_extra_state(self) -> dict[str, Any]:
        """This rank's heads, for ``state_dict``; see :meth:`heads.shard.HeadShard.state_dict`."""
        return self.shard.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave, for the same rank and number of ranks."""
        self.shard.load_state_dict(state)
