"""Rows of faces with a label before each, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.atomic import open_atomic
from utils.opencv import cv2

FACE = 112  # pixels
_GAP, _LINE = 4, 16  # pixels
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42

Row = tuple[Sequence[str], Sequence[NDArray[np.uint8]]]  # lines of text, and (H, W, 3) RGB images of any size


def contact_sheet(rows: Sequence[Row]) -> NDArray[np.uint8]:
    """Draw the rows on white; images of another size than 112 x 112 are fitted into that square.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    rows = [([_drawable(line) for line in texts], images) for texts, images in rows]
    lines = [line for texts, _ in rows for line in texts]
    margin = 2 * _GAP + max((cv2.getTextSize(line, _FONT, _FONT_SCALE, 1)[0][0] for line in lines), default=0)
    columns = max((len(images) for _, images in rows), default=0)
    step = FACE + _GAP
    sheet = np.full((len(rows) * step + _GAP, margin + columns * step, 3), 255, np.uint8)
    for r, (texts, images) in enumerate(rows):
        top = r * step + _GAP
        for i, line in enumerate(texts):
            baseline = top + FACE // 2 + _LINE * i - _LINE * (len(texts) - 1) // 2 + 4
            cv2.putText(sheet, line, (_GAP, baseline), _FONT, _FONT_SCALE, (40, 40, 40), 1, cv2.LINE_AA)
        for c, image in enumerate(images):
            left = margin + c * step
            sheet[top : top + FACE, left : left + FACE] = _fitted(image)
    return sheet


def check_png(path: Path) -> None:
    """Raise ValueError or FileNotFoundError if a picture cannot be written under this name."""
    if path.suffix != ".png":
        raise ValueError(f"the picture is a PNG: expected a name that ends in .png, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder for {path.name}: make it first")


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image (H, W, 3), complete or not at all; OSError if it cannot be written."""
    done, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    with open_atomic(path) as file:
        file.write(png.tobytes())


def _drawable(line: str) -> str:
    """The text with ``?`` for each byte that is no UTF-8, on whose stand-in OpenCV would end the process."""
    return line.encode(errors="replace").decode()


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if (height, width) == (FACE, FACE):
        return image
    scale = FACE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=how)
    square = np.full((FACE, FACE, 3), 230, np.uint8)
    top, left = (FACE - size[1]) // 2, (FACE - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    return square
