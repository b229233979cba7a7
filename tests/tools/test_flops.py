import pytest
import torch
from torch import nn

from backbones import MODEL_NAMES, get_model
from backbones.base import Backbone
from backbones.vit import Attention
from tools import flops

COSTLY = ("r200", "r2060", "vit_h")


def by_hand(network):
    """Multiply-adds from the shapes that pass through convolutions and linear layers."""
    total = 0

    def count(module, _, out):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            total += out[0].numel() * height * width * module.in_channels // module.groups
        elif isinstance(module, Attention):
            total += 2 * out.shape[1] ** 2 * out.shape[2]  # of queries with keys, and of weights with values
        else:
            total += out.numel() // module.out_features * module.in_features * module.out_features

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Attention):
            module.register_forward_hook(count)
    network.eval()
    network.project(network.trunk(torch.zeros(1, 3, 112, 112, device="meta")))
    return total


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name not in COSTLY])
def test_equals_the_count_by_hand(name):
    with torch.device("meta"):
        network = get_model(name)
    cost = flops.cost_of(network)
    assert network.training
    assert cost.multiply_adds == by_hand(network)
    assert cost.parameters == sum(p.numel() for p in network.parameters())


# Millions of parameters and GFLOPs as insightface's model tables give them, for the networks they name.
@pytest.mark.parametrize(
    ("name", "parameters_m", "gflops"),
    [("r18", 24.0, 2.62), ("r34", 34.1, 4.48), ("r50", 43.6, 6.33), ("r100", 65.2, 12.12), ("mbf", 2.0, 0.45)],
)
def test_known_figures(name, parameters_m, gflops):
    with torch.device("meta"):
        cost = flops.cost_of(get_model(name))
    assert cost.parameters / 1e6 == pytest.approx(parameters_m, rel=0.03)
    assert cost.multiply_adds / 1e9 == pytest.approx(gflops, rel=0.03)


@pytest.mark.parametrize(
    ("name", "gflops"), [("vit_t", 1.5), ("vit_s", 5.7), ("vit_b", 11.4), ("vit_l_dp005_mask_005", 25.3)]
)
def test_known_figures_of_vit(name, gflops):
    with torch.device("meta"):
        assert flops.cost_of(get_model(name)).multiply_adds / 1e9 == pytest.approx(gflops, abs=0.05)


class TwoLayers(Backbone):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(4 * 112 * 112, 2)

    def trunk(self, x):
        return self.conv(x)

    def project(self, x):
        return self.fc(x.flatten(1))


def test_layers_worked_out_on_paper():
    network = TwoLayers().eval()
    cost = flops.cost_of(network)
    assert cost.multiply_adds == 112 * 112 * 4 * 27 + 4 * 112 * 112 * 2
    assert cost.parameters == 4 * 27 + 4 * 112 * 112 * 2 + 2
    assert not network.training


def test_command_line(capsys):
    assert flops.main(["rtiny", "mbf", "--embedding-size", "128"]) == 0
    out = capsys.readouterr().out
    assert "rtiny" in out
    assert "counts once" in out
    assert "r50" not in out
    assert flops.main(["r51"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("flops: error: unknown network 'r51', did you mean 'r50'")
    assert captured.out == ""
    assert flops.main(["rtiny", "--embedding-size", "0"]) == 2
    assert "num_features must be at least 1" in capsys.readouterr().err


def test_all_networks_by_default(capsys, monkeypatch):
    monkeypatch.setattr(flops, "get_model", lambda *arguments: None)  # the deep ones take seconds to build
    monkeypatch.setattr(flops, "cost_of", lambda network: flops.Cost(0, 0))
    assert flops.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"| {name} " in out for name in MODEL_NAMES)
