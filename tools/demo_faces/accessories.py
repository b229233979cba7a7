"""What people wear or hold in front of their faces: glasses, a hand, a scarf, a thing.

All of it is drawn into the picture (S, S, 3) uint8 in place; lengths are in half head widths unless they say pixels.
"""

from __future__ import annotations

import numpy as np

from tools.demo_faces.camera import View
from tools.demo_faces.paint import noise
from tools.demo_faces.person import Person
from tools.demo_faces.traits import Array, Rng
from utils.opencv import cv2

_SHIFT = 4  # bits of sub-pixel position that OpenCV's drawing takes
_EXPONENT = {"round": 2.0, "oval": 2.4, "square": 5.0}
_HALF = {"round": (0.235, 0.215), "oval": (0.26, 0.175), "square": (0.265, 0.185)}


def wear_glasses(
    image: Array, depth: Array, view: View, person: Person, landmarks: Array, shape: str, lens: float
) -> None:
    """Draw a frame and its lenses.

    Args:
        image: the picture.
        depth: (S, S) distance from the camera, tells which temple is hidden.
        view: the camera.
        person: whose head; tells the colour of the frame.
        landmarks: (5, 3) in the head's coordinates.
        shape: "none", "round", "oval" or "square".
        lens: how dark, 0 .. 1.
    """
    if shape == "none":
        return
    half_x, half_y = _HALF[shape]
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    power = 2 / _EXPONENT[shape]
    ring_x = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * half_x
    ring_y = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * half_y - 0.04
    front = float(landmarks[:2, 2].max()) + 0.16
    colour = tuple(float(v) for v in np.clip(person.traits.frame * 255 * 0.9, 0, 255))
    thick = max(1, round(view.focal / -view.shift[2] * (0.028 if shape != "oval" else 0.018)))

    def pixels(x: Array, y: Array, z: Array) -> Array:
        placed = view.place(np.stack([x, y, z], -1).astype(np.float32), view.turn)
        return np.round(view.project(placed) * (1 << _SHIFT)).astype(np.int32)

    for side in (-1, 1):
        x = side * (float(landmarks[1, 0]) + 0.015) + ring_x
        outline = pixels(x, ring_y, front - 0.17 * x * x)
        glass = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(glass, [outline], 255, cv2.LINE_AA, _SHIFT)
        box = cv2.boundingRect(glass)
        at = (slice(box[1], box[1] + box[3]), slice(box[0], box[0] + box[2]))
        inside = glass[at][..., None] / 255.0
        slope = np.linspace(1, 0, box[3])[:, None, None] + np.linspace(-0.3, 0.3, box[2])[None, :, None]
        tint = np.array([38, 34, 32]) + 55 * np.clip(slope, 0, 1)
        opaque = inside * (lens if lens > 0 else 0.07 * np.clip(slope, 0, 1))
        image[at] = (image[at] * (1 - opaque) + (tint if lens > 0 else 235.0) * opaque).astype(np.uint8)
        cv2.polylines(image, [outline], True, colour, thick, cv2.LINE_AA, _SHIFT)
        if lens == 0:
            cv2.polylines(
                image, [outline[8:14] - 4], False, tuple(min(255.0, c + 70) for c in colour), 1, cv2.LINE_AA, _SHIFT
            )
        hinge_x = side * (float(landmarks[1, 0]) + half_x)
        along = np.linspace(0, 1, 9)
        hx = hinge_x + (side * 1.03 - hinge_x) * np.minimum(1, along * 2.2)
        hz = front - 0.17 * hinge_x**2 - along * 0.95
        temple = pixels(hx, np.full(9, 0.04), hz)
        placed = view.place(np.stack([hx, np.full(9, 0.04), hz], -1).astype(np.float32), view.turn)
        cols, rows = np.clip(temple >> _SHIFT, 0, image.shape[0] - 1).T
        seen = -placed[:, 2] < depth[rows, cols] + 0.06
        for k in np.flatnonzero(seen[1:]):
            cv2.polylines(image, [temple[k : k + 2]], False, colour, thick, cv2.LINE_AA, _SHIFT)
    inner = float(landmarks[1, 0]) + 0.015 - half_x
    bx = np.linspace(-inner - 0.01, inner + 0.01, 7)
    bridge = pixels(bx, 0.0 + 0.05 * (1 - (bx / inner) ** 2), np.full(7, front))
    cv2.polylines(image, [bridge], False, colour, thick, cv2.LINE_AA, _SHIFT)


def hold_hand(image: Array, rng: Rng, skin: Array, centre: Array, unit: float) -> None:
    """Four fingers and the back of a hand over the face.

    Args:
        image: the picture.
        rng: for the way the hand is held.
        skin: (3,) albedo.
        centre: pixel (2,) between the fingers.
        unit: pixels of half a head width.
    """
    bright = np.clip(image[image.shape[0] // 2 :].mean() / 125, 0.45, 1.25)
    tone = np.clip(skin * np.array([1.0, 0.95, 0.95]) * 225 * bright, 8, 255)
    angle = rng.uniform(-0.7, 0.7)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def pixel(x: float, y: float) -> tuple[int, int]:
        at = np.round((centre + turn @ np.array([x, y]) * unit) * (1 << _SHIFT))
        return int(at[0]), int(at[1])

    def colour(light: float) -> tuple[float, ...]:
        return tuple(float(v) for v in np.clip(tone * light, 0, 255))

    layers = ((1.0, 0.62, 0.0), (0.86, 0.84, 0.012), (0.6, 0.97, 0.025), (0.3, 1.04, 0.035))
    for size, light, lift in layers:
        axes = (int(0.50 * unit * (0.6 + 0.4 * size) * 16), int(0.62 * unit * (0.6 + 0.4 * size) * 16))
        palm = pixel(-lift, 1.02 - lift)
        cv2.ellipse(
            image, palm, axes, float(np.degrees(angle)), 0, 360, colour(light * 0.96), -1, cv2.LINE_AA, _SHIFT
        )
    for k, (x, tip) in enumerate(((-0.40, -0.22), (-0.135, -0.42), (0.135, -0.38), (0.38, -0.12))):
        bend = 0.05 * (k - 1.5) * rng.uniform(0.5, 1.6)
        for size, light, lift in layers:
            width = max(1, int(0.262 * size * unit))
            joints = [pixel(x + bend - lift, tip), pixel(x - lift, tip + 0.42), pixel(0.9 * x - lift, 0.75)]
            cv2.polylines(image, [np.array(joints)], False, colour(light), width, cv2.LINE_AA, _SHIFT)
        nail = pixel(x + bend - 0.02, tip - 0.02)
        axes = (int(0.062 * unit * 16), int(0.085 * unit * 16))
        cv2.ellipse(image, nail, axes, float(np.degrees(angle)), 0, 360, colour(1.16), -1, cv2.LINE_AA, _SHIFT)


def wear_scarf(image: Array, rng: Rng, centre: Array, unit: float) -> None:
    """Knitted cloth from below the nose down."""
    size = image.shape[0]
    u = np.linspace(-1.6, 1.6, 25)
    rise = centre[1] + unit * (0.05 * np.sin(u * 3 + rng.uniform(0, 6)) - 0.16 * u * u + rng.uniform(-0.05, 0.3))
    top = np.stack([centre[0] + u * unit, rise], -1)
    area = np.concatenate([top, [(size * 1.3, size * 1.4), (-size * 0.3, size * 1.4)]])
    cover = np.zeros((size, size), np.uint8)
    cv2.fillPoly(cover, [np.round(area * 16).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
    rows, cols = np.mgrid[0:size, 0:size].astype(np.float32)
    folds = (
        0.8
        + 0.14 * np.sin((rows + 0.25 * unit * np.sin(cols / unit * 2)) / unit * 13)
        + 0.05 * np.sin(cols / unit * 60)
    )
    colour = rng.uniform(25, 210) + rng.normal(0, 35, 3)
    cloth = np.clip(colour * folds[..., None], 0, 255)
    alpha = cover[..., None] / np.float32(255)
    image[:] = (image * (1 - alpha) + cloth * alpha).astype(np.uint8)


def hold_thing(image: Array, rng: Rng, centre: Array, unit: float) -> None:
    """A phone, a cup, a book: a plain rotated box over part of the face."""
    size = image.shape[0]
    away = rng.uniform(-0.75, 0.75, 2) * unit
    extent = rng.uniform(0.55, 1.15, 2) * unit
    corners = cv2.boxPoints(
        (
            (float(centre[0] + away[0]), float(centre[1] + away[1])),
            (float(extent[0]), float(extent[1])),
            float(rng.uniform(-30, 30)),
        )
    )
    cover = np.zeros((size, size), np.uint8)
    cv2.fillPoly(cover, [np.round(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, _SHIFT)
    colour = rng.uniform(10, 230) + rng.normal(0, 22, 3)
    body = colour + 12 * noise(rng, size, size, unit / 3)[..., None] + np.linspace(20, -20, size)[:, None, None]
    alpha = cover[..., None] / np.float32(255)
    image[:] = np.clip(image * (1 - alpha) + body * alpha, 0, 255).astype(np.uint8)
