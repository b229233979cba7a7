"""train.py with one thing gone wrong in it; the launcher starts this file in its place.

``MHS_FAULT`` holds JSON: "kind" (a function's name below), "rank", "mark" (a file that is written when the fault
strikes, and keeps it from striking again) and what the kind needs. ``MHS_PACE_S`` makes every step of every rank that
many seconds longer. The product has no switch for any of this: it is patched here, from outside.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.distributed.elastic.multiprocessing.errors import record

import train
import training.run
from data.faces import SyntheticFaces
from partial_fc_mhs import PartialFCMHS
from training.run import TrainingRun

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}
Fault = dict[str, Any]


def strikes(fault: Fault) -> None:
    """Say that it happens now."""
    Path(fault["mark"]).write_text(f"{time.monotonic()}")


def has_struck(fault: Fault) -> bool:
    return Path(fault["mark"]).exists()


def before_step(step: int, do: Callable[[TrainingRun], None]) -> None:
    """Call ``do`` once, when so many steps are done."""
    real, left = TrainingRun.train_step, [True]

    def train_step(self: TrainingRun, batches: Any) -> Any:
        if self.step >= step and left:
            left.clear()
            do(self)
        return real(self, batches)

    TrainingRun.train_step = train_step  # type: ignore[method-assign]


def on_file_events(folder: str, do: Callable[[str, str], None]) -> None:
    """Call ``do(event, path)`` before this process opens, renames, makes, lists or removes something in a folder."""
    busy = threading.local()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or getattr(busy, "now", False):
            return
        path = str(args[0]) if args and isinstance(args[0], str | os.PathLike) else ""
        if path.startswith(folder):
            busy.now = True
            try:
                do(event, path)
            finally:
                busy.now = False

    sys.addaudithook(hook)


def end_now(fault: Fault, what: str) -> NoReturn:
    Path(fault["mark"]).with_suffix(".what").write_text(what)
    strikes(fault)
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit


def kill_after_step(fault: Fault) -> None:
    """SIGKILL some time after a step has begun, wherever the process then is."""

    def arm(_run: TrainingRun) -> None:
        threading.Timer(fault["delay_s"], end_now, (fault, f"{fault['delay_s']:.3f} s after step")).start()

    before_step(fault["step"], arm)


def kill_at_file_event(fault: Fault) -> None:
    """SIGKILL right before, or some milliseconds after, the nth thing done to a file of the output folder."""
    count = [fault["event"]]

    def look(event: str, path: str) -> None:
        count[0] -= 1
        what = f"{event} {Path(path).name}"
        if count[0] == 0 and fault["delay_s"] == 0:
            end_now(fault, what)
        if count[0] == 0:
            threading.Timer(fault["delay_s"], end_now, (fault, f"{fault['delay_s']:.3f} s after {what}")).start()

    if fault["step"] == 0:
        on_file_events(fault["folder"], look)
    else:
        before_step(fault["step"], lambda _run: on_file_events(fault["folder"], look))


def in_input(fault: Fault, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Pass the images of one step through ``change``, on their way into the network."""
    real, is_on = training.run.to_network_input, [False]

    def to_network_input(images: torch.Tensor) -> torch.Tensor:
        x = real(images)
        if is_on[0]:
            is_on[0] = False
            strikes(fault)
            return change(x)
        return x

    training.run.to_network_input = to_network_input  # type: ignore[attr-defined]
    before_step(fault["step"], lambda _run: is_on.__setitem__(0, True))


def raise_in_forward(fault: Fault) -> None:
    def fail(_x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("injected: the forward pass fails on this rank alone")

    in_input(fault, fail)


def hang_in_forward(fault: Fault) -> None:
    def sleep(x: torch.Tensor) -> torch.Tensor:
        time.sleep(3600)
        return x

    in_input(fault, sleep)


def nan_in_input(fault: Fault) -> None:
    def poison(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, 0, 0, 0] = torch.nan
        return x

    in_input(fault, poison)


def in_data(fault: Fault, do: Callable[[], None]) -> None:
    """Call ``do`` where a loader's process makes its nth image."""
    real, count = SyntheticFaces.load, [fault["image"]]

    def load(self: SyntheticFaces, index: int) -> Any:
        count[0] -= 1
        if count[0] == 0:
            strikes(fault)
            do()
        return real(self, index)

    SyntheticFaces.load = load  # type: ignore[method-assign]


def raise_in_data(fault: Fault) -> None:
    def fail() -> None:
        raise RuntimeError("injected: this image cannot be loaded on this rank alone")

    in_data(fault, fail)


def hang_in_data(fault: Fault) -> None:
    in_data(fault, lambda: time.sleep(3600))


def hang_in_save(fault: Fault) -> None:
    """Wait for ever before the first file of a checkpoint is opened."""

    def look(event: str, path: str) -> None:
        if event in ("open", "os.mkdir") and "partial" in path and not has_struck(fault):
            strikes(fault)
            time.sleep(3600)

    before_step(fault["step"], lambda _run: on_file_events(fault["folder"], look))


def nan_in_loss(fault: Fault) -> None:
    real, is_on = PartialFCMHS.forward, [False]

    def forward(self: PartialFCMHS, *args: Any, **options: Any) -> Any:
        loss = real(self, *args, **options)
        if is_on[0]:
            is_on[0] = False
            strikes(fault)
            return loss * torch.nan
        return loss

    PartialFCMHS.forward = forward  # type: ignore[method-assign]
    before_step(fault["step"], lambda _run: is_on.__setitem__(0, True))


def nan_in_gradient(fault: Fault) -> None:
    def poison(run: TrainingRun) -> None:
        def once(grad: torch.Tensor) -> torch.Tensor:
            handle.remove()
            strikes(fault)
            return grad * torch.nan

        handle = next(run.backbone.parameters()).register_hook(once)

    before_step(fault["step"], poison)


def nan_in_statistics(fault: Fault) -> None:
    """One running mean of a batch normalisation becomes nan, as after a damaged bit."""

    def poison(run: TrainingRun) -> None:
        strikes(fault)
        name, buffer = next(pair for pair in run.backbone.named_buffers() if pair[0].endswith("running_mean"))
        del name
        buffer.view(-1)[0] = torch.nan

    before_step(fault["step"], poison)


def clock_jumps(fault: Fault) -> None:
    """time.time() is a day ahead, then a day behind, from one step to the next."""
    real, shift_s = time.time, [0.0]
    time.time = lambda: real() + shift_s[0]

    def jump(run: TrainingRun) -> None:
        strikes(fault)
        shift_s[0] = 86400.0
        before_step(run.step + 3, lambda _run: shift_s.__setitem__(0, -86400.0))

    before_step(fault["step"], jump)


def fill(fault: Fault) -> None:
    """Leave not a byte of room on the disk."""
    strikes(fault)
    with Path(fault["filler"]).open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def fill_at_file(fault: Fault) -> None:
    """Fill the disk right before a file is opened whose path matches "file"."""

    def look(event: str, path: str) -> None:
        if event == "open" and re.search(fault["file"], path) and not has_struck(fault):
            fill(fault)

    before_step(fault["step"], lambda _run: on_file_events(fault["folder"], look))


def fill_at_step(fault: Fault) -> None:
    before_step(fault["step"], lambda _run: fill(fault))


def slow_down(pace_s: float) -> None:
    real = TrainingRun.train_step

    def train_step(self: TrainingRun, batches: Any) -> Any:
        time.sleep(pace_s)
        return real(self, batches)

    TrainingRun.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    plan: Fault = json.loads(os.environ.get("MHS_FAULT", "{}"))
    if "MHS_PACE_S" in os.environ:
        slow_down(float(os.environ["MHS_PACE_S"]))
    if plan and plan["rank"] == int(os.environ["RANK"]) and not has_struck(plan):
        globals()[plan["kind"]](plan)
    record(train.main)()
