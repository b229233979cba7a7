"""A run that is asked to end saves first."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from utils.device import to_device
from utils.distributed import all_reduce_sum_


class StopRequest:
    """While entered, SIGTERM is remembered instead of ending the process.

    Attributes:
        agreed: whether any rank had been asked when :meth:`agree` was last called; the same on every rank.
    """

    def __init__(self) -> None:
        self.agreed = False
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _remember(self, *_: object) -> None:
        self._asked = True

    def agree(self, bad: Tensor) -> bool:
        """Whether ``bad`` (a scalar bool) holds on any rank; updates :attr:`agreed` with the same message.

        Collective: one all-reduce of two numbers, and a wait for its result.
        """
        flags = torch.stack((bad.float(), to_device(torch.tensor(float(self._asked)), bad.device)))
        any_bad, self.agreed = (bool(flag) for flag in all_reduce_sum_(flags).tolist())
        return any_bad
