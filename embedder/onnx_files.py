"""Which further files an ONNX model takes its weights from, read from the file itself without any ONNX package.

An ONNX file is a protobuf message. Each field is a varint ``number << 3 | kind`` and a value, whose kind is a varint
(0), 8 bytes (1), a length and that many bytes (2), or 4 bytes (5). Only the messages that can lead to a tensor are
followed. Source of the numbers: ``onnx.proto`` of ONNX 1.23.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from utils.paths import FolderBounds

# Message -> field number -> message that the field holds.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
_FIXED = {1: 8, 5: 4}  # kind of a field -> bytes of its value


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX model that hold weights of it, sorted; most models have none.

    Raises:
        ValueError: one of them is missing or lies outside the model's folder, or the file is no protobuf message.
        OSError: the file cannot be read.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is no ONNX model: it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            locations = _locations(data)
        except (IndexError, ValueError):
            raise ValueError(f"{path} is no ONNX model, or damaged or cut short: copy it again") from None
    bounds = FolderBounds(path.parent)
    for location in locations:
        file_path = path.parent / location
        if "\0" in location or not bounds.holds(str(file_path)) or not file_path.is_file():
            raise ValueError(
                f"{path} takes weights from {location[:200]!r}, which is no file in the model's folder: get the "
                "model as one file, or with all of its files from one place"
            )
    return sorted({path.parent / location for location in locations})


def runtime_source(path: Path) -> str | bytes:
    """What onnxruntime is to open: a model's path or, as it takes paths in UTF-8 alone, the file's content.

    Raises:
        ValueError: as :func:`external_files`, or the path is no UTF-8 and the weights are in further files.
        OSError: the file cannot be read.
    """
    others = external_files(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        if others:
            raise ValueError(
                f"{path} takes weights from {others[0].name}, which onnxruntime finds only where the folder's name "
                "is UTF-8: rename it"
            ) from None
        return path.read_bytes()
    return str(path)


def _locations(data: mmap.mmap) -> set[str]:
    """Every tensor's external location; IndexError or ValueError where the message is damaged."""
    found: set[str] = set()
    waiting = [("model", 0, len(data))]  # messages to be read: kind, start, end
    while waiting:
        message, at, end = waiting.pop()
        words: dict[str, bytes] = {}  # of an entry
        while at < end:
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            if tag >> 32 or number == 0:
                raise ValueError("no field has this number")
            length = _FIXED.get(kind, 0)
            if kind == 2:
                length, at = _varint(data, at)
            elif kind == 0:
                _, at = _varint(data, at)
            elif kind not in _FIXED:
                raise ValueError("no such kind of field")
            if at + length > end:
                raise ValueError("a field reaches beyond its message")
            held = _FIELDS[message].get(number) if kind == 2 else None
            if held in ("key", "value"):
                words[held] = data[at : at + length]
            elif held is not None:
                waiting.append((held, at, at + length))
            at += length
        if words.get("key") == b"location":
            found.add(words.get("value", b"").decode())
    return found


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
