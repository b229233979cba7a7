"""Verification sets in insightface's .bin form: a pickle of (encoded images, same-person flags), read safely.

A pickle can run any code when it is loaded, and a few bytes of it can take all memory. Two gates stand before that:
``_check_opcodes`` reads the file's instructions without following them and refuses those that such a set does not
need, and ``_BinUnpickler`` imports nothing: the few globals that such files name are answered with stand-ins made
for the one load. Content is never printed, because printing shared parts takes exponential time; types are named.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from eval.pairs.columns import PairColumns

# An array's type code in the pickle -> the type that its bytes are read with.
_TYPES: dict[str, str] = {"u1": "u1", "b1": "?", "?": "?", "i1": "i1", "i4": "<i4", "i8": "<i8"}

# Sets and filled dictionaries are left out on purpose: hashing a nested key can take forever.
_ADMITTED_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT GET BINGET LONG_BINGET PUT "
    "BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD"
)
# Byte -> name and argument: its bytes, or one of pickletools' negative codes.
_OPCODES = {ord(code.code): (code.name, code.arg.n if code.arg else 0) for code in pickletools.opcodes}
_ADMITTED_NAMES = frozenset(_ADMITTED_OPCODES.split())
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_TEXT_NUMBERS = ("INT", "LONG", "GET", "PUT")
_MAX_TEXT = 32  # bytes of a number or a name that may be shown or read as text


@dataclass(frozen=True)
class PairSet:
    """Pairs of face images. Images 2i and 2i + 1 are pair i; they stay encoded, to be decoded per batch."""

    name: str
    encoded: list[bytes]  # 2n JPEG or PNG files; a file that a set names twice is one object
    issame: NDArray[np.bool_]  # (n,)
    form: str = ""  # how it was read, for a form that had to be found out
    columns: PairColumns | None = None  # what else its list says


class _BinError(ValueError):
    """What is wrong with a file, in our own words; the file's name is put before it."""


class _FileBytes:
    """An open file's bytes by their places; no more than is asked for is kept."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def read(self, start: int, length: int) -> bytes:
        self.file.seek(start)
        return self.file.read(length)

    def line_end(self, start: int) -> int:
        """The place after the next newline; past the file's end if there is none."""
        self.file.seek(start)
        line = self.file.readline()
        return start + len(line) if line.endswith(b"\n") else self.size + 1


def _check_opcodes(data: _FileBytes) -> None:
    """Walk over the instructions and refuse what a set of images does not need, or has too much of.

    Afterwards every length lies within the file, the memo has at most twice as many places as there are
    instructions, and these are at most 100,000 plus one for each 16 bytes, which bounds what they can build.
    """
    size, at, count, frame_end = data.size, 0, 0, 0
    while True:
        if at >= size:
            raise _BinError("it is no pickle, or cut short: it ends before its last instruction")
        code = data.read(at, 1)[0]
        name, width = _OPCODES.get(code, ("", 0))
        if name not in _ADMITTED_NAMES:
            what = f"instruction {name}" if name else f"unknown instruction {code:#04x}"
            raise _BinError(
                f"refused at byte {at}: the {what}, which a pickle of encoded images and booleans has no need of"
            )
        count += 1
        if count > 100_000 + size // 16:
            raise _BinError(f"refused at byte {at}: too many instructions for so few bytes of images")
        start = at + 1
        if width >= 0:
            end = start + width
        elif width == pickletools.UP_TO_NEWLINE:
            end = data.line_end(start)
            if name == "GLOBAL" and end <= size:  # a module and a name
                end = data.line_end(end)
        else:
            content = start + _LENGTH_BYTES[width]
            end = content + int.from_bytes(data.read(start, content - start), "little")
        if end > size:
            raise _BinError(f"damaged or cut short: the {name} at byte {at} reaches beyond the file's {size} bytes")
        if name in _TEXT_NUMBERS and end - start > _MAX_TEXT:
            raise _BinError(f"damaged: the {name} at byte {at} is a number of {end - start - 1} digits")
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            # Picklers number places one by one; the memory taken is that of the largest number.
            argument = data.read(start, end - start)
            place = int(argument) if name == "PUT" else int.from_bytes(argument, "little")
            if place > count:
                raise _BinError(f"refused at byte {at}: {name} to place {place} after {count} instructions")
        # The loader loses what is left of a frame when an argument crosses its end, and would then follow other
        # instructions than those checked here.
        if name == "FRAME":
            inside, frame_end = at < frame_end, end + int.from_bytes(data.read(start, end - start), "little")
            if inside or frame_end > size:
                raise _BinError(f"damaged: the FRAME at byte {at} does not fit the file or the frame around it")
        elif at < frame_end < end:
            raise _BinError(f"damaged: the {name} at byte {at} crosses the end of its frame")
        if name == "STOP":
            return
        at = end


class _Dtype:
    """What a numpy dtype in the file becomes: its type code. The state that follows it is byte order, unused."""

    def __init__(self, code: Any) -> None:
        code = _text(code).lstrip("<|=")
        if code not in _TYPES:
            raise _BinError(f"an array of type {code!r}, where {', '.join(_TYPES)} are allowed")
        self.dtype = np.dtype(_TYPES[code])

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """What a numpy array in the file becomes: the data that it was given, not copied, and how to read it."""

    def __init__(self) -> None:
        self.data: Any = None  # bytes, bytearray, or str of Latin-1; None until the state has come
        self.dtype = np.dtype("u1")
        self.shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _BinError("an array whose state is not numpy's five parts")
        self.set(state[4], state[2], state[1])

    def set(self, data: Any, dtype: Any, shape: Any) -> None:
        if not isinstance(dtype, _Dtype):
            raise _BinError(f"an array whose type is a {_kind(dtype)}")
        if not isinstance(data, (bytes, bytearray, str)):
            raise _BinError(f"expected array data as bytes, found {_kind(data)}")
        small = isinstance(shape, tuple) and len(shape) <= 4
        if not small or not all(type(side) is int and 0 <= side <= len(data) for side in shape):
            raise _BinError(f"an array whose shape does not fit its {len(data)} bytes")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise _BinError(f"an array of shape {shape} and type {dtype.dtype} with {len(data)} bytes")
        self.data, self.dtype, self.shape = data, dtype.dtype, shape

    def read(self) -> NDArray[Any]:
        return np.frombuffer(_bytes(self.data), self.dtype).reshape(self.shape)


def _kind(value: Any) -> str:
    return "array" if isinstance(value, _Array) else type(value).__name__


def _text(value: Any) -> str:
    if not isinstance(value, (str, bytes)) or len(value) > _MAX_TEXT:
        raise _BinError(f"expected a short text, found {_kind(value)}")
    return value.decode("latin1") if isinstance(value, bytes) else value


def _bytes(value: Any) -> bytes:
    """Return bytes unchanged, and copy the other forms that picklers use for them."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("latin1")
    if isinstance(value, bytearray):
        return bytes(value)
    raise _BinError(f"expected bytes, found {_kind(value)}")  # an integer: bytes(10**12) takes all memory


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.set(data, dtype, shape)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_buffer(data, dtype, ()).read().item()


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or _text(encoding).replace("-", "").lower() != "latin1":
        raise _BinError("text in another encoding, where only latin1 carries bytes")
    return text.encode("latin1")


def _make_bytes(value: Any = b"", encoding: Any = "latin1", *_: Any) -> bytes:
    return _encode(value, encoding) if isinstance(value, str) else _bytes(value)


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


class _BinUnpickler(pickle.Unpickler):
    def __init__(self, data: _FileBytes) -> None:
        data.file.seek(0)
        super().__init__(data.file, encoding="bytes")
        self._budget = data.size  # bytes that calls may still make

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get(module, {}).get(name)
        if admitted is None:
            named = ascii(f"{module[:_MAX_TEXT]}.{name[:_MAX_TEXT]}")[1:-1]
            raise _BinError(
                f"refused, because it asks for {named}, which a set of encoded images and booleans has no need of; "
                "a pickle that does can run any code"
            )

        def call(*args: Any) -> Any:  # a new one each time, so that nothing attached to it outlives the load
            made = admitted(*args)
            if isinstance(made, bytes) and not any(made is arg for arg in args):
                # A copy. One long text, named thousands of times, must not become thousands of them.
                self._budget -= len(made)
                if self._budget < 0:
                    raise _BinError("refused: it unfolds to more bytes than the file has")
            return made

        return call


def _encoded_images(values: list[Any] | tuple[Any, ...]) -> list[bytes]:
    """Images as bytes. One object in the file stays one object here, however often it is named."""
    made: dict[int, bytes] = {}  # id of the data -> its copy
    encoded = []
    for index, value in enumerate(values):
        data = value
        if isinstance(value, _Array):
            if value.data is None or value.dtype != np.uint8:
                detail = "without content" if value.data is None else f"of {value.dtype}"
                raise _BinError(f"image {index} is an array {detail}, expected bytes or a uint8 array")
            data = value.data
        elif not isinstance(value, (bytes, bytearray)):
            raise _BinError(f"image {index} is a {_kind(value)}, expected bytes or a uint8 array")
        if not isinstance(data, bytes):
            if id(data) not in made:
                made[id(data)] = _bytes(data)
            data = made[id(data)]
        encoded.append(data)
    return encoded


def _flags(value: Any) -> NDArray[np.bool_]:
    if isinstance(value, _Array):
        if value.data is None or len(value.shape) != 1:
            raise _BinError("the second part must be a one-dimensional list of n booleans")
        flags = value.read()
        wrong = (flags != 0) & (flags != 1)
        if wrong.any():
            raise _BinError(f"flag {wrong.argmax()} is {flags[wrong.argmax()]}, expected True or False")
        return flags.astype(bool)
    if not isinstance(value, (list, tuple)):
        raise _BinError(f"the second part is a {_kind(value)}, expected a list of n booleans")
    for index, flag in enumerate(value):
        if not isinstance(flag, int) or flag not in (0, 1):
            what = "another number" if isinstance(flag, int) else f"a {_kind(flag)}"
            raise _BinError(f"flag {index} is {what}, expected True or False")
    return np.array(value, bool).reshape(-1)


def _read(data: _FileBytes) -> tuple[list[bytes], NDArray[np.bool_]]:
    _check_opcodes(data)
    content = _BinUnpickler(data).load()
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        size = f" of {len(content)}" if isinstance(content, (list, tuple, dict)) else ""
        raise _BinError(f"expected a pair (images, issame), found a {_kind(content)}{size}")
    images, flags = content
    if not isinstance(images, (list, tuple)):
        raise _BinError(f"the first part is a {_kind(images)}, expected a list of 2n images")
    issame = _flags(flags)
    if len(images) != 2 * len(issame):
        raise _BinError(
            f"{len(images)} images and {len(issame)} flags, expected two images for each flag ({2 * len(issame)})"
        )
    return _encoded_images(images), issame


def load_bin(path: str | Path) -> PairSet:
    """Read a verification set, running none of the code that a pickle can name.

    Memory: what the file holds, once. A file made to take a lot gets 11 bytes for each of its own (measured).

    Args:
        path: a pickle of ``(images, issame)``, 2n encoded images (bytes or uint8 arrays) and n booleans, of
            any protocol, written by Python 2 or 3. The set's name is the file's, without its ending.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read.
        ValueError: the file names a global or an instruction that such a set does not need, or holds something
            else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no verification set {path}")
    try:
        with path.open("rb") as file:
            encoded, issame = _read(_FileBytes(file))
    except _BinError as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a broken pickle raises nearly any type, and its text may hold all of the file
        raise ValueError(
            f"{path}: expected a pickle of (images, issame), but it does not load ({type(error).__name__}): it is "
            "damaged, or something else"
        ) from None
    return PairSet(path.stem, encoded, issame)
