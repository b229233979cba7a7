"""What one rank, or the machine, gets wrong in a run: every rank ends, soon, with the reason of the first."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch

import train
from ranks import launch_ranks, run_ranks
from tiny_runs import TINY
from training import checkpoint, memory
from training.loss_scale import LossScale
from utils import distributed
from utils.config import get_config
from utils.distributed import Ranks

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def damaged_in_mid_run(rank, output):
    """A sample of rank 1 turns out to be damaged at step 3."""
    real = train.RunData.batches

    def batches(self, *args):
        for number, batch in enumerate(real(self, *args)):
            if rank == 1 and number == 3:
                raise ValueError("faces.rec, record 17: the file is damaged")
            yield batch

    train.RunData.batches = batches
    train.main([TINY, f"output={output}", "batch_size=4"])


def no_room_for_the_classifier(rank, output):
    """The memory of rank 0 is short when its centres are made."""
    if rank == 0:
        from heads import storage

        def full(*_args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

        storage.untouched_zeros = full
    train.main([TINY, f"output={output}", "batch_size=4"])


def wandb_fails(rank, output):
    """Rank 0's metrics cannot be opened, with an error of another kind than a user's."""
    if rank == 0:

        def refuse(*_args):
            raise ConnectionError("wandb: the server does not answer")

        train.MetricsWriter.__init__ = refuse
    train.main([TINY, f"output={output}", "batch_size=4"])


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("run", "failing", "reason"),
    [
        (damaged_in_mid_run, 1, "ValueError: faces.rec, record 17: the file is damaged"),
        (no_room_for_the_classifier, 0, "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"),
        (wandb_fails, 0, "ConnectionError: wandb: the server does not answer"),
    ],
)
def test_what_one_rank_meets_alone_ends_all_with_its_reason(tmp_path, run, failing, reason):
    ends, took_s = launch_ranks(run, 2, tmp_path, tmp_path / "run")
    assert took_s < 20
    assert [status for status, _ in ends] == [1, 1]
    last = [errors.strip().splitlines()[-1] for _, errors in ends]
    assert last[failing].endswith(reason)
    other = 1 - failing
    assert re.fullmatch(rf"rank {other} ends, because rank {failing} on \S+ failed: {re.escape(reason)}", last[other])


def fail_to_rename(rank, world_size, output):
    cfg = get_config(TINY, [f"output={output}", "batch_size=4"])
    run, data = train.prepare(cfg, Ranks(rank, world_size, rank, torch.device("cpu")))
    run.train_step(train.epoch_batches(run, data, train.Speedometer()))
    if rank == 0:

        def refuse(self, target):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))

        Path.rename = refuse
    try:
        run.save()
        run.saver.finish()
    except OSError as error:
        return str(error)
    return None


@pytest.mark.distributed
def test_a_checkpoint_that_cannot_get_its_name_is_an_error_on_all_ranks(tmp_path):
    errors = run_ranks(fail_to_rename, 2, tmp_path)
    assert all("could not write" in error and "Permission denied" in error for error in errors)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, capsys):
    """The new one is complete, so the run goes on."""
    options = [f"output={tmp_path}", "keep_checkpoints=1", "checkpoint_full_every=1"]
    run, data = train.prepare(get_config(TINY, options), ALONE)
    batches = train.epoch_batches(run, data, train.Speedometer())
    for step in range(2):
        run.train_step(batches)
        if step:

            def refuse(path, target, rename=Path.rename):
                if path.name == "step_1":
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return rename(path, target)

            monkeypatch.setattr(Path, "rename", refuse)
        run.save()
        run.saver.finish()
    run.close()
    assert "could not be removed" in capsys.readouterr().out
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == ["step_1", "step_2"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),  # of pinned host memory
    ],
)
def test_no_memory_for_the_classifier_gets_the_advice_of_the_loop(tmp_path, capsys, monkeypatch, error):
    def full(*_args, **_options):
        raise error

    monkeypatch.setattr("heads.storage.untouched_zeros", full)
    with pytest.raises(type(error)):
        train.prepare(get_config(TINY, [f"output={tmp_path}"]), ALONE)
    out = capsys.readouterr().out
    assert re.search(
        r"out of memory; this rank needs about \d+ MiB .* Lower batch_size or head_size, or set head_st", out
    )


def test_another_error_gets_no_advice_on_memory(tmp_path):
    assert not memory.is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not memory.is_out_of_memory(RuntimeError("size mismatch"))


def test_after_an_overflow_the_scale_waits_the_whole_interval_again(tmp_path):
    """torch's own scaler starts its count of steps without an overflow anew; so does a run."""
    cfg = get_config(TINY, [f"output={tmp_path}", "fp16=True"])
    run, data = train.prepare(cfg, ALONE)
    run.scaler = LossScale(torch.device("cpu"), init_scale=2.0**4, growth_interval=4)
    batches = train.epoch_batches(run, data, train.Speedometer())
    for _ in range(3):
        run.train_step(batches)
    assert run.scaler.state_dict()["_growth_tracker"] == 3
    poison = run.backbone.conv1.weight.register_hook(lambda grad: grad * torch.inf)
    run.train_step(batches)
    poison.remove()
    assert (run.skipped, run.scaler.get_scale()) == (1, 2.0**3)
    assert run.scaler.state_dict()["_growth_tracker"] == 0
    for _ in range(3):
        run.train_step(batches)
    assert run.scaler.get_scale() == 2.0**3, "three steps of four"
    run.train_step(batches)
    assert run.scaler.get_scale() == 2.0**4


@pytest.mark.parametrize(
    ("environment", "visible", "gpu"),
    [
        ({"SLURM_LOCALID": "3"}, 1, 0),  # srun --gpus-per-task=1: each task sees its own GPU alone
        ({"SLURM_LOCALID": "3"}, 8, 3),
        ({"LOCAL_RANK": "1"}, 2, 1),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 1, None),  # torchrun under SLURM
        ({"SLURM_LOCALID": "3"}, 2, None),
    ],
)
def test_the_gpu_of_a_process(monkeypatch, environment, visible, gpu):
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if gpu is None:
        with pytest.raises(ValueError, match=rf"has no GPU: this machine shows {visible}"):
            distributed.init_ranks("cuda")
        return
    assert distributed.init_ranks("cuda").device == torch.device("cuda", gpu)
    assert chosen == [torch.device("cuda", gpu)]
