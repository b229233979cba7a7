"""What ``find_duplicates`` leaves: tables, pictures, and the map that joins classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.joined import JoinedSets
from tools.parts.contact_sheet import FACE, Row, contact_sheet, write_png
from tools.parts.duplicate_checks import class_map, class_names, groups_of
from tools.parts.duplicate_search import Found
from tools.parts.run_faces import ClassImages
from tools.parts.test_people import TestPeople
from utils.atomic import open_atomic, write_json
from utils.text import parse_json

MAP, NEW_MAP = "class_map.json", "class_map.new.json"
A_SIDE = 4  # pictures of each of the two in a row of a sheet
_WHITE = np.full((FACE, FACE, 3), 255, np.uint8)
_RED = np.full((FACE, FACE, 3), (200, 30, 30), np.uint8)  # in place of a damaged image
_LETTERS = 24  # of a name in a sheet

Cells = list[object]


class Output:
    """Writes the files of one search into a folder.

    Args:
        out: the folder.
        faces: the training set.
        shown: rows of each picture, at most.
        images: of each class that were looked at, at most.
    """

    def __init__(self, out: Path, faces: JoinedSets, shown: int, images: int) -> None:
        self.out, self.faces, self.shown, self.images = out, faces, shown, images
        self.own, self.names = ClassImages(faces), class_names(faces)

    def pairs(self, found: Found) -> list[list[int]]:
        """Write duplicates.csv and duplicates.png; returns the groups that the map joins.

        Pairs with a class that seems to hold two people are in the table but not in the map.
        """
        doubtful = {double.number for double in found.doubles}
        joined = [(p.first, p.second) for p in found.pairs if not {p.first, p.second} & doubtful]
        groups = groups_of(joined)
        group_of = {number: i for i, group in enumerate(groups) for number in group}
        table: list[Cells] = []
        rows: list[Row] = []
        for p in found.pairs:
            a, b = p.first, p.second
            in_map = not {a, b} & doubtful
            cells: Cells = [a, self.names[a], self._count(a), b, self.names[b], self._count(b), f"{p.cosine:.4f}"]
            cells.append("" if p.centre_cosine is None else f"{p.centre_cosine:.4f}")
            table.append([*cells, group_of[a] if in_map else "", "yes" if in_map else "no: two people"])
            if len(rows) < self.shown:
                texts = [self._title(a), self._title(b), f"cosine {p.cosine:.3f}"]
                rows.append(self._row(texts, self._pictures(a), self._pictures(b)))
        head = "class_1,name_1,images_1,class_2,name_2,images_2,image_cosine,centre_cosine,group,in_class_map"
        self._write("duplicates", head, table, rows)
        return groups

    def doubles(self, found: Found) -> None:
        """Write classes_with_two_people.csv and its picture."""
        table: list[Cells] = []
        rows: list[Row] = []
        for double in found.doubles:
            cells: Cells = [double.number, self.names[double.number], self._count(double.number)]
            cells += [f"{value:.4f}" for value in (double.between, double.within, double.ratio)]
            table.append([*cells, *("; ".join(map(self.faces.where, side)) for side in double.sides)])
            if len(rows) < self.shown:
                texts = [self._title(double.number), f"between {double.between:.3f}", f"within {double.within:.3f}"]
                pictures = [[self._load_any(i) for i in side[:A_SIDE]] for side in double.sides]
                rows.append(self._row(texts, *pictures))
        head = "class,name,images,cosine_between,cosine_within,ratio,first_person,second_person"
        self._write("classes_with_two_people", head, table, rows)

    def overlaps(self, found: Found, tests: Sequence[TestPeople]) -> None:
        """Write test_overlap.csv and its picture."""
        table: list[Cells] = []
        rows: list[Row] = []
        for overlap in found.overlaps:
            test, number = tests[overlap.test], overlap.number
            person = test.people[overlap.person]
            cells: Cells = [test.name, person, len(overlap.images), number, self.names[number], self._count(number)]
            table.append([*cells, f"{overlap.cosine:.4f}"])
            if len(rows) < self.shown:
                texts = [f"test: {_drawn(person)}", self._title(number), f"cosine {overlap.cosine:.3f}"]
                rows.append(self._row(texts, [test.load(i) for i in overlap.images[:A_SIDE]], self._pictures(number)))
        head = "test_set,person,images_compared,class,name,images,image_cosine"
        self._write("test_overlap", head, table, rows)

    def map(self, groups: Sequence[Sequence[int]], overwrite: bool) -> Path:
        """Write class_map.json, or ``NEW_MAP`` where another map has that name already; returns which.

        Args:
            groups: classes that are one person, as ``pairs`` returns them.
            overwrite: whether another map may be replaced.
        """
        path, new = self.out / MAP, class_map(self.faces, groups)
        if path.exists() and not overwrite and not _holds(path, new):
            path = self.out / NEW_MAP
        else:
            (self.out / NEW_MAP).unlink(missing_ok=True)  # of an earlier search
        write_json(path, new)
        return path

    def _write(self, name: str, head: str, table: Sequence[Cells], rows: Sequence[Row]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head.split(","), *table])
        with open_atomic(self.out / f"{name}.csv") as file:
            file.write(text.getvalue().encode(errors="surrogateescape"))  # names of folders as the system has them
        if rows:
            write_png(self.out / f"{name}.png", contact_sheet(rows))
        else:
            (self.out / f"{name}.png").unlink(missing_ok=True)  # of an earlier search

    def _row(self, texts: list[str], first: list[NDArray[np.uint8]], second: list[NDArray[np.uint8]]) -> Row:
        return texts, [*first, *[_WHITE] * (A_SIDE + 1 - len(first)), *second]

    def _pictures(self, number: int) -> list[NDArray[np.uint8]]:
        looked = self.own.some(number, self.images)  # and so known to be sound, where damage is an error
        places = np.unique(np.linspace(0, len(looked) - 1, min(len(looked), A_SIDE)).round().astype(np.int64))
        return [self._load_any(i) for i in looked[places].tolist()]

    def _load_any(self, number: int) -> NDArray[np.uint8]:
        try:
            return self.faces.load(number)[0]
        except (ValueError, OSError):
            if self.faces.on_bad_sample == "stop":
                raise
            return _RED

    def _title(self, number: int) -> str:
        return _drawn(f"class {number} {self.names[number]}")

    def _count(self, number: int) -> int:
        return int(self.own.counts[number])


def _drawn(name: str) -> str:
    """A name as a sheet can show it: one line, of the letters that OpenCV's font has."""
    return "".join(c if " " <= c <= "~" else "?" for c in " ".join(name.split()))[:_LETTERS]


def _holds(path: Path, value: object) -> bool:
    """Whether a JSON file holds this value."""
    try:
        return bool(parse_json(path.read_text(encoding="utf-8")) == value)
    except ValueError:
        return False
