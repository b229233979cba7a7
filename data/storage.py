"""Bytes at any place of many files: on this machine's disks, or behind an address (s3://, gs://, http://) by fsspec.

A store may be forked or pickled into workers at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.pread import read_at

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+(::[a-zA-Z0-9+.:-]+)*://")  # two letters at least: C:// is a drive
_MOST_OPEN = 128  # files of a thread
_ATTEMPTS = 5
_WAIT_S = 0.5  # before the second attempt; doubled before each further one
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError, TypeError)


class Range(NamedTuple):
    """``length`` bytes of a file from ``offset`` on."""

    file: str
    offset: int
    length: int


class FileFacts(NamedTuple):
    """What tells whether a file is the one that was seen before."""

    size: int
    stamp: str  # time of the last change, or what the storage has for it; the same stamp means the same file


class Store(Protocol):
    """Files that are read by ranges; the methods raise FileNotFoundError and OSError with the file's name."""

    block: int  # bytes that one read takes at least when a file is read from one end to the other

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range; fewer where the file ends before."""

    def facts(self, files: Sequence[str]) -> list[FileFacts]:
        """Size and stamp of each file."""

    def names(self, folder: str) -> list[str]:
        """The files in a folder, with the folder before the name, sorted."""


class LocalFiles:
    """Files of this machine."""

    block = 4096

    def __init__(self) -> None:
        self._opened = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """See :class:`Store`."""
        return [read_at(self._descriptor(file), length, offset) for file, offset, length in ranges]

    def will_need(self, ranges: Sequence[Range]) -> None:
        """Tell the system what will be read soon, so that a disk serves it in its own order; where it can be told."""
        if hasattr(os, "posix_fadvise"):
            for file, offset, length in ranges:
                os.posix_fadvise(self._descriptor(file), offset, length, os.POSIX_FADV_WILLNEED)

    def facts(self, files: Sequence[str]) -> list[FileFacts]:
        """See :class:`Store`."""
        found = [Path(file).stat() for file in files]
        return [FileFacts(one.st_size, str(one.st_mtime_ns)) for one in found]

    def names(self, folder: str) -> list[str]:
        """See :class:`Store`."""
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_file())

    def _descriptor(self, file: str) -> int:
        opened: OrderedDict[str, _Opened] = self._opened.__dict__.setdefault("files", OrderedDict())
        if file not in opened:
            while len(opened) >= _MOST_OPEN:
                opened.popitem(last=False)
            opened[file] = _Opened(file)
        opened.move_to_end(file)
        return opened[file].fd


class _Opened:
    """A descriptor that is closed with this object."""

    def __init__(self, file: str) -> None:
        self.fd = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.fd)


class RemoteFiles:
    """Files behind addresses, by fsspec; the ranges of one call are asked for together where the protocol can.

    What fails is tried again, five times in all with growing pauses (7.5 s together); then it is an OSError.

    Args:
        address: of any of the files.

    Raises:
        ValueError: there is no such protocol, or its package is not installed; says which to install.
    """

    block = 8 << 20

    def __init__(self, address: str) -> None:
        self.protocol = address.partition("://")[0]
        self._address = address
        self._own: tuple[int, Any] = (-1, None)  # process, file system
        self._system()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": (-1, None)}

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """See :class:`Store`."""
        found: list[Any] = [b""] * len(ranges)
        left = [i for i, one in enumerate(ranges) if one.length > 0]
        error: Exception | None = None
        for attempt in _attempts() if left else ():
            files, starts, ends = zip(*((f, o, o + n) for f, o, n in (ranges[i] for i in left)), strict=True)
            try:
                got = self._system().cat_ranges(list(files), list(starts), list(ends), on_error="return")
            except Exception as problem:
                got = [problem] * len(left)
            for i, value in zip(left, got, strict=True):
                found[i] = value
            left = [i for i in left if isinstance(found[i], BaseException)]
            if not left:
                break  # before the generator pauses
            error = self._named(ranges[left[0]].file, found[left[0]], attempt)
            if isinstance(found[left[0]], _FINAL):
                break
        if left:
            assert error is not None
            raise error
        for value, wanted in zip(found, ranges, strict=True):
            if len(value) > wanted.length:
                raise OSError(
                    f"{wanted.file}: the server sent {len(value)} bytes instead of {wanted.length}: it cannot send "
                    "parts of a file (HTTP ranges); take another server, or copy the files"
                )
        return [bytes(value) for value in found]

    def facts(self, files: Sequence[str]) -> list[FileFacts]:
        """See :class:`Store`."""
        return [self._facts(file) for file in files]

    def names(self, folder: str) -> list[str]:
        """See :class:`Store`; one of ``folder`` with a ``*`` in it lists what matches."""
        system = self._system()
        found = self._tried(folder, lambda: system.glob(folder) if "*" in folder else system.ls(folder, detail=False))
        return sorted(system.unstrip_protocol(one) for one in found)

    def _facts(self, file: str) -> FileFacts:
        info = self._tried(file, lambda: self._system().info(file))
        if not isinstance(info.get("size"), int):
            raise OSError(f"{file}: the server does not say how large it is, so that parts of it cannot be read")
        stamp = next(
            (info[name] for name in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(name)), ""
        )
        return FileFacts(info["size"], str(stamp))

    def _tried(self, file: str, what: Any) -> Any:
        for attempt in _attempts():
            try:
                return what()
            except Exception as problem:
                error = self._named(file, problem, attempt)
                if isinstance(problem, _FINAL):
                    break
        raise error

    def _system(self) -> Any:
        process, system = self._own
        if process != os.getpid():
            try:
                import fsspec

                system, _ = fsspec.core.url_to_fs(self._address)
            except ImportError as error:
                raise ValueError(
                    f"{self._address}: a package is missing ({error}): pip install fsspec, with s3fs for s3://, "
                    "gcsfs for gs://, adlfs for az://, aiohttp for http://"
                ) from None
            except ValueError as error:
                raise ValueError(f"{self._address}: {error}") from None
            self._own = os.getpid(), system
        return system

    def _named(self, file: str, problem: BaseException, attempt: int) -> Exception:
        if isinstance(problem, FileNotFoundError):
            return FileNotFoundError(f"{file}: no such file")
        return OSError(f"{file}: {type(problem).__name__}: {problem} (attempt {attempt} of {_ATTEMPTS})")


def _attempts() -> Iterator[int]:
    """Numbers from 1 on, with pauses before all but the first."""
    for attempt in range(1, _ATTEMPTS + 1):
        if attempt > 1:
            time.sleep(_WAIT_S * 2 ** (attempt - 2))
        yield attempt


def is_address(source: str | Path) -> bool:
    """Whether ``source`` is an address such as s3://bucket/folder, and no path."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def open_store(source: str | Path) -> LocalFiles | RemoteFiles:
    """The store that has ``source``; raises as :class:`RemoteFiles`."""
    return RemoteFiles(str(source)) if is_address(source) else LocalFiles()
