"""Backbones: a batch of aligned faces in, one embedding per face out. ``get_model(name)`` builds them.

To add one, subclass ``backbones.base.Backbone`` and give it a line in ``_NETWORKS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from backbones.iresnet import IResNet
from backbones.mobilefacenet import MobileFaceNet

__all__ = ["MODEL_NAMES", "get_model"]

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "r18": partial(IResNet, (2, 2, 2, 2)),
    "r34": partial(IResNet, (3, 4, 6, 3)),
    "r50": partial(IResNet, (3, 4, 14, 3)),
    "r100": partial(IResNet, (3, 13, 30, 3)),
    "r200": partial(IResNet, (6, 26, 60, 6)),
    # For demos and tests: trains at hundreds of images a second on two CPU cores.
    "rtiny": partial(IResNet, (1, 1, 2, 1), widths=(16, 32, 64, 128), stem_stride=2),
    "mbf": partial(MobileFaceNet, (1, 4, 6, 2), 2),
    "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
}
MODEL_NAMES: tuple[str, ...] = tuple(_NETWORKS)


def get_model(
    name: str,
    num_features: int = 512,
    dropout: float = 0.0,
    fp16: bool = False,
    *,
    amp_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build a backbone with fresh weights, on torch's current default device.

    It maps (B, 3, 112, 112) float32 in [-1, 1] to (B, num_features) float32, not normalised.

    Names and arguments are those of insightface's ``recognition/arcface_torch/backbones/__init__.py``. It
    differs from that in these points: ``rtiny`` is ours, ``amp_dtype`` adds bfloat16, ``dropout`` works in
    every network, unknown keywords are errors.

    Args:
        name: one of ``MODEL_NAMES``.
        num_features: embedding size.
        dropout: probability of zeroing an input of the last linear layer, in training; 0 for none.
        fp16: the old spelling of ``amp_dtype=torch.float16``.
        amp_dtype: autocast type of everything but the projection: ``torch.bfloat16``, ``torch.float16``, or None
            for float32. float16 needs a gradient scaler in training.

    Raises:
        ValueError: an unknown name, or an argument out of its range.
        TypeError: an argument of another type.
    """
    if not isinstance(name, str):
        raise TypeError(f"network name must be a string, got {name!r}")
    if name not in _NETWORKS:
        raise ValueError(_explain_name(name))
    if isinstance(num_features, bool) or not isinstance(num_features, int):
        raise TypeError(f"num_features must be an integer, got {num_features!r}")
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise TypeError(f"dropout must be a number, got {dropout!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a probability in [0, 1), got {dropout}")
    return _NETWORKS[name](num_features=num_features, dropout=float(dropout), amp_dtype=_amp_dtype(fp16, amp_dtype))


def _amp_dtype(fp16: bool, amp_dtype: torch.dtype | None) -> torch.dtype | None:
    if not isinstance(fp16, bool):
        raise TypeError(f"fp16 must be True or False, got {fp16!r}")
    if amp_dtype not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"amp_dtype must be torch.bfloat16, torch.float16, or None for float32, got {amp_dtype!r}")
    if fp16 and amp_dtype == torch.bfloat16:
        raise ValueError("fp16 = True contradicts amp_dtype = torch.bfloat16; set only one of them")
    return torch.float16 if fp16 else amp_dtype


def _explain_name(name: str) -> str:
    known = f"known networks: {', '.join(MODEL_NAMES)}"
    if name.lower().startswith("vit"):
        return f"ViT is not available yet, so there is no network {name!r}; {known}"
    nearest = difflib.get_close_matches(name.lower(), MODEL_NAMES, n=1, cutoff=0.0)[0]
    return f"unknown network {name!r}, did you mean {nearest!r}? {known}"
