"""Bring a face to its standard place: the similarity transform of five landmarks, and the warp by it.

Shapes: (..., 5, 2) landmarks as x, y in pixels: left eye, right eye, nose, left and right corner of the mouth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.opencv import cv2

# Where the landmarks of a 112 x 112 face belong.
TEMPLATE: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity_transform(landmarks: ArrayLike, template: ArrayLike = TEMPLATE) -> NDArray[np.float64]:
    """Find the rotation, scale and shift that take landmarks nearest to the template, in least squares.

    With a point as the complex number x + iy, a similarity without reflection is ``z -> a z + b``, and least
    squares has the closed form ``a = sum(conj(z - mean) (w - mean)) / sum(|z - mean|^2)``. In the plane this is
    Umeyama's estimate (S. Umeyama, TPAMI 1991, eq. 40-43) without its singular value decomposition.

    Args:
        landmarks: (..., 5, 2).
        template: (5, 2), in the same order.

    Returns:
        (..., 2, 3) matrices that take (x, y, 1) of the photo to the aligned image.

    Raises:
        ValueError: landmarks of another shape, not finite, or all in one point.
    """
    source = np.asarray(landmarks, np.float64)
    target = np.asarray(template, np.float64)
    if source.shape[-2:] != target.shape or target.shape[-1] != 2:
        raise ValueError(f"expected landmarks of shape (..., {len(target)}, 2), found {source.shape}")
    if not np.isfinite(source).all():
        raise ValueError("landmarks hold nan or infinity")
    z = source[..., 0] + 1j * source[..., 1]  # (..., 5)
    w = target[:, 0] + 1j * target[:, 1]
    z_mean, w_mean = z.mean(axis=-1, keepdims=True), w.mean()
    z_centred = z - z_mean
    size = (np.abs(z_centred) ** 2).sum(axis=-1)
    if (size < 1e-12).any():
        raise ValueError("all landmarks lie in one point: no scale or rotation can be found")
    a = (z_centred.conj() * (w - w_mean)).sum(axis=-1) / size
    b = w_mean - a * z_mean[..., 0]
    return np.stack(
        [np.stack([a.real, -a.imag, b.real], axis=-1), np.stack([a.imag, a.real, b.imag], axis=-1)], axis=-2
    )


def misfit(landmarks: ArrayLike) -> NDArray[np.float64]:
    """How far landmarks (..., 5, 2) stay from the template once they are aligned: (...), the root mean square.

    In pixels of a 112 x 112 face, whatever the photo's size: 0 for the template's own form, 23.2 at most, where
    nothing but the centre fits.

    Raises:
        ValueError: as :func:`similarity_transform` does.
    """
    points = np.asarray(landmarks, np.float64)
    matrix = similarity_transform(points)
    aligned = points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]
    distance: NDArray[np.float64] = np.sqrt(((aligned - TEMPLATE) ** 2).sum(axis=-1).mean(axis=-1))
    return distance


def eye_distance(landmarks: ArrayLike) -> NDArray[np.float64]:
    """How large faces (..., 5, 2) are: pixels between the eyes (...), as each would have them seen from the front.

    All five points are asked, so that a face turned away, whose eyes lie close together, keeps its size.

    Raises:
        ValueError: as :func:`similarity_transform` does.
    """
    matrix = similarity_transform(landmarks)
    enlarged = np.maximum(np.hypot(matrix[..., 0, 0], matrix[..., 1, 0]), 1e-9)
    return np.asarray(np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]) / enlarged)


def align_face(image: NDArray[np.uint8], landmarks: ArrayLike, image_size: int = 112) -> NDArray[np.uint8]:
    """Warp a photo so that its landmarks come to their standard places.

    Args:
        image: (H, W, 3).
        landmarks: (5, 2) in pixels of ``image``.
        image_size: side of the result; the template is scaled with it.

    Returns:
        (image_size, image_size, 3), bilinear, black outside the photo.
    """
    return warp_face(image, similarity_transform(landmarks, TEMPLATE * (image_size / 112)), image_size)


def warp_face(image: NDArray[np.uint8], matrix: NDArray[np.float64], image_size: int = 112) -> NDArray[np.uint8]:
    """Warp a photo by one (2, 3) matrix of :func:`similarity_transform`; see :func:`align_face`."""
    warped = cv2.warpAffine(image, matrix, (image_size, image_size), flags=cv2.INTER_LINEAR, borderValue=0.0)
    return warped.astype(np.uint8, copy=False)
