"""Verification sets as folders of bcolz: ``lfw/`` with ``meta`` and ``data``, and ``lfw_list.npy`` beside it.

InsightFace_Pytorch and face.evoLVe unpack .bin files so: a carray of (2n, 3, 112, 112) float32, BGR, -1 to 1. bcolz
itself is no longer maintained, but what lies in its files is Blosc, which other packages decode. Each file has a
header of 16 bytes, then one buffer of Blosc. Checked against bcolz 1.2.1.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.pairs.bin_file import PairSet
from utils.npy import load_npy
from utils.opencv import cv2
from utils.text import parse_json

_HEADER = 16  # bytes before the buffer, and of the buffer's own header
_DECODERS = ("blosc", "numcodecs.blosc", "blosc2")
_RANGE = 1.02  # the largest value that a normalised image may have: rounding allowed for


def is_bcolz(path: Path) -> bool:
    """Whether a folder holds a carray."""
    return (path / "meta" / "storage").is_file() and (path / "meta" / "sizes").is_file()


def load_bcolz(folder: Path) -> PairSet:
    """Read a set; its images are encoded as PNG, so that they take the memory of a .bin.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no package that decodes Blosc, or other content than such a set has.
    """
    flags_path = folder.with_name(f"{folder.name}_list.npy")
    if not flags_path.is_file():
        raise FileNotFoundError(f"{flags_path} is missing: it says which pairs of {folder} show one person")
    flags = load_npy(flags_path)
    if flags.ndim != 1 or flags.dtype.kind not in "biu" or not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{flags_path}: expected n booleans, found {flags.dtype} of shape {flags.shape}")
    shape, chunk = _layout(folder)
    if shape[0] != 2 * len(flags):
        raise ValueError(
            f"{folder}: expected 2 images for each of {len(flags)} pairs in {flags_path.name}, found {shape[0]}"
        )
    encoded, empty = [], 0
    for index, image in enumerate(_images(folder, shape, chunk)):
        encoded.append(_encode(image, folder, index))
        empty += bool(image.min() == image.max())
    form = f"folder of bcolz: {len(flags):,} pairs, read as BGR"
    if empty:  # bcolz loses the last file's images where the program that wrote them did not flush
        form += f"; {empty} images are of one colour, as if the last ones had not been saved: compare with the .bin"
    return PairSet(folder.name, encoded, flags.astype(bool), form)


def _layout(folder: Path) -> tuple[tuple[int, int, int, int], int]:
    """The shape of all images, and how many of them are in each file."""
    try:
        sizes = parse_json((folder / "meta" / "sizes").read_text())
        storage = parse_json((folder / "meta" / "storage").read_text())
        shape, chunk, dtype = tuple(sizes["shape"]), storage["chunklen"], storage["dtype"]
        is_known = len(shape) == 4 and all(type(n) is int and n >= 0 for n in (*shape, chunk))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/meta: not what bcolz writes ({type(error).__name__}: {error})") from None
    if not is_known or shape[1] != 3 or shape[2] != shape[3] or not 0 < shape[2] <= 1024 or chunk < 1:
        raise ValueError(f"{folder}: expected square images (2n, 3, size, size), found shape {shape}")
    if dtype not in ("float32", "<f4"):
        raise ValueError(f"{folder}: expected float32, found {str(dtype)[:40]}")
    return (shape[0], shape[1], shape[2], shape[3]), chunk


def _images(folder: Path, shape: tuple[int, int, int, int], chunk: int) -> Iterator[NDArray[np.float32]]:
    """Yield each image (3, H, W); one file is in memory at a time."""
    decode = _decoder(folder)
    of_one = 4 * math.prod(shape[1:])
    for number, start in enumerate(range(0, shape[0], chunk)):
        path = folder / "data" / f"__{number}.blp"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: copy the whole folder again")
        raw = path.read_bytes()
        wanted = of_one * min(chunk, shape[0] - start)
        size = int.from_bytes(raw[_HEADER + 4 : _HEADER + 8], "little")
        stored = int.from_bytes(raw[_HEADER + 12 : _HEADER + 16], "little")
        # The last file may be stored full, with room for more images.
        if raw[:4] != b"blpk" or stored != len(raw) - _HEADER or not wanted <= size <= of_one * chunk:
            raise ValueError(f"{path}: damaged, or no file of bcolz: expected {wanted:,} bytes in it, found {size:,}")
        try:
            data = decode(raw[_HEADER:])
        except Exception as error:  # each package has its own
            raise ValueError(f"{path}: damaged: it does not decode ({type(error).__name__})") from None
        yield from np.frombuffer(data, "<f4", wanted // 4).reshape(-1, *shape[1:])


def _decoder(folder: Path) -> Callable[[bytes], bytes]:
    for name in _DECODERS:
        try:
            decode: Callable[[bytes], bytes] = importlib.import_module(name).decompress
        except ImportError:
            continue
        return decode
    raise ValueError(f"{folder} is a folder of bcolz, and no package that decodes it is there: pip install blosc")


def _encode(image: NDArray[np.float32], folder: Path, index: int) -> bytes:
    low, high = float(image.min()), float(image.max())
    if not (low >= -_RANGE and high <= _RANGE):
        raise ValueError(f"{folder}: image {index} has values from {low:g} to {high:g}, expected -1 to 1")
    pixels = np.rint(np.clip(image * 127.5 + 127.5, 0, 255)).astype(np.uint8)
    image_HW3 = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    done, out = cv2.imencode(".png", image_HW3, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return bytes(out)
