"""What ``find_duplicates`` decides by: whether a class holds two people, which classes are one, the map of these.

Shapes: n images of a class, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.faces import ImageFolder
from data.joined import JoinedSets

FEWEST = 20  # classes that a limit can follow from
MIN_GROUP = 2  # images of each of two people in a class; a single one that is unlike the others is a bad picture
NOTHING_IN_COMMON = 0.05  # cosine within groups below which a ratio to it would mean nothing
_STEPS = 20  # of the division in two; it settles after a few


class TwoGroups(NamedTuple):
    """The images of a class, divided in two."""

    is_second_n: NDArray[np.bool_]
    between: float  # mean cosine of two images, one of each group
    within: float  # of two images of one group, the mean of both groups


def divide(embeddings_nD: NDArray[np.float32]) -> TwoGroups | None:
    """Divide a class's images in the two groups that are most unlike; None if one has less than ``MIN_GROUP``.

    Two means on the unit sphere, starting from the sides of the direction in which the images differ most.

    Args:
        embeddings_nD: of length 1.
    """
    n = len(embeddings_nD)
    if n < 2 * MIN_GROUP:
        return None
    centred_nD = embeddings_nD - embeddings_nD.mean(0)
    is_second_n = centred_nD @ np.linalg.svd(centred_nD, full_matrices=False)[2][0] > 0
    for _ in range(_STEPS):
        if not 0 < is_second_n.sum() < n:
            return None
        sums = [embeddings_nD[is_second_n == second].sum(0) for second in (False, True)]
        first_D, second_D = (one / max(float(np.linalg.norm(one)), 1e-12) for one in sums)
        nearer_n = embeddings_nD @ second_D > embeddings_nD @ first_D
        if (nearer_n == is_second_n).all():
            break
        is_second_n = nearer_n
    sizes = np.bincount(is_second_n, minlength=2)
    if sizes.min() < MIN_GROUP:
        return None
    cosines_nn = embeddings_nD @ embeddings_nD.T
    both = [cosines_nn[np.ix_(is_second_n == second, is_second_n == second)] for second in (False, True)]
    within = np.mean([(one.sum() - np.trace(one)) / (len(one) * (len(one) - 1)) for one in both])
    return TwoGroups(is_second_n, float(cosines_nn[np.ix_(~is_second_n, is_second_n)].mean()), float(within))


def low_limit(values: NDArray[np.float64], expected: float) -> float:
    """The value that so many of these would be below if most of them are normally distributed; -1 for too few.

    Centre and width come from the median and the upper quartile: what does not belong lies below.
    """
    if len(values) < FEWEST:
        return -1.0
    middle, high = np.quantile(values, [0.5, 0.75])
    normal = NormalDist()
    width = (high - middle) / normal.inv_cdf(0.75)
    return float(middle + width * normal.inv_cdf(min(max(expected / len(values), 1e-300), 0.5)))


def groups_of(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups that pairs link, each in ascending order, the largest first."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in pairs:
        parent[root(a)] = root(b)
    members: dict[int, list[int]] = {}
    for x in parent:
        members.setdefault(root(x), []).append(x)
    return sorted(map(sorted, members.values()), key=lambda group: (-len(group), group))


def class_names(faces: JoinedSets) -> list[str]:
    """A name for each class, "" without one; of several sets it has the set's name in front."""
    if len(faces.sets) > 1:
        return [name or "" for name in faces.class_names() or [""] * faces.num_classes]
    names = [""] * faces.num_classes
    for number, name in zip(faces.numbering[0].tolist(), faces.sets[0].class_names() or [], strict=False):
        names[number] = names[number] or name or ""
    return names


def class_map(faces: JoinedSets, groups: Sequence[Sequence[int]]) -> list[dict[str, list[int | str]]]:
    """What a class map must say for each group, in their order, and then what the run's own map says already.

    Sets go by their numbers; classes by their folders' names in an image folder, else by their labels.
    """
    group_of = {number: i for i, group in enumerate(groups) for number in group}
    uses = np.bincount(np.concatenate(faces.numbering), minlength=faces.num_classes)
    people: dict[tuple[bool, int], dict[str, list[int | str]]] = {}
    for s, (one, table) in enumerate(zip(faces.sets, faces.numbering, strict=True)):
        key = str(s) if str(s) not in faces.names else faces.names[s]  # a set may be called as another is numbered
        for own in np.flatnonzero((uses[table] > 1) | np.isin(table, list(group_of))).tolist():
            number = int(table[own])
            person = (number in group_of, group_of.get(number, number))
            name: int | str = one.classes[own] if isinstance(one, ImageFolder) else own
            people.setdefault(person, {}).setdefault(key, []).append(name)
    return [people[person] for person in sorted(people, key=lambda person: (not person[0], person[1]))]
