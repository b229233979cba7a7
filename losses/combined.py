"""insightface's combined margin, with its straight-through gradient and inter-class filter."""

import torch
from torch import Tensor

from losses.margin import Margin


class CombinedMargin(Margin):
    """The combined margin of ``config.margin_list = (m1, m2, m3)``.

    Equation: the target cosine cos(theta) becomes cos(m1 theta + m2) - m3. The gradient is the straight-through one:
    with respect to every cosine that is kept, ``scale`` times the incoming gradient, whatever m1 and m2 are.

    With a filter t above 0, every other cosine above t is set to 0 before scaling and gets no gradient: such a class
    is taken for the same person under another label.

    Source: Deng et al., ArcFace, CVPR 2019, equation 4, and insightface's ``CombinedMarginLoss``, whose figures it
    reproduces for (1, m2, 0) and (1, 0, m3); differs from it in that any other triple follows the equation too,
    where insightface refuses it or drops m1 and m2. :class:`losses.ArcFace` has the true derivative.

    Args:
        scale: the factor on all logits, above 0.
        m1: the factor on the angle, at least 1.
        m2: the angle added, in radians, at least 0.
        m3: the cosine subtracted, at least 0.
        interclass_filtering_threshold: the filter t in [0, 1); 0 switches it off.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        scale: float = 64.0,
        m1: float = 1.0,
        m2: float = 0.5,
        m3: float = 0.0,
        interclass_filtering_threshold: float = 0.0,
    ) -> None:
        super().__init__(scale)
        if m1 < 1 or m2 < 0 or m3 < 0:
            raise ValueError(f"margin_list needs m1 >= 1, m2 >= 0 and m3 >= 0, got ({m1}, {m2}, {m3})")
        if not 0 <= interclass_filtering_threshold < 1:
            raise ValueError(
                f"interclass_filtering_threshold must be in [0, 1), got {interclass_filtering_threshold}"
            )
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)
        self.threshold = float(interclass_filtering_threshold)

    def shift(self, target: Tensor, norms: Tensor | None = None) -> Tensor:
        """See :meth:`Margin.shift`."""
        with torch.no_grad():
            shifted = torch.cos(self.m1 * torch.arccos(target.clamp(-1, 1)) + self.m2) - self.m3
            difference = shifted - target
        return target + difference

    def bend(self, others: Tensor, targets: Tensor, norms: Tensor | None = None) -> Tensor:
        """The filter, see :meth:`Margin.bend`."""
        if self.threshold == 0:
            return others
        return others.masked_fill(others > self.threshold, 0.0)

    def highest(self, others_N: Tensor, targets_N: Tensor, norms_N: Tensor | None = None) -> Tensor:
        """An upper bound: what the filter drops may hide a smaller cosine that is then the largest."""
        if self.threshold > 0:
            others_N = others_N.clamp(max=self.threshold)
        return super().highest(others_N, targets_N, norms_N)
