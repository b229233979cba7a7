"""Checkpoints that are complete or absent, and the model file that a run leaves.

``checkpoints/step_N/training.pt`` holds everything that is the same on every rank; ``checkpoints/step_N/heads/``
holds each rank's part of the classifier.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.atomic import open_atomic
from utils.distributed import all_gather_objects, broadcast_object, get_rank, together
from utils.log import log

_NAME = re.compile(r"step_(\d+)$")


def save_model(backbone: nn.Module, path: Path) -> None:
    """Write the plain state_dict, on the CPU, under a temporary name that is then renamed.

    Raises:
        OSError: the disk is full or not writable; an older file stays as it was.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    _write(state, path)


def save_checkpoint(
    folder: Path, step: int, training: dict[str, Any], save_heads: Callable[[Path], None], keep: int, rng: Any = None
) -> Path:
    """Write ``folder/step_N`` from all ranks together, then drop all but the newest ``keep``.

    Args:
        folder: the run's checkpoints/.
        step: optimizer steps taken.
        training: what is equal on every rank; rank 0's is written.
        save_heads: writes this rank's part below the folder that it is given, without collectives.
        keep: checkpoints to keep.
        rng: this rank's random state; all ranks' are kept.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: on every rank when any rank could not write; the older checkpoints are untouched.
    """
    final, partial = folder / f"step_{step}", folder / f".step_{step}.partial"
    if broadcast_object(final.exists()):  # the end of an epoch, or a stop, right after a periodic one
        return final
    every_rng = all_gather_objects(rng)
    is_main = get_rank() == 0
    try:
        together(lambda: _begin(partial, {**training, "rng": every_rng}) if is_main else None)
        together(lambda: save_heads(partial / "heads"))
        together(lambda: _finish(partial, final, keep) if is_main else None)
    except OSError as error:
        if is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"could not write checkpoint {final}: {error}. Make room or choose another output; the run can be "
            "resumed from the checkpoint before"
        ) from error
    return final


def _begin(partial: Path, training: dict[str, Any]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(training, partial / "training.pt")


def _finish(partial: Path, final: Path, keep: int) -> None:
    """Give a checkpoint its name, and drop the oldest ones."""
    partial.rename(final)
    _sync_folder(final.parent)
    try:
        for old in list_checkpoints(final.parent)[:-keep]:
            old.rename(old.with_name(f".{old.name}.old"))  # never half of a checkpoint under a complete one's name
        for left in final.parent.glob(".step_*"):
            shutil.rmtree(left)
    except OSError as error:  # the new one is complete all the same
        log.warning("an old checkpoint in %s could not be removed: %s", final.parent, error)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step_*") if (match := _NAME.search(path.name))]
    return [path for _, path in sorted(found)]


def load_training(checkpoint: Path) -> dict[str, Any]:
    """What :func:`save_checkpoint` was given as ``training``, on the CPU, with every rank's "rng".

    Raises:
        ValueError: the file is missing or damaged, named.
    """
    path = checkpoint / "training.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove {checkpoint} to resume from an older one"
        ) from error
    return state


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The random state that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what :func:`rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _write(state: Any, path: Path) -> None:
    with open_atomic(path) as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
