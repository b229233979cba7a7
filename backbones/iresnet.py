"""IResNet: the residual network that face recognition uses, without bottlenecks or global pooling.

Source: insightface, ``recognition/arcface_torch/backbones/iresnet.py``; the block is that of Deng et al.,
"ArcFace", arXiv 1801.07698. Parameter names, order and shapes are insightface's, so its published weights
load with ``strict=True``; ``iresnet2060.py`` beside it is the same with gradient checkpointing, and updates the
statistics of checkpointed layers twice a step. It differs from it in these points: there is no ``pretrained``,
dilation or group option; widths and the stem's stride are arguments; the projection keeps float32 under any autocast.

Shapes: B batch, D embedding size, C and H x W channels and size of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones.base import INPUT_SHAPE, Backbone
from backbones.checkpointing import segments
from backbones.prelu import PReLU


class ResidualBlock(nn.Module):
    """BN, 3x3 conv, BN, PReLU, 3x3 conv with the stride, BN, added to the input.

    The input passes through a strided 1x1 conv and a BN of its own where its shape would not fit.

    Args:
        in_channels: C of the input.
        channels: C of the output.
        stride: H and W shrink by this factor, in the second convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)  # (B, channels, H/stride, W/stride)
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))  # (B, channels, H, W)
        out = self.bn3(self.conv2(out))  # (B, channels, H/stride, W/stride)
        return out.add_(shortcut)  # type: ignore[no-any-return]


class IResNet(Backbone):
    """Stem, four stages that each halve the size, and one linear layer over the whole last map.

    Args:
        layers: blocks in each of the four stages.
        num_features: D.
        dropout: probability of zeroing an input of the linear layer, in training.
        amp_dtype: autocast type of everything before the linear layer; None for float32.
        widths: C of each stage; the stem has the first one's. On CPU keep to multiples of 16.
        stem_stride: 1 as in the published networks (last map 7x7); 2 quarters the cost of the first layers
            (last map 4x4).
        gradient_checkpointing: keep the inputs of a few blocks together alone for backward.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_features: int = 512,
        dropout: float = 0.0,
        amp_dtype: torch.dtype | None = None,
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        stem_stride: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(amp_dtype, gradient_checkpointing)
        assert len(layers) == len(widths) == 4
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = PReLU(widths[0])
        self.layer1 = _stage(widths[0], widths[0], layers[0])
        self.layer2 = _stage(widths[0], widths[1], layers[1])
        self.layer3 = _stage(widths[1], widths[2], layers[2])
        self.layer4 = _stage(widths[2], widths[3], layers[3])
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.dropout = nn.Dropout(dropout)
        side = -(-INPUT_SHAPE[1] // (stem_stride * 2**4))  # each strided layer rounds up
        self.fc = nn.Linear(widths[3] * side * side, num_features)
        self.features = nn.BatchNorm1d(num_features)
        self._init_weights()

    def _init_weights(self) -> None:
        """Convolutions from N(0, 0.1); the rest keeps torch's defaults; the last scale is fixed at 1."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)
        self.features.weight.requires_grad_(False)

    def trunk(self, x: Tensor) -> Tensor:
        """Images (B, 3, 112, 112) to (B, widths[3], 7, 7), or 4x4 with ``stem_stride=2``."""
        x = self.prelu(self.bn1(self.conv1(x)))  # (B, widths[0], 112, 112)
        x = self._through(self.layer1, x)  # (B, widths[0], 56, 56)
        x = self._through(self.layer2, x)  # (B, widths[1], 28, 28)
        x = self._through(self.layer3, x)  # (B, widths[2], 14, 14)
        x = self._through(self.layer4, x)  # (B, widths[3], 7, 7)
        x = self.bn2(x)  # (B, widths[3], 7, 7)
        return x

    def _through(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        if not self.is_checkpointing_now():
            return stage(x)  # type: ignore[no-any-return]
        for segment in segments(stage):
            x = self.run_segment(segment, x)
        return x

    def project(self, x: Tensor) -> Tensor:
        """(B, widths[3], 7, 7) to embeddings (B, D)."""
        x = self.dropout(x.flatten(1))  # (B, widths[3] * 49)
        x = self.features(self.fc(x))  # (B, D)
        return x


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, stride=2)
    return nn.Sequential(first, *(ResidualBlock(channels, channels) for _ in range(blocks - 1)))
