"""Backbones: a batch of aligned faces in, one embedding per face out. ``get_model(name)`` builds them.

To add one, subclass ``backbones.base.Backbone`` and give it a line in ``_NETWORKS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from backbones.base import FACE_SIZE
from backbones.iresnet import IResNet
from backbones.mobilefacenet import MobileFaceNet
from backbones.vit import VisionTransformer

__all__ = ["MODEL_NAMES", "get_model"]

# insightface masks a tenth of the patches in training whatever ratio a name gives, as long as it is not 0; its
# published results are trained so, and so are these.
_A_TENTH = 0.1

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "r18": partial(IResNet, (2, 2, 2, 2)),
    "r34": partial(IResNet, (3, 4, 6, 3)),
    "r50": partial(IResNet, (3, 4, 14, 3)),
    "r100": partial(IResNet, (3, 13, 30, 3)),
    "r200": partial(IResNet, (6, 26, 60, 6)),
    "r2060": partial(IResNet, (3, 128, 896, 3), gradient_checkpointing=True),
    # For demos and tests: trains at hundreds of images a second on two CPU cores.
    "rtiny": partial(IResNet, (1, 1, 2, 1), widths=(16, 32, 64, 128), stem_stride=2),
    "mbf": partial(MobileFaceNet, (1, 4, 6, 2), 2),
    "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
    "vit_t": partial(VisionTransformer, 256, 12),
    "vit_t_dp005_mask0": partial(VisionTransformer, 256, 12, drop_path=0.05, mask_ratio=0),
    "vit_s": partial(VisionTransformer, 512, 12),
    "vit_s_dp005_mask_0": partial(VisionTransformer, 512, 12, drop_path=0.05, mask_ratio=0),
    "vit_b": partial(VisionTransformer, 512, 24, gradient_checkpointing=True),
    "vit_b_dp005_mask_005": partial(
        VisionTransformer, 512, 24, drop_path=0.05, mask_ratio=_A_TENTH, gradient_checkpointing=True
    ),
    "vit_l_dp005_mask_005": partial(
        VisionTransformer, 768, 24, drop_path=0.05, mask_ratio=_A_TENTH, gradient_checkpointing=True
    ),
    "vit_h": partial(VisionTransformer, 1024, 48, mask_ratio=0, gradient_checkpointing=True),
    "vtiny": partial(VisionTransformer, 96, 4, heads=4, patch_size=14),  # as rtiny, for demos and tests
}
MODEL_NAMES: tuple[str, ...] = tuple(_NETWORKS)


def get_model(
    name: str,
    num_features: int = 512,
    dropout: float = 0.0,
    fp16: bool = False,
    *,
    amp_dtype: torch.dtype | None = None,
    image_size: int = FACE_SIZE,
    gradient_checkpointing: bool | None = None,
) -> nn.Module:
    """Build a backbone with fresh weights, on torch's current default device.

    It maps (B, 3, image_size, image_size) float32 in [-1, 1] to (B, num_features) float32, not normalised.

    Names and arguments are those of insightface's ``recognition/arcface_torch/backbones/__init__.py``. It
    differs from that in these points: ``rtiny`` and ``vtiny`` are ours, ``amp_dtype`` adds bfloat16,
    ``dropout`` and ``gradient_checkpointing`` work in every network, unknown keywords are errors.

    Args:
        name: one of ``MODEL_NAMES``.
        num_features: embedding size.
        dropout: probability of zeroing an input of the last linear layer, in training; 0 for none.
        fp16: the old spelling of ``amp_dtype=torch.float16``.
        amp_dtype: autocast type of everything but the projection: ``torch.bfloat16``, ``torch.float16``, or None
            for float32. float16 needs a gradient scaler in training.
        image_size: side of the images in pixels. Only a ViT takes another than 112; its weights belong to one size.
        gradient_checkpointing: whether training computes parts again in backward to save memory, which takes time;
            None: as insightface has it, in r2060, vit_b, vit_l and vit_h.

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
    options: dict[str, object] = {}
    if image_size != FACE_SIZE:
        check_image_size(name, image_size)
        options["image_size"] = image_size
    if gradient_checkpointing is not None:
        options["gradient_checkpointing"] = _boolean("gradient_checkpointing", gradient_checkpointing)
    return _NETWORKS[name](
        num_features=num_features, dropout=float(dropout), amp_dtype=_amp_dtype(fp16, amp_dtype), **options
    )


def check_image_size(name: str, image_size: int) -> None:
    """Raise ValueError if the network does not take images of this side, TypeError if it is no integer."""
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        raise TypeError(f"image_size must be an integer, the side in pixels, got {image_size!r}")
    build = _NETWORKS[name]
    if image_size != FACE_SIZE and not (isinstance(build, partial) and build.func is VisionTransformer):
        raise ValueError(
            f"network {name!r} takes images of {FACE_SIZE} x {FACE_SIZE} only, got image_size {image_size}; the ViTs "
            "take others"
        )


def _amp_dtype(fp16: bool, amp_dtype: torch.dtype | None) -> torch.dtype | None:
    fp16 = _boolean("fp16", fp16)
    if amp_dtype not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"amp_dtype must be torch.bfloat16, torch.float16, or None for float32, got {amp_dtype!r}")
    if fp16 and amp_dtype == torch.bfloat16:
        raise ValueError("fp16 = True contradicts amp_dtype = torch.bfloat16; set only one of them")
    return torch.float16 if fp16 else amp_dtype


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _explain_name(name: str) -> str:
    known = f"known networks: {', '.join(MODEL_NAMES)}"
    nearest = difflib.get_close_matches(name.lower(), MODEL_NAMES, n=1, cutoff=0.0)[0]
    longer = [one for one in MODEL_NAMES if name and one.startswith(f"{name.lower()}_")]
    if longer and nearest != name.lower():  # vit_l, which has a long name alone
        nearest = longer[0]
    return f"unknown network {name!r}, did you mean {nearest!r}? {known}"
