"""CosFace: an additive margin on the cosine."""

from torch import Tensor

from losses.margin import Margin


class CosFace(Margin):
    """Additive cosine margin.

    Equation: the target cosine c becomes c - m.

    Source: Wang et al., CosFace, CVPR 2018, equation 4; values and gradient equal insightface's class of this name.

    Args:
        scale: the factor on all logits, above 0.
        margin: m, in [0, 2).

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, scale: float = 64.0, margin: float = 0.4) -> None:
        super().__init__(scale)
        if not 0 <= margin < 2:
            raise ValueError(f"margin must be a cosine difference in [0, 2), got {margin}")
        self.margin = float(margin)

    def shift(self, target: Tensor, norms: Tensor | None = None) -> Tensor:
        """See :meth:`Margin.shift`."""
        return target - self.margin
