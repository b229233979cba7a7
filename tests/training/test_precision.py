"""The precision that a run gets on its machine, and what it says when that costs time."""

import json
import logging
import math
import re

import pytest
import torch

from ranks import run_ranks
from tiny_runs import run
from training import precision as ours
from training.identity import Identity
from training.precision import Found, choose_precision, settle_precision, slowdown
from utils.config import get_config
from utils.distributed import Ranks

CPU = Ranks(0, 1, 0, torch.device("cpu"))
HAS, LACKS, SILENT = Found("CPU of a", "cpu", True), Found("CPU of b", "cpu", False), Found("CPU of c", "cpu", None)
NEW_GPU, OLD_GPU = Found("H100 of a", "cuda", True), Found("V100 of a", "cuda", False)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "mhs_arcface")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("found", "precision", "reason"),
    [
        ([HAS], "bf16", "auto: the CPU has it in hardware"),
        ([NEW_GPU, NEW_GPU], "bf16", "auto: the GPU has it in hardware"),
        ([HAS, LACKS], "float32", "auto: rank 1, CPU of b, has no bfloat16 in hardware"),
        ([HAS, SILENT], "float32", "auto: rank 1, CPU of c, is not known to have bfloat16 in hardware"),
        ([OLD_GPU], "float32", "no bfloat16 in hardware; precision = 'fp16' may be faster"),
    ],
)
def test_auto_is_what_all_ranks_have_in_hardware(found, precision, reason):
    chosen, why = choose_precision(found)
    assert chosen == precision
    assert why.endswith(reason)


@pytest.mark.parametrize(
    ("setting", "has", "factor", "lines"),
    [
        ("auto", True, None, ["precision: bf16 (auto: the CPU has it in hardware)"]),
        ("bf16", True, None, ["precision: bf16 (as set)"]),
        ("float32", False, None, ["precision: float32 (as set)"]),
        ("bf16", None, 0.5, ["precision: bf16 (as set)"]),
        (
            "bf16",
            False,
            14.24,
            ["precision: bf16 (as set)", "bf16 takes 14.2 times as long as float32 on CPU of .*'auto' or 'float32'$"],
        ),
        (
            "fp16",
            True,
            50.0,
            ["precision: fp16 (as set)", "fp16 takes 50.0 times .* 'auto' or 'bf16', which is in hardware$"],
        ),
    ],
)
def test_a_precision_that_loses_time_here_is_a_warning_with_the_measured_factor(
    setting, has, factor, lines, monkeypatch, said, caplog
):
    monkeypatch.setattr(ours, "computes_bfloat16", lambda device: has)
    measured = []
    monkeypatch.setattr(ours, "slowdown", lambda dtype, device: measured.append(dtype) or factor)
    settle_precision(get_config("custom", [f"precision={setting}"]), CPU)
    assert len(measured) == (factor is not None)
    assert said()[0] == lines[0]
    assert len(said()) == len(lines)
    if len(lines) == 2:
        assert re.search(lines[1], said()[1])
        assert caplog.records[1].levelno == logging.WARNING


def test_the_factor_is_that_of_the_shortest_tries_and_threads_are_put_back(monkeypatch):
    times = {torch.float32: iter([9.0, 2.0, 1.0] + [3.0] * 10**6), torch.float16: iter([99.0] + [7.0, 8.0] * 10**6)}
    monkeypatch.setattr(ours, "_step_s", lambda x, weight, kind: next(times[kind]))
    monkeypatch.setattr(ours, "_PROBE_S", 0.0)
    torch.set_num_threads(2)
    assert slowdown(torch.float16, torch.device("cpu")) == 7.0
    assert torch.get_num_threads() == 2


def test_a_measurement_compares_a_type_with_float32(monkeypatch):
    monkeypatch.setattr(ours, "_PROBE_S", 0.0)
    assert 0 < slowdown(torch.bfloat16, torch.device("cpu")) < math.inf


def settled(rank, world_size, setting):
    ours.computes_bfloat16 = lambda device: rank == 0
    ours.slowdown = lambda dtype, device: 10.0 + rank
    warned = []
    ours.warn_once = lambda text, *values: warned.append(text % values)
    cfg = settle_precision(get_config("custom", [f"precision={setting}"]), Ranks(rank, world_size, rank, CPU.device))
    return cfg.precision, warned


@pytest.mark.distributed
def test_all_ranks_settle_on_one_precision_and_the_one_that_lacks_it_measures():
    assert [precision for precision, _ in run_ranks(settled, 2, "auto")] == ["float32", "float32"]
    for precision, (warning,) in run_ranks(settled, 2, "bf16"):
        assert precision == "bf16"
        assert "bf16 takes 11.0 times as long" in warning


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "float32")])
def test_a_run_trains_in_it_and_its_config_json_says_so(tmp_path, monkeypatch, has, precision):
    monkeypatch.setattr(ours, "computes_bfloat16", lambda device: has)
    run(tmp_path, "precision=auto")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["precision"], config["bf16"], config["fp16"]) == (precision, has, False)
    log = (tmp_path / "training.log").read_text()
    assert f"precision: {precision} (auto: " in log
    assert ("bfloat16, classifier in float32" in log) == has


@pytest.mark.parametrize(
    ("noted", "precision", "text"),
    [
        (True, "bf16", "was trained in float32, this run goes on in bf16; precision=float32 goes on as before"),
        (True, "float32", ""),
        (
            False,
            "bf16",
            "does not note its own, which was float32 in older versions unless fp16 or bf16 was set; this",
        ),
        (False, "float32", ""),
    ],
)
def test_resuming_in_another_precision_is_a_warning(tmp_path, capsys, monkeypatch, noted, precision, text):
    run(tmp_path, "num_image=16", "warmup_epoch=0")
    capsys.readouterr()
    check = Identity.check
    kept = lambda saved: {name: value for name, value in saved.items() if noted or name != "precision"}
    monkeypatch.setattr(Identity, "check", lambda self, path, saved: check(self, path, kept(saved)))
    overrides = ["num_image=16", "warmup_epoch=0", "num_epoch=2", f"precision={precision}", "resume=True"]
    assert len(run(tmp_path, *overrides)) == 4
    printed = capsys.readouterr().out
    assert text in printed
    assert (" goes on in " in printed) == bool(text)
