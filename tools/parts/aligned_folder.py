"""The folder that tools/align_faces.py fills: faces under their photographs' names, and what was left out."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.parts.photo_faces import Outcome, Rules
from utils.atomic import open_atomic, write_json
from utils.text import parse_json

SETTINGS = ".align_faces.json"
LEFT_OUT = "left_out.csv"


class AlignedFolder:
    """Faces that are there, and those that come.

    Args:
        out: made if missing.
        photos: where the photographs are; nothing is written there.
        names: all photographs, paths below ``photos``, sorted.
        rules: the run's, which a folder keeps to.
        source: the detector's or the landmarks' file, likewise.

    Raises:
        ValueError: ``out`` holds something else, or faces by other rules; two photographs would get one name.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, photos: Path, names: Sequence[bytes], rules: Rules, source: Path) -> None:
        self.out, self.names = out, names
        self._faces = dict(zip(names, face_names(names, rules.encoding), strict=True))
        self._photos = photos.resolve()
        self._made: set[Path] = set()
        self._temporary = out / f".align_faces.{os.getpid()}.tmp"  # names of faces may be as long as a disk allows
        self.people = {_person(name) for name in names} - {b""}
        self.loose = sum(b"/" not in name for name in names)
        self.people_kept: set[bytes] = set()
        self.kept = self.before = self.tried = self.several = self.doubtful = 0
        self._left_out: list[tuple[bytes, str, str]] = []
        self._keep_to(_settings(photos, rules, source))

    def missing(self) -> list[bytes]:
        """The photographs that have no face here yet; the others are counted."""
        found = []
        for name in self.names:
            if (self.out / os.fsdecode(self._faces[name])).is_file():
                self._count(name)
                self.before += 1
            else:
                found.append(name)
        return found

    def put(self, name: bytes, outcome: Outcome) -> None:
        """Write a photograph's face, or note why there is none.

        Raises:
            OSError: it cannot be written.
            ValueError: a folder here is a link to where the photographs are.
        """
        self.tried += 1
        if outcome.reason:
            self._left_out.append((name, outcome.reason, outcome.detail))
            return
        path = self.out / os.fsdecode(self._faces[name])
        if path.parent not in self._made:
            if path.parent.resolve().is_relative_to(self._photos):  # through a link
                raise ValueError(f"{path.parent} leads to where the photographs are, which stay as they are")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        with open_atomic(path, self._temporary) as file:
            file.write(outcome.encoded)
        self._count(name)
        self.several += outcome.is_one_of_several
        self.doubtful += outcome.is_doubtful

    def write_left_out(self) -> None:
        """Write left_out.csv, or remove an older one where nothing was left out.

        Raises:
            ValueError: there is no face at all.
            OSError: it cannot be written.
        """
        path = self.out / LEFT_OUT
        if not self._left_out:
            path.unlink(missing_ok=True)
            return
        with open_atomic(path) as file:
            text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
            rows = csv.writer(text)
            rows.writerow(["path", "reason", "detail"])
            rows.writerows([os.fsdecode(name), reason, detail] for name, reason, detail in self._left_out)
            text.detach()
        if not self.kept:
            name, reason, detail = self._left_out[0]
            raise ValueError(
                f"none of {len(self.names):,} photographs gave a face; the first, {os.fsdecode(name)}: {reason}"
                f"{f' ({detail})' if detail else ''}; all are in {path}"
            )

    def left_out_lines(self) -> list[str]:
        """How many photographs were left out, by reason with the first of each; nothing without any."""
        if not self._left_out:
            return []
        counts = Counter(reason for _, reason, _ in self._left_out)
        first = {reason: os.fsdecode(name) for name, reason, _ in reversed(self._left_out)}
        return [
            f"{len(self._left_out):,} photographs are left out, all in {self.out / LEFT_OUT}:",
            *(f"    {count:,} {reason}, such as {first[reason]}" for reason, count in counts.most_common()),
        ]

    def people_lost(self) -> list[str]:
        """Those of whom no face is left, sorted."""
        return [os.fsdecode(person) for person in sorted(self.people - self.people_kept)]

    def _count(self, name: bytes) -> None:
        self.kept += 1
        self.people_kept |= {_person(name)} - {b""}

    def _keep_to(self, settings: dict[str, object]) -> None:
        """Begin a folder, or go on with one that was begun in the same way."""
        path = self.out / SETTINGS
        self.out.mkdir(parents=True, exist_ok=True)
        with os.scandir(self.out) as entries:
            is_empty = all(entry.name.startswith(".") or entry.name == LEFT_OUT for entry in entries)
        if is_empty:
            write_json(path, settings)
            return
        if not path.is_file():
            raise ValueError(f"{self.out} holds files that this command did not write: choose an empty folder")
        found = parse_json(path.read_text(encoding="utf-8", errors="replace"))
        if found != settings:
            differ = [key for key in settings if not isinstance(found, dict) or found.get(key) != settings[key]]
            raise ValueError(
                f"{self.out} was begun with another {', '.join(differ)}: give the same to go on, or choose another "
                "folder"
            )


def face_names(names: Sequence[bytes], encoding: str) -> list[bytes]:
    """The faces' names: their photographs' with the ending of ``encoding``, after their own where two would be one.

    Raises:
        ValueError: two are still one.
    """
    ending = encoding.encode()
    short = [_stem(name) + ending for name in names]
    counts = Counter(short)
    found = [face if counts[face] == 1 else name + ending for name, face in zip(names, short, strict=True)]
    if len(set(found)) < len(found):
        twice = next(face for face, count in Counter(found).items() if count > 1)
        raise ValueError(f"two photographs would both become {os.fsdecode(twice)}: rename one of them")
    return found


def _stem(name: bytes) -> bytes:
    return name[: name.rindex(b".")]


def _person(name: bytes) -> bytes:
    """The first folder of a path, b"" without one."""
    return name.partition(b"/")[0] if b"/" in name else b""


def _settings(photos: Path, rules: Rules, source: Path) -> dict[str, object]:
    """What a folder's faces depend on."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "PHOTOS": str(photos.resolve()),
        "--detector or --landmarks": digest,
        "--min-eyes": rules.min_eyes,
        "--skip-several": rules.skip_several,
        "--format": rules.encoding.removeprefix("."),
    }
