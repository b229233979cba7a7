"""The cosine from which two faces count as one person, with what was measured there: a small JSON file.

Evaluation writes it from pairs of a set, inference reads it. Rates are shares of 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from embedder.origin import COLOR_ORDERS, Origin
from utils.atomic import write_json
from utils.text import parse_json

_CURVE = ("scores", "false_match_rate", "true_match_rate")
_MOST_POINTS = 200
_WAY_OUT = "take one that the evaluation of pairs wrote"


@dataclass(frozen=True)
class Threshold:
    """A threshold on the cosine and the rates measured at it.

    Attributes:
        threshold: cosine; from it on, two faces count as one person.
        false_match_rate: share of the impostor pairs at or above the threshold.
        false_match_rate_interval: the interval in which the true rate lies, (low, high).
        true_match_rate: share of the genuine pairs at or above the threshold.
        genuine_pairs: number of pairs of one person behind the rates.
        impostor_pairs: number of pairs of two people.
        model: whose cosines these are: the hash (sha256) of its file or, failing that, a name.
        flip: whether embeddings were sums with those of the mirror images.
        curve: "scores" (cosines, ascending), and at each "false_match_rate" and "true_match_rate"; at most 200
            points, or none.
        color_order: in which the network got the channels, "RGB" or "BGR".
    """

    threshold: float
    false_match_rate: float
    false_match_rate_interval: tuple[float, float]
    true_match_rate: float
    genuine_pairs: int
    impostor_pairs: int
    model: str
    flip: bool
    curve: dict[str, list[float]]
    color_order: str = "RGB"

    @property
    def origin(self) -> Origin:
        """Whose cosines it is for."""
        return Origin(self.model, self.flip, self.color_order)

    @classmethod
    def read(cls, path: str | Path) -> Threshold:
        """Read a file of :meth:`write`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no JSON, or misses a value, or holds one of another kind; names the file.
            OSError: the file cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}: expected a threshold.json; {_WAY_OUT}")
        try:
            found = parse_json(path.read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); {_WAY_OUT}") from None
        try:
            return cls(**_checked(found))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {_WAY_OUT}") from None

    def write(self, path: str | Path) -> None:
        """Write the JSON file, complete or not at all; its folder is made.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    def false_match_rate_at(self, cosine: float) -> float | None:
        """The share of impostor pairs at or above a cosine: of the curve's last point not above it.

        None without a curve, and below its first point: there no rate was measured.
        """
        scores = self.curve.get("scores", [])
        below = sum(score <= cosine for score in scores)
        return self.curve["false_match_rate"][below - 1] if below else None

    def verdict(self, cosine: float) -> str:
        """Whether two faces are one person's, and how often two people reach this cosine."""
        same = "same person" if cosine >= self.threshold else "different people"
        text = f"{same}: cosine {cosine:.4f}, threshold {self.threshold:.4f}; {self._impostors()}"
        rate = self.false_match_rate_at(cosine)
        if rate == 0:
            return f"{text}, none of the {self.impostor_pairs:,} measured reached this cosine"
        return text if rate is None else f"{text}, at most {_percent(rate)} % reach this cosine"

    def in_gallery(self, n: int) -> str:
        """How often somebody who is not among a gallery's ``n`` faces reaches the threshold."""
        return (
            f"threshold {self.threshold:.4f}; {self._impostors()}: of a stranger's comparisons with {n:,} faces, "
            f"{_two_digits(self.false_match_rate * n)} on average"
        )

    def _impostors(self) -> str:
        low, high = self.false_match_rate_interval
        return (
            f"{_percent(self.false_match_rate)} % of pairs of two people reach the threshold (95 %: {_percent(low)} "
            f"to {_percent(high)} %)"
        )


def _percent(share: float) -> str:
    return _two_digits(100 * share)


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,g}"


def _checked(found: Any) -> dict[str, Any]:
    """The fields' values; ValueError says which is missing or wrong."""
    names = [field.name for field in fields(Threshold) if field.name != "color_order"]  # older files have none
    missing = [name for name in names if name not in found] if isinstance(found, dict) else names
    if missing:
        raise ValueError(f"expected the keys {', '.join(names)}; missing {', '.join(missing)}")
    values = {name: found[name] for name in names}
    values["threshold"] = _number("threshold", found["threshold"], -1, 1)
    for name in ("false_match_rate", "true_match_rate"):
        values[name] = _number(name, found[name], 0, 1)
    interval = _numbers("false_match_rate_interval", found["false_match_rate_interval"], 0, 1)
    if len(interval) != 2:
        raise ValueError(f"false_match_rate_interval holds {len(interval)} numbers, expected [low, high]")
    values["false_match_rate_interval"] = (interval[0], interval[1])
    for name in ("genuine_pairs", "impostor_pairs"):
        values[name] = int(_number(name, found[name], 0, math.inf))
    for name, kind in (("model", str), ("flip", bool)):
        if not isinstance(found[name], kind):
            raise ValueError(f"{name} is {str(found[name])[:40]!r}, expected a {'text' if kind is str else 'bool'}")
    values["curve"] = _checked_curve(found["curve"])
    values["color_order"] = found.get("color_order", "RGB")
    if values["color_order"] not in COLOR_ORDERS:
        raise ValueError(f"color_order is {str(values['color_order'])[:40]!r}, expected RGB or BGR")
    return values


def _checked_curve(found: Any) -> dict[str, list[float]]:
    if not isinstance(found, dict) or (found and any(name not in found for name in _CURVE)):
        raise ValueError(f"curve must be empty or hold the lists {', '.join(_CURVE)}")
    if not found:
        return {}
    curve = {
        "scores": _numbers("curve's scores", found["scores"], -1.001, 1.001),  # float32's rounding
        **{name: _numbers(f"curve's {name}", found[name], 0, 1) for name in _CURVE[1:]},
    }
    lengths = {len(values) for values in curve.values()}
    if len(lengths) != 1 or max(lengths) > _MOST_POINTS or curve["scores"] != sorted(curve["scores"]):
        raise ValueError(f"curve must hold three lists of one length, {_MOST_POINTS} at most, scores ascending")
    return curve


def _numbers(name: str, found: Any, low: float, high: float) -> list[float]:
    if not isinstance(found, list):
        raise ValueError(f"{name} is {str(found)[:40]!r}, expected a list of numbers")
    return [_number(name, value, low, high) for value in found]


def _number(name: str, found: Any, low: float, high: float) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not low <= found <= high or found == math.inf:
        raise ValueError(f"{name} is {str(found)[:40]!r}, expected a number of {low:g} to {high:g}")
    return float(found)
