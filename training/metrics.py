"""The figures of a run, step by step: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from training.wandb_log import WandbLog
from utils.atomic import open_atomic
from utils.log import log
from utils.settings import Config
from utils.text import parse_json


class MetricsWriter:
    """Scalars by step, to metrics.jsonl, TensorBoard and, where asked for, Weights & Biases.

    On resuming, what was written past ``start_step`` is cut, so that each step appears once.

    Args:
        output: the run's folder.
        start_step: steps that the resumed checkpoint has taken, 0 for a new run.
        cfg: for the Weights & Biases settings.
        is_main: whether this rank writes the files; the others write to Weights & Biases only, if at all.
    """

    artifact: Path | None = None  # uploaded to Weights & Biases at the end

    def __init__(self, output: Path, start_step: int, cfg: Config, is_main: bool = True) -> None:
        self._tensorboard: SummaryWriter | None = None
        self._jsonl: Any = None
        if is_main:
            path = output / "metrics.jsonl"
            if path.exists():
                _keep_lines(path, start_step)
            else:
                path.unlink(missing_ok=True)  # a link to nowhere would make us write where it leads
            self._jsonl = path.open("a")
            self._tensorboard = SummaryWriter(
                str(output / "tensorboard"), purge_step=start_step + 1 if start_step else None
            )
        self._wandb = WandbLog(cfg, output) if cfg.using_wandb and (is_main or cfg.wandb_log_all) else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step; names may hold a slash to group them. A nan is null in metrics.jsonl."""
        if self._jsonl is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            try:
                self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
                self._jsonl.flush()
            except OSError as error:
                raise OSError(
                    f"could not write {self._jsonl.name}: {error}. Make room there, and go on with resume = 'auto'"
                ) from error
        if self._tensorboard is not None:
            try:
                for name, value in values.items():
                    self._tensorboard.add_scalar(name, value, step)
            except OSError as error:  # metrics.jsonl has the same figures
                log.warning("TensorBoard's files cannot be written (%s) and end here", error)
                self._tensorboard = None
        if self._wandb is not None:
            self._wandb.write(step, values)

    def highest(self, name: str) -> float:
        """The largest value written of ``name`` so far, nan without one or on a rank that keeps no file."""
        if self._jsonl is None:
            return math.nan
        lines = map(_parse_line, Path(self._jsonl.name).read_text().splitlines())
        values = (line.get(name) for line in lines if line is not None)
        return max((value for value in values if isinstance(value, int | float)), default=math.nan)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._jsonl is not None:
            self._jsonl.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(self.artifact, kind is None)


def _keep_lines(path: Path, last_step: int) -> None:
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("}\n")]  # without the line that a killed run was writing
    parsed = list(map(_parse_line, whole))
    if damaged := parsed.count(None):
        log.warning("%s: %d lines hold no step's metrics and are dropped", path, damaged)
    kept = [
        line for line, found in zip(whole, parsed, strict=True) if found is not None and found["step"] <= last_step
    ]
    with open_atomic(path) as file:
        file.write("".join(kept).encode())


def _parse_line(line: str) -> dict[str, Any] | None:
    """The metrics of a step; None where a line holds something else."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None
