"""Copies from host memory that do not wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``; what the host sends is queued behind the device's work, and the host goes on at once.

    A plain ``x.to(device)`` would wait until the device has caught up, and a copy from memory that is not pinned
    may. Towards the host this is a plain copy: its result must be there when the call returns.
    """
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device)
    if device.type == "cuda":
        x = x.pin_memory()  # torch keeps the pinned copy until the stream has read it
    return x.to(device, non_blocking=True)
