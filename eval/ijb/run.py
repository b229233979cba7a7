"""The steps of an IJB evaluation: embed the tree's images over all ranks, verify pairs, identify probes.

Shapes: N images, D embedding size, U templates, P pairs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prettytable import PrettyTable

from embedder.align import TEMPLATE, similarity_transform, warp_face
from embedder.batches import embedded_blocks
from embedder.embedder import Embedder
from eval.bootstrap import DRAWS, Interval, Resampler, interval_text, linked_people, tar_intervals
from eval.identification import Identification, identify
from eval.ijb.cache import EmbeddingCache, cache_key
from eval.ijb.lists import IJBTree, Subjects
from eval.ijb.templates import FeatureMode, image_features, pool_templates, template_rows
from eval.roc import FAR_GRID, Roc, roc
from utils.decode import decode_rgb
from utils.distributed import barrier, broadcast_object, get_rank, get_world_size, part_of, together


@dataclass(frozen=True)
class Embedded:
    """What embedding a tree left on disk, and how much of it was there already."""

    cache: EmbeddingCache
    reused: int  # images
    damaged: list[str]  # names of parts that were removed


@contextmanager
def embedded_tree(
    embedder: Embedder, tree: IJBTree, folder: Path, batch_size: int, threads: int, keep: bool = True
) -> Iterator[Embedded]:
    """Embed every image that is not in the cache yet, the work shared out over the ranks.

    Every rank calls it. The parts and the batches in them are the same whatever the number of ranks. Collectives:
    two broadcasts of small objects, four gathers of errors, and a barrier.

    Args:
        embedder: the same on every rank.
        tree: the same on every rank.
        folder: where caches are kept, on storage that all ranks share.
        batch_size: images per forward pass.
        threads: background threads that decode and align, at least 1.
        keep: leave the cache for the next run; otherwise it is a new one, removed when the block ends.

    Yields:
        the cache, complete.

    Raises:
        ValueError: an image does not decode, embeddings are not finite, or the ranks do not share the folder.
        OSError: the cache cannot be written.
    """
    facts = {
        "network": embedder.name,
        "sha256": embedder.sha256,
        "precision": embedder.precision,
        "image_size": embedder.image_size,
        "target": tree.target,
        **({"color_order": "BGR"} if embedder.color_order == "BGR" else {}),  # keys of older caches stay
    }
    key = cache_key(facts, tree.names, tree.landmarks, tree.stamps) if keep else f"once-{os.getpid()}"
    cache = EmbeddingCache(folder / broadcast_object(key), len(tree.names))
    together(lambda: cache.open(facts) if get_rank() == 0 else None)
    try:
        together(lambda: _see(cache.folder))
        missing, damaged = broadcast_object(together(lambda: cache.missing() if get_rank() == 0 else None))
        first, last = part_of(len(missing), get_rank(), get_world_size())
        together(lambda: _embed_parts(embedder, tree, cache, missing[first:last], batch_size, threads))
        barrier()
        yield Embedded(cache, len(tree.names) - sum(end - start for start, end in missing), damaged)
    finally:
        if not keep and get_rank() == 0:
            shutil.rmtree(cache.folder, ignore_errors=True)


def _see(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"rank {get_rank()} does not see {folder}, which rank 0 made: put --result-dir on storage that all hosts "
            "share, or start ranks on one host only"
        )


def _embed_parts(
    embedder: Embedder,
    tree: IJBTree,
    cache: EmbeddingCache,
    parts: Sequence[tuple[int, int]],
    batch_size: int,
    threads: int,
) -> None:
    """Embed parts and write each as soon as it is complete; one that is not finite is not written.

    Raises:
        ValueError: embeddings that are not finite.
    """
    blocks = [(at, min(at + batch_size, end)) for start, end in parts for at in range(start, end, batch_size)]
    ends = {end: start for start, end in parts}
    progress = tree.target if get_rank() == 0 else ""
    if progress and get_world_size() > 1:
        progress += f", rank 0 of {get_world_size()}"
    done: list[NDArray[np.float32]] = []
    bad = 0
    images = AlignedImages(tree, embedder.image_size)
    for _, end, halves in embedded_blocks(embedder.embed_halves, images, blocks, threads, progress if parts else ""):
        done.append(halves)
        if end in ends:
            part = np.concatenate(done)
            done.clear()
            broken = int(np.count_nonzero(~np.isfinite(part).all(axis=1)))
            bad += broken
            if not broken:
                cache.write(ends[end], part)
    if bad:
        raise ValueError(
            f"{bad} of {sum(end - start for start, end in parts)} embeddings hold nan or infinity: the model's "
            "weights are broken, or its training had diverged"
        )


class AlignedImages:
    """The tree's faces as the network takes them.

    Args:
        tree: names and landmarks.
        image_size: side in pixels.
    """

    def __init__(self, tree: IJBTree, image_size: int = 112) -> None:
        self.tree, self.image_size = tree, image_size
        self.matrices = similarity_transform(tree.landmarks, TEMPLATE * (image_size / 112))  # (N, 2, 3)

    def __call__(self, start: int, end: int) -> NDArray[np.uint8]:
        """Decode and align images [start, end): (end - start, H, W, 3) RGB."""
        out = np.empty((end - start, self.image_size, self.image_size, 3), np.uint8)
        for row, index in enumerate(range(start, end)):
            out[row] = self.image(index)
        return out

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode and align one image: (H, W, 3) RGB.

        Raises:
            ValueError: the file holds no image.
        """
        tree = self.tree
        path = tree.image_folder / tree.names[index]
        try:
            return warp_face(decode_rgb(path.read_bytes()), self.matrices[index], self.image_size)
        except ValueError as error:
            raise ValueError(
                f"{path}: {error}. Copy the file again from where the set came, or take its line out of both "
                f"lists in {tree.image_folder.parent / 'meta'} ({tree.target.lower()}_face_tid_mid.txt and "
                "_name_5pts_score.txt)"
            ) from None

    def of_template(self, template_id: int) -> NDArray[np.uint8]:
        """A template's face that the detector was surest of: (H, W, 3) RGB."""
        own = np.flatnonzero(self.tree.template_ids == template_id)
        return self.image(int(own[self.tree.detector_scores[own].argmax()]))


def tree_templates(
    cache: EmbeddingCache, tree: IJBTree, mode: FeatureMode
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Make the tree's templates from the cache: their ids (U,) and features (U, D).

    Raises:
        OSError: a part of the cache is gone.
    """

    def read(start: int, end: int) -> NDArray[np.float32]:
        return image_features(cache.read(start, end), tree.detector_scores[start:end], mode)

    return pool_templates(read, tree.template_ids, tree.media_ids)


@dataclass(frozen=True)
class VerificationResult:
    """What 1:1 found."""

    curve: Roc
    tar: dict[float, float]  # FAR -> TAR, 0 to 1
    unresolved: list[float]  # FARs below one impostor pair
    interval: dict[float, Interval] = field(default_factory=dict)  # FAR -> 95 % of the TAR; of resolved FARs alone
    drawn: str = ""  # what the intervals' draws were made of

    def note(self) -> str:
        """Say which figures mean nothing, "" if all do."""
        if not self.unresolved:
            return ""
        fars = ", ".join(f"{far:g}" for far in self.unresolved)
        verb = "It is" if len(self.unresolved) == 1 else "Each is"
        return f"Not resolved: FAR {fars}. {verb} less than one of the {self.curve.impostor:,} impostor pairs."


def verify_scores(labels: NDArray[np.integer[Any]], scores: NDArray[np.float64]) -> VerificationResult:
    """Read the field's FARs off the curve of these scores (P,)."""
    curve = roc(labels, scores)
    return VerificationResult(
        curve, {far: curve.tar_at(far) for far in FAR_GRID}, [far for far in FAR_GRID if not curve.resolves(far)]
    )


def with_intervals(found: VerificationResult, tree: IJBTree, scores: NDArray[np.float64]) -> VerificationResult:
    """Add 95 % intervals: people are drawn again, those whose templates the tree's genuine pairs join.

    Args:
        found: of these scores.
        tree: with pairs.
        scores: (P,).
    """
    people = linked_people(tree.pair_label, tree.pair_template_1, tree.pair_template_2)
    resampler = Resampler(tree.pair_label, *people)
    return replace(
        found,
        interval=tar_intervals(resampler, scores, FAR_GRID),
        drawn=resampler.method("as genuine pairs join their templates"),
    )


def identify_tree(
    tree: IJBTree, unique: NDArray[np.int64], templates_UD: NDArray[np.float64]
) -> dict[str, Identification]:
    """Search all probes in each gallery alone, and in both as one, as insightface's script does.

    Args:
        tree: with galleries and probes.
        unique: (U,) template of each row.
        templates_UD: (U, D).

    Raises:
        ValueError: a gallery without any mate of a probe.
    """
    assert tree.probes is not None
    probes, galleries = tree.probes, list(tree.galleries.values())
    joined = Subjects(
        np.concatenate([g.template_ids for g in galleries]), np.concatenate([g.subject_ids for g in galleries])
    )
    probes_QD = templates_UD[template_rows(unique, probes.template_ids)]
    results = {}
    for name, gallery in {**tree.galleries, "+".join(tree.galleries): joined}.items():
        gallery_GD = templates_UD[template_rows(unique, gallery.template_ids)]
        try:
            results[name] = identify(probes_QD, probes.subject_ids, gallery_GD, gallery.subject_ids, draws=DRAWS)
        except ValueError as error:
            raise ValueError(f"gallery {name}: {error}") from None
    return results


def tar_table(method: str, tar: dict[float, float]) -> PrettyTable:
    """Build the table of the field: a row per method, a column per FAR, TAR in percent."""
    table = PrettyTable(["Methods", *(f"{far:g}" for far in tar)])
    table.add_row([method, *(f"{100 * value:.2f}" for value in tar.values())])
    return table


def tar_interval_table(method: str, found: VerificationResult) -> PrettyTable:
    """Build the table of 95 % intervals of the TARs in percent, columns as :func:`tar_table`; "-" if not resolved."""
    table = PrettyTable(["95 % intervals", *(f"{far:g}" for far in found.tar)])
    nothing = float("nan"), float("nan")
    table.add_row([method, *(interval_text(found.interval.get(far, nothing)) for far in found.tar)])
    return table
