"""Taking a picture: what differs from one to the next, and what lens, sensor and file do to it.

Nothing here depends on who is in the picture, except for what the person always wears.
Shapes: S height and width of the canvas in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tools.demo_faces.accessories import hold_hand, hold_thing, wear_scarf
from tools.demo_faces.paint import Mood
from tools.demo_faces.person import Person
from tools.demo_faces.render import render
from tools.demo_faces.shade import Scene
from tools.demo_faces.traits import Array, Rng
from utils.opencv import cv2

OCCLUDERS = ("none", "sunglasses", "mask", "hand", "scarf", "thing")
_OFTEN = (0.84, 0.04, 0.03, 0.03, 0.03, 0.03)


@dataclass(frozen=True)
class Shot:
    """A scene, and how badly it is recorded."""

    scene: Scene
    occluder: str = "none"
    blur: float = 0.0  # deviation in half head widths
    motion: float = 0.0  # length of a streak in half head widths
    coarse: float = 1.0  # the sensor has this many times fewer pixels across
    grain: float = 0.0  # deviation, 0 .. 255
    contrast: float = 1.0
    saturation: float = 1.0
    warmth: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Picture:
    """What came out."""

    image: Array  # (S, S, 3) uint8 RGB
    landmarks: Array  # (5, 2) pixels
    score: float  # what a face detector would give it, 0 .. 1


def draw_shot(rng: Rng, person: Person) -> Shot:
    """Draw a picture of the person; ``person`` only tells what is worn every day."""
    t = person.traits
    occluder = str(rng.choice(OCCLUDERS, p=_OFTEN))
    smile = float(np.clip(rng.normal(0.25, 0.42), -0.45, 1))
    mood = Mood(
        smile=smile,
        jaw=float(np.clip(rng.normal(-0.15, 0.4), 0, 0.95)),
        brow=float(np.clip(rng.normal(0, 0.4), -0.6, 1)),
        lids=float(rng.uniform(0, 0.25))
        if rng.random() < 0.05
        else float(np.clip(rng.normal(0.98, 0.12), 0.55, 1.15)),
        gaze_x=float(np.clip(rng.normal(0, 0.35), -1, 1)),
        gaze_y=float(np.clip(rng.normal(-0.1, 0.3), -1, 1)),
        lipstick=float(rng.uniform(0.3, 0.9)) if t.beard == "none" and rng.random() < 0.08 else 0.0,
        mask=_cloth(rng, bright=True) if occluder == "mask" else None,
    )
    azimuth, height = rng.uniform(-1.0, 1.0), rng.uniform(-0.1, 0.95)
    light = (float(np.sin(azimuth) * np.cos(height)), float(np.sin(height)), float(np.cos(azimuth) * np.cos(height)))
    strength = float(rng.uniform(0.6, 1.3))
    warm = rng.normal(0, 0.07)
    tint = np.array([1 + warm, 1 + rng.normal(0, 0.025), 1 - warm])
    fill = float(rng.uniform(0.25, 0.65))
    cool = rng.normal(-0.02, 0.08)
    sky = fill * np.array([1 + cool, 1, 1 - cool])
    ground = fill * rng.uniform(0.35, 0.9) * np.array([1.05, 1, 0.93])
    glasses = t.glasses
    if glasses != "none" and rng.random() < 0.2:
        glasses = "none"
    lens = 0.0
    if occluder == "sunglasses":
        glasses, lens = str(rng.choice(["round", "square", "oval"])), float(rng.uniform(0.82, 0.97))
    scene = Scene(
        mood=mood,
        yaw=float(np.clip(rng.normal(0, 0.31), -0.85, 0.85)),
        pitch=float(np.clip(rng.normal(0.02, 0.14), -0.36, 0.4)),
        roll=float(rng.normal(0, 0.13)),
        distance=float(rng.uniform(7, 18)),
        light=light,
        key=_triple(strength * tint),
        sky=_triple(sky),
        ground=_triple(ground),
        hardness=float(rng.uniform(0.25, 0.9)),
        gloss=float(rng.uniform(0.2, 1.1)),
        cloth=_cloth(rng),
        neckline=float(rng.uniform(0.36, 0.6)),
        glasses=glasses,
        lens=lens,
        seed=int(rng.integers(1 << 31)),
    )
    return Shot(
        scene,
        occluder,
        blur=float(rng.gamma(1.0, 0.012)),
        motion=float(rng.uniform(0.03, 0.13)) if rng.random() < 0.08 else 0.0,
        coarse=float(rng.uniform(1.3, 3.6)) if rng.random() < 0.2 else 1.0,
        grain=float(rng.gamma(1.2, 1.7)),
        contrast=float(np.clip(rng.normal(1, 0.1), 0.75, 1.3)),
        saturation=0.0 if rng.random() < 0.05 else float(np.clip(rng.normal(1, 0.2), 0.4, 1.5)),
        warmth=float(rng.normal(0, 0.035)),
        seed=int(rng.integers(1 << 31)),
    )


def next_frame(shot: Shot, rng: Rng) -> Shot:
    """The same video a moment later: the head has turned a little and the face has moved."""
    s, m = shot.scene, shot.scene.mood
    mood = replace(
        m,
        smile=float(np.clip(m.smile + rng.normal(0, 0.15), -0.45, 1)),
        jaw=float(np.clip(m.jaw + rng.normal(0, 0.2), 0, 0.95)),
        lids=float(np.clip(m.lids + rng.normal(0, 0.06), 0, 1.15)),
        gaze_x=float(np.clip(m.gaze_x + rng.normal(0, 0.2), -1, 1)),
    )
    scene = replace(
        s,
        mood=mood,
        yaw=float(np.clip(s.yaw + rng.normal(0, 0.10), -0.95, 0.95)),
        pitch=float(np.clip(s.pitch + rng.normal(0, 0.05), -0.42, 0.48)),
        roll=s.roll + float(rng.normal(0, 0.03)),
    )
    return replace(shot, scene=scene, motion=shot.motion * float(rng.uniform(0, 1.5)))


def take(person: Person, shot: Shot, size: int, scale: float, low: float = 0.0) -> Picture:
    """Render and record.

    Args:
        person: who.
        shot: how.
        size: height and width of the canvas S in pixels.
        scale: pixels of half a head width.
        low: how far under the middle of the canvas the middle of the face is, in half head widths.
    """
    image, landmarks = render(person, shot.scene, size, scale, low)
    rng = np.random.default_rng(shot.seed)
    middle = landmarks.mean(0)
    if shot.occluder == "hand":
        spot = middle + rng.uniform(-0.6, 0.6, 2) * scale + np.array([0, 0.35]) * scale
        hold_hand(image, rng, person.traits.skin, spot, scale)
    elif shot.occluder == "scarf":
        wear_scarf(image, rng, landmarks[3:].mean(0) - np.array([0, 0.1 * scale]), scale)
    elif shot.occluder == "thing":
        hold_thing(image, rng, middle, scale)
    image = _record(image, shot, scale, rng)
    away = abs(shot.scene.yaw) / 0.95
    score = 0.999 - 0.10 * away**2 - 0.20 * (shot.occluder != "none") - 2.0 * shot.blur - 0.8 * shot.motion
    score -= 0.09 * (shot.coarse - 1) + 0.02 * abs(rng.normal())
    return Picture(image, landmarks, float(np.clip(score, 0.3, 0.9999)))


def _record(image: Array, shot: Shot, scale: float, rng: Rng) -> Array:
    size = image.shape[0]
    if shot.blur * scale > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), shot.blur * scale)
    if shot.motion > 0:
        taps = max(3, int(shot.motion * scale) | 1)
        kernel = np.zeros((taps, taps), np.float32)
        angle = rng.uniform(0, np.pi)
        reach = np.array([np.cos(angle), np.sin(angle)]) * (taps // 2)
        middle = taps // 2
        cv2.line(kernel, _pixel(middle - reach), _pixel(middle + reach), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    if shot.coarse > 1:
        few = max(8, round(size / shot.coarse * 56 / scale))
        small = cv2.resize(image, (few, few), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    grey = np.array([[0.299, 0.587, 0.114]], np.float32)
    mix = np.eye(3, dtype=np.float32) * shot.saturation + (1 - shot.saturation) * grey
    mix *= shot.contrast * np.array([[1 + shot.warmth], [1.0], [1 - shot.warmth]], np.float32)
    offset = np.full((3, 1), 118 * (1 - shot.contrast), np.float32)
    if shot.grain > 0.5:
        grains = cv2.resize(
            rng.standard_normal((size * 2 // 3, size * 2 // 3), np.float32),
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        )
        image = cv2.add(image, cv2.merge([grains * shot.grain] * 3), dtype=cv2.CV_8U)
    out: Array = np.asarray(cv2.transform(image, np.hstack([mix, offset])))
    return out


def _pixel(at: Array) -> tuple[int, int]:
    return round(float(at[0])), round(float(at[1]))


def _triple(values: Array) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in np.clip(values, 0, 4))
    return r, g, b


def _cloth(rng: Rng, bright: bool = False) -> tuple[float, float, float]:
    low, high = (0.35, 0.9) if bright else (0.05, 0.85)
    return _triple(np.clip(rng.uniform(low, high) + rng.normal(0, 0.12, 3), 0.02, 0.95))
