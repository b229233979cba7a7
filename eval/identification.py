"""Identification, 1:N: whose template in the gallery is it? Ranks, and true positives at a rate of false ones.

Shapes: Q probes, G gallery templates, D embedding size, b probes of one block, R draws of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prettytable import PrettyTable

from eval.bootstrap import LEAST_PAIRS, NOTHING, Interval, interval_text, share_interval
from eval.person_draws import PersonDraws, weighted_threshold

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_BYTES_PER_BLOCK = 1 << 25
_FEW_MATES = 32  # up to here each mate's rank is counted by itself
_KEPT = 3  # times the largest k are kept of the non-mated similarities: a draw's threshold may lie lower


Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class OpenSet:
    """Detection and identification of the mated, while those without a mate raise alarms, one a probe at most."""

    non_mated_probes: int
    fpir: float  # share of the non-mated probes whose most similar gallery template scores above the threshold
    threshold: float
    tpir: float  # share of the mated probes whose mate comes first and scores above the threshold
    interval: Interval


@dataclass(frozen=True)
class Identification:
    """How well probes find their mates, the gallery templates of the same person, in one gallery."""

    probes: int  # Q, all that were searched
    mated: int  # those with a mate; the rates below are shares of them
    gallery: int  # G
    embedding_size: int  # D
    rank: dict[int, float]  # r -> share whose mate is among the r most similar
    tpir: dict[float, float]  # FPIR -> share whose mate scores above the threshold; nan without a threshold
    threshold: dict[float, float]  # FPIR -> the k-th largest non-mated similarity, k = ceil(FPIR * Q)
    non_mated: int  # similarities of different persons
    people: int = 0  # of the probes; the bootstrap draws these
    mated_people: int = 0
    mean_average_precision: float = math.nan
    open_set: list[OpenSet] = field(default_factory=list)  # by FPIR; empty where every probe has a mate
    draws: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    # (R, ranks + FPIRs + 1) in the order of rank, tpir and mean average precision; empty without a bootstrap

    def intervals(self) -> list[Interval]:
        """The 95 % intervals of the rates in the order of :attr:`draws`; people are drawn, the gallery stays."""
        return [share_interval(column, self.mated_people) for column in self.draws.T]


@dataclass(frozen=True)
class Searched:
    """What became of each probe."""

    person_Q: NDArray[np.int64]  # 0 to people - 1
    mate_Q: Vectors  # similarity of the best mate, -inf without one
    ahead_Q: NDArray[np.int64]  # templates of others before it
    best_Q: Vectors  # similarity of the most similar template of another person
    precision_Q: NDArray[np.float64]  # average precision; nan unless asked for
    highest: Vectors  # the largest non-mated similarities, descending
    highest_probe: NDArray[np.int64]  # whose they are
    non_mated: int


def identify(
    probes_QD: Vectors,
    probe_subjects: ArrayLike,
    gallery_GD: Vectors,
    gallery_subjects: ArrayLike,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
    precision: bool = False,
    draws: int = 0,
) -> Identification:
    """Search every probe in the gallery.

    FPIR counts similarities in ``tpir``: every similarity of two different persons is one chance to be wrong, and the
    threshold lets ``k = ceil(FPIR * Q)`` of them pass, the k-th itself excluded. Source: insightface's IJB 1:N
    script, equal on ``ijb_1n.npz``, in which every probe has one mate. It differs in that probes without
    a mate are searched too (open set), and count among Q and in the threshold but not in the rates; of several
    mates the most similar counts. ``open_set`` counts probes instead: of the n without a mate, floor(FPIR * n) may
    score above the threshold. Source: ISO/IEC 19795-1 and NIST's evaluations (FRTE 1:N), with the mate at rank 1.
    Memory beyond the inputs: about 0.1 GiB whatever Q is.

    Args:
        probes_QD: (Q, D), rows of length 1.
        probe_subjects: (Q,) person of each probe.
        gallery_GD: (G, D), rows of length 1.
        gallery_subjects: (G,).
        ranks: r of rank-r.
        fpirs: false positive identification rates.
        precision: find the mean average precision, too.
        draws: R of the bootstrap, 0 for none.

    Raises:
        ValueError: lengths that differ, or no probe with a mate.
    """
    n_probes, n_gallery = len(probes_QD), len(gallery_GD)
    kth = [math.ceil(n_probes * fpir) for fpir in fpirs]
    found = search(
        probes_QD, probe_subjects, gallery_GD, gallery_subjects, _KEPT * max(kth, default=0) + _KEPT, precision
    )
    mated = found.mate_Q > -np.inf
    highest = found.highest
    threshold = {f: float(highest[k - 1]) if k <= len(highest) else math.nan for f, k in zip(fpirs, kth, strict=True)}
    n_mated = int(mated.sum())
    people = PersonDraws(found.person_Q, draws)
    return Identification(
        probes=n_probes,
        mated=n_mated,
        gallery=n_gallery,
        embedding_size=gallery_GD.shape[1],
        rank={r: int((found.ahead_Q[mated] < r).sum()) / n_mated for r in ranks},
        tpir={f: int((found.mate_Q > t).sum()) / n_mated if t == t else math.nan for f, t in threshold.items()},
        threshold=threshold,
        non_mated=found.non_mated,
        people=people.n_people,
        mated_people=len(np.unique(found.person_Q[mated])),
        mean_average_precision=float(found.precision_Q[mated].mean()),
        open_set=_open_set(found, fpirs, people),
        draws=_draw(found, ranks, fpirs, people) if draws else np.empty((0, 0)),
    )


def search(
    probes_QD: Vectors,
    probe_subjects: ArrayLike,
    gallery_GD: Vectors,
    gallery_subjects: ArrayLike,
    kept: int,
    precision: bool = False,
) -> Searched:
    """Search every probe in the gallery, a block of probes at a time; arguments and errors as :func:`identify`.

    Args:
        probes_QD: (Q, D).
        probe_subjects: (Q,).
        gallery_GD: (G, D).
        gallery_subjects: (G,).
        kept: how many of the largest non-mated similarities to keep.
        precision: find average precisions, too.
    """
    probe_ids, gallery_ids = np.asarray(probe_subjects), np.asarray(gallery_subjects)
    n_probes, n_gallery = len(probes_QD), len(gallery_GD)
    if len(probe_ids) != n_probes or len(gallery_ids) != n_gallery:
        raise ValueError(
            f"lengths differ: {n_probes} probes of {len(probe_ids)} subjects, {n_gallery} gallery templates of "
            f"{len(gallery_ids)}"
        )
    if not np.isin(probe_ids, gallery_ids).any():
        raise ValueError(f"none of {n_probes} probes is of a person in the gallery of {n_gallery}")
    person_Q = np.unique(probe_ids, return_inverse=True)[1].reshape(-1)
    highest, whose = np.empty(0, gallery_GD.dtype), np.empty(0, np.int64)  # the largest non-mated similarities so far
    mate_Q, best_Q = np.empty(n_probes, gallery_GD.dtype), np.empty(n_probes, gallery_GD.dtype)
    ahead_Q, precision_Q = np.empty(n_probes, np.int64), np.full(n_probes, np.nan)
    non_mated = 0
    step = max(1, _BYTES_PER_BLOCK // (8 * n_gallery))
    for start in range(0, n_probes, step):
        block = slice(start, start + step)
        similarity_bG = probes_QD[block] @ gallery_GD.T
        is_mate_bG = probe_ids[block, None] == gallery_ids
        others = similarity_bG[~is_mate_bG]
        row = np.repeat(np.arange(start, start + len(is_mate_bG)), np.count_nonzero(~is_mate_bG, axis=1))
        non_mated += len(others)
        highest, whose = _largest(np.r_[highest, others], np.r_[whose, row], kept)
        best_Q[block] = np.where(is_mate_bG, -np.inf, similarity_bG).max(axis=1)
        mate_Q[block], ahead_Q[block] = _place_of_mate(similarity_bG, is_mate_bG)
        if precision:
            precision_Q[block] = [_average_precision(*pair) for pair in zip(similarity_bG, is_mate_bG, strict=True)]
    order = np.argsort(-highest, kind="stable")
    return Searched(person_Q, mate_Q, ahead_Q, best_Q, precision_Q, highest[order], whose[order], non_mated)


def _largest(values: Vectors, rows: NDArray[np.int64], count: int) -> tuple[Vectors, NDArray[np.int64]]:
    if len(values) <= count:
        return values, rows
    chosen = np.argpartition(values, len(values) - count)[len(values) - count :]
    return values[chosen], rows[chosen]


def _average_precision(similarity_G: Vectors, is_mate_G: NDArray[np.bool_]) -> float:
    """Area under precision over recall, by trapezoids, as TinyFace's own evaluation has it; nan without a mate."""
    mates = np.flatnonzero(is_mate_G)
    if not len(mates):
        return math.nan
    if len(mates) <= _FEW_MATES:
        before_it = [np.count_nonzero(similarity_G > similarity_G[mate]) for mate in mates]
        tied = [np.count_nonzero(similarity_G[:mate] == similarity_G[mate]) for mate in mates]
        ranks = 1 + np.sort(np.add(before_it, tied))
    else:
        ranks = 1 + np.flatnonzero(is_mate_G[np.argsort(-similarity_G, kind="stable")])
    found = np.arange(1, len(ranks) + 1)
    before = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1.0)
    return float(((before + found / ranks) / 2).mean())


def _open_set(found: Searched, fpirs: Sequence[float], people: PersonDraws) -> list[OpenSet]:
    """The points whose FPIR is at least one non-mated probe; intervals where it is 10, of at least 10 people."""
    mated = found.mate_Q > -np.inf
    first_Q = np.where(found.ahead_Q == 0, found.mate_Q, -np.inf)  # of mated probes whose mate comes first
    order = np.argsort(-np.where(mated, -np.inf, found.best_Q), kind="stable")[: int((~mated).sum())]
    alarms, alarm_people = found.best_Q[order], len(np.unique(found.person_Q[order]))
    points = []
    for fpir in fpirs:
        allowed = math.floor(fpir * len(alarms) + 1e-9)
        if not 1 <= allowed < len(alarms):
            continue
        threshold = alarms[allowed]
        drawn = []
        bounded = fpir * len(alarms) >= LEAST_PAIRS * (1 - 1e-9) and alarm_people >= LEAST_PAIRS
        for weight_Q in people.weights() if bounded else ():
            weight_a, total = weight_Q[order], float(weight_Q[mated].sum())
            if not weight_a.any() or not total:
                drawn.append(math.nan)  # nobody without a mate, or with one, was drawn: no threshold, or no share
                continue
            at = weighted_threshold(alarms, weight_a, fpir * float(weight_a.sum()), beyond=True)
            drawn.append(weight_Q[first_Q > at].sum() / total)
        points.append(
            OpenSet(
                non_mated_probes=len(alarms),
                fpir=fpir,
                threshold=float(threshold),
                tpir=float(np.count_nonzero(first_Q > threshold)) / int(mated.sum()),
                interval=share_interval(np.array(drawn), len(np.unique(found.person_Q[mated]))) if drawn else NOTHING,
            )
        )
    return points


def _draw(found: Searched, ranks: Sequence[int], fpirs: Sequence[float], people: PersonDraws) -> NDArray[np.float64]:
    """Rates of each draw: (R, ranks + FPIRs + 1); nan where a FPIR is below 10 similarities or people."""
    mated = found.mate_Q > -np.inf
    ahead, mate, precision = found.ahead_Q[mated], found.mate_Q[mated], found.precision_Q[mated]
    out = np.empty((people.draws, len(ranks) + len(fpirs) + 1))
    for draw, weight_Q in enumerate(people.weights()):
        weight = weight_Q[mated]
        total = float(weight.sum()) or math.nan  # nobody with a mate was drawn
        out[draw, : len(ranks)] = [weight[ahead < r].sum() / total for r in ranks]
        for column, fpir in enumerate(fpirs, len(ranks)):
            if fpir * len(weight_Q) < LEAST_PAIRS * (1 - 1e-9) or people.n_people < LEAST_PAIRS:
                out[draw, column] = math.nan
                continue
            wanted = math.ceil(fpir * float(weight_Q.sum()))
            at = weighted_threshold(found.highest, weight_Q[found.highest_probe], wanted)
            out[draw, column] = weight[mate > at].sum() / total if at == at else math.nan
        out[draw, -1] = weight @ precision / total
    return out


def _place_of_mate(similarity_bG: Vectors, is_mate_bG: NDArray[np.bool_]) -> tuple[Vectors, NDArray[np.int64]]:
    """The best mate's similarity, -inf without one, and how many of other persons come before it.

    Of equal similarities, the one earlier in the gallery comes first.
    """
    mates_bG = np.where(is_mate_bG, similarity_bG, -np.inf)
    place_b = mates_bG.argmax(axis=1)
    mate_b = np.take_along_axis(mates_bG, place_b[:, None], axis=1)
    before_bG = (similarity_bG > mate_b) & ~is_mate_bG
    tied_bG = (similarity_bG == mate_b) & ~is_mate_bG & (np.arange(similarity_bG.shape[1]) < place_b[:, None])
    return mate_b[:, 0], np.count_nonzero(before_bG | tied_bG, axis=1)


def identification_table(job: str, results: dict[str, Identification]) -> PrettyTable:
    """Build the table of identification: a row per gallery, and one for the mean of the single ones, in percent.

    Args:
        job: name of the method.
        results: gallery's name to its result; a name with "+" is several galleries as one, left out of the mean.
    """
    apart = [result for name, result in results.items() if "+" not in name]
    table = PrettyTable(
        [
            "Methods",
            "Gallery",
            *(f"rank-{r}" for r in apart[0].rank),
            *(f"TPIR@FPIR={f:g}" for f in apart[0].tpir),
        ]
    )
    for name, result in results.items():
        table.add_row([job, name, *(_percent(x) for x in (*result.rank.values(), *result.tpir.values()))])
    table.add_row(
        [job, "mean of " + " and ".join(n for n in results if "+" not in n), *map(_percent, mean_rates(apart))]
    )
    return table


def interval_table(job: str, results: dict[str, Identification]) -> PrettyTable:
    """Build the table of the rates' 95 % intervals, in percent; rows and columns as :func:`identification_table`."""
    table = PrettyTable(["95 % intervals", *identification_table(job, results).field_names[1:]])
    apart = [result for name, result in results.items() if "+" not in name]
    for name, result in results.items():
        table.add_row([job, name, *map(interval_text, result.intervals()[:-1])])
    mean = "mean of " + " and ".join(n for n in results if "+" not in n)
    table.add_row([job, mean, *map(interval_text, mean_intervals(apart))])
    return table


def mean_intervals(results: Sequence[Identification]) -> list[Interval]:
    """The intervals of :func:`mean_rates`; people are drawn for all galleries together."""
    draws = np.mean([result.draws[:, :-1] for result in results], axis=0)
    return [share_interval(column, sum(result.mated_people for result in results)) for column in draws.T]


def mean_rates(results: Sequence[Identification]) -> list[float]:
    """Means over galleries of each rank's and each FPIR's rate, in this order."""
    rates = [[*result.rank.values(), *result.tpir.values()] for result in results]
    return [sum(column) / len(column) for column in zip(*rates, strict=True)]


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def field_lines(result: Identification) -> list[str]:
    """Write a result in the words of insightface's IJB 1:N script, to compare with its log.

    All these numbers mean the same there only where every probe has one mate.
    """
    n, g = result.probes, result.gallery
    kept = min(result.non_mated, max(math.ceil(n * fpir) for fpir in result.tpir))
    return [
        f"({n}, {result.embedding_size})",
        f"({g}, {result.embedding_size})",
        f"similarity shape ({n}, {g})",
        f"({n}, {g})",
        *(f"top{r} = {share}" for r, share in result.rank.items()),
        f"{n * g - n}",
        f"({n},)",
        f"neg_sims num = {result.non_mated}",
        f"after sorting , neg_sims num = {kept}",
        *(
            f"far = {fpir:.10f} pr = {result.tpir[fpir]:.10f} th = {result.threshold[fpir]:.10f}"
            for fpir in result.tpir
        ),
    ]
