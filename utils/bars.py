"""How far a long task is: a bar on a terminal, now and then a line in a file or a pipe."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from utils.text import clock

_EVERY_S = 0.5  # between two looks of a bar, at least
_LINE_EVERY_S = 60.0


def shows_bars() -> bool:
    """Whether stderr is a terminal that can draw over a line, with somebody before it."""
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not is_ci


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # no thread beside it
    _lock = threading.RLock()  # none of multiprocessing's: no other process draws


class _Lines:
    """In place of a bar; a task that has no name writes none, since it has lines of its own."""

    disable = True

    def __init__(self, total: int, unit: str, what: str, done: int, lines: TextIO | None) -> None:
        self.total, self.n, self._unit, self._what, self._first = total, done, unit, what, done
        self._lines = lines
        self._begin_s = self._said_s = time.monotonic()

    def update(self, count: float = 1) -> None:
        """Count things that are done; at times say how many, and how long the others take at the mean pace."""
        self.n += int(count)
        now_s = time.monotonic()
        if not self._what or now_s - self._said_s < _LINE_EVERY_S or self.n <= self._first:
            return
        self._said_s = now_s
        left_s = (now_s - self._begin_s) / (self.n - self._first) * (self.total - self.n)
        text = f"{self._what}: {self.n:,} of {self.total:,} {self._unit}s, {clock(left_s)} left"
        print(text, file=self._lines, flush=True)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Nothing is drawn."""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_bar(
    total: int, unit: str, what: str = "", done: int = 0, shown: bool = True, lines: TextIO | None = None
) -> Any:
    """A bar of tqdm's, drawn twice a second at most and gone once it is closed; elsewhere a line a minute.

    Args:
        total: things in all.
        unit: what they are, in the singular.
        what: stands before it; without it there are no lines.
        done: how many of them were done before.
        shown: False for none, as on every rank but the first.
        lines: where lines go; None: the standard output.
    """
    if not (shown and shows_bars()):
        return _Lines(total, unit, what if shown else "", done, lines)
    return _Bar(
        total=total,
        file=sys.stderr,
        unit=f" {unit}",
        desc=what or None,
        initial=done,
        mininterval=_EVERY_S,
        miniters=1,
        dynamic_ncols=True,
        leave=False,
    )


@contextmanager
def bars_aside() -> Iterator[None]:
    """Take the bars off the terminal while something else is written to it."""
    if not getattr(_Bar, "_instances", None):
        yield
        return
    with _Bar.external_write_mode(file=sys.stderr):
        yield
