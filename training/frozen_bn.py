"""Batch normalisation that keeps what it has learned while the weights around it train."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batch_norm(model: nn.Module, with_affine: bool) -> int:
    """Let every batch normalisation use its running statistics and keep them; returns how many there are.

    As FrozenBatchNorm of detectors does it, and ``norm_eval`` of mmdet without ``with_affine``. The layers are put
    into evaluation mode: ``model.train()`` would undo that, ``embedder.batches.evaluation_mode`` does not.

    Args:
        model: in training mode otherwise.
        with_affine: keep their scales and shifts, too. They stay in the optimizer, which passes over what has no
            gradient, so that a run can go on with or without.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.eval()
        if with_affine:
            layer.requires_grad_(False)
    return len(layers)
