"""A loader's processes: how they start, and who may end them.

Launchers and schedulers send SIGTERM to the whole group. The training process then still needs its workers to finish
the step and save, so that only its own SIGTERM ends them. That takes a system which tells who sent a signal: Linux;
on macOS and Windows anybody's ends a worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from utils.opencv import cv2

T_co = TypeVar("T_co", covariant=True)


class WorkerLoader(DataLoader[T_co]):
    """torch's loader, with the processes of this module; it takes batches as the data set makes them."""

    def __init__(self, dataset: Any, **options: Any) -> None:
        if options.get("num_workers"):
            options = {"multiprocessing_context": start_method(), "worker_init_fn": start_worker, **options}
        super().__init__(dataset, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Any:
        if not _tells_senders():
            return super().__iter__()
        resource_tracker.ensure_running()  # started with the processes, it would let SIGTERM through again
        # New processes inherit this, and so do the threads that libraries start in them before start_worker runs.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_method() -> str:
    """Python's own choice, but not a fork server: a group's SIGTERM would end it, and the workers with it."""
    method = multiprocessing.get_start_method()  # Python 3.14's own choice on Linux is a fork server
    return "spawn" if method == "forkserver" else method


def start_worker(worker_id: int) -> None:
    """Prepare a loader's process: one thread for each library; see the module for SIGTERM."""
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
