"""What scores of pairs say at an operating point: thresholds, histograms, and the pairs that went most wrong.

Shapes: P pairs, E bins of a histogram, n pairs asked for. Memory beyond the inputs: one copy of the impostor scores
(0.12 GiB for the 15.7 million pairs of IJB-C) and blocks of a million pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.roc import FAR_GRID, Roc

_PAIRS_PER_BLOCK = 1 << 20
_FINE_ENOUGH = 2_000  # pairs of a kind that are enough for bins of 0.01

Scores = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]] | NDArray[np.bool_]


@dataclass(frozen=True)
class OperatingPoint:
    """The point of the curve that stands for one FAR: a pair is accepted where its score is above the threshold."""

    far: float  # asked for
    resolved: bool  # at least one impostor pair
    tar: float  # of the nearest point of the curve, as in the table
    threshold: float  # -inf where every pair is accepted
    false_accepts: int  # impostor pairs above the threshold
    false_rejects: int  # genuine pairs not above it


def operating_points(
    curve: Roc, scores: Scores, labels: Labels, fars: Sequence[float] = FAR_GRID
) -> list[OperatingPoint]:
    """Find the threshold behind the TAR that the curve gives at each FAR.

    The curve's nearest point accepts k impostor pairs. The lowest threshold that does so is the score of the
    impostor pair ranked k + 1, "accepted" meaning above it; the TAR there is ``curve.tar_at``.

    Args:
        curve: made from ``scores`` and ``labels``.
        scores: (P,) finite.
        labels: (P,) 1 for a pair of one person, 0 for two.
        fars: each gives one point.
    """
    impostor = scores[labels == 0]
    points = [_nearest_point(curve, far) for far in fars]
    accepts = [round(float(curve.far[point]) * len(impostor)) for point in points]
    ranks = sorted({len(impostor) - 1 - k for k in accepts if k < len(impostor)})
    if ranks:
        impostor.partition(ranks)
    return [
        OperatingPoint(
            far=far,
            resolved=curve.resolves(far),
            tar=float(curve.tar[point]),
            threshold=float(impostor[len(impostor) - 1 - k]) if k < len(impostor) else float("-inf"),
            false_accepts=k,
            false_rejects=round((1 - float(curve.tar[point])) * curve.genuine),
        )
        for far, point, k in zip(fars, points, accepts, strict=True)
    ]


def _nearest_point(curve: Roc, far: float) -> int:
    """Index of the point that ``curve.tar_at`` takes: nearest FAR, then highest TAR."""
    distance = np.abs(curve.far - far)
    near = np.flatnonzero(distance == distance.min())
    return int(near[curve.tar[near].argmax()])


def equal_error_rate(curve: Roc) -> float:
    """Give the error rate where false accepts and false rejects are closest to equal: the mean of both there."""
    reject = 1 - curve.tar
    at = int(np.abs(curve.far - reject).argmin())
    return float(curve.far[at] + reject[at]) / 2


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, _PAIRS_PER_BLOCK):
        yield slice(start, start + _PAIRS_PER_BLOCK)


def score_histogram(
    scores: Scores, labels: Labels
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count scores in bins of equal width: 0.01, or 0.02 where one kind has few pairs, wider past 250 bins.

    Args:
        scores: (P,) finite.
        labels: (P,) 1 or 0, both present.

    Returns:
        edges (E + 1,), and the shares of the genuine and of the impostor pairs in each bin, (E,) each, summing to 1.
    """
    kinds = (labels == 1, labels == 0)
    width = 0.01 if min(int(np.count_nonzero(kind)) for kind in kinds) >= _FINE_ENOUGH else 0.02
    low, high = float(scores.min()), float(scores.max())
    width = max(width, (high - low) / 250)
    first, last = int(np.floor(low / width)), int(np.floor(high / width)) + 1
    edges = np.arange(first, last + 1, dtype=np.float64) * width
    shares = []
    for kind in kinds:
        counts = np.zeros(len(edges) - 1)
        for block in _blocks(len(scores)):
            chosen = np.clip(scores[block][kind[block]], edges[0], edges[-1])  # rounding may leave one just outside
            counts += np.histogram(chosen, bins=len(edges) - 1, range=(edges[0], edges[-1]))[0]
        shares.append(counts / counts.sum())
    return edges, shares[0], shares[1]


def worst_pairs(scores: Scores, labels: Labels, genuine: bool, n: int) -> NDArray[np.int64]:
    """Find the genuine pairs of lowest score, or the impostor pairs of highest, worst first.

    Args:
        scores: (P,) finite.
        labels: (P,) 1 or 0.
        genuine: which kind.
        n: how many, fewer if there are fewer.

    Returns:
        indices of pairs, (at most n,).
    """
    sign = 1.0 if genuine else -1.0
    kept = np.empty(0, np.int64)
    for block in _blocks(len(scores)):
        found = block.start + np.flatnonzero(labels[block] == int(genuine))
        kept = np.concatenate([kept, found])
        if len(kept) > n:
            kept = kept[np.argpartition(sign * scores[kept], n)[:n]]
    return kept[np.lexsort((kept, sign * scores[kept]))]
