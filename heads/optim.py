"""Optimizers for the classifier's selected rows: they touch those rows and nothing else.

Between two visits of a row a dense optimizer would have let its state decay, and moved the row by it. ``idle`` says
what is made of those steps, before the row's next forward:

    "keep"   nothing: state is as the last visit left it, however long ago
    "decay"  running averages decay, the row stays
    "dense"  state and row become what the dense optimizer would have made of them (SGD only)

Shapes: S selected rows, D embedding size, T optimizer steps so far.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from heads.arrays import CENTRES, MOMENTUM, Rows
from heads.shard import HeadShard, Pending
from utils.device import to_device

Idle = Literal["keep", "decay", "dense"]


class RowOptimizer(Optimizer):
    """What both optimizers share: which rows to update, and how their state travels.

    One parameter group, whose parameters are the selected rows; ``param_groups[0]["lr"]`` is read at each step.

    Subclasses define :meth:`update` and, if the steps between visits matter, :meth:`idle_factors` and
    :meth:`catch_up`.

    As torch's fused optimizers it takes ``found_inf``, an attribute set for one :meth:`step`: a scalar on the device
    that is not 0 if the step does not count. The rows then keep their values, and :meth:`learn` must tell the host.
    Not for ``idle="dense"``, whose rows move in idle steps, too, so that their number must be known.

    Args:
        shard: whose rows are updated.
        settings: of the parameter group.
        states: names of the state arrays, one row of D numbers per class each; without any, a row costs its centre
            alone.
        counts_idle: whether :meth:`catch_up` is to be called; the last step of each head is then kept.
    """

    def __init__(
        self, shard: HeadShard, settings: dict[str, Any], states: tuple[str, ...], counts_idle: bool
    ) -> None:
        if shard.pending or shard.has_announced:
            raise ValueError(
                "make the optimizer before the first forward or prefetch: its state travels with the heads"
            )
        super().__init__([{"params": []}], settings)
        self.param_groups[0]["params"] = shard.leaves  # the list that forward fills, so that GradScaler sees the rows
        self.shard = shard
        for name in states:
            shard.storage.arrays.add(name)
        shard.storage.open_cache()
        if counts_idle:
            shard.count_idle_steps(self.idle_factors, self.catch_up)

    def update(self, rows: Rows, grad_SD: Tensor, classes_S: Tensor) -> None:
        """Change the centres and their state, ``rows``, in place.

        Args:
            rows: (S, D) for each array.
            grad_SD: the gradient; may be overwritten.
            classes_S: (S,) int64 on the host, whose rows they are.
        """
        raise NotImplementedError

    def idle_factors(self, idle_S: Tensor) -> Tensor:
        """What :meth:`catch_up` needs to bring rows to the present, (S, ...) float64 on the host.

        Args:
            idle_S: (S,) int64 on the host, optimizer steps since the last one that updated the row.
        """
        raise NotImplementedError

    def catch_up(self, rows: Rows, factors: Tensor) -> None:
        """Bring rows that were just fetched to the present, in place.

        Args:
            rows: (S, D) for each array.
            factors: from :meth:`idle_factors`, on the rows' device.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the rows selected since the last :meth:`zero_grad`. No collective."""
        assert closure is None, "a closure would select other rows"
        assert self.shard.doubt is None, "learn() whether the step before counts, before the next one"
        self.shard.steps += 1
        self.shard.doubt = getattr(self, "found_inf", None)
        self.shard.storage.forget_last()
        pending = [p for p in self.shard.pending if p.leaf_SD.grad is not None]
        if not pending:
            return
        heads_h, classes_S, rows, grad_SD = _joined(pending)
        bad: Tensor | None = getattr(self, "found_inf", None)
        before = {} if bad is None else {name: value.clone() for name, value in rows.items()}
        self.update(rows, grad_SD, classes_S)
        if bad is not None:
            for name, value in rows.items():
                torch.where(bad > 0, before[name], value, out=value)
        self.shard.storage.store(heads_h, rows, self.shard.steps)

    def learn(self, is_bad: bool) -> None:
        """Whether the last step, which was given a ``found_inf``, did not count: then it is as if it had not been.

        But for rounding where idle steps count: the state of its rows was brought to the present in it, and stays so.
        """
        if self.shard.doubt is None:
            return
        self.shard.doubt = None
        if is_bad:
            self.shard.steps -= 1
            self.shard.storage.take_back(self.shard.steps)

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
    only its own updates, and of the steps between them what ``idle`` says; with ``idle="dense"`` it equals
    ``torch.optim.SGD`` on all rows, the gradient of those not selected being 0. Several forwards before one step
    (gradient accumulation) add up their gradients, as ``.grad`` does.

    Without momentum a row has no state, so centres alone are stored and travel.

    Args:
        shard: whose rows are updated.
        lr: learning rate, at least 0.
        momentum: factor in [0, 1) on the row's previous update.
        weight_decay: added to the gradient as ``weight_decay * row``, at least 0.
        nesterov: take the step from where the momentum leads; needs momentum above 0.
        idle: what the steps between two visits do; see the module.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        shard: HeadShard,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        idle: Idle = "decay",
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "expected lr >= 0, momentum in [0, 1) and weight_decay >= 0, "
                f"got lr={lr}, momentum={momentum}, weight_decay={weight_decay}"
            )
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        _check_idle(idle, get_args(Idle))
        self.idle = idle
        self._carry_T22 = torch.empty((0, 2, 2), dtype=torch.float64)  # see _extended_course
        super().__init__(
            shard,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov},
            (MOMENTUM,) if momentum else (),
            (idle == "decay" and momentum > 0) or (idle == "dense" and (momentum > 0 or weight_decay > 0)),
        )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """See :meth:`RowOptimizer.step`."""
        assert self.idle != "dense" or not hasattr(self, "found_inf"), "the number of idle steps must be known"
        super().step(closure)
        if self.idle == "dense":
            self._carry_T22 = self._extended_course()

    def update(self, rows: Rows, grad_SD: Tensor, classes_S: Tensor) -> None:
        """See :meth:`RowOptimizer.update`."""
        group, weight_SD = self.param_groups[0], rows[CENTRES]
        if group["weight_decay"]:
            grad_SD.add_(weight_SD, alpha=group["weight_decay"])
        update_SD = grad_SD
        if group["momentum"]:
            buffer_SD = rows[MOMENTUM].mul_(group["momentum"]).add_(grad_SD)
            update_SD = grad_SD.add_(buffer_SD, alpha=group["momentum"]) if group["nesterov"] else buffer_SD
        weight_SD.add_(update_SD, alpha=-group["lr"])

    def idle_factors(self, idle_S: Tensor) -> Tensor:
        """See :meth:`RowOptimizer.idle_factors`: powers (S, 1) of the momentum, or the matrices (S, 2, 2)."""
        if self.idle == "decay":
            return torch.pow(self.param_groups[0]["momentum"], idle_S.double()).unsqueeze(1)
        here = torch.eye(2, dtype=torch.float64).unsqueeze(0)
        carry = torch.cat((self._carry_T22, here))
        return carry[(len(self._carry_T22) - idle_S).clamp(min=0)]

    def catch_up(self, rows: Rows, factors: Tensor) -> None:
        """See :meth:`RowOptimizer.catch_up`."""
        weight_SD, buffer_SD = rows[CENTRES], rows.get(MOMENTUM)
        if self.idle == "decay":
            if buffer_SD is not None:
                buffer_SD.mul_(factors)
            return
        (ww, wm), (mw, mm) = factors.permute(1, 2, 0).unsqueeze(-1)
        if buffer_SD is None:
            weight_SD.mul_(ww)
            return
        before_SD = weight_SD.clone()
        weight_SD.mul_(ww).addcmul_(buffer_SD, wm)
        buffer_SD.mul_(mm).addcmul_(before_SD, mw)

    def _extended_course(self) -> Tensor:
        """``_carry_T22`` after one more step: its i-th matrix is the product of those of steps i to the last.

        A step without gradient is linear: momentum becomes ``decay * centre + momentum * buffer``, and the centre
        falls by the rate times that.
        """
        group = self.param_groups[0]
        rate, beta, decay = group["lr"], group["momentum"], group["weight_decay"]
        lead = 1 + beta if group["nesterov"] else 1.0  # of the decay in the step taken
        reach = beta * beta if group["nesterov"] else beta  # of the buffer in the step taken
        step_22 = torch.tensor([[1 - rate * decay * lead, -rate * reach], [decay, beta]], dtype=torch.float64)
        return torch.cat((step_22 @ self._carry_T22, step_22.unsqueeze(0)))

    def state_dict(self) -> dict[str, Any]:
        """The settings and, with ``idle="dense"``, the course of the steps so far."""
        return {**super().state_dict(), **({"carry": self._carry_T22} if self.idle == "dense" else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._carry_T22 = state_dict.get("carry", self._carry_T22)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "carry"})


class RowAdamW(RowOptimizer):
    """AdamW on the selected rows of a :class:`HeadShard`, in place.

    For a row that is selected in every step the result equals ``torch.optim.AdamW``. A row that is selected rarely
    sees only its own updates. With ``idle="keep"`` its averages pause between them, and the bias correction counts
    its own head's updates. With ``"decay"`` its averages and their correction are those of a dense AdamW, for which
    the steps between have a gradient of 0. Its weight decay pauses in both.

    Args:
        shard: whose rows are updated.
        lr: learning rate, at least 0.
        betas: decay factors in [0, 1) of the averages of the gradient and of its square.
        eps: added to the root of the second average, at least 0.
        weight_decay: the row is multiplied by ``1 - lr * weight_decay`` first, at least 0.
        idle: "keep" or "decay"; see the module.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        shard: HeadShard,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        idle: Literal["keep", "decay"] = "keep",
    ) -> None:
        if lr < 0 or not all(0 <= beta < 1 for beta in betas) or eps < 0 or weight_decay < 0:
            raise ValueError(
                "expected lr >= 0, betas in [0, 1), eps >= 0 and weight_decay >= 0, "
                f"got lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}"
            )
        _check_idle(idle, ("keep", "decay"))
        self.idle = idle
        super().__init__(
            shard,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
            ("exp_avg", "exp_avg_sq"),
            idle == "decay",
        )

    def update(self, rows: Rows, grad_SD: Tensor, classes_S: Tensor) -> None:
        """See :meth:`RowOptimizer.update`."""
        group, weight_SD = self.param_groups[0], rows[CENTRES]
        beta1, beta2 = group["betas"]
        if self.idle == "decay":
            step_S1 = torch.full((1, 1), self.shard.steps, device=weight_SD.device)
        else:
            step_S1 = self.shard.updates_of(classes_S).unsqueeze(1) + 1
        correction1_S1 = (1 - beta1 ** step_S1.double()).to(grad_SD.dtype)
        correction2_S1 = (1 - beta2 ** step_S1.double()).to(grad_SD.dtype)
        average_SD = rows["exp_avg"].lerp_(grad_SD, 1 - beta1)
        square_SD = rows["exp_avg_sq"].mul_(beta2).addcmul_(grad_SD, grad_SD, value=1 - beta2)
        root_SD = square_SD.sqrt().div_(correction2_S1.sqrt_()).add_(group["eps"])
        weight_SD.mul_(1 - group["lr"] * group["weight_decay"])
        weight_SD.sub_(average_SD.div(root_SD).mul_(group["lr"] / correction1_S1))

    def idle_factors(self, idle_S: Tensor) -> Tensor:
        """See :meth:`RowOptimizer.idle_factors`: powers of both factors of decay, (S, 2)."""
        beta_2 = torch.tensor(self.param_groups[0]["betas"], dtype=torch.float64)
        return torch.pow(beta_2, idle_S.unsqueeze(1))

    def catch_up(self, rows: Rows, factors: Tensor) -> None:
        """See :meth:`RowOptimizer.catch_up`."""
        for name, factor_S in zip(("exp_avg", "exp_avg_sq"), factors.unbind(1), strict=True):
            rows[name].mul_(factor_S.unsqueeze(1))


def _check_idle(idle: str, allowed: tuple[str, ...]) -> None:
    if idle not in allowed:
        raise ValueError(f"idle must be one of {', '.join(map(repr, allowed))}, got {idle!r}")


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
