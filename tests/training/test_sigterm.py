"""What SIGTERM, Ctrl-C and SIGUSR1 do to a run: in a step, in a long verification, and when it hangs."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from eval.pairs.bin_file import PairSet
from paths import ROOT
from ranks import run_ranks
from training.sigterm import StopRequest, nothing_to_save_yet
from training.verification import Verification

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")

START = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from training import sigterm
sigterm._PATIENCE_S = 2.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell's & inherits that it is ignored
"""


def in_a_process(lines, *to_send):
    """Run lines that print "ready" when they are; send (signal, seconds after the one before); status and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(lines)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for number, wait_s in to_send:
            time.sleep(wait_s)
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, errors


def test_a_run_that_hangs_ends_and_says_where_its_last_checkpoint_is(tmp_path):
    (tmp_path / "step_20").mkdir()
    (tmp_path / "step_20" / "training.pt").touch()
    status, errors = in_a_process(
        f"""
        with sigterm.StopRequest(Path({str(tmp_path)!r})):
            print("ready", flush=True)
            torch.distributed.FileStore({str(tmp_path / "store")!r}, 1).get("never written")  # deaf to signals
        """,
        (signal.SIGTERM, 0),
    )
    assert status == 143
    assert re.fullmatch(
        r"rank 0 ends without saving, because 2 s after SIGTERM it has not come to the end of its step: it hangs; "
        rf"the last checkpoint is {tmp_path}/step_20",
        errors.strip().splitlines()[-1],
    )


STEPS = """
with sigterm.StopRequest() as stop:
    print("ready", flush=True)
    end_s = time.monotonic() + 6
    while time.monotonic() < end_s:  # saves, after having agreed
        time.sleep(0.05)
        stop.agree(torch.tensor(False))
sys.exit(5 if stop.agreed else 6)
"""


def test_two_requests_within_a_second_are_one():
    assert in_a_process(STEPS, (signal.SIGTERM, 0), (signal.SIGTERM, 0.8)) == (5, "")


def test_a_second_request_after_seconds_ends_at_once():
    started_s = time.monotonic()
    status, errors = in_a_process(STEPS, (signal.SIGTERM, 0), (signal.SIGTERM, 3.8))
    assert status == 143
    assert "SIGTERM came again after 4 s; there is no checkpoint" in errors
    assert time.monotonic() - started_s < 20


def test_ctrl_c_asks_a_run_to_save_and_end_and_twice_within_a_moment_is_once():
    assert in_a_process(STEPS, (signal.SIGINT, 0), (signal.SIGINT, 0.2)) == (
        5,
        "interrupted: waiting for the checkpoint; Ctrl-C again ends at once\n",
    )


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_then_another_request_ends_at_once_with_its_status(second):
    status, errors = in_a_process(STEPS, (signal.SIGINT, 0), (second, 1.8))
    assert status == 130
    name = "Ctrl-C" if second == signal.SIGINT else "SIGTERM"
    assert errors == f"rank 0 ends without saving, because {name} came again after 2 s; there is no checkpoint\n"


def test_a_run_in_the_background_of_a_script_ignores_ctrl_c_as_it_was_started_to():
    lines = """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with sigterm.StopRequest() as stop:
        print("ready", flush=True)
        time.sleep(1.5)
        stop.agree(torch.tensor(False))
    sys.exit(5 if stop.agreed else 6)
    """
    assert in_a_process(lines, (signal.SIGINT, 0.2)) == (6, "")


def test_a_disk_that_takes_nothing_does_not_hold_up_the_end():
    """After the agreement to end, a save that makes no progress has a limit, and the dead disk is asked once only."""
    lines = """
    sigterm._SAVING_S, sigterm._LOOK_S = 1.0, 0.2
    sigterm.list_checkpoints = lambda folder: time.sleep(60)
    with sigterm.StopRequest(Path("checkpoints")) as stop:
        print("ready", flush=True)
        while not stop.agreed:
            time.sleep(0.1)
            stop.agree(torch.tensor(False))
        time.sleep(60)
    """
    started_s = time.monotonic()
    status, errors = in_a_process(lines, (signal.SIGTERM, 0))
    assert status == 143
    why = "1 s after SIGTERM it has not saved: the disk does not answer; checkpoints cannot be read"
    assert errors == f"rank 0 ends without saving, because {why}\n"
    assert time.monotonic() - started_s < 40


def test_sigusr1_is_agreed_once_and_the_run_goes_on():
    with StopRequest() as stop:
        assert not stop.agree(torch.tensor(False))
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agree(torch.tensor(True))
        assert (stop.save_agreed, stop.agreed) == (True, False)
        assert not stop.agree(torch.tensor(False))
        assert not stop.save_agreed
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_sigusr1_before_there_is_a_run_does_nothing():
    with nothing_to_save_yet():
        os.kill(os.getpid(), signal.SIGUSR1)
        with StopRequest() as stop:
            stop.agree(torch.tensor(False))
            assert not stop.save_agreed
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def ask_one_rank(rank, world_size):
    with StopRequest() as stop:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        first = stop.agree(torch.tensor(rank == 0)), stop.save_agreed, stop.agreed
        if rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return first, (stop.agree(torch.tensor(False)), stop.save_agreed, stop.agreed)


@pytest.mark.distributed
def test_all_ranks_agree_on_what_one_is_asked():
    assert run_ranks(ask_one_rank, 2) == [((True, True, False), (False, False, True))] * 2


class Metrics:
    """Takes what is written, and knows nothing of before."""

    def __init__(self):
        self.written = []

    def highest(self, name):
        return float("nan")

    def write(self, step, figures):
        self.written.append(figures)


def verify_and_be_asked(rank, world_size):
    """Three sets of 40 images in batches of 2; rank 1 is asked to end within its second set."""
    stop, metrics, batches = StopRequest(), Metrics(), []
    verification = Verification([], ROOT, torch.device("cpu"), 2, metrics, stop)
    import cv2

    images = [cv2.imencode(".png", np.full((112, 112, 3), i, np.uint8))[1].tobytes() for i in range(40)]
    verification.sets = [PairSet(name, images, np.arange(20) % 2 == 0) for name in "abc"]
    verification.best = dict.fromkeys("abc", float("nan"))

    class Backbone(torch.nn.Module):
        def forward(self, x):
            batches.append(len(x))
            if rank == world_size - 1 and len(batches) == 2 * 20 // world_size + 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return x[:, :, :2, :2].flatten(1)

    with stop:
        verification(Backbone(), 7)
    return len(batches), [set(figures) >= {"a/accuracy"} for figures in metrics.written], stop.agreed


@pytest.mark.distributed
@pytest.mark.parametrize("world_size", [1, 2])
def test_verification_leaves_off_on_all_ranks_and_drops_what_is_unfinished(world_size):
    """A rank that is asked does no batch more; each batch is embedded as it is and mirrored."""
    results = run_ranks(verify_and_be_asked, world_size)
    whole_set = 2 * 20 // world_size
    asked = whole_set + 6
    others = [(2 * whole_set, [True], True)] * (world_size - 1)
    assert results == [*others, (asked, [True], True)]
