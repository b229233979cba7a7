"""freeze_bn: batch norms keep their statistics, and with True their scales and shifts, while the weights train."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import train
from backbones import get_model
from model_files import save_random_model
from ranks import run_ranks
from tiny_runs import TINY, metrics, run, weights
from utils.config import get_config
from utils.distributed import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def start(tmp_path):
    """Weights of a network whose batch norms have seen something."""
    path = save_random_model(tmp_path / "start", "rtiny", 32)
    state = torch.load(path)
    g = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if "running_" in name:
            value.copy_(0.5 + torch.rand(value.shape, generator=g))
    torch.save(state, path)
    return path


def norm_names(*kinds):
    layers = [name for name, module in get_model("rtiny", 32).named_modules() if isinstance(module, _BatchNorm)]
    return {f"{layer}.{kind}" for layer in layers for kind in kinds}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def changed(state, start):
    return {name for name, value in torch.load(start).items() if not torch.equal(value, state[name])}


@pytest.mark.parametrize(("value", "kept"), [("True", (*STATISTICS, "weight", "bias")), ("statistics", STATISTICS)])
@pytest.mark.parametrize("options", [[], ["sync_bn=True", "optimizer=adamw", "lr=0.01"]], ids=["sgd", "adamw"])
def test_norms_keep_what_they_should_and_everything_else_trains(tmp_path, start, value, kept, options):
    run(tmp_path / "run", f"freeze_bn={value}", f"init_backbone={start}", "val_targets=[]", *options)
    # scale of the last layer, insightface's "features", never trains
    assert changed(weights(tmp_path / "run"), start) == torch.load(start).keys() - norm_names(*kept) - {
        "features.weight"
    }


def train_on_ranks(rank, world_size, overrides):
    state, data = train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))
    train.train(state, data)
    return {name: value.clone() for name, value in state.backbone.state_dict().items()}


@pytest.mark.distributed
def test_two_ranks_learn_what_one_does_without_synchronised_statistics(tmp_path, start):
    """Frozen statistics do not depend on how the batch is cut, so that even plain batch norm is the same."""
    options = ["freeze_bn=True", f"init_backbone={start}"]
    one = run(tmp_path / "one", *options)
    states = run_ranks(train_on_ranks, 2, [f"output={tmp_path / 'two'}", "batch_size=4", *options])
    assert list(metrics(tmp_path / "two").values()) == pytest.approx(list(one.values()), rel=1e-4)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_resumed_run_equals_the_uninterrupted_one_and_may_thaw(tmp_path, start):
    options = ["num_epoch=2", "freeze_bn=True", f"init_backbone={start}"]
    whole = run(tmp_path / "a", *options)
    state, data = train.prepare(get_config(TINY, [f"output={tmp_path / 'b'}", *options]), ALONE)
    batches = train.epoch_batches(state, data, train.Speedometer())
    for _ in range(5):
        state.train_step(batches)
        state.mean_loss()
    state.save()
    state.saver.finish()
    state.close()
    rest = run(tmp_path / "b", *options, "resume=True")
    assert {step: rest[step] for step in range(6, 25)} == {step: whole[step] for step in range(6, 25)}
    thawed = run(tmp_path / "a", "num_epoch=3", "resume=True")
    assert len(thawed) == 36
    assert norm_names("running_mean") <= changed(weights(tmp_path / "a"), start)


def test_it_needs_weights_to_keep_and_says_what_it_overrules():
    with pytest.raises(ValueError, match="freeze_bn = 'statistics' keeps the statistics of init_backbone: give it"):
        get_config(TINY, ["freeze_bn=statistics"])
    with pytest.raises(ValueError, match="freeze_bn must be True or False or 'statistics'"):
        get_config(TINY, ["freeze_bn=affine"])
    cfg = get_config(TINY, ["freeze_bn=True", "init_backbone=a.pt", "sync_bn=True"])
    assert cfg.without_effect() == ["sync_bn"]
    cfg = get_config(TINY, ["freeze_backbone=True", "init_backbone=a.pt", "freeze_bn=True"])
    assert cfg.without_effect() == ["freeze_bn"]
