"""Work shared out over processes, results in the order of the tasks, with little in memory at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from utils.opencv import cv2

_AHEAD = 4  # tasks of each worker that are done or under way before their results are asked for
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def ordered_map(
    function: Callable[[_Task], _Result],
    tasks: Iterable[_Task],
    workers: int,
    setup: Callable[[], None] | None = None,
) -> Iterator[_Result]:
    """Yield ``function(task)`` for each task in turn, computed in ``workers`` processes; with 1, in this one.

    Tasks are drawn as they are needed. What ``function`` raises is raised here.

    Args:
        function: at a module's top level, so that it can be sent to a new process.
        tasks: anything that can be pickled.
        workers: at least 1.
        setup: called once in each process before its first task; can be pickled.

    Raises:
        OSError: a process died.
    """
    if workers == 1:
        if setup is not None:
            setup()
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(setup,))
    under_way: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            under_way.append(pool.submit(function, task))
            if len(under_way) >= _AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise OSError("a worker process died, perhaps for want of memory: try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(setup: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends its workers
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
