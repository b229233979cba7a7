"""The order of an epoch: a permutation that may stay within few stretches of the file at a time.

A plain permutation asks a disk for every image at another place. A spinning disk serves about a hundred such places a
second; reading stretches of it is a hundred times as fast. So the samples are cut into chunks of consecutive ones,
the chunks are shuffled, and then the samples of each window of so many chunks among themselves: a reader is in that
many stretches of the file at a time, and each of these is read as a whole. What is given up: samples that lie
together come within one window of each other. Shuffle the file once (``tools/shuffle_rec.py``) so that neighbours
are no longer images of one person.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_permutation(n: int, seed: int, epoch: int, chunk: int = 1, window: int = 64) -> NDArray[np.int64]:
    """Every sample once, in an order that is a function of the arguments alone, the same on every rank.

    Args:
        n: samples.
        seed: of the run.
        epoch: another epoch has other chunks together.
        chunk: consecutive samples that stay together until they are shuffled within their window; 1: none, a plain
            permutation.
        window: chunks that are shuffled together.

    Returns:
        (n,) of [0, n).

    Raises:
        ValueError: ``chunk`` or ``window`` is below 1.
    """
    if chunk < 1 or window < 1:
        raise ValueError(f"chunk and window must be at least 1, got {chunk} and {window}")
    rng = np.random.default_rng([seed, epoch])
    if chunk == 1 or n <= chunk:
        return rng.permutation(n)
    chunks = rng.permutation(-(-n // chunk))
    order = (chunks[:, None] * chunk + np.arange(chunk)).reshape(-1)
    order = order[order < n]  # the last chunk may be short
    for start in range(0, n, window * chunk):
        rng.shuffle(order[start : start + window * chunk])
    return order
