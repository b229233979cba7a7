"""Stopped, killed and finished runs that go on."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

import train
from paths import ROOT
from tiny_runs import TINY, metrics, run, weights
from training.saving import Saver
from utils.config import get_config
from utils.distributed import Ranks


@pytest.mark.parametrize("loss", ["adaface", "magface", "curricularface"])
def test_losses_with_statistics_train_and_resume(tmp_path, loss):
    options = [f"loss={loss}", "margin=None", "num_epoch=2"]
    whole = run(tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step_24")
    assert run(tmp_path / "part", *options, "resume=True") == whole


@pytest.mark.parametrize(
    "rule",
    [
        ["row_momentum=0"],
        ["row_momentum=0.9", "row_idle=dense"],
        ["optimizer=adamw", "lr=0.001"],
        ["optimizer=adamw", "lr=0.001", "row_idle=decay"],
        ["ema_decay=0.9", "decay_norms_and_biases=False", "lr_schedule=cosine", "lr_power=None"],
    ],
    ids=" ".join,
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, rule):
    """Stopped in the middle of an epoch, resumed in a new process state: bit for bit the same losses and model."""
    options = ["num_epoch=2", "negative_rate=0.3", "dropout=0.2", *rule]
    whole = run(tmp_path / "whole", *options)
    cfg = get_config(TINY, [*options, f"output={tmp_path / 'part'}"])
    state, loader = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    batches = train.epoch_batches(state, loader, train.Speedometer())
    for _ in range(7):
        state.train_step(batches)
        state.mean_loss()
    state.save()
    state.saver.finish()
    torch.manual_seed(99)
    part = run(tmp_path / "part", *options, "resume=True")
    assert part == {step: loss for step, loss in whole.items() if step > 7}
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_killed_run_goes_on_from_its_checkpoint(tmp_path):
    """Killed without warning; resumed, every later step equals the uninterrupted run's."""
    options = ["num_epoch=40", "checkpoint_steps=5"]
    command = [sys.executable, "train.py", TINY, f"output={tmp_path / 'part'}", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((tmp_path / "part" / "checkpoints").glob("step_1?")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    cfg = get_config(TINY, [f"output={tmp_path / 'part'}", *options, "resume=True"])
    state, loader = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    start = state.step
    assert start >= 10
    resumed = train_steps(state, loader, 8)
    cfg = get_config(TINY, [f"output={tmp_path / 'whole'}", *options])
    state, loader = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    assert resumed == train_steps(state, loader, start + 8)[start:]


def train_steps(state, loader, steps):
    losses = []
    while len(losses) < steps:
        batches = train.epoch_batches(state, loader, train.Speedometer())
        while state.step_in_epoch < state.steps_per_epoch and len(losses) < steps:
            losses.append(float(state.train_step(batches)))
        if state.step_in_epoch == state.steps_per_epoch:
            state.epoch, state.step_in_epoch = state.epoch + 1, 0
    return losses


def test_resuming_a_finished_run_with_more_epochs_follows_the_new_schedule(tmp_path):
    run(tmp_path, "num_epoch=1")
    run(tmp_path, "num_epoch=3", "lr=0.02", "warmup_epoch=0", "resume=True")
    rates = metrics(tmp_path, "learning_rate")
    for step in (13, 24, 35):
        assert rates[step] == pytest.approx(0.02 * (1 - step / 36) ** 2)


def test_resuming_with_half_the_batch_keeps_the_place_in_the_data(tmp_path):
    run(tmp_path, "num_epoch=1")
    losses = run(tmp_path, "num_epoch=2", "batch_size=4", "warmup_epoch=0", "resume=True")
    assert sorted(losses) == list(range(1, 12 + 24 + 1)), "12 steps of 8, then 24 of 4"
    rates = metrics(tmp_path, "learning_rate")
    assert rates[13] == pytest.approx(0.05 * (1 - 25 / 48) ** 2)
    assert rates[36] == 0.0


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    every = run(tmp_path / "every", "num_epoch=2")
    run(tmp_path / "some", "num_epoch=1", "num_epoch=2", "frequent=5", "checkpoint_steps=7", "keep_checkpoints=9")
    for path in (tmp_path / "some" / "checkpoints").glob("step_*"):
        if path.name != "step_7":
            shutil.rmtree(path)
    some = run(tmp_path / "some", "num_epoch=2", "frequent=5", "resume=True")
    assert some[10] == pytest.approx(np.mean([every[s] for s in (6, 7, 8, 9, 10)]), rel=1e-6)
    assert some[15] == pytest.approx(np.mean([every[s] for s in range(11, 16)]), rel=1e-6)


def test_a_fp32_run_resumes_in_fp16(tmp_path):
    run(tmp_path)
    assert len(run(tmp_path, "num_epoch=2", "fp16=True", "resume=True")) == 24


def test_resuming_a_finished_run_brings_back_its_model(tmp_path):
    run(tmp_path)
    model = weights(tmp_path)
    (tmp_path / "model.pt").unlink()
    run(tmp_path, "resume=True")
    assert all(torch.equal(v, model[k]) for k, v in weights(tmp_path).items())


def test_a_checkpoint_of_the_same_step_is_written_once(tmp_path, monkeypatch):
    written, name = [], Saver._name

    def noted(saver, pending, *given):
        written.append(pending.final.name)
        name(saver, pending, *given)

    monkeypatch.setattr(Saver, "_name", noted)
    run(tmp_path, "checkpoint_steps=6")
    assert written == ["step_6", "step_12"]
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step_12", "step_6"]


def test_the_highest_accuracy_outlives_a_resume(tmp_path):
    rng = np.random.default_rng(0)
    images = [cv2.imencode(".png", rng.integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes() for _ in range(40)]
    (tmp_path / "mine.bin").write_bytes(pickle.dumps((images, [i % 2 == 0 for i in range(20)])))
    out, target = tmp_path / "run", f"val_targets={tmp_path / 'mine.bin'}"
    run(out, target)
    run(out, target, "num_epoch=2", "resume=True")
    best = max(metrics(out, "mine/accuracy").values())
    assert f"[mine][24]Accuracy-Highest: {best:1.5f}" in (out / "training.log").read_text()
    assert set(metrics(out, "mine/accuracy")) == {0, 12, 24}
