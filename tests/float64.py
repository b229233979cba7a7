"""Training in float64, for tests that hold two ways to compute the same against each other."""

import pytest
import torch

import backbones
from heads.shard import HeadShard


def compute_in_float64(patch: pytest.MonkeyPatch) -> None:
    """Let runs of rtiny that are prepared from now on compute in float64; they start from their usual weights.

    Rounding in float32 may turn the sign of a PReLU's input, which moves a gradient by up to a percent, and training
    makes the difference grow: two ways to compute the same part company in a few steps, sooner on some processors.
    """
    make = backbones._NETWORKS["rtiny"]

    def make_in_float64(**options):
        network = make(**options).double()
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return network

    patch.setitem(backbones._NETWORKS, "rtiny", make_in_float64)
    patch.setitem(HeadShard.__init__.__kwdefaults__, "dtype", torch.float64)
