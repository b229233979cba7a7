"""Where a new run's backbone starts: the weights of another, and how far they fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from backbones.weights import read_weights
from embedder.load import COUNTER, fitting_networks, without_head

_NAMED = 5  # tensors that a warning names one by one


@dataclass(frozen=True)
class Fit:
    """How far a file of weights fits a network."""

    share: float  # of the network's tensors that were loaded
    missing: list[str]  # tensors of the network that are not in the file
    misshapen: list[str]  # those whose shape differs there
    extra: list[str]  # tensors of the file within the network's parts that it lacks
    left_out: str = ""  # what else is in the file
    shapes: dict[str, str] = field(default_factory=dict)  # of the misshapen ones: in the file, here

    def warning(self) -> str:
        """What did not fit, "" if all did: how many tensors of each kind, by name or counted by part."""
        kinds = {"not in the file": self.missing, "of another shape": self.misshapen, "not the network's": self.extra}
        parts = [f"{len(names)} {kind} ({self._names(names)})" for kind, names in kinds.items() if names]
        if self.missing or self.misshapen:
            parts.append("what the file does not give starts as in a new network")
        return f"not all tensors fit: {'; '.join(parts)}" if parts else ""

    def _names(self, names: list[str]) -> str:
        if len(names) <= _NAMED:
            return ", ".join(name + self.shapes.get(name, "") for name in names)
        return ", ".join(f"{part}: {n}" for part, n in Counter(name.partition(".")[0] for name in names).items())


def start_from(backbone: nn.Module, path: Path) -> Fit:
    """Start a backbone from a file of weights; see ``backbones/weights.py`` for the files that can be read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, values that are not finite, the weights of another network of this project,
            or less than half of the tensors fit.
    """
    own = backbone.state_dict()
    file = read_weights(path)
    weights = file.of(own)
    named = weights.tensors
    fitting = {name: value for name, value in named.items() if name in own and value.shape == own[name].shape}
    misshapen = [name for name in own if name in named and name not in fitting]
    fit = Fit(
        share=len(fitting) / len([name for name in own if name in named or not name.endswith(COUNTER)]),
        missing=[name for name in own if name not in named and not name.endswith(COUNTER)],
        misshapen=misshapen,
        extra=[name for name in named if name not in own],
        left_out=weights.left_out_text(),
        shapes={name: f" {tuple(named[name].shape)} in place of {tuple(own[name].shape)}" for name in misshapen},
    )
    asked = without_head(own, named)
    is_another = bool(fit.extra) or any(name in asked for name in fit.missing)
    others = fitting_networks(file, headless=True) if is_another else []
    if others:
        raise ValueError(
            f"{path} holds the weights of network {' or '.join(others)}, not of this one ({fit.warning()}); set "
            f"network to {others[0]!r}, or choose other weights"
        )
    if fit.share < 0.5:
        raise ValueError(
            f"{path} fits {len(fitting)} of the network's {len(own)} tensors: it is another network's, with "
            f"{file.first_names()}; set network to the one that it was trained as"
        )
    backbone.load_state_dict(fitting, strict=False)
    return fit
