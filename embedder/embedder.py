"""What every trained network is to its users: aligned faces in, embeddings out.

Shapes: B batch, H height, W width, D embedding size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class Embedder(ABC):
    """A network that is ready to embed.

    Attributes:
        name: the network's name, or the ONNX file's.
        embedding_size: D.
        sha256: hash of the file, in hexadecimal; it identifies the weights in a cache's key.
        weights_sha256: hash of the weights that an ONNX file was exported from, "" where it does not say so.
        image_size: side in pixels of the images that the network takes.
        precision: "float32", or what its products run in.
        color_order: "RGB", or "BGR" where channels are turned before the network; :meth:`embed` takes RGB.
    """

    name: str
    embedding_size: int
    sha256: str
    weights_sha256: str = ""
    image_size: int = 112
    precision: str = "float32"
    color_order: str = "RGB"

    @abstractmethod
    def embed(self, images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed aligned RGB images (B, H, W, 3); (B, D), not normalised."""

    def embed_halves(self, images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed images and their mirror images, side by side: (B, 2 * D)."""
        return np.concatenate([self.embed(images_BHW3), self.embed(_mirrored(images_BHW3))], axis=1)


def embed_with_mirrored(
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images_BHW3: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Embed images (B, H, W, 3) as the sum with their mirror images, as evaluation does: (B, D), not normalised."""
    return embed(images_BHW3) + embed(_mirrored(images_BHW3))


def describe_input(embedder: Embedder) -> str:
    """What the network takes, in words."""
    mean, std = getattr(embedder, "mean", 127.5), getattr(embedder, "std", 127.5)  # an ONNX file may have its own
    scaling = "(x / 255 - 0.5) / 0.5" if mean == std == 127.5 else f"(x - {mean:g}) / {std:g}"
    return f"{embedder.color_order}, {embedder.image_size} x {embedder.image_size}, {scaling}"


class LengthMeter:
    """Measures embeddings on their way: the mean length of all that are finite, straight and mirrored ones each.

    It is the ``XNorm`` of insightface's verification.

    Args:
        times_N: how often each image counts, in the order in which they come; None: once.
    """

    def __init__(self, times_N: NDArray[np.int64] | None = None) -> None:
        self.times_N = times_N
        self.sum, self.count = 0.0, 0

    def watch(
        self, embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]], flip: bool
    ) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """``embed``, or with ``flip`` its sum with the mirror images', whose results are measured."""
        seen = 0

        def watched(images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
            nonlocal seen
            own = slice(seen, seen + len(images_BHW3))
            times_B = np.ones(len(images_BHW3), np.int64) if self.times_N is None else self.times_N[own]
            seen = own.stop

            def measured(images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
                out_BD = embed(images_BHW3)
                length_B = np.linalg.norm(out_BD.astype(np.float64), axis=1)
                is_finite_B = np.isfinite(length_B)
                self.sum += float((times_B * length_B)[is_finite_B].sum())
                self.count += int(times_B[is_finite_B].sum())
                return out_BD

            return embed_with_mirrored(measured, images_BHW3) if flip else measured(images_BHW3)

        return watched

    def mean(self) -> float:
        """The mean length, nan if nothing finite has come."""
        return self.sum / self.count if self.count else float("nan")


def _mirrored(images_BHW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images_BHW3[:, :, ::-1])
