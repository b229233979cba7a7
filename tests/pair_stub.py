"""A small network and made-up pairs of faces, for tests of verification."""

import cv2
import numpy as np
import torch
from torch import nn

from embedder.batches import embed_batches
from eval.pairs.bin_file import PairSet
from eval.pairs.protocol import pair_loader


class Stub(nn.Module):
    """Embeds by a fixed projection of 8 x 8 means; batch norm and dropout tell eval mode from training.

    It computes in float64, so that its embeddings in float32 do not depend on the other images of a batch.
    """

    def __init__(self, dim=16):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(8)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(192, dim)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(dim, 192, generator=generator))
            self.fc.bias.zero_()
        self.double()

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.pool(x.double()))).flatten(1))


def face(seed, size=112):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_NEAREST)


def png(image):
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def embed_images(backbone, encoded, device, batch_size, flip=True):
    """Embed encoded images as verification during training does."""
    return embed_batches(backbone, pair_loader(encoded), len(encoded), device, batch_size, flip)


def made_set(n=20):
    """Pairs of one image with itself, and of two images, in turn."""
    images = []
    for pair in range(n):
        images += [png(face(2 * pair)), png(face(2 * pair + pair % 2))]
    return PairSet("made", images, np.arange(n) % 2 == 0)
