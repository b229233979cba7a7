"""Batch normalisation over all ranks' images, on CPUs too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.distributed import get_world_size, sum_over_ranks_with_grad


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch normalisation by one whose statistics run over all ranks; names and values stay.

    On a GPU torch's own SyncBatchNorm is used, which has no CPU form (not yet run on two GPUs). There
    each of its layers makes the host wait for the device in each forward.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            setattr(model, name, _CPUSyncBatchNorm.of(child))
        else:
            synchronise_batch_norm(child, device)
    return model


class _CPUSyncBatchNorm(_BatchNorm):
    """Collectives: two all-reduces of C numbers forward, two backward; none in eval mode."""

    @classmethod
    def of(cls, other: _BatchNorm) -> _CPUSyncBatchNorm:
        """The same layer: parameters and buffers are shared, not copied."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new._parameters = other._parameters
        new._buffers = other._buffers
        return new.train(other.training)

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * get_world_size()
        mean = sum_over_ranks_with_grad(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = sum_over_ranks_with_grad(centred.square().sum(dims)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (out * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)
