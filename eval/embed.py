"""Many images through one backbone: decoding in background threads, results in order, flat memory.

Shapes: N images, B batch, D embedding size, H height, W width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.images import to_network_input

LoadBatch = Callable[[int, int], NDArray[np.uint8]]


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


def _batches(load: LoadBatch, n: int, batch_size: int, threads: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Yield (start, end, images) in order, while ``threads`` threads load the batches that come next."""
    blocks = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    pool = ThreadPoolExecutor(threads)
    ahead: deque[tuple[int, int, Future[NDArray[np.uint8]]]] = deque()
    try:
        for start, end in blocks[: threads + 1]:
            ahead.append((start, end, pool.submit(load, start, end)))
        for following in range(len(ahead), len(blocks) + len(ahead)):
            start, end, future = ahead.popleft()
            images = future.result()
            if following < len(blocks):
                ahead.append((*blocks[following], pool.submit(load, *blocks[following])))
            yield start, end, images
    finally:
        pool.shutdown(cancel_futures=True)


def embed_batches(
    backbone: nn.Module,
    load: LoadBatch,
    n: int,
    device: torch.device,
    batch_size: int,
    flip: bool = True,
    threads: int = 1,
    progress: str = "",
) -> NDArray[np.float32]:
    """Embed ``n`` images, each as itself plus its mirror image.

    Host memory beyond the result: ``threads + 2`` batches of uint8 images.

    Args:
        backbone: (B, 3, H, W) to (B, D); a DistributedDataParallel wrapper is looked through, because its
            forward talks to the other ranks. Its mode is restored afterwards.
        load: (start, end) to (end - start, H, W, 3) uint8 RGB; called from other threads.
        n: number of images.
        device: where ``backbone`` lives.
        batch_size: images per forward pass; with ``flip`` there are two passes.
        flip: add the embedding of the mirror image.
        threads: background threads that load.
        progress: label of a progress bar, "" for none.

    Returns:
        (N, D), sums, not normalised; (0, 0) without images.

    Raises:
        ValueError: ``batch_size`` or ``threads`` below 1, or whatever ``load`` raises.
    """
    if batch_size < 1 or threads < 1:
        raise ValueError(f"batch_size and threads must be at least 1, got {batch_size} and {threads}")
    if isinstance(backbone, DistributedDataParallel):
        backbone = backbone.module
    out_ND: NDArray[np.float32] | None = None
    with evaluation_mode(backbone), tqdm(total=n, desc=progress, unit="img", disable=not progress) as bar:
        for start, end, images_BHW3 in _batches(load, n, batch_size, threads):
            x: Tensor = to_network_input(torch.from_numpy(images_BHW3).to(device))  # (B, 3, H, W)
            embedding_BD = backbone(x).float()
            if flip:
                embedding_BD = embedding_BD + backbone(x.flip(-1)).float()
            if out_ND is None:
                out_ND = np.empty((n, embedding_BD.shape[1]), np.float32)
            out_ND[start:end] = embedding_BD.cpu().numpy()
            bar.update(end - start)
    return np.empty((0, 0), np.float32) if out_ND is None else out_ND
