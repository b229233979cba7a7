"""A process that measures rows one after the other, and is replaced when one hangs, crashes or breaks its device.

The parent writes a JSON object a line to its stdin; each answer is a line of stdout that begins with ``ANSWER``.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.classifier import measure_classifier
from benchmarks.gpu.facts import facts_of
from benchmarks.gpu.inputs import measure_input
from benchmarks.gpu.peaks import measure_peaks
from benchmarks.gpu.timing import ROOT
from benchmarks.gpu.training import measure_plan, measure_training
from utils.processes import die_with_parent

Answer = dict[str, Any]
_MARK = "ANSWER "


def _peaks(case: dict[str, Any], device: torch.device, folder: Path) -> Answer:
    return measure_peaks(device, case["size"], case["repeats"])


KINDS: dict[str, Callable[[dict[str, Any], torch.device, Path], Answer]] = {
    "facts": facts_of,
    "peaks": _peaks,
    "training": measure_training,
    "classifier": measure_classifier,
    "input": measure_input,
    "plan": measure_plan,
}


def measure(kind: str, case: dict[str, Any], device: torch.device, folder: Path) -> Answer:
    """One row in this process: what was found, or ``error`` with its traceback.

    ``is_broken`` says that the device answers no more in this process.
    """
    try:
        return KINDS[kind](case, device, folder)
    except Exception as error:
        answer: Answer = {**case, "error": f"{type(error).__name__}: {error}"[:600]}
        answer["traceback"] = traceback.format_exc()[-4000:]
        is_memory = isinstance(error, torch.OutOfMemoryError)
        answer["is_broken"] = not is_memory and "CUDA error" in str(error)
    gc.collect()  # the failed row's tensors, which the traceback's frames have held
    if device.type == "cuda" and not answer["is_broken"]:
        torch.cuda.empty_cache()
    return answer


def serve() -> None:
    """Answer the parent until it closes stdin."""
    if hasattr(signal, "SIGKILL"):
        die_with_parent(signal.SIGKILL)
    for line in sys.stdin:
        job = json.loads(line)
        device = torch.device(job["device"])
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)  # torch asks for a number
            torch.cuda.set_device(device)
        answer = measure(job["kind"], job["case"], device, Path(job["folder"]))
        print("\n" + _MARK + json.dumps(answer), flush=True)


class Worker:
    """The parent's side.

    Args:
        device: of torch, such as "cuda:0".
        folder: for heads in files and made-up records; it is the caller's to remove.
    """

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=40)

    def ask(self, kind: str, case: dict[str, Any], limit_s: float) -> Answer:
        """Have one row measured; a row that takes longer than its limit, or that ends the process, is an error.

        ``is_late`` says that it was the limit.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        job = {"kind": kind, "case": case, "device": self.device, "folder": str(self.folder)}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._answer(limit_s)
        except queue.Empty:
            answer = {**case, "error": f"no answer within {limit_s:.0f} s", "is_broken": True, "is_late": True}
        except OSError as error:
            answer = {**case, "error": f"the measuring process has ended: {error}", "is_broken": True}
        if answer.pop("is_broken", False):
            answer["said"] = "".join(self._said)[-3000:]
            self.close()
        return answer

    def _answer(self, limit_s: float) -> Answer:
        timer = threading.Event()
        clock = threading.Timer(limit_s, timer.set)
        clock.start()
        try:
            while not timer.is_set():
                with suppress(queue.Empty):
                    line = self._lines.get(timeout=0.2)
                    if line is None:
                        raise OSError("it closed its output")
                    if line.startswith(_MARK):
                        found: Answer = json.loads(line.removeprefix(_MARK))
                        return found
                    self._said.append(line)
            raise queue.Empty
        finally:
            clock.cancel()

    def _start(self) -> None:
        self._lines, self._said = queue.Queue(), deque(maxlen=40)
        code = "from benchmarks.gpu.worker import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._process, lines = process, self._lines

        def read() -> None:
            assert process.stdout is not None
            with suppress(ValueError):  # closed meanwhile
                for line in process.stdout:
                    lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()

    def close(self) -> None:
        """End the process and what it has started."""
        if self._process is None:
            return
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process = None


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for heads in files, on the disk of the system's temporary files."""
    return tempfile.TemporaryDirectory(prefix="mhs_gpu_", ignore_cleanup_errors=True)
