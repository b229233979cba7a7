"""Read every item of a source once, in several processes, into a few numbers each."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.parts.face_sources import AnySource
from tools.parts.ordered_map import ordered_map
from utils.bars import open_bar
from utils.decode import decode_noted

_CHUNK = 1024  # items that a process takes at a time
_source: AnySource | None = None  # that this process reads


@dataclass
class Seen:
    """What was read: N items, 33 bytes each, whatever their images' size."""

    labels: NDArray[np.float64]  # (N,) nan where the item could not be read
    digests: NDArray[np.uint64]  # (N,) of the encoded image, 0 without one
    sizes: NDArray[np.uint16]  # (N, 2) height and width, 0 where nothing was decoded
    ids: NDArray[np.int64]  # (N,) of the records' headers
    stored: NDArray[np.uint32]  # (N,) bytes in the file, 0 where unknown
    is_image: NDArray[np.bool_]  # (N,) whether there are bytes of an image
    unreadable: list[tuple[int, str]] = field(default_factory=list)  # position and why
    undecodable: list[tuple[int, str]] = field(default_factory=list)
    ranges: list[tuple[int, float, float]] = field(default_factory=list)  # position, two labels: no image

    changed: Counter[str] = field(default_factory=Counter)  # images that decoding changes, by kind

    @classmethod
    def empty(cls, n: int) -> Seen:
        """Room for n items."""
        return cls(
            np.full(n, np.nan),
            np.zeros(n, np.uint64),
            np.zeros((n, 2), np.uint16),
            np.zeros(n, np.int64),
            np.zeros(n, np.uint32),
            np.zeros(n, bool),
        )

    def put(self, start: int, part: Seen) -> None:
        """Store the items of ``part`` from ``start`` on."""
        for name in ("labels", "digests", "sizes", "ids", "stored", "is_image"):
            values = getattr(part, name)
            getattr(self, name)[start : start + len(values)] = values
        self.unreadable += part.unreadable
        self.undecodable += part.undecodable
        self.ranges += part.ranges
        self.changed.update(part.changed)

    def size_counts(self) -> Counter[tuple[int, int]]:
        """How many images have which (height, width)."""
        decoded = self.sizes[self.sizes[:, 0] > 0].astype(np.int64)
        values, counts = np.unique(decoded[:, 0] << 16 | decoded[:, 1], return_counts=True)
        return Counter({(int(v) >> 16, int(v) & 0xFFFF): int(c) for v, c in zip(values, counts, strict=True)})


def scan(source: AnySource, workers: int) -> Seen:
    """Read, hash and decode every item.

    A digest is 64 bits of BLAKE2b: among 42 million images, two different ones share it with a chance of 1 in 20,000.
    """
    seen = Seen.empty(len(source))
    starts = range(0, len(source), _CHUNK)
    parts = ordered_map(_scan, starts, max(1, min(workers, len(starts))), functools.partial(_hold, source))
    with open_bar(len(source), "image", "read") as bar:
        for start, part in zip(starts, parts, strict=True):
            seen.put(start, part)
            bar.update(len(part.labels))
    return seen


def _hold(source: AnySource) -> None:
    global _source
    _source = source


def _scan(start: int) -> Seen:
    source = _source
    assert source is not None
    seen = Seen.empty(min(_CHUNK, len(source) - start))
    for i in range(len(seen.labels)):
        position = start + i
        try:
            item = source.read(position)
        except (ValueError, OSError) as error:
            seen.unreadable.append((position, str(error)))
            continue
        seen.labels[i], seen.ids[i], seen.stored[i] = item.labels[0], item.id & (2**63 - 1), item.stored
        if len(item.encoded) == 0:
            seen.ranges.append((position, float(item.labels[0]), float(item.labels[-1])))
            continue
        seen.is_image[i] = True
        seen.digests[i] = int.from_bytes(hashlib.blake2b(item.encoded, digest_size=8).digest(), "little")
        try:
            image, changed = decode_noted(item.encoded)
            seen.sizes[i] = np.minimum(image.shape[:2], 65535)
            if changed:
                seen.changed[changed] += 1
        except ValueError as error:
            seen.undecodable.append((position, str(error)))
    return seen
