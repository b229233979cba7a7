"""What every backbone shares: its input, the check of it, and which part runs in which precision.

Shapes: B batch, H height, W width, D embedding size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from backbones.checkpointing import run_checkpointed

FACE_SIZE = 112  # side of an aligned face in pixels
INPUT_SHAPE = (3, FACE_SIZE, FACE_SIZE)  # channels, height, width of an aligned face


class Backbone(nn.Module):
    """A network in two parts: ``trunk``, which may run in half precision, and ``project``, which never does.

    The projection ends in the embedding that cosines and margins are computed from, so it keeps the precision of
    its parameters (float32 in training) under any autocast, the caller's own included.

    Args:
        amp_dtype: autocast type of the trunk; None leaves the trunk to the caller's autocast, if any.
        gradient_checkpointing: whether the trunk keeps the inputs of its segments alone for backward.
        image_size: side in pixels of the images that it takes.
    """

    def __init__(
        self,
        amp_dtype: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        image_size: int = FACE_SIZE,
    ) -> None:
        super().__init__()
        self.amp_dtype = amp_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.run_segment = run_checkpointed  # a plan of memory puts a count in its place
        self.input_shape = (3, image_size, image_size)

    def is_checkpointing_now(self) -> bool:
        """Whether segments are to be run by ``run_segment``: in training alone."""
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def trunk(self, x: Tensor) -> Tensor:
        """Images (B, 3, 112, 112) to a feature map (B, channels, height, width), or tokens (B, N, channels)."""
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """The trunk's feature map to embeddings (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of aligned faces.

        Args:
            x: (B, 3, 112, 112), or of the network's own ``input_shape``, floating point in [-1, 1], contiguous or
                channels-last.

        Returns:
            (B, D) embeddings, not normalised, in the type of the parameters (float32).

        Raises:
            ValueError: another shape, or integers. Only the shape and type are checked, never a value, so
                the check does not wait for the device.
        """
        if x.shape[1:] != self.input_shape or not x.is_floating_point():
            raise ValueError(_explain_input(x, self.input_shape))
        device_type = x.device.type
        trunk_precision: AbstractContextManager[object] = (
            torch.autocast(device_type, dtype=self.amp_dtype) if self.amp_dtype else nullcontext()
        )
        with trunk_precision:
            x = self.trunk(x)  # (B, channels, height, width) in amp_dtype, or tokens
        with torch.autocast(device_type, enabled=False):
            return self.project(x.to(next(self.parameters()).dtype))  # (B, D)


def _explain_input(x: Tensor, input_shape: tuple[int, int, int]) -> str:
    expected = f"expected images of shape (B, {', '.join(map(str, input_shape))}), floating point in [-1, 1]"
    found = f"found {tuple(x.shape)} {x.dtype}"
    if not x.is_floating_point():
        cure = "scale pixels first: (x / 255 - 0.5) / 0.5"
    elif tuple(x.shape) == input_shape:
        cure = "add the batch dimension: x[None]"
    elif x.ndim == 4 and x.shape[-1] == 3:
        cure = "put the channels first: x.permute(0, 3, 1, 2)"
    else:
        cure = f"align the faces by their landmarks, or resize them, to {input_shape[1]}x{input_shape[2]} RGB"
    return f"{expected}; {found}; {cure}"


def to_network_input(images_BHW3: Tensor) -> Tensor:
    """Turn uint8 RGB images into what every backbone here takes: ``(x / 255 - 0.5) / 0.5``.

    Args:
        images_BHW3: (B, H, W, 3) uint8 on any device.

    Returns:
        (B, 3, H, W) float32 in [-1, 1] on the same device, channels-last in memory.
    """
    assert images_BHW3.dtype == torch.uint8
    assert images_BHW3.shape[-1] == 3
    return images_BHW3.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)
