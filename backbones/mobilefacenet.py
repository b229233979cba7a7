"""MobileFaceNet: inverted bottlenecks and a depthwise convolution in place of global pooling.

Source: Chen et al., "MobileFaceNets", arXiv 1804.07573, in the widths of insightface,
``recognition/arcface_torch/backbones/mobilefacenet.py``, whose parameter names, order and shapes it keeps:
published weights load with ``strict=True``. It differs from it in these points: ``dropout`` acts before the
linear layer (there it is not an option); the 1x1 convolution before the projection belongs to the half-precision
part; there is no ``norm_output``.

Shapes: B batch, D embedding size, C and H x W channels and size of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones.base import Backbone
from backbones.prelu import PReLU

HEAD_CHANNELS = 512


class Stack(nn.Module):
    """Modules in a row, under the name ``layers`` that published weights have at every level."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """Pass ``x`` through every module in turn."""
        return self.layers(x)  # type: ignore[no-any-return]


class ResidualStack(Stack):
    """A stack whose input is added to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + super().forward(x)


class MobileFaceNet(Backbone):
    """Stem, four groups of inverted bottlenecks, a 1x1 convolution, and a depthwise 7x7 projection.

    Args:
        blocks: residual bottlenecks at 56x56, 28x28, 14x14 and 7x7. A first entry of 1 means one grouped
            convolution instead.
        scale: multiplies the published widths of 64 and 128; the inner widths of the bottlenecks stay.
        num_features: D.
        dropout: probability of zeroing an input of the linear layer, in training.
        amp_dtype: autocast type of everything before the projection; None for float32.
        gradient_checkpointing: keep the bottlenecks' inputs alone for backward.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (1, 4, 6, 2),
        scale: int = 2,
        num_features: int = 512,
        dropout: float = 0.0,
        amp_dtype: torch.dtype | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(amp_dtype, gradient_checkpointing)
        narrow, wide = 64 * scale, 128 * scale
        first: nn.Module
        if blocks[0] == 1:
            first = _conv(narrow, narrow, 3, groups=64)
        else:
            first = _residuals(narrow, 128, blocks[0])
        self.layers = nn.ModuleList(
            [
                _conv(3, narrow, 3, stride=2),  # to 56x56
                first,
                Stack(*_bottleneck(narrow, 128, narrow, stride=2)),  # to 28x28
                _residuals(narrow, 128, blocks[1]),
                Stack(*_bottleneck(narrow, 256, wide, stride=2)),  # to 14x14
                _residuals(wide, 256, blocks[2]),
                Stack(*_bottleneck(wide, 512, wide, stride=2)),  # to 7x7
                _residuals(wide, 256, blocks[3]),
            ]
        )
        self.conv_sep = _conv(wide, HEAD_CHANNELS, 1)
        self.features = Stack(
            _conv(HEAD_CHANNELS, HEAD_CHANNELS, 7, padding=0, groups=HEAD_CHANNELS, activation=False),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)),  # one entry, as the names count entries
            nn.Linear(HEAD_CHANNELS, num_features, bias=False),
            nn.BatchNorm1d(num_features),
        )
        self._init_weights()

    def _init_weights(self) -> None:
        """Kaiming normal by fan-out in convolutions and the linear layer; torch's defaults elsewhere."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def trunk(self, x: Tensor) -> Tensor:
        """Images (B, 3, 112, 112) to (B, 512, 7, 7)."""
        for layer in self.layers:
            x = self._through(layer, x)  # (B, narrow, 56, 56) ... (B, wide, 7, 7)
        x = self.conv_sep(x)  # (B, 512, 7, 7)
        return x

    def _through(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not self.is_checkpointing_now():
            return layer(x)  # type: ignore[no-any-return]
        assert isinstance(layer, Stack)
        is_group = isinstance(layer.layers[0], ResidualStack)
        for segment in layer.layers if is_group else [layer]:
            x = self.run_segment(segment, x)
        return x

    def project(self, x: Tensor) -> Tensor:
        """(B, 512, 7, 7) to embeddings (B, D): depthwise 7x7 to (B, 512, 1, 1), flatten, linear, BN."""
        x = self.features(x)  # (B, D)
        return x


def _conv(
    in_channels: int,
    channels: int,
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    activation: bool = True,
) -> Stack:
    """Convolution, BN and, unless ``activation`` is off, PReLU; padding keeps the size if not given."""
    modules: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            channels,
            kernel,
            stride,
            padding=kernel // 2 if padding is None else padding,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(channels),
    ]
    if activation:
        modules.append(PReLU(channels))
    return Stack(*modules)


def _bottleneck(in_channels: int, inner: int, channels: int, stride: int = 1) -> tuple[Stack, Stack, Stack]:
    """1x1 to ``inner`` channels, depthwise 3x3 with the stride, 1x1 to ``channels`` without an activation."""
    return (
        _conv(in_channels, inner, 1),
        _conv(inner, inner, 3, stride, groups=inner),
        _conv(inner, channels, 1, activation=False),
    )


def _residuals(channels: int, inner: int, count: int) -> Stack:
    return Stack(*(ResidualStack(*_bottleneck(channels, inner, channels)) for _ in range(count)))
