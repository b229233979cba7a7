"""The people of a test set: of a verification set (.bin), of records, or of identity folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataset import open_faces
from eval.pairs.bin_file import load_bin
from tools.parts.duplicate_checks import groups_of
from tools.parts.run_faces import ClassImages, Load
from utils.decode import decode_rgb

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class TestPeople:
    """Who is in a test set, as far as it says."""

    __test__ = False  # no test, though pytest might think so

    name: str
    people: list[str]  # a name, a label, or the first image of each
    images: list[NDArray[np.int64]]  # of each person, at most as many as asked for
    load: Load
    damaged: list[str] = field(default_factory=list)  # images of nobody, since their labels are damaged
    note: str = ""  # what is unusual about the set


def open_test(path: Path, image_size: Size, most: int) -> TestPeople:
    """Open a test set.

    A .bin tells of pairs only: images that its pairs of one person link, and images that are equal, are one person.
    Images are not decoded yet; ``load`` says what is wrong with one.

    Args:
        path: a .bin file, a .rec file, a folder with train.rec, or a folder of identity folders.
        image_size: that the network takes.
        most: images of each person.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is something else, or damaged.
    """
    if path.suffix == ".bin":
        return _open_bin(path, image_size, most)
    faces = open_faces(path, image_size, "skip")
    own = ClassImages(faces)
    if faces.warning:
        raise ValueError(faces.warning)
    damaged = [f"{faces.where(i)}: its label is damaged" for i in np.flatnonzero(faces.labels < 0).tolist()]
    present = np.flatnonzero(own.counts).tolist()
    names = faces.class_names() or []
    people = [(names[i] if i < len(names) else None) or f"label {i}" for i in present]
    images = [own.some(i, most) for i in present]
    return TestPeople(str(path), people, images, lambda number: faces.load(number)[0], damaged, faces.note)


def _open_bin(path: Path, image_size: Size, most: int) -> TestPeople:
    pairs = load_bin(path)
    if not pairs.encoded:
        raise ValueError(f"{path}: there is no pair in it: make the set again")
    first: dict[bytes, int] = {}
    same = [first.setdefault(encoded, i) for i, encoded in enumerate(pairs.encoded)]
    links = [(i, i) for i in set(same)]
    links += [(same[2 * p], same[2 * p + 1]) for p in np.flatnonzero(pairs.issame).tolist()]
    groups = sorted(groups_of(links))
    images = [np.array(group[:most]) for group in groups]
    return TestPeople(
        str(path), [f"image {group[0]}" for group in groups], images, _loader(path, pairs.encoded, image_size)
    )


def _loader(path: Path, encoded: list[bytes], image_size: Size) -> Callable[[int], NDArray[np.uint8]]:
    def load(number: int) -> NDArray[np.uint8]:
        try:
            image = decode_rgb(encoded[number])
        except ValueError as error:
            raise ValueError(f"{path}, image {number}: {error}: make the set again") from None
        if image.shape[:2] != image_size:
            raise ValueError(
                f"{path}, image {number}: its (height, width) is {image.shape[:2]}, expected {image_size}: make the "
                "set from aligned faces of that size"
            )
        return image

    return load
