"""A resumed run of more than two ranks equals the uninterrupted one: the order of sums is the same, too."""

import pytest
import torch

import train
from ranks import run_ranks
from tiny_runs import TINY
from utils.config import get_config
from utils.distributed import Ranks

pytestmark = pytest.mark.distributed


def steps(rank, world_size, output, count, *overrides):
    """Take steps; the losses, and the weights after them."""
    cfg = get_config(TINY, [f"output={output}", "num_epoch=9", "batch_size=4", *overrides])
    run, data = train.prepare(cfg, Ranks(rank, world_size, rank, torch.device("cpu")))
    batches = train.epoch_batches(run, data, train.Speedometer())
    losses = [float(run.train_step(batches)) for _ in range(count)]
    run.save()
    run.close()
    return losses, {name: value.clone() for name, value in run.backbone.state_dict().items()}


def test_bit_for_bit_on_three_ranks(tmp_path):
    whole = run_ranks(steps, 3, tmp_path / "whole", 7)
    run_ranks(steps, 3, tmp_path / "part", 3)
    rest = run_ranks(steps, 3, tmp_path / "part", 4, "resume=True")
    for (all_losses, expected), (losses, weights) in zip(whole[:1], rest[:1], strict=True):
        assert losses == all_losses[3:]
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
