"""Steps whose verdict the host learns a step later, as on a GPU, equal to the bit those that it waits for."""

import pytest
import torch

import train
from pretend_device import NAME, PretendDevice
from ranks import run_ranks
from tiny_runs import TINY
from tiny_runs import run as tiny_run
from training.loss_scale import LossScale
from training.running_statistics import RunningStatistics
from training.sigterm import StopRequest
from training.verdict import gather_evidence, step_if_good
from utils.config import get_config
from utils.distributed import Ranks

pytestmark = pytest.mark.numeric

BAD = (0, 3, 4, 7)  # steps that do not count; the first among them, before there is any momentum
STEPS = 9
KEPT, DECAYS = ["row_momentum=0.9", "row_idle=keep"], ["row_momentum=0.9"]
COURSES = {
    "sgd": [],
    "momentum": KEPT,
    "adamw": ["optimizer=adamw", "lr=0.01"],
    "host": [*KEPT, "head_storage=host"],
    "file": [*KEPT, "head_storage=file"],
    "fp16": ["fp16=True"],
    "two forwards": [*KEPT, "gradient_acc=2", "batch_size=4"],
    "a margin with averages": ["loss=curricularface"],
    "AdaFace": ["loss=adaface"],
    "an average of the weights": ["ema_decay=0.5"],
    "a cache of heads": [*KEPT, "head_storage=host", "head_cache_gib=2e-5"],
    "drawn heads and batch norm of all ranks": ["row_momentum=0", "negative_rate=0.3", "sync_bn=True"],
}
WITH_IDLE_STEPS = {  # rows are brought to the present in a bad step already, which rounds once more
    "momentum that decays": DECAYS,
    "adamw that decays": ["optimizer=adamw", "lr=0.01", "row_idle=decay"],
    "file": [*DECAYS, "head_storage=file"],
    "two forwards": [*DECAYS, "gradient_acc=2", "batch_size=4"],
}


def learn_late(run):
    """Make a run learn its verdicts a step later."""
    run.learns_late = True
    for group in run.optimizer.param_groups:
        group["foreach"], group["fused"] = False, True
    return run


def late_run(output, *options):
    """A run on one rank that learns its verdicts a step later, and its batches."""
    run, data = train.prepare(get_config(TINY, [f"output={output}", *options]), Ranks(0, 1, 0, torch.device("cpu")))
    return learn_late(run), train.epoch_batches(run, data, train.Speedometer())


def course(output, options, late, rank=0, world_size=1):
    """A run of which some steps are poisoned; everything that it keeps."""
    cfg = get_config(TINY, [f"output={output}", "num_epoch=3", "max_nonfinite=9", "head_size=3", *options])
    run, data = train.prepare(cfg, Ranks(rank, world_size, rank, torch.device("cpu")))
    learn_late(run).learns_late = late
    if cfg.fp16:
        run.scaler = LossScale(run.device, init_scale=4.0)
    batches = train.epoch_batches(run, data, train.Speedometer())
    losses = []
    for step in range(STEPS):
        hook = None
        if step in BAD and rank == world_size - 1:
            hook = run.backbone.register_forward_pre_hook(lambda module, given: (given[0] * torch.nan,))
        losses.append(run.train_step(batches))
        if hook is not None:
            hook.remove()
    run.settle()
    shard = run.classifier.shard
    start, end = shard.layout.class_start, shard.layout.class_end
    kept = {
        "losses": torch.stack([loss for step, loss in enumerate(losses) if step not in BAD]),
        "backbone": run.backbone.state_dict(),
        "optimizer": run.optimizer.state_dict()["state"],
        "margin": run.classifier.margin_loss.state_dict(),
        "average": run.ema.state_dict(),
        "centres": shard.centres(torch.arange(start, end)).detach(),
        "counts": shard.storage.counts,
        "skipped": (run.skipped, run.skipped_in_a_row, shard.steps),
        "scale": run.scaler.state_dict(),
    }
    run.close()
    return kept


def assert_same(one, other, same=torch.equal):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert same(one, other)
    elif isinstance(one, list):
        for value, another in zip(one, other, strict=True):
            assert_same(value, another, same)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key], torch.equal if key == "counts" else same)
    else:
        assert one == other


def nearly(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", COURSES)
def test_what_is_learned_late_changes_no_bit(tmp_path, name):
    at_once, late = (course(tmp_path / str(late), COURSES[name], late) for late in (False, True))
    assert at_once["skipped"] == (len(BAD), 0, STEPS - len(BAD))
    assert at_once["losses"].isfinite().all()
    assert_same(at_once, late)


@pytest.mark.parametrize("name", WITH_IDLE_STEPS)
def test_with_idle_steps_it_changes_the_rounding_of_bad_steps(tmp_path, name):
    at_once, late = (course(tmp_path / str(late), WITH_IDLE_STEPS[name], late) for late in (False, True))
    at_once["counts"].pop("last_step"), late["counts"].pop("last_step")
    assert at_once["losses"].isfinite().all()
    assert_same(at_once, late, nearly)


@pytest.mark.distributed
def test_on_two_ranks_of_which_one_is_bad(tmp_path):
    options = [*KEPT, "batch_size=4"]
    at_once, late = (run_ranks(on_ranks, 2, tmp_path / str(late), options, late) for late in (False, True))
    for one, other in zip(at_once, late, strict=True):
        assert one["skipped"][0] == len(BAD)
        assert_same(one, other)


def on_ranks(rank, world_size, output, options, late):
    return course(output, options, late, rank, world_size)


@pytest.mark.parametrize("late", [False, True])
def test_the_rows_alone_can_make_a_step_bad(tmp_path, capsys, late):
    cfg = get_config(TINY, [f"output={tmp_path}"])
    run, data = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    learn_late(run).learns_late = late
    original = run.classifier.shard.expect_update

    def poisoned(selection, rows):
        leaf = original(selection, rows)
        leaf.register_hook(lambda grad: grad * torch.nan)
        return leaf

    run.classifier.shard.expect_update = poisoned
    before = run.classifier.shard.centres(torch.arange(5)).clone()
    run.train_step(train.epoch_batches(run, data, train.Speedometer()))
    run.settle()
    assert run.was_skipped
    assert "the gradient of the classifier's rows on rank 0 is not finite" in capsys.readouterr().out
    assert torch.equal(run.classifier.shard.centres(torch.arange(5)), before)
    run.close()


@pytest.mark.parametrize("asks", ["minutes", "SIGUSR1"])
def test_a_request_to_save_gives_one_checkpoint(tmp_path, asks):
    run, batches = late_run(tmp_path, "keep_checkpoints=9", "checkpoint_steps=100")
    saved = []
    original = run.saver.begin
    run.saver.begin = lambda step, *state: (saved.append(step), original(step, *state))
    for step in range(9):
        if step == 2:
            run.stop.ask_save()
        if asks == "minutes" and step in (3, 4):  # rank 0 asks until a save has begun
            run.stop.ask_save() if not saved else None
        run.train_step(batches)
        run.save_if_due()
    assert len(saved) == 1
    run.close()


def test_a_last_step_that_does_not_count_is_known_before_the_epoch_is_saved(tmp_path):
    run, batches = late_run(tmp_path, "num_epoch=1", "checkpoint_steps=0")
    for _ in range(run.steps_per_epoch - 1):
        run.train_step(batches)
    run.settle()
    visits, steps = run.classifier.shard.visits.clone(), run.classifier.shard.steps
    run.backbone.register_forward_pre_hook(lambda module, given: (given[0] * torch.nan,))
    run.train_step(batches)
    run.end_epoch()
    run.saver.finish()
    saved = torch.load(tmp_path / "checkpoints" / f"step_{run.step}" / "training.pt", weights_only=False)
    assert (saved["skipped"], saved["head"]["steps"]) == (1, steps)
    assert torch.equal(run.classifier.shard.visits, visits)
    run.close()


def test_too_many_bad_steps_end_a_run_a_step_later_and_name_the_last(tmp_path):
    run, batches = late_run(tmp_path, "max_nonfinite=2")
    run.train_step(batches)
    run.backbone.conv1.weight.register_hook(lambda grad: grad * torch.nan)
    run.train_step(batches)
    run.train_step(batches)
    assert run.skipped == 1, "of the second bad step the host does not know yet"
    with pytest.raises(
        FloatingPointError, match=r"2 steps in a row up to step 2 .* the gradient of conv1.weight on r"
    ):
        run.train_step(batches)
    run.close()


def test_a_save_waits_for_the_verdict_and_holds_no_bad_step(tmp_path):
    run, batches = late_run(tmp_path, "checkpoint_steps=1")
    run.train_step(batches)
    hook = run.backbone.register_forward_pre_hook(lambda module, given: (given[0] * torch.nan,))
    run.train_step(batches)
    hook.remove()
    run.save_if_due()
    assert run.was_skipped
    assert not run.saver.is_pending, "nothing is saved after a bad step"
    run.train_step(batches)
    run.save_if_due()
    assert run.saver.is_pending
    run.train_step(batches)
    assert run.stop.writing_agreed, "a message from before the save does not speak of it"
    run.saver.finish()
    assert (tmp_path / "checkpoints" / "step_3").is_dir()
    run.close()


def test_a_scale_moves_as_torch_moves_it():
    ours = LossScale(torch.device("cpu"), init_scale=8.0, growth_interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)
    for bad in (0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0):
        theirs.scale((weight * (torch.inf if bad else 1.0)).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(torch.tensor(float(bad)))
        assert ours.state_dict() == theirs.state_dict()
    again = LossScale(torch.device("cpu"), growth_interval=3)
    again.load_state_dict(theirs.state_dict())
    assert again.state_dict() == theirs.state_dict()


def test_a_first_step_that_does_not_count_leaves_no_momentum(tmp_path):
    """Torch's fused SGD would keep uninitialised memory."""
    cfg = get_config(TINY, [f"output={tmp_path}"])
    run, _ = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    learn_late(run)
    for parameter in run.backbone.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    step_if_good([run.optimizer], torch.tensor(1.0), on_device=True)
    assert all(not state["momentum_buffer"].any() for state in run.optimizer.state.values())
    run.close()


def test_momentum_that_begins_with_a_resume_is_whole_after_a_first_bad_step(tmp_path):
    """The checkpoint of a run without momentum has none to give."""
    tiny_run(tmp_path, "num_epoch=1", "momentum=0", "max_nonfinite=3")
    cfg = get_config(TINY, [f"output={tmp_path}", "num_epoch=3", "resume=True"])
    run, data = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    learn_late(run)
    hook = run.backbone.register_forward_pre_hook(lambda module, given: (given[0] * torch.nan,))
    run.train_step(train.epoch_batches(run, data, train.Speedometer()))
    hook.remove()
    run.settle()
    buffers = [state["momentum_buffer"] for state in run.optimizer.state.values()]
    assert len(buffers) == len(list(run.backbone.parameters()))
    assert not any(buffer.any() for buffer in buffers)
    run.close()


def test_nothing_in_a_verdict_waits_for_the_device():
    """From the gradients to the scale; a step that counts and one that does not."""
    found = []
    for device in ("cpu", NAME):
        with PretendDevice() as pretended:
            norm = torch.nn.BatchNorm1d(3).to(device)
            margin = torch.nn.Module()
            margin.register_buffer("average", torch.ones((), device=device))
            statistics, scale = RunningStatistics(norm, margin), LossScale(torch.device(device), init_scale=8.0)
            stop, values = StopRequest(), []
            for loss in (1.0, torch.inf):
                grads = {"weight": torch.full((3,), 8.0).to(device), "bias": torch.full((3,), 16.0).to(device)}
                loss = torch.tensor(loss).to(device)
                moved = torch.arange(3.0).to(device)
                pretended.waits.clear()
                statistics.keep()
                buffers = statistics._joined[torch.float32]  # a pretended tensor cannot become a part of another
                buffers[:3].add_(moved)
                buffers[-1:].mul_(2)
                scale.unscale_([*grads.values()])
                largest, name = statistics.largest(), statistics.non_finite
                evidence = gather_evidence(5, 0.1, scale.factor, loss, grads, [moved], largest, name)
                bad = stop.ask(evidence.is_bad())
                statistics.put_back(bad)
                scale.update(bad)
                assert not pretended.waits
                values += [bad, buffers.clone(), scale.factor.clone()]
                assert stop.learn() == (not loss.cpu().isfinite())
            found.append([value.cpu() for value in values])
            assert evidence.in_words() == "the loss"
            evidence = gather_evidence(5, 0.1, scale.factor, moved.sum(), grads, [], 0.0, name)
            assert evidence.in_words() == ""
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    moved_once = [0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0]  # means, variances, the margin's average
    expected = [[0.0], moved_once, [8.0], [1.0], moved_once, [4.0]]
    assert [value.flatten().tolist() for value in found[0]] == expected
