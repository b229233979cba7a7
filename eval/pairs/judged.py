"""A set's pairs after evaluation: cosines, decisions, and intervals by drawing people again.

Shapes: n pairs, 2n images, D embedding size, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.bootstrap import (
    LEAST_TRIALS,
    NOTHING,
    SEED,
    Counts,
    Interval,
    Resampler,
    bounded_fars,
    interval,
    linked_people,
    share_interval,
    shares,
    tar_draws,
    tar_intervals,
)
from eval.pairs.bin_file import PairSet
from eval.pairs.distinct import DistinctImages
from eval.pairs.protocol import FARS, PairResult, evaluate_embeddings


@dataclass(frozen=True)
class Judged:
    """The pairs of one set, both kinds present and all embeddings finite."""

    name: str
    result: PairResult
    issame: NDArray[np.bool_]  # (n,)
    scores: NDArray[np.float64]  # (n,) cosines
    resampler: Resampler
    people_by: str  # how people are known
    groups: dict[str, Judged]  # its parts, by group; empty without groups
    note: str = ""  # which groups are left out, and why

    @property
    def drawn(self) -> str:
        """What the intervals' draws are made of."""
        return self.resampler.method(self.people_by)

    def accuracy_interval(self) -> Interval:
        """Of the accuracy; each fold's threshold stays."""
        (counts,) = self.resampler.counts(self.result.correct.astype(np.int8), n_bins=2)
        return share_interval(accuracy_draws(counts), self.resampler.trials_together)

    def tar_interval(self) -> dict[float, Interval]:
        """Of the TAR at each FAR that is resolved; the threshold varies with the draw."""
        return tar_intervals(self.resampler, self.scores, FARS)


def pair_cosines(embeddings_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each pair, 0 where an embedding is zero: (n,)."""
    first_nD, second_nD = (embeddings_ND[k::2].astype(np.float64) for k in (0, 1))
    lengths = np.linalg.norm(first_nD, axis=1) * np.linalg.norm(second_nD, axis=1)
    products = np.einsum("nd,nd->n", first_nD, second_nD)
    cosines: NDArray[np.float64] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines


def accuracy_draws(counts: Counts) -> NDArray[np.float64]:
    """The share of pairs in bin 1 in each draw: (R,)."""
    both_RB = counts.genuine_RB + counts.impostor_RB
    return shares(both_RB[:, 1], both_RB.sum(axis=1))


def can_be_judged(pairs: PairSet, embeddings_ND: NDArray[np.float32]) -> bool:
    """Whether there is a curve: finite embeddings and pairs of both kinds."""
    genuine = int(np.count_nonzero(pairs.issame))
    return bool(np.isfinite(embeddings_ND).all()) and 0 < genuine < len(pairs.issame)


def judge(
    name: str, pairs: PairSet, embeddings_ND: NDArray[np.float32], result: PairResult, folds: int, seed: int = SEED
) -> Judged:
    """Score a set's pairs, and those of each of its groups by themselves.

    Args:
        name: the set's.
        pairs: with pairs of both kinds.
        embeddings_ND: (2n, D) finite, as the network gives them.
        result: of the same embeddings.
        folds: of the accuracy of each group.
        seed: of the draws.
    """
    columns = pairs.columns
    people_by = columns.people_by if columns is not None else ""
    if columns is not None and columns.first is not None and columns.second is not None:
        first, second = columns.first, columns.second
    else:
        image = DistinctImages(pairs.encoded).place_N
        first, second = linked_people(pairs.issame, image[0::2], image[1::2])
        people_by = "as genuine pairs join their images"
    scores = pair_cosines(embeddings_ND)
    parts: dict[str, Judged] = {}
    one_kind: list[str] = []
    if columns is not None and columns.groups is not None:
        for place, group in enumerate(sorted(set(columns.groups.tolist()) - {""})):
            own = columns.groups == group
            issame = pairs.issame[own]
            if issame.all() or not issame.any():
                one_kind.append(group)
                continue
            part = evaluate_embeddings(embeddings_ND[np.repeat(own, 2)], issame, folds)
            resampler = Resampler(issame, first[own], second[own], seed=seed + 1 + place)
            parts[group] = Judged(group, part, issame, scores[own], resampler, people_by, {})
    resampler = Resampler(pairs.issame, first, second)
    note = f"groups with pairs of one kind alone are left out: {', '.join(one_kind)}" if one_kind else ""
    return Judged(name, result, pairs.issame, scores, resampler, people_by, parts, note)


@dataclass(frozen=True)
class Difference:
    """How much better the second model is than the first on one figure of the same pairs."""

    figure: str
    first: float
    second: float
    interval: Interval  # of second - first; nan with too few people


def differences(first: Judged, second: Judged, fars: Sequence[float] = FARS) -> list[Difference]:
    """Compare two models on one set; both are drawn together, so that what they share does not widen the interval."""
    draws = first.resampler
    one, other = (judged.result.correct.astype(np.int8) for judged in (first, second))
    counts = draws.counts(one, other, n_bins=2)
    gain = accuracy_draws(counts[1]) - accuracy_draws(counts[0])
    bounds = interval(gain) if draws.trials_together >= LEAST_TRIALS else NOTHING
    found = [Difference("accuracy", first.result.accuracy, second.result.accuracy, bounds)]
    bounded = bounded_fars(draws, fars, [first.scores, second.scores])
    resolved = [k for k, far in enumerate(fars) if far in bounded]
    tars = tar_draws(draws, [first.scores, second.scores], [fars[k] for k in resolved])
    for column, k in enumerate(resolved):
        bounds = interval(tars[1][:, column] - tars[0][:, column])
        found.append(
            Difference(f"TAR at {fars[k]:g}", float(first.result.tar[k]), float(second.result.tar[k]), bounds)
        )
    return found
