"""Probes with the weights of their people, drawn again.

Shapes: Q probes, R draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.bootstrap import draws_at_a_time, person_weights


class PersonDraws:
    """Draws people with replacement; every probe gets the number of times its person was drawn.

    Args:
        person_Q: (Q,) 0 to people - 1. The draws depend on the number of people alone, so that the same probes
            are drawn alike in several galleries.
        draws: R.
    """

    def __init__(self, person_Q: NDArray[np.int64], draws: int) -> None:
        self.person_Q, self.draws = person_Q, draws
        self.n_people = int(person_Q.max(initial=-1)) + 1

    def weights(self) -> Iterator[NDArray[np.float64]]:
        """The weights of one draw after the other: (Q,)."""
        step = draws_at_a_time(self.n_people)
        for start in range(0, self.draws, step):
            for weights_N in person_weights(self.n_people, start, min(start + step, self.draws)):
                yield weights_N[self.person_Q].astype(np.float64)


def weighted_threshold(
    scores: NDArray[np.floating[Any]], weights: NDArray[np.float64], wanted: float, beyond: bool = False
) -> float:
    """The score at which the weights of all scores so far reach ``wanted``; the last one where they do not.

    Args:
        scores: descending.
        weights: of each.
        wanted: sum of weights.
        beyond: take the first score that exceeds it instead.
    """
    if not len(scores):
        return float("nan")
    place = int(np.searchsorted(np.cumsum(weights), wanted, side="right" if beyond else "left"))
    return float(scores[min(place, len(scores) - 1)])
