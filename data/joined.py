"""Several sets of faces as one: labels continue from set to set, people who are in more than one are joined.

Shapes: N images and C classes of all sets together.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.faces import Encoded, FaceDataset, OnBadSample
from utils.text import parse_json

T = TypeVar("T")
Person = dict[int, list[int]]  # number of a set -> that person's classes in it


class SetOfClasses(NamedTuple):
    """What one of several sets contributes."""

    name: str
    images: range  # sample ids
    classes: range  # numbers that it was the first to use
    shared: int  # of its classes, those that have a number of an earlier set or class


class JoinedSets(FaceDataset):
    """Sets one after the other, as one.

    The classes of the first set keep their numbers; those of each further set are numbered on from there, without
    those that ``class_map`` says are people seen before. Two folders of the same name in two sets are two people,
    unless the map joins them.

    How many classes a set of records has is counted at the first use; ``class_counts`` may be set to what another
    process has counted.

    Args:
        sets: at least one, all with images of one size.
        names: of the sets, for messages and the map; by default their numbers.
        class_map: a JSON file, a list of people who are in several sets or have several labels in one, each
            ``{"SET": CLASS, ...}``. SET is the set's number in the list, from 0 on, or its name; CLASS a folder's
            name or a label of that set, or a list of these.

    Raises:
        ValueError: the sets' image sizes differ.
    """

    def __init__(
        self,
        sets: Sequence[FaceDataset],
        names: Sequence[str] | None = None,
        class_map: str | Path | None = None,
        on_bad_sample: OnBadSample = "stop",
    ) -> None:
        self._sets, self.class_map, self.on_bad_sample = list(sets), class_map, on_bad_sample
        self.names = [str(number) for number in range(len(sets))] if names is None else list(names)
        self.image_size = sets[0].image_size
        self.is_encoded = all(one.is_encoded for one in sets)
        self.starts = np.cumsum([0, *map(len, sets)])  # each set's first sample id, and N
        if any(one.image_size != self.image_size for one in sets):
            raise ValueError(f"the sets' images differ in size: {[one.image_size for one in sets]}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def sets(self) -> Sequence[FaceDataset]:
        """The sets in their order."""
        return self._sets

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """Each set's number of classes."""
        return tuple(one.num_classes for one in self.sets)

    @cached_property
    def numbering(self) -> list[NDArray[np.int64]]:
        """For each set, the class here of each of its own classes; ValueError as :func:`read_class_map`."""
        people: list[Person] = []
        if self.class_map is not None:
            people = read_class_map(self.class_map, self.names, self.sets, self.class_counts)
        numbering, following = [], 0
        person_of = {(s, c): i for i, person in enumerate(people) for s, own in person.items() for c in own}
        number_of_person: dict[int, int] = {}
        for number, count in enumerate(self.class_counts):
            is_new = np.ones(count, bool)
            joined: dict[int, int] = {}
            for (_, own), person in sorted(item for item in person_of.items() if item[0][0] == number):
                if person in number_of_person:
                    is_new[own] = False
                    joined[own] = number_of_person[person]
                else:  # its number follows from how many new classes come before it
                    number_of_person[person] = following + int(is_new[:own].sum())
            table = following - 1 + np.cumsum(is_new)
            table[list(joined)] = list(joined.values())
            following += int(is_new.sum())
            numbering.append(table)
        return numbering

    @property
    def num_classes(self) -> int:
        """C, classes without an image included."""
        return max(int(table.max()) for table in self.numbering) + 1

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label; see ``FaceDataset.labels``."""
        parts = []
        for one, table in zip(self.sets, self.numbering, strict=True):
            own = one.labels
            parts.append(np.where(own < 0, -1, table[own]))
        return np.concatenate(parts)

    def parts(self) -> list[SetOfClasses]:
        """The sets, and the classes that each was the first to use."""
        result, following = [], 0
        for number, table in enumerate(self.numbering):
            new = np.unique(table[table >= following])
            images = range(int(self.starts[number]), int(self.starts[number + 1]))
            classes = range(following, following + len(new))
            result.append(SetOfClasses(self.names[number], images, classes, len(table) - len(new)))
            following += len(new)
        return result

    def class_names(self) -> list[str | None] | None:
        """``SET/NAME`` where a class has a name, SET being the first set that has it."""
        names: list[str | None] = [None] * self.num_classes
        for set_name, one, table in zip(self.names, self.sets, self.numbering, strict=True):
            for own, name in enumerate((one.class_names() or [])[: len(table)]):
                if names[table[own]] is None and name is not None:
                    names[table[own]] = f"{set_name}/{name}"
        return names if any(names) else None

    def read(self, index: int) -> tuple[Encoded, int]:
        """The encoded image ``index`` and its label; see ``FaceDataset.read``."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[tuple[Encoded, int]]:
        """What ``read`` gives for several images; each set is asked once."""
        return self._from_sets(indices, lambda one, own: one.read_many(own))

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` and its label; see ``FaceDataset.load``."""
        return next(self.load_many([index]))

    def load_many(self, indices: Sequence[int]) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """What ``load`` gives for several images."""
        yield from self._from_sets(indices, lambda one, own: list(one.load_many(own)))

    def where(self, index: int) -> str:
        """File and place of image ``index``."""
        number, own = self._own(index)
        return self.sets[number].where(own)

    def _own(self, index: int) -> tuple[int, int]:
        """The set that image ``index`` is from, and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return number, index - int(self.starts[number])

    def _from_sets(
        self, indices: Sequence[int], get: Callable[[FaceDataset, list[int]], list[tuple[T, int]]]
    ) -> list[tuple[T, int]]:
        places = [self._own(index) for index in indices]
        found: dict[int, tuple[T, int]] = {}
        for number in sorted({number for number, _ in places}):
            here = [b for b, place in enumerate(places) if place[0] == number]
            own = [places[b][1] for b in here]
            for b, (value, label) in zip(here, get(self.sets[number], own), strict=True):
                found[b] = value, self._number(number, label, indices[b])
        return [found[b] for b in range(len(indices))]

    def _number(self, number: int, label: int, index: int) -> int:
        table = self.numbering[number]
        if not 0 <= label < len(table):
            raise ValueError(f"{self.where(index)}: label {label}, but this set has classes 0 to {len(table) - 1}")
        return int(table[label])


def read_class_map(
    path: str | Path, names: Sequence[str], sets: Sequence[FaceDataset], class_counts: Sequence[int]
) -> list[Person]:
    """Read which classes of which sets are the same person; see :class:`JoinedSets`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a list of people, names a set or class that does not exist, or a class twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; class_map is a JSON list of people with several labels")
    try:
        entries = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path}: expected a list of people, such as [{{"0": "ann", "1": 17}}, ...]')
    classes_of_set: dict[int, dict[str, int]] = {}
    people: list[Person] = []
    seen: dict[tuple[int, int], int] = {}
    for entry_number, entry in enumerate(entries):
        person: Person = {}
        for set_key, classes in entry.items():
            try:
                number = _set_number(set_key, names)
                if number not in classes_of_set:
                    own_names = sets[number].class_names() or []
                    classes_of_set[number] = {name: i for i, name in enumerate(own_names) if name is not None}
                for given in classes if isinstance(classes, list) else [classes]:
                    own = _class_number(given, classes_of_set[number], class_counts[number])
                    if (number, own) in seen:
                        raise ValueError(f"class {given!r} of set {set_key} is in entry {seen[number, own]} already")
                    seen[number, own] = entry_number
                    person.setdefault(number, []).append(own)
            except ValueError as error:
                raise ValueError(f"{path}: entry {entry_number}: {error}") from None
        people.append(person)
    return people


def _set_number(given: str, names: Sequence[str]) -> int:
    """The number of a set that is given by name, or by number where no set has that name."""
    if list(names).count(given) > 1:
        raise ValueError(f"{len(names)} sets, of which several are called {given!r}: give the set's number")
    if given in names:
        return list(names).index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise ValueError(f"no set {given!r}; there are 0 to {len(names) - 1}: {', '.join(names)}")


def _class_number(given: object, by_name: dict[str, int], count: int) -> int:
    if isinstance(given, str):
        if given in by_name:
            return by_name[given]
        near = difflib.get_close_matches(given, by_name, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the set has {len(by_name)} named classes"
        raise ValueError(f"no class {given!r}; {hint}")
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < count:
        raise ValueError(f"no class {given!r}; the set has 0 to {count - 1}")
    return given
