"""The two optimizers of a run: the backbone's, and that of the classifier's rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from heads.optim import Idle, RowAdamW, RowOptimizer, RowSGD
from heads.selection import expected_share
from heads.shard import HeadShard
from training.parameter_groups import parameter_groups
from utils.settings import Config

RARELY = 0.5  # share of the steps that visit a row, up to which momentum does harm


class RowRule(NamedTuple):
    """How the classifier's rows are updated; see heads/optim.py."""

    lr: float  # factor on the rate
    momentum: float  # of SGD
    nesterov: bool
    idle: Idle


def row_rule(cfg: Config, world_size: int) -> RowRule:
    """What the settings say, and where they say nothing what was measured to be best.

    Rows that are rarely visited: no momentum. Rows that most steps visit, as in a full softmax or in a few long
    heads, never have a stale one: as the backbone.
    """
    momentum = cfg.row_momentum
    if momentum is None:
        momentum = cfg.momentum if _visited_share(cfg, world_size) > RARELY else 0.0
    idle = cfg.row_idle or ("decay" if cfg.optimizer == "sgd" else "keep")
    return RowRule(cfg.row_lr, momentum, cfg.nesterov and momentum > 0, idle)


def _visited_share(cfg: Config, world_size: int) -> float:
    """Share of the class centres that a step updates, expected; what is drawn if the classes are not known."""
    head_size, negative_rate, sample_rate = cfg.head_layout()
    num_classes = cfg.class_count()
    if num_classes is None:
        return max(negative_rate, sample_rate or 0.0)
    visited = sample_rate  # of gradient_acc forwards one after the other
    if sample_rate is not None:
        visited = 1 - (1 - sample_rate) ** cfg.gradient_acc
    return expected_share(num_classes, head_size, negative_rate, cfg.total_batch(world_size), visited)


def row_states(cfg: Config, world_size: int) -> int:
    """Numbers of optimizer state that are kept for each number of a class centre."""
    return 2 if cfg.optimizer == "adamw" else int(row_rule(cfg, world_size).momentum > 0)


def optimizer_flags(device: torch.device) -> dict[str, Any]:
    """What makes torch's SGD and AdamW fast on ``device``: on a GPU one kernel updates all weights.

    That kernel also takes the verdict on the gradients, so that the host need not wait for it. On a CPU torch's fused
    ones save a few percent of a step at most, and quietly mix up numbers where a gradient's memory format is not its
    weight's.
    """
    return {"fused": True} if device.type == "cuda" else {}


def make_optimizer(cfg: Config, backbone: nn.Module, lr: float) -> Optimizer:
    """The backbone's, on the device that its weights are on."""
    groups = parameter_groups(backbone, cfg.weight_decay, cfg.decay_norms_and_biases)
    flags = optimizer_flags(next(backbone.parameters()).device)
    if cfg.optimizer == "adamw":
        return AdamW(groups, lr, weight_decay=cfg.weight_decay, **flags)
    optimizer = SGD(groups, lr, cfg.momentum, weight_decay=cfg.weight_decay, nesterov=cfg.nesterov, **flags)
    _begin_momentum(optimizer)
    return optimizer


def _begin_momentum(optimizer: SGD) -> None:
    """Start the momentum at 0, which gives the same first update as no momentum yet.

    Torch's fused form takes memory as it finds it for the first step's, and leaves it so if that step does not count.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def make_row_optimizer(cfg: Config, shard: HeadShard, lr: float, rule: RowRule) -> RowOptimizer:
    """The rows'; ``lr`` is the run's rate."""
    if cfg.optimizer == "adamw":
        assert rule.idle != "dense", "utils/config_rules.py refuses it"
        return RowAdamW(shard, rule.lr * lr, weight_decay=cfg.weight_decay, idle=rule.idle)
    return RowSGD(shard, rule.lr * lr, rule.momentum, cfg.weight_decay, rule.nesterov, rule.idle)
