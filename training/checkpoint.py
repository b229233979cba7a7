"""Checkpoints as they lie in a run's folder: their names, what is in them, and whether it is what was written.

``checkpoints/step_N/training.pt`` holds everything that is the same on every rank, ``heads/`` each rank's part of the
classifier (heads/saved.py), ``manifest.json`` the size and checksums of every file. It is written last, and a
checkpoint gets its name after it. Checkpoints without a manifest are of version 0.1.0; they still load.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.layout import Layout
from heads.saved import SavedHeads, open_heads
from utils.manifest import MANIFEST, CheckedFile, DamagedError, Manifest, read_manifest, verify
from utils.text import parse_json, plain
from utils.torch_file import check_unfolding

FORMAT = 2  # of a checkpoint with a manifest
VERSION = "0.2.0"  # of the project, as in pyproject.toml
TRAINING, HEADS, BEST = "training.pt", "heads", "best.json"
FINITE = ("backbone", "optimizer", "ema")  # in training.pt: without a sound one of these a checkpoint is of no use
ASIDE = "aside_"  # before the name of a checkpoint that a run has gone back behind
REPLACED = ".replaced"  # after the name of one whose step is saved again
_SETTINGS = ("num_classes", "head_size", "embedding_size", "seed", "iteration")
_NAME = re.compile(r"step_(\d+)")


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a folder's name tells; -1 for another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a run's checkpoints/, oldest first; they were complete when they got their names."""
    return sorted((path for path in folder.glob("step_*") if step_of(path) >= 0), key=step_of)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest one of the run whose folder it is.

    Raises:
        FileNotFoundError: there is none.
    """
    if (path / TRAINING).exists() or (step_of(path) >= 0 and path.is_dir()):
        return path
    for folder in (path / "checkpoints", path):
        if found := list_checkpoints(folder):
            return found[-1]
    raise FileNotFoundError(
        f"{path} holds no checkpoint: expected a run's folder with checkpoints/step_N in it, or such a step_N; a run "
        "writes them with save_all_states = True"
    )


def manifest_of(checkpoint: Path) -> Manifest | None:
    """A checkpoint's manifest; None if it is of the form that had none.

    Raises:
        DamagedError: it is missing or damaged, or of a later version.
    """
    if not (checkpoint / MANIFEST).exists():
        if next(checkpoint.glob(f"{HEADS}/*/layer_*"), None) is not None:
            raise DamagedError(f"{checkpoint / MANIFEST} is missing")
        return None
    manifest = read_manifest(checkpoint)
    if manifest.facts.get("format") != FORMAT:
        raise DamagedError(
            f"{checkpoint} has format {manifest.facts.get('format')}, this version reads {FORMAT}: use the version "
            f"that wrote it, {manifest.facts.get('project')}"
        )
    return manifest


def load_training(checkpoint: Path, manifest: Manifest | None = None) -> dict[str, Any]:
    """What all ranks had in common, on the CPU.

    Args:
        checkpoint: a folder step_N.
        manifest: its manifest, if it has been read.

    Raises:
        DamagedError: the file is missing or damaged, named.
    """
    manifest = manifest or manifest_of(checkpoint)
    path = checkpoint / TRAINING
    if manifest is not None and TRAINING not in manifest.files:
        raise DamagedError(f"{checkpoint / MANIFEST} is damaged: it does not name {TRAINING}")
    for _ in CheckedFile(path, manifest.files[TRAINING] if manifest else None).chunks():
        pass
    try:
        check_unfolding(path)
        if manifest is None:
            with zipfile.ZipFile(path) as parts:
                if (damaged := parts.testzip()) is not None:
                    raise ValueError(f"{damaged} in it has another checksum than when it was written")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        head = state.get("head") if isinstance(state, dict) else None
        if not isinstance(head, dict) or not all(isinstance(head.get(name), int) for name in _SETTINGS):
            raise ValueError("it holds no classifier's settings")
        if manifest is None and "format" in state:
            raise DamagedError(f"{checkpoint / MANIFEST} is missing")
    except DamagedError:
        raise
    except Exception as error:  # a broken file raises nearly any type
        kind = type(error).__name__  # torch's text runs over lines, and can advise what is not safe
        text = f": {plain(str(error))}" if kind == "ValueError" else ""
        what = "is damaged or not a checkpoint's"
        if manifest is not None:  # its bytes are what was written
            what = f"was written by torch {manifest.facts.get('torch')} and cannot be read by {torch.__version__}"
        raise DamagedError(f"{path} {what}: {kind}{text}") from error
    return state


def open_saved_heads(
    checkpoint: Path, settings: dict[str, int] | None = None, wanted: Layout | None = None
) -> SavedHeads:
    """The classifier in a checkpoint.

    Args:
        checkpoint: a folder step_N.
        settings: the classifier's, if training.pt has been read.
        wanted: whose heads are of use; None: all are.

    Raises:
        DamagedError: a file is missing or damaged, named.
    """
    manifest = manifest_of(checkpoint)
    settings = settings or load_training(checkpoint, manifest)["head"]
    return open_heads(checkpoint / HEADS, settings, None if manifest is None else manifest.below(HEADS), wanted)


def check(checkpoint: Path) -> tuple[Manifest | None, SavedHeads]:
    """Read all of a checkpoint's files and hold them against the manifest; returns that and the classifier.

    Without a manifest, what is read is held against itself: numbers of heads, shapes, and torch's own checksums.

    Raises:
        DamagedError: a file is not what was written, named.
    """
    manifest = manifest_of(checkpoint)
    if manifest is not None:
        verify(checkpoint, manifest)
    state = load_training(checkpoint, manifest)
    if name := first_non_finite({key: state.get(key) for key in FINITE}):
        raise DamagedError(f"{checkpoint / TRAINING} is of no use: {name} is not finite in it")
    files = None if manifest is None else manifest.below(HEADS)
    return manifest, open_heads(checkpoint / HEADS, state["head"], files)


def newest_sound(folder: Path, other_than: Path | None = None) -> Path | None:
    """The newest checkpoint in a run's checkpoints/ of which every byte is what was written."""
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            if checkpoint != other_than:
                check(checkpoint)
                return checkpoint
        except DamagedError:
            continue
    return None


def first_non_finite(value: Any, name: str = "") -> str | None:
    """The place of the first nan or infinity in nested dictionaries and lists of tensors, "backbone.bn1.bias"."""
    if isinstance(value, Tensor):
        return name if value.is_floating_point() and not value.isfinite().all() else None
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return None
    found = (first_non_finite(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next((place for place in found if place is not None), None)


@dataclass(frozen=True)
class Best:
    """Which checkpoint was the best so far, by a metric that grows."""

    step: int
    metric: str
    value: float


def read_best(output: Path) -> Best | None:
    """The best checkpoint of the run in a folder, None if none is noted or the note is damaged."""
    try:
        values = parse_json((output / BEST).read_text())
        return Best(int(values["step"]), str(values["metric"]), float(values["value"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


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
