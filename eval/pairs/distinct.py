"""Which images of a set are the same bytes: each is embedded once, though pairs may name it many times.

Shapes: N images, U different ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class DistinctImages:
    """The different images of a set, in the order in which they first come.

    Args:
        encoded: N files.
    """

    def __init__(self, encoded: Sequence[bytes]) -> None:
        places: dict[bytes, int] = {}
        self.place_N: NDArray[np.int64] = np.array(
            [places.setdefault(image, len(places)) for image in encoded], np.int64
        )
        self.first_U: NDArray[np.int64] = np.unique(self.place_N, return_index=True)[
            1
        ]  # the number of the first such image
        self.times_U: NDArray[np.int64] = np.bincount(self.place_N)  # how often it comes

    def __len__(self) -> int:
        return len(self.first_U)

    def count(self, numbers: Iterable[int]) -> int:
        """How many of the N images are the same as these ``numbers`` of first ones."""
        return int(self.times_U[self.place_N[np.array(list(numbers), np.int64)]].sum())
