"""An error of one rank ends every rank within seconds, each with the first rank's reason."""

import multiprocessing
import os
import signal
import socket
import sys
import time

import pytest
import torch

import ranks
from utils.distributed import all_reduce_sum_, init_ranks, one_fate, speaks

pytestmark = pytest.mark.distributed
assert ranks.__doc__, "it has torch loaded into the fork server"


def go_wrong(rank, what):
    """What each rank runs; ``what`` says what goes wrong."""
    init_ranks("cpu", timeout_s=600)
    with one_fate():
        if what == "error" and rank == 1:
            raise RuntimeError("rank one is wrong")
        if what == "store" and rank == 0:
            raise KeyError("the rank with the store is wrong")
        if what == "deaf":  # ranks 0 and 2 wait where no broken connection reaches them
            if rank == 1:
                raise RuntimeError("rank one is wrong")
            time.sleep(600)
        if what == "alone" and rank == 1:
            error = ValueError("rank one has met this alone")
            sys.exit(f"error: {error}" if speaks(error) else 2)
        if what == "all":
            error = ValueError("every rank has met this")
            sys.exit(f"error: {error}" if speaks(error) else 2)
        if what == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(3):
            all_reduce_sum_(torch.ones(1))
            if what != "fine":
                time.sleep(1)


def entry(rank, world_size, port, what, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world_size))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with (folder / f"{rank}.err").open("w") as file:
        os.dup2(file.fileno(), 2)
    go_wrong(rank, what)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(what, folder, world_size=3):
    """Start ranks without a launcher that would end the others.

    Returns the exit status and the errors of each, and the seconds from the first end to the last.
    """
    context, port = multiprocessing.get_context("forkserver"), free_port()
    processes = [
        context.Process(target=entry, args=(rank, world_size, port, what, folder)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        first_end = None
        while any(process.is_alive() for process in processes):
            if first_end is None and not all(process.is_alive() for process in processes):
                first_end = time.monotonic()
            assert first_end is None or time.monotonic() - first_end < 60, "some ranks go on without the others"
            time.sleep(0.05)
        took_s = time.monotonic() - (first_end or time.monotonic())
        return [(process.exitcode, (folder / f"{r}.err").read_text()) for r, process in enumerate(processes)], took_s
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_nothing_is_said_when_all_is_well(tmp_path):
    ends, _ = launch("fine", tmp_path)
    assert ends == [(0, "")] * 3


@pytest.mark.parametrize(
    ("what", "failing", "reason"),
    [
        ("error", 1, "failed: RuntimeError: rank one is wrong"),
        ("store", 0, "failed: KeyError: 'the rank with the store is wrong'"),
        ("deaf", 1, "failed: RuntimeError: rank one is wrong"),
    ],
)
def test_every_rank_ends_with_the_first_ones_reason(tmp_path, what, failing, reason):
    ends, took_s = launch(what, tmp_path)
    assert took_s < 15
    for rank, (status, errors) in enumerate(ends):
        assert status == 1
        last = errors.strip().splitlines()[-1]
        if rank == failing:
            assert last.endswith(reason.removeprefix("failed: "))
        else:
            assert last.startswith(f"rank {rank} ends, because rank {failing} on ")
            assert last.endswith(reason)
            assert "Traceback" not in errors


def test_an_error_that_one_rank_alone_has_met_is_said_by_it(tmp_path):
    ends, took_s = launch("alone", tmp_path)
    assert took_s < 15
    assert [status for status, _ in ends] == [1, 1, 1]
    assert ends[1][1] == "error: rank one has met this alone\n"
    for rank in (0, 2):
        assert ends[rank][1].strip().endswith("failed: ValueError: rank one has met this alone")


def test_an_error_that_all_have_met_is_said_once(tmp_path):
    ends, _ = launch("all", tmp_path)
    assert [errors for _, errors in ends] == ["error: every rank has met this\n", "", ""]


def test_a_killed_rank_ends_the_others(tmp_path):
    ends, took_s = launch("killed", tmp_path)
    assert took_s < 20
    assert [status for status, _ in ends] == [1, -9, 1]
    assert sum("failed: " in errors or "Error" in errors for _, errors in ends) == 2
