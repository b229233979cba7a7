"""A lock on a run's folder: one run at a time. It is free as soon as its process has ended, however it ended."""

from __future__ import annotations

import json
import os
import platform
import time
import weakref
from contextlib import suppress
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

    def take(self, wait_s: float) -> bool:
        """Take the lock; whether this object did not hold it before.

        Args:
            wait_s: seconds that a process that is about to end, such as one that a launcher restarts, has for it.

        Raises:
            ValueError: another process holds it, named.
            OSError: the folder cannot be written.
        """
        if fcntl is None or self._release is not None:
            return False
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(f"cannot lock {self.path.parent} ({error}): choose another output=FOLDER") from None
        try:
            self._wait(file, wait_s)
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

    def _wait(self, file: int, wait_s: float) -> None:
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
                if not has_said and wait_s > 10:
                    log.warning("%s: waiting up to %.0f s for it to end", holder, wait_s)
                    has_said = True
                time.sleep(0.1)


def _describe(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {int(about['process'])} on host {str(about['host'])!r} since {str(about['since'])!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
