"""What a run says of itself: the banner, the share of classes that a step touches, images a second."""

import re

import pytest
import torch

from backbones.base import to_network_input
from heads.selection import expected_share
from losses import ArcFace
from partial_fc_mhs import PartialFCMHS
from tiny_runs import metrics, run
from training import report as ours
from training.report import banner_lines
from utils.config import get_config
from utils.distributed import Ranks


@pytest.mark.parametrize(
    ("C", "L", "rate", "sample_rate", "G"),
    [
        (1000, 10, 0.0, None, 64),
        (1000, 1, 0.1, None, 32),
        (1000, 100, 0.0, None, 20),
        (1000, 1, 0.0, 0.2, 64),
        (1000, 1, 0.0, 0.0, 64),
    ],
)
def test_expected_share_is_the_mean_of_what_is_selected(C, L, rate, sample_rate, G):
    classifier = PartialFCMHS(ArcFace(), 4, C, head_size=L, negative_rate=rate, sample_rate=sample_rate)
    g = torch.Generator().manual_seed(0)
    shares = [
        len(classifier.shard.select(torch.randint(0, C, (G,), generator=g), i).classes_S) / C for i in range(300)
    ]
    assert sum(shares) / len(shares) == pytest.approx(expected_share(C, L, rate, G, sample_rate), rel=0.03)


def test_long_heads_are_pointed_out():
    ranks = Ranks(0, 1, 0, torch.device("cpu"))
    long = banner_lines(get_config("ms1mv3_r100_mhs", ["precision=bf16"]), ranks, 93431, 5179510, 100)
    short = banner_lines(get_config("ms1mv3_r50_mhs", ["precision=bf16"]), ranks, 93431, 5179510, 100)
    assert any("heads save little" in line for line in long)
    assert not any("heads save little" in line for line in short)
    assert "batch: 1 ranks x 128 x accumulation 1 = 128, sgd, weight decay 0.0005" in short


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["head_size=None", "num_classes=200", "lr_power=None"],
            "then linearly to 0 at step 100, as insightface's",
        ),
        (["head_size=None", "num_classes=[20,10]", "lr_power=None"], "power 2 to 0 at step 100, as the MHE authors'"),
        (["lr_schedule=cosine", "warmup_epoch=2"], "rate: lr 0.05, warm-up 20 steps, then cosine to 0 at step 100"),
        (["lr_schedule=cosine"], "note: lr_power = 2.0 has no effect"),
        (["decay_norms_and_biases=False"], "sgd, weight decay 0.0005, norms and biases without"),
        (["ema_decay=0.999"], "model.pt and model_best.pt take the weights' average over the steps, of decay 0.999,"),
        (["head_size=None", "sample_rate=0.3"], "200 heads of 1, sample rate 0.3; a step works on about 30 % of the"),
        (["bf16=True"], "bfloat16, classifier in float32, seed"),
        (["bf16=True", "classifier_amp=True"], "bfloat16, seed"),
        (["classifier_amp=True"], "note: classifier_amp = True has no effect"),
        (["gradient_compression=bf16"], "'bf16' has no effect: one rank alone sends no gradients"),
    ],
)
def test_the_banner_says_whose_rules_it_follows(overrides, text):
    lines = banner_lines(get_config("demo", overrides), Ranks(0, 1, 0, torch.device("cpu")), 200, 4000, 10)
    assert text in "\n".join(lines)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["batch_size=8"], "sgd at 1 x lr, no momentum"),
        (["batch_size=8", "row_idle=dense"], "sgd at 1 x lr, no momentum, idle steps dense"),
        (["row_momentum=0.8", "row_lr=0.5"], "sgd at 0.5 x lr, momentum 0.8, idle steps decay"),
        (["optimizer=adamw"], "adamw at 1 x lr, idle steps keep"),
    ],
)
def test_the_banner_says_how_centres_are_updated(overrides, text):
    cfg = get_config("demo", overrides)
    assert f"class centres: {text}" in banner_lines(cfg, Ranks(0, 1, 0, torch.device("cpu")), 200, 4000, 10)


def test_old_settings_without_effect_are_named():
    ranks = Ranks(0, 1, 0, torch.device("cpu"))
    cfg = get_config("demo", ["rec=synthetic", "num_classes=200", "dali=True", "score=3"])
    lines = banner_lines(cfg, ranks, 200, 4000, 10)
    assert [line.split()[1] for line in lines if "has no effect" in line] == ["score", "dali"]
    cfg = get_config("demo", ["batch_size=8", "row_idle=keep"])
    assert "note: row_idle = 'keep' has no effect" in banner_lines(cfg, ranks, 200, 4000, 10)


def test_speedometer(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ours.time, "monotonic", lambda: now[0])
    speed = ours.Speedometer()
    speed.images, speed.waited_s = 500, 1.0
    now[0] += 10.0
    with speed.paused():  # a verification
        now[0] += 4.0
    assert speed.read() == (50.0, 0.1)
    assert speed.seconds_left(10, 3600) == pytest.approx(3600)
    now[0] += 2.0
    assert speed.read() == (0.0, 0.0)


@pytest.mark.parametrize(
    ("skipped", "text"),
    [
        (12, "12 of 12 steps were skipped, because their gradients were not finite: nothing was trained."),
        (7, "7 of 12 steps were skipped, because their gradients were not finite: little was trained."),
        (6, ""),
        (0, ""),
    ],
)
def test_a_run_that_skipped_most_of_its_steps_says_so(skipped, text):
    assert ours.skipped_text(skipped, 12).startswith(text)
    assert bool(ours.skipped_text(skipped, 12)) == bool(text)


def test_a_run_says_what_it_found_on_the_device(tmp_path, capsys):
    one_head = 7 * 32 * 2 * 4 / 2**30  # GiB: the centres of seven classes and their momentum
    options = ("num_epoch=2", "row_momentum=0.9")
    losses = run(tmp_path / "device", *options)
    assert not metrics(tmp_path / "device", "head_cache_hit_rate")
    for gib, slots in ((1.0, 9), (1.5 * one_head, 1)):
        capsys.readouterr()
        assert run(tmp_path / f"{slots}", *options, "head_storage=file", f"head_cache_gib={gib}") == losses
        out, rates = capsys.readouterr().out, metrics(tmp_path / f"{slots}", "head_cache_hit_rate")
        assert rates[1] is None, "nothing had been updated"
        assert (rates[20] == 1.0) if slots == 9 else (0 <= rates[20] < 0.5)
        assert f"head cache: up to {slots} of this rank's 9 heads stay on cpu (" in out
        assert re.search(r"Global Step: 20 .*   Cache: \d+ %$", out, re.MULTILINE)
        assert not re.search(r"Global Step: 1 .*Cache", out)


def test_a_run_whose_every_step_was_skipped_ends_with_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.run.to_network_input", lambda images: to_network_input(images) * torch.nan)
    monkeypatch.setattr("training.precision.slowdown", lambda dtype, device: 9.0)
    run(tmp_path, "max_nonfinite=99", "fp16=True")
    lines = capsys.readouterr().out.splitlines()
    assert "done: " in lines[-1]
    assert "12 of 12 steps were skipped, because their gradients were not finite: nothing was trained" in lines[-2]
    assert sum("fp16 takes 9.0 times as long as float32" in line for line in lines) == 1
    assert sum("the first step took " in line for line in lines) == 1
