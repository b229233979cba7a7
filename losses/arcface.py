"""ArcFace: an additive margin on the angle."""

import math

import torch
from torch import Tensor

from losses.cosine import add_angle
from losses.margin import Margin


class ArcFace(Margin):
    """Additive angular margin with its true derivative.

    Equation, for the target cosine c = cos(theta) and margin m:
        cos(theta + m) = c cos(m) - sqrt(1 - c^2) sin(m)    where theta <= pi - m
        c - m sin(pi - m)                                   elsewhere, which keeps it falling in theta

    Its derivative in c, cos(m) + c sin(m) / sqrt(1 - c^2), grows without bound at |c| = 1; there the root is held
    at sqrt(eps) and counts as constant, so that the gradient is finite.

    Source: Deng et al., ArcFace, CVPR 2019, equation 3. Differs from insightface's ``CombinedMarginLoss``, which has
    the same values but passes the gradient straight through; that form is :class:`losses.CombinedMargin`.

    Args:
        scale: the factor on all logits, above 0.
        margin: the angle m in radians, in [0, pi).

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(scale)
        if not 0 <= margin < math.pi:
            raise ValueError(f"margin must be an angle in [0, pi) radians, got {margin}")
        self.margin = float(margin)

    def shift(self, target: Tensor, norms: Tensor | None = None) -> Tensor:
        """See :meth:`Margin.shift`."""
        m = self.margin
        inside = add_angle(target, math.cos(m), math.sin(m))
        beyond = target - m * math.sin(math.pi - m)
        return torch.where(target >= math.cos(math.pi - m), inside, beyond)
