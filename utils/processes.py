"""Processes of this machine: telling them apart, seeing whether they are there, ending them. On Linux only."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Process:
    """A process, told apart from every other one of any machine, also from a later one with its number.

    Attributes:
        host: the machine's name, for people.
        space: the machine's boot and the namespace that counts its processes; "" where the system does not tell.
        pid: its number there.
        started: when, in the system's ticks since the boot.
    """

    host: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host} (process {self.pid})"

    def state(self) -> str:
        """The system's letter for it, such as R, S, T (stopped); "" if it has ended, "?" if that cannot be known."""
        if not self.space or self.space != _space():
            return "?"
        state, started = _stat(self.pid)
        return "" if started != self.started or state in ("Z", "X") else state

    def kill(self) -> None:
        """End it at once, if it is on this machine and still there."""
        if self.state() in ("", "?"):
            return
        with suppress(OSError):  # ended meanwhile, or another user's
            handle = os.pidfd_open(self.pid)
            try:
                if self.state():  # the handle is of this process, not of a later one with its number
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def this_process() -> Process:
    """The process that asks."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """The process of this machine that has a number now."""
    return Process(platform.node(), _space(), pid, _stat(pid)[1])


def die_with_parent(number: int) -> None:
    """Let the system send this process a signal when the thread that started it ends. Nothing but on Linux."""
    if platform.system() == "Linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(int(number)))


@contextmanager
def ends_soon(limit_s: float = 20.0) -> Iterator[None]:
    """See to it that the process ends soon after what is inside, though Python would wait for all of its threads.

    A thread may wait for a disk that does not answer, which nothing else would end.

    Args:
        limit_s: how long Python may take for its own way out.
    """
    status = 0
    try:
        yield
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        status = 1
        raise
    finally:
        threading.Thread(target=_end_after, args=(limit_s, status), daemon=True).start()


def _end_after(limit_s: float, status: int) -> None:
    threading.main_thread().join()
    time.sleep(limit_s)
    print("a thread still waits, for a disk or a device that does not answer: ended", file=sys.stderr, flush=True)
    os._exit(status)


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process, "" and "" if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
