"""What a run says of itself."""

import pytest

from training import report as ours


def test_speedometer(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(ours.time, "monotonic", lambda: now[0])
    speed = ours.Speedometer()
    speed.images, speed.waited_s = 500, 1.0
    now[0] += 10.0
    with speed.paused():  # a verification
        now[0] += 4.0
    assert speed.read() == (50.0, 0.1)
    assert speed.hours_left(10, 3600) == pytest.approx(1.0)
    now[0] += 2.0
    assert speed.read() == (0.0, 0.0)
