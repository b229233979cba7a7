"""How a step's heads travel between their arrays and the training device, and what is newer than what is read.

Arrays in host memory and in files are read and written by one background thread in the order of the calls, so that
the next step's heads arrive and the last step's leave while this one computes. A fetch that was asked for before an
update still gives the updated rows, bit for bit.

Heads that were never updated cost nothing: they are not written, and read as their initial values. Those that were
updated lately may stay on the device (heads/cache.py), so that they are written and not read.

Shapes: h heads of one request and S their classes, ascending, on the host; D embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from heads.arrays import CENTRES, FileArrays, HeadArrays, MemoryArrays, Rows, untouched_zeros
from heads.cache import Found, HeadCache
from heads.layout import Layout
from utils.device import single_threaded_worker, to_device

Place = Literal["device", "host", "file"]
VISITS = "visits"  # updates of a head
LAST_STEP = "last_step"  # optimizer steps up to a head's last update, that one included
WRITES_AT_ONCE = 8  # updates that may wait to be written


@dataclass
class Fetch:
    """Heads on their way; ``HeadStorage.take`` hands them over."""

    heads_h: Tensor
    names: Sequence[str]
    coming: Future[Rows] | None  # None: read when taken, or all are ``found``
    found: Found | None = None  # on the device when it was asked for; the others are ``coming``
    newer: list[tuple[Tensor, Rows]] = field(default_factory=list)  # updates made since it was asked for


class HeadStorage:
    """The heads of one rank, wherever they live.

    Args:
        layout: which classes they hold.
        width: D.
        dtype: of every array.
        device: where training computes.
        initial: gives the initial centres (N, D) of classes (N,) that were never updated, on their device.
        place: "device", "host", or "file".
        folder: for "file": where the files are made; it should be on a local disk.
        cache_gib: of the device, for heads of "host" and "file" that were updated lately; 0: none.

    Raises:
        ValueError: an unknown place, "file" without a folder, or a cache for "device".
        OSError: a file cannot be made.
    """

    def __init__(
        self,
        layout: Layout,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        initial: Callable[[Tensor], Tensor],
        place: Place = "device",
        folder: Path | None = None,
        cache_gib: float = 0.0,
    ) -> None:
        if place not in ("device", "host", "file"):
            raise ValueError(f"head_storage must be 'device', 'host' or 'file', got {place!r}")
        if place == "file" and folder is None:
            raise ValueError("head_storage = 'file' needs a folder for the files: set head_folder")
        if cache_gib < 0 or (cache_gib and place == "device"):
            raise ValueError(
                "head_cache_gib must be at least 0, and 0 with head_storage = 'device', where all heads are on the "
                f"device anyway; got {cache_gib:g} with {place!r}"
            )
        self.layout, self.device, self.initial = layout, device, initial
        self.cache_gib = cache_gib
        self.cache: HeadCache | None = None  # see open_cache()
        self.arrays: HeadArrays
        if folder is not None and place == "file":
            self.arrays = FileArrays(layout, width, dtype, folder)
        else:
            self.arrays = MemoryArrays(layout, width, dtype, device if place == "device" else torch.device("cpu"))
        self.counts: dict[str, Tensor] = {}  # name -> (heads here,) int32, on the host
        self.count(VISITS)
        self.waited_s = 0.0  # time spent waiting in take()
        self.before_write: Callable[[Tensor], None] | None = (
            None  # told the heads (h,) that are about to be overwritten
        )
        self._failed: Exception | None = None  # a write that failed; nothing is read or written after it
        self._worker = None if place == "device" else single_threaded_worker(device, "heads")
        # On a GPU rows travel on a stream of their own, and the background thread waits for it.
        self._stream = torch.cuda.Stream(device) if self._worker and device.type == "cuda" else None
        self._last: tuple[Tensor, Tensor] | None = None  # places of the last update, and their visits before it
        self._writing: list[Future[None]] = []
        self._fetches: list[Fetch] = []  # asked for and not taken yet
        self.arrays.add(CENTRES)

    @property
    def names(self) -> list[str]:
        """The arrays: the centres, then the optimizer's state."""
        return self.arrays.names

    @property
    def visits(self) -> Tensor:
        """Updates of each head."""
        return self.counts[VISITS]

    def count(self, name: str) -> None:
        """Keep a number for each head: ``VISITS`` or ``LAST_STEP``."""
        self.counts[name] = untouched_zeros((self.layout.heads_here,), torch.int32, torch.device("cpu"))

    def open_cache(self) -> None:
        """Begin to keep heads on the device, if asked for; called when all arrays have been added.

        Raises:
            ValueError: the budget is too small for one head.
        """
        if self.cache_gib:
            arrays = self.arrays
            self.cache = HeadCache(self.layout, arrays.names, arrays.width, arrays.dtype, self.device, self.cache_gib)

    def fetch(self, heads_h: Tensor, names: Sequence[str] | None = None) -> Fetch:
        """Start reading some heads, of all arrays or those named; :meth:`take` still sees later updates.

        Raises:
            OSError: an earlier write has failed.
        """
        self._check_writes()
        names = names or list(self.names)
        if self._worker is None:
            return Fetch(heads_h, names, None)
        fetch = Fetch(heads_h, names, None)
        absent_h, fresh_h = heads_h, self._is_fresh(heads_h)
        if self.cache is not None and (found := self.cache.find(heads_h, names)) is not None:
            fetch.found, absent_h, fresh_h = found, heads_h[found.missing_n], fresh_h[found.missing_n]
        if self.cache is not None:
            self.cache.count(len(heads_h) - len(absent_h), len(fresh_h) - int(fresh_h.count_nonzero()))
        if fetch.found is None or len(absent_h):
            fetch.coming = self._worker.submit(self._bring, absent_h, fresh_h, names)
        self._fetches.append(fetch)
        return fetch

    def take(self, fetch: Fetch) -> Rows:
        """The rows (S, D) on the training device, as of now; they are the caller's to change.

        Raises:
            OSError: they could not be read.
        """
        if self._worker is None:
            return self._read(fetch.heads_h, self._is_fresh(fetch.heads_h), fetch.names)
        rows = {} if fetch.coming is None else self._arrived(fetch.coming)
        if fetch.found is not None:
            rows = fetch.found.complete(rows)
        self.forget(fetch)
        for newer_h, values in fetch.newer:
            self._lay_over(rows, fetch.heads_h, values, newer_h)
        return rows

    def _arrived(self, coming: Future[Rows]) -> Rows:
        started_s = time.monotonic()
        if coming.exception() is not None:
            self._check_writes()  # an earlier failed write says what to do
        rows = coming.result()
        if self._stream is not None:
            for value in rows.values():  # made on the other stream, which must know that this one uses it
                value.record_stream(torch.cuda.current_stream(self.device))
        self.waited_s += time.monotonic() - started_s
        return rows

    def forget(self, fetch: Fetch) -> None:
        """Give up a fetch that will not be taken."""
        self._fetches = [other for other in self._fetches if other is not fetch]

    def store(self, heads_h: Tensor, values: Rows, step: int = 0) -> None:
        """Write new values of all arrays of some heads, and count an update of each, made in step ``step``.

        For host memory and files it returns at once and writes in the background: ``values`` must not change after.
        The cache keeps them, too, as they are on the training device.

        Raises:
            OSError: an earlier write has failed.
        """
        self._change(heads_h, values, step)
        if self.cache is not None:
            self.cache.put(heads_h, values)

    def restore(self, heads_h: Tensor, values: Rows, counts: dict[str, Tensor]) -> None:
        """Write values as :meth:`store` does, from any device, but set the heads' counts, (h,) each."""
        self._change(heads_h, values, 0)
        if self.cache is not None:
            self.cache.drop(heads_h)
        for name, count_h in counts.items():
            self.counts[name][self.layout.places_of(heads_h)] = count_h
        self.forget_last()

    def _change(self, heads_h: Tensor, values: Rows, step: int) -> None:
        self._check_writes()
        places_h = self.layout.places_of(heads_h)
        self._last = places_h, self.visits[places_h]
        self.visits[places_h] += 1
        if LAST_STEP in self.counts:
            self.counts[LAST_STEP][places_h] = step
        if self._worker is None:
            self._write(heads_h, values)
            return
        for fetch in self._fetches:
            fetch.newer.append((heads_h, values))
        made = None if self._stream is None else torch.cuda.current_stream(self.device).record_event()
        self._writing.append(self._worker.submit(self._write, heads_h, values, made))
        if len(self._writing) > WRITES_AT_ONCE:  # a disk that falls behind must not fill the memory
            self._writing[0].exception()

    def forget_last(self) -> None:
        """Let the last update stand."""
        self._last = None

    def take_back(self, step: int) -> None:
        """Undo the counts of the last update, which has written the values that were taken.

        Args:
            step: optimizer steps without that update's; to it the heads had been brought, and so they were written.
        """
        if self._last is None:
            return
        places_h, visits_h = self._last
        self.visits[places_h] = visits_h
        if LAST_STEP in self.counts:
            self.counts[LAST_STEP][places_h] = step
        self._last = None

    def last_steps_before(self, places_S: Tensor, step: int) -> Tensor:
        """``LAST_STEP`` at some places, (S,) int64, as :meth:`take_back` would leave it."""
        last_S = self.counts[LAST_STEP][places_S].long()
        return last_S.where(last_S != step + 1, step)  # the last update's step is the one after

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: a write has failed, for example because the disk is full.
        """
        for write in self._writing:
            write.exception()
        self._check_writes()

    def close(self) -> None:
        """Wait until everything is written, end the background thread, close the files.

        Raises:
            OSError: a write has failed.
        """
        try:
            self.flush()
        finally:
            if self._worker is not None:
                self._worker.shutdown(wait=True)
            self.arrays.close()

    def _check_writes(self) -> None:
        self._writing = [write for write in self._writing if not write.done()]
        if isinstance(self._failed, OSError):
            where = f" to {self.arrays.folder}" if isinstance(self.arrays, FileArrays) else ""
            raise OSError(
                f"the classifier's heads could not be written{where}: {self._failed}. Make room there or "
                "set another head_folder, and go on from the last checkpoint with resume = True"
            ) from self._failed
        if self._failed is not None:
            raise self._failed

    def _is_fresh(self, heads_h: Tensor) -> Tensor:
        return self.visits[self.layout.places_of(heads_h)] == 0

    def _read(self, heads_h: Tensor, fresh_h: Tensor, names: Sequence[str]) -> Rows:
        """What the arrays hold, and the initial values of the heads that were not in them when this was asked for."""
        if self._failed is not None:
            raise self._failed
        if not fresh_h.any():
            return self.arrays.read(heads_h, names)
        classes_S, home = self.layout.classes_of(heads_h), self.arrays.home
        fresh_S = torch.repeat_interleave(fresh_h, self.layout.head_size)[: len(classes_S)]
        initial = self.initial(to_device(classes_S[fresh_S], home))
        if len(initial) == len(classes_S):
            return {name: initial if name == CENTRES else torch.zeros_like(initial) for name in names}
        written = self.arrays.read(heads_h[~fresh_h], names)
        old, new = (to_device(mask_S.nonzero().squeeze(1), home) for mask_S in (~fresh_S, fresh_S))
        rows = {}
        for name in names:
            rows[name] = torch.zeros((len(classes_S), initial.shape[1]), dtype=initial.dtype, device=home)
            rows[name][old] = written[name]
            if name == CENTRES:
                rows[name][new] = initial
        return rows

    def _lay_over(self, rows: Rows, heads_h: Tensor, values: Rows, newer_h: Tensor) -> None:
        """Overwrite the rows of those heads that were updated after they were asked for."""
        classes_S, newer_S = self.layout.classes_of(heads_h), self.layout.classes_of(newer_h)
        if not len(classes_S):
            return
        place_S = torch.searchsorted(classes_S, newer_S).clamp(max=len(classes_S) - 1)
        both = classes_S[place_S] == newer_S
        here = to_device(place_S[both], self.device)
        there = to_device(both.nonzero().squeeze(1), self.device)
        for name in rows:
            rows[name][here] = to_device(values[name], self.device)[there]  # what restore() was given is on the host

    def _bring(self, heads_h: Tensor, fresh_h: Tensor, names: Sequence[str]) -> Rows:
        """Read, in the background, and move to the training device while it computes."""
        rows = self._read(heads_h, fresh_h, names)
        if self._stream is None:
            return {name: to_device(value, self.device) for name, value in rows.items()}
        with torch.cuda.stream(self._stream):
            moved = {name: to_device(value, self.device) for name, value in rows.items()}
        self._stream.synchronize()
        return moved

    def _write(self, heads_h: Tensor, values: Rows, made: torch.cuda.Event | None = None) -> None:
        """Write; ``made`` says when the values are there, if they must be fetched from a GPU first."""
        if self._failed is not None:
            return
        try:
            if made is not None:
                values = self._fetch_back(values, made)
            tell = self.before_write  # another thread may set it to None
            if tell is not None:
                tell(heads_h)
            self.arrays.write(heads_h, {name: to_device(value, self.arrays.home) for name, value in values.items()})
        except Exception as error:
            self._failed = error
            if self._worker is None:
                raise

    def _fetch_back(self, values: Rows, made: torch.cuda.Event) -> Rows:
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(made)
            host = {
                name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for name, value in values.items()
            }
            for name, value in values.items():
                host[name].copy_(value.detach(), non_blocking=True)
        self._stream.synchronize()
        return host
