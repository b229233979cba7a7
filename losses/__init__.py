"""Margins on cosines and the softmax cross-entropy over sharded classes.

A margin is a callable ``logits_NS = margin(cosines_NS, labels_N)``: it shifts each row's target cosine and scales
everything. Label -1 says that the row's positive class is not among these columns. No rank appears here.
"""

from losses.arcface import ArcFace
from losses.combined import CombinedMargin
from losses.cosface import CosFace
from losses.cross_entropy import sharded_cross_entropy
from losses.margin import Margin

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "get_margin", "sharded_cross_entropy"]


def get_margin(
    loss: str,
    scale: float,
    margin: float | None = None,
    margin_list: tuple[float, float, float] | None = None,
    interclass_filtering_threshold: float = 0.0,
) -> Margin:
    """The margin that a config names: ``margin_list`` decides when given, else ``loss``.

    Args:
        loss: "arcface", "cosface" or "combined".
        scale: the factor on all logits.
        margin: radians for "arcface" (None: 0.5), a cosine for "cosface" (None: 0.4).
        margin_list: (m1, m2, m3) of the combined margin.
        interclass_filtering_threshold: of the combined margin.

    Raises:
        ValueError: an unknown loss, or a value out of its range.
    """
    if margin_list is not None:
        return CombinedMargin(scale, *margin_list, interclass_filtering_threshold)
    if loss == "arcface":
        return ArcFace(scale, 0.5 if margin is None else margin)
    if loss == "cosface":
        return CosFace(scale, 0.4 if margin is None else margin)
    raise ValueError(f"loss must be 'arcface', 'cosface', or 'combined' with a margin_list, got {loss!r}")
