import pytest
import torch
from torch import nn

from backbones import get_model
from backbones.mobilefacenet import ResidualStack

pytestmark = pytest.mark.numeric


def test_every_map_has_the_size_that_its_comment_says(faces):
    model = get_model("mbf").eval()
    sides = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    with torch.inference_mode():
        assert model.trunk(faces).shape == (2, 512, 7, 7)
        assert model.project(torch.zeros(2, 512, 7, 7)).shape == (2, 512)
    assert sides == [56, 56, 28, 28, 14, 14, 7, 7]


def test_residual_adds_its_input():
    stack = ResidualStack(nn.Conv2d(4, 4, 1))
    nn.init.zeros_(stack.layers[0].weight)
    nn.init.zeros_(stack.layers[0].bias)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(stack(x), x)


def test_bottlenecks_end_without_an_activation():
    model = get_model("mbf")
    for index in (2, 4, 6):
        assert [type(m) for m in model.layers[index].layers[-1].layers] == [nn.Conv2d, nn.BatchNorm2d]


def test_initial_weights_are_kaiming_by_fan_out():
    torch.manual_seed(0)
    model = get_model("mbf", 256)
    linear = model.features.layers[2]
    assert abs(linear.weight.std().item() / (2 / 256) ** 0.5 - 1) < 0.05
    conv = model.conv_sep.layers[0]
    assert abs(conv.weight.std().item() / (2 / 512) ** 0.5 - 1) < 0.05


def test_large_runs(faces):
    with torch.inference_mode():
        out = get_model("mbf_large", 64, amp_dtype=torch.bfloat16).eval()(faces[:1])
    assert out.shape == (1, 64)
    assert out.isfinite().all()
