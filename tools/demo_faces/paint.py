"""The colours of a head: what stays (skin, brows, beard) and what a picture changes (eyes, mouth, mask).

Colours are sRGB albedo in 0 .. 1, float32. Shapes: H rows, W columns of the head's grid; h, w of a patch of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.demo_faces.head import HEIGHT, WIDTH, Head, bump, smoothstep
from tools.demo_faces.traits import Array, Rng, Traits
from utils.opencv import cv2

Patch = tuple[slice, slice]


@dataclass(frozen=True)
class Mood:
    """The face that a person makes in one picture."""

    smile: float = 0.0  # -0.5 .. 1
    jaw: float = 0.0  # 0 shut .. 1
    brow: float = 0.0  # -0.6 .. 1
    lids: float = 1.0  # 0 shut .. 1.15 wide
    gaze_x: float = 0.0  # -1 .. 1
    gaze_y: float = 0.0
    lipstick: float = 0.0  # 0 .. 1
    mask: tuple[float, float, float] | None = None  # colour of a face mask


def noise(rng: Rng, height: int, width: int, sigma: float | tuple[float, float]) -> Array:
    """Smooth noise of mean 0 and deviation 1; ``sigma`` is (x, y) or both, in texels."""
    sx, sy = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    step_x, step_y = max(1, int(sx)), max(1, int(sy))
    small: Array = rng.standard_normal((height // step_y + 2, width // step_x + 2), dtype=np.float32)
    small = cv2.GaussianBlur(small, (0, 0), max(sx / step_x, 0.3), sigmaY=max(sy / step_y, 0.3))
    out: Array = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    out -= out.mean()
    out /= out.std() + 1e-6
    return out


def blend(base: Array, colour: Array, alpha: Array) -> Array:
    """``colour`` over ``base`` where ``alpha`` is 1."""
    out: Array = base + (colour - base) * alpha[..., None]
    return out


def paint_skin(head: Head, t: Traits, scalp: Array) -> Array:
    """Everything that does not move: skin, blemishes, brows, nostrils, beard, and hair roots (``scalp``, (H, W))."""
    rng = np.random.default_rng(t.skin_seed)
    x, y = head.points[..., 0], head.points[..., 1]
    ax = np.abs(x)
    front = smoothstep(-0.2, 0.3, head.points[..., 2])
    tone = 1 + 0.022 * noise(rng, HEIGHT, WIDTH, 22) + 0.016 * noise(rng, HEIGHT, WIDTH, 5)
    tone += 0.012 * noise(rng, HEIGHT, WIDTH, 1)
    skin = t.skin * tone[..., None]
    # Blood near the surface: cheeks, nose, ears; less of it on the forehead; shade under the eyes.
    blood = bump(ax, y, 0.52, -0.38, 0.24, 0.2) + 0.9 * bump(x, y, 0, t.nose_y, 0.19, 0.14)
    blood += 0.35 * bump(x, y, 0, t.bottom + 0.2, 0.25, 0.15) + 0.25 * noise(rng, HEIGHT, WIDTH, 9) * 0.4
    blood *= (0.5 + 0.7 * t.ruddy) * (1 - 0.45 * t.melanin) * front
    skin = skin * (1 + blood[..., None] * np.array([0.02, -0.11, -0.10], np.float32))
    shade = bump(ax, y, t.eye_x - 0.04, -0.12, 0.17, 0.06) * (0.35 + 0.65 * t.eye_bag)
    shade += 0.7 * bump(ax, y, t.eye_x - 0.05, 0.10, 0.2, 0.07) + 0.5 * bump(ax, y, 0.19, 0.02, 0.06, 0.08)
    skin = skin * (1 - shade[..., None] * front[..., None] * np.array([0.17, 0.21, 0.19], np.float32))
    if t.freckles > 0.1:
        spots = smoothstep(1.2, 2.2, noise(rng, HEIGHT, WIDTH, 1.4)) * front
        where = np.clip(bump(ax, y, 0.45, -0.3, 0.3, 0.22) + bump(x, y, 0, -0.25, 0.25, 0.2), 0, 1)
        skin = blend(skin, t.skin * np.float32(0.62), spots * where * min(1.0, t.freckles))
    for mx, my, radius in t.moles:
        skin = blend(
            skin,
            t.skin * np.array([0.38, 0.3, 0.28], np.float32),
            0.85 * front * smoothstep(1.2, 0.7, np.hypot(x - mx, y - my) / radius),
        )
    nostril = bump(np.abs(x - t.nose_x), y, t.nose_w * 0.47, t.nose_y - 0.125, 0.042, 0.022) * front
    skin = blend(skin, t.skin * np.array([0.22, 0.13, 0.12], np.float32), np.clip(1.25 * nostril, 0, 1))
    strands = noise(rng, HEIGHT, WIDTH, (0.7, 1.6))
    beard = _beard(x, y, t, strands) * front
    skin = blend(skin, t.hair * (0.78 + 0.10 * strands[..., None]), beard)
    brow = _brows(x, y, t, noise(rng, HEIGHT, WIDTH, (1.6, 0.8))) * front
    skin = blend(skin, t.hair * np.float32(0.55) + np.float32(0.04), brow)
    roots = t.hair * (0.72 + 0.12 * noise(rng, HEIGHT, WIDTH, (0.9, 7))[..., None])
    skin = blend(skin, roots, scalp)
    skin *= 1 - 0.62 * np.clip(head.hollow, -0.1, 1)[..., None] * np.array([0.8, 1.0, 1.05], np.float32)
    return np.clip(skin, 0.01, 1).astype(np.float32)


def _brows(x: Array, y: Array, t: Traits, strands: Array) -> Array:
    ax = np.abs(x)
    u = (ax - t.brow_in) / (t.brow_out - t.brow_in)  # 0 inner end, 1 outer end
    uc = np.clip(u, -0.2, 1.2)
    middle = t.brow_y + t.brow_tilt * (uc - 0.4) + t.brow_arch * (1 - ((uc - 0.62) / 0.62) ** 2)
    half = t.brow_w * (0.35 + 0.75 * np.clip(1 - uc, 0, 1) ** 0.6) * smoothstep(-0.08, 0.18, u)
    away = (y - middle) / (half + 0.004)
    body = (
        smoothstep(1.35, 0.35, np.abs(away) + 0.22 * strands) * smoothstep(-0.10, 0.12, u) * smoothstep(1.08, 0.85, u)
    )
    out: Array = np.clip(body * t.brow_dark * (0.9 + 0.18 * strands), 0, 0.95)
    return out


def _beard(x: Array, y: Array, t: Traits, strands: Array) -> Array:
    if t.beard == "none":
        return np.zeros_like(x)
    ax, my = np.abs(x), t.mouth_y
    lip = smoothstep(0.02, 0.05, y - my - t.lip_up) * smoothstep(t.nose_y - 0.13, t.nose_y - 0.2, y)
    moustache = lip * smoothstep(t.mouth_w + 0.09, t.mouth_w - 0.05, ax + 0.5 * (my + t.lip_up - y))
    ring = smoothstep(0.13, 0.06, np.abs(np.hypot(ax / 1.05, (y - my + 0.08) / 0.85) - t.mouth_w - 0.08)) * (
        y < my + 0.2
    )
    goatee = np.maximum(
        ring, smoothstep(0.32, 0.22, ax) * smoothstep(my - t.lip_low - 0.10, my - t.lip_low - 0.17, y)
    )
    edge = -0.62 - 0.32 * np.clip(1 - ax / 0.75, 0, 1) ** 1.3 + 0.55 * smoothstep(0.68, 0.92, ax)
    jaws = smoothstep(edge + 0.07, edge - 0.07, y + 0.03 * strands)
    jaws *= 1 - smoothstep(1.2, 0.95, np.hypot(x / (t.mouth_w + 0.03), (y - my) / (t.lip_low + 0.07)))
    full = np.maximum(np.maximum(moustache, jaws), goatee * 0.9)
    style = {"stubble": 0.36 * full, "moustache": moustache, "goatee": np.maximum(moustache, goatee), "full": full}
    body = style[t.beard] * t.beard_dark
    out: Array = np.clip(body * (0.95 + 0.12 * strands), 0, 0.96)
    return out


def patch_of(head: Head, x0: float, x1: float, y0: float, y1: float) -> Patch:
    """Rows and columns that hold the rectangle of the face."""
    x, y, z = head.points[..., 0], head.points[..., 1], head.points[..., 2]
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1) & (z > 0.45)
    rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def paint_eye(skin: Array, x: Array, y: Array, side: int, t: Traits, mood: Mood, glint: tuple[float, float]) -> Array:
    """One eye over its patch of skin.

    Args:
        skin: (h, w, 3) patch.
        x: (h, w) face coordinate.
        y: (h, w) face coordinate.
        side: -1 for the image's left eye, 1 for the right one.
        t: whose eye.
        mood: lids and gaze.
        glint: where the light mirrors, x and y in iris radii.
    """
    u = (x * side - t.eye_x) / t.eye_w  # -1 inner corner, 1 outer corner
    v = y / t.eye_w - t.eye_tilt * u
    uu = np.clip(u, -1, 1)
    dome = (1 - uu * uu) ** 0.62
    lids = max(mood.lids - 0.22 * max(mood.smile, 0), 0.0)
    low_lid = -t.eye_h * (0.74 - 0.25 * max(mood.smile, 0)) * dome * (1 + 0.18 * uu)
    wide = t.eye_h * dome * (1 - 0.16 * uu)
    top_lid = low_lid + (wide - low_lid) * min(lids, 1.15)
    soft = 0.055
    opening = smoothstep(-soft, soft, v - low_lid) * smoothstep(-soft, soft, top_lid - v) * (np.abs(u) < 1)
    # Lid: crease, its shade, lashes.
    crease = wide + t.eye_fold * (0.35 + 0.65 * dome) * (1.25 - 0.25 * lids) - 0.12
    inside = smoothstep(1.22, 0.85, np.abs(u))
    fold = np.exp(-(((v - crease) / 0.085) ** 2)) * inside
    out = skin * (1 - 0.40 * fold[..., None] * np.array([0.8, 1, 1], np.float32))
    lid = smoothstep(0, 0.06, v - top_lid) * smoothstep(0.05, -0.1, v - crease) * inside
    out = out * (1 - 0.10 * lid[..., None])
    under = np.exp(-(((v - low_lid + 0.09) / 0.075) ** 2)) * smoothstep(1.1, 0.8, np.abs(u))
    out = out * (1 + under[..., None] * np.array([0.03, -0.07, -0.06], np.float32))
    # Ball: white with veins at the corners, iris with a dark rim, pupil, mirrored light.
    cx, cy = side * 0.30 * mood.gaze_x + 0.02, 0.10 + 0.16 * mood.gaze_y
    shade = 0.62 + 0.38 * smoothstep(0.02, 0.38, top_lid - v)
    shade = shade * (1 - 0.30 * np.abs(uu) ** 3)
    ball = np.array([0.93, 0.91, 0.89], np.float32) * shade[..., None]
    corner = smoothstep(-0.72, -0.95, u)
    ball = blend(ball, np.array([0.66, 0.40, 0.37], np.float32), 0.8 * corner)
    r = np.hypot(u - cx, v - cy) * (t.eye_w / t.iris_r)
    angle = np.arctan2(v - cy, u - cx)
    rays = 1 + 0.13 * np.sin(angle * 17 + 3 * r) + 0.08 * np.sin(angle * 29)
    depth = (0.75 + 0.45 * smoothstep(0.35, -0.35, (v - cy) * (t.eye_w / t.iris_r))) * rays
    colour = (
        t.iris
        * (depth * (1.12 - 0.75 * smoothstep(0.72, 1.0, r)) * (0.6 + 0.4 * smoothstep(0.0, 0.3, top_lid - v)))[
            ..., None
        ]
    )
    ball = blend(ball, colour, smoothstep(1.1, 0.92, r))
    ball = blend(ball, np.full(3, 0.015, np.float32), smoothstep(0.46, 0.34, r))
    shine = np.hypot((u - cx) * (t.eye_w / t.iris_r) - side * glint[0], (v - cy) * (t.eye_w / t.iris_r) - glint[1])
    ball = blend(ball, np.full(3, 1.0, np.float32), 0.95 * smoothstep(0.34, 0.16, shine))
    out = blend(out, ball, opening)
    lash = np.exp(-(((v - top_lid) / (0.055 + 0.035 * smoothstep(-0.5, 1, u))) ** 2)) * smoothstep(
        1.12, 0.95, np.abs(u)
    )
    lower = 0.35 * np.exp(-(((v - low_lid) / 0.04) ** 2)) * smoothstep(1.0, 0.8, np.abs(u)) * smoothstep(-0.6, 0.4, u)
    dark = np.clip(0.92 * lash + lower, 0, 1)
    return blend(out, np.float32(0.12) * t.skin + np.float32(0.02), dark)


def paint_mouth(skin: Array, x: Array, y: Array, t: Traits, mood: Mood) -> Array:
    """Lips, and teeth and dark where they part, over their patch of skin."""
    u = x / t.mouth_w
    uu = np.clip(u, -1, 1)
    dome = (1 - uu * uu) ** 0.75
    grin = max(mood.smile - 0.45, 0.0) * 0.075
    gap = (0.17 * mood.jaw + grin) * (1 - uu * uu) ** 0.7
    thin = 1 - 0.28 * max(mood.smile, 0)
    v = y - t.mouth_y - t.mouth_tilt * uu - t.lip_curve * (uu * uu - 0.3) + 0.012 * np.cos(uu * 9) * (1 - uu * uu)
    top_gap, low_gap = 0.3 * gap, -0.7 * gap
    bow = 1 - t.lip_bow * np.exp(-((uu / 0.16) ** 2)) + 0.14 * np.exp(-(((np.abs(uu) - 0.30) / 0.18) ** 2))
    top = top_gap + t.lip_up * thin * dome * bow
    low = low_gap - t.lip_low * thin * (1 - uu * uu) ** 0.62
    inside = smoothstep(1.03, 0.94, np.abs(u))
    soft = 0.016
    lips = smoothstep(-soft, soft, top - v) * smoothstep(-soft, soft, v - low) * inside
    colour = t.lip * (1 - 0.5 * mood.lipstick) + mood.lipstick * np.array([0.33, 0.06, 0.10], np.float32)
    upper = smoothstep(-0.01, 0.01, v - 0.5 * (top_gap + low_gap))
    body = np.clip((v - low) / (low_gap - low + 0.01), 0, 1)
    light = np.where(upper > 0.5, 0.86, 0.97 + 0.13 * np.exp(-(((body - 0.5) / 0.25) ** 2)) * dome)
    light = light * (1 + 0.035 * np.sin(uu * 60 + 7 * np.sin(uu * 13)))
    out = skin * (1 - 0.22 * np.exp(-(((v - low + 0.02) / 0.035) ** 2)) * dome)[..., None]
    out = blend(out, colour * light[..., None].astype(np.float32), 0.92 * lips)
    hole = smoothstep(-0.008, 0.008, top_gap - v) * smoothstep(-0.008, 0.008, v - low_gap) * inside
    hole = hole * smoothstep(0.006, 0.02, gap)
    depth = np.clip((top_gap - v) / 0.1, 0, 1)
    teeth = smoothstep(0.085, 0.07, top_gap - v) * smoothstep(0.86, 0.6, np.abs(uu))
    gaps = 1 - 0.10 * smoothstep(0.8, 1.0, np.abs(np.cos(np.pi * x / 0.058)))
    tongue = np.array([0.40, 0.13, 0.13], np.float32) * (0.25 + 0.75 * smoothstep(0.4, 1.2, depth))[..., None]
    white = np.array([0.84, 0.80, 0.74], np.float32) * (gaps * (1 - 0.55 * uu * uu))[..., None]
    out = blend(out, blend(tongue, white, teeth), hole)
    line = np.exp(-((v / 0.013) ** 2)) * inside * smoothstep(0.03, 0.0, gap)
    line = line + 0.7 * np.exp(-(((np.abs(u) - 0.985) / 0.05) ** 2) - (v / 0.022) ** 2)
    return blend(out, colour * np.float32(0.25), np.clip(0.85 * line, 0, 1))


def paint_mask(skin: Array, x: Array, y: Array, t: Traits, colour: Array) -> Array:
    """A cloth mask from the nose to below the chin."""
    ax = np.abs(x)
    edge = t.nose_y + 0.24 - 0.30 * ax**1.4
    cloth = smoothstep(0.02, -0.02, y - edge)
    folds = 0.90 + 0.07 * np.sin((y - 0.12 * ax * ax) * 42) + 0.06 * smoothstep(-0.09, -0.02, y - edge)
    shadow = np.exp(-(((y - edge - 0.02) / 0.03) ** 2))
    return blend(skin * (1 - 0.25 * shadow)[..., None], colour * folds[..., None].astype(np.float32), cloth)
