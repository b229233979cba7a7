"""Many images through one network, into one file with their names; an image that cannot be used is counted.

Shapes: N images, B batch, D embedding size.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.batches import embedded_blocks
from embedder.embedder import Embedder, embed_with_mirrored
from embedder.origin import Origin
from utils.atomic import open_atomic, write_json
from utils.bars import open_bar
from utils.folders import IMAGE_SUFFIXES

_NAMED = 5  # images that a message names


@dataclass
class Embeddings:
    """Embeddings by name, and what was left out.

    Attributes:
        names: the images that were embedded.
        values_ND: (N, D), not normalised.
        left_out: image and reason.
        people: whose faces they are, (N) or none.
    """

    names: list[str]
    values_ND: NDArray[np.float32]
    left_out: dict[str, str] = field(default_factory=dict)
    people: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """How many there are, and the first of those that were left out."""
        text = f"{len(self.names):,} images embedded"
        if self.left_out:
            first = "; ".join(f"{name}: {why}" for name, why in list(self.left_out.items())[:_NAMED])
            text += f", {len(self.left_out):,} left out: {first}{'; ...' if len(self.left_out) > _NAMED else ''}"
        return text


def find_images(given: Sequence[str]) -> list[Path]:
    """The images that are meant: files as they come, those of folders and of the folders within, sorted, and lists.

    A list is a .txt file with the path of an image a line, taken from where the command runs or from the list's
    folder.

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: a folder or list without an image.
    """
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
            images = sorted(image for image in inside if image.suffix.lower() in IMAGE_SUFFIXES)
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
            images = [Path(line) if Path(line).is_file() else path.parent / line for line in lines if line]
        elif path.is_file():
            images = [path]
        else:
            raise FileNotFoundError(f"no image, folder or list {path}")
        if not images:
            raise ValueError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        found += images
    return found


def embed_many(
    embedder: Embedder,
    images: Sequence[Path],
    load: Callable[[Path], NDArray[np.uint8]],
    batch_size: int = 64,
    threads: int = 4,
    flip: bool = False,
) -> Embeddings:
    """Embed images in batches, while threads load the next ones.

    Memory beyond the embeddings: ``threads + 2`` batches of aligned faces. The progress is shown on stderr: a bar,
    or a line a minute where that is no terminal.

    Args:
        embedder: the network.
        images: N paths.
        load: gives the aligned face (H, W, 3), or raises ValueError or OSError; called from other threads.
        batch_size: images per forward pass.
        threads: that load; 0: none, images are loaded between the passes.
        flip: add the mirror image's embedding.

    Raises:
        ValueError: a batch below 1, threads below 0, or no image could be used.
    """
    if batch_size < 1 or threads < 0:
        raise ValueError(f"expected 1 image a batch and 0 workers at least, got {batch_size} and {threads}")
    problems: dict[int, str] = {}
    side = embedder.image_size

    def load_block(start: int, end: int) -> NDArray[np.uint8]:
        out = np.zeros((end - start, side, side, 3), np.uint8)
        for index in range(start, end):
            try:
                out[index - start] = load(images[index])
            except (ValueError, OSError) as error:
                problems[index] = str(error).removeprefix(f"{images[index]}: ")
        return out

    def embed(images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        return embed_with_mirrored(embedder.embed, images_BHW3) if flip else embedder.embed(images_BHW3)

    blocks = [(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    in_turn = ((start, end, embed(load_block(start, end))) for start, end in blocks)
    results = embedded_blocks(embed, load_block, blocks, threads) if threads else in_turn
    out_ND = np.zeros((len(images), embedder.embedding_size), np.float32)
    with open_bar(len(images), "image", "embedded", lines=sys.stderr) as bar:
        for start, end, embedding_BD in results:
            out_ND[start:end] = embedding_BD
            for index in np.flatnonzero(~np.isfinite(embedding_BD).all(axis=1)) + start:
                problems.setdefault(int(index), "its embedding holds nan or infinity: the weights are broken")
            bar.update(end - start)
    kept = [index for index in range(len(images)) if index not in problems]
    left_out = {str(images[index]): problems[index] for index in sorted(problems)}
    if not kept:
        raise ValueError(f"none of {len(images):,} images could be used; the first: {next(iter(left_out.items()))}")
    return Embeddings([str(images[index]) for index in kept], out_ND[kept], left_out)


def write_embeddings(path: Path, found: Embeddings, model: str, origin: Origin) -> None:
    """Write names and embeddings: .csv, or .npz, which says besides how they came about, and whose they are.

    Names may be of any bytes: those that are no UTF-8 are as in ``os.fsdecode`` in .npz, and themselves in .csv.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        if path.suffix == ".npz":
            np.savez(
                file,
                names=np.array(found.names),
                embeddings=found.values_ND,
                model=np.array(model),
                sha256=np.array(origin.model),
                flip=np.array(origin.flip),
                color_order=np.array(origin.color_order),
                people=np.array(found.people),
            )
            return
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
        rows = csv.writer(text)
        rows.writerow(["name", *(f"e{i}" for i in range(found.values_ND.shape[1]))])
        rows.writerows(
            [name, *(f"{x:.7g}" for x in row)] for name, row in zip(found.names, found.values_ND, strict=True)
        )
        text.detach()


def write_few(path: Path, embeddings_BD: NDArray[np.float32], report: dict[str, Any]) -> None:
    """Write the embeddings as .npy, or them and the report as .json; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, report)
    else:
        with open_atomic(path) as file:
            np.save(file, embeddings_BD)
