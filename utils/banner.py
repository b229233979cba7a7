"""What a run says before its first step: who computes, on what batch, with which loss, in how much memory."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from utils.config import Config
from utils.distributed import Ranks, all_gather_objects

MIB = 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one rank needs, without the backbone's activations."""

    centres: int  # class centres of the rank and their optimizer state
    step: int  # most that one step's selected rows, gradients and logits take
    backbone: int  # weights, gradients, reduction buckets and optimizer state

    def __str__(self) -> str:
        total = self.centres + self.step + self.backbone
        return (
            f"{total / MIB:.0f} MiB a rank before activations: classifier {self.centres / MIB:.0f}, its step at most "
            f"{self.step / MIB:.0f}, backbone {self.backbone / MIB:.0f}"
        )


def estimate_memory(
    *,
    rows: int,
    embedding_size: int,
    head_size: int,
    global_batch: int,
    gradient_acc: int,
    optimizer: str,
    drawn_rows: int,
    parameters: int,
) -> MemoryEstimate:
    """Count what a rank allocates in float32.

    Args:
        rows: classes that the rank holds.
        embedding_size: D.
        head_size: L.
        global_batch: G, labels of one forward over all ranks.
        gradient_acc: forwards of one step, whose rows and gradients wait for it.
        optimizer: "sgd" or "adamw", one or two numbers of state for each weight.
        drawn_rows: classes in randomly drawn heads, expected.
        parameters: weights of the backbone.
    """
    states = {"sgd": 1, "adamw": 2}[optimizer]
    selected = min(rows, global_batch * head_size + drawn_rows)
    return MemoryEstimate(
        centres=rows * embedding_size * 4 * (1 + states),
        # centres, normalised, gradient and update of the rows; cosines, logits, exponentials and gradient
        step=(4 + 3 * (gradient_acc - 1)) * selected * embedding_size * 4 + 4 * global_batch * selected * 4,
        backbone=parameters * 4 * (3 + states),
    )


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
    loss = {
        "arcface": f"ArcFace, margin {cfg.margin if cfg.margin is not None else 0.5} rad",
        "cosface": f"CosFace, margin {cfg.margin if cfg.margin is not None else 0.4}",
    }
    name = f"combined margin {cfg.margin_list}" if cfg.margin_list else loss[cfg.loss]
    scope = {"batch": "all selected heads", "own": "the sample's own head"}[cfg.head_scope]
    precision = {None: "float32", torch.float16: "float16 with loss scaling", torch.bfloat16: "bfloat16"}
    lines = [
        f"torch {torch.__version__}, {precision[cfg.amp_dtype()]}, seed {cfg.seed}",
        *(f"rank {rank}: {where}" for rank, where in enumerate(hosts)),
        f"batch: {ranks.world_size} ranks x {cfg.batch_size} x accumulation {cfg.gradient_acc} = "
        f"{cfg.total_batch(ranks.world_size)}, lr {lr:g}, {cfg.optimizer}",
        f"data: {num_image} images of {num_classes} identities from {cfg.rec}",
        f"steps: {steps_per_epoch} an epoch, {steps_per_epoch * cfg.num_epoch} in all, "
        f"{round(steps_per_epoch * cfg.warmup_epoch)} of them warm-up",
        f"loss: {name}, scale {cfg.scale:g}, softmax over {scope}",
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
