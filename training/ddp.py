"""The backbone on several ranks: its gradients' means, and one set of buffers wherever it is saved or evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from backbones.base import to_network_input
from training.running_statistics import RunningStatistics
from utils.distributed import all_reduce_sum_, broadcast_, get_world_size
from utils.settings import Config

BUCKET_MB = 16  # gradients that travel together; from 1 to 100 no size was faster (docs/log.md)
_HOOKS = {"bf16": (torch.bfloat16, bf16_compress_hook), "fp16": (torch.float16, fp16_compress_hook)}


def join_ranks(backbone: nn.Module, cfg: Config, device: torch.device) -> nn.Module:
    """Wrap a backbone so that backward leaves the mean of all ranks' gradients; alone or frozen it stays as it is.

    The gradients are views of the buckets that travel, so they are kept once. Rank 0's weights are taken by all. The
    graph is not declared static: that gains nothing here, and fails with ``gradient_acc`` above 1 (docs/log.md).
    Collectives: DDP's own, and one all-reduce of a number where gradients are compressed.

    Raises:
        ValueError: ``cfg.gradient_compression`` asks for a type that the ranks' backend cannot add up.
    """
    if get_world_size() == 1 or cfg.freeze_backbone:
        return backbone
    device_ids = [device.index] if device.type == "cuda" else None
    model = DistributedDataParallel(backbone, device_ids, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB)
    model.broadcast_buffers = False  # in forward; the argument's name depends on the version of torch
    if cfg.gradient_compression is not None:
        _compress(model, cfg.gradient_compression, device)
    return model


def _compress(model: DistributedDataParallel, name: str, device: torch.device) -> None:
    """Let gradients be rounded to half precision before they are added up over ranks; they come back in float32."""
    dtype, hook = _HOOKS[name]
    try:
        all_reduce_sum_(torch.zeros(1, dtype=dtype, device=device), "a number in half precision")
    except RuntimeError as error:
        if "type" not in str(error).lower():  # a lost rank
            raise
        others = " or ".join(repr(other) for other in _HOOKS if other != name)
        raise ValueError(
            f"gradient_compression = {name!r}, but the ranks cannot add up {dtype} on {device.type} here ({error}): "
            f"set it to {others}, or to None"
        ) from error
    model.register_comm_hook(None, hook)


def settle_buckets(model: nn.Module, statistics: RunningStatistics, cfg: Config, device: torch.device) -> None:
    """Let DDP lay out its gradient buckets as it has them after a first step.

    It lays them out anew in the order in which the first gradients come. With more than two ranks the sums'
    rounding depends on that layout, so without this a resumed run would differ from an uninterrupted one.

    Args:
        model: from :func:`join_ranks`; nothing happens to one that is alone.
        statistics: of the backbone, which the forward changes.
        cfg: its batch and image sizes count.
        device: that the backbone is on.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    statistics.keep()
    images = torch.zeros((cfg.batch_size, *cfg.image_size, 3), dtype=torch.uint8, device=device)
    (model(to_network_input(images)).float().sum() * 0).backward()
    statistics.put_back()
    for parameter in model.parameters():
        parameter.grad = None


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Overwrite a network's buffers on every rank with rank 0's.

    In training each rank's batch norms average its own images. Only rank 0's averages are saved and evaluated, so
    where that happens all ranks take them: then they go on as a run does that is resumed from the checkpoint.

    Collectives: one broadcast for each type of buffers, of all their numbers.
    """
    if get_world_size() == 1:
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in network.buffers():
        groups.setdefault(buffer.dtype, []).append(buffer)
    for buffers in groups.values():
        joined = broadcast_(torch.cat([buffer.reshape(-1) for buffer in buffers]))
        for buffer, shared in zip(buffers, joined.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(shared.view_as(buffer))
