"""Draw verification pairs from labelled images: of one person, and of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int, bool]  # two images, and whether they show one person
_SPARE = 20  # identities examined for each pair, at most
_MOST_IMAGES = 1000  # of one identity that are examined
_TRIES = 1000  # draws in a row that find nothing new before the set counts as used up


def sample_pairs(
    labels_N: NDArray[np.int64],
    pairs: int,
    seed: int,
    digest: Callable[[int], bytes],
    impostors: int | None = None,
) -> list[Pair]:
    """Draw pairs, genuine and impostor ones evenly mixed, so that each fold of a cross-validation has its share.

    Each identity gives one genuine pair before any gives a second one; impostors are two identities drawn evenly, and
    an image of each. No pair comes twice, and none is of two byte-identical images.

    Args:
        labels_N: (N,) the identity of each image.
        pairs: how many, at least 2.
        seed: of the draws.
        digest: tells whether two images are the same; asked for drawn images only.
        impostors: how many of the pairs are of two persons; None: half, genuine and impostor ones in turn.

    Raises:
        ValueError: the images do not give that many pairs.
    """
    order = labels_N.argsort(kind="stable")
    _, starts, counts = np.unique(labels_N[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(seed)

    def some(identities: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        drawn = rng.permutation(identities)[: _SPARE * pairs]
        return [order[starts[i] : starts[i] + counts[i]] for i in drawn]

    with_two = np.flatnonzero(counts > 1)
    of_two = pairs // 2 if impostors is None else impostors
    of_one = pairs - of_two
    genuine = _take(_genuine(some(with_two), rng), of_one, digest)
    impostor = _take(_impostors(some(np.arange(len(counts))), rng), of_two, digest)
    for kind, found, wanted in (("genuine", genuine, of_one), ("impostor", impostor, of_two)):
        if len(found) < wanted:
            way = f"ask for fewer pairs, or for more of two persons (--impostors {pairs - len(found)})"
            if kind == "impostor" or not found:
                way = "ask for fewer pairs"
            raise ValueError(
                f"{pairs} pairs take {wanted} {kind} ones, but {len(labels_N)} images of {len(counts)} identities, "
                f"{len(with_two)} of them with two images or more, give {len(found)}: {way}, or give more "
                "images"
            )
    found_pairs: list[Pair] = []
    for i in range(pairs):
        taken = (2 * i * of_one + pairs) // (2 * pairs)  # genuine ones before: their share of i, rounded
        is_genuine = (2 * (i + 1) * of_one + pairs) // (2 * pairs) > taken
        found_pairs.append((*(genuine[taken] if is_genuine else impostor[i - taken]), is_genuine))
    return found_pairs


def _take(
    candidates: Iterator[tuple[int, int]], wanted: int, digest: Callable[[int], bytes]
) -> list[tuple[int, int]]:
    """The first candidates whose images differ."""
    found: list[tuple[int, int]] = []
    for a, b in candidates:
        if len(found) == wanted:
            break
        if digest(a) != digest(b):
            found.append((a, b))
    return found


def _genuine(members: list[NDArray[np.int64]], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Every pair of one person once, in rounds over the persons."""
    left = [_all_pairs(images, rng) for images in members if len(images) > 1]
    while left:
        still = []
        for i in rng.permutation(len(left)):
            pair = next(left[i], None)
            if pair is not None:
                still.append(left[i])
                yield pair
        left = still


def _all_pairs(images: NDArray[np.int64], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Every pair of these images once, in random order; drawn when the first is asked for."""
    images = rng.permutation(images)[:_MOST_IMAGES]
    n = len(images)
    for number in rng.permutation(n * (n - 1) // 2).tolist():
        # The pairs (0, 1), (0, 2), (1, 2), (0, 3), ... are numbered consecutively.
        b = int((1 + np.sqrt(1 + 8 * number)) // 2)
        a = number - b * (b - 1) // 2
        yield int(images[a]), int(images[b])


def _impostors(members: list[NDArray[np.int64]], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Pairs of two persons, none twice; ends only when new ones are hardly found any more."""
    seen: set[tuple[int, int]] = set()
    misses = 0
    while len(members) > 1 and misses < _TRIES:
        first, second = rng.choice(len(members), 2, replace=False)
        a, b = int(rng.choice(members[first])), int(rng.choice(members[second]))
        pair = min(a, b), max(a, b)
        if pair in seen:
            misses += 1
            continue
        misses = 0
        seen.add(pair)
        yield pair
