"""Whose a run's folder is, and where a run goes on from."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import train
from paths import ROOT
from tiny_runs import TINY, metrics, run, run_saving_in_time, run_with_checkpoints, weights
from training import run_folder, run_lock
from training.checkpoint import list_checkpoints, load_training, open_saved_heads
from training.run_lock import FolderLock
from utils.config import get_config
from utils.distributed import Ranks
from utils.processes import Process


@pytest.fixture(autouse=True)
def _no_restart(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_with_checkpoints(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def earlier(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def names(output):
    return [path.name for path in list_checkpoints(output / "checkpoints")]


def refused(capsys, output, *overrides):
    with pytest.raises(SystemExit) as ended:
        train.main([TINY, f"output={output}", *overrides])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert error.count("\n") == 1
    return error


def damage(output, step, name="training.pt"):
    path = output / "checkpoints" / f"step_{step}" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may have another name in a later checkpoint
    path.write_bytes(content)


def test_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(tmp_path):
    first = run(tmp_path / "run", "num_epoch=1", "resume=auto")
    assert sorted(first) == list(range(1, 13))
    both = run(tmp_path / "run", "num_epoch=2", "resume=auto")
    assert sorted(both) == list(range(1, 25))
    assert {step: both[step] for step in first} == first


def test_auto_wins_over_overwrite(earlier):
    run(earlier, "num_epoch=2", "resume=auto", "overwrite=True")
    assert min(metrics(earlier)) == 1
    assert "step_24" in names(earlier)


def test_auto_falls_back_to_the_newest_sound_one(earlier, capsys):
    whole = metrics(earlier)
    damage(earlier, 12)
    damage(earlier, 8, "heads/rank_0_of_1/layer_0/weight.npy")
    again = run(earlier, "num_epoch=1", "resume=auto")
    out = capsys.readouterr().out
    assert "step_12/training.pt is damaged: bytes 0 to" in out
    assert "step_8/heads/rank_0_of_1/layer_0/weight.npy is damaged" in out
    assert "resumed from" in out
    assert again == whole
    kept = sorted(path.name for path in (earlier / "checkpoints").iterdir())
    assert kept == ["aside_step_12", "aside_step_8", "step_12", "step_4"]
    assert "is kept as" in out


def test_true_stops_at_a_damaged_one_and_says_how_to_go_on(earlier, capsys):
    damage(earlier, 12)
    before = sorted((path, path.stat().st_mtime_ns) for path in earlier.rglob("*") if path.name != ".lock")
    error = refused(capsys, earlier, "num_epoch=2", "resume=True")
    assert "step_12/training.pt is damaged" in error
    sound = earlier / "checkpoints" / "step_8"
    assert f"The newest sound checkpoint is {sound}: resume = 'auto' goes on from it, or resume = '{sound}'" in error
    assert before == sorted((path, path.stat().st_mtime_ns) for path in earlier.rglob("*") if path.name != ".lock")
    damage(earlier, 8)
    damage(earlier, 4)
    assert "There is no other sound checkpoint" in refused(capsys, earlier, "num_epoch=2", "resume=True")
    error = refused(capsys, earlier, "num_epoch=2", "resume=auto")
    assert "none of the 3 checkpoints" in error
    assert "tools.check_run" in error


def test_a_path_goes_on_from_that_one_and_keeps_the_later_ones_apart(earlier):
    whole = metrics(earlier)
    again = run(earlier, "num_epoch=1", f"resume={earlier / 'checkpoints' / 'step_4'}")
    assert again == whole
    assert names(earlier) == ["step_4", "step_12"]
    assert (earlier / "checkpoints" / "aside_step_8").is_dir()


def test_a_path_of_another_run_goes_on_here(finished, tmp_path, capsys):
    run(tmp_path / "new", "num_epoch=1", f"resume={finished}", "checkpoint_steps=4")
    assert f"resumed from {finished / 'checkpoints' / 'step_12'}" in capsys.readouterr().out
    assert sorted(metrics(tmp_path / "new")) == []
    losses = run(tmp_path / "newer", "num_epoch=1", f"resume={finished / 'checkpoints' / 'step_8'}")
    assert losses == {step: loss for step, loss in metrics(finished).items() if step > 8}
    error = refused(capsys, tmp_path / "newer", f"resume={finished}")
    assert "holds another run" in error
    assert "holds no checkpoint: expected a run's folder" in refused(capsys, tmp_path / "x", "resume=/nowhere")


@pytest.fixture(params=["torchrun", "slurm"])
def launcher(request, monkeypatch):
    """Start and restart as a launcher does: the same agent, or the same job."""

    def start(count, agent=1):
        if request.param == "torchrun":
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
            monkeypatch.setattr(run_folder, "process_of", lambda pid: Process("host", "boot", agent, "7"))
        else:
            monkeypatch.setenv("SLURM_JOB_ID", str(agent))
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))

    return start


def test_a_restart_goes_on_whatever_the_command_line_says(tmp_path, launcher):
    launcher(0)
    output = tmp_path / "run"
    whole = run_saving_in_time(output, "num_epoch=1", "overwrite=True", "checkpoint_steps=4", "keep_checkpoints=9")
    damage(output, 12)
    launcher(1)
    assert run(output, "num_epoch=1", "overwrite=True", "keep_checkpoints=9") == whole
    assert names(output) == ["step_4", "step_8", "step_12"]


def test_a_restart_before_the_first_checkpoint_starts_over(tmp_path, launcher):
    launcher(0)
    run(tmp_path / "run", "num_epoch=1", "save_all_states=False")
    launcher(1)
    assert sorted(run(tmp_path / "run", "num_epoch=1")) == list(range(1, 13))


def test_a_restart_on_other_hosts_goes_on_where_one_is_left(tmp_path, monkeypatch):
    """Rank 0 may have moved: any of the launcher's processes that started the run is enough."""
    output = tmp_path / "run"
    agents = [{"host": "a"}, {"host": "b"}]
    monkeypatch.setattr(run_folder, "_agents", lambda: agents)
    whole = run(output, "num_epoch=1", "overwrite=True", "checkpoint_steps=4")
    monkeypatch.setattr(run_folder, "_agents", lambda: [{"host": "c"}, agents[1]])
    assert run(output, "num_epoch=1", "overwrite=True") == whole


@pytest.mark.parametrize("name", [".lock", ".same_folder", ".launch"])
def test_nothing_is_written_through_links_in_a_folder_from_elsewhere(earlier, tmp_path, name, capsys):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (earlier / name).unlink(missing_ok=True)
    (earlier / name).symlink_to(victim)
    if name == ".lock":
        assert "cannot lock" in refused(capsys, earlier, "resume=auto")
    else:
        run(earlier, "num_epoch=1", "resume=auto")
    assert victim.read_text() == "mine"


def test_a_restart_takes_nothing_of_another_launch(earlier, launcher, capsys):
    """A first attempt that was refused is refused again."""
    before = (earlier / "model.pt").read_bytes()
    for count in (0, 1):
        launcher(count, agent=2)
        assert "holds another run (model.pt, checkpoints): set resume = 'auto'" in refused(capsys, earlier)
    assert (earlier / "model.pt").read_bytes() == before


def test_checkpoints_behind_links_are_the_runs_own(earlier, tmp_path):
    (tmp_path / "archive").mkdir()
    newest = earlier / "checkpoints" / "step_12"
    shutil.move(newest, tmp_path / "archive" / "step_12")
    newest.symlink_to(tmp_path / "archive" / "step_12")
    both = run(earlier, "num_epoch=2", "resume=auto", "keep_checkpoints=9")
    assert sorted(both) == list(range(1, 25))
    shutil.move(earlier / "checkpoints", tmp_path / "elsewhere")
    (earlier / "checkpoints").symlink_to(tmp_path / "elsewhere")
    run(earlier, "num_epoch=3", "resume=auto", "keep_checkpoints=9")
    assert names(earlier) == ["step_4", "step_8", "step_12", "step_24", "step_36"]
    run(earlier, "num_epoch=1", "overwrite=True")
    assert (tmp_path / "elsewhere" / "step_36").is_dir()


def test_one_that_was_set_aside_can_be_gone_on_from(earlier):
    whole = metrics(earlier)
    folder = earlier / "checkpoints"
    run(earlier, "num_epoch=1", f"resume={folder / 'step_4'}", "keep_checkpoints=9")
    assert sorted(path.name for path in folder.iterdir()) == ["aside_step_12", "aside_step_8", "step_12", "step_4"]
    again = run(earlier, "num_epoch=1", f"resume={folder / 'aside_step_8'}", "keep_checkpoints=9")
    assert again == whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "aside_step_12",
        "aside_step_12_2",
        "step_12",
        "step_4",
        "step_8",
    ]


def test_a_kill_during_the_first_save_does_not_block_the_start(tmp_path):
    (tmp_path / "run" / "checkpoints" / ".step_3.partial" / "heads").mkdir(parents=True)
    assert sorted(run(tmp_path / "run", "num_epoch=1", "resume=auto")) == list(range(1, 13))


def test_a_kill_between_two_renames_loses_nothing(earlier):
    """As a save of the same step leaves it, between giving the old one another name and the new one its name."""
    folder = earlier / "checkpoints"
    for step in (4, 8):
        shutil.rmtree(folder / f"step_{step}")
    shutil.copytree(folder / "step_12", folder / ".step_12.partial")
    (folder / "step_12").rename(folder / ".step_12.replaced")
    run(earlier, "num_epoch=2", "resume=auto")
    assert sorted(metrics(earlier)) == list(range(1, 25))


def test_a_run_that_came_while_this_one_was_prepared_is_not_spoiled(tmp_path):
    cfg = get_config(TINY, [f"output={tmp_path / 'run'}"])
    late = run_folder.RunFolder(cfg, Ranks(0, 1, 0, torch.device("cpu")))
    assert late.look() == run_folder.Start()
    run(tmp_path / "run", "num_epoch=1")
    with pytest.raises(ValueError, match="holds another run"):
        late.open(None, 0)
    assert names(tmp_path / "run") == ["step_12"]


def test_what_a_killed_process_was_writing_goes(earlier):
    for name in (".model.pt.123.tmp", ".config.json.77.tmp"):
        (earlier / name).write_bytes(b"half")
    for name in (".step_9.partial", ".step_2.old"):
        (earlier / "checkpoints" / name / "heads").mkdir(parents=True)
    run(earlier, "num_epoch=1", "resume=auto")
    assert not list(earlier.glob(".*.tmp"))
    assert sorted(path.name for path in (earlier / "checkpoints").iterdir()) == ["step_12", "step_4", "step_8"]


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from training.run_lock import FolderLock
from utils.config import get_config
from utils.distributed import Ranks
from utils.processes import Process
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_has_gone(earlier, capsys):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(earlier), str(ROOT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        before = (earlier / "training.log").read_bytes()
        for overrides in (["resume=auto"], ["resume=True"], ["overwrite=True"]):
            error = refused(capsys, earlier, *overrides)
            assert f"{earlier} is in use by process {holder.pid} on host" in error
        assert (earlier / "training.log").read_bytes() == before
    finally:
        holder.kill()  # as kill -9
        holder.wait()
        holder.stdout.close()
    run(earlier, "num_epoch=1", "resume=auto")


def test_a_lock_that_the_file_system_does_not_know_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.lockf", refuse)
    said = []
    monkeypatch.setattr(run_lock.log, "warning", lambda text, *given: said.append(text % given))
    FolderLock(tmp_path).take()
    assert len(said) == 1
    assert "cannot be locked (no locks here)" in said[0]


def test_metrics_with_broken_lines_go_on(earlier, capsys):
    path = earlier / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], '{"step": 6, "lo\n', "\x00\x00\x00\n", *lines[6:], '{"step": 13, "loss"']))
    found = run(earlier, "num_epoch=2", "resume=auto")
    assert sorted(found) == [step for step in range(1, 25) if step != 6]
    assert "lines" in capsys.readouterr().out


def test_a_checkpoint_without_checksums_loads(finished, tmp_path):
    """The form of version 0.1.0."""
    state = load_training(finished / "checkpoints" / "step_12")
    old = tmp_path / "run" / "checkpoints" / "step_12"
    part = old / "heads" / "rank_0_of_1"
    part.mkdir(parents=True)
    saved = open_saved_heads(finished / "checkpoints" / "step_12")
    centres, updates = saved.centres(np.arange(60))
    layer = saved.layers[0]
    np.save(part / "heads.npy", np.arange(len(updates[::7]))[updates[::7] > 0])
    np.save(part / "visits.npy", updates[::7][updates[::7] > 0])
    np.save(part / "weight.npy", centres[updates > 0])
    assert len(layer.heads_n)
    for name in ("format", "identity", "logged", "damaged"):
        del state[name]
    torch.save(state, old / "training.pt")
    resumed = run(tmp_path / "run", "num_epoch=2", "resume=auto", "row_momentum=0")
    assert sorted(resumed) == list(range(13, 25))
    whole = run(tmp_path / "whole", "num_epoch=2", f"resume={finished}", "row_momentum=0")
    assert resumed == whole
    a, b = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)
