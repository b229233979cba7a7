"""The surface of a head: an outline turned round the vertical axis, and bumps that make the face.

A head is a grid of points, rows from the crown down to below the chin, columns round it from back to back. The same
grid is the texture: what is painted at (row, column) lands at the point of that row and column.

Shapes: H rows, W columns of the grid; N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.demo_faces.traits import Array, Traits
from utils.opencv import cv2

HEIGHT, WIDTH = 288, 224
_PHI_DEG = (25, 62, 90, 107, 127, 146, 168)  # rows that Traits.outline speaks of


def _angles() -> tuple[Array, Array]:
    a = np.linspace(-1, 1, WIDTH)
    theta = np.pi * (0.4 * a + 0.6 * a**3)  # most columns look forward
    b = np.linspace(0, 1, HEIGHT)
    phi = np.radians(np.interp(b, [0, 0.18, 0.95, 1], [0.5, 60, 171, 179.5]))
    phi = np.convolve(np.pad(phi, 10, mode="reflect", reflect_type="odd"), np.full(21, 1 / 21), "valid")
    return theta.astype(np.float32)[None], phi.astype(np.float32)[:, None]


THETA, PHI = _angles()  # (1, W), (H, 1)
_FRONT = slice(int(WIDTH * 0.14), WIDTH - int(WIDTH * 0.14))  # columns that bumps reach
_ROWS = slice(32, HEIGHT)


@dataclass(frozen=True)
class Head:
    """A person's head at rest."""

    points: Array  # (H, W, 3)
    normals: Array  # (H, W, 3)
    hollow: Array  # (H, W), 0 where the surface is open to light, up to 1 in folds


def bump(x: Array, y: Array, cx: float, cy: float, sx: float, sy: float) -> Array:
    """A Gaussian of height 1 at (cx, cy)."""
    out: Array = np.exp(
        ((x - np.float32(cx)) / np.float32(sx)) ** 2 * -0.5 - ((y - np.float32(cy)) / np.float32(sy)) ** 2 * 0.5
    )
    return out


def smoothstep(low: float | Array, high: float | Array, x: Array) -> Array:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = np.asarray((x - low) / (high - low), np.float32)
    t = np.minimum(np.maximum(t, 0), 1)  # np.clip takes several times as long on a small patch
    out: Array = t * t * (3 - 2 * t)
    return out


def build_head(t: Traits) -> Head:
    """Turn the traits into a surface."""
    sin, cos = np.sin(PHI), np.cos(PHI)
    side, front = np.sin(THETA), np.cos(THETA)
    profile = np.interp(np.degrees(PHI[:, 0]), _PHI_DEG, t.outline)
    profile = _smooth(profile, 14)
    upper = cos > 0
    half_width = np.where(upper, sin**0.8, sin**0.68) * profile[:, None]
    depth = np.where(upper, sin**t.forehead_slope, sin**0.24) * t.depth
    back = sin**0.8 * 1.22
    x = half_width * side * (1 + 0.13 * front**2)
    z = front * np.where(front > 0, depth, back)
    y = np.where(upper, t.top * cos, -t.bottom * cos) + 0 * THETA
    # The edge of the jaw rises from the chin to the ear.
    y = y + (depth - z) * 0.5 * smoothstep(0.35, 1.0, -cos)
    points = np.stack([x, y, z], -1).astype(np.float32)
    face = (_ROWS, _FRONT)
    relief = _relief(points[face][..., 0], points[face][..., 1], t)
    relief *= smoothstep(0.0, 0.45, front[:, _FRONT])
    points[face][..., 2] += relief
    return Head(points, grid_normals(points), _hollow(points))


def _smooth(values: Array, sigma: float) -> Array:
    out: Array = cv2.GaussianBlur(
        np.asarray(values, np.float32)[None], (0, 0), sigma, borderType=cv2.BORDER_REPLICATE
    )[0]
    return out


def _relief(x: Array, y: Array, t: Traits) -> Array:
    """How far the face stands out from the outline, along z."""
    ax = np.abs(x)
    z = np.zeros_like(x)
    # Brow ridge, sockets, eyeballs, lids.
    z += t.brow_ridge * bump(ax, y, 0.40, 0.22, 0.26, 0.085)
    z += 0.4 * t.brow_ridge * bump(x, y, 0, 0.17, 0.16, 0.12)
    z -= t.eye_depth * bump(ax, y, t.eye_x - 0.03, 0.0, 0.19, 0.14)
    z -= 0.05 * bump(ax, y, 0.2, 0.02, 0.09, 0.11)
    z += 0.115 * bump(ax, y, t.eye_x, -0.005, 0.135, 0.085)
    z -= 0.028 * t.eye_bag * bump(ax, y, t.eye_x - 0.02, -0.205, 0.16, 0.022)
    z += 0.02 * t.eye_bag * bump(ax, y, t.eye_x, -0.15, 0.15, 0.035)
    # Cheeks, temples, folds from nose to mouth.
    z += t.cheekbone * bump(ax, y, 0.60, -0.30, 0.20, 0.13)
    z += t.cheek * bump(ax, y, 0.52, -0.72, 0.20, 0.22)
    z -= 0.03 * bump(ax, y, 0.85, 0.35, 0.16, 0.22)
    fold = ax - (t.nose_w + 0.07 + (t.nose_y - y) * 0.38)
    z += (0.018 + 0.028 * t.age) * np.tanh(fold / 0.05) * bump(ax, y, 0.36, t.nose_y - 0.2, 0.12, 0.17)
    # Nose: a ridge that grows from the bridge to the tip and ends in an overhang.
    nx = x - np.float32(t.nose_x) * smoothstep(-0.05, t.nose_y, y)
    along = np.clip((0.1 - y) / (0.1 - t.nose_y), 0, 1.4)  # 0 between the eyes, 1 at the tip
    rise = t.bridge_h + (t.nose_h - t.bridge_h) * along**1.35
    rise = rise * smoothstep(0.42, 0.0, y) * smoothstep(t.nose_y - 0.20, t.nose_y + 0.02, y)
    rise += t.bridge_hump * np.exp(-0.5 * ((along - 0.5) / 0.18) ** 2)
    width = t.bridge_w + (0.045 + 0.4 * (t.nose_w - 0.2)) * along
    z += rise * np.exp(-0.5 * np.abs(nx / width) ** 2.0)
    z += 0.09 * smoothstep(0.3, -0.3, y) * smoothstep(t.nose_y - 0.2, t.nose_y, y) * np.exp(-0.5 * (nx / 0.22) ** 2)
    z += t.tip * bump(nx, y, 0, t.nose_y, 0.085, 0.075)
    anx = np.abs(nx)
    z += 0.10 * bump(anx, y, t.nose_w - 0.06, t.nose_y - 0.05, 0.06, 0.07)
    z -= 0.035 * bump(anx, y, t.nose_w + 0.045, t.nose_y - 0.05, 0.035, 0.07)
    z -= 0.04 * bump(anx, y, t.nose_w * 0.46, t.nose_y - 0.135, 0.042, 0.022)
    # Mouth: the rounded front of the jaws, two lips, the groove below and the one above.
    my = t.mouth_y
    z += 0.075 * bump(x, y, 0, my, 0.34, 0.24)
    z += 0.045 * bump(x, y, 0, my + 0.5 * t.lip_up, t.mouth_w * 0.55, t.lip_up * 0.55)
    z += 0.06 * bump(x, y, 0, my - 0.5 * t.lip_low, t.mouth_w * 0.5, t.lip_low * 0.5)
    z -= 0.035 * bump(x, y, 0, my, t.mouth_w * 0.75, 0.017)
    z -= 0.035 * bump(ax, y, t.mouth_w + 0.02, my, 0.045, 0.05)
    z -= 0.018 * bump(x, y, 0, 0.5 * (my + t.nose_y) - 0.02, 0.035, 0.08)
    z += 0.010 * bump(ax, y, 0.075, 0.5 * (my + t.nose_y) - 0.02, 0.03, 0.09)
    z -= 0.05 * bump(x, y, 0, my - t.lip_low - 0.09, 0.20, 0.05)
    z += t.chin * bump(x, y, 0, t.bottom + 0.17, 0.19, 0.13)
    z -= t.chin_cleft * bump(x, y, 0, t.bottom + 0.15, 0.03, 0.08)
    # Lines of the forehead.
    if t.age > 0.45:
        for line in (0.52, 0.64, 0.76):
            z -= 0.008 * (t.age - 0.3) * bump(x, y, 0, line, 0.4, 0.014)
    return z


def grid_normals(points: Array) -> Array:
    """Unit normals of a grid of points, outward for rows that go down and columns that go left to right."""
    du = np.empty_like(points)
    dv = np.empty_like(points)
    du[:, 1:-1] = points[:, 2:] - points[:, :-2]
    du[:, 0], du[:, -1] = points[:, 1] - points[:, 0], points[:, -1] - points[:, -2]
    dv[1:-1] = points[2:] - points[:-2]
    dv[0], dv[-1] = points[1] - points[0], points[-1] - points[-2]
    n = np.empty_like(points)
    n[..., 0] = dv[..., 1] * du[..., 2] - dv[..., 2] * du[..., 1]
    n[..., 1] = dv[..., 2] * du[..., 0] - dv[..., 0] * du[..., 2]
    n[..., 2] = dv[..., 0] * du[..., 1] - dv[..., 1] * du[..., 0]
    n /= np.sqrt(np.einsum("hwc,hwc->hw", n, n))[..., None] + 1e-9
    return n


def _hollow(points: Array) -> Array:
    """How deep each point lies below its surroundings."""
    z = points[..., 2]
    out = np.zeros_like(z)
    for sigma, gain in ((2.4, 7.0), (7.0, 3.0)):
        out += gain * np.clip(cv2.GaussianBlur(z, (0, 0), sigma) - z, -0.02, 0.08)
    return np.clip(out, -0.15, 1)


def move(points_N3: Array, t: Traits, smile: float, jaw: float, brow: float) -> Array:
    """Points of the face under an expression; the same for surface points and for landmarks.

    Args:
        points_N3: (N, 3) points at rest.
        t: whose face it is.
        smile: -0.5 (sad) .. 1.
        jaw: 0 (shut) .. 1.
        brow: -0.6 (frown) .. 1.
    """
    x, y, z = points_N3[:, 0], points_N3[:, 1], points_N3[:, 2]
    ax = np.abs(x)
    out = points_N3.copy()
    front = smoothstep(-0.1, 0.4, z)
    corner = bump(ax, y, t.mouth_w, t.mouth_y, 0.13, 0.11) * front
    cheek = bump(ax, y, t.mouth_w + 0.14, t.mouth_y + 0.30, 0.17, 0.16) * front
    out[:, 0] += np.sign(x) * smile * (0.075 * corner + 0.02 * cheek)
    out[:, 1] += smile * (0.095 * corner + 0.05 * cheek)
    out[:, 2] += smile * (0.06 * cheek - 0.02 * corner)
    drop = smoothstep(t.mouth_y + 0.02, t.mouth_y - 0.25, y) * smoothstep(-0.5, 0.5, z)
    out[:, 1] -= jaw * 0.13 * drop
    out[:, 2] -= jaw * 0.05 * drop
    out[:, 1] += brow * 0.075 * bump(ax, y, 0.4, t.brow_y + 0.03, 0.3, 0.10) * front
    return out
