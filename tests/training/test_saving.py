"""Saving while training goes on: what is kept, what fails, what is never overwritten."""

import errno
import json
import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import train
from ranks import run_ranks
from tiny_runs import TINY, metrics, run, run_saving_in_time, weights
from training import saving
from training.checkpoint import check, list_checkpoints, load_training, read_best
from training.saving import SaveError, first_non_finite
from utils.config import get_config
from utils.distributed import Ranks
from utils.manifest import read_manifest

BEST = ("keep_best=lfw/accuracy", "val_targets=lfw")
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def start(output, *overrides, ranks=ALONE):
    run, data = train.prepare(get_config(TINY, [f"output={output}", "num_epoch=2", *overrides]), ranks)
    return run, train.epoch_batches(run, data, train.Speedometer())


def names(output):
    return [path.name for path in list_checkpoints(output / "checkpoints")]


def test_a_disk_that_takes_nothing_is_an_error_in_time_and_is_not_asked_again(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(saving, "_save", lambda *_: over.wait(30))
    state, _ = start(tmp_path)
    monkeypatch.setattr(saving.progress, "timeout_s", 1.0)
    state.save()
    monkeypatch.setattr(saving.shutil, "rmtree", lambda *_, **__: pytest.fail("asks the disk again"))
    with pytest.raises(SaveError, match=r"step_0: the disk has taken nothing for 0\.8 s \(0\.8 of timeout_s\)"):
        state.saver.finish()
    over.set()
    state.saver.abandon()


def test_a_save_excuses_a_run_while_this_disk_or_the_other_ranks_disks_take_data(tmp_path, monkeypatch):
    state, _ = start(tmp_path)
    assert not state.saver.holds_up
    state.saver._waited_for = Future()
    monkeypatch.setattr(saving.progress, "wrote_s", time.monotonic())
    assert state.saver.holds_up
    monkeypatch.setattr(saving.progress, "wrote_s", time.monotonic() - saving.DISK_S - 1)
    assert not state.saver.holds_up
    state.saver._waited_for.set_result(None)  # this rank has written, and waits for the others
    assert state.saver.holds_up
    state.close()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is saved is the moment's state, and it has no name before it is complete."""
    held = threading.Event()
    save = saving._save
    monkeypatch.setattr(saving, "_save", lambda *given: (held.wait(60), save(*given)))
    state, batches = start(tmp_path)
    state.train_step(batches)
    expected = {name: value.clone() for name, value in state.backbone.state_dict().items()}
    centres = state.classifier.shard.weight.clone()
    state.save()
    for _ in range(3):
        state.train_step(batches)
        state.save_if_due()
    assert state.saver.is_pending
    assert names(tmp_path) == []
    held.set()
    state.saver.finish()
    assert names(tmp_path) == ["step_1"]
    found = load_training(tmp_path / "checkpoints" / "step_1")["backbone"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    resumed, _ = start(tmp_path, "resume=True")
    assert resumed.step == 1
    assert torch.equal(resumed.classifier.shard.weight, centres)


def test_a_finished_write_is_named_at_the_next_step(tmp_path):
    state, batches = start(tmp_path)
    state.train_step(batches)
    state.save()
    state.saver._pending.written.result()
    state.train_step(batches)
    state.save_if_due()
    assert not state.saver.is_pending
    assert names(tmp_path) == ["step_1"]
    facts = read_manifest(tmp_path / "checkpoints" / "step_1").facts
    assert (facts["step"], facts["ranks"], facts["format"]) == (1, 1, 2)
    check(tmp_path / "checkpoints" / "step_1")


def fail_in_background(rank, world_size, output):
    state, batches = start(output, "batch_size=4", ranks=Ranks(rank, world_size, rank, torch.device("cpu")))
    state.train_step(batches)
    state.save()
    state.saver.finish()
    state.train_step(batches)
    if rank == 1:
        state.saver._heads.begin = lambda all_heads: Failing()
    state.save()
    try:
        for _ in range(20):
            state.train_step(batches)
            state.save_if_due()
        state.saver.finish()  # of a disk that is slow
    except SaveError as error:
        return str(error), state.step
    return None


class Failing:
    def write(self, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
        pass


@pytest.mark.distributed
def test_a_write_that_fails_on_one_rank_is_an_error_on_all_within_steps(tmp_path):
    found = run_ranks(fail_in_background, 2, tmp_path)
    assert found[0] == found[1]
    text, _ = found[0]
    assert "could not write" in text
    assert "step_2: [Errno 28] No space left on device. Make room there and go on" in text
    assert f"the last checkpoint is {tmp_path / 'checkpoints' / 'step_1'}" in text
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_1"]
    check(tmp_path / "checkpoints" / "step_1")


@pytest.mark.parametrize("name", ["training.pt", ".model.pt"])
def test_a_full_disk_is_one_line_and_older_files_stay(tmp_path, monkeypatch, capsys, name):
    run(tmp_path, "num_epoch=1")
    before = (tmp_path / "model.pt").read_bytes()
    write = saving.SummedFile.write if name == "training.pt" else None

    def full(file, data):
        if name in str(file._file.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    if name == "training.pt":
        monkeypatch.setattr(saving.SummedFile, "write", full)
    else:
        monkeypatch.setattr("os.fsync", lambda handle: refuse_model(handle))

    def refuse_model(handle):
        if ".model.pt" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit) as ended:
        train.main([TINY, f"output={tmp_path}", "num_epoch=2", "resume=True"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "No space left on device. Make room there and go on" in error
    assert error.count("\n") == 1
    assert (tmp_path / "model.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert names(tmp_path) == ["step_12"]


def test_what_is_not_finite_is_never_written_over_something_that_is(tmp_path):
    state, batches = start(tmp_path)
    state.train_step(batches)
    state.save(model=True)
    state.saver.finish()
    before = (tmp_path / "model.pt").read_bytes()
    state.train_step(batches)
    state.backbone.bn1.running_var[3] = float("nan")
    state.save(model=True)
    with pytest.raises(FloatingPointError, match=r"is not written, because backbone\.bn1\.running_var is not finite"):
        state.saver.finish()
    assert (tmp_path / "model.pt").read_bytes() == before
    assert names(tmp_path) == ["step_1"]


def test_the_place_of_what_is_not_finite():
    value = {"a": torch.ones(2), "b": [{"c": torch.tensor([1.0, float("inf")])}], "n": 3, "i": torch.tensor(1)}
    assert first_non_finite(value) == "b.0.c"
    assert first_non_finite({"a": torch.ones(2)}) is None


def test_a_checkpoint_every_few_steps_and_at_the_end(tmp_path):
    run_saving_in_time(tmp_path, "num_epoch=1", "checkpoint_steps=5", "keep_checkpoints=9")
    assert names(tmp_path) == ["step_5", "step_10", "step_12"]


def test_a_checkpoint_after_minutes(tmp_path):
    state, batches = start(tmp_path, "checkpoint_minutes=1")
    state.train_step(batches)
    state.save_if_due()
    assert not state.saver.is_pending
    state._saved_s -= 61
    state.train_step(batches)
    state.save_if_due()
    assert state.saver.is_pending
    state.saver.finish()
    assert names(tmp_path) == ["step_2"]


def test_sigusr1_saves_and_goes_on(tmp_path):
    whole = run(tmp_path / "whole", "num_epoch=1")
    state, batches = start(tmp_path / "asked", "num_epoch=1")
    with state.stop:
        state.train_step(batches)
        os.kill(os.getpid(), signal.SIGUSR1)
        state.train_step(batches)
        state.save_if_due()
        state.train_step(batches)
    state.saver.finish()
    assert names(tmp_path / "asked") == ["step_2"]
    state.close()
    rest = run(tmp_path / "asked", "num_epoch=1", "resume=auto")
    assert {step: rest[step] for step in range(4, 13)} == {step: whole[step] for step in range(4, 13)}


def test_no_checkpoint_pushes_the_good_ones_out_while_steps_fail(tmp_path):
    state, batches = start(
        tmp_path, "checkpoint_steps=1", "keep_checkpoints=1", "checkpoint_full_every=1", "max_nonfinite=4"
    )
    state.train_step(batches)
    state.save_if_due()
    poison = state.backbone.conv1.weight.register_hook(lambda grad: grad * torch.nan)
    for _ in range(3):
        state.train_step(batches)
        state.save_if_due()
    state.saver.finish()
    assert names(tmp_path) == ["step_1"]
    poison.remove()
    state.train_step(batches)
    state.save_if_due()
    state.saver.finish()
    assert names(tmp_path) == ["step_5"]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    state, batches = start(
        tmp_path,
        "keep_best=lfw/accuracy",
        "val_targets=lfw",
        "keep_checkpoints=1",
        "checkpoint_full_every=1",
        "checkpoint_steps=1",
    )
    for accuracy in (0.5, 0.9, 0.8, float("nan"), 0.7):
        state.train_step(batches)
        state.save_if_due()
        state.verify(lambda backbone, step, value=accuracy: {"lfw/accuracy": value, "lfw/spread": 1.0})
        while state.saver.is_writing:  # none begins while one is being written
            time.sleep(0.001)
    state.saver.finish()
    assert names(tmp_path) == ["step_2", "step_5"]
    best = read_best(tmp_path)
    assert (best.step, best.value) == (2, 0.9)
    saved = load_training(tmp_path / "checkpoints" / "step_2")["backbone"]
    kept = torch.load(tmp_path / "model_best.pt", weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in saved.items())
    state.close()
    resumed, batches = start(
        tmp_path,
        "keep_best=lfw/accuracy",
        "val_targets=lfw",
        "keep_checkpoints=1",
        "checkpoint_full_every=1",
        "resume=auto",
    )
    resumed.train_step(batches)
    resumed.verify(lambda backbone, step: {"lfw/accuracy": 0.85})
    resumed.save()
    resumed.close()
    assert names(tmp_path) == ["step_2", "step_6"]


def test_one_checkpoint_that_shares_no_file_with_the_newest_is_kept(tmp_path):
    """Classes that come once each: few heads change between two checkpoints."""
    options = [
        "num_classes=4000",
        "head_size=1",
        "checkpoint_steps=1",
        "keep_checkpoints=1",
        "checkpoint_full_every=3",
    ]
    state, batches = start(tmp_path, *options, "warmup_epoch=0")
    shard = state.classifier.shard
    shard.storage.store(torch.arange(4000), {n: torch.ones(4000, shard.embedding_size) for n in shard.storage.names})
    kept = []
    for _ in range(8):
        state.train_step(batches)
        state.save_if_due()
        state.saver.finish()
        kept.append(names(tmp_path))
    assert kept == [
        ["step_1"],
        ["step_1", "step_2"],
        ["step_1", "step_3"],
        ["step_1", "step_4"],
        ["step_4", "step_5"],
        ["step_4", "step_6"],
        ["step_4", "step_7"],
        ["step_7", "step_8"],
    ]
    spare, newest = (tmp_path / "checkpoints" / name / "heads" / "rank_0_of_1" for name in kept[-1])
    files = [{path.stat().st_ino for path in folder.rglob("*.npy")} for folder in (spare, newest)]
    assert not files[0] & files[1]


def test_no_save_waits_for_the_one_before(tmp_path, monkeypatch):
    held = threading.Event()
    save = saving._save
    monkeypatch.setattr(saving, "_save", lambda *given: (held.wait(60), save(*given)))
    state, batches = start(tmp_path, "checkpoint_steps=1", "keep_checkpoints=9")
    for _ in range(3):
        state.train_step(batches)
        state.save_if_due()
    held.set()
    state.saver._pending.written.result()
    state.train_step(batches)
    state.save_if_due()
    state.saver.finish()
    assert names(tmp_path) == ["step_1", "step_4"]


def test_the_best_of_another_metric_does_not_count(tmp_path):
    state, batches = start(tmp_path, *BEST)
    state.train_step(batches)
    state.verify(lambda backbone, step: {"lfw/accuracy": 0.9})
    state.close()
    resumed, batches = start(tmp_path, "keep_best=lfw/spread", "val_targets=lfw", "resume=auto")
    resumed.train_step(batches)
    resumed.verify(lambda backbone, step: {"lfw/spread": 0.1})
    assert read_best(tmp_path).metric == "lfw/spread"


def test_a_best_model_that_cannot_be_written_is_one_error(tmp_path):
    state, batches = start(tmp_path, *BEST)
    (tmp_path / "model_best.pt").mkdir()
    state.train_step(batches)
    with pytest.raises(SaveError, match=r"could not write \S+model_best\.pt"):
        state.verify(lambda backbone, step: {"lfw/accuracy": 0.9})


def test_a_best_figure_that_is_not_there_is_named(tmp_path, capsys):
    state, batches = start(tmp_path, "keep_best=lwf/accuracy", "val_targets=lfw")
    state.train_step(batches)
    state.verify(lambda backbone, step: {"lfw/accuracy": 0.85})
    assert (
        "keep_best = 'lwf/accuracy' is no figure of the verification; there are lfw/accuracy"
        in capsys.readouterr().out
    )


def test_a_run_that_stops_at_the_end_of_an_epoch_leaves_the_uninterrupted_ones_last_checkpoint(tmp_path):
    run(tmp_path / "whole", "num_epoch=1")
    state, batches = start(tmp_path / "part", "num_epoch=1")
    for _ in range(12):
        state.train_step(batches)
    state.save()
    state.close()
    run(tmp_path / "part", "num_epoch=1", "resume=auto")
    first, second = (load_training(tmp_path / name / "checkpoints" / "step_12") for name in ("whole", "part"))
    assert first["position"] == second["position"]
    assert json.dumps(first["head"]) == json.dumps(second["head"])
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_logged_mean_covers_the_steps_before_a_stop(tmp_path):
    whole = run(tmp_path / "whole", "num_epoch=1", "frequent=4")
    state, batches = start(tmp_path / "part", "num_epoch=1", "frequent=4")
    for _ in range(6):
        if state.step == 4:
            state.mean_loss()
        state.train_step(batches)
    state.save()
    state.close()
    run(tmp_path / "part", "num_epoch=1", "frequent=4", "resume=auto")
    assert metrics(tmp_path / "part") == {step: loss for step, loss in whole.items() if step > 4}
