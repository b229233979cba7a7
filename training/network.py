"""The backbone as a run trains it: with its first weights, frozen parts, its batch norm, on its device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from backbones import get_model
from training.frozen_bn import freeze_batch_norm
from training.start import start_from
from training.sync_bn import synchronise_batch_norm
from utils.distributed import Ranks, together
from utils.log import log
from utils.settings import Config


def make_network(cfg: Config, ranks: Ranks) -> nn.Module:
    """The network that the settings ask for; its weights are the same on any number of ranks.

    Raises:
        ValueError, OSError: ``init_backbone`` cannot be used, on every rank.
    """
    torch.manual_seed(cfg.seed)
    backbone = get_model(**cfg.network_options())
    if cfg.init_backbone is not None:
        path = Path(cfg.init_backbone)
        fit = together(lambda: start_from(backbone, path))
        log.info("init_backbone: %.1f %% of the tensors taken from %s", 100 * fit.share, path)
        if warning := fit.warning():
            log.warning("init_backbone: %s", warning)
        if fit.left_out:
            log.info("init_backbone: left out what else is in the file: %s", fit.left_out)
    if cfg.freeze_backbone:
        backbone.eval().requires_grad_(False)
    elif cfg.freeze_bn:
        if not freeze_batch_norm(backbone, with_affine=cfg.freeze_bn is True):
            log.warning("freeze_bn = %r has no effect: %s has no batch normalisation", cfg.freeze_bn, cfg.network)
    elif cfg.sync_bn:
        backbone = synchronise_batch_norm(backbone, ranks.device)
    torch.manual_seed(cfg.seed + ranks.rank)  # dropout differs between ranks
    return backbone.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
