"""Where this rank is in the collectives, for the others to see if it does not come to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Where this rank is in the collectives, which all ranks call in the same order.

    Attributes:
        number: how many this rank has entered.
        since_s: when it entered the last, by time.monotonic().
        is_waiting: whether it may still wait there for another rank.
        timeout_s: how long it may.
        wrote_s: when a disk last took a block of a checkpoint, or was first asked to, by time.monotonic().
    """

    def __init__(self) -> None:
        self.number, self.since_s, self.is_waiting, self.timeout_s = 0, time.monotonic(), False, 1800.0
        self.returns_early = False  # as NCCL's collectives do
        self.wrote_s = time.monotonic()
        self._names = [""] * 64

    def name(self, number: int) -> str:
        """What a collective was, by its number from 1 on, if it is one of the last."""
        return self._names[number % 64] if self.number - 64 < number <= self.number else "a collective"

    def enter(self, name: str) -> None:
        """Note the next collective."""
        self.since_s = time.monotonic()
        self._names[(self.number + 1) % 64] = name
        self.number, self.is_waiting = self.number + 1, True


progress = Progress()


@contextmanager
def collective(kind: str, what: str = "") -> Iterator[None]:
    """Note a collective while it runs, so that a rank that does not join it can be named with it."""
    is_inner = progress.is_waiting  # of another, as those in a backward that reduces gradients
    progress.enter(f"{kind} of {what}" if what else kind)
    yield
    progress.is_waiting = is_inner or progress.returns_early
