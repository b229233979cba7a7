"""CurricularFace: ArcFace, with hard negatives weighted by how far training has come."""

import math

import torch
from torch import Tensor

from losses.arcface import ArcFace
from losses.cosine import add_angle


class CurricularFace(ArcFace):
    """ArcFace on the target, and a curriculum on the other classes.

    Equations, for the target angle theta_y, another class's cosine c, and margin m:
        cos(theta_y + m)    replaces the target cosine, with the fallback of :class:`losses.ArcFace` past pi - m
        c                   stays where c <= cos(theta_y + m)
        c (t + c)           replaces it elsewhere: a hard negative
        t <- a mean(cos(theta_y)) + (1 - a) t    in :meth:`observe`, from t = 0
    with a = ``momentum``. Neither t nor the comparison, which has no fallback, passes a gradient.

    c (t + c) starts below or above c, so a row's largest cosine need not have its largest logit: :meth:`highest` is
    an upper bound. It is exact where cos(theta_y + m) is in [0, 1] and the fallback is not used, or where the row has
    no hard negative. Elsewhere it may be too high by up to ``scale * (1 - t / 2)^2``, reached only near theta_y =
    pi - m; at the start of training (theta_y = pi / 2, t = 0, m = 0.5) by up to 0.23 ``scale``. float32
    exponentials bear that up to a scale of 87 where t is not below 0.

    Source: Huang et al., CurricularFace, CVPR 2020, section 3 (T, N and the moving average, equation 9); reference:
    ``CurricularFace`` in head/metrics.py of github.com/HuangYG123/CurricularFace, commit d380265. Differs from it in
    the finite derivative at |cos(theta_y)| = 1, in that t moves in training only, and in that an empty batch, or one
    with a NaN, leaves t unchanged.

    Args:
        scale: the factor on all logits, above 0.
        margin: the angle m in radians, in [0, pi).
        momentum: a, the weight of one batch in t, in [0, 1].

    Raises:
        ValueError: a value outside its range.
    """

    t: Tensor  # a scalar

    def __init__(self, scale: float = 64.0, margin: float = 0.5, momentum: float = 0.01) -> None:
        super().__init__(scale, margin)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.momentum = float(momentum)
        self.register_buffer("t", torch.tensor(0.0))

    @torch.no_grad()
    def observe(self, targets_N: Tensor, norms_N: Tensor | None) -> None:
        """Move t towards the batch's mean target cosine, see :meth:`Margin.observe`."""
        moved = self.momentum * targets_N.mean() + (1 - self.momentum) * self.t
        # an overflow that the optimizer skips must not stay here forever
        self.t.copy_(torch.where(moved.isfinite(), moved, self.t))

    @torch.no_grad()
    def limit(self, targets: Tensor) -> Tensor:
        """cos(theta_y + m), above which another class's cosine counts as hard; any shape."""
        return add_angle(targets, math.cos(self.margin), math.sin(self.margin))

    def bend(self, others: Tensor, targets: Tensor, norms: Tensor | None) -> Tensor:
        """Weight the hard negatives, see :meth:`Margin.bend`; unlike there, it may fall at the limit."""
        return torch.where(others > self.limit(targets), others * (self.t + others), others)

    def highest(self, others_N: Tensor, targets_N: Tensor, norms_N: Tensor | None) -> Tensor:
        """An upper bound: see the class.

        No cosine is above c = ``others_N``. If c is hard, those up to the limit give at most the limit, and those
        between it and c at most what one end of that range gives, c (t + c) being convex.
        """
        highest_N = super().highest(others_N, targets_N, norms_N)
        limit_N = self.limit(targets_N)
        ends_N = torch.maximum(limit_N, limit_N * (self.t + limit_N)).mul_(self.scale)
        return torch.where(others_N > limit_N, torch.maximum(highest_N, ends_N), highest_N)
