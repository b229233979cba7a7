"""The factor on the loss that keeps float16 gradients in range; it follows the verdicts on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GROWTH, BACKOFF = 2.0, 0.5


class LossScale:
    """As ``torch.amp.GradScaler``, whose states it reads and writes, but told whether a step counts.

    Torch's looks at the gradients of its own process; here all ranks have agreed before, also on what is no
    gradient.

    Args:
        device: where the loss is.
        is_on: False: the factor is 1, and nothing changes it.
        init_scale: the first factor.
        growth_interval: steps in a row that count, after which the factor is doubled; one that does not halves it.
    """

    def __init__(
        self, device: torch.device, is_on: bool = True, init_scale: float = 2.0**16, growth_interval: int = 100
    ) -> None:
        self.is_on, self.growth_interval = is_on, growth_interval
        self.factor = torch.tensor(init_scale if is_on else 1.0, device=device)
        self._grown = torch.zeros((), dtype=torch.int32, device=device)  # steps since it last changed

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the factor."""
        return loss * self.factor if self.is_on else loss

    def unscale_(self, grads: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        if self.is_on and grads:
            torch._foreach_mul_(list(grads), self.factor.double().reciprocal().float())

    def update(self, bad: Tensor) -> None:
        """Follow a step's verdict, a scalar on the device: not 0 if the step does not count."""
        if not self.is_on:
            return
        is_bad = bad > 0
        is_long = self._grown + 1 >= self.growth_interval
        larger = self.factor * GROWTH
        is_grown = is_long & larger.isfinite()
        self.factor.copy_(torch.where(is_bad, self.factor * BACKOFF, torch.where(is_grown, larger, self.factor)))
        self._grown.copy_(torch.where(is_bad | is_long, 0, self._grown + 1))

    def get_scale(self) -> float:
        """The factor; waits for the device."""
        return float(self.factor.item())

    def state_dict(self) -> dict[str, Any]:
        """The state under the names of torch's; waits for the device. Nothing where it is off."""
        if not self.is_on:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": GROWTH,
            "backoff_factor": BACKOFF,
            "growth_interval": self.growth_interval,
            "_growth_tracker": int(self._grown.item()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this or of torch's, in place; the interval stays this one's."""
        self.factor.fill_(state["scale"])
        self._grown.fill_(state["_growth_tracker"])
