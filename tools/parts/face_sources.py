"""Face images wherever they are, one by one and unchecked: records, folders, shards, LMDB, verification sets.

``dataset.py`` refuses a set that is unsound; here every image can be looked at, and one that cannot be read is
an error of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data.databases import is_database
from data.records.layout import split, unpack
from data.records.reader import RecordReader
from data.shards.faces import FaceShards
from data.shards.names import are_shards
from data.storage import is_address
from dataset import open_faces
from eval.pairs.bin_file import load_bin
from utils.folders import FolderNotes, identity_folders, image_names


class Place(NamedTuple):
    """Where an item is."""

    file: str
    record: int | None = None  # key in a record file, number of the image in a verification set
    offset: int | None = None  # in bytes

    def __str__(self) -> str:
        record = "" if self.record is None else f", record {self.record}"
        return self.file + record + ("" if self.offset is None else f" at byte {self.offset}")


class Item(NamedTuple):
    """An encoded image with what is stored with it."""

    labels: NDArray[np.float64]  # (m,), the identity first; nan in a verification set
    encoded: bytes | memoryview  # empty: a record without an image
    id: int = 0  # of a record's header
    stored: int = 0  # bytes that the record takes in its file


class Source(Protocol):
    """Items that can be read in any order, by any process: a source may be forked and pickled."""

    path: Path
    form: str  # in words

    def __len__(self) -> int:
        """Number of items."""

    def read(self, position: int) -> Item:
        """An item; ValueError or OSError if it cannot be read."""

    def place(self, position: int) -> Place:
        """Where it is."""


class RecordSource:
    """Every record of a .rec file, those without an image too."""

    def __init__(self, path: Path) -> None:
        self.path, self.form = path, "record file"
        self.reader = RecordReader(path)

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, position: int) -> Item:
        """Read one record; its place in the file is checked, its image is not."""
        payload = self.reader.read_at(position)
        header, encoded = unpack(payload)
        parts = split(payload)
        stored = sum(8 + len(part) + -len(part) % 4 for part in parts)
        return Item(header.label.astype(np.float64), encoded, header.id, stored)

    def place(self, position: int) -> Place:
        """File, key, offset."""
        return Place(str(self.path), self.reader.index.key(position), int(self.reader.offsets[position]))


class FolderSource:
    """``root/<identity>/<image>``; label i is the i-th folder by sorted name, as in training."""

    def __init__(self, path: Path) -> None:
        self.path, self.form = path, "image folder"
        self.notes = FolderNotes(path)
        self.classes = identity_folders(path, self.notes)
        names = [image_names(path / identity, self.notes) for identity in self.classes]
        self.counts = np.array([len(images) for images in names], np.int64)
        self.names = np.array([name for images in names for name in images], bytes)
        self.labels = np.repeat(np.arange(len(names)), self.counts)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> Item:
        """Read one file."""
        return Item(self.labels[position : position + 1].astype(np.float64), self._path(position).read_bytes())

    def place(self, position: int) -> Place:
        """The file."""
        return Place(str(self._path(position)))

    def _path(self, position: int) -> Path:
        return self.path / self.classes[int(self.labels[position])] / os.fsdecode(bytes(self.names[position]))


class PairSource:
    """The images of a verification set; images 2i and 2i + 1 are pair i."""

    def __init__(self, path: Path) -> None:
        self.path, self.form = path, "verification set"
        self.pairs = load_bin(path)

    def __len__(self) -> int:
        return len(self.pairs.encoded)

    def read(self, position: int) -> Item:
        """Give one image."""
        return Item(np.array([np.nan]), self.pairs.encoded[position])

    def place(self, position: int) -> Place:
        """The file and the number of the image."""
        return Place(str(self.path), position)


class SetSource:
    """The images of tar shards or of LMDB, as training has them."""

    def __init__(self, source: str) -> None:
        self.faces = open_faces(source, on_bad_sample="skip")
        self.path = Path(source)  # of an address: only to be shown
        self.rec: Path | str = source if is_address(source) else self.path
        is_sharded = isinstance(self.faces, FaceShards)
        self.form = "tar shards" if is_sharded else "LMDB database"
        if isinstance(self.faces, FaceShards) and self.faces.index.files[0].endswith(".rec"):
            self.form = "record file behind an address"
        self.labels = self.faces.labels
        self.classes = [name or "" for name in self.faces.class_names() or []]
        self.left_out = (
            self.faces.index.problems
            if isinstance(self.faces, FaceShards)
            else [self.faces.note] * bool(self.faces.note)
        )

    def __len__(self) -> int:
        return len(self.faces)

    def read(self, position: int) -> Item:
        """Read one image."""
        encoded, label = self.faces.read(position)
        return Item(np.array([label], np.float64), encoded)

    def place(self, position: int) -> Place:
        """Shard and offset, or key."""
        if isinstance(self.faces, FaceShards):
            file, offset = self.faces.place(position)
            return Place(file, None, offset)
        return Place(self.faces.where(position))


AnySource = RecordSource | FolderSource | PairSource | SetSource


def open_source(path: str | Path) -> AnySource:
    """Open what is at ``path``.

    Raises:
        FileNotFoundError: nothing is there, or one of a pair of files is missing.
        ValueError: an index, a verification set or a folder that cannot be understood.
    """
    if is_address(path):
        return SetSource(str(path))
    path = Path(path).expanduser()
    if are_shards(path) or is_database(path):
        return SetSource(str(path))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected a folder of faces, a .rec or a .bin file")
    if path.suffix == ".bin":
        return PairSource(path)
    if path.suffix == ".rec" or (path / "train.rec").exists():
        return RecordSource(path / "train.rec" if path.is_dir() else path)
    if not path.is_dir():
        raise ValueError(f"{path}: expected a folder of faces, a .rec or a .bin file, found another kind of file")
    source = FolderSource(path)
    if not source.classes:
        records = sorted(file.name for file in path.glob("*.rec"))
        hint = f"; give {records[0]} by its own path" if records else ""
        raise ValueError(f"{path}: neither train.rec with train.idx in it, nor <identity>/<image> below it{hint}")
    return source
