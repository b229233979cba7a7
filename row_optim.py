"""Optimizers for the classifier's selected rows: they touch those rows and nothing else.

Shapes: S selected rows, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from partial_fc_mhs import PartialFCMHS, untouched_zeros


class RowSGD(Optimizer):
    """SGD on the selected rows of a :class:`PartialFCMHS`, in place; all other rows keep every bit.

    For a row that is selected in every step the result equals ``torch.optim.SGD``. A row that is selected rarely sees
    only its own updates: between them neither its momentum nor its weight decays. Several forwards before one step
    (gradient accumulation) add up their gradients, as ``.grad`` does.

    Args:
        head: the classifier whose rows are updated.
        lr: learning rate, at least 0.
        momentum: factor in [0, 1) on the row's previous update.
        weight_decay: added to the gradient as ``weight_decay * row``, at least 0.
        nesterov: take the step from where the momentum leads; needs momentum above 0.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        head: PartialFCMHS,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "expected lr >= 0, momentum in [0, 1) and weight_decay >= 0, "
                f"got lr={lr}, momentum={momentum}, weight_decay={weight_decay}"
            )
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__([torch.zeros(0, requires_grad=True)], defaults)
        self.param_groups[0]["params"] = head.leaves  # the list that forward fills, so that GradScaler sees the rows
        self.head = head
        self.momentum_buffer = untouched_zeros(head.weight.shape, head.weight.dtype, head.weight.device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the rows selected since the last :meth:`zero_grad`. No collective."""
        assert closure is None, "a closure would select other rows"
        head, group = self.head, self.param_groups[0]
        touched = _sum_by_row((s.rows_S, leaf.grad, leaf) for s, leaf in head.pending if leaf.grad is not None)
        if touched is None:
            return
        rows_S, grad_SD, weight_SD = touched
        grad_SD = grad_SD.add(weight_SD, alpha=group["weight_decay"])
        update_SD = grad_SD
        if group["momentum"] > 0:
            buffer_SD = self.momentum_buffer[rows_S].mul_(group["momentum"]).add_(grad_SD)
            self.momentum_buffer.index_copy_(0, rows_S, buffer_SD)
            update_SD = grad_SD.add_(buffer_SD, alpha=group["momentum"]) if group["nesterov"] else buffer_SD
        head.weight.index_copy_(0, rows_S, weight_SD.add(update_SD, alpha=-group["lr"]))
        head.visits[torch.cat([s.heads_h for s, _ in head.pending]).unique() - head.head_start] += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the selected rows and their gradients."""
        self.head.clear_pending()

    def state_dict(self) -> dict[str, Any]:
        """The settings, and the momentum as a shard that shares this optimizer's memory."""
        settings = {k: v for k, v in self.param_groups[0].items() if k != "params"}
        return {"settings": settings, "momentum_buffer": self.head.row_shard(self.momentum_buffer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.param_groups[0].update(state_dict["settings"])
        if state_dict["momentum_buffer"] is not self.momentum_buffer:
            self.momentum_buffer.copy_(state_dict["momentum_buffer"])


def _sum_by_row(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Join (rows, gradient, weight) of several forwards; a row that occurs in several has its gradients added."""
    listed = list(parts)
    if len(listed) < 2:
        return listed[0] if listed else None
    rows, grads, weights = (torch.cat(column) for column in zip(*listed, strict=True))
    rows_S, place = rows.unique(return_inverse=True)
    grad_SD = grads.new_zeros((len(rows_S), grads.shape[1])).index_add_(0, place, grads)
    weight_SD = grads.new_empty(grad_SD.shape).index_copy_(0, place, weights)  # equal rows hold equal weights
    return rows_S, grad_SD, weight_SD
