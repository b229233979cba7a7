import json
import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from training.schedule import CosineSchedule, PolySchedule, StepSchedule, rate_text, schedule_of
from utils.config import get_config

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("case", ["warmup", "none"])
def test_equals_contract(contracts, case):
    want = json.loads((contracts / "poly_schedule.json").read_text())[case]
    rate = PolySchedule(want["base_lr"], want["total_steps"], want["warmup_steps"], power=2)
    assert [rate(step) for step in range(want["total_steps"])] == pytest.approx(want["lr"], abs=1e-15)
    assert rate(want["total_steps"]) == 0.0


def theirs(base_lr, steps, warmup_steps, power=1.0):
    """The rate before each step of insightface's PolynomialLRWarmup, each made from the one before, as it does it."""
    rates = [base_lr]  # before the first step, with or without a warm-up
    for t in range(1, steps):
        if t <= warmup_steps:
            rates.append(base_lr * t / warmup_steps)
        else:
            left, left_before = (1 - (s - warmup_steps) / (steps - warmup_steps) for s in (t, t - 1))
            rates.append(rates[-1] * (left / left_before) ** power)
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 8, -20])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_equals_insightface_since_2023(warmup_steps, power):
    rate = PolySchedule(0.2, 60, warmup_steps, power=power)
    first = int(warmup_steps > 0)  # a warm-up's first step: 0 here, where theirs has the full rate once
    assert [rate(step) for step in range(first, 60)] == pytest.approx(theirs(0.2, 60, warmup_steps, power)[first:])
    assert rate(0) == (0.0 if first else 0.2)


def test_every_base_rate_falls_alike():
    assert [PolySchedule(base, 10, power=2)(5) for base in (0.1, 1.0)] == pytest.approx([0.025, 0.25])


def test_past_the_end_it_stays_at_zero():
    rate = PolySchedule(0.3, 20, 4)
    assert (rate(4), rate(20), rate(25)) == (0.3, 0.0, 0.0)


@pytest.mark.parametrize(("max_steps", "warmup"), [(10, 10), (10, 11), (0, 0), (0, -1)])
def test_refuses_a_warmup_that_does_not_fit(max_steps, warmup):
    with pytest.raises(ValueError, match="warm-up must end before"):
        PolySchedule(0.1, max_steps, warmup)


def closed_form(make, base_lr, steps):
    """The rates before each step by the closed form of one of torch's schedules."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], base_lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no steps
        schedule, rates = make(optimizer), []
        for _ in range(steps):
            (rate,) = schedule._get_closed_form_lr()
            rates.append(rate)
            schedule.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (CosineSchedule(0.2, 50), lambda o: lr_scheduler.CosineAnnealingLR(o, 50)),
        (CosineSchedule(0.2, 50, end_lr=0.03), lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 0.03)),
        (PolySchedule(0.2, 50, power=3), lambda o: lr_scheduler.PolynomialLR(o, 50, 3)),
        (StepSchedule(0.2, 50, 0, (7, 20, 60), 0.3), lambda o: lr_scheduler.MultiStepLR(o, [7, 20, 60], 0.3)),
    ],
    ids=["cosine", "cosine to an end", "poly", "step"],
)
def test_equals_torchs_closed_form(ours, theirs):
    assert [ours(step) for step in range(50)] == pytest.approx(closed_form(theirs, 0.2, 50), rel=1e-12)


@pytest.mark.parametrize("kind", [PolySchedule, CosineSchedule])
def test_after_the_warmup_it_is_the_shorter_run_without_one(kind):
    rate, rest = kind(0.2, 60, 10, 0.01), kind(0.2, 50, 0, 0.01)
    assert [rate(step) for step in range(10)] == pytest.approx([0.02 * step for step in range(10)])
    assert [rate(10 + step) for step in range(60)] == [rest(step) for step in range(60)]
    assert (rate(60), rate(99)) == (0.01, 0.01)


def test_milestones_count_from_the_start_of_the_run():
    rate = StepSchedule(0.2, 60, 10, (5, 30), 0.1)
    assert [rate(step) for step in (0, 5, 9)] == pytest.approx([0, 0.1, 0.18])
    assert [rate(step) for step in (10, 29, 30, 60)] == pytest.approx([0.02, 0.02, 0.002, 0.002])


def test_an_end_above_the_start_is_refused():
    cfg = get_config("demo", ["lr=0.1", "lr_batch=1024", "batch_size=64", "lr_end=0.01", "lr_schedule=cosine"])
    with pytest.raises(ValueError, match=r"cannot fall from 0.00625 .* to lr_end = 0.01: lower lr_end"):
        schedule_of(cfg, 1, 100)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["lr_power=1"], "lr 0.1, no warm-up, then linearly to 0 at step 20,000, as insightface's"),
        (["lr_power=1", "lr_end=0.001"], "lr 0.1, no warm-up, then linearly to 0.001 at step 20,000"),
        (
            ["lr_power=2", "warmup_epoch=-1"],
            "lr 0.1, no warm-up, then with power 2 to 0 at step 20,000, as the MHE authors'",
        ),
        (["lr_power=0.5"], "lr 0.1, no warm-up, then with power 0.5 to 0 at step 20,000"),
        (
            ["lr_batch=512", "warmup_epoch=2", "lr_schedule=cosine"],
            "lr 0.1 x 1024 / 512 (linear) = 0.2, warm-up 2,000 steps, then cosine to 0 at step 20,000",
        ),
        (
            ["lr_batch=256", "lr_scaling=sqrt", "lr_schedule=cosine", "lr_end=1e-5"],
            "lr 0.1 x sqrt(1024 / 256) = 0.2, no warm-up, then cosine to 1e-05 at step 20,000",
        ),
        (
            ["lr_schedule=step", "lr_steps=(8,14.5)", "lr_gamma=0.2"],
            "lr 0.1, no warm-up, then x 0.2 at each of the steps 8,000, 14,500",
        ),
        (
            ["lr_schedule=step", "lr_steps=[8,20,30]"],
            "lr 0.1, no warm-up, then x 0.1 at each of the steps 8,000; 2 of lr_steps come after the end",
        ),
        (["lr_schedule=step", "lr_steps=[]"], "lr 0.1, no warm-up, then constant"),
    ],
)
def test_the_course_is_spelt_out(overrides, text):
    base = ["lr=0.1", "batch_size=128", "gradient_acc=2", "num_epoch=20", "warmup_epoch=0"]
    assert rate_text(get_config("demo", [*base, *overrides]), 4, 1000) == text
