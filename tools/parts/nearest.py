"""The nearest of many unit vectors, exactly, block by block: memory does not grow with the square of their number.

Shapes: n vectors, m others, D numbers each, k nearest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 4096  # vectors of either side at once: 64 MiB of cosines
LEAST_PAIRS = 1000  # from which a limit follows; a few strangers show no spread
LARGEST_SHARE = 0.01  # of the pairs that may exceed a limit; more would take in the bulk of strangers


@dataclass(frozen=True)
class Nearest:
    """The k most similar others of each vector, and how similar two vectors are at random."""

    numbers_nk: NDArray[np.int64]  # places among the others, the nearest first; -1 where there are fewer than k
    cosines_nk: NDArray[np.float32]  # -inf where there are fewer than k
    compared: int  # pairs
    mean: float  # cosine of all these pairs
    std: float

    def limit(self, expected: float) -> float:
        """The cosine that so many of the compared pairs exceed, if they are normally distributed.

        inf, which none reaches, for under ``LEAST_PAIRS`` pairs or more than ``LARGEST_SHARE`` of them.
        """
        share = expected / max(self.compared, 1)
        if self.compared < LEAST_PAIRS or share > LARGEST_SHARE:
            return math.inf
        return self.mean - self.std * NormalDist().inv_cdf(max(share, 1e-300))

    def pairs(self, least: float) -> list[tuple[int, int, float]]:
        """(vector, other, cosine) for all that reach ``least``, the most similar first."""
        rows, columns = np.nonzero(self.cosines_nk >= least)
        found = [
            (int(i), int(self.numbers_nk[i, c]), float(self.cosines_nk[i, c]))
            for i, c in zip(rows, columns, strict=True)
        ]
        return sorted(found, key=lambda pair: -pair[2])


def nearest(
    rows_nD: NDArray[Any], others_mD: NDArray[Any] | None, k: int, device: torch.device, block: int = BLOCK
) -> Nearest:
    """Compare every vector with every other one.

    Work is n * m * D multiplications, half of that without ``others_mD``. Memory beyond the arguments, which may be
    mapped files: 12 * k bytes for each vector, and about four times ``block`` * ``block`` floats.

    Args:
        rows_nD: float32 of length 1.
        others_mD: the same; None compares the vectors among themselves, each pair once.
        k: how many of each to keep.
        device: where to compute.
        block: vectors at once.
    """
    n, m = len(rows_nD), len(rows_nD if others_mD is None else others_mD)
    best_nk = torch.full((n, k), -math.inf)
    numbers_nk = torch.full((n, k), -1)
    compared, total, squares = 0, 0.0, 0.0

    def keep(start: int, cosines_ab: Tensor, first_other: int) -> None:
        top = cosines_ab.topk(min(k, cosines_ab.shape[1]))
        here = slice(start, start + len(cosines_ab))
        cosines = torch.cat([best_nk[here], top.values.cpu()], 1)
        numbers = torch.cat([numbers_nk[here], top.indices.cpu() + first_other], 1)
        best = cosines.topk(k)
        best_nk[here], numbers_nk[here] = best.values, numbers.gather(1, best.indices)

    for a in range(0, n, block):
        rows_aD = _block(rows_nD, a, block, device)
        for b in range(a if others_mD is None else 0, m, block):
            cosines_ab = rows_aD @ _block(rows_nD if others_mD is None else others_mD, b, block, device).T
            is_diagonal = others_mD is None and a == b
            if is_diagonal:
                cosines_ab.fill_diagonal_(0.0)
            share = 0.5 if is_diagonal else 1.0  # there each pair comes twice
            total += share * float(cosines_ab.sum(dtype=torch.float64))
            squares += share * float(cosines_ab.square().sum(dtype=torch.float64))
            compared += cosines_ab.numel()
            if is_diagonal:
                compared -= (len(rows_aD) ** 2 + len(rows_aD)) // 2
                cosines_ab.fill_diagonal_(-math.inf)
            keep(a, cosines_ab, b)
            if others_mD is None and not is_diagonal:
                keep(b, cosines_ab.T, a)
    numbers_nk[best_nk == -math.inf] = -1
    mean = total / max(compared, 1)
    std = math.sqrt(max(squares / max(compared, 1) - mean * mean, 0.0))
    return Nearest(numbers_nk.numpy(), best_nk.numpy(), compared, mean, std)


def _block(rows_nD: NDArray[Any], start: int, block: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows_nD[start : start + block], np.float32)).to(device)
