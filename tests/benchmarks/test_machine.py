"""What a benchmark says of the machine, on systems with and without Linux's ways to tell."""

import os

from benchmarks import machine


def test_cores(monkeypatch):
    assert 1 <= machine.usable_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.usable_cores() == os.cpu_count()


def test_peak_of_memory(monkeypatch, tmp_path):
    with_torch = 50
    assert machine.peak_mib() > with_torch
    monkeypatch.setattr(machine, "_STATUS", tmp_path / "nothing")
    assert machine.peak_mib() > with_torch
