"""Disks that are full or cannot be written, and shared memory that is full; each on a small disk of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from faults.processes import ended
from faults.scenario import Scenario, scenario
from faults.stage import (
    LIMIT_S,
    RUN_S,
    Row,
    Stage,
    differences,
    end_of,
    go_on_and_compare,
    last_step,
    row_of,
    small_disk,
)

FULL = r"[Nn]o space left|disk is full|[Mm]ake room"
READ_ONLY = r"[Rr]ead-only"
MANY_HEADS = {"num_classes": 60000, "num_image": 60000, "checkpoint_steps": 4, "num_epoch": 1}


def fills_up(stage: Stage, file: str, rank: int = 0, **options: Any) -> list[Row]:
    """The disk is full right before a file is opened for writing; there is room again for the run that goes on."""
    with small_disk(stage.output, "64m"):
        filler = stage.output / "filler"
        step = stage.random.randint(3, 8)
        fault = {"kind": "fill_at_file", "rank": rank, "step": step, "file": file, "filler": str(filler)}
        launch = stage.start(options, fault)
        with ended(launch):
            assert launch.wait_until(lambda: stage.struck_s() is not None, RUN_S), launch.output()[-2000:]
            ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
        filler.unlink()
        found = go_on_and_compare(stage, options)
        return [row_of(stage, f"rank {rank}, first {file} after step {step}", ending, "ends", FULL, **found)]


def fills_up_in_steps(stage: Stage, **options: Any) -> list[Row]:
    """The disk is full between two steps: the next lines of metrics.jsonl do not fit."""
    with small_disk(stage.output, "64m"):
        filler = stage.output / "filler"
        fault = {"kind": "fill_at_step", "rank": 0, "step": 21, "filler": str(filler)}
        launch = stage.start(options, fault)
        with ended(launch):
            assert launch.wait_until(lambda: stage.struck_s() is not None, RUN_S), launch.output()[-2000:]
            ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
        filler.unlink()
        return [row_of(stage, "step 21", ending, "ends", FULL, **go_on_and_compare(stage, options))]


def heads_fill_up(stage: Stage) -> list[Row]:
    """The disk of heads in files is full between two steps, on rank 0 or 1."""
    rank = stage.seed % 2
    with small_disk(stage.folder / "heads", "32m") as folder:
        options = {**MANY_HEADS, "head_storage": "file", "head_folder": folder, "num_image": 800}
        filler = folder / "filler"
        fault = {"kind": "fill_at_step", "rank": rank, "step": 9, "filler": str(filler)}
        launch = stage.start(options, fault)
        with ended(launch):
            assert launch.wait_until(lambda: stage.struck_s() is not None, RUN_S), launch.output()[-2000:]
            ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
        filler.unlink()
        return [row_of(stage, f"rank {rank}, step 9", ending, "ends", FULL, **go_on_and_compare(stage, options))]


def read_only_from_the_start(stage: Stage) -> list[Row]:
    """The disk of the output folder can only be read."""
    with small_disk(stage.folder / "disk", "64m") as disk:
        _make_read_only(disk)
        stage.strike()
        launch = stage.start({"output": disk / "run"})
        with ended(launch):
            ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
        subprocess.run(["umount", "-l", str(disk)], check=True)
        return [row_of(stage, "from the start", ending, "refused", READ_ONLY)]


def read_only_later(stage: Stage) -> list[Row]:
    """The folder of checkpoints turns read-only in mid-run; where it can be written again, the run goes on."""
    with small_disk(stage.output, "64m"):
        checkpoints = stage.output / "checkpoints"
        launch = stage.start(pace_s=0.05)
        with ended(launch):
            assert launch.wait_until(lambda: last_step(stage.output) >= 5), launch.output()[-2000:]
            _make_read_only(checkpoints)
            stage.strike()
            ending = end_of(launch, stage.struck_s() or 0, LIMIT_S)
        subprocess.run(["umount", "-l", str(checkpoints)], check=True)
        return [row_of(stage, "after step 5", ending, "ends", READ_ONLY, **go_on_and_compare(stage))]


def _make_read_only(folder: Path) -> None:
    """Lay a read-only view of a folder over it; nobody has a file open in that one yet."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def shared_memory_is_full(stage: Stage) -> list[Row]:
    """/dev/shm, through which the loader's processes hand over batches, has no room for one."""
    stage.reference()
    with small_disk(Path("/dev/shm"), "64k"):
        stage.strike()
        launch = stage.start()
        with ended(launch):
            ending = end_of(launch, stage.struck_s() or 0, LIMIT_S + 20)  # with the start of the processes
    found: Row = {}
    if ending.status == 0:
        differs = differences(stage.output, stage.reference(), stage.folder)
        found = {"equal": not differs, "differs": differs}
    return [row_of(stage, "64 KiB", ending, "goes on" if ending.status == 0 else "ends", SHM, **found)]


SHM = r"/dev/shm|shared memory"
DISKS = "Disks and shared memory"
MOUNTS = ("mounts",)
SCENARIOS: dict[str, Scenario] = {
    "full_training_pt": scenario(
        "disk full at training.pt", DISKS, fills_up, seeds=2, needs=MOUNTS, file=r"training\.pt"
    ),
    "full_heads": scenario("disk full at a checkpoint's heads", DISKS, fills_up, needs=MOUNTS, file=r"/rank_0_of"),
    "full_heads_rank_1": scenario(
        "disk full at a checkpoint's heads, rank 1", DISKS, fills_up, needs=MOUNTS, rank=1, file=r"/rank_1_of"
    ),
    "full_manifest": scenario(
        "disk full at the last file of a checkpoint", DISKS, fills_up, needs=MOUNTS, file=r"manifest|visits"
    ),
    "full_model_pt": scenario("disk full at model.pt", DISKS, fills_up, seeds=2, needs=MOUNTS, file=r"/\.?model\.pt"),
    "full_metrics": scenario(
        "disk full at metrics.jsonl", DISKS, fills_up_in_steps, seeds=2, needs=MOUNTS, checkpoint_steps=20,
        num_image=800, num_epoch=1,
    ),
    "full_head_files": scenario("disk of heads in files full", DISKS, heads_fill_up, seeds=2, needs=MOUNTS),
    "read_only_start": scenario("output that can only be read", DISKS, read_only_from_the_start, needs=MOUNTS),
    "read_only_later": scenario("output that turns read-only", DISKS, read_only_later, needs=MOUNTS),
    "full_shm": scenario("/dev/shm full", DISKS, shared_memory_is_full, needs=MOUNTS),
}  # fmt: skip
