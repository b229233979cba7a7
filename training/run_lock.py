"""A lock on a run's folder: one run at a time. It is free as soon as its process has ended, however it ended."""

from __future__ import annotations

import json
import os
import platform
import time
import weakref
from pathlib import Path

from utils.log import log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderLock:
    """Held from :meth:`take` until :meth:`release`, or until the process ends.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._release: weakref.finalize[..., FolderLock] | None = None

    def take(self, wait_s: float = 3.0) -> None:
        """Take the lock, unless this object holds it.

        Args:
            wait_s: seconds that a process that is about to end, such as one that a launcher restarts, has for it.

        Raises:
            ValueError: another process holds it, named.
            OSError: the folder cannot be written.
        """
        if fcntl is None or self._release is not None:
            return
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._wait(file, time.monotonic() + wait_s)
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that no other run uses the folder", self.path, error)
        except BaseException:
            os.close(file)
            raise
        about = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(about).encode() + b"\n", 0)
        self._release = weakref.finalize(self, os.close, file)

    def release(self) -> None:
        """Let others use the folder."""
        if self._release is not None:
            self._release()

    def _wait(self, file: int, deadline_s: float) -> None:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline_s:
                    raise ValueError(
                        f"{self.path.parent} is in use by {_describe(self.path)}: wait until it ends, stop it, or "
                        f"choose another output. If it is gone and its host too, remove {self.path}"
                    ) from None
                time.sleep(0.1)


def _describe(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {int(about['process'])} on host {str(about['host'])!r} since {str(about['since'])!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
