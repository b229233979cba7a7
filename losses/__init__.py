"""Margins on cosines and the softmax cross-entropy over sharded classes.

A margin is a callable ``logits_NS = margin(cosines_NS, labels_N)``: it shifts each row's target cosine and scales
everything. Label -1 says that the row's positive class is not among these columns. A margin is given what it needs
from other shards (``losses/margin.py``); no rank appears here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from losses.adaface import AdaFace
from losses.arcface import ArcFace
from losses.combined import CombinedMargin
from losses.cosface import CosFace
from losses.cosine import LateCentres, cosines
from losses.cross_entropy import sharded_cross_entropy
from losses.curricularface import CurricularFace
from losses.magface import MagFace
from losses.margin import Margin

OPTIONS: dict[str, tuple[str, ...]] = {  # what a loss takes beside scale and margin
    "adaface": ("h", "t_alpha"),
    "magface": ("l_a", "u_a", "l_m", "u_m", "lambda_g", "easy_margin"),
}
_BY_NAME: dict[str, Callable[..., Margin]] = {
    "arcface": ArcFace,
    "cosface": CosFace,
    "adaface": AdaFace,
    "magface": MagFace,
    "curricularface": CurricularFace,
}

__all__ = [
    "OPTIONS",
    "AdaFace",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "LateCentres",
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
    loss_options: Mapping[str, float | bool] | None = None,
) -> Margin:
    """The margin that a config names: ``margin_list`` decides when given, else ``loss``.

    Args:
        loss: "arcface", "cosface", "adaface", "magface", "curricularface" or "combined".
        scale: the factor on all logits.
        margin: radians for "arcface" and "curricularface" (None: 0.5), a cosine for "cosface" (None: 0.4), both for
            "adaface" (None: 0.4); None for "magface", whose margin follows the embedding's length.
        margin_list: (m1, m2, m3) of the combined margin.
        interclass_filtering_threshold: of the combined margin.
        loss_options: the other numbers of "adaface" and "magface", by the names in :data:`OPTIONS`.

    Raises:
        ValueError: an unknown loss or option, or a value out of its range.
    """
    loss = "combined" if margin_list is not None else loss
    options: dict[str, Any] = dict(loss_options or {})
    if unknown := sorted(options.keys() - OPTIONS.get(loss, ())):
        allowed = ", ".join(OPTIONS.get(loss, ())) or "none"
        raise ValueError(f"loss_options: {loss!r} takes {allowed}; got {', '.join(unknown)}{_way_out(unknown)}")
    for name, value in options.items():
        if isinstance(value, bool) != (name == "easy_margin"):
            wanted = "True or False" if name == "easy_margin" else "a number"
            raise ValueError(f"{name} in loss_options must be {wanted}, got {value!r}")
    if margin is not None:
        options["margin"] = margin
    if margin_list is not None:
        return CombinedMargin(scale, *margin_list, interclass_filtering_threshold)
    if loss == "magface" and margin is not None:
        raise ValueError(f"magface takes its margin from the embedding's length: leave margin None, got {margin}")
    if loss not in _BY_NAME:
        raise ValueError(
            f"loss must be {', '.join(map(repr, _BY_NAME))}, or 'combined' with a margin_list, got {loss!r}"
        )
    return _BY_NAME[loss](scale, **options)


def _way_out(unknown: list[str]) -> str:
    """Where what was taken for an option is set."""
    return "".join(f"; {name} is a setting of its own" for name in unknown if name in ("margin", "scale"))
