"""From files of photographs, or of aligned faces, to what a network takes.

Shapes: B faces, H height, W width, D embedding size.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder.align import align_face
from embedder.detector import Detector
from embedder.embedder import Embedder, embed_with_mirrored
from embedder.landmarks import check_face
from embedder.many import Embeddings, embed_many
from utils.decode import decode_rgb, resize_square

LANDMARKS = "ten numbers x1,y1,...,x5,y5, or a file of them (.json: also [[x, y], ...])"


@dataclass(frozen=True)
class Face:
    """An aligned face, and how it came to be one."""

    path: Path
    image: NDArray[np.uint8]  # (H, W, 3) RGB, H = W the network's
    how: str
    doubtful: bool  # the way is not a good one


def read_landmarks(given: str) -> NDArray[np.float64]:
    """Read the landmarks of one face from the command line, or from the file that it names.

    Returns:
        (5, 2) x, y in pixels.

    Raises:
        ValueError: not ten numbers.
        OSError: the file cannot be read.
    """
    text, source = given, "--landmarks"
    if re.search(r"[^\d\s.,;eE+-]", given):  # letters: a file's name
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"--landmarks {given}: expected {LANDMARKS}; there is no such file")
        text, source = path.read_text(encoding="utf-8", errors="replace"), given
    try:
        numbers = [float(word) for word in re.split(r"[\s,;\[\]]+", text) if word]
    except ValueError as error:
        raise ValueError(f"{source}: expected {LANDMARKS}; {str(error)[:80]}") from None
    if len(numbers) != 10:
        raise ValueError(f"{source}: expected {LANDMARKS}, found {len(numbers)} numbers")
    return np.array(numbers).reshape(5, 2)


def load_face(
    path: Path, landmarks: NDArray[np.float64] | None, image_size: int = 112, detector: Detector | None = None
) -> Face:
    """Read an image and align it, or take it as aligned.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image, landmarks that cannot be used, or a photo that needs landmarks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image {path}")
    try:
        photo = decode_rgb(path.read_bytes())
        if detector is not None:
            faces = detector.detect(photo)
            landmarks = faces.landmarks[faces.main(photo.shape[1], photo.shape[0])]
        if landmarks is not None:
            warning = check_face(landmarks, photo.shape[1], photo.shape[0])
            how = f"aligned by its landmarks{'; ' if warning else ''}{warning}"
            return Face(path, align_face(photo, landmarks, image_size), how, doubtful=bool(warning))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    height, width = photo.shape[:2]
    if height == width == image_size:
        return Face(path, photo, "taken as aligned", doubtful=False)
    if height != width:
        raise ValueError(
            f"{path}: {width} x {height} is no aligned face; give its five landmarks with --landmarks, or align it "
            f"to {image_size} x {image_size} first"
        )
    how = f"resized from {width} x {height}, taken as aligned"
    return Face(path, resize_square(photo, image_size), how, doubtful=True)


def embed_faces(embedder: Embedder, faces: Sequence[Face], flip: bool = False) -> NDArray[np.float32]:
    """Embed faces, with ``flip`` as the sum with their mirror images: (faces, D), not normalised.

    Raises:
        ValueError: the network gives nan or infinity.
    """
    images_BHW3 = np.stack([face.image for face in faces])
    embeddings_BD = embed_with_mirrored(embedder.embed, images_BHW3) if flip else embedder.embed(images_BHW3)
    if not np.isfinite(embeddings_BD).all():
        raise ValueError("the embedding holds nan or infinity: the weights are broken, or training had diverged")
    return embeddings_BD


def embed_photos(
    embedder: Embedder,
    images: Sequence[Path],
    detector: Detector | None,
    batch_size: int,
    threads: int,
    flip: bool,
) -> Embeddings:
    """Embed files as :func:`embed_many` does, and warn of those that were only resized.

    Raises:
        ValueError: as :func:`embed_many`.
    """
    resized: set[Path] = set()
    size = embedder.image_size

    def load(path: Path) -> NDArray[np.uint8]:
        face = load_face(path, None, size, detector)
        if face.doubtful and detector is None:
            resized.add(path)
        return face.image

    found = embed_many(embedder, images, load, batch_size, threads, flip)
    if resized:
        print(f"warning: {len(resized):,} images were resized to {size} x {size}, taken as aligned", file=sys.stderr)
    return found
