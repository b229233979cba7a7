"""PReLU whose backward on a CPU is made of vector operations: torch's own goes through the numbers one at a time.

Shapes: B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """nn.PReLU, with the same numbers to the bit and the same parameters; elsewhere than on a CPU it is nn.PReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape: x above 0, the channel's slope times x elsewhere."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        is_trained = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not is_trained or x.device.type != "cpu" or x.dtype != dtype or torch.compiler.is_compiling():
            return super().forward(x)
        return _CPUPReLU.apply(x, self.weight.to(dtype))  # type: ignore[no-any-return]


class _CPUPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_C)
        return torch.prelu(x, weight_C)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_C = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, x, 0)  # the gradient where x > 0, else 0
        below = grad - above
        grad_x = above.addcmul_(below, weight_C.view(-1, *[1] * (x.ndim - 2)))
        return grad_x, below.mul_(x).sum([dim for dim in range(x.ndim) if dim != 1])
