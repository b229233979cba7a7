"""What makes a made-up person that person: every number here is drawn once and holds for all pictures.

Lengths are in half head widths (about 7.5 cm); x points to the image's right, y up, z to the camera; y = 0 is the
line through the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 unless a docstring says otherwise
Rng = np.random.Generator

# sRGB albedo of skin from the least to the most melanin.
_SKIN = np.array(
    [
        (0.95, 0.80, 0.72),
        (0.90, 0.71, 0.60),
        (0.80, 0.60, 0.46),
        (0.66, 0.46, 0.33),
        (0.47, 0.31, 0.22),
        (0.33, 0.21, 0.16),
    ]
)
# black, dark brown, brown, chestnut, auburn, dark blond, blond, grey
_HAIR = np.array(
    [
        (0.09, 0.08, 0.08),
        (0.16, 0.11, 0.08),
        (0.27, 0.18, 0.12),
        (0.36, 0.22, 0.13),
        (0.47, 0.22, 0.11),
        (0.52, 0.40, 0.25),
        (0.72, 0.58, 0.37),
        (0.56, 0.55, 0.54),
    ]
)
# dark brown, brown, hazel, green, grey, blue
_IRIS = np.array(
    [
        (0.20, 0.11, 0.06),
        (0.33, 0.19, 0.09),
        (0.42, 0.32, 0.15),
        (0.36, 0.43, 0.26),
        (0.42, 0.47, 0.50),
        (0.30, 0.46, 0.62),
    ]
)


@dataclass(frozen=True)
class Traits:
    """One person."""

    # Head: factors on an average outline, from the crown to the chin, and heights.
    outline: Array  # (7,) half widths at crown, temple, eyes, cheekbone, mouth, jaw, chin, about 1
    top: float  # y of the crown
    bottom: float  # y of the chin, negative
    depth: float  # of the face in front of the ears
    forehead_slope: float
    cheekbone: float
    cheek: float  # fullness below the cheekbone
    chin: float  # how far it juts out
    chin_cleft: float
    brow_ridge: float
    # Eyes and brows.
    eye_x: float
    eye_w: float  # half width of the opening
    eye_h: float  # half height, as a part of eye_w
    eye_tilt: float  # rad, outer corner up
    eye_fold: float  # height of the crease over the lid
    eye_depth: float
    eye_bag: float
    iris: Array  # (3,)
    iris_r: float
    brow_y: float
    brow_arch: float
    brow_tilt: float
    brow_w: float  # thickness
    brow_in: float  # x of the inner end
    brow_out: float
    brow_dark: float
    # Nose.
    nose_y: float  # of the tip
    nose_h: float  # how far the tip stands out
    nose_w: float  # half width at the wings
    bridge_h: float
    bridge_w: float
    bridge_hump: float
    tip: float  # size of the ball
    nose_x: float  # crookedness
    # Mouth.
    mouth_y: float
    mouth_w: float  # half width
    lip_up: float
    lip_low: float
    lip_curve: float  # corners up when at rest
    lip_bow: float
    lip: Array  # (3,) albedo
    mouth_tilt: float
    # Ears.
    ear: float  # size
    ear_out: float  # rad
    # Skin.
    skin: Array  # (3,)
    melanin: float  # 0 .. 1
    ruddy: float
    freckles: float
    age: float  # 0 .. 1, wrinkles
    moles: Array  # (n, 3) x, y, radius
    # Hair.
    hair: Array  # (3,)
    style: str
    hairline: float
    parting: float  # -1 .. 1
    volume: float
    wave: float
    length: float  # y where long hair ends
    grey: float
    beard: str
    beard_dark: float
    glasses: str
    frame: Array  # (3,)
    skin_seed: int


def draw_traits(rng: Rng) -> Traits:
    """Draw one person."""

    def around(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.normal(), -2.1, 2.1))

    male = rng.random() < 0.5
    m = 1.0 if male else -1.0
    age = float(rng.beta(1.5, 2.2))
    melanin = float(np.clip(rng.beta(1.2, 1.5), 0.02, 0.98))
    skin = _blend(_SKIN, melanin * 5) * np.clip(rng.normal(1, 0.03, 3), 0.93, 1.07)
    grey = float(np.clip(age * 1.9 - rng.uniform(0.9, 1.9), 0, 0.9))
    shade = min(rng.gamma(1.6, 1.5), 6.0) * (1 - melanin) ** 0.6
    hair = _blend(_HAIR, shade) * rng.uniform(0.85, 1.15)
    hair = hair * (1 - grey) + _HAIR[7] * rng.uniform(0.9, 1.25) * grey
    iris = _blend(_IRIS, min(rng.gamma(1.6, 1.6), 5.0) * (1 - melanin) ** 0.8) * rng.uniform(0.85, 1.15)
    lip = skin * np.array([0.93, 0.66, 0.66]) * rng.uniform(0.92, 1.06) + (0 if male else 0.02)
    if not male and rng.random() < 0.35:
        lip = lip * 0.45 + 0.55 * np.array([rng.uniform(0.55, 0.8), rng.uniform(0.1, 0.3), rng.uniform(0.15, 0.35)])
    heavy = rng.normal() * 0.6  # broad faces are broad all over
    outline = np.array([1, 1, 1, 1, 1.02, 1.05, 1.12]) + np.array(
        [0.02, 0.03, 0.03, 0.045, 0.06, 0.08, 0.13]
    ) * np.clip(rng.normal(size=7), -2, 2)
    outline += heavy * np.array([0.0, 0.005, 0.015, 0.03, 0.06, 0.08, 0.08]) + m * np.array(
        [0, 0, 0, -0.01, 0.02, 0.04, 0.05]
    )
    if male:
        style = rng.choice(
            ["short", "crop", "quiff", "buzz", "bald", "curly", "long"], p=[0.3, 0.2, 0.17, 0.12, 0.08, 0.08, 0.05]
        )
        beard = rng.choice(["none", "stubble", "moustache", "goatee", "full"], p=[0.42, 0.23, 0.08, 0.11, 0.16])
    else:
        style = rng.choice(["long", "bob", "fringe", "bun", "curly", "crop"], p=[0.32, 0.2, 0.18, 0.13, 0.12, 0.05])
        beard = "none"
    glasses = rng.choice(["none", "round", "square", "oval"], p=[0.78, 0.08, 0.08, 0.06])
    n_moles = int(rng.integers(0, 3))
    moles = np.stack(
        [rng.uniform(-0.75, 0.75, n_moles), rng.uniform(-1.25, 0.75, n_moles), rng.uniform(0.015, 0.032, n_moles)], 1
    )
    mouth_y = around(-0.92, 0.045)
    return Traits(
        outline=outline.astype(np.float32),
        top=around(1.52, 0.05),
        bottom=around(-1.53 - 0.03 * m, 0.075),
        depth=around(1.0, 0.05),
        forehead_slope=around(0.62, 0.07),
        cheekbone=around(0.045, 0.03),
        cheek=around(0.02 + 0.02 * heavy, 0.035),
        chin=around(0.07 + 0.02 * m, 0.04),
        chin_cleft=float(rng.random() < 0.2) * 0.03,
        brow_ridge=around(0.045 + 0.035 * m, 0.022),
        eye_x=around(0.425, 0.03),
        eye_w=around(0.192, 0.016),
        eye_h=around(0.40, 0.065),
        eye_tilt=around(0.05, 0.075),
        eye_fold=around(0.36, 0.13),
        eye_depth=around(0.13, 0.03),
        eye_bag=float(np.clip(around(0.15 + 0.5 * age, 0.2), 0, 1)),
        iris=iris.astype(np.float32),
        iris_r=around(0.089, 0.005),
        brow_y=around(0.265 - 0.02 * m, 0.03),
        brow_arch=around(0.045 - 0.012 * m, 0.025),
        brow_tilt=around(0.02, 0.08),
        brow_w=around(0.056 + 0.014 * m, 0.013),
        brow_in=around(0.165, 0.03),
        brow_out=around(0.66, 0.04),
        brow_dark=float(np.clip(around(0.75 + 0.08 * m, 0.13), 0.4, 1)),
        nose_y=around(-0.5, 0.045),
        nose_h=around(0.235, 0.045),
        nose_w=around(0.195 + 0.03 * melanin + 0.008 * m, 0.026),
        bridge_h=around(0.09, 0.03),
        bridge_w=around(0.095, 0.015),
        bridge_hump=around(0.0, 0.022),
        tip=around(0.06, 0.018),
        nose_x=around(0.0, 0.015),
        mouth_y=mouth_y,
        mouth_w=around(0.345, 0.033),
        lip_up=around(0.078 + 0.02 * melanin - 0.006 * m, 0.018),
        lip_low=around(0.105 + 0.02 * melanin - 0.006 * m, 0.02),
        lip_curve=around(0.0, 0.02),
        lip_bow=around(0.22, 0.08),
        lip=lip.astype(np.float32),
        mouth_tilt=around(0.0, 0.02),
        ear=around(1.0, 0.11),
        ear_out=around(0.38, 0.13),
        skin=np.clip(skin, 0, 1).astype(np.float32),
        melanin=melanin,
        ruddy=around(0.5, 0.25),
        freckles=max(0.0, around(0.1, 0.5)) * (1 - melanin),
        age=age,
        moles=moles.astype(np.float32),
        hair=np.clip(hair, 0.02, 1).astype(np.float32),
        style=str(style),
        hairline=around(0.93 + (0.12 * age if male else 0), 0.06),
        parting=float(rng.uniform(-1, 1)),
        volume=around(0.13 - 0.02 * m, 0.035),
        wave=float(np.clip(rng.beta(1, 1.6) + 0.2 * melanin, 0, 1)),
        length=-1.15 if style == "bob" else float(rng.uniform(-2.5, -1.7)),
        grey=grey,
        beard=str(beard),
        beard_dark=float(rng.uniform(0.55, 0.95)),
        glasses=str(glasses),
        frame=np.asarray(
            rng.choice([(0.05, 0.05, 0.06), (0.25, 0.14, 0.08), (0.5, 0.45, 0.35), (0.35, 0.06, 0.08)]), np.float32
        ),
        skin_seed=int(rng.integers(1 << 31)),
    )


def _blend(table: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    rows = np.arange(len(table))
    return np.array([np.interp(at, rows, table[:, c]) for c in range(3)])
