"""An exponential moving average of a network's weights over the steps, kept on its device.

``torch.optim.swa_utils.AveragedModel`` computes the same, but moves its count of updates to the device in each step,
for which the host waits; its decay does not rise; and it cannot leave out a step of which only the device knows that
it is skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.log import log, warn_once

_NUMBERS_AT_ONCE = 1 << 22  # whose differences are in memory at a time, or one tensor's if that is larger


class Ema:
    """The average of a network. After t updates the next one keeps ``min(decay, (1 + t) / (10 + t))`` of it.

    Parameters and the buffers of floating point, such as running statistics, are averaged; other buffers are those of
    the network.

    Args:
        source: the network as it is before the first step, on the device that it stays on.
        decay: in [0, 1); 0: there is no average, ``network`` is the source itself, and nothing here has an effect.

    Attributes:
        network: the average, in evaluation mode; its names are the source's.
        tensors: its state_dict, the same tensors at all times; None if there is no average.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.decay, self.network, self._source = decay, source, source
        self.tensors: dict[str, Tensor] | None = None
        if decay == 0:
            return
        self.network = copy.deepcopy(source).eval().requires_grad_(False)
        self.tensors = dict(self.network.state_dict())
        pairs = list(zip(_tensors(self.network), _tensors(source), strict=True))
        self._updates = torch.zeros((), dtype=torch.int64, device=pairs[0][0].device)
        self._parts = list(_in_parts([pair for pair in pairs if pair[0].is_floating_point()]))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, skip: Tensor | bool | None = None) -> None:
        """Take in the source as it is after a step; the host does not wait for the device.

        Args:
            skip: whether the step was skipped, so that the average stays as it is: a bool, or a scalar bool tensor on
                the source's device. The source must then be finite, as it was before that step.
        """
        if self.tensors is None or skip is True:
            return
        weight = (9.0 / (10.0 + self._updates.double())).clamp(min=1.0 - self.decay)  # of the source
        taken = torch.ones_like(self._updates)
        if isinstance(skip, Tensor):
            taken = taken * ~skip
            weight = weight * taken
        for averages, values in self._parts:
            _move(averages, values, weight.to(averages[0].dtype))
        for average, value in self._counts:
            average.copy_(value)
        self._updates += taken

    def state_dict(self) -> dict[str, Any] | None:
        """What a checkpoint holds: no names, so that it is no second network to those who look for one in there."""
        return None if self.tensors is None else {"tensors": list(self.tensors.values()), "updates": self._updates}

    def resume(self, saved: dict[str, Any] | None, where: object) -> None:
        """Go on with what :meth:`state_dict` gave, once the source has been loaded; without it, begin anew.

        Args:
            saved: the checkpoint's; None: it has no average.
            where: the checkpoint, for the log.

        Raises:
            ValueError, RuntimeError: it is of another network.
        """
        if self.tensors is None:
            if saved is not None:
                warn_once("%s holds an average of the weights, which this run leaves out: ema_decay = 0", where)
            return
        if saved is None:
            log.info("%s holds no average of the weights: it begins with the weights in there", where)
            saved = {"tensors": list(self._source.state_dict().values()), "updates": 0}
        self.network.load_state_dict(dict(zip(self.tensors, saved["tensors"], strict=True)))
        self._updates.fill_(saved["updates"])


def _move(averages: list[Tensor], values: list[Tensor], weight: Tensor) -> None:
    """Move the averages by ``weight`` of the way to the values, a scalar tensor that the host need not know."""
    if weight.device.type == "cpu":  # one pass over the memory
        torch._foreach_lerp_(averages, values, [weight] * len(averages))
        return
    changes = torch._foreach_sub(values, averages)  # a GPU does the line above tensor by tensor, these at once
    torch._foreach_mul_(changes, weight)
    torch._foreach_add_(averages, changes)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _in_parts(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Averages and values in lists of one type and of few numbers."""
    part: list[tuple[Tensor, Tensor]] = []
    numbers = 0
    for pair in pairs:
        numbers += pair[0].numel()
        if part and (numbers > _NUMBERS_AT_ONCE or pair[0].dtype != part[0][0].dtype):
            yield [average for average, _ in part], [value for _, value in part]
            part, numbers = [], pair[0].numel()
        part.append(pair)
    if part:
        yield [average for average, _ in part], [value for _, value in part]
