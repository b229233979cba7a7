"""Batch norm's running statistics, which a step changes in its forward, before it is known to count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The buffers of a network and of its margin loss, as they were before a step and as they are.

    Args:
        network: on the device that it stays on.
        margin: likewise; some keep averages of their own.
    """

    def __init__(self, network: nn.Module, margin: nn.Module) -> None:
        self._named = {**dict(network.named_buffers()), **dict(margin.named_buffers("margin"))}
        self._floats = [buffer for buffer in self._named.values() if buffer.is_floating_point()]
        counts = [buffer for buffer in self._named.values() if not buffer.is_floating_point()]
        self._groups = [(group, [buffer.clone() for buffer in group]) for group in (self._floats, counts) if group]

    def keep(self) -> None:
        """Note them as they are."""
        for buffers, kept in self._groups:
            torch._foreach_copy_(kept, buffers)

    def put_back(self) -> None:
        """Make them what they were at the last :meth:`keep`."""
        for buffers, kept in self._groups:
            torch._foreach_copy_(buffers, kept)

    def largest(self) -> Tensor | float:
        """The largest magnitude, a scalar on the device; not finite if one of them is not."""
        if not self._floats:
            return 0.0
        return torch.stack(torch._foreach_norm(self._floats, float("inf"))).max()

    def non_finite(self) -> str | None:
        """The name of the first that is not finite."""
        return next(
            (name for name, b in self._named.items() if b.is_floating_point() and not b.isfinite().all()), None
        )
