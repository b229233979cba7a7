"""Faces with names, from a folder of people's folders, a csv list, or TinyFace's folders.

Shapes: N images.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.decode import decode_rgb, resize_square
from utils.paths import ListedPaths

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TINYFACE = ("Gallery_Match", "Gallery_Distractor", "Probe")
_PATH_NAMES = ("path", "image", "file", "filename")
_PERSON_NAMES = ("person", "subject", "identity", "name", "label", "id")
_FORMS = "expected a folder of people's folders of images, or a .csv of path,person lines"
_WAY_OUT = "put the list into the folder that holds all its images or, if you trust it, give --allow-outside"


@dataclass(frozen=True)
class NamedFaces:
    """Images and whose they are."""

    paths: list[Path]  # N
    people: list[str]  # N

    def join(self, other: NamedFaces) -> NamedFaces:
        """Both, one after the other."""
        return NamedFaces(self.paths + other.paths, self.people + other.people)


class FaceLoader:
    """Decodes images for a network, and counts those that had another size.

    Args:
        faces: the images.
        image_size: side in pixels that the network takes.
    """

    def __init__(self, faces: NamedFaces, image_size: int) -> None:
        self.faces, self.image_size = faces, image_size
        self.resized: list[Path] = []  # threads append

    def __call__(self, start: int, end: int) -> NDArray[np.uint8]:
        """Images [start, end): (end - start, H, W, 3) RGB.

        Raises:
            ValueError: a file that holds no image, named.
            OSError: a file cannot be read.
        """
        out = np.empty((end - start, self.image_size, self.image_size, 3), np.uint8)
        for row, path in enumerate(self.faces.paths[start:end]):
            try:
                image = decode_rgb(path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{path}: {error}; copy it again, or take it out") from None
            if image.shape[:2] != (self.image_size, self.image_size):
                self.resized.append(path)
            out[row] = resize_square(image, self.image_size)
        return out

    def note(self) -> str:
        """Say that images were resized, "" if none was."""
        if not self.resized:
            return ""
        return (
            f"{len(self.resized):,} of {len(self.faces.paths):,} images had another size than {self.image_size} x "
            f"{self.image_size} and were resized, the first {self.resized[0]}: are the faces aligned?"
        )


def read_faces(source: Path, allow_outside: bool = False) -> NamedFaces:
    """Read a gallery or probes.

    Args:
        source: a folder with a folder a person, or a .csv with lines ``path,person``; a first line may name the
            columns, then in any order and among others. Relative paths start at the list's folder.
        allow_outside: read images outside the list's folder, too.

    Raises:
        FileNotFoundError: no such folder or list.
        ValueError: it holds no images, or lines of another form.
    """
    if source.is_dir():
        faces = _read_folder(source)
    elif source.is_file() and source.suffix.lower() == ".csv":
        faces = _read_csv(source, allow_outside)
    elif source.exists():
        raise ValueError(f"{source}: {_FORMS}")
    else:
        raise FileNotFoundError(f"no folder or list {source}: {_FORMS}")
    return faces


def _read_folder(root: Path) -> NamedFaces:
    paths: list[Path] = []
    people: list[str] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for path in _images_below(folder):
            paths.append(path)
            people.append(folder.name)
    if not paths:
        loose = next(_images_below(root), None)
        found = f"found images such as {loose.name} beside each other" if loose else "found no image in it"
        raise ValueError(f"{root}: {_FORMS}; {found}")
    return NamedFaces(paths, people)


def _images_below(folder: Path) -> Iterator[Path]:
    """Images in a folder and the folders in it, sorted."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(files) if name.lower().endswith(ENDINGS))


def _read_csv(path: Path, allow_outside: bool) -> NamedFaces:
    joined = ListedPaths(path, path.parent, _WAY_OUT, allow_outside)
    paths: list[Path] = []
    people: list[str] = []
    where: tuple[int, int] | None = None
    with path.open(newline="", encoding="utf-8-sig") as text:
        rows = csv.reader(text, skipinitialspace=True)
        try:
            for row in rows:
                if not any(field.strip() for field in row):
                    continue
                if where is None:
                    named = _columns(row)
                    where = named or (0, 1)
                    if named:
                        continue
                if len(row) <= max(where) or (where == (0, 1) and len(row) != 2 and not paths):
                    raise ValueError(
                        f"{path}, line {rows.line_num}: expected path,person or a first line that names the columns "
                        f"path and person, found {','.join(row)[:80]!r}"
                    )
                paths.append(joined.join(row[where[0]].strip(), rows.line_num))
                people.append(row[where[1]].strip())
                if not paths[-1].is_file():
                    raise FileNotFoundError(
                        f"{path}, line {rows.line_num}: no image {paths[-1]}; relative paths start at the list's "
                        "folder"
                    )
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {rows.line_num + 1}: no csv text in UTF-8 ({error})") from None
    if not paths:
        raise ValueError(f"{path}: no images in it, expected lines path,person")
    return NamedFaces(paths, people)


def _columns(row: list[str]) -> tuple[int, int] | None:
    """The places of path and person in a first line that names them."""
    names = [field.strip().lower() for field in row]
    path = next((names.index(name) for name in _PATH_NAMES if name in names), None)
    person = next((names.index(name) for name in _PERSON_NAMES if name in names), None)
    return (path, person) if path is not None and person is not None else None


def read_tinyface(root: Path) -> tuple[NamedFaces, NamedFaces]:
    """Read TinyFace's test set: gallery with distractors, and probes.

    A file's name says whose it is, ``<person>_<...>.jpg``; a distractor is nobody's, and a folder between
    Gallery_Distractor and the image does not matter. Source: the names and folders of the published set, which
    its lists ``gallery_match_img_ID_pairs.mat`` and ``probe_img_ID_pairs.mat`` repeat.

    Args:
        root: the folder that holds the three, or one above it (``Testing_Set``).

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a name of another form, or no images.
    """
    folder = root / "Testing_Set" if (root / "Testing_Set").is_dir() else root
    missing = [name for name in TINYFACE if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no folder {', '.join(missing)}; TinyFace's test set has {', '.join(TINYFACE)}"
        )
    match, probes = (_by_name(folder / name) for name in ("Gallery_Match", "Probe"))
    distractors = list(_images_below(folder / "Gallery_Distractor"))
    return match.join(NamedFaces(distractors, [f"distractor {i}" for i in range(len(distractors))])), probes


def _by_name(folder: Path) -> NamedFaces:
    paths = list(_images_below(folder))
    people = [path.name.split("_")[0] for path in paths]
    for path, person in zip(paths, people, strict=True):
        if not person.isdecimal():
            raise ValueError(f"{path}: expected a name such as 12_3.jpg, in which 12 is the person")
    if not paths:
        raise ValueError(f"{folder}: no images in it")
    return NamedFaces(paths, [str(int(person)) for person in people])
