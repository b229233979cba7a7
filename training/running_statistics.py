"""Batch norm's running statistics, which a step changes in its forward, before it is known to count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The buffers of a network and of its margin loss, as they were before a step and as they are.

    The buffers of each type become parts of one tensor, so that a step handles hundreds of them as one.

    Args:
        network: on the device that it stays on; its buffers are replaced, their values stay.
        margin: likewise; some keep averages of their own.
    """

    def __init__(self, network: nn.Module, margin: nn.Module) -> None:
        self._named = {**dict(network.named_buffers()), **dict(margin.named_buffers("margin"))}
        types = dict.fromkeys(buffer.dtype for buffer in self._named.values())
        self._joined = {dtype: _join([b for b in self._named.values() if b.dtype == dtype]) for dtype in types}
        self._kept = {dtype: joined.clone() for dtype, joined in self._joined.items()}
        self._seen = {dtype: joined.clone() for dtype, joined in self._joined.items()}  # at the last put_back

    def keep(self) -> None:
        """Note them as they are."""
        for dtype, joined in self._joined.items():
            self._kept[dtype].copy_(joined)

    def put_back(self, bad: Tensor | None = None) -> None:
        """Make them what they were at the last :meth:`keep`, if ``bad`` (a scalar on the device) is not 0 or None."""
        for dtype, joined in self._joined.items():
            self._seen[dtype].copy_(joined)
            kept = self._kept[dtype]
            joined.copy_(kept if bad is None else torch.where(bad > 0, kept, joined))

    def largest(self) -> Tensor | float:
        """The largest magnitude, a scalar on the device; not finite if one of them is not."""
        largest = [joined.abs().amax().float() for dtype, joined in self._joined.items() if dtype.is_floating_point]
        return torch.stack(largest).amax() if largest else 0.0

    def non_finite(self) -> str | None:
        """The name of the first that was not finite when last put back; waits for the device."""
        start = dict.fromkeys(self._joined, 0)
        for name, buffer in self._named.items():
            seen = self._seen[buffer.dtype][start[buffer.dtype] :][: buffer.numel()]
            start[buffer.dtype] += buffer.numel()
            if buffer.is_floating_point() and not seen.isfinite().all():
                return name
        return None


def _join(buffers: list[Tensor]) -> Tensor:
    """One tensor that holds the buffers' values from now on, one after the other."""
    joined = torch.cat([buffer.flatten() for buffer in buffers])
    start = 0
    for buffer in buffers:
        buffer.data = joined[start : start + buffer.numel()].view(buffer.shape)
        start += buffer.numel()
    return joined
