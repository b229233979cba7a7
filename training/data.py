"""The data of a run: opened and checked before the first step, the same on every host."""

from __future__ import annotations

import dataclasses
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.faces import Batch, FaceDataset, ImageFolder, check_labels
from data.joined import JoinedSets
from data.workers import check_shared_memory
from dataset import Loader, get_dataloader
from utils.device import to_device
from utils.distributed import Ranks, all_gather_objects, all_reduce_sum_
from utils.log import log, warn_once
from utils.settings import Config

SYNTHETIC_IMAGES = 1_000_000  # of "synthetic" data without num_image
MAX_DAMAGED_SHARE = 0.01  # of the images, above which none are skipped any more
_SAID_AT = (1, 100, 10_000, 1_000_000)  # images that decoding changed, when the log says so
MAX_DAMAGED_FROM = 1000  # images from which that share counts


class DataSummary(NamedTuple):
    """What must be the same on every host."""

    num_classes: int
    num_image: int
    empty_classes: int  # identities without an image
    unusable: int  # images whose label is damaged, where these are skipped
    checksum: int  # of the labels in their order, and of the folders' names
    images_of_people: int  # checksum of the number of images of each identity


class DataFacts(NamedTuple):
    """What one process of a host finds out about the data, for the others."""

    class_counts: tuple[int, ...]  # of each of several sets
    unusable: NDArray[np.int64]  # see FaceDataset
    warnings: tuple[str, ...]


class RunData:
    """The faces that a run trains on, the order in which they come, and the loader that batches them."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.faces, self.sampler = loader, loader.dataset, loader.batch_sampler
        self.summary: DataSummary | None = None  # filled in by open_data

    def steps_per_epoch(self, gradient_acc: int) -> int:
        """Optimizer steps of one epoch, the same on every rank; ValueError if there is none."""
        steps = self.sampler.steps_per_epoch // gradient_acc
        if steps == 0:
            raise ValueError(
                f"{len(self.faces)} images are less than one step's batch; lower batch_size or gradient_acc "
                f"({gradient_acc}), or use fewer ranks"
            )
        return steps

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from number ``first`` on."""
        self.sampler.set_position(epoch, first)
        return iter(self.loader)

    def describe(self) -> list[str]:
        """Lines for the log: each of several sets with its classes, and what an epoch takes from it."""
        faces, sampler = self.faces, self.sampler
        if not isinstance(faces, JoinedSets):
            if sampler.n == len(faces):
                return []
            return [f"weight {sampler.sets[0].weight:g}: {sampler.n} images an epoch, drawn from {len(faces)}"]
        lines = []
        for number, (part, weighted) in enumerate(zip(faces.parts(), sampler.sets, strict=True)):
            new = part.classes
            classes = f"classes {new.start} to {new.stop - 1}" if new else "no new class"
            shared = f", {part.shared} of earlier sets" if part.shared else ""
            lines.append(
                f"set {number} ({part.name}): {len(part.images)} images, {classes}{shared}, "
                f"weight {weighted.weight:g}: {weighted.images_drawn} images an epoch"
            )
        return lines

    def class_list(self) -> Any:
        """What classes.json holds: the classes' names in order; for several sets their ranges too.

        None where no name is known and there is one set.
        """
        names = self.faces.class_names()
        if not isinstance(self.faces, JoinedSets):
            return names
        sets = [
            {
                "name": part.name,
                "images": len(part.images),
                "first_class": part.classes.start,
                "classes": len(part.classes),
                "shared_classes": part.shared,
            }
            for part in self.faces.parts()
        ]
        return {"sets": sets, "names": names}


def open_data(cfg: Config, ranks: Ranks) -> tuple[RunData, Config]:
    """Open the data and check its labels, once on each host; returns the config with the counts filled in.

    Raises:
        ValueError: labels outside ``num_classes``, too few images, hosts whose data differ; on every rank.
        FileNotFoundError: there is no data at ``rec``; on every rank.
    """
    if not cfg.rec:
        raise ValueError("rec is not set: give the folder of the training data, in the config or as rec=FOLDER")
    error: Exception | None = None
    found: tuple[DataSummary, DataFacts] | None = None
    data: RunData | None = None
    try:
        data = RunData(_open_loader(cfg, ranks))
        if not cfg.dali:  # its workers hand over files, which are small
            batch_bytes = cfg.batch_size * math.prod(cfg.image_size) * 3
            check_shared_memory(cfg.num_workers, batch_bytes, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if ranks.local_rank == 0:
            found = examine(data.faces, cfg.class_count())
    except FileNotFoundError as problem:
        error = FileNotFoundError(f"{problem}. Give the folder of the training data with rec=FOLDER")
    except (ValueError, OSError) as problem:
        error = problem
    reports = all_gather_objects((error, found))
    for other_error, _ in reports:
        if other_error is not None:
            raise other_error
    examined = [report for _, report in reports if report is not None]
    summaries = {summary for summary, _ in examined}
    if len(summaries) != 1:
        raise ValueError(f"the hosts' data differ, copy the same to all: {'; '.join(map(str, sorted(summaries)))}")
    assert data is not None
    summary, facts = examined[0]
    data.summary = summary
    _adopt(data.faces, facts)
    if summary.empty_classes:
        log.warning(
            "data: %d of %d identities have no image; each takes a row of the classifier all the same",
            summary.empty_classes,
            summary.num_classes,
        )
    for warning in facts.warnings:
        log.warning("data: %s", warning)
    if summary.unusable:
        log.warning(
            "data: %d of %d images have a damaged label and are left out", summary.unusable, summary.num_image
        )
    if cfg.num_image not in (None, summary.num_image):
        log.warning(
            "num_image = %d in the config, %d found; the schedule follows the data", cfg.num_image, summary.num_image
        )
    num_classes = cfg.num_classes if isinstance(cfg.num_classes, tuple) else summary.num_classes
    return data, dataclasses.replace(cfg, num_classes=num_classes, num_image=summary.num_image)


def _open_loader(cfg: Config, ranks: Ranks) -> Loader:
    is_synthetic = cfg.rec == "synthetic"
    return get_dataloader(
        cfg.rec,
        cfg.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=cfg.seed,
        num_workers=cfg.num_workers,
        num_classes=cfg.class_count() if is_synthetic else None,
        num_image=(cfg.num_image or SYNTHETIC_IMAGES) if is_synthetic else None,
        image_size=cfg.image_size,
        device=ranks.device,
        class_map=cfg.class_map,
        weights=cfg.rec_weights,
        shuffle_chunk=cfg.shuffle_chunk,
        on_bad_sample=cfg.on_bad_sample,
        dali=cfg.dali,
        timeout_s=cfg.timeout_s,
    )


def examine(faces: FaceDataset, num_classes: int | None) -> tuple[DataSummary, DataFacts]:
    """Read all labels and a few images; ValueError when a label or an image does not fit, unless it is skipped."""
    num_classes = num_classes or faces.num_classes
    labels = faces.labels
    unusable = np.empty(0, np.int64)
    if faces.on_bad_sample == "skip":
        unusable = faces.find_unusable(num_classes)
        check_damaged_share(len(unusable), len(faces), f"labels, the first that of {_first(faces, unusable)}")
        labels = np.delete(labels, unusable)
    try:
        check_labels(labels, num_classes)
    except ValueError as error:
        raise ValueError(f"{error}; the first is that of {_first(faces, faces.find_unusable(num_classes))}") from None
    counts = faces.class_counts if isinstance(faces, JoinedSets) else ()
    facts = DataFacts(counts, unusable, tuple(text for one in faces.sets for text in (one.warning, one.note) if text))
    _adopt(faces, facts)
    for index in np.linspace(0, len(faces) - 1, 8).astype(int):
        faces[int(index)]
    names = "\n".join(_folder_names(faces))
    checksum = zlib.crc32(
        names.encode(errors="surrogateescape"), zlib.crc32(faces.labels.tobytes(), zlib.crc32(unusable.tobytes()))
    )
    images_C = np.bincount(labels, minlength=num_classes)
    people = zlib.crc32(images_C.astype(np.int64).tobytes())
    return DataSummary(num_classes, len(faces), int((images_C == 0).sum()), len(unusable), checksum, people), facts


def check_damaged_share(damaged: int, images: int, what: str) -> None:
    """Raise ValueError if so many images are damaged that skipping them would hide a broken file or disk."""
    if images >= MAX_DAMAGED_FROM and damaged > MAX_DAMAGED_SHARE * images:
        raise ValueError(
            f"{damaged} of {images} images are damaged, more than {100 * MAX_DAMAGED_SHARE:g} % ({what}): copy the "
            "data again, or take out what is damaged"
        )


def _first(faces: FaceDataset, unusable: NDArray[np.int64]) -> str:
    return faces.where(int(unusable[0])) if len(unusable) else "none"


def _adopt(faces: FaceDataset, facts: DataFacts) -> None:
    """Adopt what a process on this host, or on one with the same data, has found out."""
    faces.unusable = facts.unusable
    if isinstance(faces, JoinedSets):
        faces.class_counts = facts.class_counts


def _folder_names(faces: FaceDataset) -> list[str]:
    return [name for one in faces.sets if isinstance(one, ImageFolder) for name in one.classes]


def data_folder(cfg: Config) -> Path:
    """Where the verification sets lie: the first set's folder, also when ``rec`` names a file in it."""
    return _folder_of(cfg.sources()[0])


def verification_targets(cfg: Config) -> list[str]:
    """``val_targets``, as paths where they lie in a further set's folder."""
    folders = [_folder_of(source) for source in cfg.sources()]
    targets = []
    for target in cfg.val_targets:
        found = [str(folder / f"{target}.bin") for folder in folders if (folder / f"{target}.bin").is_file()]
        is_elsewhere = found and Path(found[0]).parent != folders[0]
        targets.append(found[0] if is_elsewhere and not target.endswith(".bin") else target)
    return targets


def _folder_of(source: str) -> Path:
    is_file = source.endswith((".rec", ".tar", ".mdb", ".lmdb"))  # or a pattern of them
    return Path(source).parent if is_file else Path(source)


class DamagedSamples:
    """How many images have been replaced on this rank because they are damaged, and how many decoding changed."""

    def __init__(self) -> None:
        self.damaged = self.images = 0
        self._changed: Counter[str] = Counter()  # since this process started, by kind

    def counts(self) -> tuple[int, int]:
        """Damaged images, and images in all."""
        return self.damaged, self.images

    def restore(self, counts: tuple[int, ...]) -> None:
        """Go on from what :meth:`counts` gave."""
        self.damaged, self.images = counts

    def count(self, batch: Batch) -> None:
        """Take a batch into account; log the 1st, 2nd, 4th, 8th ... damaged image, the 1st, 100th ... changed one.

        Raises:
            ValueError: there are too many; see :func:`check_damaged_share`.
        """
        self.images += len(batch.labels_B)
        for kind, count, where in batch.changed:
            before = self._changed[kind]
            self._changed[kind] += count
            if any(before < said <= before + count for said in _SAID_AT):
                warn_once("data: images with %s: %d of %d so far (%s)", kind, before + count, self.images, where)
        for message in batch.damaged:
            self.damaged += 1
            if self.damaged & (self.damaged - 1) == 0:
                log.warning("skipped damaged image %d of %d so far: %s", self.damaged, self.images, message)
        if batch.damaged:
            check_damaged_share(self.damaged, self.images, f"the last: {batch.damaged[-1]}")

    def of_all_ranks(self, device: torch.device) -> int:
        """The number on all ranks together; one all-reduce of one number."""
        return int(all_reduce_sum_(to_device(torch.tensor(self.damaged), device)))
