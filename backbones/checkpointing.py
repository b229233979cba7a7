"""Gradient checkpointing: keep a segment's input alone, and compute its inside again when backward comes to it.

The step stays the same to the bit where kernels are deterministic: dropout, drop path and autocast repeat what they
did, and batch norms see their images once only, since the repetition works on copies of the buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

KEPT_BY_BLOCK = 6  # feature maps that a residual block keeps for its backward, about


def run_checkpointed(segment: nn.Module, x: Tensor) -> Tensor:
    """``segment(x)``, whose inside is not kept for backward but computed once more there."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _on_copies_of_buffers(segment)

    out: Tensor = checkpoint(segment, x, use_reentrant=False, context_fn=contexts)
    return out


def segments(stage: nn.Sequential) -> Iterator[nn.Sequential]:
    """Cut a row of equal blocks where inputs kept and one segment's inside together are least: sqrt(n / 6) blocks."""
    length = max(1, math.isqrt(len(stage) // KEPT_BY_BLOCK))
    for start in range(0, len(stage), length):
        yield stage[start : start + length]


@contextmanager
def _on_copies_of_buffers(segment: nn.Module) -> Iterator[None]:
    own = [(module, dict(module._buffers)) for module in segment.modules() if module._buffers]
    for module, buffers in own:
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, buffers in own:
            module._buffers.update(buffers)
