"""Cosines of embeddings with class centres, without ever holding the normalised centres; cosines of sums of angles.

Shapes: N rows (embeddings), S columns (centres), D embedding size.
"""

from typing import Any

import torch
from torch import Tensor


class LateCentres:
    """Centres whose gradient is computed as a step of its own in backward, after what was called since this was made.

    autograd takes the steps that are ready in the reverse order of their making: make this before the embeddings'
    exchange, and the exchange of their gradient begins before the centres' is computed.

    Args:
        centres_SD: (S, D) float32 or float64, of any length.
    """

    def __init__(self, centres_SD: Tensor) -> None:
        self.parts = _Parts(centres_SD.detach())
        self.token: Tensor = _CentresGradient.apply(centres_SD, self.parts)  # stands for the centres in autograd


class _Parts:
    """What the centres' gradient is made of. Autograd keeps it, so it must hold on to no tensor of autograd's."""

    def __init__(self, centres_SD: Tensor) -> None:
        self.centres_SD = centres_SD
        self._known: list[tuple[int, Tensor, Tensor, Tensor]] = []  # of each product with them, behind its backward

    def add(self, scaled_NS: Tensor, x_ND: Tensor, along_S1: Tensor) -> None:
        """Take what the backward that is under way knows of one product."""
        self._known.append((torch._C._current_graph_task_id(), scaled_NS, x_ND, along_S1))

    def gradient(self) -> Tensor:
        """(S, D): (x / |w|) - w cos / |w|^2, summed into one pass over the centres.

        Of this backward alone: an earlier one that stopped at the embeddings has left its parts behind.
        """
        now = torch._C._current_graph_task_id()
        known, self._known = [parts for backward, *parts in self._known if backward == now], []
        grad_SD = sum((scaled_NS.T @ x_ND for scaled_NS, x_ND, _ in known[1:]), known[0][0].T @ known[0][1])
        along_S1 = sum((along_S1 for *_, along_S1 in known[1:]), known[0][2])
        return grad_SD.to(self.centres_SD.dtype).addcmul_(self.centres_SD, along_S1, value=-1)


class _CentresGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, centres_SD: Tensor, parts: _Parts) -> Tensor:
        ctx.parts = parts
        return centres_SD.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.parts.gradient(), None


class _Cosines(torch.autograd.Function):
    """cos = x w^T / |w|."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token: Tensor, parts: _Parts) -> Tensor:
        centres_SD = parts.centres_SD
        length_S = torch.linalg.vector_norm(centres_SD, dim=1)
        inverse_S = length_S.clamp(min=torch.finfo(centres_SD.dtype).tiny ** 0.5).reciprocal_()
        short_SD = centres_SD.to(x_ND.dtype)
        cosines_NS = (x_ND @ short_SD.T).to(centres_SD.dtype).mul_(inverse_S)
        ctx.save_for_backward(x_ND, short_SD, inverse_S, cosines_NS)
        ctx.parts = parts
        return cosines_NS

    @staticmethod
    def backward(ctx: Any, grad_NS: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_ND, short_SD, inverse_S, cosines_NS = ctx.saved_tensors
        scaled_NS = (grad_NS * inverse_S).to(x_ND.dtype)
        grad_x_ND = scaled_NS @ short_SD if ctx.needs_input_grad[0] else None
        token = None
        if ctx.needs_input_grad[1]:
            along_S1 = ((grad_NS * cosines_NS).sum(0) * inverse_S.square()).unsqueeze(1)
            ctx.parts.add(scaled_NS, x_ND, along_S1)
            token = inverse_S.new_zeros(())
        return grad_x_ND, token, None


def cosines(x_ND: Tensor, centres: Tensor | LateCentres) -> Tensor:
    """Cosines of embeddings with centres.

    Args:
        x_ND: (N, D), of length 1, in the type that the products are computed in.
        centres: (S, D) float32 or float64, of any length; or made late.

    Returns:
        (N, S) in the type of the centres. A centre of length 0 has cosine 0 with everything.
    """
    late = centres if isinstance(centres, LateCentres) else LateCentres(centres)
    return _Cosines.apply(x_ND, late.token, late.parts)  # type: ignore[no-any-return]


def add_angle(cosine: Tensor, cos_m: float | Tensor, sin_m: float | Tensor) -> Tensor:
    """cos(theta + m) from cos(theta), cos(m) and sin(m); any shape.

    The derivative grows without bound at |cos(theta)| = 1; there the root is held at the type's epsilon, so that the
    gradient is finite.
    """
    sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
    return cosine * cos_m - sine * sin_m
