"""Templates: many images of one person become one vector, and pairs of templates become scores.

The order and the type of every sum are those of arcface_torch's evaluator, so that features equal its own to the last
bit and ties stay ties; what differs is that whole arrays are worked on instead of one template at a time.

Shapes: N images, D embedding size, M media, U templates, P pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_WIDEST_TABLE = 1 << 24  # of template ids
_IMAGES_PER_BLOCK = 4_096
_IDS_PER_BLOCK = 1 << 18
_PAIRS_PER_BLOCK = 256  # two blocks of gathered rows stay in the processor's cache
_FEW_PAIRS = 2_000_000  # up to here they are scored one by one
_PRODUCTS_PER_PAIR = 16  # entries that a matrix product gives in the time of one pair by itself
_ROWS_PER_PRODUCT = 256


@dataclass(frozen=True)
class FeatureMode:
    """What an image's feature is made of; the defaults are those of insightface's evaluator."""

    flip: bool = True  # add the embedding of the mirror image
    norm_score: bool = True  # keep the embedding's length as a weight; otherwise it is scaled to 1
    detector_score: bool = True  # multiply by the face detector's score

    def __str__(self) -> str:
        return (
            f"{'straight + mirrored' if self.flip else 'straight only'}, "
            f"{'norm used' if self.norm_score else 'normalised'}, "
            f"{'detector score used' if self.detector_score else 'no detector score'}"
        )


def image_features(
    halves: NDArray[np.float32], detector_scores: NDArray[np.float32], mode: FeatureMode
) -> NDArray[np.float32]:
    """Make the features of images from the embeddings of themselves and of their mirror images.

    Args:
        halves: (N, 2 * D), straight and mirrored side by side.
        detector_scores: (N,).
        mode: what counts.

    Returns:
        (N, D).
    """
    size = halves.shape[1] // 2
    features_ND = halves[:, :size] + halves[:, size:] if mode.flip else halves[:, :size].copy()
    if not mode.norm_score:
        length = np.sqrt(np.sum(features_ND**2, -1, keepdims=True))
        length[length == 0] = 1
        features_ND /= length
    if mode.detector_score:
        features_ND *= detector_scores[:, None]
    return features_ND


def pool_templates(
    read: Callable[[int, int], NDArray[np.float32]], template_ids: ArrayLike, media_ids: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Average the images of each media, add up a template's media, and scale the sum to length 1.

    A media number counts within its template only. Source: the IJB protocol as arcface_torch runs it, equal on
    ``ijb_11.npz``. Memory beyond the result, U * D float64: a few blocks where templates lie together in the list of
    images, as they do in IJB; else N * D float32.

    Args:
        read: (start, end) to the features of these images, (end - start, D); called from threads.
        template_ids: (N,) integers.
        media_ids: (N,) integers.

    Returns:
        unique template ids (U,), ascending, and their features (U, D). A template whose sum is zero stays zero.

    Raises:
        ValueError: lengths that differ, or no images.
    """
    templates, media = np.asarray(template_ids), np.asarray(media_ids)
    n = len(templates)
    if n != len(media):
        raise ValueError(f"lengths differ: {n} template ids, {len(media)} media ids")
    if n == 0:
        raise ValueError("no images to make templates of")
    order = np.lexsort((media, templates))  # stable: a media's images keep their order
    templates, media = templates[order], media[order]
    new_template = np.r_[True, templates[1:] != templates[:-1]]
    new_media = new_template | np.r_[True, media[1:] != media[:-1]]
    media_starts = np.r_[np.flatnonzero(new_media), n]  # (M + 1,) in images
    of_template = np.flatnonzero(new_template[media_starts[:-1]])
    template_starts = np.r_[of_template, len(media_starts) - 1]  # (U + 1,) in media
    unique = templates[new_template].astype(np.int64)
    blocks = list(_whole_templates(media_starts[template_starts]))
    bounds = media_starts[template_starts[[first for first, _ in blocks]]]  # in images
    span = (np.maximum.reduceat(order, bounds) + 1 - np.minimum.reduceat(order, bounds)).sum()
    if span > 2 * n:  # templates are scattered over the list
        everything = read(0, n)
        read = lambda start, end: everything[start:end]  # noqa: E731
    out_UD = np.empty((len(unique), read(0, 1).shape[1]))

    def pool(block: tuple[int, int]) -> None:
        """Make the templates of rows [first, last)."""
        first, last = block
        own_media = media_starts[template_starts[first] : template_starts[last] + 1]
        images = order[own_media[0] : own_media[-1]]
        start = int(images.min())
        rows = read(start, int(images.max()) + 1)[images - start]
        means_MD = _sums_of_runs(rows, own_media - own_media[0])
        means_MD /= np.diff(own_media)[:, None].astype(np.float32)
        starts = template_starts[first : last + 1]
        out_UD[first:last] = _sums_of_runs(means_MD, starts - starts[0])
        length = np.sqrt(np.einsum("ud,ud->u", out_UD[first:last], out_UD[first:last]))
        length[length < 10 * np.finfo(np.float64).eps] = 1.0  # zero, in the eyes of sklearn's normalize
        out_UD[first:last] /= length[:, None]

    _in_threads(pool, iter(blocks))
    return unique, out_UD


def pair_scores(
    features_UD: NDArray[np.float64],
    unique_templates: NDArray[np.int64],
    template_1: ArrayLike,
    template_2: ArrayLike,
) -> NDArray[np.float64]:
    """Give the cosine of each pair of templates; memory beyond the inputs is O(P), and under 0.1 GiB.

    A score depends on its two rows alone, not on their order or on where the pair stands: equal pairs tie. Up to two
    million pairs its sum runs in the field's order and equals the field's to the last bit. Beyond that, where the
    pairs are a good part of all first templates times all second ones, matrix products give it to within 1e-14.

    Args:
        features_UD: (U, D), rows of length 1.
        unique_templates: (U,), ascending: the template of each row.
        template_1: (P,) template ids.
        template_2: (P,) template ids.

    Raises:
        ValueError: a pair names a template that has no row.
    """
    row_1, row_2 = (template_rows(unique_templates, ids) for ids in (template_1, template_2))
    n = len(row_1)
    if n != len(row_2):
        raise ValueError(f"lengths differ: {n} first and {len(row_2)} second templates")
    if n > _FEW_PAIRS:
        used_1, used_2 = (_used(len(features_UD), rows) for rows in (row_1, row_2))
        if np.count_nonzero(used_1) * np.count_nonzero(used_2) < _PRODUCTS_PER_PAIR * n:
            return _scores_by_products(features_UD, row_1, row_2, used_1 & used_2)
    return _scores_one_by_one(features_UD, row_1, row_2)


def template_rows(unique: NDArray[np.int64], ids: ArrayLike) -> NDArray[np.int32]:
    """Row of each template id in the ascending array ``unique``.

    Raises:
        ValueError: an id is missing.
    """
    ids = np.asarray(ids)
    rows = np.empty(len(ids), np.int32)
    low, high = int(unique[0]), int(unique[-1])
    table = np.full(high - low + 1 if high - low < _WIDEST_TABLE else 0, -1, np.int32)
    if len(table):
        table[unique - low] = np.arange(len(unique), dtype=np.int32)

    def find(block: tuple[int, int]) -> None:
        own = ids[slice(*block)]
        if len(table):  # much faster than a search for each id
            found = table.take(own - low, mode="clip")
            unknown = (found < 0) | (own < low) | (own > high)
        else:
            found = np.minimum(np.searchsorted(unique, own), len(unique) - 1)
            unknown = unique[found] != own
        if unknown.any():
            raise ValueError(f"template {own[unknown.argmax()]} is in a list, but has no images")
        rows[slice(*block)] = found

    _in_threads(find, _even_blocks(len(ids), _IDS_PER_BLOCK))
    return rows


def _scores_one_by_one(
    features_UD: NDArray[np.float64], row_1: NDArray[np.int32], row_2: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Multiply and add in the order of the field's evaluator."""
    out = np.empty(len(row_1))

    def score(block: tuple[int, int]) -> None:
        a, b = np.empty((2, _PAIRS_PER_BLOCK, features_UD.shape[1]))
        for start, end in _even_blocks(block[1] - block[0], _PAIRS_PER_BLOCK):
            pairs = slice(block[0] + start, block[0] + end)
            first, second = a[: end - start], b[: end - start]
            features_UD.take(row_1[pairs], axis=0, out=first, mode="clip")
            features_UD.take(row_2[pairs], axis=0, out=second, mode="clip")
            np.multiply(first, second, out=first)
            np.add.reduce(first, axis=1, out=out[pairs])

    _in_threads(score, _even_blocks(len(out), 64 * _PAIRS_PER_BLOCK))
    return out


def _scores_by_products(
    features_UD: NDArray[np.float64],
    row_1: NDArray[np.int32],
    row_2: NDArray[np.int32],
    in_both_U: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Multiply all first templates, a block at a time, by all second ones, and pick the pairs.

    Two entries of a matrix product may be rounded differently though their vectors are the same. So that equal
    pairs tie, equal rows are merged, and a pair that occurs in both orders is put in one.
    """
    one = _first_equal_row(features_UD)
    if (one != np.arange(len(one))).any():
        row_1, row_2 = one[row_1], one[row_2]
        in_both_U = _used(len(one), row_1) & _used(len(one), row_2)
    if in_both_U.any():
        turn = in_both_U[row_1] & in_both_U[row_2] & (row_1 > row_2)
        row_1, row_2 = np.where(turn, row_2, row_1), np.where(turn, row_1, row_2)
    number_1, rows_1 = _numbers(len(one), row_1)
    number_2, rows_2 = _numbers(len(one), row_2)
    order = None if (row_1[1:] >= row_1[:-1]).all() else np.argsort(row_1, kind="stable")
    if order is not None:
        row_1, row_2 = row_1[order], row_2[order]
    second_DV = np.ascontiguousarray(features_UD[rows_2]).T
    ends = np.r_[np.searchsorted(row_1, rows_1[::_ROWS_PER_PRODUCT]), len(row_1)]
    scores = np.empty(len(row_1))
    for block, (start, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        first = block * _ROWS_PER_PRODUCT
        product = features_UD[rows_1[first : first + _ROWS_PER_PRODUCT]] @ second_DV
        at = (number_1[row_1[start:end]] - first) * len(rows_2) + number_2[row_2[start:end]]
        product.take(at, out=scores[start:end], mode="clip")
    if order is None:
        return scores
    out = np.empty_like(scores)
    out[order] = scores
    return out


def _used(n: int, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of ``n`` rows occur."""
    used = np.zeros(n, bool)
    used[rows] = True
    return used


def _numbers(n: int, rows: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the rows that occur: the number of each of ``n`` rows, and the row of each number."""
    occurring = np.flatnonzero(_used(n, rows))
    number = np.zeros(n, np.int64)
    number[occurring] = np.arange(len(occurring))
    return number, occurring


def _first_equal_row(features_UD: NDArray[np.float64]) -> NDArray[np.int32]:
    """The first row that holds the same numbers, (U,)."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(features_UD)], np.int32)


def _sums_of_runs(rows_ND: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Add up each run of rows, one after the other as a loop would; runs are [starts[i], starts[i + 1])."""
    counts = np.diff(starts)
    out = rows_ND[starts[:-1]]
    longest_first = np.argsort(-counts, kind="stable")
    growing = -counts[longest_first]
    for j in range(1, int(counts.max())):
        live = longest_first[: np.searchsorted(growing, -j)]  # the runs that have a row j
        out[live] += rows_ND[starts[live] + j]
    return out


def _whole_templates(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut templates, which start at these images, into ranges of about a block of images."""
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + _IMAGES_PER_BLOCK, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _even_blocks(n: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, n)) for start in range(0, n, size))


def _in_threads(do: Callable[[tuple[int, int]], None], blocks: Iterator[tuple[int, int]]) -> None:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(do, blocks):
            pass
