import cv2
import numpy as np
import pytest

from embedder.align import TEMPLATE, align_face, eye_distance, similarity_transform

pytestmark = pytest.mark.numeric


def umeyama(source, target):
    """The published form: singular value decomposition of the covariance, reflection excluded."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    u, d, vt = np.linalg.svd(b.T @ a / len(a))
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / a.var(0).sum()
    return np.c_[scale * rotation, target_mean - scale * rotation @ source_mean]


def test_equals_umeyama_also_for_mirrored_landmarks():
    rng = np.random.default_rng(0)
    landmarks = TEMPLATE * 2.3 + rng.normal(0, 15, (50, 5, 2))
    landmarks[25:, :, 0] *= -1  # mirrored: plain least squares would reflect
    matrices = similarity_transform(landmarks)
    assert matrices.shape == (50, 2, 3)
    for matrix, points in zip(matrices, landmarks, strict=True):
        np.testing.assert_allclose(matrix, umeyama(points, TEMPLATE), rtol=0, atol=1e-10)
        assert np.linalg.det(matrix[:, :2]) > 0
        np.testing.assert_allclose(similarity_transform(points), matrix, rtol=0, atol=1e-12)


def test_exact_similarity_is_recovered():
    angle, scale, shift = 0.7, 1.9, np.array([31.0, -12.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = similarity_transform(TEMPLATE @ (scale * rotation).T + shift)
    inverse = np.linalg.inv(np.r_[np.c_[scale * rotation, shift], [[0, 0, 1]]])[:2]
    np.testing.assert_allclose(matrix, inverse, atol=1e-12)


def bilinear_warp(image, matrix, size):
    inverse = np.linalg.inv(np.r_[matrix, [[0, 0, 1]]])
    out = np.zeros((size, size, 3))
    for y in range(size):
        for x in range(size):
            u, v, _ = inverse @ (x, y, 1)
            for row in (int(np.floor(v)), int(np.floor(v)) + 1):
                for column in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                        out[y, x] += image[row, column] * (1 - abs(row - v)) * (1 - abs(column - u))
    return out


@pytest.mark.parametrize("size", [112, 56])
def test_warp_is_bilinear_with_a_black_border(size):
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    landmarks = TEMPLATE * 0.8 + [-25, 5] + rng.normal(0, 2, (5, 2))  # reaches over the left edge
    aligned = align_face(image, landmarks)
    if size != 112:
        aligned = align_face(image, landmarks, size)
    wanted = bilinear_warp(image, umeyama(landmarks, TEMPLATE * size / 112), size)
    assert aligned.shape == (size, size, 3)
    assert aligned.dtype == np.uint8
    assert (wanted.sum(-1) == 0).mean() > 0.05
    difference = np.abs(aligned - wanted)
    assert difference.mean() < 1  # OpenCV rounds positions to 1/32 pixel
    assert np.quantile(difference, 0.99) < 6


def test_degenerate_landmarks_are_errors():
    with pytest.raises(ValueError, match="one point"):
        similarity_transform(np.ones((5, 2)))
    with pytest.raises(ValueError, match="nan"):
        similarity_transform(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        similarity_transform(np.ones((5, 3)))


@pytest.mark.parametrize("turn_rad", [0, 1.0, np.pi / 2])
def test_eye_distance_is_that_of_the_face_from_the_front(turn_rad):
    facing = TEMPLATE * 1.7 + (30, 40)
    turned = facing - facing.mean(0)
    turned[:, 0] *= np.cos(turn_rad)  # the eyes come together
    assert eye_distance(facing) == pytest.approx(1.7 * np.hypot(35.2372, 0.1949), rel=1e-9)
    assert eye_distance(turned) == pytest.approx(eye_distance(facing), rel=0.25)
