"""What a run says of itself: training.log and the terminal, metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.config import Config

log = logging.getLogger("mhs_arcface")


def init_logging(output: Path | None) -> None:
    """Send log lines of this rank to the terminal and ``output/training.log``; without ``output``, warnings only."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.WARNING if output is None else logging.INFO)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if output is not None:
        handlers.append(logging.FileHandler(output / "training.log"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("Training: %(asctime)s-%(message)s"))
        log.addHandler(handler)


class MetricsWriter:
    """Scalars by step, to metrics.jsonl, TensorBoard and, where asked for, Weights & Biases.

    On resuming, what was written past ``start_step`` is cut, so that each step stands once.

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
        """Record the values of one step; names may hold a slash to group them."""
        if self._jsonl is not None:
            self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
            self._jsonl.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

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


def _keep_lines(path: Path, last_step: int) -> None:
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("}\n")]  # without what a killed run was just writing
    kept = [line for line in whole if json.loads(line)["step"] <= last_step]
    temporary = path.with_name(".metrics.jsonl.partial")
    temporary.write_text("".join(kept))
    temporary.replace(path)


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

    name = cfg.name + (f"_{cfg.suffix_run_name}" if cfg.suffix_run_name else "")
    return wandb.init(
        entity=cfg.wandb_entity,
        project=cfg.wandb_project,
        name=name,
        notes=cfg.notes,
        resume="allow" if cfg.wandb_resume else None,
        config=cfg.as_dict(),
        dir=str(output),
    )


class Speedometer:
    """Images a second and the share of the time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.start_s = self.since_s = time.monotonic()
        self.waited_s = 0.0
        self.images = 0

    def read(self) -> tuple[float, float]:
        """(images a second, share of time waiting for data), then count anew."""
        now = time.monotonic()
        passed = max(now - self.since_s, 1e-9)
        result = self.images / passed, min(self.waited_s / passed, 1.0)
        self.since_s, self.waited_s, self.images = now, 0.0, 0
        return result

    def pause(self, seconds: float) -> None:
        """Leave out time that was spent on something else than training, such as verification."""
        self.since_s += seconds
        self.start_s += seconds

    def hours_left(self, done: int, left: int) -> float:
        """Hours for ``left`` steps at the mean pace of the ``done`` steps taken so far."""
        return (time.monotonic() - self.start_s) / max(done, 1) * left / 3600
