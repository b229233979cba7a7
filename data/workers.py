"""A loader's processes: how they start, and who may end them.

Launchers and schedulers send SIGTERM to the whole group, terminals SIGINT. The training process then still needs its
workers to finish the step and save, so that only its own SIGTERM ends them. That takes a system which tells who sent
a signal: Linux; on macOS and Windows anybody's SIGTERM ends a worker. On Linux they end with the training process,
however that ends.

No wait is without a limit: a worker that does not deliver, stopped or hanging, is an error that names it.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import threading
import time
import weakref
from multiprocessing import queues, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from utils.opencv import cv2
from utils.processes import die_with_parent, process_of

T_co = TypeVar("T_co", covariant=True)

BATCHES_AHEAD = 2  # of each worker, torch's own choice
_IN_HAND = 2  # batches that the training process still holds
_SHARE = 0.8  # of timeout_s
_LOOK_S = 1.0  # between looks whether the workers are alive
_SIGNAL_S = 1.0  # until the system has told torch of a worker that ended, amply
_REMEDY = "give the container more (docker run --shm-size=8g, or --ipc=host), or set num_workers = 0"
_SHM = Path("/dev/shm")


class WorkerLoader(DataLoader[T_co]):
    """torch's loader, with the processes of this module; it takes batches as the data set makes them.

    Args:
        dataset: as torch's.
        timeout_s: how long a collective of the ranks may take; a batch may take four fifths of it to come, so that
            the rank which lacks it says so before the others say that this rank is late.
        options: torch's.
    """

    def __init__(self, dataset: Any, timeout_s: float = 1800.0, **options: Any) -> None:
        self.timeout_s = timeout_s
        if options.get("num_workers"):
            options = {"multiprocessing_context": start_method(), "worker_init_fn": start_worker, **options}
        super().__init__(dataset, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Any:
        if self.num_workers == 0:
            return super().__iter__()
        if self.worker_init_fn is start_worker:
            # The system ends a worker when the thread that started it ends, so that one has to be the last.
            is_main = threading.current_thread() is threading.main_thread()
            self.worker_init_fn = functools.partial(start_worker, dies_with_parent=is_main)
        arriving = self._start()
        atexit.unregister(_end_stopped_workers)  # again below, to be called before torch's and Python's own
        atexit.register(_end_stopped_workers)
        _limit_waiting(arriving, _SHARE * self.timeout_s)
        return arriving

    def _start(self) -> Any:
        if not _tells_senders():
            return super().__iter__()
        resource_tracker.ensure_running()  # started with the processes, it would let SIGTERM through again
        # New processes inherit this, and so do the threads that libraries start in them before start_worker runs.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_method() -> str:
    """Python's own choice, but not a fork server: a group's SIGTERM would end it, and the workers with it."""
    method = multiprocessing.get_start_method()  # Python 3.14's own choice on Linux is a fork server
    return "spawn" if method == "forkserver" else method


def start_worker(worker_id: int, dies_with_parent: bool = False) -> None:
    """Prepare a loader's process: one thread for each library; see the module for SIGTERM."""
    if dies_with_parent and hasattr(signal, "SIGKILL"):
        die_with_parent(signal.SIGKILL)
    signal.set_wakeup_fd(-1)  # a fork has the training process's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the training process still saves
    queues.Queue._on_queue_feeder_error = _hand_over_error  # type: ignore[attr-defined]
    if _tells_senders():
        _end_for_the_parent_only()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_for_the_parent_only() -> None:
    parent = multiprocessing.parent_process()  # os.getppid() would be a fork server where there is one
    assert parent is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait(pid: int | None) -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, args=(parent.pid,), daemon=True).start()


def _tells_senders() -> bool:
    return hasattr(signal, "sigwaitinfo")


def _as_it_is(batch: Any) -> Any:
    return batch


def check_shared_memory(num_workers: int, batch_bytes: int, ranks_here: int = 1) -> None:
    """Raise ValueError if the batches that loader workers hand over do not fit into this machine's /dev/shm.

    Args:
        num_workers: of one rank.
        batch_bytes: of the images of one rank's batch.
        ranks_here: ranks that share the machine.
    """
    if num_workers == 0 or not _SHM.is_dir():
        return
    need = ranks_here * (num_workers * BATCHES_AHEAD + _IN_HAND) * batch_bytes
    system = os.statvfs(_SHM)
    free = system.f_bavail * system.f_frsize
    if need > free:
        raise ValueError(
            f"{_SHM} has {free / 2**20:.0f} MiB free, and the loader workers need {need / 2**20:.0f} MiB there "
            f"({ranks_here} ranks x {num_workers * BATCHES_AHEAD + _IN_HAND} batches of {batch_bytes / 2**20:.1f} "
            f"MiB): {_REMEDY}"
        )


def _hand_over_error(queue: Any, error: Exception, work: Any) -> None:
    """Send the error with which a batch could not be handed over in its place; by itself Python drops the batch."""
    text = str(error)
    if "No space left" in text or "shared memory" in text:
        text = f"{_SHM} is full, and loader workers hand their batches over in it: {_REMEDY} ({text})"
    try:
        raise RuntimeError(text) from None
    except RuntimeError:
        queue.put((work[0], ExceptionWrapper(where="in a loader worker")))


def _limit_waiting(arriving: Any, limit_s: float) -> None:
    """Let torch's iterator raise an error when a batch has not come in time."""
    if getattr(arriving, "is_limited", False):  # torch keeps one for all epochs
        return
    look, overseer = type(arriving)._try_get_data, _Overseer(arriving, limit_s)

    def look_in_time(timeout: float = _LOOK_S) -> tuple[bool, Any]:
        overseer.deadline_s = overseer.deadline_s or time.monotonic() + limit_s
        try:
            came, data = look(overseer.owner(), timeout)
        except Exception as error:
            if overseer.reason:
                raise TimeoutError(overseer.reason) from None
            if isinstance(error, EOFError | ConnectionError):  # a worker ended while it handed a batch over
                time.sleep(_SIGNAL_S)  # torch's signal handler names it
            raise
        if came:
            overseer.deadline_s = None
        return came, data

    arriving.is_limited, arriving._try_get_data = True, look_in_time
    overseer.start()


class _Overseer(threading.Thread):
    """Ends the workers when a batch is overdue, which ends the wait for it.

    It takes a thread: who waits may be past the queue, and in a socket of a worker that is stopped. That may be
    another worker than the one which owes the batch, so all of them are ended.
    """

    def __init__(self, arriving: Any, limit_s: float) -> None:
        super().__init__(daemon=True)
        self.owner = weakref.ref(arriving)  # whose end ends the workers
        self.limit_s = limit_s
        self.deadline_s: float | None = None
        self.reason = ""

    def run(self) -> None:
        """Look at the deadline until it has passed, or nobody waits any more."""
        while self.owner() is not None:
            time.sleep(min(1.0, self.limit_s / 8))
            arriving, deadline_s = self.owner(), self.deadline_s
            if arriving is not None and deadline_s is not None and time.monotonic() > deadline_s:
                self.reason = _reason(arriving, self.limit_s)
                _end_workers(arriving)
                return
            del arriving


def _end_workers(arriving: Any) -> None:
    """End all workers, and keep torch from raising an error wherever the main thread is when it learns of that."""
    if arriving._worker_pids_set:
        arriving._worker_pids_set = False
        torch._C._remove_worker_pids(id(arriving))
    for worker in arriving._workers:
        worker.kill()


def _reason(arriving: Any, limit_s: float) -> str:
    """The error that names the worker which holds up the batch: one that is stopped, or else the one that owes it."""
    number, processes = arriving._rcvd_idx, [process_of(worker.pid) for worker in arriving._workers]
    stopped = [worker for worker, process in enumerate(processes) if process.state() == "T"]
    owed = {batch: told[0] for batch, told in arriving._task_info.items() if len(told) == 1}  # by which worker
    worker = owed.get(number, 0)  # no entry: at an epoch's start, each has to answer
    if stopped and worker not in stopped:
        worker = stopped[0]
        number = min((batch for batch, by in owed.items() if by == worker), default=number)
    return (
        f"loader worker {worker} on {processes[worker]} has not delivered batch {number} of the epoch within "
        f"{limit_s:g} s ({_SHARE:g} of timeout_s)"
        f"{': its process is stopped (SIGSTOP)' if worker in stopped else ''}; "
        "see whether the storage of rec answers, and raise timeout_s if it is only slow"
    )


def _end_stopped_workers() -> None:
    """End workers that are stopped: Python would wait for them for ever before it ends itself."""
    for child in multiprocessing.active_children():
        if child.pid is not None and process_of(child.pid).state() == "T":
            child.kill()
