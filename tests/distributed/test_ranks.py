"""The test harness itself: failures and hangs are reported, not swallowed."""

import time

import pytest
import torch.distributed as dist

from ranks import run_ranks

pytestmark = pytest.mark.distributed


def fail_on_rank_one(rank, world_size):
    if rank == 1:
        raise RuntimeError("rank one is wrong")
    dist.barrier()


def sleep(rank, world_size):
    time.sleep(600)


def who(rank, world_size):
    return rank, world_size


def test_results_come_back_in_order():
    assert run_ranks(who, 3) == [(0, 3), (1, 3), (2, 3)]


def test_a_failing_rank_is_named():
    with pytest.raises(AssertionError, match="rank one is wrong"):
        run_ranks(fail_on_rank_one, 2)


def test_a_hang_ends():
    with pytest.raises(TimeoutError, match="sleep hung on 2 ranks"):
        run_ranks(sleep, 2, timeout_s=3)
