"""What the columns of a list of pairs say besides the pair: whose faces they are, and of which group.

Shapes: n pairs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST, _SECOND = ("path1", "p1", "image1", "img1", "file1"), ("path2", "p2", "image2", "img2", "file2")
_SAME = ("issame", "same", "label", "is_same", "flag")
_PEOPLE = (("id1", "id2"), ("person1", "person2"), ("subject1", "subject2"), ("identity1", "identity2"))
_GROUP = ("group", "race", "ethnicity", "attribute")
_GROUPS = (("group1", "group2"), ("att1", "att2"), ("a1", "a2"), ("race1", "race2"), ("ethnicity1", "ethnicity2"))


@dataclass(frozen=True)
class PairColumns:
    """Whose faces, and of which group."""

    first: NDArray[np.integer[Any]] | None = None  # (n,) person of the first face, None where it is not known
    second: NDArray[np.integer[Any]] | None = None  # (n,)
    people_by: str = ""  # how the people are known
    groups: NDArray[np.str_] | None = None  # (n,) "" for a pair of two groups; None without such a column


def pair_places(names: Sequence[str]) -> tuple[int, ...] | None:
    """The columns of the two paths and the flag in a first line that names them; None in another."""
    places = [_place(names, known) for known in (_FIRST, _SECOND, _SAME)]
    found = [place for place in places if place is not None]
    return tuple(found) if len(found) == len(places) else None


def _place(names: Sequence[str], known: Sequence[str]) -> int | None:
    lower = [name.strip().lower() for name in names]
    return next((lower.index(name) for name in known if name in lower), None)


def read_columns(path: Path, issame: NDArray[np.bool_]) -> PairColumns:
    """Read what else a list of pairs says. Its pairs have been read already, so that it is known to be sound.

    People are told by the columns id1 and id2 (or person1, ...), or by the images' folders if these agree with every
    flag. Groups are told by a column ``group`` (race, ethnicity) or by two, one a side, as BFW's att1 and att2.

    Args:
        path: a csv list.
        issame: (n,) its flags.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as text:
        rows = [row for row in csv.reader(text, skipinitialspace=True) if row]
    names: Sequence[str] = rows[0] if rows else []
    places = pair_places(names)
    body = rows[len(rows) - len(issame) :]
    if len(body) != len(issame) or any(len(row) < (len(names) if places else 2) for row in body):
        return PairColumns()  # a list of another form, which says nothing here
    if places is None:
        return _by_folders(body, (0, 1), issame)
    people = next((pair for pair in _PEOPLE if None not in _both(names, pair)), None)
    found = _numbered(body, _both(names, people), "columns") if people else _by_folders(body, places[:2], issame)
    groups = None
    both = next((pair for pair in _GROUPS if None not in _both(names, pair)), None)
    one = _place(names, _GROUP)
    if one is not None:
        groups = np.array([row[one].strip() for row in body])
    elif both is not None:
        a, b = _both(names, both)
        groups = np.array([row[a].strip() if row[a].strip() == row[b].strip() else "" for row in body])
    return PairColumns(found.first, found.second, found.people_by, groups)


def _both(names: Sequence[str], pair: tuple[str, str]) -> tuple[Any, Any]:
    return _place(names, (pair[0],)), _place(names, (pair[1],))


def _by_folders(rows: Sequence[Sequence[str]], places: Sequence[int], issame: NDArray[np.bool_]) -> PairColumns:
    folders = [[str(PurePosixPath(row[place].strip()).parent) for place in places] for row in rows]
    if all((a == b) == same for (a, b), same in zip(folders, issame.tolist(), strict=True)):
        return _numbered(folders, (0, 1), "folders")
    return PairColumns()


def _numbered(rows: Sequence[Sequence[str]], places: Sequence[int], by: str) -> PairColumns:
    number: dict[str, int] = {}
    sides = [np.array([number.setdefault(row[place].strip(), len(number)) for row in rows]) for place in places]
    return PairColumns(sides[0], sides[1], f"as the list's {by} say")
