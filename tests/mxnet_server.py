"""A process of an interpreter with mxnet, for tests."""

import contextlib
import pickle
import subprocess
from pathlib import Path

import pytest

from benchmarks.mxnet_process import find_mxnet_python

SCRIPT = Path(__file__).parent / "data" / "records" / "mxnet_peer.py"


@contextlib.contextmanager
def mxnet_commands(folder):
    """A function that has commands of mxnet_peer.py run, each (name, arguments); returns their results."""
    try:
        python = find_mxnet_python()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    job = folder / "job"
    with (job.with_name("stderr")).open("w+") as errors:
        process = subprocess.Popen(
            [python, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

        def run(*commands):
            job.write_bytes(pickle.dumps(commands))
            process.stdin.write(f"{job}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n", job.with_name("stderr").read_text()
            return pickle.loads(job.read_bytes())

        try:
            yield run
        finally:
            process.kill()
            process.communicate()
