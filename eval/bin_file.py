"""Verification sets in insightface's .bin form: a pickle of (encoded images, same-person flags), read safely.

A pickle can run any code when it is loaded. Here nothing that the file names is ever imported: the few globals
that such files use are answered with stand-ins made for the one load, and any other global is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# An array's type code in the pickle -> the type that its bytes are read with.
_TYPES: dict[str, str] = {"u1": "u1", "b1": "?", "?": "?", "i1": "i1", "i4": "<i4", "i8": "<i8"}


@dataclass(frozen=True)
class PairSet:
    """Pairs of face images. Images 2i and 2i + 1 are pair i; they stay encoded, to be decoded per batch."""

    name: str
    encoded: list[bytes]  # 2n JPEG or PNG files
    issame: NDArray[np.bool_]  # (n,)


class _Array:
    """What a numpy array in the file becomes until it is read: shape, type code and bytes, no numpy code."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        self.value = _read_array(data, dtype, shape)


class _Dtype:
    """What a numpy dtype in the file becomes: its type code. The state that follows it is byte order, unused."""

    def __init__(self, code: Any) -> None:
        code = _text(code).lstrip("<|=")
        if code not in _TYPES:
            raise ValueError(f"an array of type {code!r}, where {', '.join(_TYPES)} are allowed")
        self.dtype = np.dtype(_TYPES[code])

    def __setstate__(self, state: Any) -> None:
        pass


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):  # Python 3's array in protocol 2 without _codecs
        return value.encode("latin1")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    raise ValueError(f"array data of type {type(value).__name__}, expected bytes")


def _read_array(data: Any, dtype: Any, shape: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype):
        raise ValueError(f"an array whose type is a {type(dtype).__name__}")
    return np.frombuffer(_bytes(data), dtype.dtype).reshape(shape)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.value = _read_array(data, dtype, shape)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _read_array(data, dtype, ()).item()


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or _text(encoding).replace("-", "").lower() != "latin1":
        raise ValueError(f"text in encoding {encoding!r}, where only latin1 carries bytes")
    return text.encode("latin1")


def _make_bytes(value: Any = b"", encoding: Any = "latin1", *_: Any) -> bytes:
    if isinstance(value, str):
        return _encode(value, encoding)
    if isinstance(value, (list, tuple)):  # never an integer: bytes(10**12) would take all memory
        return bytes(value)
    return _bytes(value)


_BYTES = {"bytes": _make_bytes, "bytearray": _make_bytes}
_ARRAY = {"_reconstruct": _reconstruct, "scalar": _scalar}
_ADMITTED: dict[str, dict[str, Callable[..., Any]]] = {
    "_codecs": {"encode": _encode},
    "builtins": _BYTES,
    "__builtin__": _BYTES,
    "numpy": {"ndarray": _reconstruct, "dtype": lambda code, *_: _Dtype(code)},
    "numpy.core.multiarray": _ARRAY,
    "numpy._core.multiarray": _ARRAY,
    "numpy.core.numeric": {"_frombuffer": _from_buffer},
    "numpy._core.numeric": {"_frombuffer": _from_buffer},
}


class _RefusedGlobalError(Exception):
    pass


class _BinUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get(module, {}).get(name)
        if admitted is None:
            raise _RefusedGlobalError(f"{module}.{name}")
        # A new function each time, so that nothing a file does to it can outlive the load.
        return lambda *args: admitted(*args)


def _encoded_image(value: Any, index: int) -> bytes:
    if isinstance(value, _Array) and value.value is not None and value.value.dtype == np.uint8:
        return value.value.tobytes()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    kind = f"array of {value.value.dtype}" if isinstance(value, _Array) and value.value is not None else ""
    raise ValueError(f"image {index} is {kind or 'a ' + type(value).__name__}, expected bytes or uint8 array")


def _flags(value: Any) -> NDArray[np.bool_]:
    if isinstance(value, _Array):
        if value.value is None or value.value.ndim != 1:
            raise ValueError("the second part must be a one-dimensional list of n booleans")
        value = value.value.tolist()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"the second part is a {type(value).__name__}, expected a list of n booleans")
    for index, flag in enumerate(value):
        if not isinstance(flag, int) or flag not in (0, 1):
            raise ValueError(f"flag {index} is {flag!r}, expected True or False")
    return np.array(value, bool).reshape(-1)


def load_bin(path: str | Path) -> PairSet:
    """Read a verification set, running none of the code that a pickle can name.

    Args:
        path: a pickle of ``(images, issame)``, 2n encoded images (bytes or uint8 arrays) and n booleans, of
            any protocol, written by Python 2 or 3. The set's name is the file's, without its ending.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file names a global that such a set has no need of, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no verification set {path}")
    try:
        with path.open("rb") as file:
            content = _BinUnpickler(file, encoding="bytes").load()
    except _RefusedGlobalError as error:
        raise ValueError(
            f"{path}: refused, because it asks for {error}, which a set of encoded images and booleans has no "
            "need of; a pickle that does can run any code"
        ) from None
    except Exception as error:  # a broken pickle raises nearly any type
        raise ValueError(
            f"{path}: expected a pickle of (images, issame), but it does not load: {type(error).__name__}: {error}"
        ) from error
    try:
        if not isinstance(content, (list, tuple)) or len(content) != 2:
            size = f" of {len(content)}" if isinstance(content, (list, tuple, dict)) else ""
            raise ValueError(f"expected a pair (images, issame), found a {type(content).__name__}{size}")
        images, flags = content
        if not isinstance(images, (list, tuple)):
            raise ValueError(f"the first part is a {type(images).__name__}, expected a list of 2n images")
        issame = _flags(flags)
        if len(images) != 2 * len(issame):
            raise ValueError(
                f"{len(images)} images and {len(issame)} flags, expected two images for each flag ({2 * len(issame)})"
            )
        encoded = [_encoded_image(image, index) for index, image in enumerate(images)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return PairSet(path.stem, encoded, issame)
