"""Values of a configuration in the types that its fields ask for."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


def typed(key: str, value: Any, hint: Any) -> Any:
    """``value`` of setting ``key`` in the type that ``hint`` asks for.

    Raises:
        ValueError: it is of another type; says what was expected and what came.
    """
    accepted, converted = _first_that_fits(value, hint)
    if accepted:
        return converted
    raise ValueError(f"{key} must be {_describe(hint)}, got {value!r} ({type(value).__name__})")


def _first_that_fits(value: Any, hint: Any) -> tuple[bool, Any]:
    return next((pair for option in _options(hint) if (pair := _convert(value, option))[0]), (False, None))


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _convert(value: Any, option: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(option), typing.get_args(option)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str):
        value = str(value)  # numpy's is one, but of a type that checkpoints must not hold
    if origin is Literal:
        return value in args and isinstance(value, str), value
    if origin is tuple:
        if isinstance(value, str) and args[-1] is ...:
            value = [part for part in value.split(",") if part]
        if not isinstance(value, list | tuple):
            return False, None
        inner = [args[0]] * len(value) if args[-1] is ... else list(args)
        if len(inner) != len(value):
            return False, None
        pairs = [_convert(v, o) for v, o in zip(value, inner, strict=True)]
        return all(ok for ok, _ in pairs), tuple(v for _, v in pairs)
    if origin is dict:
        if not isinstance(value, Mapping):
            return False, None
        converted = {str(name): _first_that_fits(v, args[1]) for name, v in value.items()}
        return all(ok for ok, _ in converted.values()), {name: v for name, (_, v) in converted.items()}
    if option is type(None):
        return value is None, None
    if option is float:
        return is_number and math.isfinite(value), float(value) if is_number else None
    if option is int:
        return is_number and float(value).is_integer(), int(value) if is_number and math.isfinite(value) else None
    return isinstance(value, option), value


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    words = []
    for option in _options(hint):
        args = typing.get_args(option)
        if typing.get_origin(option) is Literal:
            words += [repr(a) for a in args]
        elif typing.get_origin(option) is dict:
            words.append("a dictionary of numbers")
        elif args:
            several = "texts" if args[0] is str else "numbers" if args[-1] is ... else f"{len(args)} numbers"
            words.append(f"a list of {several}")
        else:
            words.append(names[option])
    return " or ".join(words)
