"""MagFace: a margin that grows with the length of the embedding, and a reward for length."""

import math

import torch
from torch import Tensor

from losses.cosine import add_angle
from losses.margin import Margin


class MagFace(Margin):
    """Magnitude-aware angular margin with its true derivative, in the cosine and in the length.

    Equations, for the target cosine c = cos(theta) and the embedding's length a, clipped to [l_a, u_a]:
        m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)
        cos(theta + m(a))           where c > cos(pi - m(a)), that is theta < pi - m(a)
        c - m(a) sin(pi - m(a))     elsewhere, which keeps it falling in theta
    With ``easy_margin``: cos(theta + m(a)) where c > 0, and c itself elsewhere.
        lambda_g (a / u_a^2 + 1 / a)    the row's :meth:`penalty`, lowest at a = u_a
    Both pass a gradient to the length within [l_a, u_a] and none outside. At |c| = 1 the sine counts as constant at
    sqrt(eps), as in :class:`losses.ArcFace`.

    Source: Meng et al., MagFace, CVPR 2021, section 3; reference: ``MagLinear`` and ``MagLoss`` in
    models/magface.py of github.com/IrvingMeng/MagFace, commit 719001a. Differs from it in the finite derivative at
    |c| = 1. Its own trainers set easy_margin, which leaves target cosines up to 0 without margin.
    Its lambda_g is 20 in the trainer's defaults and 35 in run/run.sh; the trainer warns of values below
    s (u_m - l_m) / (u_a - l_a) u_a^2 l_a^2 / (u_a^2 - l_a^2), which is 22.6 for the values here.

    Args:
        scale: the factor on all logits, above 0.
        l_a: the length below which margin and penalty are constant, above 0.
        u_a: the same at the upper end, above ``l_a``.
        l_m: the margin at ``l_a`` in radians, at least 0.
        u_m: the margin at ``u_a`` in radians, from ``l_m`` to below pi.
        lambda_g: the weight of the penalty, at least 0.
        easy_margin: no margin for target cosines up to 0.

    Raises:
        ValueError: a value outside its range.
    """

    needs_norms = True

    def __init__(
        self,
        scale: float = 64.0,
        l_a: float = 10.0,
        u_a: float = 110.0,
        l_m: float = 0.45,
        u_m: float = 0.8,
        lambda_g: float = 20.0,
        easy_margin: bool = False,
    ) -> None:
        super().__init__(scale)
        if not 0 < l_a < u_a < math.inf:
            raise ValueError(f"the lengths need 0 < l_a < u_a, got l_a={l_a} and u_a={u_a}")
        if not 0 <= l_m <= u_m < math.pi:
            raise ValueError(f"the margins need 0 <= l_m <= u_m < pi radians, got l_m={l_m} and u_m={u_m}")
        if not 0 <= lambda_g < math.inf:
            raise ValueError(f"lambda_g must be at least 0 and finite, got {lambda_g}")
        self.l_a, self.u_a, self.l_m, self.u_m = float(l_a), float(u_a), float(l_m), float(u_m)
        self.lambda_g, self.easy_margin = float(lambda_g), bool(easy_margin)

    def margin_rad(self, norms: Tensor) -> Tensor:
        """The margin m(a) in radians of embeddings of these lengths, any shape."""
        slope = (self.u_m - self.l_m) / (self.u_a - self.l_a)
        return self.l_m + slope * (norms.clamp(self.l_a, self.u_a) - self.l_a)

    def shift(self, target: Tensor, norms: Tensor | None) -> Tensor:
        """See :meth:`Margin.shift`.

        Raises:
            ValueError: ``norms`` is None.
        """
        if norms is None:
            raise ValueError("MagFace needs norms_N, the lengths of the embeddings before normalisation; got None")
        m = self.margin_rad(norms).to(target.dtype)
        cos_m, sin_m = m.cos(), m.sin()  # cos(pi - m) = -cos(m), sin(pi - m) = sin(m)
        threshold, elsewhere = (torch.zeros_like(m), target) if self.easy_margin else (-cos_m, target - m * sin_m)
        return torch.where(target > threshold, add_angle(target, cos_m, sin_m), elsewhere)

    def penalty(self, norms_N: Tensor) -> Tensor:
        """The weighted penalty lambda_g g(a) of each row (N,), see :meth:`Margin.penalty`."""
        lengths_N = norms_N.clamp(self.l_a, self.u_a)
        return self.lambda_g * (lengths_N / self.u_a**2 + lengths_N.reciprocal())
