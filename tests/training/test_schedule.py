import json

import pytest

from training.schedule import PolySchedule

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("case", ["warmup", "none"])
def test_equals_contract(contracts, case):
    want = json.loads((contracts / "poly_schedule.json").read_text())[case]
    rate = PolySchedule(want["base_lr"], want["total_steps"], want["warmup_steps"])
    assert [rate(step) for step in range(want["total_steps"])] == pytest.approx(want["lr"], abs=1e-15)
    assert rate(want["total_steps"]) == 0.0


def test_every_base_rate_falls_alike():
    assert [PolySchedule(base, 10)(5) for base in (0.1, 1.0)] == pytest.approx([0.025, 0.25])


def test_past_the_end_it_stays_at_zero():
    rate = PolySchedule(0.3, 20, 4)
    assert (rate(4), rate(20), rate(25)) == (0.3, 0.0, 0.0)


def test_negative_warmup_starts_down_the_slope():
    assert PolySchedule(0.1, 30, -1)(0) == pytest.approx(0.1 * (30 / 31) ** 2)


@pytest.mark.parametrize(("max_steps", "warmup"), [(10, 10), (10, 11), (0, 0), (0, -1)])
def test_refuses_a_warmup_that_does_not_fit(max_steps, warmup):
    with pytest.raises(ValueError, match="warm-up must end before"):
        PolySchedule(0.1, max_steps, warmup)
