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

from heads.layout import Layout
from utils import hashing
from utils.device import to_device

HeadScope = Literal["batch", "own"]
_HOST = torch.device("cpu")


@dataclass
class Selection:
    """The heads of this rank that one batch works on."""

    heads_h: Tensor  # (h,) int64, ascending; on the host
    classes_S: Tensor  # (S,) int64, ascending; on the host
    columns_G: Tensor  # (G,) int64, the label's place in classes_S, or -1 where another rank holds it
    hidden_GS: Tensor | None  # (G, S) bool, classes outside a sample's softmax; None: there are none


def expected_share(
    num_classes: int, head_size: int, negative_rate: float, global_batch: int, sample_rate: float | None = None
) -> float:
    """Share of classes that a step works on, if labels fall evenly: 1 - (1 - L / C)^G, and the drawn ones."""
    head_share = min(head_size / num_classes, 1.0)
    labelled = 1 - (1 - head_share) ** global_batch
    return max(labelled, sample_rate or 0.0) + (1 - labelled) * negative_rate


def check_labels(labels_G: Tensor, num_classes: int) -> None:
    """Raise ValueError for a label outside [0, C)."""
    lowest, highest = (int(v) for v in labels_G.aminmax())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes - 1}], found {lowest} to {highest}; "
            "set num_classes to the number of identities, or 'auto'"
        )


def draw_heads(layout: Layout, rate: float, key: int) -> Tensor:
    """The heads (n,) of this rank that take part whatever the labels, ascending.

    Each is drawn with probability ``rate`` by a hash of ``key`` and its number, so ranks need not agree.
    """
    if rate == 0:
        return torch.empty(0, dtype=torch.int64)
    heads = torch.arange(layout.head_start, layout.head_end)
    return heads if rate == 1 else heads[hashing.uniform(key, heads) < rate]


def sample_classes(num_classes: int, rate: float, key: int, labels_G: Tensor, start: int, end: int) -> Tensor:
    """PartialFC's sample: the classes in [start, end) that take part whatever the labels, (n,), ascending.

    All classes stand in a random order, a function of ``key``, and the first t are drawn. t is such that they and the
    labels' classes together are int(rate * C) over all ranks; where the labels alone are more, none is drawn. So the
    sample is the same on any number of ranks, and each computes its own part of it.

    Source: ``sample`` of PartialFC_V2 in insightface's arcface_torch; differs from it in that the number is kept over
    all ranks, while each rank there draws int(rate * C / W) for itself.
    """
    own_P = labels_G.unique()
    more = int(rate * num_classes) - len(own_P)
    if more <= 0 or start >= end:
        return torch.empty(0, dtype=torch.int64)
    # The labels' classes among the first t do not count: t = more + how many they are.
    places_P = hashing.permuted(key, own_P, num_classes).sort().values
    passed = int((places_P - torch.arange(len(own_P)) < more).sum())
    classes = torch.arange(start, end)
    return classes[hashing.permuted(key, classes, num_classes) < more + passed]


def select_heads(
    layout: Layout, labels_G: Tensor, drawn_h: Tensor, scope: HeadScope, device: torch.device = _HOST
) -> Selection:
    """The heads of this rank that hold a label, and the drawn ones.

    Args:
        layout: this rank's.
        labels_G: (G,) int64 in [0, C), of all ranks; see :func:`check_labels`.
        drawn_h: from :func:`draw_heads` or :func:`sample_classes`.
        scope: "batch": every sample sees all selected classes; "own": its own head's and the drawn ones.
        device: where ``columns_G`` and ``hidden_GS`` are wanted.
    """
    L = layout.head_size
    head_of_label_G = labels_G // L
    here_G = (head_of_label_G >= layout.head_start) & (head_of_label_G < layout.head_end)
    if len(drawn_h) == layout.heads_here:
        heads_h = drawn_h
    else:
        heads_h = torch.cat((head_of_label_G[here_G], drawn_h)).unique()
    classes_S = layout.classes_of(heads_h)
    place_G = torch.searchsorted(heads_h, head_of_label_G) * L + labels_G % L
    columns_G = to_device(torch.where(here_G, place_G, -1), device)
    hidden_GS = None
    if scope == "own":
        head_of_column_S = classes_S // L
        is_drawn_S = to_device(torch.isin(head_of_column_S, drawn_h), device)
        hidden_GS = to_device(head_of_label_G, device).unsqueeze(1) != to_device(head_of_column_S, device)
        hidden_GS &= ~is_drawn_S
    return Selection(heads_h, classes_S, columns_G, hidden_GS)
