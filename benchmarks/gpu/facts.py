"""What a record must say of the machine that gave its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.timing import ROOT
from benchmarks.machine import usable_cores

_SMI = ("nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader")


def facts_of(case: dict[str, Any], device: torch.device, folder: Path) -> dict[str, Any]:
    """Card, driver, versions, processor, commit."""
    found: dict[str, Any] = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cpu_cores": usable_cores(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "commit": _said_by("git", "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_said_by("git", "status", "--porcelain", "--untracked-files=no")),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        smi = [part.strip() for part in (_said_by(*_SMI) or "").split("\n")[0].split(",")]
        found |= {
            "card": card.name,
            "cards": torch.cuda.device_count(),
            "card_memory_gib": card.total_memory / 2**30,
            "multiprocessors": card.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, _nccl())),
            **dict(zip(("driver", "power_limit", "clock_max"), smi, strict=False)),
        }
    return found


def _nccl() -> tuple[int, ...]:
    try:
        return tuple(torch.cuda.nccl.version())
    except (AttributeError, RuntimeError):
        return ()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _said_by(*command: str) -> str | None:
    """What a command prints, None if it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
