"""A lock on a run's folder: one run at a time. It is free as soon as its process has ended, however it ended."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from utils.log import log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderLock:
    """Held from :meth:`take` until the process ends.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: Any = None  # open for as long as the lock is held

    def take(self, wait_s: float = 3.0) -> None:
        """Take the lock, unless this object holds it.

        Args:
            wait_s: seconds that a process that is about to end, such as one that a launcher restarts, has for it.

        Raises:
            ValueError: another process holds it, named.
            OSError: the folder cannot be written.
        """
        if fcntl is None or self._file is not None:
            return
        file = self.path.open("a+")
        deadline_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline_s:
                    holder = _describe(self.path)
                    file.close()
                    raise ValueError(
                        f"{self.path.parent} is in use by {holder}: wait until it ends, stop it, or choose another "
                        f"output. If it is gone and its host too, remove {self.path}"
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                log.warning("%s cannot be locked (%s): see to it that no other run uses the folder", self.path, error)
                file.close()
                return
        file.seek(0)
        file.truncate()
        about = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(about) + "\n")
        file.flush()
        self._file = file


def _describe(path: Path) -> str:
    try:
        about = json.loads(path.read_text())
        return f"process {int(about['process'])} on host {str(about['host'])!r} since {str(about['since'])!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
