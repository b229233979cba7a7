"""Encoded face images to arrays and back, without torch: packing runs it in processes that start fast."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.opencv import cv2

_KEPT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # first bytes of JPEG and PNG, which every reader of records takes


def decode_rgb(encoded: bytes | memoryview | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode one JPEG or PNG file to RGB.

    Returns:
        (H, W, 3) uint8, grey images repeated over the channels.

    Raises:
        ValueError: the bytes are no image that OpenCV reads, or one of more pixels than it may decode.
    """
    data = np.frombuffer(encoded, np.uint8)
    try:
        image = _imdecode_rgb(data) if len(data) else None
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise ValueError(
                "its header announces more pixels than are decoded here (2^27, or what the environment variable "
                "OPENCV_IO_MAX_IMAGE_PIXELS says)"
            ) from None
        image = None
    if image is None:
        raise ValueError(f"not a decodable image: {len(data)} bytes starting {data[:8].tobytes().hex(' ')!r}")
    return image.astype(np.uint8, copy=False)


def resize_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) to ``size`` x ``size``: by area where it shrinks, else linearly."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    how = cv2.INTER_AREA if max(height, width) > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=how).astype(np.uint8, copy=False)


def _imdecode_rgb(data: NDArray[np.uint8]) -> NDArray[Any] | None:
    """Decode to RGB; OpenCV before 4.11 knows BGR only."""
    if hasattr(cv2, "IMREAD_COLOR_RGB"):
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


class FittedFace(NamedTuple):
    """A face in the size asked for, and what was done to it."""

    encoded: bytes
    is_resized: bool
    was_square: bool


def fit_face(encoded: bytes, size: int, encoding: str = ".jpg", quality: int = 95, keep: bool = True) -> FittedFace:
    """Bring an encoded image to ``size`` x ``size`` pixels.

    Args:
        encoded: an image in any format that OpenCV reads.
        size: side in pixels.
        encoding: ".jpg" or ".png", for what is re-encoded.
        quality: of JPEG, 1 to 100.
        keep: keep a JPEG or PNG file that already has the size, instead of re-encoding it.

    Raises:
        ValueError: ``encoded`` is no image.
    """
    image = decode_rgb(encoded)
    height, width = image.shape[:2]
    is_resized = (height, width) != (size, size)
    if not is_resized and keep and encoded.startswith(_KEPT):
        return FittedFace(encoded, False, True)
    image = resize_square(image, size)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if encoding == ".jpg" else []
    done, out = cv2.imencode(encoding, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done
    return FittedFace(out.tobytes(), is_resized, height == width)
