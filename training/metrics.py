"""The figures of a run, step by step: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.atomic import open_atomic
from utils.config import Config
from utils.log import log


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
            self._jsonl = path.open("a")
            self._tensorboard = SummaryWriter(
                str(output / "tensorboard"), purge_step=start_step + 1 if start_step else None
            )
        self._wandb = _start_wandb(cfg, output) if cfg.using_wandb and (is_main or cfg.wandb_log_all) else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step; names may hold a slash to group them. A nan is null in metrics.jsonl."""
        if self._jsonl is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
            self._jsonl.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def highest(self, name: str) -> float:
        """The largest value written of ``name`` so far, nan without one or on a rank that keeps no file."""
        if self._jsonl is None:
            return math.nan
        lines = (values for _, values in _read_lines(Path(self._jsonl.name)))
        return max((line[name] for line in lines if isinstance(line.get(name), int | float)), default=math.nan)

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
            if self.artifact is not None:
                self._wandb.save(str(self.artifact))
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines that hold a step's values, as text and read; what a crash has left half written is passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if line.endswith("\n") and isinstance(values, dict) and isinstance(values.get("step"), int):
                yield line, values


def _keep_lines(path: Path, last_step: int) -> None:
    kept = [line for line, values in _read_lines(path) if values["step"] <= last_step]
    broken = sum(1 for _ in path.open("rb")) - sum(1 for _ in _read_lines(path))
    if broken:
        log.warning("%s: %d lines cannot be read and are dropped; a crash may have left them", path, broken)
    with open_atomic(path) as file:
        file.write("".join(kept).encode())


def check_wandb(cfg: Config) -> None:
    """Raise ValueError if Weights & Biases is asked for and cannot be reached: no package, or no key."""
    if not cfg.using_wandb:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("using_wandb = True needs the package: pip install wandb, or set using_wandb = False")
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        raise ValueError("using_wandb = True needs the key in the environment variable WANDB_API_KEY")


def _start_wandb(cfg: Config, output: Path) -> Any:
    import wandb

    run_id = hashlib.sha1(str(output).encode()).hexdigest()[:16]  # so that a resumed run finds its old one
    name = cfg.name + (f"_{cfg.suffix_run_name}" if cfg.suffix_run_name else "")
    return wandb.init(
        entity=cfg.wandb_entity,
        project=cfg.wandb_project,
        name=name,
        notes=cfg.notes,
        id=run_id if cfg.wandb_resume else None,
        resume="allow" if cfg.wandb_resume else None,
        config=cfg.as_dict(),
        dir=str(output),
    )
