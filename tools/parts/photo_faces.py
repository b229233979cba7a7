"""One photograph to one aligned face, or the reason why there is none; runs in worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedder import detector
from embedder.align import align_face, eye_distance
from embedder.detector import Faces
from embedder.landmarks import check_face
from utils.decode import decode_rgb, encode_rgb
from utils.opencv import cv2

UNREADABLE = "cannot be read"
DAMAGED = "damaged, or no image"
NO_FACE = "no face found"
SMALL = "face too small"
SEVERAL = "several faces"
DETECTOR = "the detector failed"
ODD = "landmarks that are no face's"

_detector: detector.Detector | None = None  # of this process


class Rules(NamedTuple):
    """Which faces are taken, and how they are stored."""

    min_eyes: float = 20.0  # pixels between the eyes, see eye_distance
    skip_several: bool = False
    encoding: str = ".png"  # or ".jpg"


class Photo(NamedTuple):
    """A task for a worker."""

    path: str
    faces: Faces | None  # None: the detector is asked


class Outcome(NamedTuple):
    """What became of a photo."""

    encoded: bytes = b""  # the face's file
    reason: str = ""  # why there is none
    detail: str = ""
    is_one_of_several: bool = False
    is_doubtful: bool = False  # seen from the side, or badly found


def use_detector(path: Path | None) -> None:
    """Open the detector of this process; None: every task brings its faces."""
    global _detector
    _detector = None if path is None else detector.open_detector(path)


def align_photo(photo: Photo, rules: Rules) -> Outcome:
    """Read a photo, choose its main face and align it to 112 x 112 pixels."""
    try:
        image = decode_rgb(Path(photo.path).read_bytes())
    except OSError as error:
        return Outcome(reason=UNREADABLE, detail=error.strerror or str(error))
    except ValueError as error:
        return Outcome(reason=DAMAGED, detail=str(error))
    faces = photo.faces
    if faces is None:
        assert _detector is not None
        try:
            faces = _detector.detect(image)
        except cv2.error as error:
            return Outcome(reason=DETECTOR, detail=" ".join(str(error).split())[:200])
    return _align_main(image, faces, rules)


def _align_main(image: NDArray[np.uint8], faces: Faces, rules: Rules) -> Outcome:
    if not len(faces.scores):
        return Outcome(reason=NO_FACE)
    try:
        eyes_px = eye_distance(faces.landmarks)
    except ValueError as error:
        return Outcome(reason=ODD, detail=str(error))
    large = eyes_px >= rules.min_eyes
    if not large.any():
        return Outcome(reason=SMALL, detail=f"{eyes_px.max():.1f} pixels between the eyes")
    faces = Faces(faces.boxes[large], faces.landmarks[large], faces.scores[large])
    several = len(faces.scores) > 1
    if several and rules.skip_several:
        return Outcome(reason=SEVERAL, detail=f"{len(faces.scores)} faces")
    height, width = image.shape[:2]
    landmarks = faces.landmarks[faces.main(width, height)]
    try:
        warning = check_face(landmarks, width, height)
    except ValueError as error:
        return Outcome(reason=ODD, detail=str(error))
    encoded = encode_rgb(align_face(image, landmarks), rules.encoding)
    return Outcome(encoded, is_one_of_several=several, is_doubtful=bool(warning))
