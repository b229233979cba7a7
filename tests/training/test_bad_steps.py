"""What is not finite, wherever it comes from, leaves no trace in what a run keeps."""

import pytest
import torch

import train
from ranks import run_ranks
from tiny_runs import TINY
from training.loss_scale import LossScale
from utils.config import get_config
from utils.distributed import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def start(output, *overrides, ranks=ALONE):
    run, data = train.prepare(get_config(TINY, [f"output={output}", "num_epoch=2", *overrides]), ranks)
    return run, train.epoch_batches(run, data, train.Speedometer())


def buffers(state):
    return {name: value.clone() for name, value in state.backbone.named_buffers()}


def poison(name, value):
    """A hook that spoils one running statistic of a layer, before it is used."""

    def hook(module, given):
        getattr(module, name)[0] = value

    return hook


def poisoned_input(module, given):
    return (given[0] * torch.nan,)


@pytest.mark.parametrize("options", [[], ["sync_bn=True"], ["bf16=True"], ["gradient_acc=3", "batch_size=4"]])
def test_a_skipped_step_leaves_the_running_statistics_alone(tmp_path, options):
    state, batches = start(tmp_path, *options)
    state.train_step(batches)
    before = buffers(state)
    poison = state.backbone.register_forward_pre_hook(poisoned_input)
    state.train_step(batches)
    assert state.was_skipped
    poison.remove()
    assert all(torch.equal(before[name], value) for name, value in state.backbone.named_buffers())
    state.train_step(batches)
    assert not state.was_skipped
    assert all(value.isfinite().all() for value in state.backbone.state_dict().values())


def test_an_fp16_overflow_in_one_forward_leaves_a_sound_model(tmp_path):
    state, batches = start(tmp_path, "fp16=True")
    state.scaler = LossScale(torch.device("cpu"), init_scale=2.0**16)
    state.train_step(batches)
    poison = state.backbone.register_forward_pre_hook(lambda module, given: (given[0] * 1e30,))
    state.train_step(batches)
    assert state.was_skipped
    poison.remove()
    state.save(model=True)
    state.saver.finish()
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in saved.values())


def test_statistics_alone_that_are_not_finite_skip_the_step(tmp_path, capsys):
    """An infinite variance divides to zeros: loss and gradients stay finite."""
    state, batches = start(tmp_path, "max_nonfinite=2")
    state.train_step(batches)
    state.save()
    hook = state.backbone.bn1.register_forward_pre_hook(poison("running_var", float("inf")))
    state.train_step(batches)
    assert state.was_skipped
    assert "the running statistic bn1.running_var on rank 0 is not finite" in capsys.readouterr().out
    with pytest.raises(FloatingPointError, match=r"last checkpoint is \S+step_1$"):
        state.train_step(batches)
    hook.remove()


def poison_one_rank(rank, world_size, output, where):
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    state, batches = start(output, "batch_size=4", "max_nonfinite=2", ranks=ranks)
    state.train_step(batches)
    before = buffers(state)
    if rank == 1 and where == "input":
        state.backbone.register_forward_pre_hook(poisoned_input)
    if rank == 1 and where == "statistics":
        state.backbone.bn1.register_forward_pre_hook(poison("running_mean", torch.nan))
    state.train_step(batches)
    same = all(torch.equal(before[name], value) for name, value in state.backbone.named_buffers())
    try:
        state.train_step(batches)
    except FloatingPointError as error:
        return same, str(error)
    return same, ""


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("where", "what"), [("input", "the loss"), ("statistics", "the running statistic bn1.running_mean")]
)
def test_all_ranks_name_the_rank_and_the_thing(tmp_path, where, what):
    found = run_ranks(poison_one_rank, 2, tmp_path, where)
    assert found[0] == found[1]
    same, error = found[0]
    assert same
    assert "2 steps in a row up to step 2" in error
    assert what in error
    assert "last checkpoint is not yet there" in error
    if where == "statistics":
        assert f"{what} on rank 1" in error


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path, capsys):
    state, batches = start(tmp_path)
    state.train_step(batches)
    state.save()
    state.saver.finish()
    state.train_step(batches)
    state.backbone.bn1.running_mean[0] = float("nan")
    import training.saving as saving

    original, saving.first_non_finite = saving.first_non_finite, lambda value: None  # as version 0.1.0 did
    state.save()
    state.saver.finish()
    saving.first_non_finite = original
    state.close()
    resumed, _ = start(tmp_path, "resume=auto")
    assert resumed.step == 1
    assert "step_2/training.pt is of no use: backbone.bn1.running_mean is not finite in it" in capsys.readouterr().out
