"""train.py on several ranks: the same curve as one rank, the launchers, re-sharding checkpoints, two hosts."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

import train
from backbones import get_model
from faults.hosts import two_hosts
from faults.scenario import why_not
from float64 import compute_in_float64
from paths import ROOT, data_path
from ranks import free_port, run_ranks
from tiny_runs import TINY, metrics
from training.checkpoint import list_checkpoints
from utils.config import get_config
from utils.distributed import Ranks, all_gather_objects
from utils.manifest import SummedFile

pytestmark = pytest.mark.distributed


def prepare(rank, world_size, overrides):
    return train.prepare(get_config(TINY, overrides), Ranks(rank, world_size, rank, torch.device("cpu")))


def train_on_ranks(rank, world_size, overrides):
    train.train(*prepare(rank, world_size, overrides))


def train_in_float64(rank, world_size, overrides):
    with pytest.MonkeyPatch.context() as patch:
        compute_in_float64(patch)
        train_on_ranks(rank, world_size, overrides)


@pytest.mark.numeric
@pytest.mark.parametrize("options", [[], ["negative_rate=0.3"], ["head_scope=own"]])
def test_two_ranks_and_one_give_the_same_curve(tmp_path, options):
    """The same global batches; batch statistics over all ranks, so that only rounding differs, here float64's."""
    options = [*options, "sync_bn=True"]
    run_ranks(train_in_float64, 1, [*options, f"output={tmp_path / 'one'}", "batch_size=8"])
    run_ranks(train_in_float64, 2, [*options, f"output={tmp_path / 'two'}", "batch_size=4"])
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert list(two) == list(range(1, 13))
    assert list(two.values()) == pytest.approx(list(one.values()), rel=5e-7)  # a run adds its losses up in float32
    for name in ("positive_cosine", "selected_heads", "selected_classes"):
        a, b = metrics(tmp_path / "one", name), metrics(tmp_path / "two", name)
        assert list(b.values()) == pytest.approx(list(a.values()), abs=5e-7)
    a, b = (torch.load(tmp_path / n / "model.pt", weights_only=True) for n in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("place", ["host", "file"])
def test_where_heads_live_changes_nothing(tmp_path, place):
    options = ["batch_size=4", "num_epoch=2", "negative_rate=0.2"]
    run_ranks(train_on_ranks, 2, [*options, f"output={tmp_path / 'device'}"])
    run_ranks(train_on_ranks, 2, [*options, f"output={tmp_path / place}", f"head_storage={place}"])
    assert metrics(tmp_path / place) == metrics(tmp_path / "device")
    a, b = (torch.load(tmp_path / n / "model.pt", weights_only=True) for n in (place, "device"))
    assert all(torch.equal(a[name], b[name]) for name in b)


def save_and_return_centres(rank, world_size, overrides):
    run, loader = prepare(rank, world_size, overrides)
    batches = train.epoch_batches(run, loader, train.Speedometer())
    for _ in range(3):
        run.train_step(batches)
    run.save()
    run.saver.finish()
    return everything(run)


def load_and_return_centres(rank, world_size, overrides):
    run, _ = prepare(rank, world_size, [*overrides, "resume=True"])
    return everything(run)


def everything(run):
    buffers = [run.classifier.shard.visits, *run.classifier.shard.tensors().values()]
    parts = all_gather_objects([b.clone() for b in buffers])
    joined = [torch.cat(column) for column in zip(*parts, strict=True)]
    return (
        joined,
        (run.epoch, run.step, run.step_in_epoch),
        run.rate(run.steps_done),
        run.classifier.shard.iteration,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2), (2, 4)])
def test_a_checkpoint_loads_on_any_number_of_ranks(tmp_path, before, after, optimizer):
    options = [f"output={tmp_path}", f"optimizer={optimizer}"]
    written = run_ranks(save_and_return_centres, before, [*options, f"batch_size={24 // before}"])[0]
    read = run_ranks(load_and_return_centres, after, [*options, f"batch_size={24 // after}"])
    for buffers, *counters in read:
        assert counters == list(written[1:])
        assert all(torch.equal(a, b) for a, b in zip(buffers, written[0], strict=True))
    assert written[0][1].any(1).sum() > 0


def fail_to_write(rank, world_size, overrides):
    run, loader = prepare(rank, world_size, overrides)
    batches = train.epoch_batches(run, loader, train.Speedometer())
    run.train_step(batches)
    run.save()
    run.saver.finish()
    run.train_step(batches)
    if rank == 1:

        def full(*_args, **_kwargs):
            raise OSError(28, "No space left on device")

        SummedFile.write = full
    try:
        run.save()
        run.saver.finish()
    except OSError as error:
        return str(error)
    return None


def test_a_full_disk_on_one_rank_is_an_error_on_all_and_keeps_the_older_checkpoint(tmp_path):
    errors = run_ranks(fail_to_write, 2, [f"output={tmp_path}"], timeout_s=200)
    assert all("could not write" in error and "No space left" in error for error in errors)
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step_1"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def other_ranks_same_batch(rank, world_size, overrides):
    run, loader = prepare(rank, world_size, [*overrides, "resume=True"])
    batches = train.epoch_batches(run, loader, train.Speedometer())
    run.train_step(batches)
    return run.step, run.steps_done, run.total_steps, run.rate(run.steps_done)


def test_resuming_on_fewer_ranks_follows_the_longer_schedule(tmp_path):
    """12 images of 96 seen on 2 ranks; one rank of the same batch_size then has 16 steps an epoch."""
    options = [f"output={tmp_path}", "batch_size=6", "warmup_epoch=0"]
    run_ranks(save_and_return_centres, 2, options)  # 3 steps of 12
    ((step, done, total, lr),) = run_ranks(other_ranks_same_batch, 1, options)
    assert (step, done, total) == (4, 7, 16)
    assert lr == pytest.approx(0.05 * (1 - 7 / 16) ** 2)


def bad_settings(rank, world_size, output):
    try:
        prepare(rank, world_size, [f"output={output}", "batch_size=64"])
    except ValueError as error:
        return str(error)
    return None


def test_a_user_error_is_raised_on_every_rank(tmp_path):
    errors = run_ranks(bad_settings, 2, tmp_path)
    assert all("an epoch of 96 images has no global batch of 2 ranks x 64" in error for error in errors)


def set_missing_on_one_rank(rank, world_size, folder, output):
    os.chdir(folder / str(rank))
    run, loader = prepare(rank, world_size, [f"output={output}", "batch_size=4", "val_targets=mine.bin"])
    train.train(run, loader)
    return run.step


def test_a_verification_set_missing_on_one_rank_is_left_out_on_all(tmp_path):
    rng = np.random.default_rng(0)
    images = [cv2.imencode(".png", rng.integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes() for _ in range(8)]
    for rank in "01":
        (tmp_path / rank).mkdir()
    (tmp_path / "0" / "mine.bin").write_bytes(pickle.dumps((images, [True, False] * 2)))
    assert run_ranks(set_missing_on_one_rank, 2, tmp_path, tmp_path / "run") == [12, 12]
    log = (tmp_path / "run" / "training.log").read_text()
    assert re.search(r"verification set .*mine.bin is left out: rank 1: ", log)


def weights_missing_on_one_rank(rank, world_size, folder):
    os.chdir(folder / str(rank))
    try:
        prepare(rank, world_size, [f"output={folder / 'run'}", "batch_size=4", "init_backbone=start.pt"])
    except OSError as error:
        return str(error)
    return None


def test_a_file_missing_on_one_rank_is_an_error_on_all(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    torch.save(get_model("rtiny", 32).state_dict(), tmp_path / "0" / "start.pt")
    errors = run_ranks(weights_missing_on_one_rank, 2, tmp_path)
    assert all("start.pt" in error for error in errors)


def output_of_its_own(rank, world_size, folder):
    try:
        prepare(rank, world_size, [f"output={folder / str(rank)}", "batch_size=4"])
    except ValueError as error:
        return str(error)
    return None


def test_an_output_that_the_hosts_do_not_share_is_refused(tmp_path):
    errors = run_ranks(output_of_its_own, 2, tmp_path)
    assert all("is another folder for rank 1 on" in error for error in errors)


def launch(*command, env=None, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.launch", "--nproc_per_node=2"],
        ["-m", "torch.distributed.run", "--nproc_per_node=2"],
        ["-m", "torch.distributed.launch", "--nproc_per_node=8"],
    ],
    ids=["launch", "torchrun", "launch8"],
)
def test_launchers(tmp_path, launcher):
    """The README's lines, the 8-process one too, on a tiny recipe."""
    port = f"--master_port={free_port()}"
    options = ["batch_size=3", "num_epoch=1", "timeout_s=300"]
    result = launch(*launcher, port, "train.py", TINY, f"output={tmp_path}", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = int(launcher[-1].split("=")[1])
    assert f"batch: {ranks} ranks x 3 x accumulation 1 = {ranks * 3}" in result.stdout
    assert len(re.findall(r"-rank \d+: ", result.stdout)) == ranks
    assert (tmp_path / "model.pt").exists()
    assert len(metrics(tmp_path)) == 96 // (3 * ranks)


@pytest.mark.parametrize("spelling", ["--local_rank=0", "--local-rank=0"])
def test_both_spellings_of_local_rank(tmp_path, spelling):
    train.main([spelling, TINY, f"output={tmp_path}", "num_image=16", "frequent=1"])
    assert len(metrics(tmp_path)) == 2


def test_sigterm_to_the_launcher_saves_in_spite_of_loader_workers(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["train.py", TINY, f"output={tmp_path}", "num_epoch=100000", "batch_size=4", "num_workers=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    ) as process:
        for line in process.stdout:
            if "Global Step: 3 " in line:
                process.terminate()
    log = (tmp_path / "training.log").read_text()
    step = re.search(r"stopped by SIGTERM after step (\d+)", log)[1]
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == f"step_{step}"


def test_sigterm_to_one_rank_stops_all_and_saves(tmp_path):
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", TINY, f"output={tmp_path}", "num_epoch=100000", "batch_size=4"]
    ranks = []
    try:
        for rank in range(2):
            env_of_rank = {**os.environ, **env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=env_of_rank, stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) > 2:
                break
            time.sleep(0.1)
        ranks[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=60) for process in ranks] == [143, 143]
    finally:
        for process in ranks:
            process.kill()
    assert "stopped by SIGTERM" in (tmp_path / "training.log").read_text()
    assert len(list_checkpoints(tmp_path / "checkpoints")) >= 1


@pytest.fixture
def both_hosts():
    if reason := why_not("network namespaces"):
        pytest.skip(reason)
    with two_hosts() as hosts:
        yield hosts


def test_two_hosts_end_with_the_model_of_two_ranks_on_one(tmp_path, both_hosts):
    """The README's two-node lines, one process a node, each in a network of its own."""
    processes = []
    for node, host in enumerate(both_hosts):
        command = [*host.started_by(), sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=1"]
        command += ["--nnodes=2", f"--node_rank={node}", f"--master_addr={both_hosts[0].address}"]
        command += ["--master_port=12581", "train.py", TINY, f"output={tmp_path / 'hosts'}", "batch_size=4"]
        env = {**os.environ, **host.env(), "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    alone = launch(
        "-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}",
        "train.py", TINY, f"output={tmp_path / 'one'}", "batch_size=4",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stdout + alone.stderr
    a, b = (torch.load(tmp_path / n / "model.pt", weights_only=True) for n in ("hosts", "one"))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert metrics(tmp_path / "hosts") == metrics(tmp_path / "one")


@pytest.mark.skipif(data_path() is None, reason="no real faces here: set MHS_DATA")
def test_real_faces_on_two_ranks(tmp_path):
    """One epoch on LFW beats the untrained network on other people's faces."""
    source = data_path() / "lfw_train"
    result = launch(
        "-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}",
        "train.py", "configs/lfw_mini", f"rec={source}", f"output={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    accuracy = metrics(tmp_path, "lfw/accuracy")
    steps = sorted(accuracy)
    assert steps[0] == 0
    assert accuracy[steps[-1]] > accuracy[0] + 0.05
