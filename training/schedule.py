"""The learning-rate schedule of insightface's recipes."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class PolyScheduler(LRScheduler):
    """Linear warm-up from 0, then a polynomial fall to 0.

    Before step t (counted from 0) the rate is ``base_lr * t / warmup_steps`` while t < warmup_steps, then
    ``base_lr * (1 - (t - warmup_steps) / (max_steps - warmup_steps)) ** power``.

    Source: the class of this name in insightface's arcface_torch, whose figures it reproduces; differs from it
    in that every parameter group keeps its own ratio to the base rate.

    Args:
        optimizer: its groups' ``lr`` at construction are the base rates, unless ``base_lr`` is given.
        base_lr: the rate at the end of the warm-up, for every group; None to take each group's own.
        max_steps: optimizer steps of the whole run, after which the rate is 0.
        warmup_steps: of those, the steps of the rise; less than ``max_steps``. Below 0 the fall starts as if that
            many steps had been taken before, which is what a negative warm-up means in insightface's recipes.
        power: exponent of the fall.
        last_epoch: the last finished step, -1 to start.

    Raises:
        ValueError: ``warmup_steps`` is not below ``max_steps``, or ``max_steps`` is below 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | None = None,
        max_steps: int = 0,
        warmup_steps: int = 0,
        last_epoch: int = -1,
        *,
        power: float = 2.0,
    ) -> None:
        if warmup_steps >= max_steps or max_steps < 1:
            raise ValueError(
                f"the warm-up must end before the run does: warmup_steps = {warmup_steps}, "
                f"max_steps = {max_steps}; lower warmup_epoch or raise num_epoch"
            )
        self.max_steps = max_steps
        self.warmup_steps = warmup_steps
        self.power = power
        if base_lr is not None and last_epoch == -1:
            for group in optimizer.param_groups:
                group["lr"] = base_lr
                group["initial_lr"] = base_lr
        super().__init__(optimizer, last_epoch)

    def move_to(self, step: int) -> None:
        """Set the rates for ``step`` of this schedule, as if all steps before it had been taken."""
        self.last_epoch = step
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each parameter group for the step about to be taken."""
        step = min(self.last_epoch, self.max_steps)
        if step < self.warmup_steps:
            factor = step / self.warmup_steps
        else:
            factor = (1 - (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)) ** self.power
        return [float(base_lr) * factor for base_lr in self.base_lrs]
