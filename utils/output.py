"""The folder that a run leaves, and how a second run is kept from spoiling it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from utils.checkpoint import list_checkpoints
from utils.config import Config
from utils.distributed import Ranks, broadcast_object

FILES = ("model.pt", "training.log", "metrics.jsonl", "config.json", "classes.json")
FOLDERS = ("checkpoints", "tensorboard")


def open_output(cfg: Config, ranks: Ranks) -> tuple[Path, Path | None]:
    """Make the run's folder, or refuse it.

    Returns:
        The folder, and the checkpoint to go on from, None for a new run. Rank 0 decides for all.

    Raises:
        ValueError: the folder holds another run, and neither ``resume`` nor ``overwrite`` is set.
        FileNotFoundError: ``resume`` is set and there is no complete checkpoint.
    """
    output = cfg.output_dir()
    error: Exception | None = None
    start: Path | None = None
    if ranks.is_main:
        try:
            start = _open(output, cfg)
        except (ValueError, OSError) as problem:
            error = problem
    error, start = broadcast_object((error, start))
    if error is not None:
        raise error
    return output, start


def _open(output: Path, cfg: Config) -> Path | None:
    if cfg.resume:
        found = list_checkpoints(output / "checkpoints")
        if not found:
            raise FileNotFoundError(
                f"resume = True, but {output / 'checkpoints'} holds no complete checkpoint; start with resume = False"
            )
        return found[-1]
    present = [name for name in (*FILES, *FOLDERS) if (output / name).exists()]
    if present and not cfg.overwrite:
        raise ValueError(
            f"{output} holds another run ({', '.join(present)}): set resume = True to go on with it, another output "
            "to keep it, or overwrite = True to lose it"
        )
    for name in present:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    output.mkdir(parents=True, exist_ok=True)
    return None


def write_json(path: Path, value: Any) -> None:
    """Write a value, complete or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    temporary.replace(path)
