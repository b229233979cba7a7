"""Mistakes planted into a set, and a network that knows everybody: each is found, and nothing else."""

import json
import pickle
import re
import shlex

import cv2
import numpy as np

from data.faces import FaceRecords
from data.joined import JoinedSets
from data.records.writer import write_face_records
from dataset import get_dataloader
from planted_runs import CLASSES, TWO, face, pairs_of, people, run, table, write_centres, write_run
from tiny_runs import TINY
from tools import find_duplicates, merge_rec
from tools.parts import duplicate_search


def test_planted_mistakes_are_found_and_nothing_else(trained, tmp_path, capsys):
    write_centres(trained)
    write_face_records(
        tmp_path / "test", [[face(7, 250)], *([face(220 + i, k) for k in range(2)] for i in range(19))]
    )
    assert run(trained, "--test", tmp_path / "test") == 0
    out = trained / "duplicates"
    assert pairs_of(out) == {(3, 40), (5, 20), (5, 50), (20, 50)}
    rows = table(out / "duplicates.csv")
    assert all(float(row["centre_cosine"]) > 0.999 for row in rows)
    groups = {(row["class_1"], row["group"], row["in_class_map"]) for row in rows}
    assert groups == {("5", "0", "yes"), ("20", "0", "yes"), ("3", "1", "yes")}
    assert json.loads((out / "class_map.json").read_text()) == [{"0": [5, 20, 50]}, {"0": [3, 40]}]
    (double,) = table(out / "classes_with_two_people.csv")
    assert (double["class"], double["images"]) == (str(TWO), "8")
    sides = [double[side].count("train.rec") for side in ("first_person", "second_person")]
    assert sides == [4, 4]
    (overlap,) = table(out / "test_overlap.csv")
    assert (overlap["person"], overlap["class"], overlap["images"]) == ("label 0", "7", "4")
    sheet = cv2.imread(str(out / "duplicates.png"))
    assert sheet.shape[0] == 4 * 116 + 4
    assert (out / "classes_with_two_people.png").is_file()
    assert (out / "test_overlap.png").is_file()
    printed = capsys.readouterr().out
    assert "4 pairs of classes" in printed
    assert "2 people in class_map.json, the largest of 3 classes" in printed
    assert "1 of 20 people are in the training set" in printed
    merge = ["python", "-m", "tools.merge_rec", str(tmp_path / "set"), "OUT", "--class-map"]
    assert f"    {shlex.join([*merge, str(out / 'class_map.json')])}\n" in printed
    assert f"config.num_classes = {CLASSES - 3}\n" in printed
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_map_of_one_set_is_taken_by_training_and_by_merge_rec(trained, tmp_path):
    assert run(trained) == 0
    people_file = trained / "duplicates" / "class_map.json"
    loader = get_dataloader(tmp_path / "set", 4, num_workers=0, class_map=people_file)
    assert loader.dataset.num_classes == CLASSES - 3
    assert merge_rec.main([str(tmp_path / "set"), str(tmp_path / "out"), "--class-map", str(people_file)]) == 0
    merged, before = FaceRecords(tmp_path / "out"), FaceRecords(tmp_path / "set")
    assert merged.num_classes == CLASSES - 3
    assert len(merged) == len(before)
    images = {}
    for i in range(len(merged)):
        encoded, label = merged.read(i)
        images.setdefault(label, set()).add(bytes(encoded))
    planted = people()
    assert set(planted[5] + planted[20] + planted[50]) in images.values()
    assert merged.labels.tolist().count(3) == len(planted[3]) + len(planted[40])
    assert run(write_run(tmp_path / "again", str(tmp_path / "out"), len(merged))) == 0
    assert pairs_of(tmp_path / "again" / "duplicates") == set()
    assert json.loads((tmp_path / "again" / "duplicates" / "class_map.json").read_text()) == []


def test_several_sets_and_a_map_of_earlier_findings(trained, tmp_path, network):
    """Class 3 of the second set is class 3 of the first, as the run's map says; the map that comes out says all."""
    folder = tmp_path / "more"
    extra = {f"p{i:02}": [face(person, 240 + k) for k in range(3)] for i, person in enumerate((100, 101, 7, 3))}
    for name, images in extra.items():
        (folder / name).mkdir(parents=True)
        for k, image in enumerate(images):
            (folder / name / f"{k}.png").write_bytes(image)
    known = tmp_path / "known.json"
    known.write_text(json.dumps([{"set": 3, "more": "p03"}, {"set": 30, "more": "p01"}]))
    images = sum(map(len, people())) + 12
    both = write_run(tmp_path / "both", [str(tmp_path / "set"), str(folder)], images, class_map=str(known))
    assert run(both) == 0
    entries = json.loads((both / "duplicates" / "class_map.json").read_text())
    assert sorted(map(str, entries)) == sorted(
        map(
            str,
            [
                {"0": [3, 40], "1": ["p03"]},
                {"0": [5, 20, 50]},
                {"0": [30], "1": ["p01"]},
                {"0": [7], "1": ["p02"]},
            ],
        )
    )
    (row,) = [row for row in table(both / "duplicates" / "duplicates.csv") if row["class_1"] == "7"]
    assert row["name_2"] == "more/p02"
    loader = get_dataloader(
        [tmp_path / "set", folder], 4, num_workers=0, class_map=both / "duplicates" / "class_map.json"
    )
    assert loader.dataset.num_classes == CLASSES + 4 - 3 - 3


def test_near_centres_reads_few_images_and_leaves_out_untouched_centres(trained, network, capsys, monkeypatch):
    monkeypatch.setattr(duplicate_search, "SAMPLE", 20)
    write_centres(trained, left_out=[40])
    assert run(trained, "--near-centres", "--threshold", "0.7") == 0  # so few of the sample show no limit
    assert pairs_of(trained / "duplicates") == {(5, 20), (5, 50), (20, 50)}
    assert "1 centres were never updated and are left out" in capsys.readouterr().out
    few = network.seen
    assert run(trained, "--overwrite") == 0
    assert pairs_of(trained / "duplicates") >= {(3, 40)}
    (row,) = [row for row in table(trained / "duplicates" / "duplicates.csv") if row["class_1"] == "3"]
    assert row["centre_cosine"] == ""
    assert network.seen - few > 2 * few


def test_a_class_of_two_people_is_joined_with_nobody(tmp_path, network):
    classes = [*people(), [face(TWO, 100 + k) for k in range(5)]]
    write_face_records(tmp_path / "set", classes)
    trained = write_run(tmp_path / "run", str(tmp_path / "set"), sum(map(len, classes)))
    assert run(trained, "--threshold", "0.5") == 0
    (row,) = [row for row in table(trained / "duplicates" / "duplicates.csv") if row["class_1"] == str(TWO)]
    assert (row["class_2"], row["group"], row["in_class_map"]) == (str(CLASSES), "", "no: two people")
    joined = json.loads((trained / "duplicates" / "class_map.json").read_text())
    assert not [entry for entry in joined if TWO in entry["0"]]


def test_limits_by_hand(trained):
    assert run(trained, "--threshold", "1", "--apart", "-1") == 0
    out = trained / "duplicates"
    assert (pairs_of(out), table(out / "classes_with_two_people.csv")) == (set(), [])
    assert not (out / "duplicates.png").exists()
    assert run(trained, "--threshold", "0.7", "--apart", "0.3", "--images", "8", "--overwrite") == 0
    assert pairs_of(out) >= {(3, 40)}
    assert [row["class"] for row in table(out / "classes_with_two_people.csv")] == [str(TWO)]


def test_a_verification_set(trained, tmp_path):
    """Pairs of one person link images; the same file twice is one image."""
    a, b, c = face(8, 201), face(8, 202), face(8, 203)
    x, y = face(221, 1), face(222, 2)
    (tmp_path / "t.bin").write_bytes(pickle.dumps(([a, b, b, c, x, y], [True, True, False])))
    assert run(trained, "--test", tmp_path / "t.bin", "--threshold", "0.7") == 0
    (overlap,) = table(trained / "duplicates" / "test_overlap.csv")
    assert (overlap["person"], overlap["images_compared"], overlap["class"]) == ("image 0", "3", "8")


def test_damaged_images_are_skipped_where_the_run_skips_them(tmp_path, network, capsys):
    classes = people()
    classes[0][0] = b"no image"
    write_face_records(tmp_path / "set", classes)
    images = sum(map(len, classes))
    assert run(write_run(tmp_path / "stop", str(tmp_path / "set"), images)) == 2
    assert "record key 1" in capsys.readouterr().err
    assert run(write_run(tmp_path / "skip", str(tmp_path / "set"), images, on_bad_sample="skip")) == 0
    assert "1 damaged images are left out" in capsys.readouterr().out
    assert pairs_of(tmp_path / "skip" / "duplicates") == {(3, 40), (5, 20), (5, 50), (20, 50)}


def test_data_that_moved(trained, tmp_path, capsys):
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert run(trained) == 2
    assert "give their place with --rec" in capsys.readouterr().err
    assert run(trained, "--rec", tmp_path / "elsewhere") == 0


def test_a_limit_that_nobody_can_reach_is_said_of_each_set(trained, tmp_path, capsys):
    write_face_records(tmp_path / "test", [[face(7, 250)], *([face(i, 251)] for i in range(200, 220))])
    assert run(trained, "--expected", "1e-300", "--images", "3", "--test", tmp_path / "test") == 0
    assert pairs_of(trained / "duplicates") == set()
    printed = capsys.readouterr().out
    limit = r"cannot tell, because the limit would be [1-9]\.\d{3} and a cosine is at most 1: this network makes too "
    assert re.search(f"^one person under several labels: {limit}many strangers alike", printed, re.M)
    assert re.search(f"^{re.escape(str(tmp_path / 'test'))}: {limit}many strangers alike", printed, re.M)
    assert "with a cosine of at least" not in printed
    assert re.search(r"^looked at \d+ images of 60 of 60 classes, at most 3 of each \(--images\)$", printed, re.M)


def test_another_network(trained, tmp_path, network, monkeypatch):
    asked = []
    monkeypatch.setattr(find_duplicates, "load_embedder", lambda path, device: asked.append(path) or network)
    assert run(trained, "--model", tmp_path / "better.onnx") == 0
    assert asked == [tmp_path / "better.onnx"]


def test_mistakes(trained, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    noise = write_run(tmp_path / "noise", "synthetic", 9)
    fewer = write_run(tmp_path / "fewer", str(tmp_path / "set"), 9)
    small = write_run(tmp_path / "small", str(tmp_path / "set"), sum(map(len, people())))
    write_centres(small, 12)
    (tmp_path / "file").touch()
    for argv, message in (
        ([tmp_path / "none"], "no such folder; expected one that a run of train.py has left"),
        ([tmp_path / "empty"], "config.json: no such file"),
        ([noise], "trained on noise"),
        ([fewer], "but the run was trained on 9"),
        ([small], "centres of 12 classes, but the data have 60"),
        ([trained, "--near-centres", "--model", "m.pt"], "--near-centres needs the network that the centres were"),
        ([trained, "--near-centres"], "Without --near-centres none is needed"),
        ([trained, "--rec", "a", "b"], "--rec gives 2 sets, the run has 1"),
        ([trained, "--test", tmp_path / "none.bin"], "none.bin"),
        ([trained, "--test", tmp_path / "empty"], "neither train.rec"),
        ([trained, "--out", tmp_path / "file"], "is a file: --out takes the folder"),
        ([trained, "--expected", "0"], "--expected must be above 0, got 0"),
        ([trained, "--images", "0"], "--images must be at least 1, got 0"),
        ([trained, "--threshold", "70"], "--threshold must be in [-1, 1], got 70"),
    ):
        assert run(*argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("find_duplicates: error: ")


def test_a_real_run(tmp_path, capsys):
    """From train.py's own folder, with its network and its centres: the same photographs under two labels."""
    import train

    rng = np.random.default_rng(0)
    classes = [
        [cv2.imencode(".png", rng.integers(0, 255, (112, 112, 3), np.uint8))[1].tobytes()] * 2 for _ in range(9)
    ]
    write_face_records(tmp_path / "set", [*classes, classes[4]])
    train.main([TINY, f"output={tmp_path / 'run'}", f"rec={tmp_path / 'set'}", "num_classes=auto", "num_image=None"])
    assert run(tmp_path / "run", "--threshold", "0.9999", "--device", "cpu") == 0
    assert (4, 9) in pairs_of(tmp_path / "run" / "duplicates")
    assert "20 images of 10 of 10 classes" in capsys.readouterr().out
    joined = JoinedSets([FaceRecords(tmp_path / "set")], None, tmp_path / "run" / "duplicates" / "class_map.json")
    assert joined.numbering[0][4] == joined.numbering[0][9]
