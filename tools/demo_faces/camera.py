"""Where things land in the picture.

Shapes: N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.demo_faces.traits import Array
from utils.opencv import cv2

PIVOT = np.array([0.0, -0.75, -0.25], np.float32)  # the head turns about this point


@dataclass(frozen=True)
class View:
    """Where the camera puts things."""

    turn: Array  # (3, 3) of the head
    torso_turn: Array
    shift: Array  # (3,)
    focal: float  # pixels
    size: int

    def place(self, points_N3: Array, turn: Array) -> Array:
        """Camera coordinates (N, 3): x right, y up, z towards the camera and negative."""
        out: Array = (points_N3 - PIVOT) @ turn.T + (PIVOT + self.shift)
        return out

    def project(self, placed_N3: Array) -> Array:
        """Pixels (N, 2)."""
        half = self.size / 2 - 0.5
        scale = self.focal / -placed_N3[:, 2]
        return np.stack([half + placed_N3[:, 0] * scale, half - placed_N3[:, 1] * scale], -1)


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """Turn to the image's right, then nod down, then tilt."""
    out = np.eye(3)
    for axis, angle in ((2, roll), (0, pitch), (1, yaw)):
        vector = np.zeros(3)
        vector[axis] = angle
        out = out @ cv2.Rodrigues(vector)[0]
    return out.astype(np.float32)
