"""The average of a backbone's weights: what it is, and where a run takes it instead of the last weights."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from backbones import get_model
from pretend_device import NAME, PretendDevice
from ranks import run_ranks
from tiny_runs import prepared, run, weights
from training.checkpoint import load_training
from training.ema import Ema
from training.memory import plan_of
from training.start import start_from
from utils.config import get_config
from utils.distributed import Ranks

AVERAGE = "ema_decay=0.9"


def network():
    """Convolutions, batch norms, PReLU and their counts, in float64."""
    torch.manual_seed(0)
    return get_model("rtiny", 16).double()


def change(model, seed):
    """What a step may do to weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, dtype=value.dtype, generator=generator))
        else:
            value.add_(1)


def rising(average, value, count):
    """The average's own rule as AveragedModel takes it, which counts the copy of the first weights, too."""
    t = int(count) - 1
    keep = min(0.6, (1 + t) / (10 + t))
    return keep * average + (1 - keep) * value


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("decay", "theirs"),
    [(0.05, {"multi_avg_fn": get_ema_multi_avg_fn(0.05)}), (0.6, {"avg_fn": rising})],
    ids=["constant", "rising"],
)
def test_equals_the_average_of_torch(decay, theirs):
    model = network()
    ours, reference = Ema(model, decay), AveragedModel(model, use_buffers=True, **theirs)
    reference.update_parameters(model)  # a copy, as ours begins with
    for seed in range(20):
        change(model, seed)
        ours.update()
        reference.update_parameters(model)
    found, last = ours.network.state_dict(), model.state_dict()
    for name, value in reference.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(found[name], value, rtol=1e-12, atol=1e-12), name
            assert not torch.equal(found[name], last[name])
        else:
            assert found[name] == last[name] == 20


@pytest.mark.parametrize("taken", [False, None], ids=str)
@pytest.mark.parametrize("skipped", [True, torch.tensor(True)], ids=["bool", "tensor"])
def test_a_skipped_step_is_as_if_it_had_not_been(skipped, taken):
    model = network()
    averages = Ema(model, 0.9), Ema(model, 0.9)
    for seed in range(3):
        change(model, seed)
        averages[0].update(taken)
        averages[0].update(skipped)
        averages[1].update(torch.tensor(False))
    for one, other in zip(*(average.network.state_dict().values() for average in averages), strict=True):
        assert torch.equal(one, other)
    assert averages[0].state_dict()["updates"] == 3


def test_the_host_never_waits_for_the_device():
    with PretendDevice() as device:
        host = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        expected, model = Ema(host, 0.5), copy.deepcopy(host).to(NAME)
        average = Ema(model, 0.5)
        for skipped in (False, True, False, False):
            skip = torch.tensor(skipped).to(NAME)
            change(host, 1)
            for value, of_host in zip(model.state_dict().values(), host.state_dict().values(), strict=True):
                value.copy_(of_host)
            device.waits.clear()
            average.update(skip)
            assert device.waits == []
            expected.update(skipped)
        for one, other in zip(average.tensors.values(), expected.tensors.values(), strict=True):
            assert torch.allclose(one.cpu().double(), other.double(), rtol=1e-6)
        assert "copy to the host" in device.waits


def test_parts_hold_every_tensor_once(monkeypatch):
    monkeypatch.setattr("training.ema._NUMBERS_AT_ONCE", 1000)
    model = network()
    average = Ema(model, 0.5)
    assert len(average._parts) > 5
    change(model, 0)
    average.update()
    monkeypatch.undo()
    whole = Ema(network(), 0.5)
    whole._source.load_state_dict(model.state_dict())
    whole.update()
    for one, other in zip(average.tensors.values(), whole.tensors.values(), strict=True):
        assert torch.equal(one, other)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_writes_and_verifies_the_average_and_keeps_the_last_weights(tmp_path):
    state, batches = prepared(tmp_path, AVERAGE, "keep_best=lfw/accuracy", "val_targets=lfw")
    average = Ema(copy.deepcopy(state.backbone), 0.9)
    for _ in range(3):
        state.train_step(batches)
        average._source.load_state_dict(state.backbone.state_dict())
        average.update()
    verified = []
    state.verify(lambda network, step: verified.append(network) or {"lfw/accuracy": 0.9})
    state.save(model=True)
    state.close()
    assert same(verified[0].state_dict(), average.network.state_dict())
    raw, best = (torch.load(tmp_path / name, weights_only=True) for name in ("model_raw.pt", "model_best.pt"))
    assert same(weights(tmp_path), average.network.state_dict())
    assert same(best, average.network.state_dict())
    assert same(raw, state.backbone.state_dict())
    assert not same(raw, best)


def test_a_skipped_step_of_a_run_leaves_the_average_alone(tmp_path):
    state, batches = prepared(tmp_path, AVERAGE)
    state.train_step(batches)
    before = copy.deepcopy(state.ema.state_dict())
    poison = state.backbone.register_forward_pre_hook(lambda module, given: (given[0] * torch.nan,))
    state.train_step(batches)
    poison.remove()
    after = state.ema.state_dict()
    assert before["updates"] == after["updates"] == 1
    assert all(torch.equal(one, other) for one, other in zip(before["tensors"], after["tensors"], strict=True))


def test_it_can_be_switched_on_and_off_with_resume(tmp_path, capsys):
    run(tmp_path)
    state, batches = prepared(tmp_path, AVERAGE, "resume=True")
    assert same(state.ema.network.state_dict(), state.backbone.state_dict())
    assert "step_12 holds no average of the weights: it begins with the weights in there" in capsys.readouterr().out
    state.train_step(batches)
    state.save(model=True)
    state.close()
    assert (tmp_path / "model_raw.pt").exists()
    state, _ = prepared(tmp_path, "resume=True")
    assert "step_13 holds an average of the weights, which this run leaves out" in capsys.readouterr().out
    assert state.ema.network is state.backbone
    state.save(model=True)
    state.close()
    assert not (tmp_path / "model_raw.pt").exists(), "model.pt holds the last weights again"
    assert same(weights(tmp_path), state.backbone.state_dict())


def test_a_checkpoint_with_an_average_still_gives_its_network(tmp_path):
    state, batches = prepared(tmp_path, AVERAGE)
    state.train_step(batches)
    state.train_step(batches)
    state.save()
    state.close()
    fresh = get_model("rtiny", 32)
    fit = start_from(fresh, tmp_path / "checkpoints" / "step_2" / "training.pt")
    assert fit.share == 1
    assert same(fresh.state_dict(), state.backbone.state_dict())


def test_an_average_that_is_not_finite_is_not_gone_on_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.saving.first_non_finite", lambda value: None)
    state, batches = prepared(tmp_path, AVERAGE)
    for _ in range(2):
        state.train_step(batches)
        state.save()
        state.saver.finish()
        state.ema.network.bn1.bias[0] = torch.nan
    state.close()
    resumed, _ = prepared(tmp_path, AVERAGE, "resume=auto")
    assert resumed.step == 1
    assert "step_2/training.pt is of no use: ema.tensors." in capsys.readouterr().out


def test_the_log_says_what_model_pt_is(tmp_path, capsys):
    run(tmp_path, AVERAGE)
    log = capsys.readouterr().out
    assert (
        "average: verification, model.pt and model_best.pt take the weights' average over the steps, of decay 0.9"
        in log
    )
    assert "model.pt (average of the weights; the last ones: model_raw.pt), after" in log


def averages(rank, world_size, output):
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    state, batches = prepared(output, AVERAGE, "batch_size=4", ranks=ranks)
    for _ in range(2):
        state.train_step(batches)
    state.verify(lambda network, step: {})
    state.save()
    state.close()
    return {name: value.clone() for name, value in state.ema.network.state_dict().items()}


@pytest.mark.distributed
def test_all_ranks_and_the_checkpoint_have_the_same(tmp_path):
    first, second = run_ranks(averages, 2, tmp_path)
    saved = load_training(tmp_path / "checkpoints" / "step_2")["ema"]["tensors"]
    assert same(first, second)
    assert all(torch.equal(one, other) for one, other in zip(first.values(), saved, strict=True))


def test_its_memory_is_planned():
    base = ["rec=synthetic", "num_classes=1000", "network=rtiny", "batch_size=8"]
    with_it, without = (plan_of(get_config("demo", [*base, *more]), 1) for more in ([AVERAGE], []))
    parameters = sum(p.numel() for p in get_model("rtiny", get_config("demo").embedding_size).parameters())
    assert with_it.backbone - without.backbone == 4 * parameters


def test_a_frozen_backbone_has_none():
    frozen = ["freeze_backbone=True", "init_backbone=model.pt", "decay_norms_and_biases=False"]
    cfg = get_config("demo", [*frozen, AVERAGE])
    assert cfg.average_decay() == 0
    assert {"ema_decay", "decay_norms_and_biases"} <= set(cfg.without_effect())
