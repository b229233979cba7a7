"""One fate for all ranks: whichever fails, hangs or is killed, every rank ends soon, and says what came first.

Each rank tells the others in the store that they share how far it is, each second; an error goes there too. A thread
of each rank looks at both, and at the processes of its peers where they are on this machine.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from utils.distributed import (
    all_gather_objects,
    barrier,
    close_ranks,
    get_rank,
    get_world_size,
    is_lost_connection,
    launcher_holds_store,
    shared_store,
)
from utils.processes import Process, this_process
from utils.progress import progress
from utils.text import plain

T = TypeVar("T")

_FAILED, _REASON = "mhs_arcface/failed", "mhs_arcface/reason"  # keys of the store that all ranks share
_LEFT, _BEAT = "mhs_arcface/left", "mhs_arcface/beat"
_POLL_S = 0.5  # between looks at them
_BEAT_S = 1.0  # between signs of life
_GRACE_S = 5.0  # that a rank has to end by itself, and that a failure has to show after its connections break
_STORE_S = 5.0  # after which a store that does not answer is not asked any more
_ORPHAN_S = 28.0  # that a rank has to save after the launcher, and its store, have gone

_peers: list[Process] = []  # of this process's group, by rank


@contextmanager
def one_fate() -> Iterator[None]:
    """Let an error, a hang or the death of one rank end every rank, each with the first rank's reason.

    The first rank to fail leaves its reason in the store that all ranks share, and raises. A rank whose connections
    break then reports that reason instead of its own, or looks which rank has gone without one or has not come to
    a collective; one that waits where no error reaches it, as in NCCL, is ended by a thread that looks at the store.
    The process group is left only on the clean way out: after an error its destruction could wait forever for ranks
    that are gone. Peers on this machine that are stopped (SIGSTOP) are ended too: nothing else would.

    SystemExit passes: whoever exits has made sure that every rank does.

    Collectives: an object gather at the start and a barrier at the end.
    """
    if get_world_size() == 1:
        yield
        close_ranks()
        return
    _peers[:] = all_gather_objects(this_process(), "processes")
    watch = _Watch()
    try:
        yield
        barrier()  # still watched: a rank may fail after another has come here
        watch.leave()
        close_ranks()
    except (SystemExit, KeyboardInterrupt):
        watch.leave()
        end_stopped_peers()
        raise
    except BaseException as error:
        _let_nothing_interrupt()
        reason = watch.explain(error)
        watch.end()
        if reason is not None:
            watch.say(reason)
        watch.end_others()
        _leave_time_to_read()
        if reason is None:
            raise
        raise SystemExit(1) from None


def speaks(error: BaseException) -> bool:
    """Record an error that every rank or only this one has met as the reason to end; True where it is to be printed.

    That is on one rank: 0 if it has met the error too, else the first.
    """
    is_alone = get_world_size() == 1
    if not is_alone:
        _let_nothing_interrupt()
    tell_launcher(str(error))
    if is_alone:
        return True
    board = _Board()
    is_first = board.record(_failure(error))
    _leave_time_to_read()
    if get_rank() == 0 or not is_first:
        return get_rank() == 0
    time.sleep(2 * _POLL_S)
    return board.ask(lambda store: store.add(_FAILED, 0)) == 1


def tell_launcher(reason: str) -> None:
    """Let torchrun name the reason as root cause in its report, which is the last thing that a user sees."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return
    text = plain(reason)
    extra = {"py_callstack": text, "timestamp": str(int(datetime.now().timestamp()))}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))


def end_stopped_peers() -> None:
    """End the ranks of this machine that are stopped (SIGSTOP): they would never end by themselves."""
    for peer in _peers:
        if peer.state() == "T":
            peer.kill()


def _let_nothing_interrupt() -> None:
    """Let this process write its last line: it ends by itself within seconds.

    A launcher that sees another rank end sends SIGTERM at once, and torch raises an error for each of a loader's
    workers that ends.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _failure(error: BaseException) -> str:
    text = plain(" ".join(str(error).split()))[:500]
    return f"rank {get_rank()} on {platform.node()} failed: {type(error).__name__}: {text}"


def _leave_time_to_read() -> None:
    """Without torchrun rank 0 holds the store: it waits before it ends, so that the others can read the reason."""
    if get_rank() == 0 and not launcher_holds_store():
        time.sleep(4 * _POLL_S)


class _Board:
    """The ranks' store, asked with patience that ends: its holder may be stopped.

    Attributes:
        is_lost: the store has gone with the process that held it.
        is_silent: it has not answered in time, and is not asked any more.
    """

    def __init__(self) -> None:
        self._shared = shared_store()  # kept: rank 0's holds the others' too
        try:
            self._store = self._shared.clone()  # the main thread's may wait in it
        except (AttributeError, RuntimeError):  # an older torch, or a store of another kind
            self._store = self._shared
        self.is_lost = self.is_silent = False

    def ask(self, do: Callable[[Any], T]) -> T | None:
        """What ``do`` returns for the store, None if there is no answer."""
        answers: list[T] = []

        def wait() -> None:
            try:
                answers.append(do(self._store))
            except RuntimeError:
                self.is_lost = True

        if not self.is_lost and not self.is_silent:
            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            thread.join(_STORE_S)
            self.is_silent = thread.is_alive()
        return answers[0] if answers else None

    def read(self, key: str) -> str | None:
        """The text below a key, None without one."""
        return self.ask(lambda store: store.get(key).decode() if store.check([key]) else None)

    def record(self, reason: str) -> bool:
        """Leave the reason why all ranks end; False where another was first."""
        count = self.ask(lambda store: store.add(_FAILED, 1))
        if count == 1:
            self.ask(lambda store: store.set(_REASON, reason))
        return count in (1, None)

    def beats(self) -> list[dict[str, Any] | None]:
        """Each rank's last sign of life, None where there is none."""
        texts = [self.read(f"{_BEAT}/{rank}") for rank in range(len(_peers))]
        return [None if text is None else json.loads(text) for text in texts]


class _Watch:
    """A thread that gives signs of life, looks at the others', and ends this process if it does not end by itself."""

    def __init__(self) -> None:
        self._rank, self._board = get_rank(), _Board()
        self._reason: str | None = None
        self._missing: tuple[int, float] | None = None  # a rank, and when this one has said so
        self._beat = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join(2 * _STORE_S)

    def leave(self) -> None:
        """Stop looking, and tell the others that the end of this process is none of their concern."""
        self.end()
        self._board.ask(lambda store: store.set(f"{_LEFT}/{self._rank}", "1"))

    def say(self, reason: str) -> None:
        """Write this process's last line."""
        sys.stdout.flush()
        print(f"rank {self._rank} ends, because {reason}", file=sys.stderr, flush=True)
        tell_launcher(reason)
        if self._board.is_silent:  # torch would write a page about the question that is still open
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 2)

    def explain(self, error: BaseException) -> str | None:
        """Why this rank ends, None if that is its own error, which the others are told."""
        if is_lost_connection(error):
            is_late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
            if reason := self._wait_for_reason(is_late):
                return reason
        return None if self._board.record(_failure(error)) else self._wait_for_reason(False)

    def _wait_for_reason(self, is_late: bool) -> str | None:
        """What the first rank has left, or what this one can see of the others; None after some seconds."""
        deadline_s = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline_s:
            if found := self._read() or self._first_gone() or (self._first_missing() if is_late else None):
                return found
            time.sleep(0.1)
        return self._read() or self._first_silent()

    def _read(self) -> str | None:
        self._reason = self._reason or self._board.read(_REASON)
        return self._reason

    def _claim(self, reason: str) -> str:
        """Give a reason for all ranks to end; returns the one that came first."""
        if self._board.record(reason):
            self._reason = self._reason or reason
            return reason
        deadline_s = time.monotonic() + _GRACE_S
        while self._read() is None and time.monotonic() < deadline_s and not self._board.is_lost:
            time.sleep(0.1)
        return self._reason or reason

    def _first_gone(self) -> str | None:
        """Claim that a rank of this machine has gone without a word, if one has."""
        for rank, peer in enumerate(_peers):
            if rank != self._rank and not peer.state() and self._board.read(f"{_LEFT}/{rank}") is None:
                if self._read():  # its last word
                    return self._reason
                return self._claim(_gone(rank))
        return None

    def _first_missing(self) -> str | None:
        """Claim that a rank has not come to the collective in which this one waits, if one has not."""
        for rank, beat in enumerate(self._board.beats()):
            if rank != self._rank and beat is not None and beat["number"] < progress.number:
                number = beat["number"] + 1
                last = f"; it was last in the {beat['name']}, collective {beat['number']}" if beat["number"] else ""
                reason = (
                    f"rank {rank} on {_peers[rank]} has not joined the {progress.name(number)} (collective {number}"
                    f"{last}) within timeout_s = {progress.timeout_s:g} s{_is_stopped(rank)}"
                )
                return self._claim_missing(rank, reason)
        for rank, peer in enumerate(_peers):
            if peer.state() == "T":
                return self._claim_missing(
                    rank, f"rank {rank} on {peer} has not gone on for {_limit()}{_is_stopped(rank)}"
                )
        return None

    def _claim_missing(self, rank: int, reason: str) -> str:
        self._missing = self._missing or (rank, time.monotonic())
        return self._claim(reason)

    def end_others(self) -> None:
        """See to it that no rank of this machine stays behind; one that is missing has some seconds to end itself."""
        end_stopped_peers()
        if self._missing is None:
            return
        rank, claimed_s = self._missing
        while _peers[rank].state() not in ("", "?", "T") and time.monotonic() < claimed_s + 2 * _GRACE_S:
            time.sleep(0.1)
        _peers[rank].kill()

    def _first_silent(self) -> str | None:
        """Claim that a rank gives no sign of life any more, if one does not."""
        if self._board.is_lost and not launcher_holds_store():
            return _gone(0) if self._rank else None
        before = self._board.beats()
        time.sleep(3 * _BEAT_S)
        for rank, (old, new) in enumerate(zip(before, self._board.beats(), strict=True)):
            if rank != self._rank and old is not None and old == new:
                return self._claim(_gone(rank))
        return None

    def _look(self) -> None:
        next_beat_s = 0.0
        while not self._over.wait(_POLL_S) and shared_store() is not None:  # whoever has left may end when it likes
            if time.monotonic() >= next_beat_s:
                self._give_sign()
                next_beat_s = time.monotonic() + _BEAT_S
            is_late = progress.is_waiting and time.monotonic() - progress.since_s > progress.timeout_s
            reason = self._read() or self._first_gone() or (self._first_missing() if is_late else None)
            if reason is None and not self._board.is_lost:
                continue
            is_orphan = reason is None and launcher_holds_store()
            if self._over.wait(_ORPHAN_S if is_orphan else _GRACE_S) or shared_store() is None:
                return
            holder = "the launcher" if launcher_holds_store() else "rank 0"
            reason = self._reason or f"{holder}, which held the ranks' store, has ended"
            self.say(reason)
            self.end_others()
            os._exit(1)

    def _give_sign(self) -> None:
        self._beat += 1
        number = progress.number
        text = json.dumps({"beat": self._beat, "number": number, "name": progress.name(number)})
        self._board.ask(lambda store: store.set(f"{_BEAT}/{self._rank}", text))


def _gone(rank: int) -> str:
    return (
        f"rank {rank} on {_peers[rank]} has gone without a word: killed, for example for want of memory (see dmesg)"
    )


def _is_stopped(rank: int) -> str:
    return ": its process is stopped (SIGSTOP)" if _peers[rank].state() == "T" else ""


def _limit() -> str:
    return f"timeout_s = {progress.timeout_s:g} s"
