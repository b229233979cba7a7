"""Whether the landmarks of a list are those of faces: a list in another order gives figures that mean nothing.

Shapes: N images; (N, 5, 2) landmarks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder.landmarks import EXPECTED, ORDERS, SUSPECT_PX, fitting_orders, is_relative
from utils.distributed import get_rank
from utils.log import log

_REFUSED_SHARE = 0.05  # of a list's faces that another order fits far better: no detector errs so often in this way
_UNLIKE_SHARE = 0.5  # of faces that lie badly in every order
_BLOCK = 65_536  # faces measured at once
_NAMED = 3


def check_pixels(path: Path, landmarks: NDArray[np.float64]) -> None:
    """Refuse landmarks (N, 5, 2) that are shares of the images' sides.

    Raises:
        ValueError: more than half of the faces lie within 0 to 1.
    """
    relative = is_relative(landmarks)
    if relative.mean() > _UNLIKE_SHARE:
        raise ValueError(
            f"{path}: the landmarks of {relative.sum():,} of {len(landmarks):,} images lie within 0 to 1, from line "
            f"{int(relative.argmax()) + 1} on: shares of the sides; multiply x by the width and y by the height"
        )


def check_landmarks(path: Path, names: list[str], landmarks: NDArray[np.float64]) -> None:
    """Measure how far each face stays from the template after alignment; warn of those that lie badly.

    Raises:
        ValueError: another order fits more than 5 % of the faces far better, or more than half fit in none.
    """
    blocks = [fitting_orders(landmarks[start : start + _BLOCK]) for start in range(0, len(landmarks), _BLOCK)]
    misfit_px = np.concatenate([block[0] for block in blocks])
    order = np.concatenate([block[1] for block in blocks])
    bad, misplaced, n = misfit_px > SUSPECT_PX, order >= 0, len(names)
    if misplaced.mean() > _REFUSED_SHARE:
        likely = ORDERS[np.bincount(order[misplaced]).argmax()]
        raise ValueError(
            f"{path}: the landmarks of {misplaced.sum():,} of {n:,} images lie as no face has them (line "
            f"{int(misplaced.argmax()) + 1} first); they seem to be given with {likely.name}: {EXPECTED}; write the "
            "list anew"
        )
    if bad.mean() > _UNLIKE_SHARE:
        raise ValueError(
            f"{path}: the landmarks of {bad.sum():,} of {n:,} images miss a face's places by more than "
            f"{SUSPECT_PX:g} of 112 pixels (line {int(bad.argmax()) + 1} first): {EXPECTED}"
        )
    if bad.any() and get_rank() == 0:
        first = ", ".join(f"line {row + 1} {names[row]}" for row in np.flatnonzero(bad)[:_NAMED])
        log.warning(
            "%s: the landmarks of %d of %d images miss a face's places by more than %g of 112 pixels (%s%s): faces "
            "seen from the side, or not found by the detector; %d of them fit another order",
            path,
            bad.sum(),
            n,
            SUSPECT_PX,
            first,
            ", ..." if bad.sum() > _NAMED else "",
            misplaced.sum(),
        )
