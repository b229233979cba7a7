"""Which parameters of a backbone get weight decay, and optimizer state that does not depend on it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer


def parameter_groups(backbone: nn.Module, weight_decay: float, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """The groups of a torch optimizer.

    Args:
        backbone: whose parameters they are.
        weight_decay: for all, or for the first group.
        decay_norms_and_biases: False: parameters of one dimension (norms, PReLU slopes) and those that are named bias
            get a group of their own, without decay.
    """
    named = list(backbone.named_parameters())
    if decay_norms_and_biases:
        return [{"params": [parameter for _, parameter in named], "weight_decay": weight_decay}]
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        groups[parameter.ndim > 1 and name.rpartition(".")[2] != "bias"].append(parameter)
    decays = {True: weight_decay, False: 0.0}
    return [{"params": groups[has], "weight_decay": decays[has]} for has in (True, False) if groups[has]]


def numbered_state(optimizer: Optimizer | None, backbone: nn.Module) -> dict[str, Any]:
    """The optimizer's state_dict, with parameters numbered as the backbone has them, whatever group they are in.

    Without an optimizer, as for a frozen backbone, it is empty.
    """
    if optimizer is None:
        return {}
    numbers, state = _numbers(optimizer, backbone), optimizer.state_dict()
    return {
        "state": {numbers[place]: own for place, own in state["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[place] for place in group["params"]]} for group in state["param_groups"]
        ],
    }


def load_numbered_state(optimizer: Optimizer | None, backbone: nn.Module, saved: dict[str, Any]) -> None:
    """Restore the state of each parameter from :func:`numbered_state`; groups, decay and rates stay the optimizer's.

    With one group for all that is a plain state_dict, as older checkpoints hold it. Nothing happens where there is no
    optimizer, now or then.

    Raises:
        ValueError: there is state of more parameters than the backbone has.
    """
    if optimizer is None or not saved:
        return
    numbers = _numbers(optimizer, backbone)

    def known(number: int) -> dict[str, Any]:
        return {name: value for name, value in saved["state"].get(number, {}).items() if value is not None}

    if surplus := saved["state"].keys() - set(numbers):
        raise ValueError(f"the optimizer's state is of {len(surplus)} parameters more than the network has")
    own = optimizer.state_dict()  # its state stays where nothing was saved, as of a run without momentum
    state = {place: {**own["state"].get(place, {}), **known(number)} for place, number in enumerate(numbers)}
    state = {place: values for place, values in state.items() if values}
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _numbers(optimizer: Optimizer, backbone: nn.Module) -> list[int]:
    """For each parameter in the order of the optimizer's groups, which of the backbone's it is."""
    number = {id(parameter): n for n, parameter in enumerate(backbone.parameters())}
    return [number[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
