"""What a run says before its first step: who computes, on what batch, with which loss."""

from __future__ import annotations

import platform

import torch

from utils.config import Config
from utils.distributed import Ranks, all_gather_objects


def expected_share(num_classes: int, head_size: int, negative_rate: float, global_batch: int) -> float:
    """Share of classes that a step works on, if labels fall evenly: 1 - (1 - L / C)^G, and the drawn ones."""
    head_share = min(head_size / num_classes, 1.0)
    labelled = 1 - (1 - head_share) ** global_batch
    return labelled + (1 - labelled) * negative_rate


def banner_lines(cfg: Config, ranks: Ranks, num_classes: int, num_image: int, steps_per_epoch: int) -> list[str]:
    """The lines, on every rank (one collective: each rank's host and device)."""
    device = str(ranks.device)
    if ranks.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(ranks.device)})"
    hosts = all_gather_objects(f"{platform.node()} {device}")
    head_size, negative_rate = cfg.head_layout()
    share = expected_share(num_classes, head_size, negative_rate, cfg.batch_size * ranks.world_size)
    lr = cfg.base_lr(ranks.world_size)
    precision = {None: "float32", torch.float16: "float16 with loss scaling", torch.bfloat16: "bfloat16"}
    lines = [
        f"torch {torch.__version__}, {precision[cfg.amp_dtype()]}, seed {cfg.seed}",
        *(f"rank {rank}: {where}" for rank, where in enumerate(hosts)),
        f"batch: {ranks.world_size} ranks x {cfg.batch_size} x accumulation {cfg.gradient_acc} = "
        f"{cfg.total_batch(ranks.world_size)}, lr {lr:g}, {cfg.optimizer}",
        f"data: {num_image} images of {num_classes} identities from {', '.join(cfg.sources())}",
        f"steps: {steps_per_epoch} an epoch, {steps_per_epoch * cfg.num_epoch} in all, "
        f"{round(steps_per_epoch * cfg.warmup_epoch)} of them warm-up",
        f"classifier: {num_classes} classes in {-(-num_classes // head_size)} heads of {head_size}, negatives "
        f"{negative_rate:g}; a step works on about {100 * share:.3g} % of the classes",
    ]
    if share > 0.5 and negative_rate < 0.5:
        lines.append(
            "note: with heads this long most classes are in every step, so heads save little; a smaller head_size "
            "saves more and shows each sample fewer other classes"
        )
    unread = [f"note: {name} = {getattr(cfg, name)!r} has no effect" for name in cfg.without_effect()]
    return lines + unread
