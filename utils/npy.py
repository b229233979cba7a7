"""Reading .npy files that others may have written."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def load_npy(source: str | Path | bytes, is_mapped: bool = False) -> NDArray[Any]:
    """Read an array of numbers, running no code, with no more memory than the file has bytes.

    Args:
        source: a .npy file, or its content.
        is_mapped: map the file, read-only, instead of reading it; an array without elements is read.

    Raises:
        ValueError: it is no .npy file, holds Python objects, or announces more than it has; names the file.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        _check_header(io.BytesIO(source), len(source))
        return np.asarray(np.load(io.BytesIO(source), allow_pickle=False))
    with Path(source).open("rb") as file:
        try:
            size = _check_header(file, os.fstat(file.fileno()).st_size)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    array: NDArray[Any] = np.load(source, mmap_mode="r" if is_mapped and size else None, allow_pickle=False)
    return array


def _check_header(file: BinaryIO, size: int) -> int:
    """The number of bytes that the header announces; ValueError if it is not to be followed."""
    try:
        read_header = _HEADERS[npy_format.read_magic(file)]
        shape, _, dtype = read_header(file)
    except KeyError:
        raise ValueError("a .npy file of a version that is not read here; expected 1.0 or 2.0") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"no .npy file ({str(error)[:80] or type(error).__name__})") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which can run any code; expected an array of numbers")
    announced, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or announced > there:
        raise ValueError(f"its header announces {announced:,} bytes (shape {shape}), but {there:,} follow")
    return announced
