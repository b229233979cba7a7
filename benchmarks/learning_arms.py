"""What is compared in learning.py: which classes a step works on, and how their centres are updated.

Shapes: C classes, L classes of a head, G samples of a step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from heads.optim import Idle
from heads.selection import HeadScope


@dataclass(frozen=True)
class Rule:
    """How centres are updated, always with SGD."""

    row_lr: float  # factor on the rate
    row_momentum: float
    row_idle: Idle = "decay"

    def __str__(self) -> str:
        momentum = f"momentum {self.row_momentum:g} ({self.row_idle})" if self.row_momentum else "no momentum"
        return f"{momentum}, rate x {self.row_lr:g}"


@dataclass(frozen=True)
class Arm:
    """One way to choose a step's classes, with one rule."""

    selection: str  # a name that selections() gives
    head_size: int  # L
    negative_rate: float
    head_scope: HeadScope
    rule: Rule

    def head_options(self) -> dict[str, Any]:
        """What ``HeadShard`` is told."""
        return {"head_size": self.head_size, "negative_rate": self.negative_rate, "head_scope": self.head_scope}

    def as_record(self) -> dict[str, Any]:
        """Plain values, ``rule`` among them as separate keys."""
        values = asdict(self)
        return {**{k: v for k, v in values.items() if k != "rule"}, **values["rule"]}


CUSTOMARY = Rule(1.0, 0.9, "keep")  # what insightface's PartialFC does
SPARSE = Rule(1.0, 0.0)  # the default of rarely visited rows
Selection = tuple[int, float, HeadScope]  # L, negative rate, scope
FULL: Selection = (1, 1.0, "batch")


def selections(task: Literal["features", "many", "faces"], C: int, G: int) -> dict[str, Selection]:
    """Name to (L, negative rate, scope). "same share" is that of heads of 4: 1 - (1 - 4 / C) ** G."""
    share = 1 - (1 - 4 / C) ** G
    positives = 1 - (1 - 1 / C) ** G
    few: dict[str, Selection] = {
        "full softmax": FULL,
        "PartialFC, same share": (1, (share - positives) / (1 - positives), "batch"),
        "heads of 1": (1, 0.0, "batch"),
        "heads of 4": (4, 0.0, "batch"),
    }
    if task == "many":
        return {"full softmax": FULL, "heads of 4": (4, 0.0, "batch"), "heads of 12": (12, 0.0, "batch")}
    if task == "faces":
        return few
    return {
        **few,
        "heads of 12": (12, 0.0, "batch"),
        "heads of 16": (16, 0.0, "batch"),
        "heads of 4 + 5 % drawn": (4, 0.05, "batch"),
        "own heads of 4": (4, 0.0, "own"),
        "own heads of 12": (12, 0.0, "own"),
        "own heads of 16": (16, 0.0, "own"),
        "own heads of 1 + 5 % drawn": (1, 0.05, "own"),
        "own heads of 4 + 5 % drawn": (4, 0.05, "own"),
        "own heads of 16 + 5 % drawn": (16, 0.05, "own"),
    }


# What --sweep tries, the same for every selection.
_SWEPT = (
    *(Rule(rate, 0.9, "keep") for rate in (0.1, 0.3, 1.0, 3.0)),
    *(Rule(rate, 0.0) for rate in (1.0, 3.0, 10.0, 30.0)),
    *(Rule(rate, 0.9, "decay") for rate in (1.0, 3.0)),
    *(Rule(rate, 0.9, "dense") for rate in (0.3, 1.0)),
)
_SWEPT_ON_FACES = (
    *(Rule(rate, 0.9, "keep") for rate in (0.1, 0.3, 1.0)),
    *(Rule(rate, 0.0) for rate in (3.0, 10.0, 30.0)),
)
# What it found best for full softmax in both tasks; for sampled heads the first three, within its noise.
FULL_BEST = Rule(0.3, 0.9, "keep")
_FOR_HEADS = (SPARSE, Rule(3.0, 0.0), Rule(10.0, 0.0), Rule(1.0, 0.9, "decay"), CUSTOMARY)
_SHOWN: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("features", "full softmax"): (FULL_BEST, CUSTOMARY),
    ("features", "PartialFC, same share"): (SPARSE, Rule(3.0, 0.0), CUSTOMARY),
    ("features", "heads of 4"): _FOR_HEADS,
    ("faces", "full softmax"): (FULL_BEST, CUSTOMARY),
    ("faces", "heads of 4"): _FOR_HEADS,
    ("many", "full softmax"): (FULL_BEST,),
    ("many", "heads of 12"): _FOR_HEADS,
}


def rules_of(task: str, selection: str, is_sweep: bool) -> tuple[Rule, ...]:
    """The rules that a selection is trained with."""
    if is_sweep:
        return _SWEPT_ON_FACES if task == "faces" else _SWEPT
    return _SHOWN.get((task, selection), (SPARSE, Rule(3.0, 0.0)))
