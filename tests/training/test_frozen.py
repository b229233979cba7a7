"""freeze_backbone: the classifier alone trains; the network keeps every bit."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import train
from model_files import save_random_model
from ranks import run_ranks
from tiny_runs import TINY, metrics, run, weights
from utils.config import get_config
from utils.distributed import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def start(tmp_path):
    return save_random_model(tmp_path / "start", "rtiny", 32)


def frozen(start, *overrides):
    return ["freeze_backbone=True", f"init_backbone={start}", *overrides]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "options",
    [[], ["bf16=True"], ["fp16=True"], ["gradient_acc=2", "batch_size=4"], ["optimizer=adamw", "lr=0.01"],
     ["dropout=0.4", "sync_bn=True"]],
    ids=lambda options: " ".join(options) or "plain",
)  # fmt: skip
def test_the_classifier_learns_and_the_network_keeps_every_bit(tmp_path, start, options):
    losses = run(tmp_path / "run", *frozen(start, "num_epoch=4", "lr=1", "head_size=60", *options))
    assert same(weights(tmp_path / "run"), torch.load(start))
    assert sum(list(losses.values())[-12:]) < sum(list(losses.values())[:12])
    assert "backbone: frozen" in (tmp_path / "run" / "training.log").read_text()


def test_nothing_is_kept_for_it(tmp_path, start):
    state, data = train.prepare(get_config(TINY, [f"output={tmp_path}", *frozen(start)]), ALONE)
    state.train_step(train.epoch_batches(state, data, train.Speedometer()))
    assert not state.backbone.training
    assert all(p.grad is None and not p.requires_grad for p in state.backbone.parameters())
    assert state.optimizers == [state.row_optimizer]
    state.save()
    state.saver.finish()
    assert torch.load(tmp_path / "checkpoints" / "step_1" / "training.pt")["optimizer"] == {}


def train_on_ranks(rank, world_size, overrides):
    state, data = train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))
    train.train(state, data)
    return isinstance(state.model, DistributedDataParallel), {
        k: v.clone() for k, v in state.backbone.state_dict().items()
    }


@pytest.mark.distributed
def test_two_ranks_and_one_learn_the_same(tmp_path, start):
    """Rank 1 has batches without a class of its own, too: heads of 60 lie on rank 0."""
    for heads in ("head_size=7", "head_size=60"):
        a, b = tmp_path / f"{heads}one", tmp_path / f"{heads}two"
        run(a, *frozen(start, heads))
        results = run_ranks(train_on_ranks, 2, [f"output={b}", *frozen(start, heads, "batch_size=4")])
        for has_ddp, state in results:
            assert not has_ddp
            assert same(state, torch.load(start))
        assert list(metrics(b).values()) == pytest.approx(list(metrics(a).values()), rel=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, start):
    whole = run(tmp_path / "a", *frozen(start, "num_epoch=2"))
    state, data = train.prepare(
        get_config(TINY, [f"output={tmp_path / 'b'}", "num_epoch=2", "checkpoint_steps=5", *frozen(start)]), ALONE
    )
    batches = train.epoch_batches(state, data, train.Speedometer())
    for _ in range(5):
        state.train_step(batches)
        state.mean_loss()
    state.save()
    state.saver.finish()
    rest = run(tmp_path / "b", *frozen(start, "num_epoch=2", "resume=True"))
    assert {step: rest[step] for step in range(7, 25)} == {step: whole[step] for step in range(7, 25)}


def test_a_run_goes_on_with_the_network_too_and_the_other_way_round(tmp_path, start):
    run(tmp_path, *frozen(start))
    run(tmp_path, "resume=True", "num_epoch=2")
    trained = weights(tmp_path)
    assert not same(trained, torch.load(start))
    run(tmp_path, "resume=True", "num_epoch=3", "freeze_backbone=True")
    assert same(weights(tmp_path), trained)


def test_a_frozen_network_must_come_from_somewhere():
    with pytest.raises(ValueError, match="freeze_backbone = True keeps the weights of init_backbone: give it a file"):
        get_config(TINY, ["freeze_backbone=True"])
    cfg = get_config(TINY, ["freeze_backbone=True", "init_backbone=a.pt", "sync_bn=True", "dropout=0.1"])
    assert cfg.without_effect() == ["sync_bn", "dropout"]
