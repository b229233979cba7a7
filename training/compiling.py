"""compile = True: a backbone whose training pass runs in kernels that torch.compile makes for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.base import Backbone
from utils.distributed import together
from utils.settings import Config


def compiled_if_asked(cfg: Config, backbone: nn.Module) -> nn.Module:
    """``backbone``, compiled in place where ``cfg`` asks for it and there is something to train.

    Collective: a gather of errors, where it is compiled.

    Raises:
        ValueError: the network recomputes its activations, or there is no working compiler; on every rank.
    """
    if cfg.compile and not cfg.freeze_backbone:
        together(lambda: compile_training_pass(backbone))
    return backbone


def compile_training_pass(backbone: nn.Module) -> None:
    """Compile the forward and backward of training, at its first images; state_dict and evaluation stay as they are.

    The kernels are made for one batch size, the only one that training has. Evaluation, whose last batches are
    smaller, runs without them.
    """
    if isinstance(backbone, Backbone) and backbone.gradient_checkpointing:
        raise ValueError(
            "compile = True does not go with gradient checkpointing, which this network has by default: set "
            "gradient_checkpointing = False, or compile = False"
        )
    check_compiler(next(backbone.parameters()).device)
    plain = backbone.forward
    compiled = torch.compile(plain, dynamic=False)

    def forward(x: Tensor) -> Tensor:
        return compiled(x) if backbone.training else plain(x)  # type: ignore[no-any-return]

    backbone.forward = forward


def check_compiler(device: torch.device) -> None:
    """Compile and run one small function; ValueError if that fails, for instance for want of a C++ compiler."""
    try:
        torch.compile(lambda x: (x.sin() + 1).sum(), dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # torch has no common type for what may go wrong here
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"compile = True: torch.compile does not work here ({lines[0] if lines else type(error).__name__}): "
            "install a C++ compiler such as g++, for a GPU also triton, or set compile = False"
        ) from None
