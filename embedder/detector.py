"""Faces and their five landmarks in photographs, by OpenCV's FaceDetectorYN and a graph that the user brings.

The graph, ``face_detection_yunet_*.onnx``, stands in OpenCV's model zoo (opencv/opencv_zoo); nothing is fetched.
Shapes: F faces; boxes (F, 4) as x, y, width, height; landmarks (F, 5, 2) as ``embedder/align.py`` wants them.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from utils.opencv import cv2

_LONGEST_SIDE = 1280  # pixels; a larger photo is searched at this size
_SURE = 0.6  # least score of a face
_COMPARABLE = 0.5  # share of the largest face's size from which on a face may be the main one


class Faces(NamedTuple):
    """What was found in one photo."""

    boxes: NDArray[np.float64]  # (F, 4)
    landmarks: NDArray[np.float64]  # (F, 5, 2) pixels of the photo
    scores: NDArray[np.float64]  # (F,) 0 to 1

    def main(self, width: int, height: int) -> int:
        """The place of the main face of a photo of ``width`` x ``height`` pixels.

        Of the faces that are at least half as large as the largest (area times score), the one whose box has its
        centre nearest the middle of the photo.

        Raises:
            ValueError: there is no face.
        """
        if not len(self.scores):
            raise ValueError("no face was found")
        weight = self.boxes[:, 2] * self.boxes[:, 3] * self.scores
        away = np.linalg.norm(self.boxes[:, :2] + self.boxes[:, 2:] / 2 - (width / 2, height / 2), axis=1)
        return int(np.where(weight >= _COMPARABLE * weight.max(), away, np.inf).argmin())


class Detector(Protocol):
    """Whatever finds faces."""

    def detect(self, image: NDArray[np.uint8]) -> Faces:
        """Find the faces of an RGB image (H, W, 3); called from several threads."""


def no_faces() -> Faces:
    """What a photo without a face gives."""
    return Faces(np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0))


class _OpenCvDetector:
    def __init__(self, network: Any) -> None:
        self._network, self._lock = network, threading.Lock()

    def detect(self, image: NDArray[np.uint8]) -> Faces:
        """Find the faces of an RGB image (H, W, 3)."""
        height, width = image.shape[:2]
        scale = min(1.0, _LONGEST_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        searched = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA) if scale < 1 else bgr
        with self._lock:
            self._network.setInputSize(size)
            _, rows = self._network.detect(searched)
        if rows is None or not len(rows):
            return no_faces()
        found = np.asarray(rows, np.float64)  # (F, 15): box, five points, score; right eye first is left in the photo
        by_side = np.array([width / size[0], height / size[1]])
        points = found[:, 4:14].reshape(-1, 5, 2) * by_side
        return Faces(found[:, :4] * np.tile(by_side, 2), points, found[:, 14])


def open_detector(path: Path) -> Detector:
    """Open a graph for OpenCV's FaceDetectorYN.

    Raises:
        FileNotFoundError: no such file.
        ValueError: this OpenCV has no such detector, or the file is none.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: expected face_detection_yunet_*.onnx, which is found in OpenCV's model zoo (opencv_zoo)"
        )
    if not hasattr(cv2, "FaceDetectorYN"):
        raise ValueError("this OpenCV has no FaceDetectorYN: pip install -U opencv-python-headless")
    try:
        return _OpenCvDetector(cv2.FaceDetectorYN.create(str(path), "", (320, 320), _SURE))
    except cv2.error as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no face detector that this OpenCV runs ({reason})") from None
