"""The two optimizers of a run: the backbone's, and that of the classifier's rows."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from heads.optim import Idle, RowAdamW, RowOptimizer, RowSGD
from heads.shard import HeadShard
from utils.config import Config

SPARSE_LR = 3.0  # factor on the rate of rows that SGD updates without momentum; docs/results.md


class RowRule(NamedTuple):
    """How the classifier's rows are updated; see heads/optim.py."""

    lr: float  # factor on the rate
    momentum: float  # of SGD
    nesterov: bool
    idle: Idle


def row_rule(cfg: Config) -> RowRule:
    """What the settings say, and where they say nothing what was measured to be best.

    Heads that are drawn anew in each step: no momentum. A full softmax visits every row in every step, so that its
    momentum is never stale: as the backbone.
    """
    is_sgd, is_sampled = cfg.optimizer == "sgd", cfg.head_layout()[1] < 1
    momentum = cfg.row_momentum
    if momentum is None:
        momentum = 0.0 if is_sampled else cfg.momentum
    lr = cfg.row_lr or (SPARSE_LR if is_sgd and momentum == 0 else 1.0)
    return RowRule(lr, momentum, cfg.nesterov and momentum > 0, cfg.row_idle or ("decay" if is_sgd else "keep"))


def row_states(cfg: Config) -> int:
    """Numbers of optimizer state that are kept for each number of a class centre."""
    return 2 if cfg.optimizer == "adamw" else int(row_rule(cfg).momentum > 0)


def make_optimizer(cfg: Config, backbone: nn.Module, lr: float) -> Optimizer:
    """The backbone's."""
    if cfg.optimizer == "adamw":
        return AdamW(backbone.parameters(), lr, weight_decay=cfg.weight_decay)
    return SGD(backbone.parameters(), lr, cfg.momentum, weight_decay=cfg.weight_decay, nesterov=cfg.nesterov)


def make_row_optimizer(cfg: Config, shard: HeadShard, lr: float) -> RowOptimizer:
    """The rows'; ``lr`` is the run's rate."""
    rule = row_rule(cfg)
    if cfg.optimizer == "adamw":
        assert rule.idle != "dense", "utils/config.py refuses it"
        return RowAdamW(shard, rule.lr * lr, weight_decay=cfg.weight_decay, idle=rule.idle)
    return RowSGD(shard, rule.lr * lr, rule.momentum, cfg.weight_decay, rule.nesterov, rule.idle)
