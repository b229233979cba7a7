"""Ctrl-C, from the first line of a command on: one line in place of a traceback. And pipes whose reader has gone.

Nothing of torch is imported here, so that a command can call this before it imports anything else.
"""

from __future__ import annotations

import io
import os
import signal
import stat
import sys
import threading
from types import TracebackType
from typing import Any


def end_in_one_line(program: str) -> None:
    """Let Ctrl-C end this process with one line; what is open is closed first, so that no half file is left.

    The process then ends by that signal, as a shell that runs it in a loop expects: its status there is 130. A second
    Ctrl-C does not wait for anything. As the first process of a container, SIGTERM ends it too, which the system
    would otherwise keep from it.

    Args:
        program: the name that the line begins with.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            before(kind, error, trace)
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on at once
        if _speaks():
            sys.stdout.flush()
            print(f"{program}: interrupted", file=sys.stderr)

    sys.excepthook = hook
    _let_sigterm_through()
    _outlive_readers()


def ends_at_once(program: str) -> None:
    """Let Ctrl-C end this process with one line, status 130, even where it waits for something outside.

    For a time in which there is nothing to save or to tidy up. A thread looks at the signals, since Python hands them
    to the main thread only when that comes back from what it waits for. SIGUSR1, which would end it, does nothing.

    Args:
        program: the name that the line begins with.
    """
    _let_sigterm_through()
    _outlive_readers()
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started so, as in the background of a script
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGINT, _noted)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def look() -> None:
        while signal.SIGINT not in os.read(read_end, 64):
            pass
        if _speaks():
            print(f"{program}: interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    threading.Thread(target=look, daemon=True).start()


class _Pipe(io.FileIO):
    """An end of a pipe that takes everything, also after its reader has gone."""

    def write(self, data: Any, /) -> int:
        """Write, to nowhere where nobody reads."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _outlive_readers() -> None:
    """Let the work be finished where a pipe ends early, as in ``| head``: what is printed then goes nowhere.

    The signal SIGPIPE would end the process too, but in the middle of a file, and for sockets and workers' pipes too.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            stream.flush()
            pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
            by_line = stream.line_buffering or stream.write_through
            setattr(sys, name, io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=by_line))


def _noted(*_: object) -> None:
    """For a signal that a thread looks after."""


def _let_sigterm_through() -> None:
    """The system keeps SIGTERM from the first process of a container, unless that has asked for it."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))


def _speaks() -> bool:
    """Whether this process is the one of its group that speaks for all; a terminal interrupts every rank."""
    return os.environ.get("RANK", "0") == "0"
