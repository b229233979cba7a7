"""Class centres that a new run does not start at random: class means, or centres of an older run.

Every rank does so for the classes that it holds, block by block and in step with the others, so that memory stays
small for any number of classes, and an error of one rank is raised on all after the same block.

Shapes: N images, C classes, h heads of one block, S their classes, B batch, D embedding size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backbones.base import to_network_input
from data.faces import FaceDataset
from embedder.batches import embedded_blocks, evaluation_mode
from heads.arrays import CENTRES
from heads.shard import INITIAL_STD, HeadShard
from heads.storage import VISITS
from training.carried_centres import find_carried_people
from training.data import check_damaged_share
from utils.device import to_device
from utils.distributed import all_gather_objects, get_world_size, together
from utils.log import log
from utils.settings import Config

IMAGES_OF_A_CLASS = 32  # at most, for its mean; spread evenly over all that it has
CLASSES_AT_ONCE = 1024  # in memory; a block has one head at least
_SAY_EVERY_S = 30.0

Find = Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.bool_]]]
# Of classes (S,) their centres (S, D), and which of them have one.


def set_first_centres(cfg: Config, shard: HeadShard, backbone: nn.Module, faces: FaceDataset) -> None:
    """Do what ``init_centres`` says, in a run that starts anew. All ranks call it.

    Heads that get a centre count as updated once, because storage reads a head without an update as random. So they
    are written to every checkpoint and take up room in files, before a step has seen them; and where AdamW counts a
    head's own updates (``row_idle`` "keep"), its first step on them is a quarter shorter.

    Args:
        cfg: the run's settings.
        shard: this rank's heads, with the optimizer's arrays, before the first forward.
        backbone: for class means: the network that the run starts from; its mode is restored.
        faces: the run's data.

    Raises:
        ValueError: a damaged image where these are not skipped, embeddings that are not finite, an older run that
            does not fit; on every rank.
        OSError: a file cannot be read or written; on every rank.

    Collectives: one object gather for each block of classes, and two more.
    """
    if cfg.init_centres is None:
        return
    if cfg.init_centres == "class_means":
        means = ClassMeans(cfg, backbone, faces, shard)
        _log_means(means, _fill(shard, means.find), shard.layout.num_classes)
        return
    people = together(lambda: find_carried_people(cfg, shard, faces))
    log.info("init_centres: %s", people.report(_fill(shard, people.find)))


class ClassMeans:
    """The mean directions of classes, as far as a network sees them.

    Args:
        cfg: ``batch_size``, ``num_workers`` (threads that decode) and ``on_bad_sample`` count.
        backbone: the network; its mode is restored after each :meth:`find`.
        faces: the images.
        shard: whose classes are asked for.
    """

    def __init__(self, cfg: Config, backbone: nn.Module, faces: FaceDataset, shard: HeadShard) -> None:
        self.backbone, self.faces, self.device = backbone, faces, shard.device
        self.batch_size, self.threads = cfg.batch_size, max(1, cfg.num_workers)
        self.embedding_size = shard.embedding_size
        self.length = INITIAL_STD * math.sqrt(shard.embedding_size)  # of a random centre
        self.images = ImagesOfClasses(faces, shard.layout.class_start, shard.layout.class_end)
        self.embedded = 0
        self.damaged: list[str] = []

    def find(self, classes_S: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The centres (S, D) of classes, and which of them have one: those with an image and a direction.

        Raises:
            ValueError: a damaged image where these are not skipped, too many of them, or embeddings that are not
                finite.
            OSError: an image cannot be read, where these are not skipped.
        """
        groups = [self.images.some(int(number), IMAGES_OF_A_CLASS) for number in classes_S]
        images_N = np.concatenate([np.empty(0, np.int64), *groups])
        place_N = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        sums_SD = np.zeros((len(groups), self.embedding_size))
        with evaluation_mode(self.backbone):
            for start, end, embedding_BD, is_good_B in self._embedded(images_N):
                np.add.at(sums_SD, place_N[start:end][is_good_B], _units(embedding_BD[is_good_B]))
        lengths_S1 = np.linalg.norm(sums_SD, axis=1, keepdims=True)
        has_mean_S = lengths_S1[:, 0] > 1e-6
        return (sums_SD * (self.length / np.maximum(lengths_S1, 1e-12))).astype(np.float32), has_mean_S

    def _embedded(
        self, images_N: NDArray[np.int64]
    ) -> Iterator[tuple[int, int, NDArray[np.float32], NDArray[np.bool_]]]:
        """Blocks (start, end) of the images, their embeddings (B, D), and which of them are not damaged."""
        is_good_N = np.ones(len(images_N), bool)

        def load(start: int, end: int) -> NDArray[np.uint8]:
            images_BHW3 = np.zeros((end - start, *self.faces.image_size, 3), np.uint8)
            for b, index in enumerate(images_N[start:end].tolist()):
                try:
                    images_BHW3[b] = self.faces.load(index)[0]
                except (ValueError, OSError) as error:
                    if self.faces.on_bad_sample == "stop":
                        raise
                    self.damaged.append(str(error))
                    is_good_N[start + b] = False
            return images_BHW3

        ends = [min(start + self.batch_size, len(images_N)) for start in range(0, len(images_N), self.batch_size)]
        blocks = list(zip([0, *ends], ends, strict=False))
        for start, end, embedding_BD in embedded_blocks(self._embed, load, blocks, self.threads):
            self.embedded += end - start
            if self.damaged:
                check_damaged_share(len(self.damaged), self.embedded, f"the last: {self.damaged[-1]}")
            yield start, end, embedding_BD, is_good_N[start:end]

    def _embed(self, images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = to_device(torch.from_numpy(images_BHW3), self.device)
        embedding_BD: Tensor = self.backbone(to_network_input(images))
        out: NDArray[np.float32] = embedding_BD.float().cpu().numpy()
        return out


def _units(embedding_BD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Embeddings with length 1; ValueError if one is not finite."""
    if not np.isfinite(embedding_BD).all():
        raise ValueError(
            "init_centres = 'class_means': init_backbone gives embeddings that are not finite; with fp16 try bf16, "
            "else take other weights"
        )
    wide_BD = embedding_BD.astype(np.float64)
    units_BD: NDArray[np.float64] = wide_BD / np.maximum(np.linalg.norm(wide_BD, axis=1, keepdims=True), 1e-12)
    return units_BD


class ImagesOfClasses:
    """Which usable images the classes from ``start`` to ``end`` have."""

    def __init__(self, faces: FaceDataset, start: int, end: int) -> None:
        labels_N = faces.labels
        here_N = np.flatnonzero((labels_N >= start) & (labels_N < end))
        if len(faces.unusable):
            here_N = np.setdiff1d(here_N, faces.unusable, assume_unique=True)
        self._order = here_N[labels_N[here_N].argsort(kind="stable")]
        self._start = start
        self._ends = np.cumsum(np.bincount(labels_N[here_N] - start, minlength=end - start))

    def some(self, number: int, most: int) -> NDArray[np.int64]:
        """At most so many images of a class, spread evenly over all of them, ascending."""
        at = number - self._start
        own = self._order[self._ends[at - 1] if at else 0 : self._ends[at]]
        return own[np.unique(np.linspace(0, len(own) - 1, min(len(own), most)).round().astype(np.int64))]


def _fill(shard: HeadShard, find: Find) -> int:
    """Give this rank's classes the centres that ``find`` finds, in step with the other ranks.

    Returns:
        How many classes of all ranks got one.
    """
    layout = shard.layout
    heads_at_once = max(1, CLASSES_AT_ONCE // layout.head_size)
    most_heads = -(-layout.num_heads // get_world_size())  # that a rank has
    blocks = -(-most_heads // heads_at_once)
    found = 0
    progress = _Progress(blocks)
    for block in range(blocks):
        first = layout.head_start + block * heads_at_once
        heads_h = torch.arange(first, max(first, min(first + heads_at_once, layout.head_end)))
        found += together(lambda heads_h=heads_h: _fill_block(shard, heads_h, find))  # type: ignore[misc]
        progress.say(block + 1)
    return sum(all_gather_objects(found))


def _fill_block(shard: HeadShard, heads_h: Tensor, find: Find) -> int:
    """Give the classes of some heads their centres; returns how many got one."""
    classes_S = shard.layout.classes_of(heads_h)
    if not len(classes_S):
        return 0
    rows_SD, has_one_S = find(classes_S.numpy())
    is_new_h = torch.zeros(len(heads_h), dtype=torch.bool)
    is_new_h[(classes_S[torch.from_numpy(has_one_S)] // shard.layout.head_size) - heads_h[0]] = True
    if not is_new_h.any():
        return 0
    mine_S = is_new_h[classes_S // shard.layout.head_size - heads_h[0]]  # the classes of heads with a centre in them
    centres_SD = shard.initial_centres(classes_S[mine_S])
    has_one_S, rows_SD = has_one_S[mine_S.numpy()], rows_SD[mine_S.numpy()]
    centres_SD[torch.from_numpy(has_one_S)] = torch.from_numpy(rows_SD[has_one_S]).to(centres_SD.dtype)
    values = {name: torch.zeros_like(centres_SD) for name in shard.storage.names}
    heads_h = heads_h[is_new_h]
    counts = {
        name: torch.full((len(heads_h),), int(name == VISITS), dtype=torch.int32) for name in shard.storage.counts
    }
    shard.storage.restore(heads_h, {**values, CENTRES: centres_SD}, counts)
    shard.storage.flush()
    return int(has_one_S.sum())


class _Progress:
    """Says at most twice a minute how far the blocks are."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.start_s = self.said_s = time.monotonic()

    def say(self, done: int) -> None:
        """Take one more block into account."""
        now = time.monotonic()
        if now - self.said_s < _SAY_EVERY_S or done == self.blocks:
            return
        self.said_s = now
        minutes = (now - self.start_s) / done * (self.blocks - done) / 60
        log.info("init_centres: block %d of %d, about %.0f minutes left", done, self.blocks, minutes)


def _log_means(means: ClassMeans, found: int, classes: int) -> None:
    on_ranks = all_gather_objects((means.embedded, len(means.damaged)))
    embedded, damaged = (sum(column) for column in zip(*on_ranks, strict=True))
    log.info(
        "init_centres: class means of %d images for %d of %d classes%s",
        embedded - damaged,
        found,
        classes,
        f"; {classes - found} without a usable image start at random" if found < classes else "",
    )
    if means.damaged:
        log.warning("init_centres: %d damaged images left out, the last: %s", len(means.damaged), means.damaged[-1])
    elif damaged:
        log.warning("init_centres: %d damaged images left out on other ranks", damaged)
