"""Whole runs under torchrun whose processes are killed or stopped: all of them end, with the cause."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paths import ROOT
from ranks import free_port
from tiny_runs import TINY, metrics
from training.checkpoint import list_checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc"),
]


def children(pid):
    """The numbers of the processes that one has started, the last of them last."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait_until(condition, limit_s):
    """Whether it holds within the limit."""
    end_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.1)
    return condition()


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def tiny_run(tmp_path):
    """A run on two ranks with two workers each, some steps on: launcher, numbers of the ranks and of the workers."""
    output, printed = tmp_path / "run", tmp_path / "printed"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["train.py", TINY, f"output={output}", "num_epoch=100000", "batch_size=4", "num_workers=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with printed.open("w") as file:
        launcher = subprocess.Popen([*command, "timeout_s=14"], cwd=ROOT, stdout=file, stderr=file, env=env)
    ranks = workers = []
    try:
        started = wait_until(lambda: (output / "metrics.jsonl").exists() and len(metrics(output)) > 4, 60)
        assert started, printed.read_text()
        ranks = [rank for rank in children(launcher.pid) if len(children(rank)) >= 2]
        workers = [worker for rank in ranks for worker in children(rank)[-2:]]
        assert len(ranks) == 2
        yield launcher, ranks, workers, printed
    finally:
        for pid in [launcher.pid, *ranks, *workers]:
            if is_there(pid):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()


def all_gone(run, limit_s=30):
    """Whether all processes of a run end within the limit."""
    launcher, ranks, workers, _ = run
    pids = [*ranks, *workers]
    return wait_until(lambda: launcher.poll() is not None and not any(map(is_there, pids)), limit_s)


def test_a_killed_launcher_takes_its_ranks_along_and_they_save(tiny_run, tmp_path):
    tiny_run[0].kill()
    assert all_gone(tiny_run)
    step = re.search(r"stopped by SIGTERM after step (\d+)", (tmp_path / "run" / "training.log").read_text())[1]
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step_{step}"


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        (signal.SIGKILL, r"a loader worker on \S+ has ended without a word.*lower num_workers.*"),
        (signal.SIGSTOP, r"loader worker \d on \S+ \(process \d+\) has not delivered batch .*stopped \(SIGSTOP\).*"),
    ],
)
def test_a_worker_that_is_lost_ends_the_run(tiny_run, what, cause):
    launcher, _, workers, printed = tiny_run
    os.kill(workers[-1], what)
    assert all_gone(tiny_run, 40)
    assert launcher.returncode != 0
    assert re.search(rf"train\.py: {cause}", printed.read_text()), printed.read_text()
    said = rf"^rank 0 ends, because rank 1 on \S+ failed: \w+: {cause}$"
    assert re.search(said, printed.read_text(), re.M), printed.read_text()


def test_a_stopped_rank_is_named_and_ended(tiny_run):
    launcher, ranks, _, printed = tiny_run
    os.kill(ranks[1], signal.SIGSTOP)
    assert all_gone(tiny_run, 40)
    assert launcher.returncode != 0
    said = rf"^rank 0 ends, because rank 1 on \S+ \(process {ranks[1]}\) has not .* stopped \(SIGSTOP\)$"
    assert re.search(said, printed.read_text(), re.M), printed.read_text()
