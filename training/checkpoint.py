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

from backbones.weights import read_state_dict
from utils.atomic import open_atomic
from utils.distributed import all_gather_objects, barrier, broadcast_object, get_rank

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
        save_heads: writes this rank's part below the folder that it is given; has no collective in it.
        keep: checkpoints that stay.
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
    problem = None
    try:
        if get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write({**training, "rng": every_rng}, partial / "training.pt")
    except OSError as error:
        problem = str(error)
    problems = [p for p in all_gather_objects(problem) if p]
    if not problems:
        try:
            save_heads(partial / "heads")
        except OSError as error:
            problem = str(error)
        problems = [p for p in all_gather_objects(problem) if p]
    if problems:
        if get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"could not write checkpoint {final}: {problems[0]}. Make room or choose another output; the run can be "
            "resumed from the checkpoint before"
        )
    if get_rank() == 0:
        partial.rename(final)
        _sync_folder(folder)
        for old in list_checkpoints(folder)[:-keep]:
            old.rename(old.with_name(f".{old.name}.old"))  # never half of a checkpoint under a complete one's name
        for left in folder.glob(".step_*"):
            shutil.rmtree(left)
    barrier()
    return final


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


def load_backbone(backbone: nn.Module, path: Path) -> float:
    """Start a backbone from a model.pt, tolerant of the prefixes that wrappers add.

    Returns:
        The share of the backbone's tensors that were found with the right shape.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or less than half of the tensors fit.
    """
    named = read_state_dict(path)
    own = backbone.state_dict()
    fitting = {n: v for n, v in named.items() if n in own and getattr(v, "shape", None) == own[n].shape}
    share = len(fitting) / len(own)
    if share < 0.5:
        raise ValueError(
            f"{path} fits {len(fitting)} of the network's {len(own)} tensors: it is another network's; set network "
            "to the one that it was trained as"
        )
    backbone.load_state_dict(fitting, strict=False)
    return share


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The random state that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Take over what :func:`rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _write(state: Any, path: Path) -> None:
    with open_atomic(path) as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
