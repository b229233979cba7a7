"""Folders whose every byte can be checked: a manifest names their files with sizes and checksums.

The manifest is written last: a folder that has one is complete. Files are summed in chunks, so that who reads a part
checks that part alone. The sum is a CRC-32: it finds damage, not forgery.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from utils.progress import progress
from utils.text import parse_json

MANIFEST = "manifest.json"
CHUNK = 4 * 2**20  # bytes of one checksum
MAX_MANIFEST = 256 * 2**20  # bytes; one of a checkpoint of ten terabytes has less


class DamagedError(ValueError):
    """A file is not what was written; the message names it and says how that shows."""


@dataclass(frozen=True)
class FileSum:
    """A file's size in bytes, and the CRC-32 of each chunk of it."""

    size: int
    crcs: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The form in a manifest: eight hexadecimal digits for each chunk."""
        return {"bytes": self.size, "crc32": "".join(f"{crc:08x}" for crc in self.crcs)}

    @classmethod
    def of_json(cls, value: Any) -> FileSum:
        """Undo :meth:`as_json`; KeyError, TypeError or ValueError for anything else."""
        size, digits = int(value["bytes"]), str(value["crc32"])
        crcs = tuple(int(digits[i : i + 8], 16) for i in range(0, len(digits), 8))
        if size < 0 or len(crcs) != -(-size // CHUNK):
            raise ValueError("the number of checksums does not fit the size")
        return cls(size, crcs)


class SummedFile:
    """A file that is summed while it is written, and on disk when the block ends.

    Raises:
        OSError: it cannot be made or written, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._size, self._crcs, self._crc = 0, [], 0  # type: tuple[int, list[int], int]

    def write(self, data: bytes | memoryview) -> int:
        """Append; all of it, however much the system takes at once."""
        view = memoryview(data).cast("B")
        written = len(view)
        while view:
            part = view[: CHUNK - self._size % CHUNK]
            part = part[: self._file.write(part)]
            self._crc = zlib.crc32(part, self._crc)
            self._size += len(part)
            progress.wrote_s = time.monotonic()
            if self._size % CHUNK == 0:
                self._crcs.append(self._crc)
                self._crc = 0
            view = view[len(part) :]
        return written

    def flush(self) -> None:
        """Nothing is buffered."""

    @property
    def sum(self) -> FileSum:
        """Of what has been written."""
        return FileSum(self._size, (*self._crcs, *([self._crc] if self._size % CHUNK else [])))

    def __enter__(self) -> SummedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                os.fsync(self._file.fileno())


class CheckedFile:
    """Reads parts of a file, and checks every byte that it hands out.

    Args:
        path: the file.
        expected: its sum; None: it was written without one, and only its size bounds what is read.

    Raises:
        DamagedError: it is missing or has another size.
    """

    def __init__(self, path: Path, expected: FileSum | None) -> None:
        self.path, self._sum = path, expected
        self._kept = (-1, bytearray())  # the chunk read last, so that small reads in order cost one
        try:
            if not path.is_file():
                raise DamagedError(f"{path} is missing")
            self.size = path.stat().st_size
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error}") from error
        if expected is not None and self.size != expected.size:
            raise DamagedError(f"{path} is damaged: {self.size} bytes, {expected.size} were written")

    def read(self, offset: int, count: int) -> bytearray:
        """``count`` bytes from ``offset`` on.

        Raises:
            DamagedError: they are not what was written, or the file ends before.
        """
        if offset + count > self.size:
            raise DamagedError(f"{self.path} is damaged: it ends before byte {offset + count}")
        out = bytearray(count)
        done = 0
        while done < count:
            number, start = divmod(offset + done, CHUNK)
            part = memoryview(self._chunk(number))[start : start + count - done]
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def forget(self) -> None:
        """Let go of the memory of what was read last."""
        self._kept = (-1, bytearray())

    def _chunk(self, number: int) -> bytearray:
        if self._kept[0] == number:
            return self._kept[1]
        start = number * CHUNK
        data = bytearray(min(CHUNK, self.size - start))
        view = memoryview(data)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                while view and (found := file.readinto(view)):
                    view = view[found:]
        except OSError as error:
            raise DamagedError(f"{self.path} cannot be read: {error}") from error
        end = start + len(data) - 1
        if view:
            raise DamagedError(f"{self.path} is damaged: it ends before byte {end}")
        if self._sum is not None and zlib.crc32(data) != self._sum.crcs[number]:
            raise DamagedError(f"{self.path} is damaged: bytes {start} to {end} are not those that were written")
        self._kept = (number, data)
        return data

    def chunks(self) -> Iterator[bytearray]:
        """The whole file, piece by piece, as :meth:`read` gives it."""
        for start in range(0, self.size, CHUNK):
            yield self.read(start, min(CHUNK, self.size - start))


@dataclass(frozen=True)
class Manifest:
    """What a folder holds."""

    facts: dict[str, Any]  # about the whole, plain values
    files: dict[str, FileSum] = field(default_factory=dict)  # name below the folder, with slashes -> sum

    def below(self, folder: str) -> dict[str, FileSum]:
        """The files below a subfolder, by their names in it."""
        start = f"{folder}/"
        return {name.removeprefix(start): own for name, own in self.files.items() if name.startswith(start)}

    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(own.size for own in self.files.values())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose files are on disk, under a temporary name that is then renamed.

    Raises:
        OSError: it cannot be written.
    """
    body = {"facts": manifest.facts, "files": {name: own.as_json() for name, own in manifest.files.items()}}
    temporary = folder / f".{MANIFEST}"
    with SummedFile(temporary) as file:
        file.write(_text(body))
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        DamagedError: it is missing, damaged, or names files outside of the folder.
    """
    path = folder / MANIFEST
    file = CheckedFile(path, None)
    if file.size > MAX_MANIFEST:
        raise DamagedError(f"{path} is damaged: {file.size} bytes are too many for a manifest")
    data = bytes(file.read(0, file.size))
    try:
        body = parse_json(data.decode())
        body.pop("checksum")
        if _text(body) != data:
            raise ValueError("another checksum, or another form")
        files = {str(name): FileSum.of_json(own) for name, own in body["files"].items()}
        if any(name.startswith("/") or "\\" in name or ".." in name.split("/") for name in files):
            raise ValueError("it names files outside of its folder")
        return Manifest(dict(body["facts"]), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: its text is not what was written") from error


def verify(folder: Path, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Read all files of a folder, or every ``parts``-th of them, and check them.

    Raises:
        DamagedError: for the first that is not what was written.
    """
    for name in sorted(manifest.files)[part::parts]:
        for _ in CheckedFile(folder / name, manifest.files[name]).chunks():
            pass


def _text(body: dict[str, Any]) -> bytes:
    """The manifest's one form, with the checksum of the rest in it."""
    rest = json.dumps(body, sort_keys=True)
    return (
        json.dumps({"checksum": f"{zlib.crc32(rest.encode()):08x}", **body}, sort_keys=True, indent=1) + "\n"
    ).encode()
