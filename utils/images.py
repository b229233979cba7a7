"""Encoded face images to arrays, and arrays to network input.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def decode_rgb(encoded: bytes | memoryview | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode one JPEG or PNG file to RGB.

    Returns:
        (H, W, 3) uint8, grey images repeated over the channels.

    Raises:
        ValueError: the bytes are no image that OpenCV reads.
    """
    data = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise ValueError(f"not a decodable image: {len(data)} bytes starting {data[:8].tobytes().hex(' ')!r}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


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
