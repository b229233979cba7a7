"""plot_run: what it reads of runs as they are, and that it draws them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from tools.parts.run_curves import read_runs, smoothed
from tools.plot_run import main


def write(folder, *lines, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def step(number, **figures):
    return {"step": number, "learning_rate": 0.1, "images_per_s": 50.0, "data_wait_share": 0.25, **figures}


def test_what_a_run_in_progress_or_a_resumed_one_has_left_is_read(tmp_path):
    """A half line, a line of something else, a nan, a step taken twice, an order that jumps back."""
    folder = write(
        tmp_path / "run", step(10, loss=3.0), step(20, loss=2.0), [1], {"loss": 7.0}, step(30, loss=None),
        {"step": 20, "lfw/accuracy": 0.9}, step(20, loss=2.5), tail='{"step": 40, "lo',
    )  # fmt: skip
    (run,) = read_runs([folder])
    assert (run.name, run.curves["loss"].steps_N.tolist()) == ("run", [10, 20])
    assert run.curves["loss"].values_N.tolist() == [3.0, 2.5]
    assert run.curves["learning_rate"].steps_N.tolist() == [10, 20, 30]
    assert run.curves["lfw/accuracy"].values_N.tolist() == [0.9]


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [write(tmp_path / name / "run", step(1)) for name in "ab"]
    assert [run.name for run in read_runs([paths[0], paths[1] / "metrics.jsonl"])] == ["a/run", "b/run"]


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_the_mean_is_over_the_values_around(window):
    values = np.random.default_rng(0).normal(size=7)
    around = [values[max(i - window // 2, 0) : i + (window - 1) // 2 + 1].mean() for i in range(7)]
    assert smoothed(values, window) == pytest.approx(np.array(around), rel=1e-12)


def drawn(monkeypatch, argv):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: figures.append(self))
    assert main(argv) == 0
    return {axes.get_title(loc="left").partition(" (")[0]: axes for axes in figures[0].axes}, figures[0]


def test_all_runs_are_in_all_panels_that_they_have_figures_for(tmp_path, monkeypatch):
    long = [step(s, loss=1.0 / s, **({"lfw/accuracy": 0.9} if s % 50 == 0 else {})) for s in range(1, 101)]
    a, b = write(tmp_path / "a", *long), write(tmp_path / "b", step(1), step(2, **{"cfp_fp/accuracy": 0.8}))
    panels, figure = drawn(monkeypatch, [str(a), str(b), "--out", str(tmp_path / "x.png")])
    lines = {title: [line.get_ydata()[-1] for line in axes.lines] for title, axes in panels.items()}
    assert lines["loss"] == [0.01, pytest.approx(np.mean([0.01, 1 / 99]))]  # thin and thick; b has none
    assert lines["learning rate"] == [0.1, 0.1]
    assert lines["waiting for data"] == [25.0, pytest.approx(25.0), 25.0]
    assert lines["verification accuracy"] == [90.0, 80.0]
    assert "mean of 2 log lines" in panels["loss"].get_title(loc="left")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert [text.get_text() for text in panels["verification accuracy"].get_legend().get_texts()] == ["cfp_fp", "lfw"]


def test_a_run_of_one_line_with_a_hard_name_is_drawn(tmp_path):
    folder = write(tmp_path / "_$x_{$", {"step": 1, "loss": 2.0})
    assert main([str(folder), "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("window", ["1", "3"])
def test_what_no_picture_can_hold_is_left_out(tmp_path, window):
    """Steps that no array holds, a loss of 401 digits, losses whose sum or span overflows."""
    folder = write(
        tmp_path / "run", step(1, loss=2.0), step(10**23, loss=1.0), step(2**63, loss=1.0), step(-1, loss=1.0),
        step(2, loss=10**400), step(3, loss=1e308), step(4, loss=-1e308), step(5, loss=1e300), step(6, loss=-1e300),
        step(2**63 - 1, loss=3.0),
    )  # fmt: skip
    (run,) = read_runs([folder])
    assert run.curves["loss"].steps_N.tolist() == [1, 5, 6, 2**63 - 1]
    assert run.curves["loss"].values_N.tolist() == [2.0, 1e300, -1e300, 3.0]
    assert main([str(folder), "--out", str(tmp_path / "x.png"), "--smooth", window]) == 0


@pytest.mark.parametrize(("count", "marker"), [(1, "o"), (11, "o"), (20, "o"), (21, "None")])
def test_few_points_are_drawn_as_points(tmp_path, monkeypatch, count, marker):
    folder = write(tmp_path / "run", *(step(s, loss=2.0) for s in range(count)))
    panels, _ = drawn(monkeypatch, [str(folder), "--out", str(tmp_path / "x.png")])
    assert [axes.lines[0].get_marker() for name, axes in panels.items() if "accuracy" not in name] == [marker] * 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none", "--out", "x.png"], "expected a run's folder with a metrics.jsonl in it"),
        (["empty", "--out", "x.png"], "holds no figures yet"),
        (["empty", "--out", "no/x.png"], "no: no such folder for x.png: make it first"),
        (["empty", "--out", "x.jpg"], "--out takes the name of a .png"),
        (["empty", "--out", "x.png", "--smooth", "0"], "--smooth must be at least 1"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty", tail='{"step": 1, "lo')
    assert main(argv) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))
