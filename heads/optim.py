"""Optimizers for the classifier's selected rows: they touch those rows and nothing else.

Shapes: S selected rows, D embedding size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from heads.arrays import CENTRES, Rows
from heads.shard import HeadShard, Pending
from utils.device import to_device


class RowOptimizer(Optimizer):
    """What both optimizers share: which rows to update, and how their state travels.

    One parameter group, whose parameters are the selected rows; ``param_groups[0]["lr"]`` is read at each step.

    Subclasses name their state arrays in ``state_names`` and define :meth:`update`.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, shard: HeadShard, settings: dict[str, Any]) -> None:
        if shard.pending or shard.has_announced:
            raise ValueError(
                "make the optimizer before the first forward or prefetch: its state travels with the heads"
            )
        super().__init__([{"params": []}], settings)
        self.param_groups[0]["params"] = shard.leaves  # the list that forward fills, so that GradScaler sees the rows
        self.shard = shard
        for name in self.state_names:
            shard.storage.arrays.add(name)

    def update(self, rows: Rows, grad_SD: Tensor, step_S1: Tensor) -> None:
        """Change the centres and their state, ``rows``, in place.

        Args:
            rows: (S, D) for each array.
            grad_SD: the gradient; may be overwritten.
            step_S1: (S, 1) int32, updates of the row's head including this one.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the rows selected since the last :meth:`zero_grad`. No collective."""
        assert closure is None, "a closure would select other rows"
        pending = [p for p in self.shard.pending if p.leaf_SD.grad is not None]
        if not pending:
            return
        heads_h, classes_S, rows, grad_SD = _joined(pending)
        self.update(rows, grad_SD, self.shard.updates_of(classes_S).unsqueeze(1) + 1)
        self.shard.storage.store(heads_h, rows)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the selected rows and their gradients."""
        self.shard.clear_pending()

    def state_dict(self) -> dict[str, Any]:
        """The settings. The state of the rows lies in the shard's storage, which checkpoints save."""
        return {k: v for k, v in self.param_groups[0].items() if k != "params"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.param_groups[0].update(state_dict)


class RowSGD(RowOptimizer):
    """SGD on the selected rows of a :class:`HeadShard`, in place; all other rows stay bit-identical.

    For a row that is selected in every step the result equals ``torch.optim.SGD``. A row that is selected rarely sees
    only its own updates: between them neither its momentum nor its weight decays. Several forwards before one step
    (gradient accumulation) add up their gradients, as ``.grad`` does.

    Args:
        shard: whose rows are updated.
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
        shard: HeadShard,
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
        super().__init__(shard, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def update(self, rows: Rows, grad_SD: Tensor, step_S1: Tensor) -> None:
        """See :meth:`RowOptimizer.update`."""
        group, weight_SD, buffer_SD = self.param_groups[0], rows[CENTRES], rows["momentum_buffer"]
        if group["weight_decay"]:
            grad_SD.add_(weight_SD, alpha=group["weight_decay"])
        buffer_SD.mul_(group["momentum"]).add_(grad_SD)
        update_SD = grad_SD.add_(buffer_SD, alpha=group["momentum"]) if group["nesterov"] else buffer_SD
        weight_SD.add_(update_SD, alpha=-group["lr"])


class RowAdamW(RowOptimizer):
    """AdamW on the selected rows of a :class:`HeadShard`, in place, with a step count for each head.

    For a row that is selected in every step the result equals ``torch.optim.AdamW``. A row that is selected rarely
    sees only its own updates: its averages and its decay pause between them, and the bias correction counts its own
    head's updates, not the run's.

    Args:
        shard: whose rows are updated.
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
        shard: HeadShard,
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
        super().__init__(shard, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, rows: Rows, grad_SD: Tensor, step_S1: Tensor) -> None:
        """See :meth:`RowOptimizer.update`."""
        group, weight_SD = self.param_groups[0], rows[CENTRES]
        beta1, beta2 = group["betas"]
        correction1_S1 = (1 - beta1 ** step_S1.double()).to(grad_SD.dtype)
        correction2_S1 = (1 - beta2 ** step_S1.double()).to(grad_SD.dtype)
        average_SD = rows["exp_avg"].lerp_(grad_SD, 1 - beta1)
        square_SD = rows["exp_avg_sq"].mul_(beta2).addcmul_(grad_SD, grad_SD, value=1 - beta2)
        root_SD = square_SD.sqrt().div_(correction2_S1.sqrt_()).add_(group["eps"])
        weight_SD.mul_(1 - group["lr"] * group["weight_decay"])
        weight_SD.sub_(average_SD.div(root_SD).mul_(group["lr"] / correction1_S1))


def _joined(pending: list[Pending]) -> tuple[Tensor, Tensor, Rows, Tensor]:
    """Heads, classes, their rows and gradient; rows in several forwards have their gradients added."""
    if len(pending) == 1:
        (one,) = pending
        assert one.leaf_SD.grad is not None
        values = {**one.rows, CENTRES: one.leaf_SD.detach()}
        return one.selection.heads_h, one.selection.classes_S, values, one.leaf_SD.grad
    classes_S, place = torch.cat([p.selection.classes_S for p in pending]).unique(return_inverse=True)
    grad_SD: Tensor | None = None
    values = {}
    done = 0
    for p in pending:
        assert p.leaf_SD.grad is not None
        there = to_device(place[done : done + len(p.selection.classes_S)], p.leaf_SD.device)
        done += len(there)
        if grad_SD is None:
            grad_SD = p.leaf_SD.new_zeros((len(classes_S), p.leaf_SD.shape[1])).detach()
            values = {name: torch.empty_like(grad_SD) for name in p.rows}
        grad_SD.index_add_(0, there, p.leaf_SD.grad)
        for name, value in p.rows.items():
            values[name].index_copy_(0, there, value.detach())  # equal rows hold equal values
    assert grad_SD is not None
    return torch.cat([p.selection.heads_h for p in pending]).unique(), classes_S, values, grad_SD
