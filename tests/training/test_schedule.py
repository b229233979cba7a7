import json

import pytest

from training.schedule import PolySchedule

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
