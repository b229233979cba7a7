"""A run asked to end saves first."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

import torch

from utils.distributed import all_reduce_sum_


class StopRequest:
    """While entered, SIGTERM is remembered instead of ending the process."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _remember(self, *_: object) -> None:
        self.requested = True

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked. Collective: one all-reduce of one number on ``device``."""
        return bool(all_reduce_sum_(torch.tensor(float(self.requested), device=device)))
