"""The course of the learning rate, a pure function of the step."""

from __future__ import annotations

from dataclasses import dataclass

from utils.settings import Config


@dataclass(frozen=True)
class PolySchedule:
    """Linear warm-up from 0, then a polynomial fall to 0.

    Before step t (counted from 0) the rate is ``base_lr * t / warmup_steps`` while t < warmup_steps, then
    ``base_lr * (1 - (t - warmup_steps) / (max_steps - warmup_steps)) ** power``.

    With ``power`` 1 it is ``PolynomialLRWarmup`` of insightface's arcface_torch, which ``train_v2.py`` has used since
    April 2023; with 2 it is ``PolyScheduler`` of the MHE authors and, before, of insightface. Differs from both in
    that it holds no optimizer and no count of its own; from the former in that the very first step of a warm-up has
    rate 0, where theirs gets the full rate once; from the latter in that a negative warm-up is none.

    Raises:
        ValueError: ``warmup_steps`` is not below ``max_steps``, or ``max_steps`` is below 1.
    """

    base_lr: float  # at the end of the warm-up
    max_steps: int  # optimizer steps of the whole run, after which the rate is 0
    warmup_steps: int = 0  # steps of the rise; 0 or below: none
    power: float = 1.0  # exponent of the fall

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.max_steps or self.max_steps < 1:
            raise ValueError(
                f"the warm-up must end before the run does: warmup_steps = {self.warmup_steps}, "
                f"max_steps = {self.max_steps}; lower warmup_epoch or raise num_epoch"
            )

    def __call__(self, step: int) -> float:
        """The rate before step ``step``."""
        step = min(step, self.max_steps)
        warmup_steps = max(self.warmup_steps, 0)
        if step < warmup_steps:
            return self.base_lr * (step / warmup_steps)
        fallen = (step - warmup_steps) / (self.max_steps - warmup_steps)
        return float(self.base_lr * (1 - fallen) ** self.power)


def schedule_of(cfg: Config, world_size: int, steps_per_epoch: int) -> PolySchedule:
    """What the settings ask for."""
    warmup_steps = round(steps_per_epoch * cfg.warmup_epoch)
    return PolySchedule(cfg.base_lr(world_size), steps_per_epoch * cfg.num_epoch, warmup_steps, cfg.schedule_power())
