"""Losses that need more than their own columns give the same on 2 and 3 ranks as on one."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from heads.optim import RowSGD
from losses import get_margin
from partial_fc_mhs import PartialFCMHS
from ranks import run_ranks
from utils.distributed import all_gather_objects

pytestmark = [pytest.mark.distributed, pytest.mark.numeric]
G, D, C = 12, 8, 29


def train(rank, world_size, loss, scope):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, G, 5, generator=g, dtype=torch.float64) * torch.rand(4, G, 1, generator=g) * 20  # all lengths
    labels = torch.randint(0, C, (4, G), generator=g)
    network = torch.nn.Linear(5, D, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(torch.randn(D, 5, generator=g, dtype=torch.float64))
    margin = get_margin(loss, 16.0)
    classifier = PartialFCMHS(
        margin, D, C, head_size=3, negative_rate=0.3, head_scope=scope, seed=5, dtype=torch.float64
    )
    classifier.shard.weight.copy_(
        torch.randn(C, D, generator=g, dtype=torch.float64)[
            classifier.shard.layout.class_start : classifier.shard.layout.class_end
        ]
    )
    classifier.shard.visits.fill_(1)
    model = DistributedDataParallel(network)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01), RowSGD(classifier.shard, 0.1, 0.9, 1e-2)]
    B, losses = G // world_size, []
    for step in range(4):
        mine = slice(rank * B, (rank + 1) * B)
        value = classifier(model(x[step, mine]), labels[step, mine])
        value.backward()
        losses.append(value.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = [float(v) for v in margin.state_dict().values()]
    return losses, network.weight.detach(), torch.cat(all_gather_objects(classifier.shard.weight)), state


@pytest.mark.parametrize("scope", ["batch", "own"])
@pytest.mark.parametrize("loss", ["adaface", "magface", "curricularface"])
def test_equal_to_one_rank(loss, scope):
    (alone,) = run_ranks(train, 1, loss, scope)
    for world_size in (2, 3):
        for got in run_ranks(train, world_size, loss, scope):
            torch.testing.assert_close(list(got), list(alone), rtol=0, atol=1e-10)
