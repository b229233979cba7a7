"""Bars that show on a terminal how far a long task is; in a file or a pipe there is none."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_EVERY_S = 0.5  # between two looks of a bar, at least


def shows_bars() -> bool:
    """Whether stderr is a terminal that can draw over a line, with somebody before it."""
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not is_ci


class _Bar(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # no thread beside it
    _lock = threading.RLock()  # none of multiprocessing's: no other process draws


def open_bar(total: int, unit: str, what: str = "", done: int = 0, shown: bool = True) -> Any:
    """A bar of tqdm's, drawn twice a second at most and gone once it is closed.

    Args:
        total: things in all.
        unit: what they are, in the singular.
        what: stands before the bar.
        done: how many of them were done before.
        shown: False for none, as on every rank but the first.
    """
    return _Bar(
        total=total,
        unit=f" {unit}",
        desc=what or None,
        initial=done,
        disable=not (shown and shows_bars()),
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
