"""The faces of a finished run: its data opened again, images of chosen classes embedded, centres made ready.

Shapes: N images, C classes, D embedding size, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.faces import FaceDataset
from data.joined import JoinedSets
from data.storage import is_address
from dataset import join_sources
from embedder.batches import embedded_blocks
from embedder.embedder import Embedder, embed_with_mirrored
from training.checkpoint import open_saved_heads
from utils.text import parse_json

Load = Callable[[int], NDArray[np.uint8]]  # an image's number to (H, W, 3) RGB; ValueError or OSError if damaged


def open_run_faces(run: Path, rec: Sequence[str] | None = None) -> tuple[JoinedSets, list[str]]:
    """Open the data that a run was trained on, as its config.json says.

    Args:
        run: the run's folder.
        rec: where the data lie now, if that has changed; the sets in the run's order.

    Returns:
        The sets as one, with the run's class map, and where each lies.

    Raises:
        FileNotFoundError: there is no config.json or no data.
        ValueError: the data are no faces, or others than the run's.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder that a run of train.py leaves")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
        sources = [config["rec"]] if isinstance(config["rec"], str) else list(config["rec"])
        size, on_bad_sample = tuple(config["image_size"]), config["on_bad_sample"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the settings of a run ({type(error).__name__}: {error}): give a folder that train.py wrote"
        ) from None
    if sources == ["synthetic"]:
        raise ValueError(f"{path}: the run was trained on noise (rec = 'synthetic'), in which there are no people")
    if rec is not None and len(rec) != len(sources):
        raise ValueError(f"--rec gives {len(rec)} sets, the run has {len(sources)}: give {', '.join(sources)} anew")
    if rec is None and (remote := [source for source in sources if is_address(source)]):
        raise ValueError(
            f"{path}: the data lie behind {remote[0]}; to have it connected to, give the sets with --rec"
        )
    sources = sources if rec is None else list(rec)
    try:
        faces = join_sources(sources, size, on_bad_sample, class_map=config.get("class_map"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. If the run's data lie elsewhere now, give their place with --rec"
        ) from None
    expected = config.get("num_image")
    if isinstance(expected, int) and expected != len(faces):
        raise ValueError(
            f"{', '.join(sources)}: {len(faces):,} images, but the run was trained on {expected:,}: its "
            "classes may be others now; give the data as they were with --rec"
        )
    return faces, sources


class ClassImages:
    """Which images a class has."""

    def __init__(self, faces: FaceDataset) -> None:
        labels_N = faces.labels
        known_N = np.flatnonzero(labels_N >= 0)  # -1: damaged, where the run skips such images
        self.counts = np.bincount(labels_N[known_N], minlength=faces.num_classes)  # (C,)
        self._order = known_N[labels_N[known_N].argsort(kind="stable")]
        self._ends = np.cumsum(self.counts)

    def some(self, number: int, most: int) -> NDArray[np.int64]:
        """At most so many images of a class, spread evenly over all of them."""
        own = self._order[self._ends[number] - self.counts[number] : self._ends[number]]
        return own[np.unique(np.linspace(0, len(own) - 1, min(len(own), most)).round().astype(np.int64))]


def embed_groups(
    embedder: Embedder,
    load: Load,
    groups: Sequence[NDArray[np.int64]],
    batch_size: int,
    on_damaged: Callable[[str], None] | None = None,
    progress: str = "",
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Embed groups of images, one group after the other, images of several groups in a batch.

    Args:
        embedder: the network.
        load: called from another thread.
        groups: numbers of images.
        batch_size: B.
        on_damaged: told what is wrong with an image, which is then left out; None: that is an error.
        progress: label of a progress bar, "" for none.

    Yields:
        For each group (n, D) of length 1, and which of its images these n are; n is 0 where all are damaged.

    Raises:
        ValueError: an image is damaged.
        OSError: an image cannot be read.
    """
    numbers_N = np.concatenate([np.empty(0, np.int64), *groups])
    is_good_N = np.ones(len(numbers_N), bool)
    side = embedder.image_size

    def load_block(start: int, end: int) -> NDArray[np.uint8]:
        images_BHW3 = np.zeros((end - start, side, side, 3), np.uint8)
        for b, number in enumerate(numbers_N[start:end].tolist()):
            try:
                images_BHW3[b] = load(number)
            except (ValueError, OSError) as error:
                if on_damaged is None:
                    raise
                on_damaged(str(error))
                is_good_N[start + b] = False
        return images_BHW3

    blocks = [(start, min(start + batch_size, len(numbers_N))) for start in range(0, len(numbers_N), batch_size)]
    embedded = embedded_blocks(
        lambda images: embed_with_mirrored(embedder.embed, images), load_block, blocks, progress=progress
    )
    waiting_ND = np.empty((0, embedder.embedding_size), np.float32)
    at = 0  # the first image that waits
    for group in groups:
        while len(waiting_ND) < len(group):
            waiting_ND = np.concatenate([waiting_ND, next(embedded)[2]])
        is_good_n = is_good_N[at : at + len(group)]
        own_nD = waiting_ND[: len(group)][is_good_n]
        waiting_ND, at = waiting_ND[len(group) :], at + len(group)
        yield own_nD / np.maximum(np.linalg.norm(own_nD, axis=1, keepdims=True), 1e-12), is_good_n


def write_unit_centres(
    checkpoint: Path, out: Path, has_images_C: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    """Write a checkpoint's centres with length 1 into a file, block by block, of the classes that have been trained.

    Args:
        checkpoint: a folder ``step_N``.
        out: .npy to write.
        has_images_C: which classes of the data have images; the checkpoint may have more classes.

    Returns:
        The centres (V, D) as a mapped file, their V classes in ascending order, and how many classes have images but
        a centre that was never updated.

    Raises:
        ValueError: the checkpoint is damaged, or has fewer classes.
    """
    saved = open_saved_heads(checkpoint)
    settings = saved.settings
    C, num_classes = settings["num_classes"], len(has_images_C)
    if num_classes > C:
        raise ValueError(
            f"{checkpoint}: centres of {C:,} classes, but the data have {num_classes:,}: these are not the data that "
            "the run was trained on; give them with --rec"
        )
    centres_CD = np.lib.format.open_memmap(out, "w+", np.float32, (C, settings["embedding_size"]))
    classes: list[NDArray[np.int64]] = []
    first = written = untouched = 0
    for rows_mD, visits_m in saved.blocks():
        has_images_m = np.zeros(len(rows_mD), bool)
        here = has_images_C[first : first + len(rows_mD)]
        has_images_m[: len(here)] = here
        chosen = np.flatnonzero(has_images_m & (visits_m > 0))
        untouched += int((has_images_m & (visits_m == 0)).sum())
        rows_VD = rows_mD[chosen].astype(np.float32)
        lengths_V1 = np.linalg.norm(rows_VD, axis=1, keepdims=True)
        centres_CD[written : written + len(chosen)] = rows_VD / np.maximum(lengths_V1, 1e-12)
        classes.append(chosen + first)
        first, written = first + len(rows_mD), written + len(chosen)
    return centres_CD[:written], np.concatenate(classes), untouched
