"""This project's training step without one of the things that make it fast on a CPU: what each of them is worth."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import train
import training.run
from backbones.base import to_network_input
from backbones.prelu import PReLU
from training.network import make_network

LAYOUT, ALLOCATOR, PRELU = "layout", "allocator", "prelu"
CHOICES = (LAYOUT, ALLOCATOR, PRELU)


@contextmanager
def left_out(names: Collection[str]) -> Iterator[None]:
    """Build and make steps inside without what is named.

    Args:
        names: of CHOICES. "layout": weights and images lie in memory as torch has them (NCHW), not channels-last.
            "allocator": glibc gives freed memory back to the system; a process that has prepared its device before
            keeps it all the same. "prelu": torch's own PReLU.
    """

    def contiguous_network(*args: Any) -> nn.Module:
        return make_network(*args).to(memory_format=torch.contiguous_format)

    def contiguous_input(images_BHW3: Tensor) -> Tensor:
        return to_network_input(images_BHW3).contiguous()

    with ExitStack() as stack:
        if LAYOUT in names:
            stack.enter_context(patch.object(training.run, "make_network", contiguous_network))
            stack.enter_context(patch.object(training.run, "to_network_input", contiguous_input))
        if ALLOCATOR in names:
            stack.enter_context(patch.object(train, "prepare_device", lambda device: None))
        if PRELU in names:
            stack.enter_context(patch.object(PReLU, "forward", nn.PReLU.forward))
        yield
