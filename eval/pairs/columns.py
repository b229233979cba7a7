"""What the columns of a list of pairs say besides the pair: whose faces they are, and of which group.

Shapes: n pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.list_text import shown
from utils.pair_list import PairList

# Headings without blanks and underscores: "id_1" is id1.
_PEOPLE = (("id1", "id2"), ("person1", "person2"), ("subject1", "subject2"), ("identity1", "identity2"))
_GROUP = ("group", "race", "ethnicity", "attribute")
_GROUPS = (("group1", "group2"), ("att1", "att2"), ("a1", "a2"), ("race1", "race2"), ("ethnicity1", "ethnicity2"))

_Side = Sequence[str]


@dataclass(frozen=True)
class PairColumns:
    """Whose faces, and of which group."""

    first: NDArray[np.integer[Any]] | None = None  # (n,) person of the first face, None where it is not known
    second: NDArray[np.integer[Any]] | None = None  # (n,)
    people_by: str = ""  # how the people are known
    groups: NDArray[np.str_] | None = None  # (n,) "" for a pair of two groups; None without such a column
    notes: tuple[str, ...] = ()  # which columns say so, and which do not fit


def read_columns(listed: PairList, paths: Sequence[tuple[Path, Path]]) -> PairColumns:
    """Interpret what else a list of pairs says.

    People are told by the columns id1 and id2 (or person1, ...), by LFW's names, or by the images' folders; by the
    first of these that agrees with every flag: one person where the flag says so, and two elsewhere. Groups are told
    by a column ``group`` (race, ethnicity) or by two, one a side, as BFW's att1 and att2.

    Args:
        listed: the list.
        paths: n, its images.
    """
    issame = [pair.same for pair in listed.pairs]
    known = {name.replace("_", ""): cells for name, cells in reversed(listed.further.items())}
    notes: list[str] = []
    found = PairColumns()
    for by, sides, names in _people(listed, known, paths):
        wrong = _disagreement(sides, issame)
        if wrong is None:
            found = PairColumns(*_numbered(sides), people_by=by)
            break
        if names:
            notes.append(
                f"{names} do not say who is who: line {listed.pairs[wrong].line} has {shown(sides[0][wrong])} and "
                f"{shown(sides[1][wrong])} where the flag says {'one person' if issame[wrong] else 'two people'}"
            )
    groups, by = _groups(known)
    if by:
        notes.append(f"groups by {by}")
    return replace(found, groups=groups, notes=tuple(notes))


def _people(
    listed: PairList, known: dict[str, list[str]], paths: Sequence[tuple[Path, Path]]
) -> Iterator[tuple[str, tuple[_Side, _Side], str]]:
    """What may tell people, best first: in words, the person on each side, and the columns if it is columns."""
    for a, b in _PEOPLE:
        if a in known and b in known:
            yield "as the list's columns say", (known[a], known[b]), f"columns {a} and {b}"
    folder = {path: str(path.parent) for path in {path for pair in paths for path in pair}}
    sides = [folder[a] for a, _ in paths], [folder[b] for _, b in paths]
    yield f"as the list's {'names' if listed.is_lfw else 'folders'} say", sides, ""


def _disagreement(sides: tuple[_Side, _Side], issame: Sequence[bool]) -> int | None:
    """The first pair whose people do not fit its flag, or are not known."""
    both = zip(*sides, issame, strict=True)
    return next((i for i, (a, b, same) in enumerate(both) if (a == b) != same or not a or not b), None)


def _numbered(sides: tuple[_Side, _Side]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    number: dict[str, int] = {}
    first, second = (
        np.array([number.setdefault(person, len(number)) for person in side], np.int64) for side in sides
    )
    return first, second


def _groups(known: dict[str, list[str]]) -> tuple[NDArray[np.str_] | None, str]:
    """The group of each pair, and the columns that say so."""
    for name in _GROUP:
        if name in known:
            return np.array(known[name]), f"column {name}"
    for a, b in _GROUPS:
        if a in known and b in known:
            both = zip(known[a], known[b], strict=True)
            return np.array([one if one == other else "" for one, other in both]), f"columns {a} and {b}"
    return None, ""
