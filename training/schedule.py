"""The course of the learning rate, a pure function of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from utils.settings import Config


@dataclass(frozen=True)
class Schedule(ABC):
    """Linear warm-up from 0, then what :meth:`after_warmup` says.

    Before step t (counted from 0) the rate is ``base_lr * t / warmup_steps`` while t < warmup_steps.

    Raises:
        ValueError: ``warmup_steps`` is not below ``max_steps``, or ``max_steps`` is below 1.
    """

    base_lr: float  # at the end of the warm-up
    max_steps: int  # optimizer steps of the whole run
    warmup_steps: int = 0  # steps of the rise; 0 or below: none

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.max_steps or self.max_steps < 1:
            raise ValueError(
                f"the warm-up must end before the run does: warmup_steps = {self.warmup_steps}, "
                f"max_steps = {self.max_steps}; lower warmup_epoch or raise num_epoch"
            )

    def __call__(self, step: int) -> float:
        """The rate before step ``step``."""
        if step < self.warmup_steps:
            return self.base_lr * (step / self.warmup_steps)
        return float(self.after_warmup(step))

    def passed(self, step: int) -> float:
        """The share of the steps after the warm-up that lies behind before step ``step``, in [0, 1]."""
        warmup_steps = max(self.warmup_steps, 0)
        return (min(step, self.max_steps) - warmup_steps) / (self.max_steps - warmup_steps)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The rate before a step that is not of the warm-up."""

    @abstractmethod
    def text(self) -> str:
        """What follows the warm-up, in words: "cosine to 0 at step 20,000"."""


@dataclass(frozen=True)
class _Falling(Schedule):
    """A schedule that ends at a rate of its own, and stays there.

    Raises:
        ValueError: as :class:`Schedule`, or ``end_lr`` is above ``base_lr``.
    """

    end_lr: float = 0.0  # after the last step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_lr > self.base_lr:
            raise ValueError(
                f"the rate cannot fall from {self.base_lr:g} (lr, scaled where lr_batch is set) to lr_end = "
                f"{self.end_lr:g}: lower lr_end"
            )

    @abstractmethod
    def left(self, passed: float) -> float:
        """The share of ``base_lr - end_lr`` that is left, from 1 to 0."""

    def after_warmup(self, step: int) -> float:
        """See :class:`Schedule`."""
        return self.end_lr + (self.base_lr - self.end_lr) * self.left(self.passed(step))

    def _end_text(self) -> str:
        return f"to {self.end_lr:g} at step {self.max_steps:,}"


@dataclass(frozen=True)
class PolySchedule(_Falling):
    """After the warm-up a polynomial fall: ``(1 - passed) ** power`` of the way to ``end_lr`` is left.

    With ``power`` 1 it is ``PolynomialLRWarmup`` of insightface's arcface_torch, which ``train_v2.py`` has used since
    April 2023; with 2 it is ``PolyScheduler`` of the MHE authors and, before, of insightface. Differs from both in
    that it holds no optimizer and no count of its own; from the former in that the very first step of a warm-up has
    rate 0, where theirs gets the full rate once; from the latter in that a negative warm-up is none.
    """

    power: float = 1.0  # exponent of the fall

    def left(self, passed: float) -> float:
        """See :class:`_Falling`."""
        return float((1 - passed) ** self.power)

    def text(self) -> str:
        """See :class:`Schedule`."""
        known = {1.0: ("linearly", ", as insightface's"), 2.0: ("with power 2", ", as the MHE authors'")}
        how, whose = known.get(self.power, (f"with power {self.power:g}", ""))
        return f"{how} {self._end_text()}{whose if self.end_lr == 0 else ''}"


@dataclass(frozen=True)
class CosineSchedule(_Falling):
    """After the warm-up half a cosine wave, as ``torch.optim.lr_scheduler.CosineAnnealingLR`` in its closed form."""

    def left(self, passed: float) -> float:
        """See :class:`_Falling`."""
        return (1 + math.cos(math.pi * passed)) / 2

    def text(self) -> str:
        """See :class:`Schedule`."""
        return f"cosine {self._end_text()}"


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """After the warm-up a constant rate that each of ``milestones`` multiplies by ``gamma``.

    Milestones count from the run's start, so one within the warm-up acts as soon as that is over. It is the schedule
    of insightface's arcface_torch before it was polynomial (``decay_epoch`` of its files, with 0.1).
    """

    milestones: tuple[int, ...] = ()  # the first step of each lower rate
    gamma: float = 0.1  # factor on the rate at each

    def after_warmup(self, step: int) -> float:
        """See :class:`Schedule`."""
        return self.base_lr * self.gamma ** sum(milestone <= step for milestone in self.milestones)

    def text(self) -> str:
        """See :class:`Schedule`."""
        reached = [f"{milestone:,}" for milestone in self.milestones if milestone < self.max_steps]
        late = len(self.milestones) - len(reached)
        text = f"x {self.gamma:g} at each of the steps {', '.join(reached)}" if reached else "constant"
        return text + (f"; {late} of lr_steps come after the end" if late else "")


def schedule_of(cfg: Config, world_size: int, steps_per_epoch: int) -> Schedule:
    """What the settings ask for; raises ValueError as :class:`Schedule` and its kinds."""
    base_lr, max_steps = cfg.base_lr(world_size), steps_per_epoch * cfg.num_epoch
    warmup_steps = round(steps_per_epoch * cfg.warmup_epoch)
    if cfg.lr_schedule == "cosine":
        return CosineSchedule(base_lr, max_steps, warmup_steps, cfg.lr_end)
    if cfg.lr_schedule == "step":
        milestones = tuple(round(steps_per_epoch * epoch) for epoch in cfg.lr_steps or ())
        return StepSchedule(base_lr, max_steps, warmup_steps, milestones, cfg.lr_gamma)
    return PolySchedule(base_lr, max_steps, warmup_steps, cfg.lr_end, cfg.schedule_power())


def rate_text(cfg: Config, world_size: int, steps_per_epoch: int) -> str:
    """The whole course in words: "lr 0.1 x 1024 / 512 (linear) = 0.2, warm-up 2,000 steps, then cosine to 0 ..."."""
    schedule = schedule_of(cfg, world_size, steps_per_epoch)
    scaled = ""
    if cfg.lr_batch is not None:
        ratio = f"{cfg.total_batch(world_size)} / {cfg.lr_batch}"
        scaled = f" x {ratio} (linear)" if cfg.lr_scaling == "linear" else f" x sqrt({ratio})"
        scaled += f" = {schedule.base_lr:g}"
    warmup = f"warm-up {schedule.warmup_steps:,} steps" if schedule.warmup_steps > 0 else "no warm-up"
    return f"lr {cfg.lr:g}{scaled}, {warmup}, then {schedule.text()}"
