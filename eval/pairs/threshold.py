"""The threshold at a stated false match rate, with the interval of that rate.

A pair is accepted where its cosine is at or above the threshold.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.threshold import Threshold
from eval.bootstrap import Resampler, share_interval, shares

LEAST_MATCHES = 10  # false matches: the rate's interval then reaches from about half of it to twice
_POINTS = 200


def find_threshold(impostor: NDArray[np.floating[Any]], rate: float) -> float:
    """The lowest cosine, halfway between two scores, at which at most ``rate`` of the impostor pairs are accepted.

    Raises:
        ValueError: a rate outside of 0 to 1, or one that is less than 10 of the impostor pairs.
    """
    n = len(impostor)
    check_rate(rate, n)
    falling = np.sort(impostor)[::-1]
    refused = falling[math.floor(rate * n + 1e-9)]
    above = falling[falling > refused]
    if not len(above):
        raise ValueError(f"no threshold accepts {rate:g} of the impostor pairs: they all score {refused:.4f}")
    middle = (float(refused) + float(above[-1])) / 2
    return min(middle if middle > refused else float(above[-1]), 1.0)  # two neighbours have nothing between them


def check_rate(rate: float, n: int) -> None:
    """Raise ValueError for a rate outside of 0 to 1, or one that is less than 10 of ``n`` impostor pairs."""
    if not 0 < rate < 1:
        raise ValueError(f"a false match rate is between 0 and 1, got {rate:g}")
    if rate * n < LEAST_MATCHES * (1 - 1e-9):
        needed = math.ceil(LEAST_MATCHES / rate - 1e-9)
        lowest = 1.005 * LEAST_MATCHES / n if n > 2 * LEAST_MATCHES else 1.0
        way_out = f"take {lowest:.3g} or higher, or a larger set" if lowest < 1 else "take a larger set"
        raise ValueError(
            f"a threshold at a false match rate of {rate:g} needs {needed:,} impostor pairs, so that {LEAST_MATCHES} "
            f"are accepted, but there are {n:,}: {way_out}"
        )


def measured_threshold(
    labels: NDArray[np.bool_],
    scores: NDArray[np.float64],
    resampler: Resampler,
    rate: float,
    model: str,
    flip: bool,
    color_order: str = "RGB",
) -> Threshold:
    """Find the threshold, and measure it on the same pairs.

    Args:
        labels: (P,) True for a pair of one person.
        scores: (P,) cosines.
        resampler: of these pairs.
        rate: wanted false match rate.
        model: its hash.
        flip: whether embeddings are sums with those of mirror images.
        color_order: in which the network got the channels.

    Raises:
        ValueError: see :func:`find_threshold`.
    """
    threshold = find_threshold(scores[~labels], rate)
    accepted = scores >= threshold
    (counts,) = resampler.counts(accepted.astype(np.int8), n_bins=2)
    drawn = np.clip(shares(counts.impostor_RB[:, 1], counts.impostor_RB.sum(axis=1)), 0, 1)
    low, high = share_interval(drawn, resampler.trials[1])
    return Threshold(
        threshold=threshold,
        false_match_rate=float(accepted[~labels].mean()),
        false_match_rate_interval=(low, high) if low == low else (0.0, 1.0),  # too few people tell nothing
        true_match_rate=float(accepted[labels].mean()),
        genuine_pairs=int(labels.sum()),
        impostor_pairs=int((~labels).sum()),
        model=model,
        flip=flip,
        curve=_curve(labels, scores, threshold),
        color_order=color_order,
    )


def _curve(labels: NDArray[np.bool_], scores: NDArray[np.float64], threshold: float) -> dict[str, list[float]]:
    """Rates at cosines that lie evenly over the scores' range and densely at low false match rates."""
    low, high = float(scores.min()), float(scores.max())
    impostor = np.sort(scores[~labels])
    shares = np.geomspace(1 / len(impostor), 1, 120)
    tail = np.quantile(impostor, 1 - shares)
    places = np.unique(np.clip(np.r_[np.linspace(low, high, 79), tail, threshold], -1, 1))[:_POINTS]
    genuine = np.sort(scores[labels])
    return {
        "scores": places.tolist(),
        "false_match_rate": (1 - np.searchsorted(impostor, places) / len(impostor)).tolist(),
        "true_match_rate": (1 - np.searchsorted(genuine, places) / len(genuine)).tolist(),
    }
