"""Photographs in which a made-up face lies where its landmarks say."""

import cv2
import numpy as np

from embedder.align import TEMPLATE
from pair_stub import face

LANDMARKS = TEMPLATE * 1.4 + (30, 20)


def photo_of(landmarks, size=(200, 240), seed=3):
    """A photo in which a face lies where the landmarks say: aligning it gives the face back."""
    matrix = cv2.estimateAffinePartial2D(TEMPLATE.astype(np.float32), np.float32(landmarks))[0]
    return cv2.warpAffine(cv2.GaussianBlur(face(seed), (0, 0), 4), matrix, size[::-1])
