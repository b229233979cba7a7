"""IJB trees to measure on: lists and embeddings of IJB-C's size from a random generator, or real crops with lists.

Shapes: N images, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from embedder.align import TEMPLATE
from eval.ijb.cache import IMAGES_PER_PART, EmbeddingCache
from eval.pairs.bin_file import load_bin


@dataclass(frozen=True)
class Size:
    """Counts of a set. The defaults are IJB-C's."""

    images: int = 469_375
    galleries: int = 3_531  # templates that come first in pairs, one a person
    probes: int = 19_593  # templates that come second
    genuine: int = 19_557
    pairs: int = 15_658_489
    embedding_size: int = 512


QUICK = Size(images=6_000, galleries=60, probes=300, genuine=300, pairs=12_000, embedding_size=64)


def write_features_tree(root: Path, cache: EmbeddingCache, size: Size, seed: int = 0) -> None:
    """Write the three lists, and embeddings that cluster around their persons.

    A template has at least one still image; the others are spread unevenly, half of them frames of videos.
    """
    rng = np.random.default_rng(seed)
    templates = size.galleries + size.probes
    person = np.r_[np.arange(size.galleries), rng.integers(0, size.galleries, size.probes)]
    weight = rng.lognormal(0, 1.2, templates)
    extra = rng.choice(templates, size.images - templates, p=weight / weight.sum())
    rows = np.sort(np.r_[np.arange(templates), extra])  # template of each image
    media = np.where(rng.random(size.images) < 0.5, rng.integers(0, 4, size.images), np.arange(4, size.images + 4))
    names = [f"{i + 1}.jpg" for i in range(size.images)]
    meta = root / "meta"
    meta.mkdir(parents=True)
    (root / "loose_crop").mkdir()
    _write_lines(
        meta / "ijbc_face_tid_mid.txt",
        (f"{n} {t + 1} {m}" for n, t, m in zip(names, rows.tolist(), media.tolist(), strict=True)),
    )
    points = (TEMPLATE.ravel() * rng.uniform(1, 2, (size.images, 1)) + rng.normal(0, 2, (size.images, 10))).tolist()
    detector = rng.uniform(0.5, 1, size.images).tolist()
    _write_lines(
        meta / "ijbc_name_5pts_score.txt",
        (
            f"{name} {' '.join(f'{x:.3f}' for x in five)} {score:.3f}"
            for name, five, score in zip(names, points, detector, strict=True)
        ),
    )
    _write_pairs(meta / "ijbc_template_pair_label.txt", person, size, rng)
    _write_embeddings(cache, person[rows], size, rng)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_pairs(path: Path, person: NDArray[np.int64], size: Size, rng: np.random.Generator) -> None:
    """Genuine pairs of the first probes and random impostors, in the order of the first template."""
    genuine = person[size.galleries :][: size.genuine] * size.probes + np.arange(size.genuine)
    codes = rng.choice(size.galleries * size.probes, size.pairs, replace=False)
    first, second = np.divmod(codes, size.probes)
    codes = codes[person[first] != person[size.galleries + second]][: size.pairs - size.genuine]
    codes = np.sort(np.r_[genuine, codes])
    first, second = np.divmod(codes, size.probes)
    label = (person[first] == person[size.galleries + second]).astype(int)
    rows = zip((first + 1).tolist(), (second + 1 + size.galleries).tolist(), label.tolist(), strict=True)
    _write_lines(path, (f"{a} {b} {same}" for a, b, same in rows))


def _write_embeddings(cache: EmbeddingCache, person: NDArray[np.int64], size: Size, rng: np.random.Generator) -> None:
    centres = rng.standard_normal((size.galleries, size.embedding_size), np.float32)
    cache.open({"what": "made-up embeddings"})
    for start in range(0, size.images, IMAGES_PER_PART):
        own = centres[person[start : start + IMAGES_PER_PART]]
        noise = rng.standard_normal((len(own), 2, size.embedding_size), np.float32)
        cache.write(start, (own[:, None] + 5 * noise).reshape(len(own), -1))


def write_photo_tree(root: Path, images: int, data: Path | None, seed: int = 0) -> str:
    """Write a tree whose photos are pairs of real faces, or of made-up ones without data.

    Args:
        root: the tree's folder, new.
        images: an even number.
        data: a folder that holds ``lfw_train/lfw.bin``.
        seed: of made-up faces.

    Returns:
        where the photos came from.
    """
    meta, folder = root / "meta", root / "loose_crop"
    meta.mkdir(parents=True)
    folder.mkdir()
    bin_file = None if data is None else data / "lfw_train" / "lfw.bin"
    if bin_file is not None and bin_file.is_file():
        pairs = load_bin(bin_file)
        n = len(pairs.issame)
        chosen = [i * max(1, 2 * n // images) % n for i in range(images // 2)]
        encoded = [bytes(pairs.encoded[2 * i + side]) for i in chosen for side in (0, 1)]
        same = [bool(pairs.issame[i]) for i in chosen]
        source = "crops of lfw.bin"
    else:
        encoded, same = _made_up_photos(images, np.random.default_rng(seed))
        source = "made-up photos"
    points = " ".join(f"{x:.4f}" for x in TEMPLATE.ravel())
    for i, photo in enumerate(encoded):
        (folder / f"{i}.jpg").write_bytes(photo)
    _write_lines(meta / "ijbc_face_tid_mid.txt", (f"{i}.jpg {i} 0" for i in range(images)))
    _write_lines(meta / "ijbc_name_5pts_score.txt", (f"{i}.jpg {points} 0.99" for i in range(images)))
    _write_lines(meta / "ijbc_template_pair_label.txt", (f"{2 * i} {2 * i + 1} {int(x)}" for i, x in enumerate(same)))
    return source


def _made_up_photos(images: int, rng: np.random.Generator) -> tuple[list[bytes], list[bool]]:
    encoded, same = [], []
    for i in range(images // 2):
        first = rng.integers(0, 256, (6, 6, 3), np.uint8)
        second = first if i % 2 else rng.integers(0, 256, (6, 6, 3), np.uint8)
        same.append(bool(i % 2))
        for look in (first, second):
            photo = cv2.resize(look, (112, 112), interpolation=cv2.INTER_CUBIC).astype(np.float64)
            photo = np.clip(photo + rng.normal(0, 8, photo.shape), 0, 255).astype(np.uint8)
            encoded.append(cv2.imencode(".jpg", photo)[1].tobytes())
    return encoded, same
