"""What is measured, the most important first, compiling last; what does not fit into the time is left out."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

TABLES = ("peaks", "step", "share", "classifier", "batch", "plan", "input", "float32", "compile")
LIMIT_FACTOR, LEAST_LIMIT_S = 4.0, 60.0  # a row may take so many times its estimate before it is ended


@dataclass(frozen=True)
class Row:
    """One measurement."""

    table: str  # of TABLES
    kind: str  # of worker.KINDS
    estimate_s: float  # on a good card
    case: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its table and what tells it from the table's others."""
        telling = [(key, value) for key, value in self.case.items() if key in _TELLING]
        return " ".join([self.table, *(f"{key}={value}" for key, value in [*telling, *self.settings.items()])])

    @property
    def settings(self) -> dict[str, Any]:
        """Of the recipe, beside those that have a name of their own here."""
        return dict(self.case.get("settings", {}))

    @property
    def limit_s(self) -> float:
        """When it is given up."""
        return max(LEAST_LIMIT_S, LIMIT_FACTOR * self.estimate_s)


_TELLING = ("network", "precision", "batch", "classes", "storage", "workers")
MILLION = 10**6


def _step(table: str, network: str, precision: str, batch: int, estimate_s: float, **more: Any) -> Row:
    case = {"network": network, "precision": precision, "batch": batch, "classes": 2 * MILLION, **more}
    return Row(table, "training", estimate_s, case)


def _classifier(classes: int, storage: str, batch: int, estimate_s: float, **more: Any) -> Row:
    return Row("classifier", "classifier", estimate_s, dict(classes=classes, storage=storage, batch=batch, **more))


def all_rows(cores: int, settings: Set[str]) -> list[Row]:
    """For a GPU; ``cores`` of the host bound the loader's processes; rows of other ``settings`` do not exist."""
    rows = [
        Row("peaks", "peaks", 8, {"size": 8192, "repeats": 8}),
        _step("share", "r100", "bf16", 128, 25, storage="device", parts=True),
        _step("step", "r50", "bf16", 128, 15),
        _step("step", "r100", "fp16", 128, 22),
        _step("step", "r50", "fp16", 128, 15),
        _step("share", "r100", "bf16", 128, 28, storage="host", classes=100 * MILLION, parts=True),
        _step("share", "r100", "bf16", 128, 28, storage="file", classes=100 * MILLION, parts=True),
    ]
    rows += [
        _classifier(classes, storage, 128, 5)
        for classes, storage in (
            (10 * MILLION, "device"),
            (100 * MILLION, "host"),
            (100 * MILLION, "file"),
            (MILLION, "device"),
            (100_000, "device"),
            (100 * MILLION, "device"),
        )
    ]
    rows += [
        _step("step", "vit_b", "bf16", 128, 14),
        _step("step", "mbf", "bf16", 128, 12),
        _step("batch", "r50", "bf16", 512, 18),
        _step("share", "r100", "bf16", 256, 20, storage="device", parts=True),
        _step("step", "vit_b", "bf16", 128, 12, settings=_KEPT),
        _step("step", "vit_b", "fp16", 128, 14),
        _step("step", "mbf", "fp16", 128, 12),
        Row("plan", "plan", 12, {"network": "r100", "precision": "bf16", "batch": 128, "classes": 2 * MILLION}),
        Row("plan", "plan", 8, {"network": "r50", "precision": "bf16", "batch": 128, "classes": 2 * MILLION}),
    ]
    workers = [n for n in (1, 4, 16, 64) if n < cores] + [cores]
    rows += [Row("input", "input", 6, {"workers": n, "batch": 128}) for n in workers]
    rows += [
        _classifier(10 * MILLION, "device", 1024, 5),
        _classifier(100 * MILLION, "host", 1024, 8),
        _classifier(100 * MILLION, "file", 1024, 10),
        _classifier(10 * MILLION, "device", 128, 5, precision="bf16"),
        _step("float32", "r50", "float32", 128, 18),
        _step("float32", "r100", "float32", 128, 25),
    ]
    rows += [
        _step("share", "r100", "bf16", 128, 28, **_CACHED),
        _step("batch", "mbf", "bf16", 512, 15),
        _step("batch", "vit_b", "bf16", 256, 15),
        _step("float32", "vit_b", "float32", 128, 18),
        _step("float32", "mbf", "float32", 128, 14),
        *(_classifier(classes, storage, 128, 6) for storage in ("host", "file") for classes in _SMALLER),
        Row("plan", "plan", 12, {"network": "vit_b", "precision": "bf16", "batch": 128, "classes": 2 * MILLION}),
    ]
    rows += [  # last, since one of these takes the time of many others
        _step("compile", "r50", "bf16", 128, 70, settings={"compile": True}),
        _step("compile", "vit_b", "bf16", 128, 60, settings={"compile": True, **_KEPT}),
        _step("compile", "mbf", "bf16", 128, 60, settings={"compile": True}),
        _step("compile", "r100", "bf16", 128, 100, settings={"compile": True}),
    ]
    return [row for row in rows if row.settings.keys() <= settings]


_SMALLER = (10 * MILLION, MILLION, 100_000)
_KEPT = {"gradient_checkpointing": False}  # vit_b computes parts again unless told not to
_CACHED = {"storage": "host", "classes": 100 * MILLION, "parts": True, "settings": {"head_cache_gib": 4.0}}


def quick_rows() -> list[Row]:
    """Every kind of row at a size that says nothing, for a look at whether all of it works."""
    small: dict[str, Any] = {"classes": 600, "budget_s": 0.05, "most_steps": 4, "warm_steps": 1}
    rows = [Row("peaks", "peaks", 1, {"size": 64, "repeats": 2})]
    for storage in ("device", "host", "file"):
        parts = {"storage": storage, "parts": True, **small}
        rows.append(Row("share", "training", 1, {"network": "rtiny", "precision": "float32", "batch": 4, **parts}))
        case = {"storage": storage, "batch": 8, "dim": 16, "identities": 64, **small}
        rows.append(Row("classifier", "classifier", 1, case))
    rows += [
        Row("step", "training", 1, {"network": "rtiny", "precision": "bf16", "batch": 4, **small}),
        Row("step", "training", 1, {"network": "vtiny", "batch": 4, "settings": {"seed": 1}, **small}),
        Row("plan", "plan", 1, {"network": "rtiny", "precision": "bf16", "batch": 4, "classes": 600}),
        Row("input", "input", 1, {"workers": 0, "batch": 16, "faces": 64, "budget_s": 0.05}),
    ]
    return rows


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The rows of which a word of ``only`` is the table, or stands in the name; all if there is none.

    The peaks are always among them: the floors come from these.

    Raises:
        ValueError: a word that chooses nothing.
    """
    for word in only:
        if not any(word == row.table or word in row.name for row in rows):
            names = "\n  ".join(row.name for row in rows)
            tables = ", ".join(TABLES)
            raise ValueError(
                f"--only {word} chooses nothing; give a table ({tables}) or a part of a name:\n  {names}"
            )
    words = [*only, "peaks"]
    return [row for row in rows if not only or any(word == row.table or word in row.name for word in words)]
