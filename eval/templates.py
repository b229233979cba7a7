"""Templates: many images of one person become one vector, and pairs of templates become scores.

Shapes: N images, d embedding size, U templates, P pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_IMAGES_PER_CHUNK = 16_384
_PAIRS_PER_CHUNK = 1_024  # two chunks of gathered rows stay in the processor's cache


def template_features(
    features_Nd: NDArray[np.float32], detector_scores: ArrayLike, template_ids: ArrayLike, media_ids: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Average the images of each media, add up a template's media, and bring the sum to length 1.

    An image counts as its feature times its detector score, not normalised. A media number means one media
    within one template. Source: the IJB protocol as arcface_torch runs it, equal on ``ijb_11.npz``.
    Memory beyond the inputs: U * d float64 for the result and under 0.2 GiB of scratch at d = 512.

    Args:
        features_Nd: (N, d) sum of straight and mirrored embedding, as :func:`eval.embed.embed_batches` gives it.
        detector_scores: (N,).
        template_ids: (N,) integers.
        media_ids: (N,) integers.

    Returns:
        unique template ids (U,), growing, and their features (U, d). A template whose sum is zero stays zero.

    Raises:
        ValueError: lengths that differ, or no images.
    """
    scores = np.asarray(detector_scores, np.float64)
    templates, media = np.asarray(template_ids), np.asarray(media_ids)
    n = len(features_Nd)
    if not n == len(scores) == len(templates) == len(media):
        raise ValueError(
            f"lengths differ: {n} features, {len(scores)} detector scores, {len(templates)} template ids, "
            f"{len(media)} media ids"
        )
    if n == 0:
        raise ValueError("no images to make templates of")
    order = np.lexsort((media, templates))
    templates, media = templates[order], media[order]
    new_template = np.r_[True, templates[1:] != templates[:-1]]
    new_media = new_template | np.r_[True, media[1:] != media[:-1]]
    # A sum of media means is one weighted sum over images: weight = score / images of that media.
    group = np.cumsum(new_media) - 1
    weight = scores[order] / np.bincount(group)[group]
    row_of_image = np.cumsum(new_template) - 1  # (N,) in sorted order
    unique = templates[new_template].astype(np.int64)

    out_Ud = np.zeros((len(unique), features_Nd.shape[1]))
    for start in range(0, n, _IMAGES_PER_CHUNK):
        chunk = slice(start, start + _IMAGES_PER_CHUNK)
        weighted = features_Nd[order[chunk]] * weight[chunk, None]
        rows = row_of_image[chunk]
        starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
        out_Ud[rows[starts]] += np.add.reduceat(weighted, starts, axis=0)  # a template may cross two chunks
    length = np.linalg.norm(out_Ud, axis=1, keepdims=True)
    return unique, np.divide(out_Ud, length, out=out_Ud, where=length > 0)


def pair_scores(
    features_Ud: NDArray[np.float64],
    unique_templates: NDArray[np.int64],
    template_1: ArrayLike,
    template_2: ArrayLike,
) -> NDArray[np.float64]:
    """Give the cosine of each pair of templates, chunk by chunk; memory beyond the inputs is O(P).

    Args:
        features_Ud: (U, d), rows of length 1.
        unique_templates: (U,), growing: the template of each row.
        template_1: (P,) template ids.
        template_2: (P,) template ids.

    Raises:
        ValueError: a pair names a template that has no row.
    """
    row_1, row_2 = (_rows(unique_templates, np.asarray(ids)) for ids in (template_1, template_2))
    if len(row_1) != len(row_2):
        raise ValueError(f"lengths differ: {len(row_1)} first and {len(row_2)} second templates")
    out = np.empty(len(row_1))
    for start in range(0, len(out), _PAIRS_PER_CHUNK):
        chunk = slice(start, start + _PAIRS_PER_CHUNK)
        np.einsum("pd,pd->p", features_Ud[row_1[chunk]], features_Ud[row_2[chunk]], out=out[chunk])
    return out


def _rows(unique: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each id in the growing array ``unique``."""
    rows = np.minimum(np.searchsorted(unique, ids), len(unique) - 1)
    unknown = unique[rows] != ids
    if unknown.any():
        raise ValueError(f"template {ids[unknown.argmax()]} is in a pair, but has no images")
    return rows
