"""The steps of a search: embed, make a template a person if asked for, search.

Shapes: N images, D embedding size, G gallery templates, Q probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedder.batches import embedded_blocks
from embedder.embedder import Embedder, embed_with_mirrored
from eval.bootstrap import DRAWS
from eval.identification import Identification, identify
from eval.search.images import FaceLoader, NamedFaces, alike_names

RANKS = (1, 5, 10, 20)  # in tables
CMC = tuple(range(1, 21))  # in the picture
FPIRS = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    found: Identification
    gallery_images: int
    gallery_people: int
    is_mean: bool  # one template a person
    notes: list[str]  # what a reader should know
    read: list[str] = field(default_factory=list)  # how both sides were read


def embed_faces(
    embedder: Embedder, faces: NamedFaces, batch_size: int, flip: bool, threads: int, name: str
) -> tuple[NDArray[np.float32], str]:
    """Embed images, each scaled to length 1: (N, D); and a note on those that were resized.

    Raises:
        ValueError: an image does not decode, or embeddings that are not finite.
        OSError: an image cannot be read.
    """

    def embed(images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        return embed_with_mirrored(embedder.embed, images_BHW3) if flip else embedder.embed(images_BHW3)

    n = len(faces.paths)
    load = FaceLoader(faces, embedder.image_size)
    out_ND = np.empty((n, embedder.embedding_size), np.float32)
    blocks = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    for start, end, embedding_BD in embedded_blocks(embed, load, blocks, threads, name):
        out_ND[start:end] = _unit(embedding_BD)
    bad = int(np.count_nonzero(~np.isfinite(out_ND).all(axis=1)))
    if bad:
        raise ValueError(
            f"{bad} of {n} embeddings of the {name} hold nan or infinity: the model's weights are broken"
        )
    return out_ND, load.note()


def _unit(rows_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays one."""
    length_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    out_ND: NDArray[np.float32] = np.divide(rows_ND, length_N1, out=np.zeros_like(rows_ND), where=length_N1 != 0)
    return out_ND


def mean_templates(
    embeddings_ND: NDArray[np.float32], people_N: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One template a person: the mean of its embeddings, scaled to length 1: (G, D) and (G,)."""
    people, place_N = np.unique(people_N, return_inverse=True)
    sums_GD = np.zeros((len(people), embeddings_ND.shape[1]), np.float32)
    np.add.at(sums_GD, place_N.reshape(-1), embeddings_ND)
    return _unit(sums_GD), people


def search_faces(
    gallery: NamedFaces,
    probes: NamedFaces,
    embeddings: tuple[NDArray[np.float32], NDArray[np.float32]],
    is_mean: bool,
    ranks: Sequence[int] = CMC,
    fpirs: Sequence[float] = FPIRS,
) -> SearchResult:
    """Search the probes in the gallery, with intervals.

    Args:
        gallery: enrolled images.
        probes: images to search for.
        embeddings: of the gallery and of the probes, (N, D) each, rows of length 1.
        is_mean: make one template a person instead of one an image.
        ranks: of rank-r.
        fpirs: false positive identification rates.

    Raises:
        ValueError: no probe is of a person in the gallery.
    """
    gallery_ND, probes_QD = embeddings
    number = {name: i for i, name in enumerate(dict.fromkeys([*gallery.people, *probes.people]))}
    gallery_people, probe_people = (
        np.array([number[name] for name in faces.people], np.int64) for faces in (gallery, probes)
    )
    templates_GD, people_G = mean_templates(gallery_ND, gallery_people) if is_mean else (gallery_ND, gallery_people)
    try:
        found = identify(probes_QD, probe_people, templates_GD, people_G, ranks, fpirs, precision=True, draws=DRAWS)
    except ValueError as error:
        names = f"the gallery has {gallery.people[0]!r}, the probes have {probes.people[0]!r}"
        raise ValueError(f"{error}; people are told by their names: {names}") from None
    notes = []
    same = {str(path.resolve()) for path in gallery.paths} & {str(path.resolve()) for path in probes.paths}
    if same:
        notes.append(f"{len(same):,} images are in the gallery and among the probes: they find themselves")
    alike = alike_names([*gallery.people, *probes.people])
    if alike:
        notes.append(
            f"{len(alike):,} {'name differs' if len(alike) == 1 else 'names differ'} from another in capital letters "
            f"alone, the first: {alike[0][0]!r} and {alike[0][1]!r} count as two people; spell them alike if they "
            "are one"
        )
    too_few = [f"{fpir:g}" for fpir in fpirs if fpir * (found.probes - found.mated) < 1]
    if found.mated == found.probes:
        notes.append("every probe is of a person in the gallery: there is no open-set figure")
    elif too_few:
        notes.append(
            f"not resolved: FPIR {', '.join(too_few)}. {'It is' if len(too_few) == 1 else 'Each is'} less than one "
            f"of the {found.probes - found.mated:,} probes without a mate"
        )
    return SearchResult(found, len(gallery.paths), len(set(gallery.people)), is_mean, notes)
