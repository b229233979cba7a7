"""Which heads of a rank one batch works on: bookkeeping on the host, where the labels come from.

All tensors here lie on the CPU, so that choosing the next step's heads never waits for the device; only what the
loss needs, ``columns_G`` and ``hidden_GS``, goes there.

Shapes: G labels of all ranks, h selected heads of this rank, S their classes, L classes per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from utils import hashing
from utils.device import to_device

HeadScope = Literal["batch", "own"]
_HOST = torch.device("cpu")


@dataclass
class Selection:
    """The heads of this rank that one batch works on."""

    heads_h: Tensor  # (h,) int64, local head numbers, ascending; on the host
    rows_S: Tensor  # (S,) int64, local class numbers, ascending; on the host
    columns_G: Tensor  # (G,) int64, the label's place in rows_S, or -1 where another rank holds it
    hidden_GS: Tensor | None  # (G, S) bool, classes outside a sample's softmax; None: there are none


@dataclass(frozen=True)
class Shard:
    """The classes of one rank: a contiguous block of whole heads, of which the last of all may be short."""

    num_classes: int  # C, of all ranks
    head_size: int  # L
    head_start: int  # heads [head_start, head_end) are here
    head_end: int

    @property
    def class_start(self) -> int:
        """The first class here."""
        return min(self.head_start * self.head_size, self.num_classes)

    @property
    def class_end(self) -> int:
        """The class after the last one here."""
        return min(self.head_end * self.head_size, self.num_classes)

    def classes_of(self, heads_h: Tensor) -> Tensor:
        """Global class numbers (S,) of some heads, given by their global numbers; slots past C are left out."""
        classes_S: Tensor = (heads_h.unsqueeze(1) * self.head_size + torch.arange(self.head_size)).flatten()
        return classes_S[classes_S < self.num_classes]


def draw_heads(shard: Shard, rate: float, key: int) -> Tensor:
    """Global numbers (n,) of this rank's heads that take part whatever the labels, ascending.

    Each is drawn with probability ``rate`` by a hash of ``key`` and its number, so ranks need not agree.
    """
    if rate == 0:
        return torch.empty(0, dtype=torch.int64)
    heads = torch.arange(shard.head_start, shard.head_end)
    return heads if rate == 1 else heads[hashing.uniform(key, heads) < rate]


def select_heads(
    shard: Shard, labels_G: Tensor, drawn_h: Tensor, scope: HeadScope, device: torch.device = _HOST
) -> Selection:
    """The heads of this rank that hold a label, and the drawn ones.

    Args:
        shard: this rank's.
        labels_G: (G,) int64 in [0, C), of all ranks.
        drawn_h: from :func:`draw_heads`.
        scope: "batch": every sample sees all selected classes; "own": its own head's and the drawn ones.
        device: where ``columns_G`` and ``hidden_GS`` are wanted.

    Raises:
        ValueError: a label outside [0, C).
    """
    lowest, highest = (int(v) for v in labels_G.aminmax())
    if lowest < 0 or highest >= shard.num_classes:
        raise ValueError(
            f"labels must be in [0, {shard.num_classes - 1}], found {lowest} to {highest}; "
            "set num_classes to the number of identities, or 'auto'"
        )
    L = shard.head_size
    head_of_label_G = labels_G // L
    here_G = (head_of_label_G >= shard.head_start) & (head_of_label_G < shard.head_end)
    if len(drawn_h) == shard.head_end - shard.head_start:
        heads_h = drawn_h
    else:
        heads_h = torch.cat((head_of_label_G[here_G], drawn_h)).unique()
    classes_S = shard.classes_of(heads_h)
    place_G = torch.searchsorted(heads_h, head_of_label_G) * L + labels_G % L
    columns_G = to_device(torch.where(here_G, place_G, -1), device)
    hidden_GS = None
    if scope == "own":
        head_of_column_S = classes_S // L
        is_drawn_S = to_device(torch.isin(head_of_column_S, drawn_h), device)
        hidden_GS = to_device(head_of_label_G, device).unsqueeze(1) != to_device(head_of_column_S, device)
        hidden_GS &= ~is_drawn_S
    return Selection(heads_h - shard.head_start, classes_S - shard.class_start, columns_G, hidden_GS)
