"""One frozen, typed configuration from a Python module of differences.

``get_config("configs/NAME", ["lr=0.05"])`` lays the module's ``config`` over ``configs/base.py`` and the overrides
over both, checks every key, type and range, and returns a :class:`utils.settings.Config`. The files
that insightface's arcface_torch and the MHE authors ship load unchanged.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config_older import in_todays_names
from utils.config_rules import check_rules
from utils.config_secrets import refuse_secrets
from utils.precision import settled_spellings
from utils.settings import Config
from utils.typed_values import typed

ROOT = Path(__file__).resolve().parent.parent


def get_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe.

    Args:
        path: ``configs/NAME`` or ``configs/NAME.py``, from the current folder or from the project's, or a path.
        overrides: ``key=value`` texts; values are Python literals, anything else is taken as text.

    Raises:
        FileNotFoundError: no such module.
        ValueError: an unknown key, a wrong type or range, settings that exclude each other, a literal secret.
    """
    file = find_config(path)
    layers = [_read_module(ROOT / "configs" / "base.py"), _read_module(file), _read_overrides(overrides)]
    given = {**layers[1], **layers[2]}
    refuse_secrets({**layers[0], **given})  # before any message shows a value
    values = {**layers[0], **in_todays_names(given), "name": file.stem}
    return make_config(values | settled_spellings(layers))


def _read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"an override is key=value, such as lr=0.05; got {text.partition(':')[0]!r}")
        if key.strip() == "name":
            raise ValueError("name is the recipe's file name; suffix_run_name and output can be set")
        values[key.strip()] = _literal(value.strip())
    return values


def make_config(values: Mapping[str, Any]) -> Config:
    """Check and freeze a complete set of values; raises ValueError as :func:`get_config`."""
    hints = typing.get_type_hints(Config)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            raise ValueError(
                f"unknown setting {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + " All settings and their meaning stand in utils/settings.py"
            )
    refuse_secrets(values)  # before any message shows a value
    missing = [key for key in hints if key not in values]
    if missing:
        raise ValueError(f"configs/base.py must give a value to {', '.join(missing)}")
    values = {**values, **settled_spellings([values])}
    config = Config(**{key: typed(key, values[key], hint) for key, hint in hints.items()})
    config = dataclasses.replace(
        config,
        rec=_home(config.rec) if isinstance(config.rec, str) else tuple(map(_home, config.rec)),
        class_map=config.class_map and _home(config.class_map),
        init_backbone=config.init_backbone and _home(config.init_backbone),
        init_centres=config.init_centres and _home(config.init_centres),
        centres_map=config.centres_map and _home(config.centres_map),
        head_folder=config.head_folder and _home(config.head_folder),
        val_targets=tuple(_home(target) for target in config.val_targets),
    )
    check_rules(config)
    return config


def find_config(path: str | Path) -> Path:
    """The recipe's file: ``path`` with or without .py, from the current folder, the project's, or its configs/."""
    given = Path(path).expanduser()
    if not given.name:
        raise FileNotFoundError(f"no config {str(path)!r}: give configs/NAME")
    candidates = [
        folder / name
        for folder in (Path(), ROOT, ROOT / "configs")
        for name in (given, given.with_name(given.name + ".py"))
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    known = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("base", "__init__"))
    near = difflib.get_close_matches(given.stem, known, 1, 0.5)
    raise FileNotFoundError(
        f"no config {str(path)!r}"
        + (f"; did you mean configs/{near[0]}?" if near else "")
        + f" Shipped: {', '.join(known)}"
    )


def _read_module(file: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"{file} must define config = edict(), found {type(config).__name__}")
    return dict(config)


def _literal(text: str) -> Any:
    """A Python literal; true/false/none in any case; a comma list of words; else the text itself."""
    lowered = text.lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text[:1] in "[(" and text[-1:] in "])" and len(text) > 1:
            return [part.strip() for part in text[1:-1].split(",") if part.strip()]
        return text


def _home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path
