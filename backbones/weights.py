"""One reader for the weights of a network, whoever wrote the file."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What DistributedDataParallel, torch.compile and a training module put before each name, in any order.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|backbone\.)+")
_WAY_OUT = "write the file anew with torch.save(network.state_dict(), file)"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a network's tensors on the CPU, running no code that the file may hold.

    Args:
        path: a file of ``torch.save(network.state_dict(), path)``, or of a dictionary whose "state_dict" is one.

    Returns:
        Tensors by name, in the file's order, without the prefixes ``module.``, ``_orig_mod.`` and ``backbone.``
        that wrappers add.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read.
        ValueError: damaged, not torch's, a whole pickled or scripted network, or no dictionary of tensors.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: expected a network's weights, such as a run's model.pt")
    if not path.is_file():
        raise ValueError(f"{path} is a folder: expected the file with the weights in it, such as a run's model.pt")
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a state_dict, a dictionary of tensors, found a {type(content).__name__}; {_WAY_OUT}"
        )
    if not content:
        raise ValueError(f"{path}: expected a network's state_dict, found an empty dictionary")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: expected a state_dict, a dictionary of tensors alone, but {str(key)[:80]!r} holds a "
                f"{type(value).__name__}; {_WAY_OUT}"
            )
        name = _WRAPPERS.sub("", key)
        if name in state:
            raise ValueError(
                f"{path}: two tensors are named {name!r} once the wrappers' prefixes are gone; {_WAY_OUT}"
            )
        state[name] = value
    return state


def _load(path: Path) -> Any:
    """What the file holds. torch's own messages advise to run the file's code, so they are not passed on."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files that end in an error anyway
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a broken file raises nearly any type
            name, text = type(error).__name__, str(error)
    if "TorchScript" in text:
        raise ValueError(f"{path} holds a TorchScript program, expected a state_dict of tensors; {_WAY_OUT}")
    if "unsupported" in text.lower():
        raise ValueError(
            f"{path} holds other objects than tensors, such as a whole pickled network; they can run any code and "
            f"are refused: {_WAY_OUT}"
        )
    raise ValueError(f"{path} is no file of torch.save, or it is damaged or cut short ({name}); copy it again")
