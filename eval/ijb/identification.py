"""Identification, 1:N: whose template in the gallery is it? Ranks, and true positives at a rate of false ones.

Shapes: Q probes, G gallery templates, D embedding size, b probes of one block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prettytable import PrettyTable

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_BYTES_PER_BLOCK = 1 << 25


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


def identify(
    probes_QD: NDArray[np.float64],
    probe_subjects: ArrayLike,
    gallery_GD: NDArray[np.float64],
    gallery_subjects: ArrayLike,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> Identification:
    """Search every probe in the gallery.

    FPIR counts similarities here: every similarity of two different persons is one chance to be wrong, and the
    threshold lets ``k = ceil(FPIR * Q)`` of them pass, the k-th itself excluded. Source: insightface's IJB 1:N
    script, equal on ``ijb_1n.npz``, in which every probe has one mate. It differs in that probes without
    a mate are searched too (open set), and count among Q and in the threshold but not in the rates; of several
    mates the most similar counts. Memory beyond the inputs: about 0.1 GiB whatever Q is.

    Args:
        probes_QD: (Q, D), rows of length 1.
        probe_subjects: (Q,) person of each probe.
        gallery_GD: (G, D), rows of length 1.
        gallery_subjects: (G,).
        ranks: r of rank-r.
        fpirs: false positive identification rates.

    Raises:
        ValueError: lengths that differ, or no probe with a mate.
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
    kth = [math.ceil(n_probes * fpir) for fpir in fpirs]
    highest = np.empty(0)  # the largest non-mated similarities so far
    mate_Q, ahead_Q = np.empty(n_probes), np.empty(n_probes, np.int64)
    non_mated = 0
    step = max(1, _BYTES_PER_BLOCK // (8 * n_gallery))
    for start in range(0, n_probes, step):
        block = slice(start, start + step)
        similarity_bG = probes_QD[block] @ gallery_GD.T
        is_mate_bG = probe_ids[block, None] == gallery_ids
        others = similarity_bG[~is_mate_bG]
        non_mated += len(others)
        highest = _largest(np.concatenate([highest, others]), max(kth, default=0))
        mate_Q[block], ahead_Q[block] = _place_of_mate(similarity_bG, is_mate_bG)
    mated = mate_Q > -np.inf
    highest = np.sort(highest)[::-1]
    threshold = {f: float(highest[k - 1]) if k <= len(highest) else math.nan for f, k in zip(fpirs, kth, strict=True)}
    n_mated = int(mated.sum())
    return Identification(
        probes=n_probes,
        mated=n_mated,
        gallery=n_gallery,
        embedding_size=gallery_GD.shape[1],
        rank={r: int((ahead_Q[mated] < r).sum()) / n_mated for r in ranks},
        tpir={f: int((mate_Q > t).sum()) / n_mated if t == t else math.nan for f, t in threshold.items()},
        threshold=threshold,
        non_mated=non_mated,
    )


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.partition(values, len(values) - count)[len(values) - count :] if len(values) > count else values


def _place_of_mate(
    similarity_bG: NDArray[np.float64], is_mate_bG: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
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
