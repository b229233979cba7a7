"""A resumed run of more than two ranks equals the uninterrupted one: the order of sums is the same, too."""

import pytest
import torch

import train
from ranks import run_ranks
from tiny_runs import TINY
from utils.config import get_config
from utils.distributed import Ranks

pytestmark = pytest.mark.distributed


def steps(rank, world_size, output, count, save_at, *overrides):
    """Take steps and save after some of them; the losses, and the weights and buffers after the last one."""
    cfg = get_config(TINY, [f"output={output}", "num_epoch=9", "batch_size=4", *overrides])
    run, data = train.prepare(cfg, Ranks(rank, world_size, rank, torch.device("cpu")))
    batches, losses = train.epoch_batches(run, data, train.Speedometer()), []
    for step in range(1, count + 1):
        losses.append(float(run.train_step(batches)))
        if step in save_at:
            run.save()
    run.close()
    return losses, {name: value.clone() for name, value in run.backbone.state_dict().items()}


@pytest.mark.parametrize("options", [[], ["gradient_compression=bf16"]], ids=["plain", "compressed"])
def test_bit_for_bit_on_three_ranks(tmp_path, options):
    """On every rank, its own running statistics included."""
    whole = run_ranks(steps, 3, tmp_path / "whole", 7, [3], *options)
    run_ranks(steps, 3, tmp_path / "part", 3, [3], *options)
    rest = run_ranks(steps, 3, tmp_path / "part", 4, [], "resume=True", *options)
    for (all_losses, expected), (losses, state) in zip(whole, rest, strict=True):
        assert losses == all_losses[3:]
        assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []
    means = [state["bn1.running_mean"] for _, state in whole]
    assert not torch.equal(means[0], means[1])  # of the steps since the save: each rank's own images
