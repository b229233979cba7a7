"""Faces to train on: record files, image folders or synthetic noise, and the loader that batches them.

Shapes: B batch of one rank, W ranks, G = W * B, N images of the data set; images are height x width x RGB.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.hashing import key, mix
from utils.images import decode_rgb, to_network_input
from utils.recordio import RecordReader, unpack

Size = tuple[int, int]  # (height, width) in pixels
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_FLIP = 1  # keeps the hash of flips apart from other hashes of (seed, epoch)


class Batch(NamedTuple):
    """What the loader yields."""

    images_BHW3: Tensor  # uint8, RGB
    labels_B: Tensor  # int64
    sample_ids_B: Tensor  # int64, in [0, N): each image's place in the data set


class FaceDataset(Dataset[Batch]):
    """N images of one size, each with a whole number as its label."""

    image_size: Size
    _labels: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label; the images are not decoded for it."""
        return self._labels

    @property
    def num_classes(self) -> int:
        """The smallest number of classes that has room for every label."""
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` as (H, W, 3) uint8 RGB, and its label; ValueError if it is damaged or of another size."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices`` as one batch; a worker calls this once a batch."""
        images_BHW3 = np.empty((len(indices), *self.image_size, 3), np.uint8)
        labels_B = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            images_BHW3[row], labels_B[row] = self.load(index)
        return Batch(torch.from_numpy(images_BHW3), torch.from_numpy(labels_B), torch.tensor(indices))

    def _decode(self, encoded: bytes | memoryview, where: str) -> NDArray[np.uint8]:
        try:
            image = decode_rgb(encoded)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; the file is damaged: replace it or leave it out") from None
        if image.shape[:2] != self.image_size:
            raise ValueError(
                f"{where}: the image's (height, width) is {image.shape[:2]}, expected {self.image_size}; "
                "align or resize all faces to that size"
            )
        return image


class FaceRecords(FaceDataset):
    """A .rec file, or a folder with train.rec, in insightface's form or im2rec's.

    The records themselves show the form: in insightface's, record 0 has no image. In both, the images end with the
    last record that has one. The key range in record 0 is not used: its float32 is rounded past 2^24 records.

    FileNotFoundError if a file is missing, ValueError if the files are damaged or hold no image.
    """

    def __init__(self, path: str | Path, image_size: Size = (112, 112)) -> None:
        self.reader = RecordReader(Path(path) / "train.rec" if Path(path).is_dir() else path)
        self.image_size = image_size
        first = self.reader.scan_headers(0, 1)
        self.is_insightface = int(first.flags[0]) == 2 and not first.has_image[0]
        self._start = int(self.is_insightface)  # images are records [start, stop) in the order of their keys
        self._stop = self._find_stop()
        if self._stop <= self._start:
            raise ValueError(f"{self.reader.rec_path}: none of its {len(self.reader)} records holds an image")
        self.keys = self.reader.keys[self._start : self._stop]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) every image's label, scanned at the first use."""
        return self.scan_labels()

    def scan_labels(self) -> NDArray[np.int64]:
        """Read (N,) labels from the headers, of a vector the first; ValueError if one is no whole number."""
        labels = np.empty(len(self), np.int64)
        for start in range(self._start, self._stop, 1 << 20):
            block = self.reader.scan_headers(start, min(start + (1 << 20), self._stop)).labels
            if not (whole := _is_whole(block)).all():
                i = int(whole.argmin())
                raise ValueError(_no_identity(self.reader.where(start + i), float(block[i])))
            labels[start - self._start :][: len(block)] = block
        return labels

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` and its label; see ``FaceDataset.load``."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.reader.rec_path}")
        position = self._start + index
        payload = self.reader.read_at(position)
        try:
            header, encoded = unpack(payload)
        except ValueError as error:
            raise ValueError(f"{self.reader.where(position)}: {error}; pack the faces again") from None
        label = float(header.label[0])
        if not label.is_integer():
            raise ValueError(_no_identity(self.reader.where(position), label))
        return self._decode(encoded, self.reader.where(position)), int(label)

    def _find_stop(self) -> int:
        """The position after the last image: backwards over the identity records, which lie close together."""
        for start in range((len(self.reader) - 1) // 4096 * 4096, -1, -4096):
            with_image = np.flatnonzero(self.reader.scan_headers(start, start + 4096).has_image)
            if len(with_image):
                return start + int(with_image[-1]) + 1
        return 0


class ImageFolder(FaceDataset):
    """``root/<identity>/<image>``; label i is the i-th folder by sorted name, ``classes[i]``.

    Hidden files and folders, and files that are no image by their ending, are left out. ValueError if there is no
    identity folder, or one without an image.
    """

    def __init__(self, root: str | Path, image_size: Size = (112, 112)) -> None:
        self.root, self.image_size = Path(root), image_size
        self.classes: list[str] = _identity_folders(self.root)
        names = [_image_names(self.root / identity) for identity in self.classes]
        empty = [identity for identity, found in zip(self.classes, names, strict=True) if not found]
        if empty or not self.classes:
            raise ValueError(
                f"{self.root}: {len(empty)} of {len(self.classes)} identity folders hold no image "
                f"{empty[:3]}; expected <identity>/<image> ({', '.join(IMAGE_SUFFIXES)}): fill or remove them"
            )
        # One array instead of a list of strings: forked workers share it instead of copying it page by page.
        self._names = np.array([name for found in names for name in found])
        self._labels = np.repeat(np.arange(len(names)), [len(found) for found in names])

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` and its label; see ``FaceDataset.load``."""
        label = int(self._labels[index])
        path = self.root / self.classes[label] / os.fsdecode(bytes(self._names[index]))
        return self._decode(path.read_bytes(), str(path)), label


class SyntheticFaces(FaceDataset):
    """Noise with labels, at almost no cost an image: for benchmarks and for trying out a configuration.

    Labels are spread evenly over [0, num_classes), in random order: with as many images as classes, none is missing.
    Image and label are functions of (seed, index). ValueError for a count below 1.
    """

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

    def load(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image ``index`` and its label; see ``FaceDataset.load``."""
        piece = self._noise[index * 40503 % 65537 :]  # a prime modulus: 65537 images until one comes again
        return piece[: len(self._noise) - 65537].reshape(*self.image_size, 3), int(self.labels[index])


def check_labels(labels: ArrayLike, num_classes: int) -> None:
    """Raise ValueError unless every label is a whole number in [0, num_classes), with the range found."""
    found = np.asarray(labels)
    if found.size == 0:
        raise ValueError("no labels to train on: the data set is empty")
    if found.dtype.kind not in "iu" and not (whole := _is_whole(found)).all():
        raise ValueError(_no_identity("labels", float(found[~whole][0])))
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= num_classes:
        way = f'set num_classes = "auto" or {high + 1}' if low >= 0 else "number the identities from 0 on"
        allowed = f"num_classes = {num_classes} allows 0 to {num_classes - 1}"
        raise ValueError(f"labels run from {low} to {high}, but {allowed}: {way}")


class EpochSampler(Sampler[list[int]]):
    """The batches of one rank: its slices of a permutation of (seed, epoch).

    Step s of an epoch is the global batch ``permutation[s * G : (s + 1) * G]`` whatever the number of ranks; rank
    r takes the r-th B of it. The N mod G images left over wait for another epoch. ValueError if N < G.

    The position is where the next iteration starts. Workers that read ahead do not move it: the training loop says
    how far it has come with ``set_position``, before each epoch and before it saves.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 2048) -> None:
        assert 0 <= rank < world_size
        self.n, self.batch_size, self.rank, self.seed = n, batch_size, rank, seed
        self.global_batch = batch_size * world_size
        if not 1 <= self.global_batch <= n:
            raise ValueError(
                f"an epoch of {n} images has no global batch of {world_size} ranks x {batch_size} = "
                f"{self.global_batch}: change batch_size, start fewer ranks, or add images"
            )
        self.steps_per_epoch = n // self.global_batch
        self.epoch, self.step = 0, 0

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration start at this step of this epoch; ValueError if there is no such step."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise ValueError(f"no step {step} of epoch {epoch}: an epoch has {self.steps_per_epoch} steps")
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Batches that the next iteration yields."""
        return self.steps_per_epoch - self.step

    def __iter__(self) -> Iterator[list[int]]:
        # The position is taken now, not at the first batch: the loop may move it on while this runs.
        return self._batches(self.epoch, self.step)

    def _batches(self, epoch: int, step: int) -> Iterator[list[int]]:
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        for s in range(step, self.steps_per_epoch):
            start = s * self.global_batch + self.rank * self.batch_size
            yield permutation[start : start + self.batch_size].tolist()

    def state_dict(self) -> dict[str, int]:
        """The position, with the global batch that its step counts in."""
        return {"epoch": self.epoch, "step": self.step, "global_batch": self.global_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; under another global batch, to the last step that leaves out no image."""
        images = state["step"] * state.get("global_batch", self.global_batch)
        self.set_position(state["epoch"], min(images // self.global_batch, self.steps_per_epoch))


def get_dataloader(
    source: str | Path | FaceDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 2048,
    num_workers: int = 2,
    num_classes: int | None = None,
    num_image: int | None = None,
    image_size: Size = (112, 112),
    device: torch.device | str = "cpu",
) -> DataLoader[Batch]:
    """A loader of :class:`Batch` whose ``batch_sampler`` is an :class:`EpochSampler`.

    ``source`` is a folder with train.rec, a .rec file, a folder of identity folders, "synthetic" (the only one that
    takes ``num_classes`` and ``num_image``), or a data set; FileNotFoundError or ValueError if it is none of these.
    ``batch_size`` is B. With ``num_workers`` 0 this process decodes. For a CUDA ``device``, memory is pinned.
    """
    dataset: FaceDataset
    if isinstance(source, FaceDataset):
        dataset = source
    elif str(source) == "synthetic":
        if num_classes is None or num_image is None:
            raise ValueError(f'"synthetic" needs num_classes and num_image, got {num_classes} and {num_image}')
        dataset = SyntheticFaces(num_classes, num_image, seed, image_size)
    elif Path(source).suffix == ".rec" or (Path(source) / "train.rec").exists():
        dataset = FaceRecords(source, image_size)
    elif not Path(source).is_dir():
        raise FileNotFoundError(f'{source}: no such folder; expected a folder, a .rec file or "synthetic"')
    elif _identity_folders(Path(source)):
        dataset = ImageFolder(source, image_size)
    else:
        records = sorted(file.name for file in Path(source).glob("*.rec"))
        hint = f"; give {records[0]} by its own path" if records else ""
        raise ValueError(f"{source}: neither train.rec with train.idx in it, nor <identity>/<image> below it{hint}")
    return DataLoader(
        dataset,
        batch_sampler=EpochSampler(len(dataset), batch_size, rank, world_size, seed),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),  # else each epoch would draw from torch's global state
    )


def augment(images_BHW3: Tensor, sample_ids_B: Tensor, *, seed: int, epoch: int, flip: bool = True) -> Tensor:
    """Flip about half of the uint8 images, on their device, and turn all into (B, 3, H, W) float32 network input.

    Whether a sample is flipped is a hash of (seed, epoch, sample id): no other sample, rank or device matters.
    """
    if flip:
        flipped_B = mix(sample_ids_B.to(images_BHW3.device) ^ key(seed, epoch, _FLIP)) < 0
        images_BHW3 = torch.where(flipped_B[:, None, None, None], images_BHW3.flip(2), images_BHW3)
    return to_network_input(images_BHW3)


def _is_whole(labels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(labels) & (labels == np.rint(labels)))


def _no_identity(where: str, label: float) -> str:
    return f"{where}: label {label} is no whole number; labels are identities 0, 1, 2, ...: pack them as such"


def _identity_folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _image_names(folder: Path) -> list[bytes]:
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith("."))
        return sorted(os.fsencode(name) for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(worker_id: int) -> None:
    if hasattr(signal, "sigwaitinfo"):
        _end_for_the_parent_only()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_for_the_parent_only() -> None:
    """Let SIGTERM end this worker only when the training process sends it.

    Launchers and schedulers signal the whole group; the training process then still needs its workers to finish the
    step and save.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait(parent: int) -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, args=(os.getppid(),), daemon=True).start()
