"""Embeddings on disk, in parts that are written as they are made: a run that ended early continues where it stopped.

Shapes: N images, D embedding size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.atomic import open_atomic
from utils.npy import load_npy

IMAGES_PER_PART = 256
_FORMAT = 1  # goes up when embeddings of the same key would differ: alignment, input, layout of a part


def cache_key(facts: Mapping[str, Any], names: list[str], *arrays: NDArray[Any]) -> str:
    """Hash what embeddings depend on to 32 hexadecimal digits.

    Args:
        facts: small things: the model's hash, its precision, and the like.
        names: the images, in order.
        arrays: what else belongs to each image, such as landmarks and the file's size and time.
    """
    digest = hashlib.sha256(json.dumps({"format": _FORMAT, **facts}, sort_keys=True).encode())
    digest.update("\n".join(names).encode(errors="surrogateescape"))
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


class EmbeddingCache:
    """The parts of one set of embeddings: (N, 2 * D) float32, straight and mirrored side by side.

    A part is a file ``<start>-<end>-<checksum>.npy``, complete or absent; several processes may write parts of one
    folder at once. IJB-C at D = 512 takes 1.8 GiB.

    Args:
        folder: for this set alone; made by :meth:`open`.
        n_images: N.
    """

    def __init__(self, folder: Path, n_images: int) -> None:
        self.folder, self.n_images = folder, n_images
        self._paths: dict[str, Path] = {}  # by start and end, once reading has begun

    def open(self, facts: Mapping[str, Any]) -> None:
        """Make the folder, with a note for people of what it holds.

        Raises:
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_atomic(self.folder / "about.json") as file:
            file.write((json.dumps({**facts, "images": self.n_images}, indent=1) + "\n").encode())

    def missing(self) -> tuple[list[tuple[int, int]], list[str]]:
        """Find the parts that are missing, as ranges of images; damaged ones are removed.

        Returns:
            ranges (start, end), and the names of removed files.
        """
        there: set[tuple[int, int]] = set()
        damaged: list[str] = []
        width: int | None = None
        paths = sorted(self.folder.glob("*.npy"))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for path, found in zip(paths, pool.map(_check, paths), strict=True):
                if found is not None and width in (None, found[2]):
                    width = found[2]
                    there.add(found[:2])
                else:
                    damaged.append(path.name)
                    path.unlink(missing_ok=True)
        return [part for part in self._parts() if part not in there], damaged

    def write(self, start: int, halves: NDArray[np.float32]) -> None:
        """Write one part, whose first image is ``start``.

        Raises:
            OSError: no room on the disk, or the folder is gone.
        """
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(halves, np.float32))
        data = buffer.getvalue()
        name = f"{start:09d}-{start + len(halves):09d}-{zlib.crc32(data):08x}.npy"
        with open_atomic(self.folder / name) as file:
            file.write(data)

    def read(self, start: int, end: int) -> NDArray[np.float32]:
        """Read the embeddings of images [start, end): (end - start, 2 * D). All parts must exist.

        Raises:
            OSError: a part is gone.
        """
        if not self._paths:
            self._paths = {path.stem.rpartition("-")[0]: path for path in self.folder.glob("*.npy")}
        step = IMAGES_PER_PART
        out: NDArray[np.float32] | None = None
        for first, last in self._parts()[start // step : -(-end // step)]:
            path = self._paths.get(f"{first:09d}-{last:09d}")
            if path is None:
                raise OSError(f"the embeddings {first} to {last - 1} have gone from {self.folder}; start again")
            part = load_npy(path)
            if out is None:
                out = np.empty((end - start, part.shape[1]), np.float32)
            low, high = max(first, start), min(last, end)
            out[low - start : high - start] = part[low - first : high - first]
        assert out is not None
        return out

    def _parts(self) -> list[tuple[int, int]]:
        step = IMAGES_PER_PART
        return [(start, min(start + step, self.n_images)) for start in range(0, self.n_images, step)]


def _check(path: Path) -> tuple[int, int, int] | None:
    """Start, end and width of a sound part, else None."""
    try:
        start, end, checksum = path.stem.split("-")
        data = path.read_bytes()
        if zlib.crc32(data) != int(checksum, 16):
            return None
        halves = load_npy(data)
        sound = halves.dtype == np.float32 and halves.ndim == 2 and len(halves) == int(end) - int(start)
        return (int(start), int(end), halves.shape[1]) if sound else None
    except (ValueError, OSError, EOFError):
        return None
