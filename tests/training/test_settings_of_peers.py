"""Settings that come with the recipes of insightface and of the losses' authors reach the step."""

import pytest
import torch

from losses import CosFace
from partial_fc_mhs import PartialFCMHS
from tiny_runs import metrics, run
from training import run as training_run
from training.memory import plan_of
from utils.config import get_config

MAGFACE = ["loss=magface", "margin=None", "loss_options={'l_a': 1.0, 'u_a': 30.0, 'easy_margin': True}"]


def test_a_run_takes_its_share_of_classes_and_follows_its_schedule_in_every_step(tmp_path):
    overrides = ["head_size=None", "sample_rate=0.5", "lr_power=1", "warmup_epoch=0", "bf16=True", "augment=None"]
    assert len(run(tmp_path, *overrides, *MAGFACE)) == 12
    assert set(metrics(tmp_path, "selected_classes").values()) == {30}  # int(0.5 * 60), the labels' own among them
    rates = metrics(tmp_path, "learning_rate")  # of the step that follows
    assert [rates[step] for step in range(1, 13)] == pytest.approx([0.05 * (1 - step / 12) for step in range(1, 13)])
    log = (tmp_path / "training.log").read_text()
    assert "bfloat16, classifier in float32" in log
    assert "loss: MagFace(scale=16, l_a=1, u_a=30, l_m=0.45, u_m=0.8, lambda_g=20, easy_margin)" in log


@pytest.mark.parametrize(("more", "wanted"), [([], None), (["classifier_amp=True"], torch.bfloat16)])
def test_the_classifier_of_a_half_precision_run_is_exact_unless_asked_otherwise(tmp_path, monkeypatch, more, wanted):
    types = []

    class Recorded(PartialFCMHS):
        def __init__(self, *args, amp_dtype, **options):
            types.append(amp_dtype)
            super().__init__(*args, amp_dtype=amp_dtype, **options)

    monkeypatch.setattr(training_run, "PartialFCMHS", Recorded)
    run(tmp_path, "bf16=True", "num_image=16", "warmup_epoch=0", *more)
    assert types == [wanted]


def test_a_small_losss_gradient_is_exact_in_float32_and_not_in_bfloat16():
    def gradient(amp_dtype, dtype):
        g = torch.Generator().manual_seed(0)
        classifier = PartialFCMHS(CosFace(64, 0.4), 256, 600, head_size=12, dtype=dtype, amp_dtype=amp_dtype)
        labels = torch.arange(48)
        centres = torch.nn.functional.normalize(classifier.shard.initial_centres(labels).double())
        noise = torch.nn.functional.normalize(torch.randn(48, 256, generator=g, dtype=torch.float64))
        x = (centres + noise).to(dtype).requires_grad_()
        loss = classifier(x, labels)
        loss.backward()
        assert 0 < loss < 0.1
        return x.grad.double()

    exact = gradient(None, torch.float64)
    errors = [(gradient(amp, torch.float32) - exact).norm() / exact.norm() for amp in (None, torch.bfloat16)]
    assert errors[0] < 1e-3
    assert errors[1] > 0.01


def test_an_option_of_another_loss_stops_the_run(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "loss_options={'h': 0.3}")
    assert "loss_options: 'cosface' takes none; got h" in capsys.readouterr().err


def test_memory_is_planned_for_partial_fcs_sample():
    base = ["rec=synthetic", "num_classes=10000", "batch_size=100", "head_size=None", "lr_batch=None"]
    sampled = plan_of(get_config("demo", [*base, "sample_rate=0.2"]), 1)
    same = plan_of(get_config("demo", [*base[:3], "head_size=1", "negative_rate=0.19"]), 1)  # 100 + 1,900
    assert sampled == same
