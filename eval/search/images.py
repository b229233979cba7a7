"""Faces with names, from a folder of people's folders, a list, or TinyFace's folders.

Shapes: N images.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.decode import Resized, decode_rgb, resize_square, resized_text
from utils.face_list import read_face_list
from utils.folders import FolderNotes, identity_folders, image_names
from utils.list_columns import whole_number
from utils.list_images import SAMPLE, ListedImages
from utils.list_text import is_image
from utils.paths import ListedPaths

TINYFACE = ("Gallery_Match", "Gallery_Distractor", "Probe")
_FORMS = "expected a folder of people's folders of images, or a list of images and their people"
_WAY_OUT = "give the folder that holds all images with --root or, if you trust the list, --allow-outside"


@dataclass(frozen=True)
class NamedFaces:
    """Images and whose they are."""

    paths: list[Path]  # N
    people: list[str]  # N
    notes: list[str] = field(default_factory=list)  # how a list was read, and what was left out

    def join(self, other: NamedFaces) -> NamedFaces:
        """Both, one after the other."""
        return NamedFaces(self.paths + other.paths, self.people + other.people, self.notes + other.notes)


class FaceLoader:
    """Decodes images for a network, and counts those that had another size.

    Args:
        faces: the images.
        image_size: side in pixels that the network takes.
    """

    def __init__(self, faces: NamedFaces, image_size: int) -> None:
        self.faces, self.image_size = faces, image_size
        self.resized = Resized()

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
            self.resized.see(start + row, image, self.image_size)
            out[row] = resize_square(image, self.image_size)
        return out

    def note(self) -> str:
        """Say that images were resized, "" if none was."""
        found = self.resized
        text = resized_text(len(found.images), len(found.not_square), len(self.faces.paths))
        return f"{text} The first: {self.faces.paths[min(found.images)]}" if text else ""


@dataclass(frozen=True)
class ListOptions:
    """How lists are read."""

    root: Path | None = None  # where relative paths start; None: the list's folder
    allow_outside: bool = False  # read images outside it, too
    columns: str = ""  # see ``read_face_list``


def read_faces(source: Path, options: ListOptions | None = None) -> NamedFaces:
    """Read a gallery or probes.

    Args:
        source: a folder with a folder a person, or a list in any form that ``utils.face_list`` reads, whose labels
            are the people.
        options: for a list.

    Raises:
        FileNotFoundError: no such folder or list, or images of it are missing.
        ValueError: it holds no images, or lines of another form.
    """
    if source.is_dir():
        return _read_folder(source)
    if not source.exists():
        raise FileNotFoundError(f"no folder or list {source}: {_FORMS}")
    if is_image(source.name):
        raise ValueError(f"{source} is an image: {_FORMS}")
    return _read_list(source, options or ListOptions())


def _read_folder(root: Path) -> NamedFaces:
    notes = FolderNotes(root)
    paths: list[Path] = []
    people: list[str] = []
    names = identity_folders(root, notes)
    for name in names:
        for path in _images_below(root / name, notes):
            paths.append(path)
            people.append(person_name(name))
    if not paths:
        raise ValueError(f"{root}: {_FORMS}; found no image in a folder{'; '.join(['', *notes.lines()])}")
    notes.check_level(names)
    return NamedFaces(paths, people, notes.lines())


def _images_below(folder: Path, notes: FolderNotes) -> list[Path]:
    """Images in a folder and the folders in it, sorted."""
    return [folder / os.fsdecode(name) for name in image_names(folder, notes)]


def _read_list(source: Path, options: ListOptions) -> NamedFaces:
    root = options.root or source.parent
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; --root is the folder that the paths of {source} start at")
    listed = read_face_list(source, options.columns)
    images = ListedImages(
        ListedPaths(source, root, _WAY_OUT, options.allow_outside), listed.text, listed.sample(SAMPLE)
    )
    paths: list[Path] = []
    people: list[str] = []
    missing: list[str] = []
    unknown = 0
    for line, entry, person in listed.entries():
        paths.append(images.path(entry, line.number))
        is_nobody = not listed.form.is_text and person.startswith("-") and (whole_number(person) or 0) < 0
        unknown += is_nobody
        people.append(f"nobody, line {line.number} of {source}" if is_nobody else _person(person))
        if not paths[-1].is_file():
            missing.append(f"line {line.number}: no image {paths[-1]}")
    if missing:
        raise FileNotFoundError(
            f"{source}, {missing[0]}; {len(missing):,} of {len(paths):,} images are missing; paths start at {root}, "
            "--root gives another folder"
        )
    notes = [f"{unknown:,} images whose label is below 0 are each of a person of their own"] * bool(unknown)
    return NamedFaces(paths, people, ["; ".join([listed.describe(), *images.notes, *notes])])


def _person(label: str) -> str:
    """A label as a name; 7.000000, as im2rec writes labels, is 7."""
    number = None if label.isdecimal() else whole_number(label)
    return person_name(label) if number is None else str(number)


def person_name(written: str) -> str:
    """A name as names are compared: letters composed, as macOS does not store them, and no blanks around it."""
    return unicodedata.normalize("NFC", written).strip()


def alike_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in nothing but capital letters: probably one person, but counted as two."""
    seen: dict[str, str] = {}
    found = []
    for name in dict.fromkeys(names):
        other = seen.setdefault(unicodedata.normalize("NFC", name.casefold()), name)
        if other != name:
            found.append((other, name))
    return found


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
    distractors = _everyone_below(folder / "Gallery_Distractor")
    nobody = [f"distractor {i}" for i in range(len(distractors.paths))]
    return match.join(NamedFaces(distractors.paths, nobody, distractors.notes)), probes


def _everyone_below(folder: Path) -> NamedFaces:
    """The images below a folder, of people not known yet."""
    notes = FolderNotes(folder)
    paths = _images_below(folder, notes)
    return NamedFaces(paths, [], [f"{folder}: {notes.left_out_text()}"] if notes.left_out else [])


def _by_name(folder: Path) -> NamedFaces:
    found = _everyone_below(folder)
    people = [path.name.split("_")[0] for path in found.paths]
    for path, person in zip(found.paths, people, strict=True):
        if not person.isdecimal():
            raise ValueError(f"{path}: expected a name such as 12_3.jpg, in which 12 is the person")
    if not people:
        raise ValueError(f"{folder}: no images in it")
    return NamedFaces(found.paths, [str(int(person)) for person in people], found.notes)
