import os
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
