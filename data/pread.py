"""Read a part of an open file without moving its position, on Windows too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

_seek_lock = threading.Lock()


def _seek_and_read(fd: int, length: int, offset: int) -> bytes:
    """``os.pread`` for Windows."""
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def one_pread() -> Callable[[int, int, int], bytes]:
    """``os.pread`` (descriptor, length, offset), or what stands for it on Windows; it may give less than asked."""
    return getattr(os, "pread", _seek_and_read)


def read_at(fd: int, length: int, offset: int) -> bytes:
    """``length`` bytes, or what there is up to the file's end; one system call may return less than asked."""
    pread = one_pread()
    data = pread(fd, length, offset)
    while len(data) < length and (more := pread(fd, length - len(data), offset + len(data))):
        data += more
    return data
