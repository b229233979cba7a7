"""Encoded face images to arrays, and arrays to network input.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from utils.decode import decode_rgb

__all__ = ["decode_rgb", "to_network_input"]


def to_network_input(images_BHW3: Tensor) -> Tensor:
    """Turn uint8 RGB images into what every backbone here takes: ``(x / 255 - 0.5) / 0.5``.

    Args:
        images_BHW3: (B, H, W, 3) uint8 on any device.

    Returns:
        (B, 3, H, W) float32 in [-1, 1] on the same device, channels-last in memory.
    """
    assert images_BHW3.dtype == torch.uint8
    assert images_BHW3.shape[-1] == 3
    return images_BHW3.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)
