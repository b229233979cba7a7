"""Verify a run's checkpoints, and say from which one it can go on: ``python -m tools.check_run RUN``.

Reads every byte of every checkpoint. RUN is a run's folder, or one checkpoint.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("check_run")

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prettytable import PrettyTable

from training.checkpoint import (
    ASIDE,
    REPLACED,
    TRAINING,
    check,
    list_checkpoints,
    read_best,
    step_of,
)
from utils.manifest import DamagedError
from utils.text import any_name_can_be_printed, complain, plain


@dataclass(frozen=True)
class Verdict:
    """What was found of one checkpoint."""

    path: Path
    state: str  # "sound", "sound, without checksums", "damaged", "left unfinished"
    reason: str = ""  # what is damaged
    ranks: int = 0  # that wrote it
    layers: int = 0  # of heads, of all ranks; see heads/saved.py
    heads: int = 0  # in them
    gib: float = 0.0  # that were read
    gib_s: float = 0.0  # speed of reading and checking

    @property
    def is_sound(self) -> bool:
        """Whether a run can go on from it."""
        return self.state.startswith("sound")


def examine(checkpoint: Path) -> Verdict:
    """Verify one checkpoint."""
    started_s = time.monotonic()
    try:
        manifest, saved = check(checkpoint)
    except DamagedError as error:
        return Verdict(checkpoint, "damaged", plain(str(error)))
    heads = sum(len(layer.heads_n) for layer in saved.layers)
    ranks = len({layer.path.parent if manifest else layer.path for layer in saved.layers})
    if manifest is None:
        return Verdict(checkpoint, "sound, without checksums", "", ranks, len(saved.layers), heads)
    gib = manifest.total_bytes() / 2**30
    speed = gib / max(time.monotonic() - started_s, 1e-9)
    return Verdict(checkpoint, "sound", "", ranks, len(saved.layers), heads, gib, speed)


def examine_run(run: Path) -> list[Verdict]:
    """Verify all checkpoints of a run, or the one that ``run`` is, oldest first.

    Raises:
        FileNotFoundError: there is none.
    """
    if (run / TRAINING).exists() or step_of(run) >= 0:
        return [examine(run)]
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    verdicts = [examine(path) for path in list_checkpoints(folder)]
    verdicts += [examine(path) for path in sorted(folder.glob(f"{ASIDE}step_*"))]
    verdicts += [examine(path) for path in sorted(folder.glob(f".step_*{REPLACED}"))]
    verdicts += [Verdict(path, "left unfinished") for path in sorted(folder.glob(".step_*.partial"))]
    if not verdicts:
        raise FileNotFoundError(
            f"{run} holds no checkpoint: expected a run's folder with checkpoints/step_N in it, or such a step_N"
        )
    return verdicts


def describe(run: Path, verdicts: Sequence[Verdict]) -> str:
    """A table of what was found, and what can be done with it."""
    table = PrettyTable(["checkpoint", "state", "ranks", "layers", "heads", "GiB", "GiB/s"], align="r")
    table.align["checkpoint"] = table.align["state"] = "l"
    for v in verdicts:
        figures = [v.ranks, v.layers, f"{v.heads:,}"] if v.is_sound else ["", "", ""]
        read = [f"{v.gib:.3f}", f"{v.gib_s:.2f}"] if v.gib else ["", ""]
        table.add_row([v.path.name, v.state, *figures, *read])
    lines = [table.get_string(), *(v.reason for v in verdicts if v.reason)]
    sound = [v.path for v in verdicts if v.is_sound]
    named = [path for path in sound if step_of(path) >= 0]
    newest = max((step_of(v.path) for v in verdicts), default=-1)
    if not sound:
        lines.append(
            "no sound checkpoint: start over with resume=False overwrite=True, or from model.pt with init_backbone"
        )
    elif not named:
        lines.append(f"resume='{sound[-1]}' goes on from it; resume = 'auto' takes those called step_N only")
    else:
        lines.append(f"resume = 'auto' goes on from {named[-1]}")
        if step_of(named[-1]) < newest:
            lines.append("resume = True stops at the damaged one; what is newer is kept as aside_step_N")
    if best := read_best(run):
        lines.append(f"best: step_{best.step}, {plain(best.metric)} = {best.value:.5f}")
    if any(v.path.name.startswith(".") for v in verdicts):
        lines.append("what is left unfinished goes at the next start")
    if any(v.path.name.startswith(ASIDE) for v in verdicts):
        lines.append("aside_* may be removed")
    return "\n".join(lines)


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0: the newest checkpoint is sound, 1: it is not, 2: there is none."""
    parser = argparse.ArgumentParser(
        prog="check_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_OR_CHECKPOINT")
    run = parser.parse_args(argv).run
    try:
        verdicts = examine_run(run)
    except OSError as error:
        complain("check_run", error)
        return 2
    print(describe(run, verdicts))
    by_step = [v for v in verdicts if step_of(v.path) >= 0] or verdicts
    return 0 if by_step[-1].is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
