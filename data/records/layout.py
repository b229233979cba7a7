"""How a record and a face record's payload are laid out, as mxnet writes them.

A record is ``uint32 magic``, ``uint32 word`` (upper 3 bits: 0 whole, 1 first, 2 middle, 3 last part; lower
29 bits: length of the part), the part, zeros up to a multiple of 4 bytes; all little-endian. A payload that
holds the magic on a 4-byte boundary is cut there: the magic is left out and put back between the parts.

A face record's payload is the 24-byte header ``uint32 flag, float32 label, uint64 id, uint64 id2``, then
``flag`` float32 labels if flag > 0 (the header's own label then means nothing), then the encoded image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
PART = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
MAX_PART = (1 << 29) - 1  # bytes: the length field has 29 bits
EXACT_LABELS = 1 << 24  # whole numbers up to here are exact as float32


class Header(NamedTuple):
    """What comes before the image in a face record."""

    flag: int  # 0: one label in the header itself; n > 0: a vector of n labels follows it
    label: NDArray[np.float32]  # (n,), or (1,) where flag is 0
    id: int
    id2: int


def pack(label: float | Sequence[float] | NDArray[Any], image: bytes | memoryview = b"", id: int = 0) -> bytes:
    """Put a header before an encoded image.

    Args:
        label: a scalar gives flag 0; a vector of n labels gives flag n. Stored as float32.
        image: the encoded image, empty for a record of labels alone.
        id: the header's id; insightface stores the record's key there.

    Raises:
        ValueError: ``label`` is an empty vector or has more than one dimension.
    """
    labels = np.asarray(label, "<f4")
    if labels.ndim == 0:
        return HEADER.pack(0, float(labels), id, 0) + image
    if labels.ndim > 1 or len(labels) == 0:
        raise ValueError(f"a label is a number or a vector of at least one, got shape {labels.shape}")
    return HEADER.pack(len(labels), 0.0, id, 0) + labels.tobytes() + image


def unpack(payload: bytes | memoryview) -> tuple[Header, memoryview]:
    """Split a face record's payload into its header and the encoded image, without a copy of the image.

    Raises:
        ValueError: the payload is shorter than its header, or than the labels that the header announces.
    """
    view = memoryview(payload)
    if len(view) < HEADER.size:
        raise ValueError(f"a face record starts with a header of {HEADER.size} bytes, got {len(view)} bytes")
    flag, label, id_, id2 = HEADER.unpack_from(view)
    if flag == 0:
        return Header(0, np.array([label], np.float32), id_, id2), view[HEADER.size :]
    end = HEADER.size + 4 * flag
    if len(view) < end:
        raise ValueError(f"the header announces {flag} labels, {end} bytes with it, got {len(view)} bytes")
    return Header(flag, np.frombuffer(view[HEADER.size : end], "<f4"), id_, id2), view[end:]


def split(payload: bytes) -> list[bytes]:
    """Cut at every magic on a 4-byte boundary, leaving the magic out; ``MAGIC_BYTES.join`` undoes it."""
    parts, start, found = [], 0, payload.find(MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            parts.append(payload[start:found])
            start = found + 4
        found = payload.find(MAGIC_BYTES, found + 4 if found % 4 == 0 else found + 1)
    return [*parts, payload[start:]]
