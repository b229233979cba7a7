"""What embeddings depend on: only those of one origin can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass

from embedder.embedder import Embedder

COLOR_ORDERS = ("RGB", "BGR")


@dataclass(frozen=True)
class Origin:
    """How embeddings, or a threshold on their cosines, came about.

    Attributes:
        model: the hash (sha256) of the network's file or, failing that, a name, which says nothing.
        flip: whether they are sums with those of the mirror images.
        color_order: in which the network got the channels, "RGB" or "BGR".
    """

    model: str
    flip: bool
    color_order: str = "RGB"

    def check(self, what: object, embedder: Embedder, flip: bool) -> None:
        """Raise ValueError, which begins with ``what``, where this network, used in this way, gives others."""
        if self.flip != flip:
            ways = ("leave --flip out", "without", "with") if flip else ("add --flip", "with", "without")
            raise ValueError(f"{what} was made {ways[1]} --flip, not {ways[2]} it: {ways[0]}, or make it again")
        if self.color_order != embedder.color_order:
            way_out = "leave --bgr out" if self.color_order == "RGB" else "add --bgr"
            raise ValueError(
                f"{what} was made with {self.color_order} input, but here the network gets {embedder.color_order}: "
                f"{way_out}, or make it again"
            )
        is_hash = re.fullmatch("[0-9a-f]{64}", self.model) is not None
        if is_hash and self.model not in (embedder.sha256, embedder.weights_sha256):
            raise ValueError(
                f"{what} was made with another model (sha256 {self.model[:12]}..., this one's is "
                f"{embedder.sha256[:12]}...): make it again with this one"
            )


def origin_of(embedder: Embedder, flip: bool) -> Origin:
    """The origin of what a network gives."""
    return Origin(embedder.sha256, flip, embedder.color_order)
