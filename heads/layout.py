"""Which classes one rank holds, and where they are in its arrays.

Class c lives in head c // L, slot c % L. Head and class numbers are global everywhere; only this file knows
their places in a rank's arrays.

Shapes: h heads, S their classes, L classes per head, C classes of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.distributed import part_of


@dataclass(frozen=True)
class Layout:
    """The classes of one rank: a contiguous block of whole heads; the very last head may be short."""

    num_classes: int  # C
    head_size: int  # L
    head_start: int  # heads [head_start, head_end) are here
    head_end: int

    @classmethod
    def of_rank(cls, num_classes: int, head_size: int, rank: int, world_size: int) -> Layout:
        """The block of ``rank``; the ranks' numbers of heads differ by at most one."""
        return cls(num_classes, head_size, *part_of(-(-num_classes // head_size), rank, world_size))

    @property
    def num_heads(self) -> int:
        """Heads of all ranks, H = ceil(C / L)."""
        return -(-self.num_classes // self.head_size)

    @property
    def class_start(self) -> int:
        """The first class here."""
        return min(self.head_start * self.head_size, self.num_classes)

    @property
    def class_end(self) -> int:
        """The class after the last one here."""
        return min(self.head_end * self.head_size, self.num_classes)

    @property
    def heads_here(self) -> int:
        """Heads of this rank."""
        return self.head_end - self.head_start

    @property
    def classes_here(self) -> int:
        """Classes of this rank."""
        return self.class_end - self.class_start

    def classes_of(self, heads_h: Tensor) -> Tensor:
        """The classes (S,) of some heads, in their order; slots past C are left out."""
        classes_S: Tensor = (heads_h.unsqueeze(1) * self.head_size + torch.arange(self.head_size)).flatten()
        return classes_S[classes_S < self.num_classes]

    def places_of(self, heads_h: Tensor) -> Tensor:
        """Where some of this rank's heads are in an array with one number per head, (h,)."""
        return heads_h - self.head_start

    def heads_at(self, places_h: Tensor) -> Tensor:
        """The heads (h,) at some places of an array with one number per head; undoes :meth:`places_of`."""
        return places_h + self.head_start

    def rows_of(self, heads_h: Tensor) -> Tensor:
        """Where the classes of some of this rank's heads are in an array with one row per class, (S,)."""
        return self.classes_of(heads_h) - self.class_start
