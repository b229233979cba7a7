"""What all margins share: find each row's target cosine, put the shifted one in its place, scale.

Shapes: N rows (samples), S columns (classes at hand).
"""

import torch
from torch import Tensor, nn


class Margin(nn.Module):
    """A margin that moves only the target cosine; a subclass defines :meth:`shift`.

    Args:
        scale: the factor on all logits, above 0.

    Raises:
        ValueError: ``scale`` is not above 0.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale = float(scale)

    def shift(self, target_N1: Tensor) -> Tensor:
        """The target cosines (N, 1) with the margin applied, same shape."""
        raise NotImplementedError

    def forward(self, cosines_NS: Tensor, labels_N: Tensor) -> Tensor:
        """Scaled logits (N, S) in the dtype of ``cosines_NS``; the inputs are not modified.

        Args:
            cosines_NS: (N, S) in [-1, 1].
            labels_N: (N,) int64, the target's column, or -1 where the target is not among the columns.
        """
        if cosines_NS.shape[1] == 0:
            return cosines_NS * self.scale
        column_N1 = labels_N.clamp(min=0).unsqueeze(1)
        target_N1 = cosines_NS.gather(1, column_N1)
        shifted_N1 = torch.where(labels_N.unsqueeze(1) >= 0, self.shift(target_N1), target_N1)
        return cosines_NS.scatter(1, column_N1, shifted_N1).mul_(self.scale)
