"""Margins on cosines and the softmax cross-entropy over sharded classes.

A margin is a callable ``logits_NS = margin(cosines_NS, labels_N)``: it shifts each row's target cosine and scales
everything. Label -1 says that the row's positive class is not among these columns. A margin is given what it needs
from other shards (``losses/margin.py``); no rank appears here.
"""

from losses.adaface import AdaFace
from losses.arcface import ArcFace
from losses.combined import CombinedMargin
from losses.cosface import CosFace
from losses.cosine import cosines
from losses.cross_entropy import sharded_cross_entropy
from losses.curricularface import CurricularFace
from losses.magface import MagFace
from losses.margin import Margin

__all__ = [
    "AdaFace",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "MagFace",
    "Margin",
    "cosines",
    "get_margin",
    "sharded_cross_entropy",
]


def get_margin(
    loss: str,
    scale: float,
    margin: float | None = None,
    margin_list: tuple[float, float, float] | None = None,
    interclass_filtering_threshold: float = 0.0,
) -> Margin:
    """The margin that a config names: ``margin_list`` decides when given, else ``loss``.

    Args:
        loss: "arcface", "cosface", "adaface", "magface", "curricularface" or "combined".
        scale: the factor on all logits.
        margin: radians for "arcface" and "curricularface" (None: 0.5), a cosine for "cosface" (None: 0.4), both for
            "adaface" (None: 0.4); None for "magface", whose margin follows the embedding's length.
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
    if loss == "adaface":
        return AdaFace(scale, 0.4 if margin is None else margin)
    if loss == "curricularface":
        return CurricularFace(scale, 0.5 if margin is None else margin)
    if loss == "magface":
        if margin is not None:
            raise ValueError(f"magface takes its margin from the embedding's length: leave margin None, got {margin}")
        return MagFace(scale)
    raise ValueError(
        "loss must be 'arcface', 'cosface', 'adaface', 'magface', 'curricularface', "
        f"or 'combined' with a margin_list, got {loss!r}"
    )
