"""Hair: a shell over the head, cut by a hairline, with strands that run from the crown down.

Shapes: H rows, W columns of the head's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.demo_faces.head import HEIGHT, THETA, WIDTH, Head, grid_normals, smoothstep
from tools.demo_faces.paint import noise
from tools.demo_faces.traits import Array, Traits
from utils.opencv import cv2

_PSI = (0, 35, 52, 66, 80, 98, 118, 150, 180)  # degrees round the head from the nose
_LONG = ("long", "bob", "fringe")


@dataclass(frozen=True)
class Hair:
    """The shell; nothing of it is seen where ``alpha`` is 0."""

    points: Array  # (H, W, 3)
    normals: Array  # (H, W, 3)
    colour: Array  # (H, W, 3) sRGB albedo
    alpha: Array  # (H, W)
    hangs: bool  # past the jaw, so that its far side is seen


def _hairline(t: Traits) -> list[float]:
    """Heights under which no hair grows, at the angles ``_PSI``."""
    h, low = t.hairline, t.length
    short = [h, h - 0.03, h - 0.2, 0.12, -0.16, 0.3, -0.25, -0.75, -0.85]
    return {
        "short": short,
        "crop": [h - 0.06, h - 0.06, h - 0.16, 0.14, -0.12, 0.32, -0.2, -0.7, -0.8],
        "quiff": short,
        "buzz": short,
        "bald": [1.9, 1.9, 1.9, 0.9, 0.1, 0.3, -0.25, -0.75, -0.85],
        "curly": [h - 0.05, h - 0.08, h - 0.25, 0.1, -0.35, -0.5, -0.8, -0.95, -1.0],
        "long": [h, h - 0.06, h - 0.3, h - 0.7, low, low, low, low, low],
        "bob": [h, h - 0.08, h - 0.34, h - 0.8, low, low, low, low, low],
        "fringe": [0.40, 0.40, 0.36, 0.1, low, low, low, low, low],
        "bun": [h, h - 0.02, h - 0.16, 0.16, -0.08, 0.25, -0.35, -0.6, -0.65],
    }[t.style]


def scalp(head: Head, t: Traits) -> Array:
    """(H, W) how much hair roots cover the skin."""
    line = _line(np.broadcast_to(THETA, head.points.shape[:2]), t)
    y = head.points[..., 1]
    rng = np.random.default_rng(t.skin_seed + 1)
    jitter = 0.03 * noise(rng, HEIGHT, WIDTH, (1.2, 5))
    strength = 0.5 if t.style == "bald" else 0.8 if t.style == "buzz" else 0.93
    return strength * smoothstep(-0.07, 0.09, y - line + jitter)


def _line(theta: Array, t: Traits) -> Array:
    psi = np.degrees(np.abs(theta))
    line = np.interp(psi, _PSI, _hairline(t))
    if t.style in ("long", "quiff", "short", "bob"):  # swept from the parting to one side
        front = smoothstep(65.0, 25.0, psi)
        sweep = 0.14 if t.style in ("long", "bob") else 0.05
        line = line + front * sweep * np.sign(t.parting) * np.sin(theta * 1.6)
    return line.astype(np.float32)


def build_hair(head: Head, t: Traits) -> Hair | None:
    """The shell for the person's style, or None where there is none."""
    if t.style in ("bald", "buzz"):
        return None
    rng = np.random.default_rng(t.skin_seed + 2)
    base = head.points.copy()
    theta = np.broadcast_to(THETA, base.shape[:2])
    hangs = t.style in _LONG or t.style == "curly"
    row0 = int(np.argmin(np.abs(base[:, WIDTH // 8, 1] - 0.25)))
    if hangs:
        rows = np.arange(HEIGHT - row0, dtype=np.float32)[:, None] / (HEIGHT - row0)
        end = min(t.length, -1.15) if t.style in _LONG else -1.05
        base[row0:, :, 1] = base[row0, :, 1] + rows * (end - 0.1 - base[row0, :, 1])
        spread = 1 + 0.05 * np.sin(rows * 3.0) + (0.10 if t.style == "bob" else -0.04) * rows
        keep = smoothstep(0.7, 0.95, np.abs(theta[row0:]))  # it hangs behind the face only
        for c, centre in ((0, 0.0), (2, -0.1)):
            hung = (base[row0, :, c] - centre) * spread + centre
            base[row0:, :, c] += (hung - base[row0:, :, c]) * keep
    y = base[..., 1]
    line = _line(theta, t)
    above = smoothstep(0.0, 0.42, y - line)
    wave_x = noise(rng, HEIGHT, WIDTH, (14, 11)) if t.style == "curly" else noise(rng, HEIGHT, WIDTH, (10, 26))
    psi = np.abs(theta)
    thick = t.volume * (0.95 + 0.5 * smoothstep(0.2, 1.2, y)) * (0.06 + 0.94 * above)
    if t.style == "curly":
        thick = thick * 1.5 + 0.09 * above
    if t.style == "crop":
        thick = thick * 0.55
    if t.style == "bun":
        thick = thick * 0.45
    if t.style in ("quiff", "short"):
        thick = thick * (0.42 + 0.58 * smoothstep(0.35, 0.95, y))
    if t.style == "quiff":
        thick = thick + 0.20 * smoothstep(1.2, 0.3, psi) * smoothstep(0.75, 1.15, y)
    lumps = (0.05 + 0.13 * t.wave) * wave_x * (0.5 if t.style in ("crop", "bun") else 1.0)
    thick = thick * (1 + lumps) + 0.012
    normal = head.normals.copy()
    if hangs:  # below the ears the shell hangs, so it grows sideways only
        normal[row0:] = normal[row0]
    points = base + normal * thick[..., None].astype(np.float32)
    if t.style == "bun":
        d = points - np.array([0, t.top * 0.98, -0.75], np.float32)
        near = np.exp(-np.einsum("hwc,hwc->hw", d, d) / 0.16)
        points += 0.42 * near[..., None] * np.array([0, 0.75, -0.55], np.float32)
    strands, alpha = _strands(y - line, wave_x, t, rng)
    if t.style in _LONG:  # beside the face the edge runs along the strands
        curtain = smoothstep(0.0, 0.10, psi - 1.06 - 0.10 * smoothstep(0.3, -1.0, y) + 0.04 * strands)
        alpha = np.where(
            psi > 1.0, np.maximum(alpha * smoothstep(0.1, 0.4, y), curtain), alpha * smoothstep(0.0, 0.3, y)
        )
    colour = t.hair * (0.86 + 0.20 * strands + 0.05 * wave_x)[..., None]
    colour = colour * (1 - 0.3 * smoothstep(-0.6, -1.6, y))[..., None]
    if t.style == "bob":
        alpha = alpha * smoothstep(-1.12, -1.02, y + 0.03 * strands)
    elif t.style in _LONG:
        alpha = alpha * smoothstep(t.length, t.length + 0.3, y + 0.08 * strands)
    normals = grid_normals(points)
    normals[..., 0] += 0.22 * strands * np.cos(theta)
    normals[..., 2] -= 0.22 * strands * np.sin(theta)
    return Hair(points.astype(np.float32), normals, np.clip(colour, 0.01, 1).astype(np.float32), alpha, hangs)


def _strands(above: Array, wave_x: Array, t: Traits, rng: np.random.Generator) -> tuple[Array, Array]:
    """Light and dark along the strands, and the ragged edge that they make at the hairline."""
    if t.style == "curly":
        strands = 0.7 * noise(rng, HEIGHT, WIDTH, (3.0, 2.5)) + 0.5 * noise(rng, HEIGHT, WIDTH, 1.3)
    else:
        raw = noise(rng, HEIGHT, WIDTH, (0.9, 34)) * 0.6 + noise(rng, HEIGHT, WIDTH, (3.0, 60)) * 0.7
        rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        lean = 0.22 * t.parting * rows if t.style not in ("bun", "quiff") else 0.0
        bend = (1.0 + 5.0 * t.wave) * wave_x + 3.0 * t.wave * np.sin(rows / (9 + 8 * (1 - t.wave)))
        strands = np.asarray(
            cv2.remap(raw, cols + lean + bend.astype(np.float32), rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        )
    ragged = {"curly": 0.06, "fringe": 0.05, "crop": 0.05, "quiff": 0.03}.get(t.style, 0.035)
    alpha = smoothstep(-0.05, 0.07, above + ragged * strands)
    return strands.astype(np.float32), alpha
