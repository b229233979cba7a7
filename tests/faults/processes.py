"""A launched run with all its processes: children, orphans, workers. A mark in their environment finds them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from paths import ROOT

MARK = "MHS_FAULTS_RUN"
POLL_S = 0.05


class Launch:
    """A command in a session of its own, its output in a file.

    Args:
        command: program and arguments.
        log: file for stdout and stderr together.
        env: set on top of this process's environment.
        started_by: words that the command is put behind, such as ``ip netns exec NAME``.
    """

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, started_by: Sequence[str] = ()
    ) -> None:
        self.mark, self.log = uuid.uuid4().hex, log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), MARK: self.mark}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*started_by, *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """Every process of this run that is alive, stopped ones included."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid in all_pids() if mark in environment_of(pid)]

    def ranks(self) -> dict[int, int]:
        """Rank to process, of the ranks on this launcher that are alive."""
        found = {}
        for pid in self.pids():
            rank = value_of(pid, "RANK")
            if rank is not None and value_of(parent_of(pid), "RANK") is None and is_python(pid):
                found[int(rank)] = pid
        return found

    def workers(self, rank: int) -> list[int]:
        """The loader's processes of a rank."""
        parent = self.ranks()[rank]
        return [pid for pid in self.pids() if parent_of(pid) == parent and "resource_tracker" not in command_of(pid)]

    def role_of(self, pid: int) -> str:
        """What a process is to the run: "launcher", "rank 0", "child of rank 0" (a loader's process)."""
        rank = value_of(pid, "RANK")
        if rank is None:
            return "launcher"
        return f"rank {rank}" if pid in self.ranks().values() else f"child of rank {rank}"

    def output(self) -> str:
        """What all processes have printed so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int, pids: Sequence[int]) -> None:
        """Send a signal; whoever is gone already is left out."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_until(self, is_so: Callable[[], bool], limit_s: float = 60) -> bool:
        """Poll until something holds or the launcher has ended; whether it held."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            if is_so():
                return True
            if self.process.poll() is not None:
                return is_so()
            time.sleep(POLL_S)
        return False

    def wait_until_gone(self, limit_s: float) -> bool:
        """Wait for the end of every process, then collect the launcher's status; False if some are still there."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            if self.process.poll() is not None and not self.pids():
                return True
            time.sleep(POLL_S)
        return False

    def end_all(self) -> None:
        """Kill what is left of this run."""
        self.signal(signal.SIGKILL, self.pids())
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.wait_until_gone(5)


@contextlib.contextmanager
def ended(launch: Launch) -> Iterator[Launch]:
    """A launch of which nothing is left afterwards."""
    try:
        yield launch
    finally:
        launch.end_all()


def all_pids() -> list[int]:
    """Every process of the machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def environment_of(pid: int) -> bytes:
    """A process's environment as it was at its start; empty for one that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def value_of(pid: int, name: str) -> str | None:
    """A variable of a process's environment."""
    for entry in environment_of(pid).split(b"\0"):
        if entry.startswith(name.encode() + b"="):
            return entry.partition(b"=")[2].decode()
    return None


def parent_of(pid: int) -> int:
    """The parent's number, 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command_of(pid: int) -> str:
    """A process's command line, empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_python(pid: int) -> bool:
    """Whether the process runs Python code, not only a shell or ``unshare`` around it."""
    return "python" in command_of(pid) and "resource_tracker" not in command_of(pid)
