"""Who may end a loader's process, however it was started."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import pytest

from data import workers
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


def test_batches_that_do_not_fit_into_shared_memory_are_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_SHM", tmp_path)
    monkeypatch.setattr(workers.os, "statvfs", lambda _: types.SimpleNamespace(f_bavail=64, f_frsize=2**20))
    workers.check_shared_memory(2, 2**20, ranks_here=10)
    workers.check_shared_memory(0, 2**40)
    expected = (
        r"has 64 MiB free, .* need 66 MiB there \(11 ranks x 6 batches of 1.0 MiB\): .*--shm-size=8g.*num_workers"
    )
    with pytest.raises(ValueError, match=expected):
        workers.check_shared_memory(2, 2**20, ranks_here=11)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="a small /dev/shm takes the command unshare")
def test_shared_memory_that_fills_up_is_an_error_of_the_loader(tmp_path):
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    script = tmp_path / "script.py"
    script.write_text(START + "    running()" + END)
    done = subprocess.run(
        [*small, sys.executable, script],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "docker run --shm-size=8g, or --ipc=host" in done.stderr.strip().splitlines()[-1]


def test_a_worker_that_hangs_is_named(tmp_path):
    in_a_process_of_its_own(
        tmp_path,
        """
        class Endless(SyntheticFaces):
            def __getitems__(self, indices):
                while 40 in indices:
                    pass
                return super().__getitems__(indices)

        order = EpochSampler(64, 4)
        at = next(n for n, indices in enumerate(order) if 40 in indices)
        loader = WorkerLoader(Endless(5, 64), batch_sampler=order, num_workers=2, timeout_s=5)
        got = 0
        try:
            for _ in loader:
                got += 1
        except TimeoutError as error:
            said = str(error)
        assert got == at, (got, at)
        assert said.startswith(f"loader worker {at % 2} on "), said
        assert f"has not delivered batch {at} of the epoch within 4 s (0.8 of timeout_s); see whether" in said, said
        """,
    )


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system does not tell of a process that has ended")
def test_the_end_of_a_hanging_worker_raises_nothing_but_its_name(tmp_path):
    """The system may tell of it at any time, also when the error that names the worker is just being written."""
    in_a_process_of_its_own(
        tmp_path,
        """
        import contextlib, threading
        import torch

        loader = WorkerLoader(SyntheticFaces(5, 64), batch_sampler=EpochSampler(64, 4), num_workers=1, timeout_s=5)
        arriving = iter(loader)
        next(arriving)
        worker, told, was_told = arriving._workers[0], [], threading.Event()
        kill = worker.kill

        def told_of_its_end():
            kill()
            with contextlib.suppress(ChildProcessError):  # the main thread has seen it already
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            try:
                torch._C._error_if_any_worker_fails()
            except RuntimeError as error:
                told.append(error)
            was_told.set()

        worker.kill = told_of_its_end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            list(arriving)
        except TimeoutError as error:
            assert "stopped (SIGSTOP)" in str(error), error
        else:
            raise AssertionError("no error")
        assert was_told.wait(10)
        assert told == [], told
        """,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="stopped processes are seen in /proc")
@pytest.mark.parametrize("ending", ["SIGSTOP", "SIGKILL"])
def test_a_worker_lost_while_it_hands_a_later_batch_over_ends_the_wait(tmp_path, ending):
    """Who waits is then in this worker's socket, not in that of the one whose batch is due."""
    in_a_process_of_its_own(
        tmp_path,
        f"""
        import faulthandler, threading, time
        import torch

        second_is_on = torch.multiprocessing.Event()

        class SlowInOne(torch.utils.data.Dataset):
            def __len__(self):
                return 64

            def __getitems__(self, indices):
                if indices[0] == 0:
                    time.sleep(60)
                if indices[0] > 4:  # the second worker's second batch: it has handed its first over to its queue
                    second_is_on.set()
                return torch.zeros(4, 8)

        faulthandler.dump_traceback_later(90, exit=True)
        order = [list(range(i, i + 4)) for i in range(0, 64, 4)]
        loader = WorkerLoader(SlowInOne(), batch_sampler=order, num_workers=2, timeout_s=6)
        arriving = iter(loader)
        assert second_is_on.wait(60)
        time.sleep(1)  # the queue's thread has written that batch
        pid = arriving._workers[1].pid
        os.kill(pid, signal.SIGSTOP)
        if {ending!r} == "SIGKILL":
            threading.Timer(1, os.kill, (pid, signal.SIGKILL)).start()
        try:
            next(arriving)
        except TimeoutError as error:
            assert {ending!r} == "SIGSTOP", error
            assert str(error).startswith("loader worker 1 on ") and "batch 1" in str(error), error
            assert "stopped (SIGSTOP)" in str(error), error
        except RuntimeError as error:
            assert {ending!r} == "SIGKILL", error
            assert "DataLoader worker" in str(error) and str(pid) in str(error), error
        else:
            raise AssertionError("no error")
        """,
    )
