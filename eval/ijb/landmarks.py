"""Whether the landmarks of a list are those of faces: a list in another order gives figures that mean nothing.

Shapes: N images; (N, 5, 2) landmarks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder.landmarks import SUSPECT_PX, check_list
from utils.distributed import get_rank
from utils.log import log

_NAMED = 3


def check_landmarks(path: Path, names: list[str], landmarks: NDArray[np.float64]) -> None:
    """Measure how far each face stays from the template after alignment; warn of those that lie badly.

    Raises:
        ValueError: another order fits more than 5 % of the faces far better, or more than half fit in none.
    """
    bad, misplaced = check_list(path, landmarks)
    if bad.any() and get_rank() == 0:
        first = ", ".join(f"line {row + 1} {names[row]}" for row in np.flatnonzero(bad)[:_NAMED])
        log.warning(
            "%s: the landmarks of %d of %d images miss a face's places by more than %g of 112 pixels (%s%s): faces "
            "seen from the side, or not found by the detector; %d of them fit another order",
            path,
            bad.sum(),
            len(names),
            SUSPECT_PX,
            first,
            ", ..." if bad.sum() > _NAMED else "",
            misplaced.sum(),
        )
