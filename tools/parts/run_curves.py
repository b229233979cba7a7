"""The figures of runs by step, as their metrics.jsonl hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.text import parse_json

METRICS = "metrics.jsonl"
_MOST_STEPS = 2**63 - 1  # as the array of steps holds them
_LARGEST = 1e300  # figure that can be averaged and drawn without an overflow


@dataclass(frozen=True)
class Curve:
    """A figure by optimizer step, both of length N, steps rising."""

    steps_N: NDArray[np.int64]
    values_N: NDArray[np.float64]


@dataclass(frozen=True)
class RunCurves:
    """A run's figures.

    Attributes:
        name: tells it apart from the others of a picture.
        curves: by the names in its metrics.jsonl; those without a value are left out.
    """

    name: str
    curves: dict[str, Curve]


def read_runs(paths: Sequence[Path]) -> list[RunCurves]:
    """Read the figures of several runs.

    Raises:
        FileNotFoundError: no metrics.jsonl there.
        ValueError: it holds no figures.
        OSError: it cannot be read.
    """
    return [RunCurves(name, _read(path)) for name, path in zip(_names(paths), paths, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """As many of each folder's last parts as tell them all apart."""
    folders = [(path.parent if path.name == METRICS else path).resolve() for path in paths]
    longest = max(len(folder.parts) for folder in folders)
    for count in range(1, longest + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names


def _read(path: Path) -> dict[str, Curve]:
    file = path if path.name == METRICS else path / METRICS
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected a run's folder with a {METRICS} in it, or that file")
    found: dict[str, dict[int, float]] = {}
    for line in file.read_text(errors="replace").splitlines():
        step, values = _parse(line)
        for name, value in values.items():
            found.setdefault(name, {})[step] = value  # the last one counts, where a step was taken twice
    if not found:
        raise ValueError(f"{file} holds no figures yet: the first come with the first log line")
    return {name: _curve(values) for name, values in found.items()}


def _parse(line: str) -> tuple[int, dict[str, float]]:
    """A line's step and figures; none where it is half written, or something else, or too large to draw."""
    try:
        found = parse_json(line)
    except ValueError:
        return 0, {}
    if not isinstance(found, dict) or not isinstance(step := found.get("step"), int) or not 0 <= step <= _MOST_STEPS:
        return 0, {}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float) and name != "step"}
    return step, {name: float(value) for name, value in numbers.items() if abs(value) <= _LARGEST}  # no nan either


def _curve(values: dict[int, float]) -> Curve:
    steps = sorted(values)
    return Curve(np.array(steps, np.int64), np.array([values[step] for step in steps]))


def smoothed(values_N: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean over ``window`` values around each, over fewer at both ends; (N,)."""
    if window <= 1:
        return values_N
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    at = np.arange(len(values_N))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + (window - 1) // 2 + 1, len(values_N))
    mean: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return mean
