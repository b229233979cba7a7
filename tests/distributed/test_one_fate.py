"""An error of one rank ends every rank within seconds, each with the first rank's reason."""

import os
import signal
import sys
import time

import pytest
import torch

from ranks import launch_ranks
from utils import fate
from utils.distributed import all_reduce_sum_, close_ranks, init_ranks
from utils.fate import one_fate, speaks

pytestmark = pytest.mark.distributed


def go_wrong(rank, what):
    """What each rank runs; ``what`` says what goes wrong."""
    init_ranks("cpu", timeout_s=600)
    if what == "stopped":
        fate._GRACE_S = 0.5
    with one_fate():
        if what == "last" and rank == 1:  # after the others' last collective
            raise RuntimeError("rank one is wrong")
        if what == "last":
            fate.barrier = lambda: time.sleep(600)
            return
        if what == "stopped":  # as SIGTERM ends a run: rank 0, and the store with it, is gone before rank 1
            close_ranks()
            time.sleep(3 * rank)
            sys.exit(143)
        if what == "error" and rank == 1:
            raise RuntimeError("rank one is wrong")
        if what == "store" and rank == 0:
            raise KeyError("the rank with the store is wrong")
        if what == "deaf":  # ranks 0 and 2 wait where no broken connection reaches them
            if rank == 1:
                raise RuntimeError("rank one is wrong")
            time.sleep(600)
        if what == "interrupted" and rank == 1:  # by a loader's worker that ends, and by the launcher
            signal.signal(signal.SIGCHLD, lambda *_: sys.exit("error: a worker has ended"))
            fate.tell_launcher = lambda reason: [os.kill(os.getpid(), n) for n in (signal.SIGCHLD, signal.SIGTERM)]
        if what in ("alone", "interrupted") and rank == 1:
            error = ValueError("rank one has met this alone")
            sys.exit(f"error: {error}" if speaks(error) else 2)
        if what == "all":
            error = ValueError("every rank has met this")
            sys.exit(f"error: {error}" if speaks(error) else 2)
        for _ in range(3):
            all_reduce_sum_(torch.ones(1))
            if what != "fine":
                time.sleep(1)


def test_nothing_is_said_when_all_is_well(tmp_path):
    ends, _ = launch_ranks(go_wrong, 3, tmp_path, "fine")
    assert ends == [(0, "")] * 3


def test_a_rank_that_has_left_may_end_long_after_the_others(tmp_path):
    ends, _ = launch_ranks(go_wrong, 2, tmp_path, "stopped")
    assert [status for status, _ in ends] == [143, 143]
    assert not any("because" in errors for _, errors in ends)


@pytest.mark.parametrize(
    ("what", "failing", "reason"),
    [
        ("error", 1, "failed: RuntimeError: rank one is wrong"),
        ("store", 0, "failed: KeyError: 'the rank with the store is wrong'"),
        ("deaf", 1, "failed: RuntimeError: rank one is wrong"),
        ("last", 1, "failed: RuntimeError: rank one is wrong"),
    ],
)
def test_every_rank_ends_with_the_first_ones_reason(tmp_path, what, failing, reason):
    ends, took_s = launch_ranks(go_wrong, 3, tmp_path, what)
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


@pytest.mark.parametrize("what", ["alone", "interrupted"])
def test_an_error_that_one_rank_alone_has_met_is_said_by_it(tmp_path, what):
    ends, took_s = launch_ranks(go_wrong, 3, tmp_path, what)
    assert took_s < 15
    assert [status for status, _ in ends] == [1, 1, 1]
    assert ends[1][1] == "error: rank one has met this alone\n"
    for rank in (0, 2):
        assert ends[rank][1].strip().endswith("failed: ValueError: rank one has met this alone")


def test_an_error_that_all_have_met_is_said_once(tmp_path):
    ends, _ = launch_ranks(go_wrong, 3, tmp_path, "all")
    assert [errors for _, errors in ends] == ["error: every rank has met this\n", "", ""]
