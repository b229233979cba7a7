"""Small image files for the tests of the packing tools."""

import cv2
import numpy as np


def encode(value, size=(112, 112), suffix=".jpg"):
    """An image of two halves, one of them ``value``, as a file's bytes."""
    image = np.full((*size, 3), value, np.uint8)
    image[:, : size[1] // 2] = 255 - value
    return cv2.imencode(suffix, image)[1].tobytes()


def make_folder(root, people):
    """``{"ann": {"1.jpg": bytes}}`` as a folder."""
    for name, files in people.items():
        (root / name).mkdir(parents=True)
        for file, data in files.items():
            (root / name / file).write_bytes(data)
    return root


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
