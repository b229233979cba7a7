"""What a run says of itself: the start banner, log lines, images a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Speedometer:
    """Images a second and the share of the time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.start_s = self.since_s = time.monotonic()
        self.waited_s = 0.0
        self.images = 0

    def read(self) -> tuple[float, float]:
        """(images a second, share of time waiting for data), then count anew."""
        now = time.monotonic()
        passed = max(now - self.since_s, 1e-9)
        result = self.images / passed, min(self.waited_s / passed, 1.0)
        self.since_s, self.waited_s, self.images = now, 0.0, 0
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that is spent inside on something else than training, such as verification."""
        begin_s = time.monotonic()
        yield
        passed_s = time.monotonic() - begin_s
        self.since_s += passed_s
        self.start_s += passed_s

    def hours_left(self, done: int, left: int) -> float:
        """Hours for ``left`` steps at the mean pace of the ``done`` steps taken so far."""
        return (time.monotonic() - self.start_s) / max(done, 1) * left / 3600
