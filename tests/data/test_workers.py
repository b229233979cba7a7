"""Who may end a loader's process, however it was started."""

import multiprocessing
import signal
import subprocess
import sys
import textwrap

import pytest

from paths import ROOT

METHODS = multiprocessing.get_all_start_methods()
START = """
import multiprocessing, os, signal, subprocess, sys
from data.faces import SyntheticFaces
from data.sampler import EpochSampler
from data.workers import WorkerLoader, start_method

def running(**options):
    loader = WorkerLoader(SyntheticFaces(5, 64), batch_sampler=EpochSampler(64, 4), num_workers=1, **options)
    arriving = iter(loader)
    next(arriving)
    return arriving, arriving._workers[0]

def terminate_from_elsewhere(pid):  # below 0: a group's
    code = f"import os, signal; os.kill({pid}, signal.SIGTERM)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, start_new_session=True)

def main():
"""
END = """
if __name__ == "__main__":
    main()
"""


def in_a_process_of_its_own(folder, lines):
    """A fork server serves the whole process that started it: other tests must not get this one, nor it theirs."""
    script = folder / "script.py"
    script.write_text(START + textwrap.indent(textwrap.dedent(lines), "    ") + END)
    done = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal")
@pytest.mark.parametrize("method", METHODS)
def test_only_the_training_process_ends_a_worker(tmp_path, method):
    in_a_process_of_its_own(
        tmp_path,
        f"""
        arriving, worker = running(multiprocessing_context={method!r})
        terminate_from_elsewhere(worker.pid)
        for _ in range(8):  # more than were made ahead
            next(arriving)
        worker.terminate()
        worker.join(20)
        assert worker.exitcode == 0, worker.exitcode
        """,
    )


@pytest.mark.skipif("forkserver" not in METHODS, reason="this system has no fork server")
def test_the_default_is_no_fork_server(tmp_path):
    """Python 3.14's is; a SIGTERM to the group would end the server, and with it the workers."""
    in_a_process_of_its_own(
        tmp_path,
        """
        multiprocessing.set_start_method("forkserver")
        assert start_method() == "spawn"
        arriving, worker = running()
        signal.signal(signal.SIGTERM, lambda *_: None)
        terminate_from_elsewhere(-os.getpid())
        assert len(list(arriving)) == 15
        """,
    )


@pytest.mark.skipif("fork" not in METHODS, reason="the worker has to inherit what is taken away here")
def test_a_system_that_does_not_tell_senders(tmp_path):
    """As on macOS: the loader works and ends."""
    in_a_process_of_its_own(
        tmp_path,
        """
        if hasattr(signal, "sigwaitinfo"):
            del signal.sigwaitinfo
        arriving, worker = running(multiprocessing_context="fork")
        for _ in range(8):
            next(arriving)
        worker.terminate()
        worker.join(20)
        assert not worker.is_alive()
        """,
    )
