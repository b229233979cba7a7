"""Faces in LMDB, in the three forms that need no pickle: by numbers, Caffe's, and images with a list.

| keys | values | labels |
|---|---|---|
| ``num-samples``, ``image-000000001`` (or from 0 on), ``label-000000001``, ... | encoded images; texts | there |
| any | Caffe's Datum with an encoded image | in the Datum |
| any | encoded images | ``labels.txt`` in the folder: lines ``KEY LABEL``, in the order of the samples |

Shapes: N images.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.faces import Encoded, FaceDataset, OnBadSample, Size, read_class_names
from data.records.layout import EXACT_LABELS

PIP_LINE = "pip install 'lmdb>=1.4,<4'"
_MAX_LABEL_TEXT = 4096
_REFUSED = {b"__len__": "folder2lmdb", b"__keys__": "folder2lmdb", b"meta_info": "a script that pickles"}
_IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM")
_environments: dict[str, Any] = {}  # of this process, by path: LMDB must not be opened twice
_pid = os.getpid()  # of the process that opened them: they must not cross a fork

Keys = NDArray[np.bytes_] | list[bytes]


class Datum(NamedTuple):
    """What matters of Caffe's message."""

    data: memoryview
    label: int
    is_encoded: bool


class FaceDatabase(FaceDataset):
    """The images of an LMDB folder (with data.mdb), or of a single-file database (.mdb, .lmdb).

    It is opened read-only and without a lock, anew in every process. Classes have names if a classes.json lies beside
    data.mdb.

    Raises:
        FileNotFoundError: there is no database.
        ValueError: the package lmdb is not installed, or the form is none of the three.
    """

    def __init__(
        self, source: str | Path, image_size: Size = (112, 112), on_bad_sample: OnBadSample = "stop"
    ) -> None:
        self.path, self.image_size, self.on_bad_sample = Path(source), image_size, on_bad_sample
        with self._transaction() as transaction:
            self.form = self._find_form(transaction)
            entries = int(transaction.stat()["entries"])
        self._listed: NDArray[np.int64] | None = None
        if self.form == "numbered":
            self._keys: Keys | None = None
        elif self.form == "listed":
            self._keys, self._listed = read_label_list(self._list_path)
        else:
            with self._transaction() as transaction:
                self._keys = _as_array(list(_keys_of(transaction)))
        self._note_left_out(entries)

    def __len__(self) -> int:
        return self._count if self._keys is None else len(self._keys)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label, read at the first use; see ``FaceDataset.labels``."""
        if self._listed is not None:
            return self._listed
        labels = np.full(len(self), -1, np.int64)
        with self._transaction() as transaction:
            for index in range(len(self)):
                try:
                    labels[index] = self._label(transaction, index)
                except ValueError:
                    if self.on_bad_sample == "stop":
                        raise
        return labels

    def class_names(self) -> Sequence[str | None] | None:
        """The list in classes.json beside the database."""
        return read_class_names(self.path / "data.mdb" if self.path.is_dir() else self.path)

    def read(self, index: int) -> tuple[Encoded, int]:
        """The encoded image ``index`` and its label; see ``FaceDataset.read``."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.path}")
        with self._transaction() as transaction:
            value = self._value(transaction, index)
            if self.form == "caffe":
                datum = self._datum(value, index)
                return bytes(datum.data), self._checked(datum.label, index)
            label = int(self._listed[index]) if self._listed is not None else self._label(transaction, index)
            return bytes(value), label

    def where(self, index: int) -> str:
        """Database and key of image ``index``."""
        return f"{self.path}: key {self._key(index).decode('utf-8', 'backslashreplace')!r}"

    @property
    def _list_path(self) -> Path:
        return self.path / "labels.txt" if self.path.is_dir() else self.path.with_suffix(".txt")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        environment = _environment(self.path)
        import lmdb

        try:
            with environment.begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise ValueError(f"{self.path}: the database is damaged ({error}): copy it again") from None

    def _find_form(self, transaction: Any) -> str:
        for key, maker in _REFUSED.items():
            if transaction.get(key) is not None:
                raise ValueError(
                    f"{self.path}: it has the key {key.decode()!r} of {maker}, whose values are pickles or pyarrow "
                    "objects: loading them can run code. Write its images into identity folders with the script that "
                    "made it, then use tools.pack_rec"
                )
        count = transaction.get(b"num-samples")
        if count is not None:
            text = bytes(count)
            if not re.fullmatch(rb"[0-9]{1,9}", text) or int(text) < 1:
                raise ValueError(f"{self.path}: num-samples is {text[:20]!r}, expected a whole number from 1 on")
            self._count, self._first = int(text), 1
            if transaction.get(b"image-%09d" % 0) is not None:
                self._first = 0
            return "numbered"
        if self._list_path.is_file():
            return "listed"
        first = next(iter(transaction.cursor()), None)
        if first is None:
            raise ValueError(f"{self.path}: the database is empty")
        name, start = bytes(first[0]).decode("utf-8", "backslashreplace"), bytes(first[1][:12])
        if start.startswith(_IMAGE_STARTS):
            raise ValueError(
                f"{self.path}: its values are images without labels: write a line `KEY LABEL` for each image into "
                f"{self._list_path}"
            )
        try:
            parse_datum(first[1])
        except ValueError:
            kind = "a pickle, which can run code," if start[:1] == b"\x80" else "neither an image nor Caffe's Datum"
            raise ValueError(
                f"{self.path}: the value of key {name!r} is {kind} ({start.hex()}...); expected image-000000001 with "
                "label-000000001 and num-samples, Caffe's Datum with encoded images, or images with labels.txt: "
                "write its images into identity folders and use tools.pack_rec"
            ) from None
        return "caffe"

    def _note_left_out(self, entries: int) -> None:
        """Say that the database has more in it than is read."""
        more = entries - (2 * len(self) + 1 if self.form == "numbered" else len(self))
        if more > 0:
            why = (
                f"num-samples is {len(self):,}"
                if self.form == "numbered"
                else f"{self._list_path.name} lists no more"
            )
            self.note = (
                f"{self.path}: {more:,} of its {entries:,} entries are not read, since {why}: if images are among "
                "them, correct that"
            )

    def _key(self, index: int) -> bytes:
        return b"image-%09d" % (index + self._first) if self._keys is None else bytes(self._keys[index])

    def _value(self, transaction: Any, index: int) -> memoryview:
        value = transaction.get(self._key(index))
        if value is None:
            listed = f", which {self._list_path.name} lists" if self.form == "listed" else ""
            raise ValueError(f"{self.where(index)}{listed}: the database has no such key")
        return memoryview(value)

    def _label(self, transaction: Any, index: int) -> int:
        if self.form == "caffe":
            return self._checked(self._datum(self._value(transaction, index), index).label, index)
        text = transaction.get(b"label-%09d" % (index + self._first))
        if text is None or not re.fullmatch(rb"[0-9]{1,9}", stripped := bytes(text[:_MAX_LABEL_TEXT]).strip()):
            found = "missing" if text is None else repr(bytes(text[:40]))
            raise ValueError(f"{self.where(index)}: its label is {found}, expected a whole number as text")
        return self._checked(int(stripped), index)

    def _datum(self, value: memoryview, index: int) -> Datum:
        try:
            datum = parse_datum(value)
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: {error}") from None
        if not datum.is_encoded:
            raise ValueError(
                f"{self.where(index)}: a Datum with raw pixels, expected an encoded image: make the database again "
                "with convert_imageset --encoded"
            )
        return datum

    def _checked(self, label: int, index: int) -> int:
        if not 0 <= label <= EXACT_LABELS:
            raise ValueError(f"{self.where(index)}: label {label} is not between 0 and {EXACT_LABELS}")
        return label


def is_database(source: str | Path) -> bool:
    """Whether this is an LMDB folder, or the name of a single-file database."""
    path = Path(source)
    return path.suffix in (".mdb", ".lmdb") or (path / "data.mdb").is_file()


def read_label_list(path: Path) -> tuple[Keys, NDArray[np.int64]]:
    """Keys and labels of lines ``KEY LABEL``; ValueError that names the line which is none, or a key twice."""
    keys, labels = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            words = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip().rsplit(None, 1)
            if not words:
                continue
            if len(words) != 2 or not re.fullmatch(rb"[0-9]{1,8}", words[1]) or int(words[1]) > EXACT_LABELS:
                raise ValueError(f"{path}: line {number} is {line[:60]!r}, expected `KEY LABEL`, the label a number")
            keys.append(words[0])
            labels.append(int(words[1]))
    if not keys:
        raise ValueError(f"{path}: no line `KEY LABEL` in it")
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path}: it lists a key more than once: remove the lines")
    return _as_array(keys), np.array(labels, np.int64)


def _as_array(keys: list[bytes]) -> Keys:
    """The keys in one array, which forked workers share; numpy would cut zeros off a key's end."""
    return keys if any(key.endswith(b"\0") for key in keys) else np.array(keys, bytes)


def parse_datum(value: memoryview) -> Datum:
    """Caffe's Datum (protobuf; data = 4, label = 5, encoded = 7); ValueError if these bytes are none."""
    view, at = memoryview(value), 0
    data, label, is_encoded = None, 0, False
    while at < len(view):
        tag, at = _varint(view, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            number, at = _varint(view, at)
            label = _signed(number) if field == 5 else label
            is_encoded = bool(number) if field == 7 else is_encoded
        elif kind == 2:
            length, at = _varint(view, at)
            if at + length > len(view):
                raise ValueError("it is cut short")
            data = view[at : at + length] if field == 4 else data
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("it is no Datum of Caffe")
        if not 1 <= field <= 7 or at > len(view):
            raise ValueError("it is no Datum of Caffe")
    if data is None:
        raise ValueError("it is no Datum of Caffe with an image")
    return Datum(data, label, is_encoded)


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number of protobuf's, and the place after it."""
    number = 0
    for i in range(10):
        if at + i >= len(view):
            raise ValueError("it is cut short")
        number |= (view[at + i] & 0x7F) << 7 * i
        if view[at + i] < 0x80:
            return number, at + i + 1
    raise ValueError("it is no Datum of Caffe")


def _signed(number: int) -> int:
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _keys_of(transaction: Any) -> Iterator[bytes]:
    for key in transaction.cursor().iternext(keys=True, values=False):
        yield bytes(key)


def _environment(path: Path) -> Any:
    """The open database of this process."""
    global _pid
    if _pid != os.getpid():  # this is a fork of the process that opened them
        for inherited in _environments.values():
            inherited.close()
        _environments.clear()
        _pid = os.getpid()
    where = str(path.resolve())
    if where not in _environments:
        try:
            import lmdb
        except ImportError:
            raise ValueError(f"{path}: an LMDB database needs the package lmdb: {PIP_LINE}") from None
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; expected an LMDB folder with data.mdb, or a .mdb file")
        try:
            _environments[where] = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
            )
        except lmdb.Error as error:
            raise ValueError(f"{path}: no LMDB database that can be read ({error}): copy it again") from None
    return _environments[where]
