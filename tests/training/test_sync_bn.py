"""Synchronised batch normalisation on CPU ranks equals plain batch normalisation of the whole batch."""

import pytest
import torch
from torch import nn

from backbones import get_model
from ranks import run_ranks
from training.sync_bn import synchronise_batch_norm
from utils.distributed import all_gather_objects

pytestmark = [pytest.mark.distributed, pytest.mark.numeric]


def network():
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5))
    with torch.no_grad():
        layers[1].weight.uniform_(0.5, 1.5)
        layers[1].bias.uniform_(-1, 1)
    return layers.double()


def images():
    return torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def on_ranks(rank, world_size):
    model = synchronise_batch_norm(network(), torch.device("cpu"))
    x = images().chunk(world_size)[rank].clone().requires_grad_()
    out = model(x)
    out.pow(3).sum().backward()  # every rank's part of one common sum
    grads = [
        torch.stack(g).sum(0) for g in zip(*all_gather_objects([p.grad for p in model.parameters()]), strict=True)
    ]
    joined = torch.cat(all_gather_objects(out.detach())), torch.cat(all_gather_objects(x.grad))
    model.eval()
    return *joined, grads, list(model.buffers()), model(images())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_equals_one_process(world_size):
    model, x = network(), images().requires_grad_()
    out = model(x)
    out.pow(3).sum().backward()
    buffers = [b.clone() for b in model.buffers()]
    want = out.detach(), x.grad, [p.grad for p in model.parameters()], buffers, model.eval()(images())
    for got in run_ranks(on_ranks, world_size):
        torch.testing.assert_close(list(got), list(want), rtol=0, atol=1e-11)


def test_names_and_values_stay():
    plain = get_model("rtiny", 16)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    after = synchronise_batch_norm(plain, torch.device("cpu")).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in plain.modules())
    assert not plain.features.weight.requires_grad
