"""Encoded face images to arrays and back, without torch: packing runs it in processes that start fast."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utils.opencv import cv2

_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras give
_OVERSHOOT = 0.05  # of the range, beyond white and black
_PNM = re.compile(rb"P[2356]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s")
_TIFF = (b"II*\0", b"MM\0*")  # whose depth stands anywhere in the file
_JP2 = b"jP  \r\n\x87\n"
_WEBP_ALPHA = {b"X": 20, b"L": 24}  # the byte whose bit 4 tells of transparency
DEEP = "more than 8 bits, scaled to 8 by the image's own range"
TRANSPARENT = "transparency, which is left out"
_KEPT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # first bytes of JPEG and PNG, which every reader of records takes


def decode_rgb(encoded: bytes | memoryview | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode one image file of any kind that OpenCV reads to RGB; see :func:`decode_noted`."""
    return decode_noted(encoded)[0]


def decode_noted(encoded: bytes | memoryview | NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    """Decode one image file of any kind that OpenCV reads to RGB, and say what had to be changed.

    An image is turned as its EXIF says, and CMYK becomes RGB. What has more than 8 bits is scaled by
    :func:`to_8_bits`, and transparency is left out.

    Returns:
        (H, W, 3) uint8, grey images repeated over the channels; and which of the last two it was, "" for neither.

    Raises:
        ValueError: the bytes are no image that OpenCV reads, one of more pixels than it may decode, or one of values
            that are no grey levels.
    """
    data = np.frombuffer(encoded, np.uint8)
    is_deep, white = _depth(data)
    image: NDArray[Any] | None = None
    try:
        if is_deep:
            image = _imdecode_deep(data)
        elif len(data):
            image = _imdecode_rgb(data)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise ValueError(
                "its header announces more pixels than are decoded here (2^27, or what the environment variable "
                "OPENCV_IO_MAX_IMAGE_PIXELS says)"
            ) from None
    if image is None:
        raise ValueError(f"not a decodable image: {len(data)} bytes starting {data[:8].tobytes().hex(' ')!r}")
    if image.dtype != np.uint8 or white:
        return to_8_bits(image, white), DEEP
    rgb: NDArray[np.uint8] = image
    return rgb, TRANSPARENT if _has_alpha(data[:30].tobytes()) else ""


def may_change(encoded: bytes | memoryview) -> bool:
    """Whether :func:`decode_noted` may have something to say of an image, by its first bytes."""
    data = np.frombuffer(encoded, np.uint8)
    return _depth(data)[0] or _has_alpha(data[:30].tobytes())


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """A PNG file of an RGB image (H, W, 3)."""
    return encode_rgb(image, ".png")


def encode_rgb(image: NDArray[np.uint8], encoding: str, quality: int = 95) -> bytes:
    """A file of an RGB image (H, W, 3): ".png", or ".jpg" of this quality, 1 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if encoding == ".jpg" else []
    done, out = cv2.imencode(encoding, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done
    return out.tobytes()


def resize_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) to ``size`` x ``size``: by area where it shrinks, else linearly."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    how = cv2.INTER_AREA if max(height, width) > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=how).astype(np.uint8, copy=False)


def to_8_bits(image: NDArray[Any], highest: int | None = None) -> NDArray[np.uint8]:
    """Scale grey levels of any type to 0 .. 255.

    Whole numbers of 16 bits: cameras fill 10, 12 or 14 of them only, and with all 16 taken as the range, such images
    are nearly black. The range is 0 to ``highest``, or to the end of the smallest of 8, 10, 12, 14 and 16 bits that
    holds the image's largest value. Of 16 bits the upper 8 are taken, as OpenCV does. Floating point: 0 to 1, or else
    as for whole numbers. Resizing and filters overshoot: what lies outside a range by at most 5 % of it becomes white
    or black.

    Args:
        image: of any shape.
        highest: the level of white, where the file says it.

    Raises:
        ValueError: a value is not finite, above 16 bits, or negative: whether 0 is black or grey then, as in images
            normalised to -1 .. 1, would be a guess for each image.
    """
    if image.dtype == np.uint8 and highest in (None, 255):
        return image
    least, most = float(image.min()), float(image.max())
    if not np.isfinite(least) or not np.isfinite(most):
        raise ValueError("it holds values that are no finite numbers")
    if highest is None:
        whites = [1] * (image.dtype.kind == "f") + [(1 << bits) - 1 for bits in _DEPTHS]
        highest = next((white for white in whites if most <= white * (1 + _OVERSHOOT)), None)
        if highest is None:
            raise ValueError(f"its values reach {most:.6g}, expected at most {whites[-1]}")
    if least < -_OVERSHOOT * highest:
        raise ValueError(
            f"its values run from {least:.6g} to {most:.6g}, expected none below 0: save it with 0 as black and "
            f"{highest} as white, or with 8 bits"
        )
    if image.dtype == np.uint16 and highest == 0xFFFF:
        return (image >> 8).astype(np.uint8)
    scaled: NDArray[np.uint8] = np.rint(image.astype(np.float32) * (255.0 / highest)).clip(0, 255).astype(np.uint8)
    return scaled


def _depth(data: NDArray[np.uint8]) -> tuple[bool, int | None]:
    """Whether an image may have another depth than 8 bits, and the level of white where its file states it."""
    if len(data) < 30 or data[0] == 0xFF:  # JPEG
        return False, None
    head = data[:42].tobytes()
    if head.startswith(b"\x89PNG"):
        states = head[37:41] == b"sBIT" and 8 <= head[41] < 16
        return head[24] == 16, (1 << head[41]) - 1 if states and head[24] == 16 else None
    if head[:2] in (b"P2", b"P3", b"P5", b"P6") and (found := _PNM.match(data[:1024].tobytes())):
        return found[1] != b"255", None if found[1] in (b"255", b"65535") else int(found[1]) or None
    return head.startswith(_TIFF) or head[4:12] == _JP2, None


def _has_alpha(head: bytes) -> bool:
    if head.startswith(b"\x89PNG"):
        return head[25] in (4, 6)
    return (head[8:16] == b"WEBPVP8X" or head[8:16] == b"WEBPVP8L") and bool(head[_WEBP_ALPHA[head[15:16]]] & 0x10)


def _imdecode_deep(data: NDArray[np.uint8]) -> NDArray[Any] | None:
    """Decode to RGB with the depth that the file has."""
    if data[:4].tobytes() in _TIFF:  # OpenCV does not make colour of grey floating point
        image: NDArray[Any] | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if image is None or image.dtype.kind == "f":
            if image is None or image.ndim == 3:
                return None if image is None else np.ascontiguousarray(image[..., 2::-1])
            return np.repeat(image[..., None], 3, 2)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return None if image is None else np.ascontiguousarray(image[..., ::-1])


def _imdecode_rgb(data: NDArray[np.uint8]) -> NDArray[Any] | None:
    """Decode to RGB; OpenCV before 4.11 knows BGR only."""
    if hasattr(cv2, "IMREAD_COLOR_RGB"):
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


@dataclass
class Resized:
    """Images that had another size than is taken, by their numbers; several threads may tell of them."""

    images: set[int] = field(default_factory=set)
    not_square: set[int] = field(default_factory=set)  # among them

    def see(self, number: int, image: NDArray[np.uint8], size: int) -> None:
        """Look at an image (H, W, 3) that is to have ``size`` x ``size`` pixels."""
        height, width = image.shape[:2]
        if (height, width) != (size, size):
            self.images.add(number)
        if height != width:
            self.not_square.add(number)


def resized_text(resized: int, not_square: int, of: int | None = None) -> str:
    """Say how many images were resized, "" for none; ``of`` how many."""
    if not resized:
        return ""
    distorted = f", {not_square:,} of them not square before and distorted" if not_square else ""
    share = f" of {of:,}" if of is not None else ""
    return f"{resized:,}{share} images had another size and were resized{distorted}: are the faces aligned?"


class FittedFace(NamedTuple):
    """A face in the size asked for, and what was done to it."""

    encoded: bytes
    is_resized: bool
    was_square: bool
    changed: str = ""  # see ``decode_noted``


@dataclass
class Fitted:
    """What was done to a set's faces."""

    resized: int = 0
    not_square: int = 0  # of the resized ones
    changed: Counter[str] = field(default_factory=Counter)  # by kind, see ``decode_noted``

    def see(self, face: FittedFace) -> None:
        """Count a face."""
        self.resized += face.is_resized
        self.not_square += not face.was_square
        if face.changed:
            self.changed[face.changed] += 1

    def lines(self) -> list[str]:
        """One line for each thing that was done to some."""
        resized = resized_text(self.resized, self.not_square)
        return [resized] * bool(resized) + [f"{n:,} images with {kind}" for kind, n in self.changed.items()]


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
    image, changed = decode_noted(encoded)
    height, width = image.shape[:2]
    is_resized = (height, width) != (size, size)
    if not is_resized and keep and encoded.startswith(_KEPT) and not changed:  # else others would read it otherwise
        return FittedFace(encoded, False, True)
    fitted = encode_rgb(resize_square(image, size), encoding, quality)
    return FittedFace(fitted, is_resized, height == width, changed)
