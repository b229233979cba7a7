"""AdaFace: a margin that follows image quality, read off the length of the embedding."""

import math

import torch
from torch import Tensor

from losses.margin import Margin

_EPS = 1e-3  # keeps cosines and angles off the ends of their range, and the divisor off 0
_SHORTEST, _LONGEST = 1e-3, 100.0  # lengths are clipped to this range


class AdaFace(Margin):
    """Quality-adaptive margin: part on the angle, part on the cosine.

    Equations, for the target angle theta and the embedding's length n, clipped to [0.001, 100]:
        z = clip(h (n - mu) / (sigma + eps), -1, 1)        the image's quality, without gradient
        cos(clip(theta - m z, eps, pi - eps)) - (m + m z)  replaces cos(theta)
        mu    <- a mean(n) + (1 - a) mu                    in :meth:`observe`, from mu = 20
        sigma <- a std(n) + (1 - a) sigma                  the same, from sigma = 100, std over N - 1
    with eps = 0.001 and a = ``t_alpha``. At z = -1 it is ArcFace, at z = 0 CosFace. The target cosine is clipped to
    [eps - 1, 1 - eps] first, so the derivative is finite, and 0 where one of the clips holds.

    Source: Kim et al., AdaFace, CVPR 2022, section 3 (g_angle, g_add and the norm's z-score); reference: ``AdaFace``
    in head.py of github.com/mk-minchul/AdaFace, commit 9cb9816. Differs from it in that mu and sigma see the batch of
    all ranks, not each rank's own, and only in training; that a batch of one row, or one with a NaN, leaves them
    unchanged; and that cosines with other classes are not clipped.

    Args:
        scale: the factor on all logits, above 0.
        margin: m, in [0, 1).
        h: how fast quality grows with length, above 0; at 0.333, three deviations reach the ends.
        t_alpha: a, the weight of one batch in mu and sigma, in [0, 1].

    Raises:
        ValueError: a value outside its range.
    """

    needs_norms = True
    batch_mean: Tensor  # mu, a scalar
    batch_std: Tensor  # sigma, a scalar

    def __init__(self, scale: float = 64.0, margin: float = 0.4, h: float = 0.333, t_alpha: float = 0.01) -> None:
        super().__init__(scale)
        if not 0 <= margin < 1:
            raise ValueError(f"margin of AdaFace must be in [0, 1), got {margin}")
        if not 0 < h < math.inf:
            raise ValueError(f"h must be above 0 and finite, got {h}")
        if not 0 <= t_alpha <= 1:
            raise ValueError(f"t_alpha must be in [0, 1], got {t_alpha}")
        self.margin, self.h, self.t_alpha = float(margin), float(h), float(t_alpha)
        self.register_buffer("batch_mean", torch.tensor(20.0))
        self.register_buffer("batch_std", torch.tensor(100.0))

    @torch.no_grad()
    def observe(self, targets_N: Tensor, norms_N: Tensor | None) -> None:
        """Move mu and sigma towards this batch, see :meth:`Margin.observe`."""
        if norms_N is None or len(norms_N) < 2:
            return
        lengths_N = norms_N.clamp(_SHORTEST, _LONGEST)
        mean, std = lengths_N.mean(), lengths_N.std()
        for buffer, value in ((self.batch_mean, mean), (self.batch_std, std)):
            moved = self.t_alpha * value + (1 - self.t_alpha) * buffer
            # an overflow that the optimizer skips must not stay here forever
            buffer.copy_(torch.where(mean.isfinite(), moved, buffer))

    @torch.no_grad()
    def quality(self, norms: Tensor) -> Tensor:
        """The quality z in [-1, 1] of embeddings of these lengths, any shape; without gradient."""
        lengths = norms.clamp(_SHORTEST, _LONGEST)
        std = self.batch_std.to(lengths.dtype)
        return ((lengths - self.batch_mean) / (std + _EPS) * self.h).clamp(-1, 1)

    def shift(self, target: Tensor, norms: Tensor | None) -> Tensor:
        """See :meth:`Margin.shift`.

        Raises:
            ValueError: ``norms`` is None.
        """
        if norms is None:
            raise ValueError("AdaFace needs norms_N, the lengths of the embeddings before normalisation; got None")
        mz = self.margin * self.quality(norms).to(target.dtype)
        theta = target.clamp(_EPS - 1, 1 - _EPS).arccos()
        return torch.cos((theta - mz).clamp(_EPS, math.pi - _EPS)) - (self.margin + mz)
