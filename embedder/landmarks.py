"""Whether five landmarks are where a face has them, and which known order fits if they are not.

The measure is ``misfit`` in ``embedder/align.py``: the distance that stays between landmarks and template after
alignment. A face turned away from the camera has one too; another order of the same ten numbers never fits it.

Shapes: (N, 5, 2) landmarks as x, y: left eye, right eye, nose, left and right corner of the mouth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedder.align import misfit, similarity_transform

SUSPECT_PX = 10.0  # of a 112 x 112 face: beyond it another order is looked for
IMPOSSIBLE_PX = 20.0  # beyond it no face lies, from whatever side it is seen
UPRIGHT_DEG = 60.0  # a face is seldom turned further in its photo
EXPECTED = (
    "expected x1,y1,...,x5,y5 in pixels: left eye, right eye, nose, left and right corner of the mouth, left as the "
    "viewer sees it"
)
_REFUSED_SHARE = 0.05  # of a list's faces that another order fits far better: no detector errs so often in this way
_UNLIKE_SHARE = 0.5  # of faces that lie badly in every order
_BLOCK = 65_536  # faces measured at once
_FITTING = 0.5  # another order is named where its misfit is below this share of the one that was given
_TILT_PX = 10.0  # what a quarter turn counts against an order: a mirrored face also fits lying on its side

# How the ten numbers are laid out -> where x1,y1,...,x5,y5 stand in them.
_LAYOUTS = {
    "": list(range(10)),
    "x1,...,x5,y1,...,y5": [0, 5, 1, 6, 2, 7, 3, 8, 4, 9],
    "y before x": [1, 0, 3, 2, 5, 4, 7, 6, 9, 8],
    "y1,...,y5,x1,...,x5": [5, 0, 6, 1, 7, 2, 8, 3, 9, 4],
}
# In which order the points come -> where the wanted ones stand among them.
_POINTS = {
    "": [0, 1, 2, 3, 4],
    "left and right exchanged (the person's left first)": [1, 0, 2, 4, 3],
    "the eyes exchanged": [1, 0, 2, 3, 4],
    "the corners of the mouth exchanged": [0, 1, 2, 4, 3],
    "the nose first": [1, 2, 0, 3, 4],
    "the nose last": [0, 1, 4, 2, 3],
}


class Order(NamedTuple):
    """A known order of ten numbers."""

    name: str
    places: list[int]  # (10,) where x1,y1,...,x5,y5 stand in what was given

    def reorder(self, landmarks: ArrayLike) -> NDArray[np.float64]:
        """Landmarks (..., 5, 2) given in this order, in the project's."""
        given = np.asarray(landmarks, np.float64)
        return given.reshape(*given.shape[:-2], 10)[..., self.places].reshape(given.shape)


ORDERS = [
    Order(" and ".join(filter(None, (layout, points))), [layout_at[2 * p + k] for p in points_at for k in (0, 1)])
    for layout, layout_at in _LAYOUTS.items()
    for points, points_at in _POINTS.items()
    if layout or points
]


def is_relative(landmarks: ArrayLike) -> NDArray[np.bool_]:
    """Which faces (N,) have all their landmarks within 0 to 1: shares of the image's sides, not pixels."""
    points = np.asarray(landmarks, np.float64)
    return np.asarray(((points >= -0.5) & (points <= 1.5)).all(axis=(-2, -1)))


def turned_deg(landmarks: ArrayLike) -> NDArray[np.float64]:
    """How far each face (N,) is turned in its photo, clockwise as it is seen: -180 to 180 degrees."""
    matrix = similarity_transform(landmarks)  # turns it back
    return np.asarray(np.degrees(np.arctan2(-matrix[..., 1, 0], matrix[..., 0, 0])))


def fitting_orders(landmarks: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Measure faces, and find the known order that fits those that lie badly.

    Args:
        landmarks: (N, 5, 2), none of them all in one point.

    Returns:
        (N,) misfits in pixels of a 112 x 112 face, and (N,) the place in :data:`ORDERS` of the order that fits far
        better, -1 where none does or none is looked for.
    """
    given = np.asarray(landmarks, np.float64)
    own = misfit(given)
    found = np.full(len(given), -1)
    suspects = np.flatnonzero(own > SUSPECT_PX)
    if len(suspects):
        costs = np.stack([_cost(order.reorder(given[suspects]), own[suspects]) for order in ORDERS])
        best = costs.argmin(axis=0)
        found[suspects] = np.where(np.isfinite(costs.min(axis=0)), best, -1)
    return own, found


def check_face(landmarks: ArrayLike, width: int, height: int) -> str:
    """Check one face's landmarks against its photo of ``width`` x ``height`` pixels.

    Returns:
        a warning, "" where they resemble a face.

    Raises:
        ValueError: they are relative, lie outside the photo, stand in another order, which is named, or resemble no
            face.
    """
    points = np.asarray(landmarks, np.float64)
    if is_relative(points):
        raise ValueError(
            f"the landmarks lie within {points.min():g} to {points.max():g}: shares of the photo's sides; multiply x "
            f"by its width, {width}, and y by its height, {height}"
        )
    (own,), (found,) = fitting_orders(points[None])
    if found >= 0:
        order = ORDERS[found]
        right = ",".join(f"{x:.7g}" for x in order.reorder(points).ravel())
        raise ValueError(
            f"the landmarks miss a face's places by {own:.1f} of 112 pixels; they seem to be given with "
            f"{order.name}: {EXPECTED}. If so, give {right}"
        )
    if own > IMPOSSIBLE_PX:
        raise ValueError(
            f"the landmarks miss a face's places by {own:.1f} of 112 pixels, in every order known here: {EXPECTED}"
        )
    inside = (points >= 0).all(axis=-1) & (points < (width, height)).all(axis=-1)
    if not inside.any():
        raise ValueError(
            f"all landmarks lie outside the photo of {width} x {height}: they belong to another image, or to the one "
            "that this was cut from or resized from"
        )
    if own > SUSPECT_PX:
        return f"its landmarks miss a face's places by {own:.1f} of 112 pixels: a face seen from the side, or wrong"
    turned = float(turned_deg(points))
    return f"its face is turned by {turned:.0f} degrees: {_cause(turned)}" if abs(turned) > UPRIGHT_DEG else ""


def check_pixels(source: object, landmarks: NDArray[np.float64], lines: Sequence[int] | None = None) -> None:
    """Refuse the landmarks (N, 5, 2) of a list that are shares of the images' sides.

    Args:
        source: the list, for the message.
        landmarks: of all its faces.
        lines: where each stands in it; default: 1, 2, ...

    Raises:
        ValueError: more than half of the faces lie within 0 to 1.
    """
    relative = is_relative(landmarks)
    if relative.mean() > _UNLIKE_SHARE:
        raise ValueError(
            f"{source}: the landmarks of {relative.sum():,} of {len(landmarks):,} images lie within 0 to 1, from "
            f"line {_first(relative, lines)} on: shares of the sides; multiply x by the width and y by the height"
        )


def check_list(
    source: object, landmarks: NDArray[np.float64], lines: Sequence[int] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Refuse a list of landmarks (N, 5, 2) that are not those of faces; arguments as :func:`check_pixels`.

    Returns:
        which faces (N,) lie badly, and which of these fit another order far better.

    Raises:
        ValueError: another order fits more than 5 % of the faces far better, more than half fit in none, or more than
            half are turned by more than 60 degrees.
    """
    n = len(landmarks)
    blocks = [fitting_orders(landmarks[start : start + _BLOCK]) for start in range(0, n, _BLOCK)]
    order = np.concatenate([block[1] for block in blocks])
    bad, misplaced = np.concatenate([block[0] for block in blocks]) > SUSPECT_PX, order >= 0
    if misplaced.mean() > _REFUSED_SHARE:
        likely = ORDERS[np.bincount(order[misplaced]).argmax()]
        raise ValueError(
            f"{source}: the landmarks of {misplaced.sum():,} of {n:,} images lie as no face has them (line "
            f"{_first(misplaced, lines)} first); they seem to be given with {likely.name}: {EXPECTED}; write the "
            "list anew"
        )
    if bad.mean() > _UNLIKE_SHARE:
        raise ValueError(
            f"{source}: the landmarks of {bad.sum():,} of {n:,} images miss a face's places by more than "
            f"{SUSPECT_PX:g} of 112 pixels (line {_first(bad, lines)} first): {EXPECTED}"
        )
    turned = turned_deg(landmarks)
    lying = ~bad & (np.abs(turned) > UPRIGHT_DEG)
    if lying.mean() > _UNLIKE_SHARE:
        usual = float(np.median(np.abs(turned[lying])))
        raise ValueError(
            f"{source}: the faces of {lying.sum():,} of {n:,} images are turned by more than {UPRIGHT_DEG:g} "
            f"degrees, usually by {usual:.0f} (line {_first(lying, lines)} first): {_cause(usual)}; {EXPECTED}"
        )
    return bad, misplaced


def _cause(turned: float) -> str:
    """What may have turned a face by so many degrees."""
    if abs(turned) > 135:
        return "it is upside down, or left and right are exchanged and y counts upwards"
    return "it lies on its side, or y stands before x and left and right are exchanged"


def _first(chosen: NDArray[np.bool_], lines: Sequence[int] | None) -> int:
    """The line of the first face that is chosen."""
    row = int(chosen.argmax())
    return row + 1 if lines is None else lines[row]


def _cost(landmarks: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """What speaks against an order, in pixels, (N,); infinite where it does not fit far better than ``own``."""
    left = misfit(landmarks)
    matrix = similarity_transform(landmarks)
    turn_rad = np.abs(np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    return np.where(left < _FITTING * own, left + _TILT_PX * turn_rad / (np.pi / 2), np.inf)
