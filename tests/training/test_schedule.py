import json

import pytest
import torch

from training.schedule import PolyScheduler

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("case", ["warmup", "none"])
def test_equals_contract(contracts, case):
    want = json.loads((contracts / "poly_schedule.json").read_text())[case]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = PolyScheduler(optimizer, want["base_lr"], want["total_steps"], want["warmup_steps"], -1)
    got = []
    for _ in range(want["total_steps"]):
        got.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert got == pytest.approx(want["lr"], abs=1e-15)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_groups_keep_their_ratio():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 1.0}])
    schedule = PolyScheduler(optimizer, max_steps=10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.025, 0.25])


def test_moves_to_any_step():
    def make(max_steps=20):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        return optimizer, PolyScheduler(optimizer, 0.3, max_steps, 4)

    optimizer, schedule = make()
    for _ in range(7):
        optimizer.step()
        schedule.step()
    other_optimizer, other = make()
    other.move_to(7)
    for _ in range(5):
        assert other.get_last_lr() == schedule.get_last_lr()
        assert other_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for o, s in ((optimizer, schedule), (other_optimizer, other)):
            o.step()
            s.step()


def test_negative_warmup_starts_down_the_slope():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    PolyScheduler(optimizer, 0.1, 30, -1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (30 / 31) ** 2)


@pytest.mark.parametrize(("max_steps", "warmup"), [(10, 10), (10, 11), (0, 0), (0, -1)])
def test_refuses_a_warmup_that_does_not_fit(max_steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    with pytest.raises(ValueError, match="warm-up must end before"):
        PolyScheduler(optimizer, 0.1, max_steps, warmup)
