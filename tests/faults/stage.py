"""Where a scenario plays: tiny runs of its own, what the fault did to them, and the uninterrupted run beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faults.processes import Launch, ended
from paths import ROOT
from ranks import free_port
from tiny_runs import TINY, metrics
from tools.export_centers import find_checkpoint, write_centres

PATCHED = "tests/faults/patched_train.py"
LIMIT_S = 30.0  # from the fault, or from the time limit of a collective, until every process must be gone
RUN_S = 120.0  # longest time of an undisturbed run
LAST_LINES = 20  # of the output; the launchers' own summary takes up to 17 of them
OPTIONS: dict[str, Any] = {
    "batch_size": 4, "num_workers": 1, "checkpoint_steps": 2, "num_epoch": 3, "timeout_s": 40,
}  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """How a launch ended."""

    status: int | None  # the launcher's; None: it had to be killed
    gone_s: float | None  # from the fault until every process was gone; None: they were not
    output: str
    left: tuple[str, ...] = ()  # the processes that were not gone

    @property
    def hung(self) -> bool:
        return self.gone_s is None


@dataclass
class Stage:
    """A scenario's folder, its random numbers and its runs.

    Attributes:
        folder: empty at first; removed afterwards.
        references: shared by all scenarios; holds the uninterrupted runs.
        seed: decides every random choice.
    """

    folder: Path
    references: Path
    seed: int
    logs: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def output(self) -> Path:
        """The output folder of the run that the fault strikes."""
        return self.folder / "run"

    @property
    def mark(self) -> Path:
        """Written when the fault strikes."""
        return self.folder / "struck"

    def start(
        self,
        options: Mapping[str, Any] | None = None,
        fault: Mapping[str, Any] | None = None,
        *,
        pace_s: float = 0,
        launcher: Sequence[str] = (),
        started_by: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Launch:
        """Start a tiny run on two ranks; ``fault`` is what patched_train.py does to one of them."""
        values = {**OPTIONS, "output": self.output, **(options or {})}
        environment = dict(env or {})
        if fault:
            plan = {"mark": str(self.mark), "folder": str(values["output"]), **fault}
            environment["MHS_FAULT"] = json.dumps(plan)
        if pace_s:
            environment["MHS_PACE_S"] = str(pace_s)
        self.logs += 1
        command = [sys.executable, "-m", *(launcher or one_host(2)), PATCHED if environment else "train.py", TINY]
        command += [f"{name}={value}" for name, value in values.items()]
        return Launch(command, self.folder / f"log_{self.logs}", environment, started_by)

    def reference(self, options: Mapping[str, Any] | None = None, ranks: int = 2) -> Path:
        """The output folder of the same run without a fault; made once."""
        text = json.dumps({**OPTIONS, **(options or {}), "ranks": ranks}, sort_keys=True, default=str)
        output = self.references / hashlib.sha1(text.encode()).hexdigest()[:12]
        if not output.exists():
            making = output.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            launch = self.start({**(options or {}), "output": making}, launcher=one_host(ranks))
            with ended(launch):
                gone = launch.wait_until_gone(RUN_S)
            assert gone, "the run without a fault hangs"
            assert launch.process.returncode == 0, launch.output()[-3000:]
            making.rename(output)
        return output

    def struck_s(self) -> float | None:
        """When the fault struck, on the monotonic clock."""
        text = self.mark.read_text() if self.mark.exists() else ""
        return float(text) if text else None

    def strike(self) -> None:
        """The fault comes from outside, now."""
        self.mark.write_text(f"{time.monotonic()}")

    def resume(self, options: Mapping[str, Any] | None = None, ranks: int = 2) -> Ending:
        """Go on without a fault, to the end; from scratch where no checkpoint was due yet."""
        how = {"resume": True} if newest_checkpoint(self.output) is not None else {"overwrite": True}
        launch = self.start({**(options or {}), **how}, launcher=one_host(ranks))
        with ended(launch):
            return end_of(launch, time.monotonic(), RUN_S)


def one_host(ranks: int) -> list[str]:
    """The README's launcher."""
    return [
        "torch.distributed.launch", f"--nproc_per_node={ranks}", "--nnodes=1", "--node_rank=0",
        "--master_addr=127.0.0.1", f"--master_port={free_port()}",
    ]  # fmt: skip


def end_of(launch: Launch, since_s: float, limit_s: float) -> Ending:
    """Wait until all processes are gone, at most until ``limit_s`` after ``since_s``."""
    is_gone = launch.wait_until_gone(max(0.0, since_s + limit_s - time.monotonic()))
    gone_s = round(time.monotonic() - since_s, 2) if is_gone else None
    left = () if is_gone else tuple(map(launch.role_of, launch.pids()))
    return Ending(launch.process.poll() if is_gone else None, gone_s, launch.output(), left)


def last_step(output: Path) -> int:
    """The last step that the run has told of, 0 before the first."""
    path = output / "metrics.jsonl"
    text = path.read_text(errors="replace") if path.exists() else ""
    return max((int(step) for step in re.findall(r'^\{"step": (\d+),.*\}$', text, re.M)), default=0)


def newest_checkpoint(output: Path) -> int | None:
    """The step of the newest checkpoint that has its name."""
    steps = [int(path.name[5:]) for path in (output / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    return max(steps, default=None)


def due_step(output: Path, every: int) -> int | None:
    """The step of a checkpoint that must be complete, after a fault.

    That is the newest that has its name, but not an older one than the last but one that was due: a checkpoint is
    written while training goes on, and is complete before the next one begins.
    """
    if not every:
        return newest_checkpoint(output)
    last_due = max(0, last_step(output) - 1) // every * every
    return max(newest_checkpoint(output) or 0, last_due - every)


def resumed_at(text: str) -> int | None:
    """The step at which a resumed run says that it goes on."""
    found = re.findall(r"resumed from \S+: epoch \d+, step (\d+)", text)
    return int(found[-1]) if found else None


def differences(output: Path, reference: Path, scratch: Path) -> list[str]:
    """What differs, bit for bit, between two finished runs: weights, centres, updates of centres, logged losses."""
    try:
        a, b = (torch.load(folder / "model.pt", weights_only=True) for folder in (output, reference))
    except (OSError, RuntimeError) as error:
        return [f"model.pt cannot be read: {error}"]
    found = [f"weights of {name}" for name in b if name not in a or not same(a[name], b[name])]
    centres = []
    for number, folder in enumerate((output, reference)):
        out, updates = scratch / f"centres_{number}.npy", scratch / f"updates_{number}.npy"
        write_centres(find_checkpoint(folder), out, updates)
        centres.append((np.load(out), np.load(updates)))
    for name, left, right in zip(("centres", "updates of centres"), *centres, strict=True):
        if left.tobytes() != right.tobytes():
            found.append(name)
    if metrics(output) != metrics(reference):
        found.append("logged losses")
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def is_finite(output: Path) -> bool:
    """Whether every weight and statistic of model.pt is a number."""
    state = torch.load(output / "model.pt", weights_only=True)
    return all(bool(value.isfinite().all()) for value in state.values())


def every_of(options: Mapping[str, Any] | None) -> int:
    """The run's ``checkpoint_steps``."""
    return int({**OPTIONS, **(options or {})}["checkpoint_steps"])


def leftovers(output: Path) -> list[str]:
    """Temporary files and half checkpoints that nothing will ever remove."""
    found = [*output.glob(".*"), *(output / "checkpoints").glob(".*")]
    return sorted(path.name for path in found if re.search(r"\.(tmp|partial|old)$", path.name))


def is_said(cause: str, text: str) -> bool:
    """Whether the output matches a pattern; the list of settings at the start says nothing."""
    said = [line for line in text.splitlines() if not re.match(r"Training: \S+ \S+-: ", line)]
    return re.search(cause, "\n".join(said)) is not None


def last_lines(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-LAST_LINES:])


def row_of(
    stage: Stage,
    moment: str,
    ending: Ending,
    expect: str,
    cause: str | None,
    *,
    on_last: str | None = None,
    **more: Any,
) -> Row:
    """One line of the raw data.

    Args:
        stage: of the scenario.
        moment: what was done, and when.
        ending: of the run that the fault struck.
        expect: "ends", "refused", "stops" (saves, then ends), "goes on", or "skips" (a step, then goes on).
        cause: a pattern that the output must match; None where there is nothing to say.
        on_last: a pattern for the last lines, where a launcher says the same in its own words.
        more: "equal", "lost_steps", "finite", "leftovers" and whatever else was seen.
    """
    said = cause is None or is_said(cause, ending.output)
    must_fail = expect in ("ends", "refused", "stops")
    said_last = is_said(on_last or cause, last_lines(ending.output)) if must_fail and cause is not None else said
    right = more.get("equal") is not False and more.get("finite") is not False
    row: Row = {
        "seed": stage.seed,
        "moment": moment,
        "expect": expect,
        "status": ending.status,
        "gone_s": ending.gone_s,
        "hung": ending.hung,
        "left": sorted(ending.left),
        "said": said,
        "said_last": said_last,
        "silent": not said and (must_fail or not right),
        "last_line": "" if said_last else last_lines(ending.output).splitlines()[-1:],
        **more,
    }
    row["problems"] = problems_of(row, must_fail, said, said_last)
    return row


def problems_of(row: Row, must_fail: bool, said: bool, said_last: bool) -> list[str]:
    """Everything about a row that is not as it should be, in words."""
    problems = []
    if row["hung"]:
        problems.append(f"left after the limit: {', '.join(row['left'])}")
    elif must_fail and row["status"] == 0:
        problems.append("exit status 0")
    elif not must_fail and row["status"] != 0:
        problems.append(f"exit status {row['status']} where it should go on")
    if row["silent"]:
        problems.append("silent")
    elif not said:
        problems.append("the cause is not said")
    elif not said_last:
        problems.append("the cause is not on the last lines")
    if row.get("lost_steps"):
        problems.append(f"{row['lost_steps']} steps before the newest due checkpoint are lost")
    if row.get("equal") is False:
        problems.append(f"not equal to the uninterrupted run: {row.get('differs') or row.get('resume_error')}")
    if row.get("finite") is False:
        problems.append("model.pt is not finite")
    if row.get("leftovers"):
        problems.append(f"left behind: {', '.join(row['leftovers'])}")
    return problems + list(row.get("more_problems", ()))


def go_on_and_compare(stage: Stage, options: Mapping[str, Any] | None = None, ranks: int = 2) -> Row:
    """Resume after a fault, and hold the end against the uninterrupted run."""
    told, due = last_step(stage.output), due_step(stage.output, every_of(options))
    ending = stage.resume(options, ranks)
    started_at = resumed_at(ending.output)
    found: Row = {
        "told_step": told,
        "resumed_step": started_at,
        "lost_steps": None if due is None else max(0, due - (started_at or 0)),
        "leftovers": leftovers(stage.output),
    }
    if ending.status != 0:
        return {**found, "equal": False, "resume_error": last_lines(ending.output)[-800:]}
    differs = differences(stage.output, stage.reference(options, ranks), stage.folder)
    return {**found, "equal": not differs, "differs": differs[:5]}


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, in memory, at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan


assert (ROOT / PATCHED).is_file()
