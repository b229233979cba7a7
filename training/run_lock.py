"""A lock on a run's folder: one run at a time. It is free as soon as its process has ended, however it ended."""

from __future__ import annotations

import json
import os
import platform
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.log import log
from utils.text import parse_json, plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_WAIT_S, _WAIT_FOR_HOST_S = 3.0, 120.0


class FolderLock:
    """Held from :meth:`take` until :meth:`release`, or until the process ends.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._release: weakref.finalize[..., FolderLock] | None = None

    def take(self) -> bool:
        """Take the lock; whether this object did not hold it before.

        A holder on this machine has some seconds to end, as one that a launcher restarts. One on another has two
        minutes: a file server keeps the lock of a lost host for that long.

        Raises:
            ValueError: another process holds it, named.
            OSError: the folder cannot be written.
        """
        if fcntl is None or self._release is not None:
            return False
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise OSError(f"cannot lock {self.path.parent} ({error}): choose another output=FOLDER") from None
        try:
            self._wait(file)
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that no other run uses the folder", self.path, error)
        except BaseException:
            os.close(file)
            raise
        self._release = weakref.finalize(self, os.close, file)
        about = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(about).encode() + b"\n", 0)
        return True

    def release(self) -> None:
        """Let others use the folder."""
        if self._release is not None:
            self._release()

    def _wait(self, file: int) -> None:
        wait_s = _WAIT_S if _holder(self.path).get("host") in (None, platform.node()) else _WAIT_FOR_HOST_S
        deadline_s, has_said = time.monotonic() + wait_s, False
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):
                holder = f"{self.path.parent} is in use by {_describe(self.path)}"
                if time.monotonic() > deadline_s:
                    raise ValueError(
                        f"{holder}: wait until it ends, stop it, or choose another output. If it is gone and its "
                        f"host too, remove {self.path}"
                    ) from None
                if not has_said and wait_s > _WAIT_S:
                    log.warning("%s: waiting up to %.0f s for it to end", holder, wait_s)
                    has_said = True
                time.sleep(0.1)


def _holder(path: Path) -> dict[str, Any]:
    """What the holder of a lock has left in its file, {} if that cannot be read."""
    try:
        about = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _describe(path: Path) -> str:
    about = _holder(path)
    if not about:
        return "another process"
    return plain(f"process {about.get('process')} on host {about.get('host')} since {about.get('since')}")
