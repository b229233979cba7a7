"""A run is not gone on with as something else: other people, another loss, another network."""

import json
import re
import shutil

import pytest

import train
from face_files import face, make_image_folder
from tiny_runs import TINY, run
from training.identity import Identity


@pytest.fixture
def trained(tmp_path):
    """A run on three people, a, b and c."""
    make_image_folder(tmp_path / "faces")
    run(tmp_path / "run", *settings(tmp_path))
    return tmp_path


def settings(root, *more):
    return [f"rec={root / 'faces'}", "num_classes=auto", "head_size=2", "batch_size=2", "num_epoch=1", *more]


def refused(root, capsys, *more):
    before = (root / "run" / "classes.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        train.main([TINY, f"output={root / 'run'}", *settings(root, "num_epoch=2", *more)])
    assert ended.value.code == 2
    assert (root / "run" / "classes.json").read_bytes() == before
    return capsys.readouterr().err


@pytest.mark.parametrize("resume", ["True", "auto"])
def test_people_in_another_order_are_named(trained, capsys, resume):
    (trained / "faces" / "a").rename(trained / "faces" / "z")
    error = refused(trained, capsys, f"resume={resume}")
    assert (
        "1 no longer there: a; 1 new: z; 2 with another class number: b (class 1, now 0), c (class 2, now 1)" in error
    )
    run_folder = trained / "run"
    assert f"resume=False output=NEW init_backbone={run_folder / 'model.pt'} init_centres={run_folder}" in error


def test_one_person_more_is_named(trained, capsys):
    shutil.copytree(trained / "faces" / "a", trained / "faces" / "d")
    error = refused(trained, capsys, "resume=True")
    assert "the people differ" in error
    assert "1 new: d; resume with" in error


def test_one_more_image_of_a_person_with_a_name_is_a_warning(trained, capsys):
    (trained / "faces" / "b" / "9.png").write_bytes(face(21))
    run(trained / "run", *settings(trained, "resume=True", "num_epoch=2"))
    out = capsys.readouterr().out
    assert (
        "the same people, other images or another order than before (3 people with 6 images then, 3 people with 7"
        in out
    )


@pytest.mark.parametrize("lost", ["classes.json", "names"])
def test_other_data_without_names_are_told_by_their_numbers(trained, capsys, monkeypatch, lost):
    """As records are, which name nobody."""
    if lost == "names":
        monkeypatch.setattr("training.data.RunData.class_list", lambda data: None)
    (trained / "run" / "classes.json").write_text(json.dumps(None))
    shutil.rmtree(trained / "run")
    run(trained / "run", *settings(trained))
    (trained / "run" / "classes.json").write_text("{")
    (trained / "faces" / "b" / "9.png").write_bytes(face(21))
    if lost == "names":
        error = refused(trained, capsys, "resume=True")
        assert "3 people with 6 images then, 3 people with 7 images now, and not as many for each person" in error
    else:
        run(trained / "run", *settings(trained, "resume=True", "num_epoch=2"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loss=adaface", "trained with loss 'cosface', this run has 'adaface': set loss back, or start a new run"),
        ("margin_list=(1,0,0.3)", "trained with loss 'cosface', this run has 'combined'"),
        ("network=mbf", "trained with network 'rtiny', this run has 'mbf'"),
    ],
)
def test_another_loss_or_network_is_refused(trained, capsys, setting, message):
    assert message in refused(trained, capsys, "resume=True", setting)


def test_another_margin_goes_on(trained):
    run(trained / "run", *settings(trained, "resume=True", "num_epoch=2", "margin=0.1"))


@pytest.mark.parametrize(
    ("noted", "power", "text"),
    [
        (True, "None", "fell with power 2, that of this run falls with power 1: lr_power=2 goes on as before"),
        (True, "3", "fell with power 2, that of this run falls with power 3: lr_power=2 goes on as before"),
        (True, "2", ""),
        (
            False,
            "None",
            "older versions had power 2 where lr_power was left open; that of this run falls with power 1",
        ),
        (False, "1", ""),
        (False, "2", ""),
    ],
)
def test_another_course_of_the_rate_is_a_warning(trained, capsys, monkeypatch, noted, power, text):
    check = Identity.check
    kept = lambda saved: {name: value for name, value in saved.items() if noted or name != "lr_power"}
    monkeypatch.setattr(Identity, "check", lambda self, path, saved: check(self, path, kept(saved)))
    capsys.readouterr()
    run(trained / "run", *settings(trained, "resume=True", "num_epoch=2", f"lr_power={power}"))
    printed = capsys.readouterr().out
    assert text in printed
    assert ("falls with power" in printed) == bool(text)


def test_changed_settings_are_named(trained, capsys):
    """Rates, decay and length may change on the way; those with warnings of their own are not named twice."""
    capsys.readouterr()
    changes = ["num_epoch=2", "lr=0.07", "lr_schedule=step", "lr_steps=[1]", "weight_decay=0.001", "precision=bf16"]
    run(trained / "run", *settings(trained, "resume=True", *changes))
    said = re.search(r"settings that differ from those of \S+step_\d+: (.*)", capsys.readouterr().out)[1]
    assert said == "lr 0.05, now 0.07; weight_decay 0.0005, now 0.001; num_epoch 1, now 2; lr_steps None, now (1.0,)"
    run(trained / "run", *settings(trained, "resume=True", *changes))
    assert "settings that differ" not in capsys.readouterr().out


def test_another_schedule_is_a_warning(trained, capsys):
    run(trained / "run", *settings(trained, "resume=True", "num_epoch=2", "lr_schedule=cosine"))
    text = "followed lr_schedule = 'poly', that of this run follows 'cosine': lr_schedule=poly goes on as before"
    printed = capsys.readouterr().out
    assert text in printed
    assert "falls with power" not in printed
