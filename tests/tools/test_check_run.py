"""What can be resumed of a run, file by file."""

import shutil

import pytest

from tiny_runs import run_with_checkpoints
from tools import check_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_with_checkpoints(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def earlier(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def checked(capsys, path):
    status = check_run.main([str(path)])
    return status, capsys.readouterr()


def test_a_sound_run(earlier, capsys):
    status, said = checked(capsys, earlier)
    assert status == 0
    assert said.out.count("| sound ") == 3
    assert f"resume = 'auto' goes on from {earlier / 'checkpoints' / 'step_12'}" in said.out


def test_damage_is_named_and_what_can_be_resumed(earlier, capsys):
    (earlier / "checkpoints" / "step_12" / "training.pt").unlink()
    (earlier / "checkpoints" / "step_8").rename(earlier / "checkpoints" / "aside_step_8")
    (earlier / "checkpoints" / ".step_16.partial").mkdir()
    status, said = checked(capsys, earlier)
    assert status == 1
    assert "step_12/training.pt is missing" in said.out
    assert f"resume = 'auto' goes on from {earlier / 'checkpoints' / 'step_4'}" in said.out
    assert "resume = True stops at the damaged one" in said.out
    assert "left unfinished" in said.out
    assert "aside_* may be removed" in said.out


def test_nothing_sound(earlier, capsys):
    for path in (earlier / "checkpoints").glob("step_*"):
        (path / "manifest.json").write_text("{}")
    status, said = checked(capsys, earlier)
    assert status == 1
    assert "no sound checkpoint" in said.out


def test_one_checkpoint(earlier, capsys):
    status, said = checked(capsys, earlier / "checkpoints" / "step_8")
    assert status == 0
    assert "step_8" in said.out
    assert "step_12" not in said.out


def test_nothing_at_all(tmp_path, capsys):
    status, said = checked(capsys, tmp_path)
    assert status == 2
    assert said.err.startswith("check_run: error: ")
    assert "holds no checkpoint" in said.err
