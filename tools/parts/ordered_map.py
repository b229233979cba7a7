"""Work shared out over processes, results in the order of the tasks, with little in memory at a time."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

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

    Tasks are drawn as they are needed, and given to the workers in turn. What ``function`` raises is raised here. At
    the end, and at an error or an interrupt, the workers are ended at once. There are no locks on this side: an
    interrupt that comes while one is taken would leave it taken, and the program hanging.

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
    pool: list[tuple[Any, Connection]] = []
    under_way: deque[Connection] = deque()
    try:
        with _interrupts_held_back():  # new processes inherit this
            for _ in range(workers):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there, function, setup), daemon=True)
                process.start()
                there.close()
                pool.append((process, here))
        turn = itertools.cycle(pipe for _, pipe in pool)
        for task in tasks:
            under_way.append(next(turn))
            _send(under_way[-1], task)
            if len(under_way) == _AHEAD * workers:
                yield _result(under_way.popleft())
        while under_way:
            yield _result(under_way.popleft())
    finally:
        for process, pipe in pool:
            pipe.close()
            process.kill()
            process.join()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let an interrupt from the keyboard wait until this is over."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which every new process needs; starting it would let interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe: Connection, task: Any) -> None:
    try:
        pipe.send(task)
    except OSError as error:
        raise _death() from error


def _result(pipe: Connection) -> Any:
    try:
        succeeded, value = pipe.recv()
    except (EOFError, OSError) as error:
        raise _death() from error
    if succeeded:
        return value
    raise value


def _death() -> OSError:
    return OSError("a worker process died, perhaps for want of memory: try fewer --workers")


def _work(pipe: Connection, function: Callable[[Any], Any], setup: Callable[[], None] | None) -> None:
    """A worker's life: it ends with its parent, or when its pipe is closed, even in the middle of a task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends its workers
    cv2.setNumThreads(0)
    tasks: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, function, tasks), daemon=True).start()
    failure: Exception | None = None
    try:
        if setup is not None:
            setup()
    except Exception as error:
        failure = error  # the answer to every task
    while True:
        task = tasks.get()
        try:
            answer = (False, failure) if failure else (True, task())
        except Exception as error:
            answer = (False, error)
        try:
            pipe.send_bytes(_packed(answer))
        except OSError:
            os._exit(1)


def _packed(answer: tuple[bool, Any]) -> bytes:
    """The answer to a task, or the reason why it cannot be sent."""
    succeeded, value = answer
    try:
        packed = bytes(ForkingPickler.dumps(answer))
        if not succeeded:
            pickle.loads(packed)  # some exceptions can be packed, but not unpacked
    except Exception as error:
        reason = error if succeeded else value
        packed = bytes(ForkingPickler.dumps((False, RuntimeError(f"{type(reason).__name__}: {reason}"))))
    return packed


def _receive(pipe: Connection, function: Callable[[Any], Any], tasks: queue.SimpleQueue[Callable[[], Any]]) -> None:
    """Take tasks off the pipe as they come, so that neither side ever waits for the other to read."""
    while True:
        try:
            tasks.put(functools.partial(function, pipe.recv()))
        except (EOFError, OSError):
            os._exit(1)
        except BaseException as error:  # a task that cannot be unpacked
            tasks.put(functools.partial(_fail, error))


def _fail(error: BaseException) -> None:
    raise RuntimeError(f"a task could not be unpacked: {type(error).__name__}: {error}")
