import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backbones import get_model
from backbones.iresnet import IResNet, ResidualBlock

pytestmark = pytest.mark.numeric


def test_block_is_its_formula(fill):
    block = fill(ResidualBlock(4, 6, stride=2)).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)

    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-5)

    y = F.conv2d(norm(x, block.bn1), block.conv1.weight, padding=1)
    y = F.prelu(norm(y, block.bn2), block.prelu.weight)
    y = norm(F.conv2d(y, block.conv2.weight, stride=2, padding=1), block.bn3)
    shortcut = norm(F.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), y + shortcut, rtol=0, atol=1e-12)


def test_block_keeps_the_input_where_shapes_fit():
    block = ResidualBlock(4, 4)
    assert block.downsample is None
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(2, 4, 8, 8)
    before = x.clone()
    assert torch.equal(block(x), before)
    assert torch.equal(x, before)


def test_initial_weights():
    torch.manual_seed(0)
    model = get_model("r18")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.1, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert module.eps == 1e-5


def test_the_last_scale_is_one_and_stays():
    model = get_model("rtiny", 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    (model(torch.randn(4, 3, 112, 112)) * torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert not model.features.weight.requires_grad
    assert (model.features.weight == 1).all()
    assert model.features.bias.requires_grad


@pytest.mark.parametrize(("stem_stride", "side"), [(1, 7), (2, 4)])
def test_stem_stride_sets_the_last_maps_size(stem_stride, side):
    model = IResNet((1, 1, 1, 1), 8, widths=(16, 16, 16, 32), stem_stride=stem_stride).eval()
    with torch.inference_mode():
        x = torch.zeros(1, 3, 112, 112)
        assert model.trunk(x).shape == (1, 32, side, side)
        assert model(x).shape == (1, 8)


def test_tiny_is_tiny():
    model = get_model("rtiny").eval()
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 112, 112))
    assert counter.get_total_flops() < 100e6  # r18: 5.2e9


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("batch", [2, 3, 32])
def test_tiny_trains_channels_last(amp_dtype, batch):
    torch.manual_seed(0)
    model = get_model("rtiny", 64, amp_dtype=amp_dtype).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.rand(batch, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(batch)).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_tiny_learns():
    torch.manual_seed(0)
    patterns = torch.randn(8, 3, 14, 14)
    labels = torch.arange(8).repeat(4)

    def draw():
        return F.interpolate(patterns[labels] + torch.randn(32, 3, 14, 14), scale_factor=8.0).clamp(-1, 1)

    model = get_model("rtiny", 32)
    classifier = nn.Linear(32, 8)
    optimizer = torch.optim.SGD([*model.parameters(), *classifier.parameters()], lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(classifier(model(draw())), labels).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (classifier(model(draw())).argmax(1) == labels).float().mean().item()
    assert accuracy > 0.9
