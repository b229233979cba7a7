"""The project's log: rank 0's lines, and all ranks' warnings, to the terminal and to training.log."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from utils.bars import bars_aside
from utils.text import plain

log = logging.getLogger("mhs_arcface")


class _PlainFormatter(logging.Formatter):
    """Shows control characters in names of files instead of sending them to the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record), keep="\n\t")


class _TerminalHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Keeps the lines apart from what a bar draws on the same terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        with bars_aside():
            super().emit(record)


def init_logging(is_main: bool, output: Path | None = None) -> None:
    """Send rank 0's log lines, and all ranks' warnings, to the terminal.

    With ``output`` rank 0's go to ``output/training.log`` too, including those logged before there was one.
    """
    if is_main and output is not None and (output / "training.log").is_symlink():
        (output / "training.log").unlink()  # a run's folder from elsewhere must not make us write outside it
    early = [handler for handler in log.handlers if isinstance(handler, MemoryHandler)]
    handlers: list[logging.Handler] = [_TerminalHandler(sys.stdout)]
    if is_main:
        handlers.append(
            MemoryHandler(1000, flushLevel=logging.CRITICAL + 1)
            if output is None
            else logging.FileHandler(output / "training.log")
        )
    for handler in handlers:
        handler.setFormatter(_PlainFormatter("Training: %(asctime)s-%(message)s"))
    for before in early if output is not None and is_main else []:
        before.setTarget(handlers[-1])
        before.flush()
        before.setTarget(None)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    for handler in handlers:
        log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO if is_main else logging.WARNING)


def warn_once(text: str, *values: object) -> None:
    """Log what all ranks have found, from the one whose every line is logged: rank 0."""
    if log.isEnabledFor(logging.INFO):
        log.warning(text, *values)
