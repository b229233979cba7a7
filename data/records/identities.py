"""What insightface's identity records say, held against the labels in the images' own headers.

An identity record has two labels, the first key of an identity's images and the key after their last one. Labels are
taken from the images alone; this is a cross-check, whose result is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.records.layout import EXACT_LABELS


class KeyRange(NamedTuple):
    """An identity record: its own key, and the range of keys that it claims; nan where it is no range."""

    key: int
    low: float
    high: float


def compare(
    rec_path: Path, keys_N: NDArray[np.int64], labels_N: NDArray[np.int64], ranges: Sequence[KeyRange]
) -> str:
    """Say in which ways identity records and images disagree.

    Ranges that reach past key 2^24, where float32 rounds, are left out.

    Args:
        rec_path: the file, for the message.
        keys_N: of the images, increasing.
        labels_N: of the images, -1 where unknown.
        ranges: what the identity records say, in their order.

    Returns:
        One line with numbers and an example of each way; "" if nothing disagrees or there are no identity records.
    """
    table = np.array([(one.low, one.high) for one in ranges]).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        is_range = (table[:, 0] >= 0) & (table[:, 0] <= table[:, 1]) & (table == np.rint(table)).all(1)
    is_exact = is_range & (table[:, 1] < EXACT_LABELS)
    places = np.flatnonzero(is_exact)
    low_R, high_R = table[places].astype(np.int64).T
    first_R, stop_R = np.searchsorted(keys_N, low_R), np.searchsorted(keys_N, high_R)
    labels_N = _filled(labels_N)
    changes_N = np.cumsum(np.diff(labels_N, prepend=labels_N[:1]) != 0)
    has_images_R = stop_R > first_R
    first_R, last_R = np.minimum(first_R, len(keys_N) - 1), np.maximum(stop_R - 1, 0)
    is_mixed_R = has_images_R & (changes_N[last_R] != changes_N[first_R])

    found = []

    def say(which: NDArray[np.intp], text: str) -> None:
        if len(which):
            example = ranges[int(which[0])]
            claim = "" if np.isnan(example.low) else f" with {example.low:.0f} and {example.high:.0f}"
            found.append(f"{text}: {len(which)} (the first is record key {example.key}{claim})")

    say(np.flatnonzero(~is_range), "no range of keys")
    say(places[(stop_R - first_R < high_R - low_R) & (high_R > low_R)], "keys in it that are no images")
    say(places[is_mixed_R], "images of several labels in one")
    order = np.flatnonzero(has_images_R)[low_R[has_images_R].argsort(kind="stable")]
    reached = np.maximum.accumulate(high_R[order]) if len(order) else order
    say(places[order[1:][low_R[order[1:]] < reached[:-1]]], "overlapping with another one")
    pure = np.flatnonzero(has_images_R & ~is_mixed_R)
    labels, counts = np.unique(labels_N[first_R[pure]], return_counts=True)
    if (counts > 1).any():
        several = labels[counts > 1]
        found.append(
            f"labels that have more than one: {len(several)} (the first is label {several[0]}), as packers leave it "
            "whose list is not sorted by label"
        )
    if not found:
        return ""
    return (
        f"{rec_path}: the labels in the images' own headers are used; the {len(ranges)} identity records do not fit "
        f"them: {'; '.join(found)}"
    )


def _filled(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The labels, each unknown one taking that of the image before it."""
    known = np.maximum.accumulate(np.where(labels_N >= 0, np.arange(len(labels_N)), 0))
    return labels_N[known]
