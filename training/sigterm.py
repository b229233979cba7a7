"""A run that is asked to end saves first; SIGUSR1 asks it to save and go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from training.checkpoint import list_checkpoints
from utils.device import to_device
from utils.distributed import all_reduce_sum_, get_rank, get_world_size
from utils.fate import end_stopped_peers, tell_launcher

_ONE_REQUEST_S = 3.0  # launchers and schedulers often send SIGTERM twice: within this they mean the same
_PATIENCE_S = 25.0  # that a run has to come to its next agreement: torchrun kills after 30 s
_OVER = b"\0"  # no signal's number
_USR1: int | None = getattr(signal, "SIGUSR1", None)  # not on Windows


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 are remembered instead of ending the process.

    A second SIGTERM, some seconds after the first, ends the process at once. So does a thread if the run does not
    come to its next agreement within 25 s of the first: it hangs.

    Args:
        checkpoints: where the run's checkpoints lie; the last is named when a process ends without saving.

    Attributes:
        agreed: whether any rank had been asked to end when :meth:`agree` or :meth:`settle` was last called; the
            same on every rank.
        save_agreed: whether any rank was asked to save and go on between the last two calls of :meth:`agree`; the
            same on every rank.
        writing_agreed: whether any rank still wrote a checkpoint in the last call of :meth:`agree`.
    """

    def __init__(self, checkpoints: Path | None = None) -> None:
        self.agreed = self.save_agreed = self.writing_agreed = False
        self._checkpoints = checkpoints
        self._asked = self._save_asked = False
        self._settled = threading.Event()
        self.is_excused: Callable[[], bool] = lambda: False  # while the run waits for a checkpoint to be written
        self._before: dict[int, Any] = {}
        self._arrivals = (-1, -1)
        self._wakeup_before = -1

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to end."""
        return self._asked

    def __enter__(self) -> StopRequest:
        self._arrivals = os.pipe()
        os.set_blocking(self._arrivals[1], False)
        handlers = {signal.SIGTERM: self._remember} | ({_USR1: self._remember_save} if _USR1 else {})
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        # Python runs a handler when the main thread comes back to it, which a hang prevents; this byte comes anyway.
        self._wakeup_before = signal.set_wakeup_fd(self._arrivals[1], warn_on_full_buffer=False)
        threading.Thread(target=self._guard, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Exception) and get_world_size() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway, and has its last line still to write
        self._settled.set()
        os.write(self._arrivals[1], _OVER)

    def _remember(self, *_: object) -> None:
        self._asked = True

    def _remember_save(self, *_: object) -> None:
        self._save_asked = True

    def _guard(self) -> None:
        """Wait for the bytes of the signals; end the process when it is asked again, or does not listen."""
        first_s: float | None = None
        while _OVER not in (arrived := os.read(self._arrivals[0], 64)):
            if signal.SIGTERM not in arrived:
                continue
            now_s = time.monotonic()
            if first_s is None:
                first_s = now_s
                self._asked = True  # also where the main thread is in a long computation
                threading.Thread(target=self._wait_for_agreement, daemon=True).start()
            elif now_s - first_s >= _ONE_REQUEST_S:
                self._end_now(f"SIGTERM came again after {now_s - first_s:.0f} s")
        for end in self._arrivals:
            os.close(end)

    def _wait_for_agreement(self) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while not self._settled.wait(0.5):
            if self.is_excused():
                deadline_s = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline_s:
                self._end_now(f"{_PATIENCE_S:g} s after SIGTERM it has not come to the end of its step: it hangs")

    def _end_now(self, why: str) -> NoReturn:
        last = None
        with suppress(OSError):
            last = next(reversed(list_checkpoints(self._checkpoints)), None) if self._checkpoints else None
        sys.stdout.flush()
        where = f"the last checkpoint is {last}" if last else "there is no checkpoint"
        print(f"rank {get_rank()} ends without saving, because {why}; {where}", file=sys.stderr, flush=True)
        tell_launcher(why)
        end_stopped_peers()
        os._exit(143)

    def ask_save(self) -> None:
        """Ask all ranks to save and go on, as SIGUSR1 does."""
        self._save_asked = True

    def agree(self, bad: Tensor, is_writing: bool = False) -> bool:
        """Whether ``bad`` (a scalar bool) holds on any rank; updates the attributes with the same message.

        Collective: one all-reduce of four numbers, and a wait for its result.
        """
        save_asked, self._save_asked = self._save_asked, False
        asked = torch.tensor((float(self._asked), float(save_asked), float(is_writing)))
        flags = torch.cat((bad.float().reshape(1), to_device(asked, bad.device)))
        any_bad, any_asked, self.save_agreed, self.writing_agreed = (
            bool(flag) for flag in all_reduce_sum_(flags, "the step's flags").tolist()
        )
        self.settle(any_asked)
        return any_bad

    def settle(self, any_asked: bool) -> None:
        """Note whether any rank has been asked to end, as all ranks have agreed by another message."""
        self.agreed = any_asked
        if any_asked:
            self._settled.set()


@contextmanager
def nothing_to_save_yet() -> Iterator[None]:
    """Let SIGUSR1, which would end the process, do nothing; for the time before there is a run that could save."""
    if _USR1 is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(_USR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(_USR1, before)
