"""Files that are complete or absent: written under a temporary name, renamed at the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``, this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def open_atomic(path: str | Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open for writing; the file is on disk when it gets its name, and is removed if an exception leaves the block.

    Args:
        path: the name it gets at the end.
        temporary: where it is until then, on the same disk; default: beside ``path``, under a longer name.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = temporary or temporary_name(path)
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value, complete or not at all."""
    with open_atomic(path) as file:
        file.write((json.dumps(value, indent=1, default=str) + "\n").encode())


def sync_file(path: Path) -> None:
    """Wait until a file's content is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make new names in ``folder``, and renames, survive a power cut; where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
