"""One form of the training step, measured in this process.

``bench_train.py`` starts this file once for each case and rank, with the case as JSON; :func:`measure` does the same
for whoever calls it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.left_out import left_out
from benchmarks.machine import peak_mib
from benchmarks.step_parts import PARTS, REST, Clock, Ranges, Timeline
from benchmarks.train_forms import FLOAT32, Ours, Reference, laid_over, open_config
from training.memory import plan_of
from utils.distributed import Ranks, barrier, broadcast_object, close_ranks, init_ranks
from utils.settings import Config
from utils.text import plain

Record = dict[str, Any]
Form = Literal["ours", "reference"]

MIB = 2**20
TRACED_STEPS = 3
PRECISIONS = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def measure(
    config: str,
    overrides: Sequence[str] = (),
    *,
    form: Form = "ours",
    steps: int = 20,
    warm_steps: int = 5,
    part_steps: int = 10,
    budget_s: float = 60.0,
    trace: str | None = None,
    without: Sequence[str] = (),
    ranks: Ranks | None = None,
) -> Record:
    """Measure whole training steps of a config in this process, and then again by parts.

    Args:
        config: ``configs/NAME`` or a path.
        overrides: ``key=value`` texts, such as ``device=cuda``.
        form: "ours", or "reference". On a CPU measure the latter in a process where "ours" has not run: the
            allocator's settings stay.
        steps: timed steps at most.
        warm_steps: before the clock starts.
        part_steps: steps of the second pass, timed by parts; 0 for none.
        budget_s: the timed steps are fewer where they would take longer, but at least three.
        trace: a file for a chrome trace of a few more steps, of rank 0.
        without: what "ours" is to do without, as :func:`~benchmarks.left_out.left_out` takes it.
        ranks: this process among its peers; None: joins those that the environment describes, and stays joined.

    Returns:
        What ``benchmarks/README.md`` lists; the figures of this rank, and on rank 0 what is planned.

    Raises:
        ValueError, OSError: what a user may have got wrong in the config, as ``train.py`` says it; no warm step.
    """
    if warm_steps < 1 or steps < 1:
        raise ValueError(f"steps and warm_steps must be at least 1, got {steps} and {warm_steps}")
    if form == "reference":
        overrides = laid_over(overrides, FLOAT32)
    if ranks is None:
        cfg = open_config(config, overrides, Path())
        ranks = init_ranks(cfg.device, cfg.timeout_s)
    with _folder_of_all(ranks) as folder, left_out(without):
        cfg = open_config(config, overrides, folder / "run")
        if ranks.device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(ranks.device)
        rig = Ours(cfg, ranks) if form == "ours" else Reference(cfg, ranks)
        try:
            record = _measured(rig, ranks, steps, warm_steps, part_steps, budget_s)
            if trace is not None:
                _write_trace(rig, ranks, Path(trace))
        finally:
            rig.close()
        if form == "ours" and ranks.is_main:
            record |= _planned(rig.cfg, ranks)
    return {"form": form, "config": config, "overrides": list(overrides), "without": list(without)} | record


@contextmanager
def _folder_of_all(ranks: Ranks) -> Iterator[Path]:
    """A folder of rank 0's, which is gone afterwards."""
    folder = Path(broadcast_object(tempfile.mkdtemp(prefix="bench_train_") if ranks.is_main else None))
    try:
        yield folder
        barrier()
    finally:
        if ranks.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _measured(
    rig: Ours | Reference, ranks: Ranks, steps: int, warm_steps: int, part_steps: int, budget_s: float
) -> Record:
    cfg, clock = rig.cfg, Clock(ranks.device)
    warm_ms, losses, _ = _timed(rig, clock, warm_steps)
    steps = broadcast_object(min(steps, max(3, int(budget_s * 1e3 / min(warm_ms)))))
    skipped = rig.skipped()
    step_ms, later_losses, cpu_ms = _timed(rig, clock, steps)
    total_batch = cfg.total_batch(ranks.world_size)
    record: Record = {
        "network": cfg.network,
        "precision": PRECISIONS[rig.amp_dtype],
        "gradient_checkpointing": _checkpoints(rig),
        "batch_size": cfg.batch_size,
        "gradient_acc": cfg.gradient_acc,
        "num_classes": cfg.class_count(),
        "head_size": cfg.head_layout()[0],
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "device": _device_name(ranks.device),
        "torch": torch.__version__,
        "steps": steps,
        "skipped": rig.skipped() - skipped,
        "step_ms": float(np.median(step_ms)),
        "step_ms_p10": float(np.percentile(step_ms, 10)),
        "step_ms_p90": float(np.percentile(step_ms, 90)),
        "mean_step_ms": float(np.mean(step_ms)),
        "imgs_per_s": total_batch * 1e3 / float(np.median(step_ms)),
        "cpu_ms": cpu_ms,
        "first_losses": [float(loss) for loss in [*losses, *later_losses][:5]],
        "peak_mib": peak_mib(),
        "cuda_peak_mib": None,
    }
    if ranks.device.type == "cuda":
        record["cuda_peak_mib"] = torch.cuda.max_memory_allocated(ranks.device) / MIB
    return record | _parts(rig, clock, part_steps)


def _timed(rig: Ours | Reference, clock: Clock, steps: int) -> tuple[list[float], list[Tensor], float]:
    """Milliseconds of each step, their losses, and mean milliseconds of processor time of a step."""
    barrier()
    moments, losses, cpu_s = [clock.now()], [], time.process_time()
    for _ in range(steps):
        losses.append(rig.step().detach())
        moments.append(clock.now())
    took_ms = clock.ms_between(moments)
    return took_ms, losses, (time.process_time() - cpu_s) * 1e3 / steps


def _parts(rig: Ours | Reference, clock: Clock, steps: int) -> Record:
    """A second pass, by parts."""
    if steps == 0:
        return {"parts_ms": None, "watched_step_ms": None, "rest_share": None, "all_reduce_span_ms": None}
    model = rig.model
    if isinstance(model, DistributedDataParallel):
        model._set_ddp_runtime_logging_sample_rate(1)
    barrier()
    timeline = Timeline(clock)
    with rig.watching(timeline):
        for _ in range(steps):
            rig.step()
        parts = timeline.part_ms(steps)
    total = sum(parts.values())
    span_ms = None
    if isinstance(model, DistributedDataParallel):
        nanoseconds = model._get_ddp_logging_data().get("backward_comm_time")  # of the last step
        span_ms = None if nanoseconds is None else nanoseconds / 1e6
    return {
        "parts_ms": {part: parts[part] for part in PARTS},
        "watched_step_ms": total,
        "rest_share": parts[REST] / total,
        "all_reduce_span_ms": span_ms,
    }


def _write_trace(rig: Ours | Reference, ranks: Ranks, path: Path) -> None:
    """A chrome trace of a few steps of rank 0, with the parts as named ranges."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ranks.device.type == "cuda" else [])]
    barrier()
    if not ranks.is_main:
        for _ in range(TRACED_STEPS):
            rig.step()
        return
    with profile(activities=activities, acc_events=True) as profiler, rig.watching(Ranges()):
        for _ in range(TRACED_STEPS):
            with torch.profiler.record_function("step"):
                rig.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))


def _planned(cfg: Config, ranks: Ranks) -> Record:
    """What training/memory.py expects; counted last, since counting takes memory too."""
    plan = plan_of(cfg, ranks.world_size)
    on_device = plan.total - plan.process
    if cfg.head_storage != "device":
        on_device -= plan.centres
    return {"plan_mib": plan.total / MIB, "plan_device_mib": on_device / MIB}


def _checkpoints(rig: Ours | Reference) -> bool:
    model = rig.model.module if isinstance(rig.model, DistributedDataParallel) else rig.model
    return bool(getattr(model, "gradient_checkpointing", False))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    """Measure the case that the command line describes; rank 0 prints the record."""
    case = json.loads(sys.argv[1])
    try:
        record = measure(**case)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"bench_train.py: {plain(str(error))}")
    close_ranks()
    print(json.dumps(record))


if __name__ == "__main__":
    main()
