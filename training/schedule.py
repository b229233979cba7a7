"""The course of the learning rate, a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PolySchedule:
    """Linear warm-up from 0, then a polynomial fall to 0.

    Before step t (counted from 0) the rate is ``base_lr * t / warmup_steps`` while t < warmup_steps, then
    ``base_lr * (1 - (t - warmup_steps) / (max_steps - warmup_steps)) ** power``.

    Source: ``PolyScheduler`` in insightface's arcface_torch, whose figures it reproduces; differs from it in that it
    holds no optimizer and no count of its own.

    Raises:
        ValueError: ``warmup_steps`` is not below ``max_steps``, or ``max_steps`` is below 1.
    """

    base_lr: float  # at the end of the warm-up
    max_steps: int  # optimizer steps of the whole run, after which the rate is 0
    warmup_steps: int = 0  # steps of the rise; below 0 the fall starts as if that many had been taken before
    power: float = 2.0  # exponent of the fall

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.max_steps or self.max_steps < 1:
            raise ValueError(
                f"the warm-up must end before the run does: warmup_steps = {self.warmup_steps}, "
                f"max_steps = {self.max_steps}; lower warmup_epoch or raise num_epoch"
            )

    def __call__(self, step: int) -> float:
        """The rate before step ``step``."""
        step = min(step, self.max_steps)
        if step < self.warmup_steps:
            return self.base_lr * (step / self.warmup_steps)
        fallen = (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        return float(self.base_lr * (1 - fallen) ** self.power)
