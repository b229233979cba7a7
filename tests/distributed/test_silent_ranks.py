"""A rank that is killed, stopped or hangs ends every rank, each of which names it; none stays behind."""

import os
import re
import signal
import time

import pytest
import torch

from ranks import launch_ranks
from utils.distributed import all_gather_rows, all_reduce_sum_, init_ranks
from utils.fate import one_fate

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TIMEOUT_S = 8


def fall_silent(rank, what, culprit):
    """What each rank runs: two collectives, then the culprit does ``what`` before it joins the third."""
    init_ranks("cpu", timeout_s=TIMEOUT_S)
    with one_fate():
        all_reduce_sum_(torch.ones(1), "losses")
        all_reduce_sum_(torch.ones(1), "counts")
        time.sleep(1.5)  # a sign of life
        if rank == culprit:
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "left":
                os._exit(0)
            if what == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            while what == "looping":
                pass
        elif what == "killed" and rank == 2:
            time.sleep(600)  # where no broken connection reaches it
        all_gather_rows(torch.ones(1), "labels")


@pytest.mark.parametrize(
    ("what", "culprit", "status"),
    [
        ("killed", 1, -signal.SIGKILL),
        ("killed", 0, -signal.SIGKILL),
        ("left", 1, 0),
        ("looping", 1, 1),
        ("stopped", 1, -signal.SIGKILL),
        ("stopped", 0, -signal.SIGKILL),
    ],
)
def test_every_rank_names_the_one_that_is_silent(tmp_path, what, culprit, status):
    ends, took_s = launch_ranks(fall_silent, 3, tmp_path, what, culprit, limit_s=30)
    assert took_s < 20
    assert ends[culprit][0] == status
    named = rf"because rank {culprit} on \S+ \(process \d+\) has "
    if what in ("killed", "left"):
        reason = named + r"gone without a word: killed, for example for want of memory \(see dmesg\)"
    elif (what, culprit) == ("stopped", 0):  # which holds the store in which it said how far it was
        # The first rank to find it out ends the stopped process, so that another may find it gone.
        reason = (
            named + r"(not gone on for timeout_s = 8 s: its process is stopped \(SIGSTOP\)|gone without a word.*)"
        )
        assert "its process is stopped (SIGSTOP)" in "".join(errors for _, errors in ends)
    else:
        stopped = r": its process is stopped \(SIGSTOP\)" if what == "stopped" else ""
        last = r"it was last in the all-reduce of counts, collective 3"
        reason = (
            named + rf"not joined the all-gather of labels \(collective 4; {last}\) within timeout_s = 8 s{stopped}"
        )
    for rank, (ended, errors) in enumerate(ends):
        if rank != culprit or what == "looping":
            assert ended == 1
            last_line = errors.strip().splitlines()[-1]
            assert re.fullmatch(rf"rank {rank} ends, {reason}", last_line), errors
            assert "Traceback" not in errors
