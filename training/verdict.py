"""Whether a step counts: what was computed in it is finite on every rank.

On a GPU the answer stays there. Optimizers and counters take it as a tensor, and the host, which has work in plenty
queued up by then, reads it a step later; so it never waits for the device to run empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class Evidence:
    """What a step's verdict rests on; scalars on the device, which are read where a step does not count."""

    step: int
    rate: float
    scale: Tensor  # of the loss
    loss: Tensor
    names: list[str]  # of the backbone's parameters with a gradient
    norms_P: Tensor  # of these gradients
    norm: Tensor  # of them together
    rows: Tensor  # a sum over the gradients of the classifier's rows
    statistics: Tensor | float  # their largest magnitude
    name_statistic: Callable[[], str | None]

    def is_bad(self) -> Tensor:
        """Whether something is not finite on this rank, a scalar on the device."""
        return ~(self.norm + self.rows + self.loss + self.statistics).isfinite()

    def in_words(self) -> str:
        """What is not finite on this rank, "" if all is; waits for the device."""
        if not self.loss.isfinite():
            return "the loss"
        for name, norm in zip(self.names, self.norms_P.cpu().tolist(), strict=True):
            if not math.isfinite(norm):
                return f"the gradient of {name}"
        if not self.rows.isfinite():
            return "the gradient of the classifier's rows"
        statistic = self.name_statistic()
        return f"the running statistic {statistic}" if statistic else ""


def gather_evidence(
    step: int,
    rate: float,
    scale: Tensor,
    loss: Tensor,
    grads: dict[str, Tensor],
    row_grads: list[Tensor],
    statistics: Tensor | float,
    name_statistic: Callable[[], str | None],
) -> Evidence:
    """Look at everything that a step has computed, without reading a value.

    Args:
        step: its number.
        rate: its learning rate.
        scale: the factor on its loss.
        loss: its loss.
        grads: the backbone's gradients by name.
        row_grads: those of the classifier's rows.
        statistics: the largest magnitude among the running statistics.
        name_statistic: names the running statistic that is not finite, after the verdict.
    """
    norms_P = torch.stack(torch._foreach_norm(list(grads.values()))) if grads else loss.new_zeros(0)
    return Evidence(
        step=step,
        rate=rate,
        scale=scale.clone(),
        loss=loss,
        names=list(grads),
        norms_P=norms_P,
        norm=torch.linalg.vector_norm(norms_P),
        rows=torch.stack([grad.sum() for grad in row_grads]).sum() if row_grads else loss.new_zeros(()),
        statistics=statistics,
        name_statistic=name_statistic,
    )


def step_if_good(optimizers: list[Optimizer], bad: Tensor, on_device: bool) -> None:
    """Let optimizers step, but for a step that does not count.

    Args:
        optimizers: fused ones, and that of the rows; they take the verdict as torch's gradient scaler hands it over.
        bad: the verdict, 0.0 or 1.0, a scalar where the gradients are.
        on_device: leave the verdict there; else it is read.
    """
    if not on_device:
        if not bad:
            for optimizer in optimizers:
                optimizer.step()
        return
    for optimizer in optimizers:
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
