"""The search of ``find_duplicates``: which classes are one person, which hold two, which are in a test set.

Shapes: C classes, E of them embedded, n images of one, D embedding size, T people of the test sets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.joined import JoinedSets
from embedder.embedder import Embedder
from tools.parts.duplicate_checks import FEWEST, MIN_GROUP, NOTHING_IN_COMMON, divide, low_limit
from tools.parts.nearest import nearest
from tools.parts.run_faces import ClassImages, embed_groups
from tools.parts.test_people import TestPeople

CHANCE = 0.1  # of the classes: how many pairs of near centres may be chance in the quick search
STRANGERS = 0.9  # share of pairs of different people whose images are less alike than "as unlike as strangers"
SAMPLE = 1000  # classes, drawn at random, that show how alike strangers are


@dataclass(frozen=True)
class Options:
    """What to look for, and how hard."""

    images: int = 16  # of each class, at most
    neighbours: int = 10  # of each class
    expected: float = 1.0  # innocent pairs, and innocent classes, that the limits let through by chance
    threshold: float | None = None  # cosine from which two classes are one person; None: from the data
    apart: float | None = None  # ratio up to which a class is two people; None: from the data
    near_centres: bool = False  # read images only of classes whose centres are near others
    batch_size: int = 128
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Centres:
    """The centres that training has updated."""

    rows_VD: NDArray[Any]  # of length 1
    classes_V: NDArray[np.int64]  # ascending
    untouched: int  # classes that have images but a centre without an update

    def cosine(self, a: int, b: int) -> float | None:
        """Of two classes' centres; None if one was never updated."""
        at = np.searchsorted(self.classes_V, [a, b])
        if (at == len(self.classes_V)).any() or (self.classes_V[at] != [a, b]).any():
            return None
        return float(self.rows_VD[at[0]] @ self.rows_VD[at[1]])


@dataclass(frozen=True)
class Pair:
    """Two classes that seem to be one person; ``first`` < ``second``."""

    first: int
    second: int
    cosine: float  # of the means of their images
    centre_cosine: float | None  # None: there are no centres, or one was never updated


@dataclass(frozen=True)
class TwoPeople:
    """A class that seems to hold two people."""

    number: int
    between: float  # mean cosine of images of different groups; see TwoGroups
    within: float
    ratio: float  # of between to within: 1 where the groups are one, 0 for strangers
    sides: tuple[list[int], list[int]]  # numbers of the images of either group


@dataclass(frozen=True)
class Overlap:
    """Somebody of a test set who seems to be a class of the training set."""

    test: int  # number of the test set
    person: int  # in it
    images: list[int]  # of the test set, that were compared
    number: int  # of the class
    cosine: float


@dataclass
class TestLook:
    """What was looked at of a test set."""

    __test__ = False  # no test, though pytest might think so

    people: int = 0  # with a sound image
    damaged: list[str] = field(default_factory=list)


@dataclass
class Found:
    """The outcome, the surest first."""

    pairs: list[Pair] = field(default_factory=list)
    doubles: list[TwoPeople] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    embedded_classes: int = 0
    embedded_images: int = 0
    divisible: int = 0  # classes with enough images to be two people
    damaged: list[str] = field(default_factory=list)
    tests: list[TestLook] = field(default_factory=list)
    compared: int = 0  # pairs of classes
    test_compared: int = 0  # pairs of a person of a test set and a class
    threshold: float = math.inf  # cosine of two classes; inf: no limit follows from the data
    test_threshold: float = math.inf  # cosine of a person of a test set and a class
    between_limit: float = -1.0  # a class is two people if its groups' images are no more alike,
    ratio_limit: float = -math.inf  # or if they are no more alike in terms of those within a group; -inf: no limits


@dataclass(frozen=True)
class Embedded:
    """What is known of the embedded classes."""

    classes_E: NDArray[np.int64]
    sizes_E: NDArray[np.int64]  # images
    means_ED: NDArray[Any]  # of the images, of length 1, in a mapped file
    length_E: NDArray[np.float64]  # of the mean of the images' unit vectors
    between_E: NDArray[np.float64]  # see TwoGroups; nan where a class cannot be divided
    within_E: NDArray[np.float64]
    sides: list[bytes]  # of a divided class, a byte for each image: 0 and 1 the groups, 2 damaged; else empty


def search(
    faces: JoinedSets,
    embedder: Embedder,
    centres: Centres | None,
    tests: Sequence[TestPeople],
    options: Options,
    scratch: Path,
) -> Found:
    """Look for all three.

    Args:
        faces: the training set.
        embedder: of the run.
        centres: None if there is no checkpoint.
        tests: test sets.
        options: settings.
        scratch: folder for 4 * D bytes a class while this runs.

    Raises:
        ValueError: an image is damaged, and the run does not skip such images; or there is nothing to look at.
        OSError: an image cannot be read, or the disk is full.
    """
    found = Found()
    own = ClassImages(faces)
    if options.near_centres and centres is not None and len(centres.classes_V) == 0:
        raise ValueError("no centre has been updated yet: search without --near-centres, or train on")
    test_TD, sought = _embed_tests(found, embedder, tests, options)
    chosen = np.flatnonzero(own.counts)
    if options.near_centres and centres is not None:
        chosen = _near_classes(centres, test_TD, options)
    on_damaged = found.damaged.append if faces.on_bad_sample == "skip" else None
    embedded = _embed_classes(faces, own, embedder, chosen.tolist(), on_damaged, options, scratch / "means.npy")
    found.embedded_classes, found.embedded_images = len(embedded.classes_E), int(embedded.sizes_E.sum())
    if not found.embedded_classes:
        raise ValueError(f"all images looked at, {len(found.damaged):,}, are damaged; the first: {found.damaged[0]}")
    _find_pairs(found, embedded, centres, options)
    _find_doubles(found, embedded, own, options)
    if len(test_TD):
        near = nearest(test_TD, embedded.means_ED, options.neighbours, options.device)
        found.test_compared = near.compared
        found.test_threshold = near.limit(options.expected) if options.threshold is None else options.threshold
        found.overlaps = [
            Overlap(*sought[i], int(embedded.classes_E[c]), cosine)
            for i, c, cosine in near.pairs(found.test_threshold)
        ]
    return found


def _embed_tests(
    found: Found, embedder: Embedder, tests: Sequence[TestPeople], options: Options
) -> tuple[NDArray[np.float32], list[tuple[int, int, list[int]]]]:
    """(T, D) the mean of each person's sound images, of length 1; and test set, number in it and images of each."""
    means: list[NDArray[np.float32]] = []
    sought: list[tuple[int, int, list[int]]] = []
    for t, test in enumerate(tests):
        look = TestLook(damaged=list(test.damaged))
        found.tests.append(look)
        label = "embed " + os.fsencode(Path(test.name).name).decode(errors="replace")
        embedded = embed_groups(embedder, test.load, test.images, options.batch_size, look.damaged.append, label)
        for p, (rows_nD, is_good_n) in enumerate(embedded):
            if len(rows_nD):
                means.append(_unit(rows_nD.mean(0)))
                sought.append((t, p, test.images[p][is_good_n].tolist()))
                look.people += 1
        if not look.people:
            raise ValueError(f"{test.name}: none of its images can be used; the first: {look.damaged[0]}")
    return np.array(means, np.float32).reshape(len(means), embedder.embedding_size), sought


def _embed_classes(
    faces: JoinedSets,
    own: ClassImages,
    embedder: Embedder,
    chosen: Sequence[int],
    on_damaged: Callable[[str], None] | None,
    options: Options,
    means: Path,
) -> Embedded:
    """Embed images of these classes, one class after the other; their means go into the file ``means``."""
    means_ED: NDArray[Any] = np.lib.format.open_memmap(
        means, "w+", np.float32, (max(len(chosen), 1), embedder.embedding_size)
    )
    classes: list[int] = []
    sizes: list[int] = []
    figures: list[tuple[float, float, float]] = []
    sides: list[bytes] = []
    groups = [own.some(number, options.images) for number in chosen]
    embedded = embed_groups(
        embedder, lambda number: faces.load(number)[0], groups, options.batch_size, on_damaged, "embed"
    )
    for number, (rows_nD, is_good_n) in zip(chosen, embedded, strict=True):
        if len(rows_nD) == 0:
            continue
        mean_D, two = rows_nD.mean(0), divide(rows_nD)
        means_ED[len(classes)] = _unit(mean_D)
        classes.append(number)
        sizes.append(len(rows_nD))
        length = float(np.linalg.norm(mean_D))
        if two is None:
            figures.append((length, np.nan, np.nan))
            sides.append(b"")
            continue
        figures.append((length, two.between, two.within))
        side_n = np.full(len(is_good_n), 2, np.uint8)
        side_n[is_good_n] = two.is_second_n
        sides.append(side_n.tobytes())
    length_E, between_E, within_E = np.array(figures, np.float64).reshape(-1, 3).T
    classes_E, sizes_E = np.array(classes, np.int64), np.array(sizes, np.int64)
    return Embedded(classes_E, sizes_E, means_ED[: len(classes)], length_E, between_E, within_E, sides)


def _near_classes(centres: Centres, test_TD: NDArray[np.float32], options: Options) -> NDArray[np.int64]:
    """Classes whose centre is nearer to another than by chance, or near somebody of a test set; and a sample."""
    near = nearest(centres.rows_VD, None, options.neighbours, options.device)
    pairs = near.pairs(near.limit(CHANCE * len(centres.classes_V)))
    at = {i for a, b, _ in pairs for i in (a, b)}
    if len(test_TD):
        found = nearest(test_TD, centres.rows_VD, options.neighbours, options.device).numbers_nk
        at |= set(found[found >= 0].tolist())
    at |= set(np.random.default_rng(0).permutation(len(centres.classes_V))[:SAMPLE].tolist())
    return centres.classes_V[sorted(at)]


def _find_pairs(found: Found, embedded: Embedded, centres: Centres | None, options: Options) -> None:
    near = nearest(embedded.means_ED, None, options.neighbours, options.device)
    found.compared = near.compared
    found.threshold = near.limit(options.expected) if options.threshold is None else options.threshold
    seen = set()
    for i, j, cosine in near.pairs(found.threshold):
        a, b = sorted((int(embedded.classes_E[i]), int(embedded.classes_E[j])))
        if (a, b) not in seen:
            seen.add((a, b))
            found.pairs.append(Pair(a, b, cosine, None if centres is None else centres.cosine(a, b)))


def _find_doubles(found: Found, embedded: Embedded, own: ClassImages, options: Options) -> None:
    between_E, within_E = embedded.between_E, embedded.within_E
    ratio_E = between_E / np.maximum(within_E, NOTHING_IN_COMMON)
    divided = np.flatnonzero(~np.isnan(between_E))
    found.divisible = len(divided)
    if options.apart is not None:
        found.ratio_limit = options.apart
    else:
        strangers = _strangers(embedded)
        if len(strangers):
            found.ratio_limit = low_limit(ratio_E[divided], options.expected)
            found.between_limit = float(np.quantile(strangers, STRANGERS))
    is_double_E = (ratio_E <= found.ratio_limit) | (between_E <= found.between_limit)
    for i in sorted(np.flatnonzero(is_double_E).tolist(), key=lambda i: float(between_E[i])):
        number = int(embedded.classes_E[i])
        numbers_n, side_n = own.some(number, options.images), np.frombuffer(embedded.sides[i], np.uint8)
        sides = numbers_n[side_n == 0].tolist(), numbers_n[side_n == 1].tolist()
        found.doubles.append(TwoPeople(number, float(between_E[i]), float(within_E[i]), float(ratio_E[i]), sides))


def _strangers(embedded: Embedded) -> NDArray[np.float64]:
    """Mean cosines of an image of one class and one of another, for a sample of classes with several images.

    None for too few such classes to tell.
    """
    several = np.flatnonzero(embedded.sizes_E >= 2 * MIN_GROUP)
    if len(several) < FEWEST:
        return np.empty(0)
    sample = np.random.default_rng(0).permutation(several)[:SAMPLE]
    rows = embedded.means_ED[sample] * embedded.length_E[sample, None]  # means of the images' unit vectors
    return np.asarray((rows @ rows.T)[np.triu_indices(len(sample), 1)], np.float64)


def _unit(x_D: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x_D / max(float(np.linalg.norm(x_D)), 1e-12), np.float32)
