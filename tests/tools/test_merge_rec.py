import json
import re
import shlex

import numpy as np
import pytest

from data.faces import FaceRecords
from data.joined import JoinedSets
from data.records.layout import pack, unpack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_face_records
from face_files import make_image_folder, record
from made_faces import contents, encode
from mxnet_server import mxnet_commands
from tools import convert_set
from tools.merge_rec import main

A = [[encode(1), encode(2)], [encode(3)], [encode(4), encode(5), encode(6)]]
B = [[encode(11)], [encode(12), encode(13)]]


def run(*argv):
    return main([str(arg) for arg in argv])


@pytest.fixture
def sets(tmp_path):
    """Insightface's form, with names, and im2rec's with keys out of order and a label vector."""
    write_face_records(tmp_path / "a", A)
    (tmp_path / "a" / "classes.json").write_text(json.dumps(["ann", "bob", "cyd"]))
    (tmp_path / "b").mkdir()
    with RecordWriter(tmp_path / "b" / "train.rec") as writer:
        for key, label, image in ((8, 1, B[1][0]), (2, [0.0, 0.25], B[0][0]), (30, 1, B[1][1])):
            writer.write(key, pack(label, image, key))
    return tmp_path / "a", tmp_path / "b"


def faces_of(folder):
    """The images of each label."""
    faces = FaceRecords(folder)
    found = {}
    for i in range(len(faces)):
        encoded, label = faces.read(i)
        found.setdefault(label, []).append(bytes(encoded))
    return found


def test_labels_are_numbered_on(sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*sets, out) == 0
    assert faces_of(out) == dict(enumerate([*A, *B]))
    printed = capsys.readouterr().out
    assert re.search(r"\| +a \| +6 \| +0 to 2 \| +0 \|", printed)
    assert re.search(r"\| +b \| +3 \| +3 to 4 \| +0 \|", printed)
    assert "config.num_classes = 5\n" in printed
    assert "config.num_image = 9\n" in printed
    assert (out / "property").read_text() == "5,112,112\n"
    assert json.loads((out / "classes.json").read_text()) == ["a/ann", "a/bob", "a/cyd", None, None]


def test_the_form_is_insightfaces(sets, tmp_path):
    assert run(*sets, tmp_path / "out") == 0
    reader = RecordReader(tmp_path / "out" / "train.rec")
    headers = [unpack(record(reader, key))[0] for key in range(len(reader))]
    assert headers[0].label.tolist() == [10, 15]
    assert [header.id for header in headers] == list(range(15))
    assert [int(header.label[0]) for header in headers[1:10]] == [0, 0, 1, 2, 2, 2, 3, 4, 4]
    assert [header.label.tolist() for header in headers[10:]] == [[1, 3], [3, 4], [4, 7], [7, 8], [8, 10]]
    assert headers[7].label.tolist() == [3, 0.25]  # what else the vector holds stays


@pytest.mark.parametrize("person", [{"0": "bob", "1": 0}, {"a": 1, "b": [0]}])
def test_people_in_both_sets(sets, tmp_path, capsys, person):
    (tmp_path / "map.json").write_text(json.dumps([person]))
    assert run(*sets, tmp_path / "out", "--class-map", tmp_path / "map.json") == 0
    assert faces_of(tmp_path / "out") == {0: A[0], 1: [*A[1], *B[0]], 2: A[2], 3: B[1]}
    assert re.search(r"\| +b \| +3 \| +3 to 3 \| +1 \|", capsys.readouterr().out)
    reader = RecordReader(tmp_path / "out" / "train.rec")
    assert [unpack(record(reader, key))[0].label.tolist() for key in range(10, 14)] == [
        [1, 3],
        [3, 5],
        [5, 8],
        [8, 10],
    ]
    assert not reader.index.is_in_file_order  # keys follow the classes, the file the sets


def test_equals_training_on_the_list(sets, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps([{"0": 2, "1": 1}]))
    assert run(*sets, tmp_path / "out", "--class-map", tmp_path / "map.json") == 0
    joined = JoinedSets([FaceRecords(one) for one in sets], class_map=tmp_path / "map.json")
    merged = FaceRecords(tmp_path / "out")
    as_list = [(bytes(encoded), label) for encoded, label in joined.read_many(range(len(joined)))]
    as_one = [(bytes(encoded), label) for encoded, label in merged.read_many(range(len(merged)))]
    assert sorted(as_list) == sorted(as_one)


def test_a_class_without_images(tmp_path):
    (tmp_path / "gap").mkdir()
    with RecordWriter(tmp_path / "gap" / "train.rec") as writer:
        for key, label in enumerate([0, 2]):
            writer.write(key, pack(label, encode(label), key))
    assert run(tmp_path / "gap", tmp_path / "gap", tmp_path / "out") == 0
    assert sorted(faces_of(tmp_path / "out")) == [0, 2, 3, 5]
    assert FaceRecords(tmp_path / "out").check().problem == ""


def test_mistakes(sets, tmp_path, capsys):
    write_face_records(tmp_path / "small", [[encode(1, (64, 64))]], (64, 64))
    (tmp_path / "bad.json").write_text('[{"0": 7}]')
    out = tmp_path / "out"
    for argv, message in (
        ((sets[0], tmp_path / "none", out), "no such file"),
        ((*sets, sets[1]), "holds what is to be read"),
        ((*sets, tmp_path / "small"), "holds train.rec, train.idx, property already"),
        ((sets[0], tmp_path / "small", out), "the sets' images are of (height, width) [(112, 112), (64, 64)]"),
        ((*sets, out, "--class-map", tmp_path / "none.json"), "none.json: no such file"),
        ((*sets, out, "--class-map", tmp_path / "bad.json"), "entry 0: no class 7; the set has 0 to 2"),
    ):
        assert run(*argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("merge_rec: error: ")
        assert error.count("\n") == 1
    assert not out.exists()


def test_other_forms_get_the_command_that_merges_them(sets, tmp_path, capsys, monkeypatch):
    make_image_folder(tmp_path / "faces")
    (tmp_path / "shard.tar").write_bytes(b"")
    map_file, out = tmp_path / "map.json", tmp_path / "out"
    map_file.write_text('[{"0": 0, "1": "a"}]')
    for other in (tmp_path / "faces", tmp_path / "shard.tar", tmp_path / "x-{0..9}.tar", "s3:/bucket/x", tmp_path):
        assert run(sets[0], other, out, "--class-map", map_file) == 2
        error = capsys.readouterr().err
        assert f"{other} is no folder with train.rec and no .rec file" in error
        assert error.count("\n") == 1
    assert run(sets[0], tmp_path / "faces", out, "--class-map", map_file) == 2
    command = shlex.split(capsys.readouterr().err.partition("python -m tools.convert_set ")[2])
    assert convert_set.main(command) == 0
    assert FaceRecords(out).num_classes == 3 + 3 - 1


def test_an_error_in_the_middle_leaves_nothing(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tools.merge_rec._READ_AT_ONCE", 2)
    reader = RecordReader(sets[1] / "train.rec")
    real = RecordReader.read_many

    def break_later(self, positions):
        if self.rec_path == reader.rec_path:
            raise OSError("disk error")
        return real(self, positions)

    monkeypatch.setattr(RecordReader, "read_many", break_later)
    assert run(*sets, tmp_path / "out") == 2
    assert capsys.readouterr().err == "merge_rec: error: disk error\n"
    assert contents(tmp_path / "out") == {}


@pytest.mark.mxnet
def test_mxnet_reads_it(sets, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps([{"0": 1, "1": 0}]))
    assert run(*sets, tmp_path / "out", "--class-map", tmp_path / "map.json") == 0
    with mxnet_commands(tmp_path) as mxnet:
        (found,) = mxnet(("faces", (tmp_path / "out" / "train",)))
    expected = [*A[:1], [*A[1], *B[0]], A[2], B[1]]
    assert [(label, image) for _, label, image in found] == [
        (i, x) for i, images in enumerate(expected) for x in images
    ]


def test_real_faces(shared_data, tmp_path):
    assert run(shared_data / "lfw_train", shared_data / "lfw_small_im2rec", tmp_path / "out") == 0
    merged = FaceRecords(tmp_path / "out")
    assert (len(merged), merged.num_classes) == (9450 + 738, 4080)
    counts = np.bincount(merged.labels)
    assert counts.min() >= 1
    assert merged.check().problem == ""


def test_names_of_older_records_do_not_stay(sets, tmp_path):
    out = tmp_path / "out"
    assert run(*sets, out) == 0
    assert (out / "classes.json").exists()
    (sets[0] / "classes.json").unlink()
    assert run(*sets, out, "--overwrite") == 0
    assert not (out / "classes.json").exists()
