"""The instrument itself sees a hang, a silent end, lost steps and a run that is not equal."""

import itertools
import json
import signal
import sys
import time

import pytest
import torch

from faults import tally
from faults.long_run import problems_of, sample, slopes_of
from faults.processes import Launch, ended
from faults.stage import (
    Ending,
    Stage,
    differences,
    due_step,
    end_of,
    last_step,
    leftovers,
    newest_checkpoint,
    resumed_at,
    row_of,
)
from tiny_runs import run

LEAVES_AN_ORPHAN = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    "start_new_session=True); print('the launcher ends')"
)


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "references").mkdir()
    return Stage(tmp_path, tmp_path / "references", seed=3)


def test_an_orphan_in_a_session_of_its_own_is_found_and_ended(tmp_path):
    launch = Launch([sys.executable, "-c", LEAVES_AN_ORPHAN], tmp_path / "log")
    with ended(launch):
        ending = end_of(launch, time.monotonic(), 5)
        assert ending.hung
        assert ending.status is None
        (orphan,) = launch.pids()
        launch.signal(signal.SIGSTOP, [orphan])
        assert launch.pids() == [orphan], "a stopped process is still there"
        assert sample(orphan)["handles"] >= 3
    assert launch.pids() == []
    assert sample(orphan) is None
    assert "the launcher ends" in launch.output()


def test_a_clean_end_is_seen_with_its_status(tmp_path):
    launch = Launch([sys.executable, "-c", "import sys; print('good bye'); sys.exit(7)"], tmp_path / "log")
    ending = end_of(launch, time.monotonic(), 20)
    assert (ending.status, ending.output) == (7, "good bye\n")
    assert ending.gone_s < 20


@pytest.mark.parametrize(
    ("ending", "expect", "more", "problem"),
    [
        (Ending(1, 2.0, "the disk is full"), "ends", {"equal": True}, None),
        (Ending(None, None, "the disk is full", ("rank 0",)), "ends", {}, "left after the limit: rank 0"),
        (Ending(0, 2.0, "the disk is full"), "ends", {}, "exit status 0"),
        (Ending(1, 2.0, "Traceback"), "ends", {}, "silent"),
        (Ending(1, 2.0, "the disk is full\n" + "noise\n" * 30), "ends", {}, "the cause is not on the last lines"),
        (Ending(1, 2.0, "the disk is full"), "ends", {"lost_steps": 4}, "4 steps before the newest due"),
        (Ending(1, 2.0, "the disk is full"), "ends", {"equal": False, "differs": ["centres"]}, "not equal"),
        (Ending(1, 2.0, "the disk is full"), "ends", {"leftovers": [".a.tmp"]}, "left behind: .a.tmp"),
        (Ending(1, 2.0, "the disk is full"), "goes on", {}, "exit status 1 where it should go on"),
        (Ending(0, 2.0, "fine"), "goes on", {"equal": True}, "the cause is not said"),
        (Ending(0, 2.0, "fine"), "skips", {"finite": False}, "silent"),
    ],
)
def test_what_is_not_as_it_should_be_is_a_problem(stage, ending, expect, more, problem):
    row = row_of(stage, "now", ending, expect, "disk is full", **more)
    if problem is None:
        assert row["problems"] == []
    else:
        assert any(text.startswith(problem) for text in row["problems"]), row["problems"]


def test_a_setting_with_the_name_of_a_cause_does_not_name_it(stage):
    banner = "Training: 2026-01-01 10:00:00,000-: timeout_s                       8"
    assert row_of(stage, "now", Ending(1, 2.0, banner), "ends", "timeout")["silent"]
    assert not row_of(stage, "now", Ending(1, 2.0, f"{banner}\na timeout"), "ends", "timeout")["silent"]


def test_steps_are_lost_only_where_a_checkpoint_was_due(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 8)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 8, "lo')
    assert last_step(tmp_path) == 7
    assert due_step(tmp_path, 2) == 4, "one may have been in the making"
    (tmp_path / "checkpoints" / "step_6").mkdir(parents=True)
    assert due_step(tmp_path, 2) == 6
    assert due_step(tmp_path, 0) == 6
    assert due_step(tmp_path / "new", 0) is None
    assert due_step(tmp_path / "new", 2) == 0
    assert resumed_at("x\nTraining: resumed from /a/step_4: epoch 0, step 4\n") == 4
    assert resumed_at("a new run") is None


def test_two_equal_runs_are_equal_and_one_changed_bit_is_found(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, "num_workers=0")
    assert differences(tmp_path / "a", tmp_path / "b", tmp_path) == []
    assert newest_checkpoint(tmp_path / "a") == 12
    assert leftovers(tmp_path / "a") == []
    state = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    name = next(iter(state))
    state[name].view(torch.int32).view(-1)[0] ^= 1
    torch.save(state, tmp_path / "a" / "model.pt")
    assert differences(tmp_path / "a", tmp_path / "b", tmp_path) == [f"weights of {name}"]
    other = tmp_path / "c"
    run(other, "seed=7")
    found = differences(other, tmp_path / "b", tmp_path)
    assert {"centres", "logged losses"} <= set(found)
    (other / ".model.pt.17.tmp").touch()
    (other / "checkpoints" / ".step_9.partial").mkdir()
    assert leftovers(other) == [".model.pt.17.tmp", ".step_9.partial"]


def test_growth_is_a_slope_for_each_thousand_steps_beyond_the_noise():
    noise = itertools.cycle((-300.0, 300.0))
    samples = [
        {"step": step, "own_kib": 5000 + 1.5 * step + next(noise), "rss_kib": 9000, "handles": 20 + step % 200 / 100}
        for step in range(500, 3000, 50)
    ]
    found = slopes_of(samples)
    assert found["own_kib_per_1000"] == pytest.approx(1500, abs=100)
    assert found["own_kib_per_1000_before"] == pytest.approx(1500, abs=200)
    assert found["rss_kib_per_1000"] == pytest.approx(0, abs=0.01)
    about = {"threads": [9], "processes": [7]}
    assert problems_of({**found, "own_kib_per_1000_error": 200, **about}) == [], "it may be noise"
    (problem,) = problems_of({**found, "own_kib_per_1000_error": 100, **about})
    assert problem.startswith("memory grows by 15")
    assert "processes are not constant: [7, 8]" in problems_of({**found, **about, "processes": [7, 8]})


def test_the_tally_counts_and_a_scenario_played_again_replaces_its_rows(stage, tmp_path):
    data, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    head = {"date": "2026-01-01", "python": "3", "torch": "2", "cores": 2}
    about = {"scenario": "full", "fault": "disk full", "group": "Disks", "commit": "abc"}
    bad = {**about, **row_of(stage, "now", Ending(0, 2.0, "x"), "ends", "disk is full", equal=False)}
    good = {**about, **row_of(stage, "now", Ending(1, 4.0, "disk is full"), "ends", "disk is full", equal=True)}
    tally.merge(data, head, "full", [bad, good])
    tally.merge(
        data, head, "other", [{**about, "scenario": "other", "fault": "not here", "seed": 0, "skipped": "no root"}]
    )
    tally.write(page, data)
    text = page.read_text()
    assert "| disk full | 2 | 1 | 0 | 1 | - | 1 | 1 of 2 | 4.0, 4.0 |" in text
    assert "| not here | 0 (no root) |" in text
    assert "- disk full: exit status 0" in text
    assert "the rows are of commits abc." in text
    tally.merge(data, head, "full", [good])
    tally.write(page, data)
    assert "| disk full | 1 | 0 | 0 | 0 | - | 0 | 1 of 1 | 4.0, 4.0 |" in page.read_text()
    assert "Nothing." in page.read_text()
