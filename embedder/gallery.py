"""Known faces to search in: whose an embedding is nearest to.

Shapes: Q queries, G faces of the gallery, D embedding size.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder.many import Embeddings
from utils.text import plain

_QUERIES_AT_ONCE = 256


def read_embeddings(path: Path, sha256: str, flip: bool) -> Embeddings:
    """Read an .npz of ``inference.py --out``, made by the same model and in the same way.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or another model's, or with another flip.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no gallery {path}: expected a folder of faces, or an .npz of inference.py --out")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, values, own, flipped = (file[key] for key in ("names", "embeddings", "sha256", "flip"))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise ValueError(f"{path} is no .npz that inference.py --out wrote") from None
    if values.ndim != 2 or names.shape != (len(values),) or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{path} is no .npz that inference.py --out wrote: {values.shape} for {names.shape} names")
    if str(own) != sha256:
        raise ValueError(f"{path} was made with another model ({str(own)[:12]}...): make it again with this one")
    if bool(flipped) != flip:
        raise ValueError(f"{path} was made {'with' if flipped else 'without'} --flip; search it in the same way")
    return Embeddings([str(name) for name in names], np.asarray(values, np.float32))


def person_of(name: str) -> str:
    """Whose face it is: the name of the folder that holds it."""
    return Path(name).parent.name


def nearest(
    queries_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], top: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ``top`` nearest faces of each query, best first: places (Q, top) in the gallery, and their cosines.

    Fewer where the gallery is smaller. Memory: 256 rows of cosines.
    """
    top = min(top, len(gallery_GD))
    known_GD = _unit(gallery_GD)
    places, cosines = [], []
    for start in range(0, len(queries_QD), _QUERIES_AT_ONCE):
        cosine_QG = _unit(queries_QD[start : start + _QUERIES_AT_ONCE]) @ known_GD.T
        place = np.argsort(-cosine_QG, axis=1, kind="stable")[:, :top]
        places.append(place)
        cosines.append(np.take_along_axis(cosine_QG, place, axis=1).astype(np.float64))
    return np.concatenate(places), np.concatenate(cosines)


def cosine(first_D: NDArray[np.float32], second_D: NDArray[np.float32]) -> float:
    """The cosine of two embeddings, nan where one is zero."""
    lengths = np.linalg.norm(first_D.astype(np.float64)) * np.linalg.norm(second_D.astype(np.float64))
    return float(first_D.astype(np.float64) @ second_D / lengths) if lengths > 0 else float("nan")


def result_lines(queries: Embeddings, known: Embeddings, top: int) -> Iterator[str]:
    """For each query a line for each of its ``top`` nearest: query, rank, person, image, cosine, tabs between."""
    places, cosines = nearest(queries.values_ND, known.values_ND, top)
    for query, row, scores in zip(queries.names, places, cosines, strict=True):
        for rank, (place, score) in enumerate(zip(row, scores, strict=True), 1):
            name = known.names[place]
            yield "\t".join([plain(query), str(rank), plain(person_of(name)), plain(name), f"{score:.4f}"])


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-30), np.float32)
