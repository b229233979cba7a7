"""Confidence intervals by the bootstrap: the people of a test are drawn again, not its images.

Pairs that share a person are not independent, so people are drawn with replacement, each with the number of times it
was drawn as its weight. A genuine pair has the weight w of its person. An impostor pair of a and b has
``w_a + w_b - 1``, the first-order part of ``w_a * w_b``, so that sums over millions of pairs become sums over people
of what each takes part in. This counts the noise of single pairs twice, which widens intervals where people are in
few pairs; below three impostor pairs a person, impostor pairs themselves are drawn.

Shapes: P pairs, N people, R draws, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
NOTHING: Interval = (float("nan"), float("nan"))

DRAWS = 1_000
LEVEL = 0.95
SEED = 20_240_601
LEAST_PAIRS = 10  # impostor pairs that a FAR must be for an interval
LEAST_TRIALS = (
    5  # people, or pairs drawn by themselves, from which on there is an interval: draws of one never differ
)
_WIDEST_GAP = 0.5  # share of a FAR: between ties further apart, draws and curve read off different points
_FEW_PAIRS = 3  # impostor pairs a person, below which pairs are drawn
_PAIRS_PER_BLOCK = 1 << 20
_WEIGHTS_PER_BLOCK = 1 << 22
_WIDEST_TABLE = 1 << 22  # of numbers that are looked up

Labels = NDArray[np.integer[Any]] | NDArray[np.bool_]


def interval(values_R: NDArray[np.float64]) -> Interval:
    """The middle 95 % of draws; nan where one is infinite.

    Draws that are nan, such as those without any genuine pair, are skipped; nan where they are more than half.
    """
    known = values_R[~np.isnan(values_R)]
    if len(known) < max(1.0, len(values_R) / 2) or not np.isfinite(known).all():
        return NOTHING
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def shares(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """``part / whole``; nan where a draw holds nothing of the kind."""
    part, whole = np.broadcast_arrays(part, whole)
    out: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return out


def person_weights(n_people: int, start: int, stop: int, seed: int = SEED) -> NDArray[np.float32]:
    """How often each person is drawn in draws [start, stop): (stop - start, N), each row sums to N.

    Each draw has a generator of its own, so that any number of them can be made at a time.
    """
    rows = []
    for draw in range(start, stop):
        drawn = np.random.default_rng([seed, draw]).integers(0, n_people, n_people)
        rows.append(np.bincount(drawn, minlength=n_people).astype(np.float32))
    return np.stack(rows)


def draws_at_a_time(n_people: int) -> int:
    """How many draws of this many people are made at a time: 16 MiB of weights."""
    return max(1, _WEIGHTS_PER_BLOCK // max(1, n_people))


def share_interval(draws_R: NDArray[np.float64], n: int) -> Interval:
    """The interval of a share; where no draw has another value than 0 or 1, the rule of three: 3 / n from it.

    Args:
        draws_R: the share in each draw.
        n: independent trials behind it, such as people; below 5 there is no interval.
    """
    low, high = interval(draws_R) if n >= LEAST_TRIALS else NOTHING
    if low == high == 1:
        low = max(0.0, 1 - 3 / n)
    if low == high == 0:
        high = min(1.0, 3 / n)
    return low, high


def interval_text(bounds: Interval, digits: int = 2) -> str:
    """Write an interval of shares in percent: "94.10 to 95.62", "-" without one."""
    low, high = bounds
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}" if low == low else "-"


@dataclass(frozen=True)
class Counts:
    """What each draw holds in each bin; an impostor count may be slightly below 0, being first-order."""

    genuine_RB: NDArray[np.float64]
    impostor_RB: NDArray[np.float64]


class Resampler:
    """Draws the people of a list of pairs again, or its pairs where people are not known.

    Two resamplers of the same pairs and seed draw alike; what is counted in one call of :meth:`counts` is drawn
    together, so that two models can be compared on it.

    Args:
        labels: (P,) 1 for a pair of one person, 0 for two.
        first: (P,) person of each pair's first side, any integers; None where people are not known.
        second: (P,) person of the second side; of a genuine pair only ``first`` counts.
        draws: R.
        seed: of the draws.
    """

    def __init__(
        self,
        labels: Labels,
        first: NDArray[np.integer[Any]] | None = None,
        second: NDArray[np.integer[Any]] | None = None,
        draws: int = DRAWS,
        seed: int = SEED,
    ) -> None:
        self.genuine = np.asarray(labels).astype(bool)  # (P,)
        self.draws, self.seed = draws, seed
        self.first = self.second = None
        self.n_people = 0
        if first is not None and second is not None:
            self.first, self.second, self.n_people = numbered(first, second)

    @cached_property
    def impostor_by_people(self) -> bool:
        """Whether impostor pairs are drawn by their people: each is in enough of them."""
        return self.n_people > 0 and 2 * int((~self.genuine).sum()) >= _FEW_PAIRS * self.n_people

    def method(self, known: str = "") -> str:
        """Say what is drawn, for a table's note.

        Args:
            known: how people are known.
        """
        if not self.n_people:
            return "pairs drawn again (people are not known)"
        people = f"{self.n_people:,} people{f' ({known})' if known else ''} drawn again"
        return (
            people if self.impostor_by_people else f"{people}; impostor pairs, which share few people, by themselves"
        )

    @cached_property
    def trials(self) -> tuple[int, int]:
        """Independent trials behind shares of genuine and of impostor pairs, at most: their people, or pairs."""
        genuine = int(self.genuine.sum())
        impostor = len(self.genuine) - genuine
        return (
            min(genuine, self._people_of(self.genuine)) if self.n_people else genuine,
            min(impostor, self._people_of(~self.genuine)) if self.impostor_by_people else impostor,
        )

    @property
    def trials_together(self) -> int:
        """Independent trials behind shares of all pairs; where one kind has too few for an interval, those."""
        fewest = min(self.trials)
        return sum(self.trials) if fewest >= LEAST_TRIALS else fewest

    def _people_of(self, kind: NDArray[np.bool_]) -> int:
        assert self.first is not None
        assert self.second is not None
        seen = np.zeros(self.n_people, bool)
        for side in (self.first, self.second):
            seen[side[kind]] = True
        return int(seen.sum())

    def counts(self, *bins: NDArray[np.integer[Any]], n_bins: int) -> list[Counts]:
        """Count the pairs of each draw in bins.

        Memory: 12 * N * B bytes for each kind and list of bins, and 8 * R * B.

        Args:
            bins: (P,) each pair's bin, 0 to n_bins - 1; several, such as one a model, are drawn together.
            n_bins: B.
        """
        kinds = []
        for kind, by_people in ((self.genuine, self.n_people > 0), (~self.genuine, self.impostor_by_people)):
            both = kind is not self.genuine
            kinds.append(
                self._by_people(kind, bins, n_bins, both) if by_people else self._by_pairs(kind, bins, n_bins)
            )
        return [Counts(genuine, impostor) for genuine, impostor in zip(*kinds, strict=True)]

    def _by_people(
        self, kind: NDArray[np.bool_], bins: Sequence[NDArray[np.integer[Any]]], n_bins: int, both: bool
    ) -> list[NDArray[np.float64]]:
        assert self.first is not None
        assert self.second is not None
        sides = (self.first, self.second) if both else (self.first,)
        tables = [np.zeros((self.n_people, n_bins), np.float32) for _ in bins]
        for start in range(0, len(kind), _PAIRS_PER_BLOCK):
            block = slice(start, start + _PAIRS_PER_BLOCK)
            chosen = kind[block]
            for table, bin_P in zip(tables, bins, strict=True):
                own = bin_P[block][chosen]
                for side in sides:
                    cells = side[block][chosen].astype(np.int64) * n_bins + own
                    table += np.bincount(cells, minlength=table.size).reshape(table.shape)
        out = [np.empty((self.draws, n_bins)) for _ in bins]
        step = draws_at_a_time(self.n_people)
        for start in range(0, self.draws, step):
            stop = min(start + step, self.draws)
            weights_RN = person_weights(self.n_people, start, stop, self.seed)
            for table, drawn in zip(tables, out, strict=True):
                sums_RB = (weights_RN @ table).astype(np.float64)
                # Both sides count each pair twice: w_a + w_b - 1 is their sum less the pair itself.
                drawn[start:stop] = sums_RB - table.sum(axis=0, dtype=np.float64) / 2 if both else sums_RB
        return out

    def _by_pairs(
        self, kind: NDArray[np.bool_], bins: Sequence[NDArray[np.integer[Any]]], n_bins: int
    ) -> list[NDArray[np.float64]]:
        """Draw pairs: the bins of a draw are multinomial, jointly over all that is counted."""
        joint = np.zeros(int(kind.sum()), np.int64)
        for bin_P in bins:
            joint = joint * n_bins + bin_P[kind]
        cells, found = np.unique(joint, return_counts=True)
        total = int(found.sum())
        rng = np.random.default_rng([self.seed, int(kind is not self.genuine)])
        drawn_RC = rng.multinomial(total, found / max(total, 1), self.draws) if total else np.zeros((self.draws, 0))
        out = []
        for place in range(len(bins)):
            own = cells // n_bins ** (len(bins) - 1 - place) % n_bins
            table = np.zeros((self.draws, n_bins))
            np.add.at(table.T, own, drawn_RC.T)
            out.append(table)
        return out


def numbered(
    first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Number what occurs in two arrays from 0 on: the numbers, and how many there are."""
    if not len(first):
        return np.empty(0, np.int32), np.empty(0, np.int32), 0
    low, high = int(min(first.min(), second.min())), int(max(first.max(), second.max()))
    if high - low < max(_WIDEST_TABLE, len(first)):
        table = np.zeros(high - low + 1, np.int32)
        for side in (first, second):
            table[side - low] = 1
        places = np.cumsum(table, dtype=np.int32) - np.int32(1)
        return places[first - low], places[second - low], int(table.sum())
    names, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    sides = codes.astype(np.int32).reshape(2, -1)
    return sides[0], sides[1], len(names)


def linked_people(
    labels: Labels, first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """People as genuine pairs tell them: images or templates that are joined by genuine pairs are one person.

    Args:
        labels: (P,) 1 for a pair of one person, 0 for two.
        first: (P,) number of the image or template on the first side.
        second: (P,) on the second.

    Returns:
        a number of the person, (P,) for each side.
    """
    *codes, n_names = numbered(first, second)
    same = np.asarray(labels).astype(bool)
    smallest = np.arange(n_names, dtype=np.int32)  # of the images joined so far; falls until nothing changes
    a, b = codes[0][same], codes[1][same]
    while True:
        before = smallest.copy()
        low = np.minimum(smallest[a], smallest[b])
        np.minimum.at(smallest, a, low)
        np.minimum.at(smallest, b, low)
        smallest = smallest[smallest]
        if np.array_equal(before, smallest):
            return smallest[codes[0]], smallest[codes[1]]


def tar_draws(
    resampler: Resampler, scores: Sequence[NDArray[np.floating[Any]]], fars: Sequence[float]
) -> list[NDArray[np.float64]]:
    """The TAR at each FAR in each draw, for one or several models' scores of the same pairs.

    Pairs are counted above thresholds at impostor scores whose ranks lie densely around those that the FARs ask for;
    in each draw the TAR is read off between two of them, so that the threshold varies with the draw. 250 thresholds
    serve any number of pairs.

    Args:
        resampler: of the pairs.
        scores: (P,) of each model.
        fars: each at least one impostor pair.

    Returns:
        (R, len(fars)) for each model.
    """
    if not fars:
        return [np.empty((resampler.draws, 0)) for _ in scores]
    grids = [_thresholds(np.asarray(own)[~resampler.genuine], fars) for own in scores]
    n_bins = max(map(len, grids)) + 1
    bins = [np.searchsorted(grid, own).astype(np.int32) for grid, own in zip(grids, scores, strict=True)]
    out = []
    for counts, grid in zip(resampler.counts(*bins, n_bins=n_bins), grids, strict=True):
        far_RB, tar_RB = (
            _shares_above(drawn[:, : len(grid) + 1]) for drawn in (counts.impostor_RB, counts.genuine_RB)
        )
        rows = zip(far_RB, tar_RB, strict=True)
        out.append(np.array([_read_off(fars, far, tar) for far, tar in rows]))
    return out


def _read_off(fars: Sequence[float], far_B: NDArray[np.float64], tar_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """The TAR at each FAR; nan in a draw without pairs of one kind."""
    if np.isnan(far_B[-1]) or np.isnan(tar_B[-1]):
        return np.full(len(fars), np.nan)
    return np.interp(fars, np.maximum.accumulate(far_B), tar_B)


def _shares_above(drawn_RB: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of a draw's pairs above each threshold, the highest threshold first, from 0 on."""
    above = np.cumsum(drawn_RB[:, ::-1], axis=1)
    out: NDArray[np.float64] = np.c_[np.zeros(len(above)), shares(above, above[:, -1:])]
    return out


def _thresholds(impostor: NDArray[np.floating[Any]], fars: Sequence[float]) -> NDArray[np.floating[Any]]:
    """Impostor scores, ascending and each once, with which draws are counted around the FARs."""
    n = len(impostor)
    ranks: set[int] = set()
    for far in fars:
        k = far * n
        widest = 5.0 if k < 1_000 else 2.5
        around = np.round(k * np.geomspace(1 / widest, widest, 41)).astype(int)
        ranks.update(np.clip(around, 0, n - 1).tolist())
        ranks.update(range(min(n, 6 if k < 6 else 0)))
    places = sorted({n - 1 - rank for rank in ranks})
    return np.unique(np.partition(impostor, places)[places])


def tar_intervals(
    resampler: Resampler, scores: NDArray[np.floating[Any]], fars: Sequence[float]
) -> dict[float, Interval]:
    """The 95 % interval of the TAR at each FAR of :func:`bounded_fars`."""
    bounded = bounded_fars(resampler, fars, [scores])
    (draws,) = tar_draws(resampler, [scores], bounded)
    return {far: share_interval(draws[:, i], resampler.trials[0]) for i, far in enumerate(bounded)}


def bounded_fars(
    resampler: Resampler, fars: Sequence[float], scores: Sequence[NDArray[np.floating[Any]]]
) -> list[float]:
    """The FARs whose TAR has an interval.

    They are at least 10 impostor pairs: draws of fewer hold the truth far less often. No ties leave a gap in FAR of
    more than half of it there: the curve takes the nearest point, draws what lies between. None where either kind
    has fewer than 5 people.

    Args:
        resampler: of the pairs.
        fars: wanted.
        scores: (P,) of each model.
    """
    impostor = ~resampler.genuine
    n = int(impostor.sum())
    enough = [far for far in fars if far * n >= LEAST_PAIRS * (1 - 1e-9)]
    if not enough or min(resampler.trials) < LEAST_TRIALS:
        return []
    gaps = [_gaps(np.asarray(own)[impostor], enough) for own in scores]
    return [far for far, *widths in zip(enough, *gaps, strict=True) if max(widths) <= _WIDEST_GAP * far]


def _gaps(impostor: NDArray[np.floating[Any]], fars: Sequence[float]) -> list[float]:
    """Around each FAR, the distance of the two nearest FARs that a threshold can have; 0 where it has that FAR."""
    n = len(impostor)
    ranks = [min(int(far * n + 1e-9), n - 1) for far in fars]
    places = sorted({n - 1 - rank for rank in ranks})
    parted = np.partition(impostor, places)
    found = []
    for far, rank in zip(fars, ranks, strict=True):
        refused = parted[n - 1 - rank]  # the highest score that a threshold for this FAR must refuse
        above, at = int(np.count_nonzero(impostor > refused)), int(np.count_nonzero(impostor == refused))
        found.append(0.0 if abs(above - far * n) < 1e-6 * n * far else at / n)
    return found
