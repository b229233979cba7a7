"""What all margins share: shift each row's target cosine, leave or bend the others, scale.

Shapes: N rows (samples of all ranks), S columns (classes of this shard).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Margin(nn.Module):
    """A margin on cosines; a subclass defines :meth:`shift`, and :meth:`bend` if it changes the other classes too.

    Some margins depend on more than their own columns: on the length of the embeddings, or on each row's target
    cosine even where another shard holds it. The caller that has gathered these gives them as ``norms_N`` and
    ``targets_N``; they are the same on every shard.

    Args:
        scale: the factor on all logits, above 0.

    Raises:
        ValueError: ``scale`` is not above 0.
    """

    needs_norms = False  # whether the lengths of the embeddings matter

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale = float(scale)

    def extra_repr(self) -> str:
        """The settings that a printed margin shows."""
        settings = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        words = [f"{name}={value:g}" for name, value in settings.items()]
        return ", ".join(words + ["easy_margin"] * getattr(self, "easy_margin", False))

    def observe(self, targets_N: Tensor, norms_N: Tensor | None) -> None:
        """Update running statistics from one training batch, before its :meth:`forward`; most margins have none."""

    def shift(self, target: Tensor, norms: Tensor | None) -> Tensor:
        """The target cosines with the margin applied.

        Args:
            target: cosines, any shape.
            norms: lengths of the rows' embeddings, in a shape that fits ``target``; None if the caller has none.
        """
        raise NotImplementedError

    def bend(self, others: Tensor, targets: Tensor, norms: Tensor | None) -> Tensor:
        """The cosines with other classes as the loss takes them; rising, or override :meth:`highest`.

        Args:
            others: cosines, any shape; the entries of target columns do not matter.
            targets: the rows' target cosines, in a shape that fits ``others``.
            norms: as in :meth:`shift`.
        """
        return others

    def penalty(self, norms_N: Tensor) -> Tensor | None:
        """A term for each row (N,) that is added to its loss; None for most margins."""
        return None

    def highest(self, others_N: Tensor, targets_N: Tensor, norms_N: Tensor | None) -> Tensor:
        """The largest logit of each row (N,), from its largest cosine with another class and its target cosine."""
        return torch.maximum(self.bend(others_N, targets_N, norms_N), self.shift(targets_N, norms_N)).mul_(self.scale)

    def forward(
        self,
        cosines_NS: Tensor,
        labels_N: Tensor,
        targets_N: Tensor | None = None,
        norms_N: Tensor | None = None,
    ) -> Tensor:
        """Scaled logits (N, S) in the dtype of ``cosines_NS``; the inputs are not modified.

        Args:
            cosines_NS: (N, S) in [-1, 1].
            labels_N: (N,) int64, the target's column, or -1 where the target is not among the columns.
            targets_N: (N,) target cosines of all rows, no gradient; None: those of rows with a label are looked up,
                the others count as 1.
            norms_N: (N,) lengths of the embeddings.
        """
        if cosines_NS.shape[1] == 0:
            return cosines_NS * self.scale
        here_N1 = labels_N.unsqueeze(1) >= 0
        column_N1 = labels_N.clamp(min=0).unsqueeze(1)
        target_N1 = cosines_NS.gather(1, column_N1)
        if targets_N is None:
            targets_N = torch.where(here_N1, target_N1, 1.0).squeeze(1).detach()
        norms_N1 = None if norms_N is None else norms_N.unsqueeze(1)
        bent_NS = self.bend(cosines_NS, targets_N.unsqueeze(1), norms_N1)
        shifted_N1 = torch.where(here_N1, self.shift(target_N1, norms_N1), bent_NS.gather(1, column_N1))
        return bent_NS.scatter(1, column_N1, shifted_N1).mul_(self.scale)
