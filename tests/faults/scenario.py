"""What a scenario is; the modules beside this one define them, once for the tests and for ``make faults``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from faults.stage import Row, Stage

Needs = Sequence[str]


@dataclass(frozen=True)
class Scenario:
    """One kind of fault.

    Attributes:
        fault: what is done, in words; the tally's first column.
        group: the tally's table.
        play: makes it happen once or several times; a row for each time.
        seeds: how many times ``make faults`` plays it.
        quick: whether the tests play it too, once.
        needs: of "mounts" and "network namespaces".
    """

    fault: str
    group: str
    play: Callable[[Stage], list[Row]]
    seeds: int = 1
    quick: bool = False
    needs: Needs = ()


def scenario(
    fault: str, group: str, play: Callable[..., list[Row]], *, seeds: int = 1, quick: bool = False,
    needs: Needs = (), **how: Any
) -> Scenario:  # fmt: skip
    """A scenario whose function takes further arguments."""
    return Scenario(fault, group, partial(play, **how) if how else play, seeds, quick, needs)


@cache
def why_not(need: str) -> str | None:
    """Why this machine cannot play a scenario with such a need; None where it can."""
    if need == "mounts":
        return _refusal(["mount", "--version"]) or _refusal(["unshare", "-m", "true"])
    if shutil.which("ip") is None:
        return "the command ip is missing (Debian: iproute2)"
    name = f"mhstry{os.getpid()}"
    refusal = _refusal(["ip", "netns", "add", name]) or _refusal(
        ["ip", "-n", name, "link", "add", "try0", "type", "veth", "peer", "name", "try1"]
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return refusal


def _refusal(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return f"the command {command[0]} is missing"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{' '.join(command[:3])} is not permitted here: {done.stderr.strip()}" if done.returncode else None
