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


class RowOptimizer(Optimizer):
    """What both optimizers share: which rows there are to update, and their state.

    Subclasses name their per-row state buffers in ``state_names`` and define :meth:`update`.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, head: PartialFCMHS, defaults: dict[str, Any]) -> None:
        super().__init__([torch.zeros(0, requires_grad=True)], defaults)
        self.param_groups[0]["params"] = head.leaves  # the list that forward fills, so that GradScaler sees the rows
        self.head = head
        self.buffers = {
            name: untouched_zeros(head.weight.shape, head.weight.dtype, head.weight.device)
            for name in self.state_names
        }

    def update(self, rows_S: Tensor, grad_SD: Tensor, weight_SD: Tensor, step_S1: Tensor) -> Tensor:
        """The rows' new values, after their state has been updated in place.

        Args:
            rows_S: (S,) int64, rows of the head's weight.
            grad_SD: their gradient; may be overwritten.
            weight_SD: their values; not modified.
            step_S1: (S, 1) float32, updates of the row including this one.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the rows selected since the last :meth:`zero_grad`. No collective."""
        assert closure is None, "a closure would select other rows"
        head = self.head
        touched = _sum_by_row(
            (s.rows_S, leaf.grad, leaf.detach()) for s, leaf in head.pending if leaf.grad is not None
        )
        if touched is None:
            return
        rows_S, grad_SD, weight_SD = touched
        head.visits[torch.cat([s.heads_h for s, _ in head.pending]).unique() - head.head_start] += 1
        step_S1 = head.visits[head.local_head(rows_S)].unsqueeze(1).float()
        head.weight.index_copy_(0, rows_S, self.update(rows_S, grad_SD, weight_SD, step_S1))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the selected rows and their gradients."""
        self.head.clear_pending()

    def state_dict(self) -> dict[str, Any]:
        """The settings, and the state as shards that share this optimizer's memory."""
        settings = {k: v for k, v in self.param_groups[0].items() if k != "params"}
        return {"settings": settings, **{name: self.head.row_shard(b) for name, b in self.buffers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.param_groups[0].update(state_dict["settings"])
        for name, buffer in self.buffers.items():
            if state_dict[name] is not buffer:
                buffer.copy_(state_dict[name])


class RowSGD(RowOptimizer):
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

    state_names = ("momentum_buffer",)

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
        super().__init__(head, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def update(self, rows_S: Tensor, grad_SD: Tensor, weight_SD: Tensor, step_S1: Tensor) -> Tensor:
        """See :meth:`RowOptimizer.update`."""
        group = self.param_groups[0]
        grad_SD.add_(weight_SD, alpha=group["weight_decay"])
        buffer_SD = self.buffers["momentum_buffer"][rows_S].mul_(group["momentum"]).add_(grad_SD)
        self.buffers["momentum_buffer"].index_copy_(0, rows_S, buffer_SD)
        update_SD = grad_SD.add_(buffer_SD, alpha=group["momentum"]) if group["nesterov"] else buffer_SD
        return weight_SD.add(update_SD, alpha=-group["lr"])


class RowAdamW(RowOptimizer):
    """AdamW on the selected rows of a :class:`PartialFCMHS`, in place, with a step count for each head.

    For a row that is selected in every step the result equals ``torch.optim.AdamW``. A row that is selected rarely
    sees only its own updates: its averages and its decay rest between them, and the bias correction counts its own
    head's updates, not the run's.

    Args:
        head: the classifier whose rows are updated.
        lr: learning rate, at least 0.
        betas: decay factors in [0, 1) of the averages of the gradient and of its square.
        eps: added to the root of the second average, at least 0.
        weight_decay: the row is multiplied by ``1 - lr * weight_decay`` first, at least 0.

    Raises:
        ValueError: a value outside its range.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        head: PartialFCMHS,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        if lr < 0 or not all(0 <= beta < 1 for beta in betas) or eps < 0 or weight_decay < 0:
            raise ValueError(
                "expected lr >= 0, betas in [0, 1), eps >= 0 and weight_decay >= 0, "
                f"got lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}"
            )
        super().__init__(head, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, rows_S: Tensor, grad_SD: Tensor, weight_SD: Tensor, step_S1: Tensor) -> Tensor:
        """See :meth:`RowOptimizer.update`."""
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        correction1_S1 = (1 - beta1 ** step_S1.double()).to(weight_SD.dtype)
        correction2_S1 = (1 - beta2 ** step_S1.double()).to(weight_SD.dtype)
        average_SD = self.buffers["exp_avg"][rows_S].lerp_(grad_SD, 1 - beta1)
        square_SD = self.buffers["exp_avg_sq"][rows_S].mul_(beta2).addcmul_(grad_SD, grad_SD, value=1 - beta2)
        self.buffers["exp_avg"].index_copy_(0, rows_S, average_SD)
        self.buffers["exp_avg_sq"].index_copy_(0, rows_S, square_SD)
        root_SD = square_SD.sqrt_().div_(correction2_S1.sqrt_()).add_(group["eps"])
        rate_S1 = group["lr"] / correction1_S1
        return weight_SD.mul(1 - group["lr"] * group["weight_decay"]).sub_(rate_S1 * average_SD.div_(root_SD))


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
