"""Known faces to search in: whose an embedding is nearest to.

Shapes: Q queries, G faces of the gallery, D embedding size.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder.many import Embeddings
from embedder.origin import COLOR_ORDERS, Origin
from utils.text import plain

UNKNOWN = "unknown"  # who is like nobody in the gallery
_QUERIES_AT_ONCE = 256


def read_embeddings(path: Path) -> tuple[Embeddings, Origin]:
    """Read an .npz of ``inference.py --out``, and how it was made.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no gallery {path}: expected a folder of faces, or an .npz of inference.py --out")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, values, sha256, flip = (file[key] for key in ("names", "embeddings", "sha256", "flip"))
            order = str(file["color_order"]) if "color_order" in file else "RGB"  # older files have none
            people = file["people"] if "people" in file else np.array([person_of(str(name)) for name in names])
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise ValueError(f"{path} is no .npz that inference.py --out wrote") from None
    if values.ndim != 2 or names.shape != (len(values),) or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{path} is no .npz that inference.py --out wrote: {values.shape} for {names.shape} names")
    if people.shape != names.shape or order not in COLOR_ORDERS:
        raise ValueError(
            f"{path} is no .npz that inference.py --out wrote: {people.shape} people for {names.shape} names, "
            f"color_order {order[:40]!r}"
        )
    found = Embeddings(list(map(str, names)), np.asarray(values, np.float32), people=list(map(str, people)))
    return found, Origin(str(sha256), bool(flip), order)


def person_of(name: str, roots: Sequence[Path] = ()) -> str:
    """Whose face it is: the first folder below the root that it lies in, as in training; else its own folder."""
    path = Path(name)
    for root in roots:
        below = path.relative_to(root).parts if path.is_relative_to(root) else ()
        if len(below) > 1:
            return below[0]
    return path.parent.name


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


def result_lines(queries: Embeddings, known: Embeddings, top: int, threshold: float | None = None) -> Iterator[str]:
    """A heading, then for each query a line for each of its ``top`` nearest, with tabs between.

    With a threshold there is a last column, whether the cosine reaches it; where it does not, the person is unknown.
    """
    yield "\t".join(("image", "rank", "person", "face", "cosine", *(["match"] if threshold is not None else [])))
    places, cosines = nearest(queries.values_ND, known.values_ND, top)
    for query, row, scores in zip(queries.names, places, cosines, strict=True):
        for rank, (place, score) in enumerate(zip(row, scores, strict=True), 1):
            is_match = threshold is None or score >= threshold
            person = known.people[place] if is_match else UNKNOWN
            cells = [plain(query), str(rank), plain(person), plain(known.names[place]), f"{score:.4f}"]
            yield "\t".join(cells + (["yes" if is_match else "no"] if threshold is not None else []))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-30), np.float32)
