"""Sets of faces: record files, image folders, synthetic noise; each gives images of one size with whole labels.

Shapes: B batch, N images of a set, C classes; images are height x width x RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.records.check import RecordCheck, check_records, is_whole, no_identity
from data.records.images import find_images
from data.records.layout import unpack
from data.records.reader import RecordReader
from utils.decode import decode_noted
from utils.folders import IMAGE_SUFFIXES, FolderNotes, identity_folders, image_names
from utils.hashing import key
from utils.text import parse_json

Size = tuple[int, int]  # (height, width) in pixels
OnBadSample = Literal["stop", "skip"]
Encoded = bytes | memoryview
T = TypeVar("T")
LoadMany = Callable[[Sequence[int]], Iterable[tuple[T, int]]]

MAX_STAND_INS = 100  # damaged samples in a row, each replacing the one before, until loading gives up


class Changed(NamedTuple):
    """What decoding had to change in some images."""

    kind: str
    images: int
    where: str  # the last of them


class Batch(NamedTuple):
    """What the loader yields."""

    images_BHW3: Tensor  # uint8, RGB
    labels_B: Tensor  # int64
    sample_ids_B: Tensor  # int64, in [0, N): each image's place in the data set
    damaged: Sequence[str] = ()  # what is wrong with each sample that another one in this batch replaces
    changed: Sequence[Changed] = ()  # what decoding had to change


class FaceDataset(Dataset[Batch]):
    """N images of one size, each with an integer label."""

    image_size: Size
    on_bad_sample: OnBadSample = "stop"  # a damaged sample raises, or is replaced by another one and named
    is_encoded = True  # the images are files of some kind, which ``read`` gives
    warning = ""  # what is wrong with the set as a whole but does not keep it from being used
    note = ""  # what is unusual about it, without being wrong
    unusable: NDArray[np.int64] = np.empty(0, np.int64)  # increasing: never delivered, because the label is damaged
    _labels: NDArray[np.int64]

    @cached_property
    def changed(self) -> dict[str, Changed]:
        """What decoding has changed, by kind, since ``take_changed`` was called last."""
        return {}

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label; the images are not decoded for it.

        A label that cannot be trusted raises ValueError, or is -1 where ``on_bad_sample`` is "skip".
        """
        return self._labels

    @property
    def sets(self) -> Sequence[FaceDataset]:
        """The sets that this one consists of: itself alone, or those that were joined."""
        return [self]

    @property
    def num_classes(self) -> int:
        """The smallest number of classes that has room for every label; ValueError if all labels are damaged."""
        highest = int(self.labels.max())
        if highest < 0:
            raise ValueError(f"{self.where(0)}: this label and those of the other {len(self) - 1} images are damaged")
        return highest + 1

    def __len__(self) -> int:
        return len(self.labels)

    def class_names(self) -> Sequence[str | None] | None:
        """The name of each class, or None for one without; None if no class has one."""
        return None

    def read(self, index: int) -> tuple[Encoded, int]:
        """The encoded file of image ``index``, and its label; ValueError or OSError if it is damaged or missing."""
        raise NotImplementedError

    def read_many(self, indices: Sequence[int]) -> list[tuple[Encoded, int]]:
        """What ``read`` gives for several images."""
        return [self.read(index) for index in indices]

    def where(self, index: int) -> str:
        """File and place of image ``index``, for the start of an error message."""
        raise NotImplementedError

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` as (H, W, 3) uint8 RGB, and its label; ValueError if it is damaged or of another size."""
        encoded, label = self.read(index)
        return self.decode(encoded, index), label

    def decode(self, encoded: Encoded, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of the encoded image ``index``; ValueError as for ``load``."""
        try:
            image, changed = decode_noted(encoded)
        except ValueError as error:
            way = '; replace it, leave it out, or set on_bad_sample = "skip"' if self.on_bad_sample == "stop" else ""
            raise ValueError(f"{self.where(index)}: {error}: the file is damaged{way}") from None
        if changed:
            before = self.changed.get(changed)
            self.changed[changed] = Changed(changed, before.images + 1 if before else 1, self.where(index))
        if image.shape[:2] != self.image_size:
            raise ValueError(
                f"{self.where(index)}: the image's (height, width) is {image.shape[:2]}, expected "
                f"{self.image_size}; align or resize all faces to that size"
            )
        return image

    def load_many(self, indices: Sequence[int]) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """What ``load`` gives for several images, one after the other."""
        if not self.is_encoded:
            yield from map(self.load, indices)
            return
        for (encoded, label), index in zip(self.read_many(indices), indices, strict=True):
            yield self.decode(encoded, index), label

    def usable(
        self, indices: Sequence[int], load_many: LoadMany[T], put: Callable[[int, T], Any]
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Hand to ``put`` what ``load_many`` gives for each of B images, or for its replacement.

        A damaged image's replacement is a hash of its index: the same on every rank, in every epoch.

        Args:
            indices: B of them.
            load_many: images or files, and their labels, of several indices.
            put: takes a place in [0, B) and its image or file; where a place comes twice, the second counts.

        Returns:
            (B,) int64 labels, (B,) int64 indices, and what is wrong with each damaged image.

        Raises:
            ValueError, OSError: an image is damaged and ``on_bad_sample`` is "stop", or too many in a row are
                for it to be chance.
        """
        labels, ids, damaged = [0] * len(indices), list(indices), list[str]()
        try:
            for index in indices if len(self.unusable) else ():
                self._check_usable(index)
            for b, (value, labels[b]) in enumerate(load_many(indices)):
                put(b, value)
        except (ValueError, OSError):
            if self.on_bad_sample == "stop":
                raise
            for b, index in enumerate(indices):
                value, labels[b], ids[b] = self._find_usable(index, load_many, damaged)
                put(b, value)
        return torch.tensor(labels), torch.tensor(ids), damaged

    def find_unusable(self, num_classes: int | None = None) -> NDArray[np.int64]:
        """Increasing indices of the images whose label is damaged or outside [0, ``num_classes``)."""
        labels = self.labels
        return np.flatnonzero((labels < 0) | (labels >= (num_classes or np.inf)))

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices`` as one batch; a worker calls this once a batch."""
        images_BHW3 = np.empty((len(indices), *self.image_size, 3), np.uint8)
        found = self.usable(indices, self.load_many, images_BHW3.__setitem__)
        return Batch(torch.from_numpy(images_BHW3), *found, self.take_changed())

    def take_changed(self) -> list[Changed]:
        """What decoding has changed in images of this process since it was asked last."""
        taken = [changed for one in self.sets for changed in one.changed.values()]
        for one in self.sets:
            one.changed.clear()
        return taken

    def _check_usable(self, index: int) -> None:
        at = int(np.searchsorted(self.unusable, index))
        if at < len(self.unusable) and self.unusable[at] == index:
            raise ValueError(f"{self.where(index)}: its label is damaged or outside num_classes")

    def _find_usable(self, index: int, load_many: LoadMany[T], damaged: list[str]) -> tuple[T, int, int]:
        for attempt in range(MAX_STAND_INS):
            try:
                self._check_usable(index)
                return *next(iter(load_many([index]))), index
            except (ValueError, OSError) as error:
                damaged.append(str(error))
            index = key(index, attempt) % len(self)
        raise ValueError(f"{MAX_STAND_INS} samples in a row are damaged; the last: {damaged[-1]}")


class FaceRecords(FaceDataset):
    """A .rec file, or a folder with train.rec, in insightface's form or im2rec's.

    The records themselves show the form: in insightface's, record 0 has no image. In both, the images end where
    the identity records begin, if there are any. The key range in record 0 is not used: its float32 is rounded past
    2^24 records. Classes have names if a classes.json lies beside the file. ``chunk``: see ``RecordReader``.

    FileNotFoundError if a file is missing, ValueError if the files are damaged or hold no image.
    """

    def __init__(
        self,
        path: str | Path,
        image_size: Size = (112, 112),
        on_bad_sample: OnBadSample = "stop",
        chunk: int = 0,
    ) -> None:
        rec_path = Path(path) / "train.rec" if Path(path).is_dir() else path
        self.reader = RecordReader(rec_path, chunk=chunk)
        self.image_size, self.on_bad_sample = image_size, on_bad_sample
        # Images are records [start, stop) in the order of their keys.
        self.is_insightface, self._start, self._stop = find_images(self.reader)

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def keys(self) -> NDArray[np.int64]:
        """(N,) each image's key in the index."""
        return self.reader.keys[self._start : self._stop]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label, scanned at the first use; see ``FaceDataset.labels``."""
        return self.scan_labels()

    def scan_labels(self) -> NDArray[np.int64]:
        """Read (N,) labels from the headers, the first of a vector; see ``FaceDataset.labels``."""
        check = self.check()
        if self.on_bad_sample == "stop" and (problem := check.problem or check.unlisted):
            raise ValueError(problem)
        self.warning, self.note = check.unlisted, check.note
        return check.labels_N

    def class_names(self) -> Sequence[str | None] | None:
        """The list in classes.json beside the records; see :func:`read_class_names`."""
        return read_class_names(self.reader.rec_path)

    def check(self) -> RecordCheck:
        """Every label, and whether headers, identity records and index agree."""
        return check_records(self.reader, self._start, self._stop)

    def read(self, index: int) -> tuple[Encoded, int]:
        """The encoded image ``index`` and its label; see ``FaceDataset.read``."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.reader.rec_path}")
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[tuple[Encoded, int]]:
        """Several images and labels, as ``read`` gives them; the disk may serve them in parallel."""
        try:
            payloads = self.reader.read_many([self._start + index for index in indices])
        except OSError as error:
            raise OSError(f"{self.reader.rec_path}: {error}") from None
        return [self._split(payload, index) for payload, index in zip(payloads, indices, strict=True)]

    def where(self, index: int) -> str:
        """File, key and byte offset of the record of image ``index``."""
        return self.reader.where(self._start + index)

    def _split(self, payload: Encoded, index: int) -> tuple[Encoded, int]:
        try:
            header, encoded = unpack(payload)
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: {error}; pack the faces again") from None
        label = float(header.label[0])
        if not is_whole(label):
            raise ValueError(no_identity(self.where(index), label))
        return encoded, int(label)


class ImageFolder(FaceDataset):
    """``root/<identity>/<image>``; label i is the i-th folder by sorted name, ``classes[i]``.

    Images deeper down (``root/<identity>/<session>/<image>``) are taken too. Hidden files and folders, and files
    without an image's ending, are left out; ``note`` says how many of each. ValueError if there is no identity
    folder, or one without an image, or if the people plainly lie one level further down.
    """

    def __init__(self, root: str | Path, image_size: Size = (112, 112), on_bad_sample: OnBadSample = "stop") -> None:
        self.root, self.image_size, self.on_bad_sample = Path(root), image_size, on_bad_sample
        notes = FolderNotes(self.root, most=1000)
        self.classes: list[str] = identity_folders(self.root, notes)
        names = [image_names(self.root / identity, notes) for identity in self.classes]
        notes.check_level(self.classes)
        self.note = notes.text()
        empty = [identity for identity, found in zip(self.classes, names, strict=True) if not found]
        if empty or not self.classes:
            raise ValueError(
                f"{self.root}: {len(empty)} of {len(self.classes)} identity folders hold no image "
                f"{empty[:3]}; expected <identity>/<image> ({', '.join(IMAGE_SUFFIXES)}): fill or remove them"
            )
        # One array instead of a list of strings: forked workers share it instead of copying it page by page.
        self._names = np.array([name for found in names for name in found])
        self._labels = np.repeat(np.arange(len(names)), [len(found) for found in names])

    def class_names(self) -> list[str]:
        """The folders' names."""
        return self.classes

    def read(self, index: int) -> tuple[Encoded, int]:
        """The encoded image ``index`` and its label; see ``FaceDataset.read``."""
        return self._path(index).read_bytes(), int(self._labels[index])

    def where(self, index: int) -> str:
        """The path of image ``index``."""
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self.root / self.classes[int(self._labels[index])] / os.fsdecode(bytes(self._names[index]))


class SyntheticFaces(FaceDataset):
    """Noise with labels, at almost no cost per image: for benchmarks and for trying out a configuration.

    Labels are spread evenly over [0, num_classes), in random order: with as many images as classes, none is missing.
    Image and label are functions of (seed, index). ValueError for a count below 1.
    """

    is_encoded = False

    def __init__(self, num_classes: int, num_image: int, seed: int = 2048, image_size: Size = (112, 112)) -> None:
        if num_classes < 1 or num_image < 1:
            raise ValueError(f"num_classes and num_image must be at least 1, got {num_classes} and {num_image}")
        self.image_size = image_size
        rng = np.random.default_rng(seed)
        lowest = rng.permutation(num_image) * num_classes // num_image
        self._labels = lowest + rng.integers(0, max(1, num_classes // num_image), num_image)
        self._labels[self._labels.argmax()] = num_classes - 1
        # An image is a piece of this, from a place that depends on the index.
        self._noise = rng.integers(0, 256, image_size[0] * image_size[1] * 3 + 65537, np.uint8)

    def where(self, index: int) -> str:
        """What is named in place of a file."""
        return f"synthetic image {index}"

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` and its label; see ``FaceDataset.load``."""
        piece = self._noise[index * 40503 % 65537 :]  # a prime modulus: 65537 images until one repeats
        return piece[: len(self._noise) - 65537].reshape(*self.image_size, 3), int(self.labels[index])


def read_class_names(rec_path: Path) -> list[str | None] | None:
    """The list in classes.json beside a record file, None without one; ValueError if it holds something else."""
    path = rec_path.with_name("classes.json")
    if not path.is_file():
        return None
    try:
        names = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}): pack the faces again, or remove the file") from None
    if not isinstance(names, list) or not all(isinstance(name, str | None) for name in names):
        raise ValueError(f"{path}: expected a list of the classes' names: pack the faces again, or remove it")
    return names


def check_labels(labels: ArrayLike, num_classes: int) -> None:
    """Raise ValueError unless every label is a whole number in [0, num_classes), with the range found."""
    found = np.asarray(labels)
    if found.size == 0:
        raise ValueError("no labels to train on: the data set is empty")
    if found.dtype.kind not in "iu" and not (whole := np.isfinite(found) & (found == np.rint(found))).all():
        raise ValueError(no_identity("labels", float(found[~whole][0])))
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= num_classes:
        way = f'set num_classes = "auto" or {high + 1}' if low >= 0 else "number the identities from 0 on"
        allowed = f"num_classes = {num_classes} allows 0 to {num_classes - 1}"
        raise ValueError(f"labels run from {low} to {high}, but {allowed}: {way}")
