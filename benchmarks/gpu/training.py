"""The full training step, as train.py makes it, on images that are on the device already.

Shapes: B batch, H height, W width, D embedding size.
"""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backbones import get_model
from backbones.base import to_network_input
from benchmarks.gpu.timing import ROOT, counting_waits, forget_peak, peak_of_memory, time_steps
from dataset import Batch
from training.memory import plan_of
from training.run import TrainingRun
from utils.config import get_config
from utils.device import prepare_device
from utils.distributed import Ranks
from utils.settings import Config

IDENTITIES = 20_000  # that labels come from, as in bench_classifier.py
PRECISIONS = {"fp16": ("fp16=True",), "bf16": ("bf16=True",), "float32": ()}
STEPS_PER_EPOCH = 100_000  # so that none ends, and the rate stays
WARM_STEPS = 10


def known_settings() -> set[str]:
    """The settings that recipes have."""
    return {field.name for field in dataclasses.fields(Config)}


def config_of(case: dict[str, Any], device: torch.device, folder: Path) -> Config:
    """The recipe of a case: the project's defaults, and what the case says."""
    precision = case.get("precision", "float32")
    options = [
        f"network={case['network']}",
        f"batch_size={case['batch']}",
        f"num_classes={case.get('classes', 100_000)}",
        f"head_size={case.get('head_size', 12)}",
        f"head_storage={case.get('storage', 'device')}",
        f"head_folder={folder / 'heads'}",
        f"device={device.type}",
        f"output={folder}",
        "rec=synthetic",
        "num_workers=0",
        "lr=0.001",
        *PRECISIONS[precision],
        *(f"{name}={value}" for name, value in case.get("settings", {}).items()),
    ]
    if "precision" in known_settings() and precision == "float32":
        options.append("precision=float32")  # not what a machine chooses
    return get_config(ROOT / "configs" / "base.py", options)


def make_run(cfg: Config, device: torch.device) -> TrainingRun:
    """A run of that recipe on one device, without data."""
    prepare_device(device)
    output = cfg.output_dir()
    output.mkdir(parents=True, exist_ok=True)
    return TrainingRun(cfg, Ranks(0, 1, 0, device), output, STEPS_PER_EPOCH)


def synthetic_batches(cfg: Config, device: torch.device) -> Iterator[Batch]:
    """Noise that lies on the device, with labels on the host as a loader gives them, without end."""
    g = torch.Generator().manual_seed(0)
    size = (cfg.batch_size, *cfg.image_size, 3)
    images = [torch.randint(0, 256, size, dtype=torch.uint8, generator=g).to(device) for _ in range(4)]
    rng, classes = np.random.default_rng(0), cfg.class_count()
    assert classes is not None
    people = rng.choice(classes, min(IDENTITIES, classes), replace=False)
    for number in count():
        labels_B = torch.from_numpy(rng.choice(people, cfg.batch_size).astype(np.int64))
        ids_B = torch.arange(cfg.batch_size) + number * cfg.batch_size
        yield Batch(images[number % len(images)], labels_B, ids_B)


def announced(run: TrainingRun, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches, each after the classifier was told the labels of the next one, as train.py does."""

    def following() -> Batch:
        batch = next(batches)
        run.classifier.shard.prefetch(batch.labels_B)
        return batch

    ahead = following()
    while True:
        batch, ahead = ahead, following()
        yield batch


def measure_training(case: dict[str, Any], device: torch.device, folder: Path) -> dict[str, Any]:
    """Images a second, waits, memory and the classifier's share of a case's full step.

    Args:
        case: ``network``, ``precision`` ("fp16", "bf16" or "float32") and ``batch``; it may have ``classes``,
            ``storage``, ``head_size``, further ``settings`` of the recipe, ``budget_s``, and ``parts``: whether
            backbone and classifier are also timed alone.
        device: that trains.
        folder: for heads in files.
    """
    forget_peak(device)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        cfg = config_of(case, device, Path(name))
        run = make_run(cfg, device)
        try:
            return {**case, **_measure(run, cfg, case, device)}
        finally:
            run.classifier.shard.forget_prefetched()
            run.close()
            del run
            gc.collect()
            forget_peak(device)


def _measure(run: TrainingRun, cfg: Config, case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    batches = announced(run, synthetic_batches(cfg, device))
    for _ in range(case.get("warm_steps", WARM_STEPS)):
        run.train_step(batches)
    budget_s, most = case.get("budget_s", 3.0), case.get("most_steps", 200)
    found: dict[str, Any] = time_steps(lambda: run.train_step(batches), device, budget_s, most)
    found["images_per_s"] = cfg.batch_size / found["step_ms"] * 1e3
    found.update(peak_of_memory(device))
    waited_steps = 4
    with counting_waits(device) as waits:
        for _ in range(waited_steps):
            run.train_step(batches)
    found.update(waits.per_step(waited_steps))
    run.settle()
    found["skipped_steps"] = run.skipped
    loss = run.mean_loss()
    found["mean_loss"] = loss if np.isfinite(loss) else None
    found["float32_products"] = torch.get_float32_matmul_precision()
    found["tf32_convolutions"] = _tf32_convolutions()
    found["flop_per_step"] = step_flop(cfg)
    if case.get("parts"):
        found.update(_parts(run, cfg, device, found["step_ms"], budget_s / 2, most))
    return found


def _tf32_convolutions() -> bool | None:
    """Whether cuDNN may round float32 to TF32; None where torch does not tell."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # set by its newer interface, which does not go with this one
        return None


def step_flop(cfg: Config) -> float | None:
    """Operations of the backbone's forward and backward on a batch, two for each multiply-add; None: not counted.

    Backward has two products for each of forward. What gradient checkpointing computes again is not counted.
    """
    try:
        from tools.flops import cost_of  # it needs prettytable, which a borrowed environment may lack

        with torch.device("meta"):
            network = get_model(cfg.network, cfg.embedding_size, image_size=cfg.image_size[0])
        return 3.0 * 2.0 * cost_of(network).multiply_adds * cfg.batch_size
    except (ImportError, RuntimeError, NotImplementedError):
        return None


def _parts(
    run: TrainingRun, cfg: Config, device: torch.device, step_ms: float, budget_s: float, most: int
) -> dict[str, Any]:
    """The step without classifier, the classifier without the rest, and the share of the step that it takes."""
    run.classifier.shard.forget_prefetched()
    bare, alone = synthetic_batches(cfg, device), announced(run, synthetic_batches(cfg, device))
    x_BD = torch.randn(cfg.batch_size, cfg.embedding_size, device=device).requires_grad_()

    def backbone_step() -> None:
        batch = next(bare)
        images = to_network_input(run.augment(batch.images_BHW3, batch.sample_ids_B, 0))
        run.model(images).square().mean().backward()
        nn.utils.clip_grad_norm_(run.backbone.parameters(), 5.0)
        if run.optimizer is not None:
            run.optimizer.step()
            run.optimizer.zero_grad()

    def classifier_step() -> None:
        run.classifier(x_BD, next(alone).labels_B).backward()
        run.row_optimizer.step()
        run.row_optimizer.zero_grad()
        x_BD.grad = None

    for group in run.optimizer.param_groups if run.optimizer is not None else ():
        group["lr"] = 0.0
    times = {}
    for name, step in (("backbone_ms", backbone_step), ("classifier_ms", classifier_step)):
        for _ in range(3):
            step()
        times[name] = time_steps(step, device, budget_s, most)["step_ms"]
    return {**times, "classifier_share": max(0.0, 1 - times["backbone_ms"] / step_ms)}


def measure_plan(case: dict[str, Any], device: torch.device, folder: Path) -> dict[str, Any]:
    """What training/memory.py plans for a case, in MiB; it counts on the host, so it takes some seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        plan = plan_of(config_of(case, device, Path(name)), 1)
    parts = {field.name: getattr(plan, field.name) / 2**20 for field in dataclasses.fields(plan)}
    on_device = sum(parts[name] for name in ("step", "backbone", "activations"))
    if case.get("storage", "device") == "device":
        on_device += parts["centres"]
    return {**case, "planned_device_mib": on_device, **{f"planned_{key}_mib": value for key, value in parts.items()}}
