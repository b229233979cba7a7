"""One reader for the weights of a network, whoever wrote the file, and one check of them.

Names in a file may carry what a wrapper puts before them, and stand beside an optimizer or a classifier. Which are
the network's is decided by the names that the network has: no list of prefixes, so none can damage a network that
has a part of such a name.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backbones.foreign import name_of_format
from utils.torch_file import check_unfolding

# What wrappers of parts put into the middle of names; no layer is called so.
_WRAPPED_PARTS = re.compile(r"(?:(?<=\.)|^)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_WAY_OUT = "write the file anew with torch.save(network.state_dict(), file)"
_DEPTH = 3  # dictionaries in dictionaries that are looked into


class Weights(NamedTuple):
    """What a file holds for a network."""

    tensors: dict[str, Tensor]  # by the network's names, in the file's order; other names only within its parts
    left_out: list[str]  # what else is in the file

    def left_out_text(self) -> str:
        """What else is in the file, "" if nothing is."""
        more = f" and {len(self.left_out) - 8} more" if len(self.left_out) > 8 else ""
        return ", ".join(self.left_out[:8]) + more


class WeightsFile:
    """The tensors of a file, before it is known whose they are.

    Args:
        path: the file, for messages.
        content: what it holds.

    Raises:
        ValueError: there is no tensor with a name.
    """

    def __init__(self, path: Path, content: Any) -> None:
        self.path = path
        if not isinstance(content, dict):
            raise ValueError(
                f"{path}: expected a state_dict, a dictionary of tensors, found a {type(content).__name__}; "
                f"{_WAY_OUT}"
            )
        if not content:
            raise ValueError(f"{path}: expected a network's state_dict, found an empty dictionary")
        self.entries = [str(key) for key in content]
        self.tables = {place: self._named(tensors) for place, tensors in _tables(content)}  # place in the file: names
        if not self.tables:
            raise ValueError(
                f"{path}: expected a state_dict, a dictionary of tensors, found no tensor under "
                f"{', '.join(self.entries[:5])}; {_WAY_OUT}"
            )

    def of(self, names: Collection[str]) -> Weights:
        """The tensors of the network whose state_dict has these names, without what wrappers put before them.

        A prefix is taken off only where that makes more names fit. Tensors that lie beside the network are left out;
        further ones within its parts are kept, because they say that it is another network.

        Raises:
            ValueError: the file holds the network twice, values of it that are not finite, or more numbers
                than are in it.
        """
        weights = self.match(names)
        for name, value in weights.tensors.items():
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(
                    f"{self.path}: {name} announces {value.numel():,} numbers, more than the file holds; {_WAY_OUT}"
                )
        bad = [name for name, value in weights.tensors.items() if name in names and not value.isfinite().all()]
        if bad:
            raise ValueError(
                f"{self.path}: {len(bad)} of {len(weights.tensors)} tensors hold values that are not finite, "
                f"{bad[0]} first: the training that wrote it has diverged; take a file from before"
            )
        return weights

    def match(self, names: Collection[str]) -> Weights:
        """The same, whatever the values.

        Raises:
            ValueError: the file holds the network twice.
        """
        names = set(names)
        votes = Counter(
            (place, prefix)
            for place, tensors in self.tables.items()
            for key in tensors
            for prefix in _prefixes(key, names)
        )
        best = sorted(votes, key=lambda where: (-votes[where], len(where[1])))
        place, prefix = best[0] if best else (next(iter(self.tables)), "")
        if len(best) > 1 and votes[best[0]] == votes[best[1]] > len(names) / 2:
            one, other = (
                ".".join(filter(None, (place, prefix.rstrip(".")))) or "no prefix" for place, prefix in best[:2]
            )
            raise ValueError(
                f"{self.path} holds the network twice, under {one} and under {other}: save the one that is meant "
                "alone"
            )
        return self._split(place, prefix, names)

    def first_names(self) -> str:
        """A few of its names, for messages."""
        names = max(map(list, self.tables.values()), key=len)
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

    def _named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for key, value in tensors.items():
            name = _WRAPPED_PARTS.sub("", key)
            if name in named:
                raise ValueError(
                    f"{self.path}: two tensors are named {name!r} once the wrappers' parts are gone; {_WAY_OUT}"
                )
            named[name] = value
        return named

    def _split(self, place: str, prefix: str, names: set[str]) -> Weights:
        parts = {name.partition(".")[0] for name in names}
        tensors: dict[str, Tensor] = {}
        left_out: list[str] = []
        for key, value in self.tables[place].items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and (name in names or name.partition(".")[0] in parts):
                tensors[name] = value
            else:
                left_out.append(key)
        used = place.partition(".")[0] if place else None
        others = [entry for entry in self.entries if entry != used] if place else self._entries_without_tensors()
        return Weights(tensors, left_out + others)

    def _entries_without_tensors(self) -> list[str]:
        own = {_WRAPPED_PARTS.sub("", entry): entry for entry in self.entries}
        return [entry for name, entry in own.items() if name not in self.tables.get("", {})]


def read_weights(path: str | Path) -> WeightsFile:
    """Read a file's tensors on the CPU, running no code that the file may hold.

    Args:
        path: a file of ``torch.save``: a state_dict, or dictionaries with one in them, such as a training checkpoint;
            or of safetensors.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read.
        ValueError: damaged, of another format, which is named, a whole pickled or scripted network, no tensors in
            it, or the package safetensors is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: expected a network's weights, such as a run's model.pt")
    if not path.is_file():
        raise ValueError(f"{path} is a folder: expected the file with the weights in it, such as a run's model.pt")
    return WeightsFile(path, _load(path))


def read_state_dict(path: str | Path, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the network with these names; see :func:`read_weights` and :meth:`WeightsFile.of`."""
    return read_weights(path).of(names).tensors


def _tables(content: dict[Any, Any], place: str = "", depth: int = 1) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each dictionary in the file that holds tensors by name, and where it is."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield place, tensors
    for key, value in named.items():
        if isinstance(value, dict) and depth < _DEPTH:
            yield from _tables(value, f"{place}.{key}" if place else key, depth + 1)


def _prefixes(key: str, names: set[str]) -> Iterator[str]:
    """What stands before a name of the network in ``key``, "" if nothing does."""
    start = 0
    while start >= 0:
        if key[start:] in names:
            yield key[:start]
        start = key.find(".", start) + 1 or -1


def _load(path: Path) -> Any:
    """What the file holds. torch's own messages advise to run the file's code, so they are not passed on."""
    found = name_of_format(path)
    if found == "safetensors":
        return _load_safetensors(path)
    if found:
        raise ValueError(f"{path} is {found}")
    check_unfolding(path)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files that end in an error anyway
        try:
            with torch.serialization.safe_globals(_plain_data()):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a broken file raises nearly any type
            name, text = type(error).__name__, str(error)
    if "TorchScript" in text:
        raise ValueError(f"{path} holds a TorchScript program, expected a state_dict of tensors; {_WAY_OUT}")
    if "unsupported" in text.lower():
        kind = re.search(r"GLOBAL ([\w.]+)", text)
        if kind and kind[1].startswith("numpy."):
            raise ValueError(f"{path} holds arrays of numpy, expected tensors of torch: {_WAY_OUT}")
        raise ValueError(
            f"{path} holds other objects than tensors{f' ({kind[1]})' if kind else ''}, such as a whole pickled "
            f"network; they can run any code and are refused: {_WAY_OUT}"
        )
    raise ValueError(f"{path} is no file of torch.save, or it is damaged or cut short ({name}); copy it again")


def _plain_data() -> list[Any]:
    """What checkpoints hold beside tensors and cannot run code: numbers of numpy, by its old and new names; settings.

    numpy's numbers come as a type, and as bytes for it.
    """
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in "efdilq?"), argparse.Namespace]


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(f"{path} is a file of safetensors: pip install safetensors") from None
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged file of safetensors ({error}); copy it again") from None
