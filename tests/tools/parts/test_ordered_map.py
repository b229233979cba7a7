import os
import threading
import time

import pytest

from tools.parts.ordered_map import ordered_map


def square(number):
    time.sleep(0.02 * (number % 3 == 0))  # so that later ones are done earlier
    return number * number, os.getpid()


def fail_at_five(number):
    if number == 5:
        raise ValueError("five")
    return number


def die_at_five(number):
    if number == 5:
        os._exit(3)
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers):
    found = list(ordered_map(square, range(40), workers))
    assert [number for number, _ in found] == [i * i for i in range(40)]
    pids = {pid for _, pid in found}
    assert (pids == {os.getpid()}) == (workers == 1)


def test_tasks_are_drawn_as_they_are_needed():
    drawn = []

    def tasks():
        for i in range(1000):
            drawn.append(i)
            yield i

    results = ordered_map(fail_at_five, tasks(), 2)
    assert next(results) == 0
    assert len(drawn) <= 8
    results.close()
    assert len(drawn) <= 8


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_raised_here(workers):
    results = ordered_map(fail_at_five, range(100), workers)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_a_worker_that_dies_is_an_error_and_no_hang():
    with pytest.raises(OSError, match="a worker process died"):
        list(ordered_map(die_at_five, range(100), 2))


def echo(data):
    return data


def test_large_tasks_and_results_do_not_wait_for_each_other():
    data = [bytes([i]) * 3_000_000 for i in range(24)]  # far more than a pipe holds
    assert list(ordered_map(echo, data, 2)) == data


def lock_of(number):
    return threading.Lock() if number == 5 else number


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises(RuntimeError, match="cannot pickle"):
        list(ordered_map(lock_of, range(10), 2))


class TooLarge:
    """A task that no worker can take in."""

    def __reduce__(self):
        return _no_memory, ()


def _no_memory():
    raise MemoryError("too large")


def test_a_task_that_cannot_be_unpacked_is_an_error_and_no_hang():
    with pytest.raises(RuntimeError, match="a task could not be unpacked: MemoryError: too large"):
        list(ordered_map(echo, [1, TooLarge(), 2], 2))


class NeedsTwoError(Exception):
    """Can be packed, but not unpacked."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail_with_two(number):
    raise NeedsTwoError(number, 2)


def test_an_exception_that_cannot_be_sent_is_told_by_its_text():
    with pytest.raises(RuntimeError, match="NeedsTwoError: 1 and 2"):
        list(ordered_map(fail_with_two, [1], 2))


def no_file():
    raise FileNotFoundError("no such set")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_setup_says_why(workers):
    with pytest.raises(FileNotFoundError, match="no such set"):
        list(ordered_map(echo, range(3), workers, no_file))
