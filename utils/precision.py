"""The setting ``precision`` and its older spellings ``fp16`` and ``bf16``: what is meant where several are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from utils.typed_values import typed

Precision = Literal["auto", "float32", "bf16", "fp16"]

_HINTS: dict[str, Any] = {"precision": Precision, "fp16": bool | None, "bf16": bool | None}
_OLD: tuple[Literal["fp16"], Literal["bf16"]] = ("fp16", "bf16")


def settled_spellings(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``precision``, ``fp16`` and ``bf16`` as ``layers`` mean them together: base.py, a recipe, the command line.

    The last layer that names a precision decides, in whichever spelling. A False alone takes its type back, and
    "auto" with it: ``fp16 = False`` in a file of insightface is float32. What no layer gives is not in the result.

    Raises:
        ValueError: one layer names two precisions, or a value is none.
    """
    precision: Precision = "auto"
    for layer in layers:
        given = {key: typed(key, layer[key], hint) for key, hint in _HINTS.items() if key in layer}
        refused = [name for name in _OLD if given.get(name) is False]
        if (stated := _stated(given)) is not None:
            precision = stated
        elif precision in ("auto", *refused) and refused:
            precision = "float32"
    return {key: value for key, value in spellings_of(precision).items() if any(key in layer for layer in layers)}


def spellings_of(precision: Precision) -> dict[str, Any]:
    """The three settings that say ``precision``; the older ones are open where "auto" is."""
    is_open = precision == "auto"
    return {"precision": precision} | {name: None if is_open else precision == name for name in _OLD}


def _stated(given: Mapping[str, Any]) -> Precision | None:
    precision: Precision | None = given.get("precision")
    wanted = [name for name in _OLD if given.get(name)]
    if len(wanted) == 2:
        raise ValueError("fp16 and bf16 exclude each other: set one of them, or precision alone")
    if wanted and precision not in (None, "auto", wanted[0]):
        raise ValueError(f"{wanted[0]} = True contradicts precision = {precision!r}: give precision alone")
    if precision is not None and given.get(precision) is False:
        raise ValueError(f"{precision} = False contradicts precision = {precision!r}: give precision alone")
    return wanted[0] if wanted else precision
