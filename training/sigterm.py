"""A run that is asked to end, by SIGTERM or Ctrl-C, saves first; SIGUSR1 asks it to save and go on."""

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
from utils.device import OnItsWay, to_device
from utils.distributed import all_reduce_sum_, get_rank, get_world_size
from utils.fate import end_stopped_peers, tell_launcher

_ONE_REQUEST_S = 3.0  # launchers and schedulers often send SIGTERM twice: within this they mean the same
_ONE_CTRL_C_S = 1.0  # likewise a terminal and a launcher; a person who presses it again means it
_PATIENCE_S = 25.0  # that a run has to come to its next agreement: torchrun kills after 30 s
_SAVING_S = 120.0  # that a run has after it to save and end, beyond which only a disk that takes data excuses it
_HINT_S = 3.0  # after Ctrl-C: whoever waits is told what for
_LOOK_S = 2.0  # at a disk that may not answer
_OVER = b"\0"  # no signal's number
_NAMES: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_USR1: int | None = getattr(signal, "SIGUSR1", None)  # not on Windows


class StopRequest:
    """While entered, SIGTERM, Ctrl-C (SIGINT) and SIGUSR1 are remembered instead of ending the process.

    A second SIGTERM, some seconds after the first, ends the process at once, and so does a second Ctrl-C. So does a
    thread if the run does not come to its next agreement within 25 s of the first: it hangs; or if it has not ended
    120 s after that, and the disk has taken nothing for as long. A Ctrl-C that the process was started to ignore, as
    in the background of a script, stays ignored.

    Args:
        checkpoints: where the run's checkpoints lie; the last is named when a process ends without saving.

    Attributes:
        agreed: whether any rank had been asked to end, as the last :meth:`learn` or :meth:`settle` says; the same on
            every rank.
        save_agreed: whether any rank was asked to save and go on, as the last :meth:`learn` says; the same on every
            rank.
        writing_agreed: whether any rank still wrote a checkpoint at the last message.
    """

    def __init__(self, checkpoints: Path | None = None) -> None:
        self.agreed = self.save_agreed = self.writing_agreed = False
        self._checkpoints = checkpoints
        self.cause: str | None = None  # what this process was asked by, in words
        self._asked = self._save_asked = False
        self._coming: OnItsWay | None = None
        self._learned_s = 0.0  # when a message was last read, by time.monotonic()
        self._settled, self._left = threading.Event(), threading.Event()
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
        handlers: dict[int, Any] = {signal.SIGTERM: self._remember}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            handlers[signal.SIGINT] = self._remember
        if _USR1 is not None:
            handlers[_USR1] = self._remember_save
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
        self._left.set()
        os.write(self._arrivals[1], _OVER)

    def _remember(self, number: int, _: object = None) -> None:
        self._asked, self.cause = True, self.cause or _NAMES[number]

    def _remember_save(self, *_: object) -> None:
        self._save_asked = True

    def _guard(self) -> None:
        """Wait for the bytes of the signals; end the process when it is asked again, or does not listen."""
        first_s: float | None = None
        while _OVER not in (arrived := os.read(self._arrivals[0], 64)):
            number = next((number for number in arrived if number in self._before and number in _NAMES), None)
            if number is None:
                continue
            now_s = time.monotonic()
            if first_s is None:
                first_s = now_s
                self._remember(number)  # also where the main thread is in a long computation
                threading.Thread(target=self._watch_the_end, daemon=True).start()
            elif now_s - first_s >= (_ONE_CTRL_C_S if self.cause == "Ctrl-C" else _ONE_REQUEST_S):
                self._end_now(f"{_NAMES[number]} came again after {now_s - first_s:.0f} s")
        for end in self._arrivals:
            os.close(end)

    def _watch_the_end(self) -> None:
        """End the process if it does not come to its next agreement, or from there to its end, in time."""
        begin_s = time.monotonic()
        deadline_s, has_agreed, has_hinted = begin_s + _PATIENCE_S, False, self.cause != "Ctrl-C"
        why = f"{_PATIENCE_S:g} s after {self.cause} it has not come to the end of its step: it hangs"
        while not self._left.wait(0.5):
            if self._settled.is_set() and not has_agreed:
                has_agreed, deadline_s = True, time.monotonic() + _SAVING_S
                why = f"{_SAVING_S:g} s after {self.cause} it has not saved: the disk does not answer"
            if not has_agreed:  # on a GPU a request is learned two messages later: who still reads them does not hang
                deadline_s = max(deadline_s, self._learned_s + _PATIENCE_S)
            if self.is_excused():
                deadline_s = max(deadline_s, time.monotonic() + _PATIENCE_S)
            elif time.monotonic() > deadline_s:
                self._end_now(why)
            if not has_hinted and time.monotonic() - begin_s > _HINT_S:
                has_hinted = True
                if get_rank() == 0:
                    what = "the checkpoint" if has_agreed else "the end of the step, to save"
                    print(f"interrupted: waiting for {what}; Ctrl-C again ends at once", file=sys.stderr, flush=True)

    def _end_now(self, why: str) -> NoReturn:
        where = self._last_in_words()
        print(f"rank {get_rank()} ends without saving, because {why}; {where}", file=sys.stderr, flush=True)
        tell_launcher(why)
        end_stopped_peers()
        os._exit(self.exit_status(self.cause))

    @staticmethod
    def exit_status(cause: str | None) -> int:
        """As a shell has it for a process that a signal ends."""
        return 128 + (signal.SIGINT if cause == "Ctrl-C" else signal.SIGTERM)

    def _last_in_words(self) -> str:
        """Where the last checkpoint is, as far as the disk says so in time."""
        found: list[Path | None] = []

        def look() -> None:
            with suppress(OSError):
                found.append(next(reversed(list_checkpoints(self._checkpoints)), None) if self._checkpoints else None)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(_LOOK_S)
        if not found:
            return f"{self._checkpoints} cannot be read"
        return "there is no checkpoint" if found[0] is None else f"the last checkpoint is {found[0]}"

    def ask_save(self) -> None:
        """Ask all ranks to save and go on, as SIGUSR1 does."""
        self._save_asked = True

    def ask(self, bad: Tensor, is_writing: bool = False) -> Tensor:
        """Begin to agree whether ``bad`` (a scalar bool) holds on any rank: 0.0 or 1.0, a scalar on its device.

        What else travels with the message is known after :meth:`learn`. Collective: one all-reduce of four numbers.
        """
        save_asked, self._save_asked = self._save_asked, False
        asked = torch.tensor((float(self._asked), float(save_asked), float(is_writing)))
        flags = all_reduce_sum_(torch.cat((bad.float().reshape(1), to_device(asked, bad.device))), "the step's flags")
        self._coming = OnItsWay(flags)
        return flags[0].clamp(max=1)

    def learn(self) -> bool:
        """What :meth:`ask` has found, and the attributes with it; waits for the message, once for each call of it."""
        assert self._coming is not None
        any_bad, any_asked, self.save_agreed, self.writing_agreed = (bool(flag) for flag in self._coming.read())
        self._coming, self._learned_s = None, time.monotonic()
        self.settle(any_asked)
        return any_bad

    def agree(self, bad: Tensor, is_writing: bool = False) -> bool:
        """:meth:`ask` and :meth:`learn` in one."""
        self.ask(bad, is_writing)
        return self.learn()

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
