"""Which optimizers a config asks for."""

import pytest
import torch

from backbones import get_model
from training.optimizers import make_optimizer, optimizer_flags, row_rule, row_states
from utils.config import get_config


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["head_size=4"], (1.0, 0.0, False, "decay")),  # a step visits 15 %
        (["head_size=4", "negative_rate=0.3"], (1.0, 0.0, False, "decay")),
        (["head_size=4", "negative_rate=0.6"], (1.0, 0.9, False, "decay")),
        (["head_size=None", "sample_rate=0.1"], (1.0, 0.0, False, "decay")),
        (["head_size=None", "sample_rate=0.25", "gradient_acc=2"], (1.0, 0.0, False, "decay")),  # 44 %
        (["head_size=None", "sample_rate=0.25", "gradient_acc=3"], (1.0, 0.9, False, "decay")),  # 58 %
        (["head_size=None", "momentum=0.8", "nesterov=True"], (1.0, 0.8, True, "decay")),  # full softmax
        (["head_size=1000"], (1.0, 0.9, False, "decay")),  # the same in one head
        (["head_size=None", "num_classes=[2, 500]"], (1.0, 0.9, False, "decay")),
        (["head_size=4", "batch_size=500"], (1.0, 0.9, False, "decay")),
        (["head_size=4", "num_classes=auto"], (1.0, 0.0, False, "decay")),
        (["head_size=None", "row_momentum=0"], (1.0, 0.0, False, "decay")),
        (["head_size=4", "row_momentum=0.7", "nesterov=True"], (1.0, 0.7, True, "decay")),
        (["head_size=4", "row_lr=0.5", "row_idle=dense"], (0.5, 0.0, False, "dense")),
        (["head_size=4", "optimizer=adamw"], (1.0, 0.0, False, "keep")),
        (["head_size=4", "optimizer=adamw", "row_lr=2", "row_idle=decay"], (2.0, 0.0, False, "decay")),
    ],
)
def test_rule_of_class_centres(overrides, rule):
    cfg = get_config("demo", ["num_classes=1000", "batch_size=20", *overrides])
    assert row_rule(cfg, world_size=2) == rule


@pytest.mark.parametrize(
    ("overrides", "states"),
    [([], 0), (["row_momentum=0.9"], 1), (["head_size=None"], 1), (["optimizer=adamw"], 2)],
)
def test_state_of_class_centres(overrides, states):
    cfg = get_config("demo", ["num_classes=1000", "batch_size=20", "head_size=4", *overrides])
    assert row_states(cfg, world_size=2) == states


def test_weights_are_updated_by_one_kernel_on_a_gpu_and_safely_on_a_cpu():
    assert optimizer_flags(torch.device("cuda", 1)) == {"fused": True}
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(get_config("demo", [f"optimizer={name}"]), get_model("rtiny", 16), 0.1)
        assert not optimizer.param_groups[0]["fused"]
