"""Cosines of embeddings with class centres, without ever holding the normalised centres; cosines of sums of angles.

Shapes: N rows (embeddings), S columns (centres), D embedding size.
"""

from typing import Any

import torch
from torch import Tensor


class _Cosines(torch.autograd.Function):
    """cos = x w^T / |w|, with d cos / d w = (x / |w|) - w cos / |w|^2 summed into one pass over the centres."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, centres_SD: Tensor) -> Tensor:
        length_S = torch.linalg.vector_norm(centres_SD, dim=1)
        inverse_S = length_S.clamp(min=torch.finfo(centres_SD.dtype).tiny ** 0.5).reciprocal_()
        short_SD = centres_SD.to(x_ND.dtype)
        cosines_NS = (x_ND @ short_SD.T).to(centres_SD.dtype).mul_(inverse_S)
        ctx.save_for_backward(x_ND, centres_SD, short_SD, inverse_S, cosines_NS)
        return cosines_NS

    @staticmethod
    def backward(ctx: Any, grad_NS: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_ND, centres_SD, short_SD, inverse_S, cosines_NS = ctx.saved_tensors
        scaled_NS = (grad_NS * inverse_S).to(x_ND.dtype)
        grad_x_ND = grad_SD = None
        if ctx.needs_input_grad[0]:
            grad_x_ND = scaled_NS @ short_SD
        if ctx.needs_input_grad[1]:
            along_S1 = ((grad_NS * cosines_NS).sum(0) * inverse_S.square()).unsqueeze(1)
            grad_SD = (scaled_NS.T @ x_ND).to(centres_SD.dtype).addcmul_(centres_SD, along_S1, value=-1)
        return grad_x_ND, grad_SD


def cosines(x_ND: Tensor, centres_SD: Tensor) -> Tensor:
    """Cosines of embeddings with centres.

    Args:
        x_ND: (N, D), of length 1, in the type that the products are computed in.
        centres_SD: (S, D) float32 or float64, of any length.

    Returns:
        (N, S) in the type of ``centres_SD``. A centre of length 0 has cosine 0 with everything.
    """
    return _Cosines.apply(x_ND, centres_SD)  # type: ignore[no-any-return]


def add_angle(cosine: Tensor, cos_m: float | Tensor, sin_m: float | Tensor) -> Tensor:
    """cos(theta + m) from cos(theta), cos(m) and sin(m); any shape.

    The derivative grows without bound at |cos(theta)| = 1; there the root is held at the type's epsilon, so that the
    gradient is finite.
    """
    sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
    return cosine * cos_m - sine * sin_m
