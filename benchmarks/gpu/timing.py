"""Clocks that do not disturb a device, and a count of what makes the host wait for it."""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
_WAIT = "called a synchronizing CUDA operation"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Marks on the device's time line; on a CPU, on the host's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Note that the device has come here; the host goes on at once."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def intervals_ms(self) -> list[float]:
        """Milliseconds between each mark and the next; waits for the last one."""
        if self.device.type != "cuda":
            return [(b - a) * 1e3 for a, b in zip(self._times, self._times[1:], strict=False)]
        synchronise(self.device)
        return [float(a.elapsed_time(b)) for a, b in zip(self._events, self._events[1:], strict=False)]


def time_steps(step: Callable[[], object], device: torch.device, budget_s: float, most: int) -> dict[str, float]:
    """Call ``step`` until the budget is spent, at least three times and at most ``most``.

    Returns:
        ``step_ms``: wall time of all over their number, the device's last work included; ``step_ms_p50``, ``_p10``
        and ``_p90`` of the device's intervals from one step's begin to the next; ``steps``.
    """
    clock = Clock(device)
    synchronise(device)
    begin_s, steps = time.perf_counter(), 0
    clock.mark()
    while steps < 3 or (steps < most and time.perf_counter() - begin_s < budget_s):
        step()
        clock.mark()
        steps += 1
    synchronise(device)
    took_s = time.perf_counter() - begin_s
    p10, p50, p90 = np.percentile(clock.intervals_ms(), (10, 50, 90))
    return {
        "step_ms": took_s / steps * 1e3,
        "step_ms_p10": float(p10),
        "step_ms_p50": float(p50),
        "step_ms_p90": float(p90),
        "steps": steps,
    }


class Waits:
    """The calls that made the host wait for the device: where they stand, in this thread and in others."""

    def __init__(self) -> None:
        self.here: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()  # threads whose work is to wait

    def per_step(self, steps: int) -> dict[str, Any]:
        """For a record."""
        return {
            "waits_per_step": self.here.total() / steps,
            "waits_of_threads_per_step": self.elsewhere.total() / steps,
            "waits_places": dict(self.here.most_common(8)),
        }


@contextmanager
def counting_waits(device: torch.device) -> Iterator[Waits]:
    """Count synchronising calls inside, as torch's sync debug mode sees them; on a CPU there are none.

    torch says itself that its mode does not see every such call.
    """
    waits, own = Waits(), threading.get_ident()

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        if _WAIT in str(message):
            counter = waits.here if threading.get_ident() == own else waits.elsewhere
            counter[f"{_short(filename)}:{lineno}"] += 1

    with warnings.catch_warnings(), sync_mode("warn", device):
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        yield waits


@contextmanager
def sync_mode(mode: str, device: torch.device) -> Iterator[None]:
    """Have torch warn of synchronising calls ("warn") or refuse them ("error"); nothing happens for a CPU."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-2:])


def peak_of_memory(device: torch.device) -> dict[str, float]:
    """The device's memory since :func:`forget_peak`, in MiB; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "allocated_mib": torch.cuda.max_memory_allocated(device) / 2**20,
        "reserved_mib": torch.cuda.max_memory_reserved(device) / 2**20,
    }


def forget_peak(device: torch.device) -> None:
    """Give cached memory back and begin a new peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
