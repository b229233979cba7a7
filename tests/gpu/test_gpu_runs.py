"""Whole runs on a GPU: stopped and resumed, alone and under the launchers."""

import os
import signal

import numpy as np
import pytest
import torch

import train
from float64 import compute_in_float64
from gpu_ranks import run_launched
from tiny_runs import TINY, metrics, run, weights
from training.run import TrainingRun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
DEVICE = "device=cuda"


def stop_after(monkeypatch, step):
    """Send this process SIGTERM once, after that step."""
    original = TrainingRun.train_step

    def train_step(self, batches):
        loss = original(self, batches)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(TrainingRun, "train_step", train_step)


def stopped_and_whole(folder, monkeypatch, *options):
    """Losses of a run that was stopped by SIGTERM and resumed, and of one that was not; likewise their weights."""
    whole = run(folder / "whole", *options)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(SystemExit) as ended:
            run(folder / "part", *options)
    assert ended.value.code == 128 + signal.SIGTERM
    done = metrics(folder / "part")
    assert 5 <= max(done) <= 7
    resumed = run(folder / "part", *options, "resume=True")
    return {**done, **resumed}, whole, weights(folder / "part"), weights(folder / "whole")


@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_a_stopped_run_resumes_as_if_nothing_had_been(tmp_path, monkeypatch, place):
    """In float64, where the order in which a GPU adds does not show."""
    compute_in_float64(monkeypatch)
    options = [DEVICE, f"head_storage={place}", "negative_rate=0.3", "num_epoch=2"]
    losses, wanted, part, whole = stopped_and_whole(tmp_path, monkeypatch, *options)
    assert list(losses) == list(wanted)
    assert list(losses.values()) == pytest.approx(list(wanted.values()), rel=1e-6)
    for name, weight in whole.items():
        torch.testing.assert_close(part[name], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_stopped_run_in_half_precision_resumes(tmp_path, monkeypatch, precision):
    options = [DEVICE, f"{precision}=True", "lr=0.001"]
    losses, wanted, *_ = stopped_and_whole(tmp_path, monkeypatch, *options)
    assert list(losses) == list(wanted)
    assert list(losses.values()) == pytest.approx(list(wanted.values()), rel=5e-2)


@pytest.mark.distributed
@pytest.mark.parametrize("module", ["torch.distributed.run", "torch.distributed.launch"])
def test_one_rank_under_a_launcher_is_a_run_alone(tmp_path, module):
    alone = run(tmp_path / "alone", DEVICE, "lr=0.001")
    run_launched("train.py", 1, TINY, f"output={tmp_path / 'one'}", DEVICE, "lr=0.001", device="", module=module)
    found = metrics(tmp_path / "one")
    assert list(found) == list(alone)
    assert list(found.values()) == pytest.approx(list(alone.values()), rel=2e-2)


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="this machine has one GPU")
@pytest.mark.parametrize("options", [(), ("fp16=True",), ("bf16=True", "sync_bn=True")], ids=" ".join)
def test_all_gpus_train_as_one(tmp_path, options):
    world_size = torch.cuda.device_count()
    options = ["num_image=960", "num_epoch=1", *options]
    run_launched("train.py", world_size, TINY, f"output={tmp_path / 'all'}", DEVICE, *options, device="", limit_s=150)
    losses = metrics(tmp_path / "all")
    assert len(losses) == 960 // (8 * world_size)
    assert np.isfinite(list(losses.values())).all()
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "all").values())


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="this machine has one GPU")
def test_two_gpus_give_the_losses_of_one(tmp_path):
    one = run(tmp_path / "one", DEVICE, "lr=0.001", "batch_size=16", "sync_bn=False", "augment=None")
    options = ["lr=0.001", "batch_size=8", "sync_bn=True", "augment=None"]
    run_launched("train.py", 2, TINY, f"output={tmp_path / 'two'}", DEVICE, *options, device="", limit_s=150)
    two = metrics(tmp_path / "two")
    assert list(two) == list(one)
    assert list(two.values())[:3] == pytest.approx(list(one.values())[:3], rel=2e-2)


def test_verification_runs_on_the_device(tmp_path):
    import pickle

    from utils.decode import encode_png

    rng = np.random.default_rng(0)
    images = [encode_png(rng.integers(0, 255, (112, 112, 3), np.uint8)) for _ in range(40)]
    with (tmp_path / "mine.bin").open("wb") as file:
        pickle.dump((images, [i % 2 == 0 for i in range(20)]), file)
    train.main(
        [TINY, f"output={tmp_path / 'run'}", DEVICE, f"val_targets=[{str(tmp_path / 'mine.bin')!r}]", "bf16=True"]
    )
    assert set(metrics(tmp_path / "run", "mine/accuracy")) == {0, 12}
