"""Steps of a real run on a GPU: the precisions, an overflow, and that the host never waits for the device."""

from types import SimpleNamespace

import pytest
import torch

import train
from benchmarks.gpu.timing import counting_waits, sync_mode
from float64 import compute_in_float64
from tiny_runs import TINY
from utils.config import get_config
from utils.distributed import Ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
WARM, STEADY = 12, 6  # fp16 finds its scale in the first ones


def prepared(output, *options, device="cuda:0"):
    """A run of the tiny recipe with its batches, as train.py steps it; an epoch has a hundred steps."""
    where = torch.device(device)
    cfg = get_config(TINY, [f"output={output}", f"device={where.type}", "num_image=800", *options])
    run, data = train.prepare(cfg, Ranks(0, 1, 0, where))
    return run, train.epoch_batches(run, data, SimpleNamespace(waited_s=0.0))


def losses_of(output, steps, *options, device="cuda:0"):
    run, batches = prepared(output, *options, device=device)
    losses = [float(run.train_step(batches)) for _ in range(steps)]
    batches.close()
    run.close()
    return losses


@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_training_in_float64_gives_the_cpus_losses(tmp_path, monkeypatch, place):
    compute_in_float64(monkeypatch)
    cpu = losses_of(tmp_path / "cpu", 6, f"head_storage={place}", device="cpu")
    assert losses_of(tmp_path / "gpu", 6, f"head_storage={place}") == pytest.approx(cpu, rel=1e-4)


@pytest.mark.parametrize("network", ["rtiny", "vtiny"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-2), ("bf16", 5e-2)])
def test_half_precision_follows_float32(tmp_path, network, precision, tolerance):
    """At a rate so low that a step which fp16 skips, to find its scale, does not show."""
    options = ["lr=0.0001", f"network={network}"]
    exact = losses_of(tmp_path / "float32", 6, *options)
    assert losses_of(tmp_path / "half", 6, *options, f"{precision}=True") == pytest.approx(exact, rel=tolerance)


def test_an_overflow_skips_the_step_and_lowers_the_scale(tmp_path):
    run, batches = prepared(tmp_path, "fp16=True", "max_nonfinite=2", "warmup_epoch=0")
    for _ in range(2):
        run.train_step(batches)
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**40})
    before = [p.detach().clone() for p in run.backbone.parameters()]
    statistics = [b.clone() for b in run.backbone.buffers() if b.is_floating_point()]
    run.train_step(batches)
    assert all(map(torch.equal, before, run.backbone.parameters()))
    assert all(map(torch.equal, statistics, [b for b in run.backbone.buffers() if b.is_floating_point()]))
    for _ in range(40):  # the scale falls until nothing overflows, with a skip for each halving
        run.train_step(batches)
    run.settle()
    assert run.skipped >= 1
    assert run.scaler.get_scale() < 2.0**40
    assert not all(map(torch.equal, before, run.backbone.parameters()))
    assert all(torch.isfinite(p).all() for p in [*run.backbone.parameters(), *run.backbone.buffers()])
    batches.close()
    run.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options", [(), ("fp16=True",), ("bf16=True",), ("optimizer=adamw", "lr=0.001")], ids=" ".join
)
def test_a_steady_step_waits_for_nothing(tmp_path, options, workers):
    """Heads on the device: any synchronising call, in whichever thread, is an error."""
    run, batches = prepared(tmp_path, f"num_workers={workers}", *options)
    for _ in range(WARM):
        run.train_step(batches)
    torch.cuda.synchronize()
    with sync_mode("error", run.device):
        for _ in range(STEADY):
            run.train_step(batches)
    assert run.step == WARM + STEADY
    batches.close()
    run.close()


@pytest.mark.parametrize("place", ["host", "file"])
@pytest.mark.parametrize("network", ["rtiny", "vtiny"])
def test_a_steady_step_with_heads_elsewhere_lets_only_their_thread_wait(tmp_path, network, place):
    run, batches = prepared(tmp_path, f"head_storage={place}", f"network={network}", "bf16=True")
    for _ in range(WARM):
        run.train_step(batches)
    with counting_waits(run.device) as waits:
        for _ in range(STEADY):
            run.train_step(batches)
    assert not waits.here
    batches.close()
    run.close()


def test_the_count_sees_a_wait(tmp_path):
    x = torch.ones(1, device="cuda")
    with counting_waits(x.device) as waits:
        x.item()
    assert waits.here.total() == 1
