"""The benchmark of find_duplicates: what it plants, how it counts, and that it runs."""

import json

import pytest

from benchmarks import bench_duplicates
from benchmarks.planted_faces import plant
from data.faces import FaceRecords
from made_faces import contents, encode
from paths import ROOT
from tools import find_duplicates
from utils.atomic import write_json
from utils.config import get_config


def images_of(folder):
    found = {}
    faces = FaceRecords(folder)
    for i in range(len(faces)):
        encoded, label = faces.read(i)
        found.setdefault(label, set()).add(bytes(encoded))
    return found


def test_what_is_planted_is_there(tmp_path):
    people = [[encode(i, suffix=".png") + bytes([k]) for k in range(2 + i % 4)] for i in range(60)]
    owner = {image: i for i, images in enumerate(people) for image in images}
    truth = plant(people, tmp_path)
    train, test = images_of(tmp_path / "train"), images_of(tmp_path / "test")
    who = {label: {owner[image] for image in images} for label, images in train.items()}
    assert (len(truth.splits), len(truth.merges), len(truth.leaks), truth.test_people) == (10, 5, 5, 10)
    assert {tuple(sorted(pair)) for pair in truth.splits} == truth.splits
    for a, b in truth.splits:
        assert who[a] == who[b]
        assert min(len(train[a]), len(train[b])) >= 2
    assert {label for label, persons in who.items() if len(persons) == 2} == truth.merges
    assert len(test) == truth.test_people
    trained = set().union(*who.values())
    for person, images in test.items():
        (number,) = {owner[image] for image in images}
        assert (number in trained) == (person in truth.leaks)
        if person in truth.leaks:
            assert who[truth.leaks[person]] == {number}
            assert not images & train[truth.leaks[person]]


def test_too_few_people(tmp_path):
    with pytest.raises(ValueError, match="3 people have 4 images or more; planting mistakes takes 12"):
        plant([[b"x"] * 5] * 3, tmp_path)


@pytest.fixture
def pretended(monkeypatch):
    """Neither trains nor searches; the trainings that were asked for."""
    trained = []

    def train(folder, config, epochs):
        trained.append((config, epochs))
        (folder / "run").mkdir(exist_ok=True)
        (folder / "run" / "model.pt").touch()
        settings = get_config(config, bench_duplicates._settings(folder, epochs)).as_dict()
        write_json(folder / "run" / "config.json", settings | {"num_classes": 12, "num_image": 40})

    monkeypatch.setattr(bench_duplicates, "train", train)
    monkeypatch.setattr(bench_duplicates, "made_up_people", lambda count, images: [[b"%d" % count] * images] * 12)
    monkeypatch.setattr(bench_duplicates, "score", lambda *_: [{}])
    monkeypatch.setattr(bench_duplicates, "_table", lambda _: "")
    monkeypatch.setattr(find_duplicates, "main", lambda _: 0)
    return trained


def test_a_run_is_used_again_only_for_what_it_was_trained_on(tmp_path, pretended, capsys):
    folder, other = ["--folder", str(tmp_path / "kept")], tmp_path / "other.py"
    other.write_text((ROOT / "configs" / "demo.py").read_text() + "config.lr = 0.04\n")
    (tmp_path / "kept").mkdir()
    assert bench_duplicates.main([*folder, "--epochs", "3"]) == 0
    assert bench_duplicates.main([*folder, "--epochs", "3"]) == 0
    assert pretended == [("configs/demo", 3)]
    before = contents(tmp_path / "kept")
    for argv, message in (
        (["--epochs", "4"], "num_epoch is 3, not 4"),
        (["--epochs", "3", "--people", "77"], "other faces"),
        (["--epochs", "3", "--config", "configs/lfw_mini"], "head_size is 2, not 12"),
        (["--epochs", "3", "--config", str(other)], "lr is 0.05, not 0.04"),
    ):
        assert bench_duplicates.main([*folder, *argv]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "give another --folder, or remove that run to train anew" in error
    assert contents(tmp_path / "kept") == before
    (tmp_path / "kept" / "trained_on.json").unlink()
    assert bench_duplicates.main([*folder, "--epochs", "3"]) == 2
    assert "the training did not finish" in capsys.readouterr().err


@pytest.mark.slow
def test_writes_a_record_for_each_search_and_mistake(tmp_path, capsys):
    out = tmp_path / "raw" / "duplicates.jsonl"
    assert bench_duplicates.main(["--quick", "--folder", str(tmp_path), "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["search"] for record in records[::3]] == list(bench_duplicates.SEARCHES)
    for record in records:
        assert record["planted"] in (4, 8)
        assert 0 <= record["right"] <= min(record["planted"], record["found"])
    assert bench_duplicates.main(["--quick", "--folder", str(tmp_path), "--epochs", "1"]) == 0  # without training
    assert bench_duplicates.main(["--quick", "--folder", str(tmp_path), "--people", "23"]) == 2
    capsys.readouterr()
    assert bench_duplicates.main(["--read", str(out)]) == 0
    assert capsys.readouterr().out.count("made up") == len(records)


def test_mistakes(tmp_path, capsys):
    assert bench_duplicates.main(["--rec", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
