"""A scene and its light: what colour a point of skin, cloth or hair has in the picture.

Shapes: P points. Channels come first, so that NumPy's inner loops are long.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.demo_faces.paint import Mood
from tools.demo_faces.traits import Array


@dataclass(frozen=True)
class Scene:
    """Everything about a picture that says nothing about the person."""

    mood: Mood = field(default_factory=Mood)
    yaw: float = 0.0  # rad
    pitch: float = 0.0
    roll: float = 0.0
    distance: float = 12.0  # of the camera, in half head widths
    light: tuple[float, float, float] = (0.3, 0.5, 0.8)  # direction to the key light
    key: tuple[float, float, float] = (1.0, 1.0, 1.0)  # its colour times its strength
    sky: tuple[float, float, float] = (0.35, 0.35, 0.35)  # light from above and all around
    ground: tuple[float, float, float] = (0.2, 0.2, 0.2)
    hardness: float = 0.6  # of shadows, 0 .. 1
    gloss: float = 0.5
    cloth: tuple[float, float, float] = (0.3, 0.3, 0.4)
    neckline: float = 0.5
    glasses: str = "none"  # shape of the frame
    lens: float = 0.0  # darkness, 0 clear .. 1
    seed: int = 0  # of the background

    def towards_light(self) -> Array:
        """(3,) unit vector to the key light, in camera coordinates."""
        light = np.asarray(self.light, np.float32)
        light /= np.linalg.norm(light)
        return light


def shade_skin(albedo_3P: Array, normal_3P: Array, lit_P: Array, scene: Scene) -> Array:
    """Colours (3, P) uint8 of skin and cloth.

    Args:
        albedo_3P: sRGB, 0 .. 1.
        normal_3P: in camera coordinates, of any length.
        lit_P: the part of the key light that no shadow takes.
        scene: the light.
    """
    n = _unit(normal_3P)
    light, (key, sky, ground) = scene.towards_light(), _colours(scene)
    facing = light @ n
    half = _half(light)
    broad = _power(np.clip(half @ n, 0, 1), 12)
    shine = scene.gloss * (0.055 * broad + 0.09 * _power(broad, 4)) * lit_P
    up = 0.5 + 0.5 * n[1]
    rim = _power(np.clip(1 - n[2], 0, 1), 3) * np.float32(0.05)
    edge = lit_P * (1 - lit_P)
    out = np.empty_like(albedo_3P)
    # Light that enters skin leaves a little further on, red the farthest: each channel wraps round by its own amount.
    for c, (wrap, bleed) in enumerate(((0.32, 0.25), (0.20, 0.0), (0.15, -0.08))):
        diffuse = np.clip((facing + wrap) / (1 + wrap), 0, 1) * (lit_P + bleed * edge)
        light_here = diffuse * key[c] + up * (sky[c] - ground[c]) + ground[c]
        out[c] = albedo_3P[c] * albedo_3P[c] * light_here + shine * key[c] + rim * sky[c]
    return _expose(out)


def shade_hair(albedo_3P: Array, normal_3P: Array, down: Array, scene: Scene) -> Array:
    """Colours (3, P) uint8 of hair.

    Strands mirror light in a band across them: what counts is the angle between the strand and the half vector
    (J. Kajiya, T. Kay, SIGGRAPH 1989, section 4.2).

    Args:
        albedo_3P: sRGB, 0 .. 1.
        normal_3P: in camera coordinates, of any length.
        down: (3,) direction in which strands hang, before they follow the surface.
        scene: the light.
    """
    n = _unit(normal_3P)
    light, (key, sky, ground) = scene.towards_light(), _colours(scene)
    inner = n[2] < -0.05  # the far side of the hair, seen through the opening for the face
    n *= np.where(inner, np.float32(-1), np.float32(1))
    facing = np.clip((light @ n + 0.25) / 1.25, 0, 1)
    up = 0.5 + 0.5 * n[1]
    along = _unit(down[:, None] - n * (down @ n))
    across = _half(light) @ along
    band = _power(np.clip(1 - across * across, 0, 1), 14) * facing
    dim = np.where(inner, np.float32(0.35), np.float32(1))
    out = np.empty_like(albedo_3P)
    for c in range(3):
        light_here = facing * (1.05 * key[c]) + up * (sky[c] - ground[c]) + ground[c]
        a = albedo_3P[c]
        out[c] = (a * a * light_here + band * (0.018 + 0.10 * a) * key[c]) * dim
    return _expose(out)


def _colours(scene: Scene) -> list[tuple[float, float, float]]:
    return [scene.key, scene.sky, scene.ground]


def _half(light: Array) -> Array:
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    return half


def _unit(vectors_3P: Array) -> Array:
    x, y, z = vectors_3P
    out: Array = vectors_3P / (np.sqrt(x * x + y * y + z * z) + np.float32(1e-6))
    return out


def _power(x: Array, n: int) -> Array:
    """``x ** n`` by squaring: NumPy's own takes ten times as long."""
    out: Array | None = None
    while n:
        if n & 1:
            out = x if out is None else out * x
        n >>= 1
        x = x * x if n else x
    assert out is not None
    return out


def _expose(linear: Array) -> Array:
    """Film-like curve and gamma to uint8."""
    dark = np.exp(np.clip(linear, 0, 8) * np.float32(-1.25))
    out: Array = (np.sqrt(1 - dark) * np.float32(255)).astype(np.uint8)
    return out
