"""Recently updated heads on the training device, for heads that live in host memory or in files.

A head that is there need not be read over the bus or from a disk. It is only ever a copy: every update goes to the
head's home as well, so that checkpoints need not know of the cache, and what it drops is not lost.

Which head is in which slot, and which slot comes next to be used again, is kept on the host, so that looking up never
waits for the device. Only training's own thread may use it.

Shapes: h heads of one request, ascending, and S their classes; n those of them that miss, or are put in; H heads of
this rank; D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.arrays import Rows, untouched_zeros
from heads.layout import Layout
from utils.device import to_device

GIB = 2**30
_AT_LEAST = 1024  # uses that are looked through at once


@dataclass
class Found:
    """What the cache has of a request."""

    rows: Rows  # (S, D), new; of heads that miss they mean nothing yet
    missing_n: Tensor  # places in the request of the heads that miss, on the host
    missing_S: Tensor  # their rows, on the device

    def complete(self, others: Rows) -> Rows:
        """All rows, with those of the heads that missed."""
        for name, value in others.items():
            self.rows[name].index_copy_(0, self.missing_S, value)
        return self.rows


class HeadCache:
    """The last updated heads of one rank, as many as fit into a budget: all arrays, a slot for each head.

    Args:
        layout: which heads the rank holds.
        names: the arrays.
        width: D.
        dtype: of every array.
        device: where training computes.
        gib: the budget, above 0. Memory is taken at once, but not for more heads than there are.

    Raises:
        ValueError: not one head fits.
    """

    def __init__(
        self, layout: Layout, names: Sequence[str], width: int, dtype: torch.dtype, device: torch.device, gib: float
    ) -> None:
        self.layout, self.device, self.names = layout, device, list(names)
        self._L = min(layout.head_size, layout.num_classes)  # rows of a slot
        self._head_bytes = len(self.names) * self._L * width * dtype.itemsize
        self.slots = min(int(gib * GIB) // self._head_bytes, layout.heads_here)
        if self.slots < min(1, layout.heads_here):
            raise ValueError(
                f"head_cache_gib = {gib:g} has no room for a head: one takes {self._head_bytes / GIB:.2g} GiB "
                f"({', '.join(self.names)} of {self._L} classes); raise it, or set it to 0 for no cache"
            )
        shape = (self.slots * self._L, width)
        self._tensors = {name: torch.empty(shape, dtype=dtype, device=device) for name in self.names}
        self._slot_of_H = untouched_zeros((layout.heads_here,), torch.int32, torch.device("cpu"))  # + 1; 0: none
        self._place_in_slot = torch.full((self.slots,), -1)  # of the head there, as Layout.places_of has it
        self._order = Recency(self.slots)
        self._last_use: torch.cuda.Event | None = None
        self._hits = self._reads = 0  # since hit_rate()

    def __str__(self) -> str:
        return (
            f"up to {self.slots:,} of this rank's {self.layout.heads_here:,} heads stay on {self.device} "
            f"({self.slots * self._head_bytes / GIB:.2f} GiB: {', '.join(self.names)})"
        )

    def find(self, heads_h: Tensor, names: Sequence[str]) -> Found | None:
        """Copies of the rows of those heads that are here; None if none is."""
        slots_h = self._slots_of(heads_h)
        is_here_h = slots_h >= 0
        missing_n = (~is_here_h).nonzero().squeeze(1)
        if len(missing_n) == len(heads_h):
            return None
        rows_S = to_device(self._rows(slots_h.clamp(min=0), heads_h), self.device)
        missing_S = to_device(self._rows(missing_n, heads_h[missing_n]), self.device)
        with self._after_last_use():
            return Found({name: self._tensors[name].index_select(0, rows_S) for name in names}, missing_n, missing_S)

    def put(self, heads_h: Tensor, values: Rows) -> None:
        """Keep what heads have just been updated to, in place of those updated longest ago.

        Args:
            heads_h: the heads; where they are more than there are slots, some are left out.
            values: (S, D) on the device for each array.
        """
        slots_h = self._slots_of(heads_h)
        self._order.use(slots_h[slots_h >= 0])
        new_n = (slots_h < 0).nonzero().squeeze(1)
        new_n = new_n[: self.slots - (len(heads_h) - len(new_n))]
        slots_h[new_n] = self._clear_oldest(len(new_n))
        places_n = self.layout.places_of(heads_h[new_n])
        self._place_in_slot[slots_h[new_n]] = places_n
        self._slot_of_H[places_n] = (slots_h[new_n] + 1).int()
        kept_n = (slots_h >= 0).nonzero().squeeze(1)
        to_S = to_device(self._rows(slots_h[kept_n], heads_h[kept_n]), self.device)
        from_S = None if len(kept_n) == len(heads_h) else to_device(self._rows(kept_n, heads_h[kept_n]), self.device)
        with self._after_last_use():
            for name, tensor in self._tensors.items():
                value = values[name].detach()
                tensor.index_copy_(0, to_S, value if from_S is None else value.index_select(0, from_S))

    def drop(self, heads_h: Tensor) -> None:
        """Forget heads that something else than training's updates has changed."""
        slots_h = self._slots_of(heads_h)
        self._place_in_slot[slots_h[slots_h >= 0]] = -1
        self._slot_of_H[self.layout.places_of(heads_h)] = 0

    def clear(self) -> None:
        """Forget all heads."""
        self._slot_of_H[self._place_in_slot[self._place_in_slot >= 0]] = 0
        self._place_in_slot.fill_(-1)

    def count(self, hits: int, reads: int) -> None:
        """Take a request into account: heads found here, and heads read because they were not."""
        self._hits, self._reads = self._hits + hits, self._reads + reads

    def hit_rate(self) -> float:
        """Share of the heads found here since the last call, nan without any; those never updated do not count."""
        wanted = self._hits + self._reads
        rate = self._hits / wanted if wanted else float("nan")
        self._hits = self._reads = 0
        return rate

    def _slots_of(self, heads_h: Tensor) -> Tensor:
        """(h,) int64; -1 for a head that is not here."""
        return self._slot_of_H[self.layout.places_of(heads_h)].long() - 1

    def _clear_oldest(self, count: int) -> Tensor:
        """``count`` slots to use now, and their heads are forgotten."""
        slots_n = self._order.oldest(count)
        self._order.use(slots_n)
        places_n = self._place_in_slot[slots_n]
        self._slot_of_H[places_n[places_n >= 0]] = 0
        return slots_n

    def _rows(self, blocks_h: Tensor, heads_h: Tensor) -> Tensor:
        """The rows of blocks of a head's size; of them the last one is short if its head is."""
        rows = (blocks_h.unsqueeze(1) * self._L + torch.arange(self._L)).flatten()
        if not len(heads_h):
            return rows
        return rows[: len(rows) - max(0, (int(heads_h[-1]) + 1) * self._L - self.layout.num_classes)]

    @contextmanager
    def _after_last_use(self) -> Iterator[None]:
        """On a GPU: what is queued inside comes after what was queued here before, on whatever stream that was."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self._last_use is not None:
            stream.wait_event(self._last_use)
        yield
        self._last_use = stream.record_event()


class Recency:
    """The numbers from 0 to ``size`` - 1 in the order of their last use, without a loop over them.

    Every use is appended to a queue. Of a number's uses only the last one counts; the others are passed over when
    they come to the front, and cleared out when the queue is full. So a use costs the same on average however many
    numbers there are.
    """

    def __init__(self, size: int) -> None:
        self._queue = torch.arange(2 * size)  # the first half: unused numbers come first
        self._last_use = torch.arange(size)  # where in the queue
        self._begin, self._end = 0, size

    def use(self, numbers_n: Tensor) -> None:
        """Note a use of some different numbers."""
        if self._end + len(numbers_n) > len(self._queue):
            alive = self._alive(self._begin, self._end)
            self._begin, self._end = 0, len(alive)
            self._queue[: self._end] = alive
            self._last_use[alive] = torch.arange(self._end)
        end = self._end + len(numbers_n)
        self._queue[self._end : end] = numbers_n
        self._last_use[numbers_n] = torch.arange(self._end, end)
        self._end = end

    def oldest(self, count: int) -> Tensor:
        """The ``count`` numbers, at most ``size``, not used for longest; the caller uses them next."""
        found = [self._queue[:0]]
        while count:
            end = min(self._begin + max(count, _AT_LEAST), self._end)
            found.append(self._alive(self._begin, end)[:count])
            count -= len(found[-1])
            if count:
                self._begin = end
        return torch.cat(found)

    def _alive(self, begin: int, end: int) -> Tensor:
        """The numbers in a part of the queue, each at its last use alone."""
        numbers = self._queue[begin:end]
        return numbers[self._last_use[numbers] == torch.arange(begin, end)]
