"""Identity records in every form: the images are used as their own headers label them, and a note says the rest."""

import json
from pathlib import Path

import numpy as np
import pytest

import train
from data.faces import FaceRecords
from data.records.identities import KeyRange, compare
from data.records.layout import pack
from face_files import face, write
from tiny_runs import TINY
from tools import check_data, merge_rec, show_data, shuffle_rec

LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5]


def insightface(labels, ranges=None, header=None):
    """Records of images with these labels; by default an identity record for each run of equal ones."""
    end = len(labels) + 1
    if ranges is None:
        starts = [i + 1 for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
        ranges = list(zip(starts, [*starts[1:], end], strict=True))
    images = [(key, pack(label, face(10 * label + key % 7), key)) for key, label in enumerate(labels, 1)]
    identities = [(end + i, pack(one, b"", end + i)) for i, one in enumerate(ranges)]
    return [(0, header or pack([end, end + len(ranges)])), *images, *identities]


def moved(labels, position):
    """The same with one image at the end of the list."""
    return [*labels[:position], *labels[position + 1 :], labels[position]]


UNSORTED = {
    "stray": moved(LABELS, 3),
    "split": [*LABELS[:11], *LABELS[14:], *LABELS[11:14]],
    "interleaved": sorted(range(6), key=str) * 3,
}


@pytest.mark.parametrize("kind", UNSORTED)
@pytest.mark.parametrize("how", ["stop", "skip"])
def test_a_list_that_is_not_sorted(tmp_path, kind, how):
    labels = UNSORTED[kind]
    faces = FaceRecords(write(tmp_path, insightface(labels)), on_bad_sample=how)
    assert faces.labels.tolist() == labels
    assert [faces.load(i)[1] for i in range(len(labels))] == labels
    assert len(faces.find_unusable(faces.num_classes)) == 0
    assert "labels that have more than one: " in faces.note
    assert faces.warning == ""


def test_a_label_without_images_is_nothing_to_say(tmp_path):
    labels = [label + (label > 2) for label in LABELS]
    faces = FaceRecords(write(tmp_path, insightface(labels)))
    assert faces.labels.tolist() == labels
    assert (faces.num_classes, faces.note) == (7, "")


FORMS = {
    "one number each": ([3.0, 5.0], "no range of keys: 2 (the first is record key 17)"),
    "three numbers": ([[1, 4, 6]], "no range of keys: 1 (the first is record key 17)"),
    "none": ([], ""),
    "empty ranges": ([[1, 1], [0, 0]], ""),
    "overlapping": ([[1, 4], [3, 6], [6, 9]], "overlapping with another one: 1 (the first is record key 18 with 3 "),
    "past the file": ([[1, 4], [14, 900]], "keys in it that are no images: 1 (the first is record key 18 with 14 "),
    "backwards": ([[4, 1]], "no range of keys: 1"),
    "others' images": ([[1, 6], [6, 9]], "images of several labels in one: 1 (the first is record key 17 with 1 "),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_identity_records_of_other_forms(tmp_path, form):
    ranges, note = FORMS[form]
    faces = FaceRecords(write(tmp_path, insightface(LABELS, ranges)))
    assert faces.is_insightface
    assert faces.labels.tolist() == LABELS
    assert note in faces.note
    assert bool(note) == bool(faces.note)


@pytest.mark.parametrize("header", [pack(17.0), pack([17, 23, 5]), pack([1, 2])])
def test_header_records_of_other_forms(tmp_path, header):
    faces = FaceRecords(write(tmp_path, insightface(LABELS, header=header)))
    assert (faces.is_insightface, faces.labels.tolist()) == (True, LABELS)


def test_an_index_without_the_header_record(tmp_path):
    faces = FaceRecords(write(tmp_path, insightface(LABELS)[1:]))
    assert (faces.is_insightface, faces.labels.tolist(), faces.note) == (False, LABELS, "")


def test_a_first_record_without_an_image_is_a_header_though_no_identity_records_follow(tmp_path):
    faces = FaceRecords(write(tmp_path, [(i, pack(label, face(i) if i else b"")) for i, label in enumerate(LABELS)]))
    assert (faces.is_insightface, faces.labels.tolist()) == (True, LABELS[1:])
    assert "record key 0 at byte 0: it has no image and is taken for insightface's header record" in faces.note


def test_two_files_joined_by_cat_are_refused_with_the_way_to_join_them(tmp_path):
    records = insightface(LABELS)
    both = [*records, *((key + len(records), payload) for key, payload in records)]
    with pytest.raises(ValueError, match=r"stands among the images: .*joined with cat.* tools\.merge_rec"):
        FaceRecords(write(tmp_path, both)).labels  # noqa: B018


def test_an_unknown_label_contradicts_nobody():
    keys, labels = np.arange(1, 7), np.array([0, -1, 0, 1, 1, -1])
    assert compare(Path("x"), keys, labels, [KeyRange(7, 1, 4), KeyRange(8, 4, 7)]) == ""
    assert "several labels in one: 1" in compare(Path("x"), keys, labels, [KeyRange(7, 1, 5), KeyRange(8, 5, 7)])


def test_keys_that_float32_rounds_are_not_compared():
    first = 1 << 24
    assert compare(Path("x"), np.arange(first, first + 4), np.arange(4), [KeyRange(1, first, first + 4)]) == ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Losses of a run on a sorted list, and on the same images with identity records that fit nothing."""
    root, losses = tmp_path_factory.mktemp("trained"), {}
    for name, ranges in (("fitting", None), ("unfit", [[3, 9], [2, 400], [5, 1]])):
        (root / name).mkdir()
        write(root / name, insightface(LABELS, ranges))
        for how in ("stop", "skip"):
            out = root / f"{name}_{how}"
            options = ["num_classes=auto", "head_size=2", "batch_size=4", f"on_bad_sample={how}", "num_image=None"]
            train.main([TINY, f"rec={root / name}", f"output={out}", "save_all_states=False", *options])
            lines = (out / "metrics.jsonl").read_text().splitlines()
            losses[name, how] = [json.loads(line)["loss"] for line in lines if "loss" in line]
    return root, losses


def test_training_takes_no_notice_but_says_it_once(trained):
    root, losses = trained
    assert len(losses["fitting", "stop"]) == 4
    assert all(found == losses["fitting", "stop"] for found in losses.values())
    assert (root / "unfit_skip" / "training.log").read_text().count("identity records do not fit them") == 1
    assert "identity records" not in (root / "fitting_stop" / "training.log").read_text()


def test_tools_take_them_and_say_it(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", insightface(UNSORTED["split"]))
    source = str(tmp_path / "set")
    assert merge_rec.main([source, source, str(tmp_path / "merged")]) == 0
    assert capsys.readouterr().out.count("identity records do not fit them") == 2
    assert FaceRecords(tmp_path / "merged").labels.tolist() == sorted(LABELS) + [6 + label for label in LABELS]
    assert shuffle_rec.main([source, str(tmp_path / "mixed")]) == 0
    assert "identity records do not fit them" in capsys.readouterr().out
    assert sorted(FaceRecords(tmp_path / "mixed").labels.tolist()) == LABELS
    assert show_data.main([source, str(tmp_path / "sheet.png"), "--identities", "4,"]) == 0
    check_data.main([source, "--workers", "1", "--out", str(tmp_path / "report")])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["images"], report["identities"]) == (16, 6)
    assert "labels that have more than one: 1 (the first is label 4)" in report["rows"]["identity records"]
    kinds = {json.loads(line)["kind"] for line in (tmp_path / "report" / "problems.jsonl").read_text().splitlines()}
    assert "header" not in kinds
