"""Sets of faces with planted mistakes: people under two labels, labels of two people, people of a test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.faces import FaceRecords
from data.records.writer import write_face_records
from tools.demo_faces.sets import aligned_faces

People = Sequence[Sequence[bytes]]  # each person's encoded images

MIN_IMAGES = 4  # of a person who is chosen for a mistake: two a side


@dataclass(frozen=True)
class Truth:
    """What was planted; classes are labels of the training set, people identities of the test set."""

    splits: set[tuple[int, int]]  # pairs of classes that are one person, the smaller first
    merges: set[int]  # classes of two people
    leaks: dict[int, int]  # person of the test set -> the class that holds the same person
    test_people: int  # of the test set, those of no class included


def plant(people: People, out: Path, seed: int = 0) -> Truth:
    """Write ``out``/train and ``out``/test, records of the same people with mistakes in them.

    The people with at least ``MIN_IMAGES`` images are dealt out at random: a third of them is split in two labels,
    a third goes by twos under one label, a sixth gives two images each to the test set, and of a sixth the test set
    gets two images and training none.

    Raises:
        ValueError: fewer than 12 people have that many images.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation([i for i, images in enumerate(people) if len(images) >= MIN_IMAGES]).tolist()
    if len(chosen) < 12:
        raise ValueError(f"{len(chosen)} people have {MIN_IMAGES} images or more; planting mistakes takes 12")
    third, sixth = len(chosen) // 3, len(chosen) // 6
    split, merged = chosen[:third], chosen[third : third + third // 2 * 2]
    leaked, apart = chosen[2 * third : 2 * third + sixth], chosen[2 * third + sixth :]
    pairs = dict(zip(merged[::2], merged[1::2], strict=True))
    absent = {*merged[1::2], *apart}
    groups: list[tuple[str, int, list[bytes]]] = []  # what was done, to whom, the images of one label
    test: list[list[bytes]] = []
    for i, images in enumerate(people):
        shuffled = [images[k] for k in rng.permutation(len(images))]
        if i in split:
            half = len(shuffled) // 2
            groups += [("split", i, shuffled[:half]), ("split", i, shuffled[half:])]
        elif i in pairs:
            groups.append(("merge", i, [*shuffled, *people[pairs[i]]]))
        elif i in leaked:
            test.append(shuffled[:2])
            groups.append(("leak", i, shuffled[2:]))
        elif i not in absent:
            groups.append(("", i, shuffled))
    leaks = sorted(leaked)
    test += [list(people[i][:2]) for i in sorted(apart)]
    order = rng.permutation(len(groups))
    groups = [groups[k] for k in order]
    write_face_records(out / "train", [images for _, _, images in groups])
    write_face_records(out / "test", test)
    label_of: dict[tuple[str, int], list[int]] = {}
    for label, (what, i, _) in enumerate(groups):
        label_of.setdefault((what, i), []).append(label)
    return Truth(
        {(a, b) for a, b in (label_of["split", i] for i in split)},
        {label_of["merge", i][0] for i in pairs},
        {number: label_of["leak", i][0] for number, i in enumerate(leaks)},
        len(test),
    )


def people_of(records: Path) -> list[list[bytes]]:
    """The encoded images of each class of a record file, in the order of the labels; for sets that fit in memory."""
    faces = FaceRecords(records)
    people: list[list[bytes]] = [[] for _ in range(faces.num_classes)]
    for i in range(len(faces)):
        encoded, label = faces.read(i)
        people[label].append(bytes(encoded))
    return [images for images in people if images]


def made_up_people(count: int, images: int) -> list[list[bytes]]:
    """People of the demo with so many images each."""
    return [aligned_faces(0, "train", i, images) for i in range(count)]
