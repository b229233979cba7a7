"""Many images through one backbone: decoding in background threads, results in order, flat memory.

Shapes: N images, B batch, D embedding size, H height, W width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbones.base import to_network_input
from embedder.embedder import LengthMeter
from utils.bars import open_bar
from utils.device import to_device

LoadBatch = Callable[[int, int], NDArray[np.uint8]]


class Stopped(Exception):  # noqa: N818 - no error
    """What was going on has been left off, because it was asked to stop."""


def never() -> bool:
    """The answer of whoever is not to be stopped."""
    return False


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode without gradients, and each submodule back in its own mode afterwards."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in before:
            part.training = training


def embedded_blocks(
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    load: LoadBatch,
    blocks: Sequence[tuple[int, int]],
    threads: int = 1,
    progress: str = "",
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Embed blocks of images in order, while ``threads`` threads load the next ones.

    Host memory: ``threads + 2`` blocks of uint8 images.

    Args:
        embed: (B, H, W, 3) uint8 RGB to embeddings, a row an image.
        load: (start, end) to the images of that block; called from other threads.
        blocks: (start, end) of each.
        threads: background threads that load.
        progress: label of a progress bar with the time left, "" for none.

    Yields:
        start, end, and the block's embeddings.

    Raises:
        ValueError: whatever ``load`` or ``embed`` raises.
    """
    pool = ThreadPoolExecutor(threads)
    ahead: deque[tuple[int, int, Future[NDArray[np.uint8]]]] = deque()
    total = sum(end - start for start, end in blocks)
    try:
        with open_bar(total, "image", progress, shown=bool(progress)) as bar:
            for start, end in blocks[: threads + 1]:
                ahead.append((start, end, pool.submit(load, start, end)))
            for following in range(len(ahead), len(blocks) + len(ahead)):
                start, end, future = ahead.popleft()
                images_BHW3 = future.result()
                if following < len(blocks):
                    ahead.append((*blocks[following], pool.submit(load, *blocks[following])))
                yield start, end, embed(images_BHW3)
                bar.update(end - start)
    finally:
        pool.shutdown(cancel_futures=True)


def embed_batches(
    backbone: nn.Module,
    load: LoadBatch,
    n: int,
    device: torch.device,
    batch_size: int,
    flip: bool = True,
    is_stopping: Callable[[], bool] = never,
    meter: LengthMeter | None = None,
) -> NDArray[np.float32]:
    """Embed ``n`` images, each as itself plus its mirror image.

    Host memory beyond the result: three batches of uint8 images.

    Args:
        backbone: (B, 3, H, W) to (B, D); a DistributedDataParallel wrapper is bypassed, because its
            forward talks to the other ranks. Its mode is restored afterwards.
        load: (start, end) to (end - start, H, W, 3) uint8 RGB; called from other threads.
        n: number of images.
        device: where ``backbone`` lives.
        batch_size: images per forward pass; with ``flip`` there are two passes.
        flip: add the embedding of the mirror image.
        is_stopping: asked after each batch.
        meter: measures the embeddings before they are added.

    Returns:
        (N, D), sums, not normalised; (0, 0) without images.

    Raises:
        ValueError: ``batch_size`` below 1, or whatever ``load`` raises.
        Stopped: ``is_stopping`` has said so before the last batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    network = backbone.module if isinstance(backbone, DistributedDataParallel) else backbone

    def embed(images_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedding_BD: Tensor = network(to_network_input(to_device(torch.from_numpy(images_BHW3), device)))
        out: NDArray[np.float32] = embedding_BD.float().cpu().numpy()
        return out

    watched = (meter or LengthMeter()).watch(embed, flip)
    blocks = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    out_ND: NDArray[np.float32] | None = None
    with evaluation_mode(network):
        for start, end, embedding_BD in embedded_blocks(watched, load, blocks):
            if out_ND is None:
                out_ND = np.empty((n, embedding_BD.shape[1]), np.float32)
            out_ND[start:end] = embedding_BD
            if end < n and is_stopping():
                raise Stopped
    return np.empty((0, 0), np.float32) if out_ND is None else out_ND
