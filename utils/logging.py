"""What a run says of itself: training.log and the terminal, metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.atomic import open_atomic
from utils.config import Config

log = logging.getLogger("mhs_arcface")


def init_logging(is_main: bool, output: Path | None = None) -> None:
    """Send rank 0's log lines, and all ranks' warnings, to the terminal.

    With ``output`` rank 0's go to ``output/training.log`` too, those first that were logged while there was none.
    """
    early = [handler for handler in log.handlers if isinstance(handler, MemoryHandler)]
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if is_main:
        handlers.append(
            MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)
            if output is None
            else logging.FileHandler(output / "training.log")
        )
    for handler in handlers:
        handler.setFormatter(logging.Formatter("Training: %(asctime)s-%(message)s"))
    for before in early if output is not None and is_main else []:
        before.setTarget(handlers[-1])
        before.flush()
        before.setTarget(None)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    for handler in handlers:
        log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO if is_main else logging.WARNING)


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
        lines = (json.loads(line) for line in Path(self._jsonl.name).read_text().splitlines())
        return max((line[name] for line in lines if line.get(name) is not None), default=math.nan)

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

    run_id = hashlib.sha1(str(output).encode()).hexdigest()[:16]  # so that a resumed run finds itself
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that is spent inside on something else than training, such as verification."""
        begin_s = time.monotonic()
        yield
        passed_s = time.monotonic() - begin_s
        self.since_s += passed_s
        self.start_s += passed_s

    def hours_left(self, done: int, left: int) -> float:
        """Hours for ``left`` steps at the mean pace of the ``done`` steps taken so far."""
        return (time.monotonic() - self.start_s) / max(done, 1) * left / 3600
