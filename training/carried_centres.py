"""Class centres of an older run for those of its people who are in a new run's data too.

Shapes: S classes of one block, D embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.faces import FaceDataset
from heads.saved import SavedHeads
from heads.shard import HeadShard
from training.checkpoint import find_checkpoint, open_saved_heads
from utils.settings import Config

Names = Sequence[str | None]


class CarriedPeople:
    """Who of an older run's people is who here.

    Args:
        saved: the older run's heads, opened.
        old_of_new: new class number to old one.
        old_count: the older run's people.
        new_count: this run's people.
    """

    def __init__(self, saved: SavedHeads, old_of_new: dict[int, int], old_count: int, new_count: int) -> None:
        self.saved, self.old_count, self.new_count = saved, old_count, new_count
        self._new = np.array(sorted(old_of_new), np.int64)
        self._old = np.array([old_of_new[number] for number in self._new.tolist()], np.int64)

    def report(self, carried: int) -> str:
        """Who came along; ``carried`` of those in both had centres that were ever trained."""
        untrained = len(self._new) - carried
        return (
            f"{carried} of {self.new_count} people carried over, {self.new_count - carried} new, "
            f"{self.old_count - len(self._new)} left behind"
            + (
                f"; {untrained} of the new ones are in the older run, but no step has trained them"
                if untrained
                else ""
            )
        )

    def find(self, classes_S: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The old centres (S, D) of consecutive new classes, and which of them have one that was ever trained."""
        rows_SD = np.zeros((len(classes_S), self.saved.settings["embedding_size"]), np.float32)
        has_one_S = np.zeros(len(classes_S), bool)
        low, high = np.searchsorted(self._new, [classes_S[0], classes_S[-1] + 1])
        order = self._old[low:high].argsort()  # the reader takes ascending classes
        found_nD, updates_n = self.saved.centres(self._old[low:high][order])
        places_n = (self._new[low:high] - classes_S[0])[order]
        rows_SD[places_n] = found_nD
        has_one_S[places_n] = updates_n > 0
        return rows_SD, has_one_S


def find_carried_people(cfg: Config, shard: HeadShard, faces: FaceDataset) -> CarriedPeople:
    """Open the older run that ``init_centres`` names and match its people with those of the data.

    Raises:
        FileNotFoundError: there is no checkpoint, or no ``centres_map``.
        ValueError: another embedding size, people without names and no ``centres_map``, a wrong entry in it, a name
            that two classes have, or nobody in both.
    """
    assert cfg.init_centres is not None
    try:
        checkpoint = find_checkpoint(Path(cfg.init_centres))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init_centres is neither class_means nor a checkpoint: {error}") from None
    saved = open_saved_heads(checkpoint)
    size = saved.settings["embedding_size"]
    if size != shard.embedding_size:
        raise ValueError(
            f"init_centres: the centres in {checkpoint} have {size} numbers, this run's have {shard.embedding_size}; "
            f"set embedding_size = {size}, or leave init_centres out"
        )
    old_count, new_count = saved.settings["num_classes"], shard.layout.num_classes
    old_names, new_names = _names_of_run(checkpoint), faces.class_names()
    if cfg.centres_map is not None:
        old_of_new = _read_map(Path(cfg.centres_map), (old_names, old_count), (new_names, new_count))
    else:
        old_of_new = _match_names(checkpoint, old_names, new_names)
    return CarriedPeople(saved, old_of_new, old_count, new_count)


def _names_of_run(checkpoint: Path) -> Names | None:
    """What the classes.json of the checkpoint's run names them, None without one."""
    path = checkpoint.resolve().parent.parent / "classes.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); use centres_map and move it away") from None
    names: Names | None = content["names"] if isinstance(content, dict) else content  # of several sets, of one
    return names


def _match_names(checkpoint: Path, old: Names | None, new: Names | None) -> dict[int, int]:
    explain = 'give centres_map = FILE.json, {"old class number or name": new class number or name, ...}'
    if old is None or new is None:
        where = f"{checkpoint.parent.parent / 'classes.json'}" if old is None else "this run's data"
        raise ValueError(f"init_centres: {where} has no names of people to match by; {explain}")
    old_numbers, new_numbers = _numbers(old, "the older run"), _numbers(new, "this run's data")
    both = {new_numbers[name]: number for name, number in old_numbers.items() if name in new_numbers}
    if not both:
        raise ValueError(
            f"init_centres: nobody of {checkpoint} is in this run's data by name (there "
            f"{next(iter(old_numbers), None)!r}, ..., here {next(iter(new_numbers), None)!r}, ...); {explain}"
        )
    return both


def _numbers(names: Names, whose: str) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        if name is None:
            continue
        if name in numbers:
            raise ValueError(
                f"init_centres: {name!r} is the name of classes {numbers[name]} and {number} of {whose}; say who is "
                "who with centres_map"
            )
        numbers[name] = number
    return numbers


def _read_map(path: Path, old: tuple[Names | None, int], new: tuple[Names | None, int]) -> dict[int, int]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: centres_map is JSON, old class number or name to new one")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(entries, dict):
        raise ValueError(f'{path}: expected {{"old class number or name": new class number or name, ...}}')
    old_of_new: dict[int, int] = {}
    taken: set[int] = set()
    for old_key, new_key in entries.items():
        there = _class_number(path, old_key, *old, "the older run")
        here = _class_number(path, new_key, *new, "this run")
        if here in old_of_new or there in taken:
            raise ValueError(f"{path}: {old_key!r}: {new_key!r} names someone whom an earlier entry names")
        old_of_new[here] = there
        taken.add(there)
    return old_of_new


def _class_number(path: Path, given: object, names: Names | None, count: int, whose: str) -> int:
    """A class given by name, or by number where no class has that name."""
    if isinstance(given, str) and (found := [i for i, name in enumerate(names or ()) if name == given]):
        if len(found) > 1:
            raise ValueError(f"{path}: {given!r} is the name of {len(found)} classes of {whose}: give a number")
        return found[0]
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise ValueError(f"{path}: no class {given!r} in {whose}, which has 0 to {count - 1}")
    return number
