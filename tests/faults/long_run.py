"""A long run: memory, file handles, threads and processes of every rank and loader process, step by step."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np

from faults.processes import Launch, ended
from faults.scenario import Scenario, scenario
from faults.stage import Row, Stage, last_step

STEPS = 3000
WARM_UP = 500  # steps until allocators, caches and the first checkpoints have had their share
EVERY_S = 2.0
LIMIT_S = 1800.0
# Until then pages that fork has shared are copied one by one, as they are first written: growth that ends by itself.
LATE = 1500
MAX_SLOPE_KIB = 1024.0  # beyond three standard errors: 1 KiB a step; a tiny run's batch has 150
MAX_SLOPE_HANDLES = 1.0  # batches on their way hold some, so that the number is never quite constant
COUNTS = ("handles", "threads")
Sample = dict[str, float]


def sample(pid: int) -> Sample | None:
    """What a process holds now, memory in KiB; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return None

    def number(name: str, text: str) -> float:
        found = re.search(rf"^{name}:\s+(\d+)", text, re.M)
        return float(found[1]) if found else float("nan")

    return {
        "rss_kib": number("VmRSS", status),
        "own_kib": number("Private_Dirty", rollup),
        "threads": number("Threads", status),
        "handles": float(handles),
    }


def watch(launch: Launch, output: Path) -> tuple[dict[str, list[Sample]], list[int]]:
    """Samples of every rank and worker by name, and the number of processes at each time, until the run ends."""
    samples: dict[str, list[Sample]] = {}
    counts: list[int] = []
    end_s = time.monotonic() + LIMIT_S
    while launch.process.poll() is None and time.monotonic() < end_s:
        step = last_step(output)
        if step >= WARM_UP:
            ranks = launch.ranks()
            named = {f"rank {rank}": pid for rank, pid in ranks.items()}
            for rank in ranks:
                named |= {f"loader {i} of rank {rank}": pid for i, pid in enumerate(launch.workers(rank))}
            if step <= STEPS - 50:
                counts.append(len(launch.pids()))
                for name, pid in named.items():
                    if found := sample(pid):
                        samples.setdefault(name, []).append({"step": step, **found})
        time.sleep(EVERY_S)
    return samples, counts


def slope(samples: list[Sample], name: str) -> tuple[float, float]:
    """Growth for each 1,000 steps by least squares, and its standard error."""
    steps, values = (np.array([one[key] for one in samples]) for key in ("step", name))
    fit, covariance = np.polyfit(steps / 1000, values, 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def series(samples: list[Sample]) -> list[list[float]]:
    """Step, own memory in KiB, file handles, of about forty samples."""
    return [[one[key] for key in ("step", "own_kib", "handles")] for one in samples[:: max(1, len(samples) // 40)]]


def long_run(stage: Stage) -> list[Row]:
    """Three thousand steps, 30 epochs with a checkpoint each; a row for each process."""
    options = {"num_image": 800, "num_epoch": STEPS // 100, "checkpoint_steps": 1000, "timeout_s": 120}
    launch = stage.start(options)
    with ended(launch):
        samples, counts = watch(launch, stage.output)
        gone = launch.wait_until_gone(30)
    assert gone, "the long run does not end"
    assert launch.process.returncode == 0, launch.output()[-2000:]
    rows: list[Row] = []
    for name, found in sorted(samples.items()):
        row: Row = {
            "seed": stage.seed,
            "moment": name,
            "samples": len(found),
            "steps": STEPS,
            "rss_kib": found[-1]["rss_kib"],
            "own_kib": found[-1]["own_kib"],
            **{key: sorted({int(one[key]) for one in found}) for key in COUNTS},
            **slopes_of(found),
            "processes": sorted(set(counts)),
            "series": series(found),
        }
        row["problems"] = problems_of(row)
        rows.append(row)
    assert {row["moment"] for row in rows} >= {"rank 0", "rank 1", "loader 0 of rank 0", "loader 0 of rank 1"}
    return rows


def slopes_of(samples: list[Sample]) -> Row:
    """What is reported of a process's growth."""
    late = [one for one in samples if one["step"] >= LATE]
    values: Row = {"own_kib_per_1000_before": round(slope(samples[: len(samples) - len(late)], "own_kib")[0], 2)}
    for name in ("own_kib", "rss_kib", "handles"):
        each, error = slope(late, name)
        values |= {f"{name}_per_1000": round(each, 2), f"{name}_per_1000_error": round(error, 2)}
    return values


def problems_of(row: Row) -> list[str]:
    """What grows."""
    problems = []
    if row["handles_per_1000"] > MAX_SLOPE_HANDLES:
        problems.append(f"file handles grow by {row['handles_per_1000']} in 1,000 steps")
    if len(row["threads"]) > 2:  # a thread that writes checkpoints may come and go
        problems.append(f"threads are not constant: {row['threads']}")
    if len(row["processes"]) > 1:
        problems.append(f"processes are not constant: {row['processes']}")
    if row["own_kib_per_1000"] - 3 * row["own_kib_per_1000_error"] > MAX_SLOPE_KIB:
        problems.append(f"memory grows by {row['own_kib_per_1000']} KiB in 1,000 steps")
    return problems


SCENARIOS: dict[str, Scenario] = {"long": scenario("3,000 steps", "Long runs", long_run)}
