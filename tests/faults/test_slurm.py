"""docs/train.sbatch, with SLURM's variables set by hand and stand-ins for its two commands."""

import os
import signal
import sys

import pytest

from faults.processes import Launch, ended
from faults.stage import last_step, newest_checkpoint
from paths import ROOT
from ranks import free_port
from tiny_runs import TINY

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SRUN = """#!/usr/bin/env bash
# Every task at once on this machine; the status is the highest of all, as srun's.
while [[ $1 == --* ]]; do shift; done
pids=()
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    pids+=($!)
done
highest=0
for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    ((status > highest)) && highest=$status
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then
    [[ $3 == "127.0.0.[1-2]" ]] && printf '127.0.0.1\\n127.0.0.2\\n'
else
    echo "$@" >> "$(dirname "$0")/asked"
fi
"""


def start(tmp_path, *arguments):
    """Start the script as a job of two tasks; the launch, and the file of what scontrol was asked."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    env = {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "127.0.0.[1-2]",
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "2",
        "MASTER_PORT": str(free_port()),
        "PYTHON": sys.executable,
    }
    command = ["bash", str(ROOT / "docs" / "train.sbatch"), *map(str, arguments)]
    return Launch(command, tmp_path / "log", env), commands / "asked"


def test_sigterm_saves_and_puts_the_job_back_into_the_queue(tmp_path):
    output = tmp_path / "run"
    launch, asked = start(tmp_path, TINY, f"output={output}", "batch_size=4", "num_epoch=20")
    with ended(launch):
        assert launch.wait_until(lambda: last_step(output) >= 5), launch.output()
        ranks = launch.ranks()
        assert set(ranks) == {0, 1}
        launch.signal(signal.SIGTERM, list(ranks.values()))
        assert launch.wait_until_gone(40), launch.output()
    assert launch.process.returncode == 143, launch.output()
    assert newest_checkpoint(output) == last_step(output)
    assert asked.read_text() == "requeue 4711\n"


def test_a_failure_is_not_put_back(tmp_path):
    launch, asked = start(tmp_path, TINY, f"output={tmp_path / 'run'}", "no_such_setting=1")
    with ended(launch):
        assert launch.wait_until_gone(60)
    assert launch.process.returncode == 2
    assert "unknown setting 'no_such_setting'" in launch.output()
    assert not asked.exists()
