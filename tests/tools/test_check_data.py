"""Every kind of fault that the checker looks for, each in a small set that has it and one that has not."""

import json
import pickle
import struct

import cv2
import numpy as np
import pytest

from data.records.layout import pack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_face_records
from tools.check_data import main
from tools.parts.data_checks import find_problems
from tools.parts.data_scan import scan
from tools.parts.face_sources import open_source


def face(value, size=(112, 112), suffix=".png"):
    """An encoded image of one grey value, which tells images apart."""
    return cv2.imencode(suffix, np.full((*size, 3), value, np.uint8))[1].tobytes()


FACES = [[face(10), face(11)], [face(20)], [face(30), face(31), face(32)]]


def check(source, *options, out=None):
    """Exit status, figures and problems."""
    folder = out or source.parent / "report"
    status = main([str(source), "--out", str(folder), "--workers", "1", *options])
    if status == 2:
        return status, {}, []
    problems = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    return status, json.loads((folder / "report.json").read_text()), problems


def records(folder, faces=FACES):
    write_face_records(folder / "data", faces)
    return folder / "data"


def im2rec(folder, labelled):
    """A record file without header records; keys from 0 on."""
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key, (label, image) in enumerate(labelled):
            writer.write(key, pack(label, image, key))
    return folder


class TestSoundSets:
    def test_insightface_form(self, tmp_path, capsys):
        status, report, problems = check(records(tmp_path))
        assert (status, problems) == (0, [])
        assert (report["images"], report["identities"], report["num_classes"]) == (6, 3, 3)
        assert report["counts"] == [2, 1, 3]
        printed = capsys.readouterr().out
        assert "insightface's form" in printed
        assert f"config.rec = {str(tmp_path / 'data')!r}" in printed
        assert "config.num_classes = 3\n    config.num_image = 6" in printed
        picture = cv2.imread(str(tmp_path / "report" / "images_per_identity.png"))
        assert picture.shape[1] > 600
        assert picture.std() > 10
        assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
            "images_per_identity.png",
            "problems.jsonl",
            "report.json",
        ]

    def test_im2rec_form(self, tmp_path):
        status, report, problems = check(im2rec(tmp_path / "data", [(0, face(1)), (1, face(2)), ([1, 7], face(3))]))
        assert (status, problems) == (0, [])
        assert report["counts"] == [1, 2]

    def test_image_folder(self, tmp_path, capsys):
        for name, values in (("ann", (1, 2)), ("bob", (3,))):
            (tmp_path / "faces" / name).mkdir(parents=True)
            for value in values:
                (tmp_path / "faces" / name / f"{value}.jpg").write_bytes(face(value, suffix=".jpg"))
        status, report, problems = check(tmp_path / "faces")
        assert (status, problems) == (0, [])
        assert report["counts"] == [2, 1]
        assert f"config.rec = {str(tmp_path / 'faces')!r}" in capsys.readouterr().out

    def test_verification_set(self, tmp_path, capsys):
        bins = [face(value) for value in range(40)]
        (tmp_path / "pairs.bin").write_bytes(pickle.dumps((bins, [True, False] * 10)))
        status, report, problems = check(tmp_path / "pairs.bin")
        assert (status, problems) == (0, [])
        assert report["rows"]["pairs"] == "20: 10 of one person, 10 of two"
        assert f"config.val_targets = [{str(tmp_path / 'pairs.bin')!r}]" in capsys.readouterr().out

    def test_several_processes_see_the_same(self, tmp_path):
        faces = [[face(i % 250), face((i * 7) % 250 + 1, (100, 112))] for i in range(1200)]
        source = records(tmp_path, faces)
        one = check(source, out=tmp_path / "one")
        two = check(source, "--workers", "3", out=tmp_path / "two")
        assert one == two
        assert one[0] == 1

    def test_real_faces(self, shared_data, tmp_path, capsys):
        status = main([str(shared_data / "lfw_train"), "--out", str(tmp_path), "--workers", "2"])
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["identities"], report["images"], report["num_classes"]) == (4040, 9450, 4040)
        printed = capsys.readouterr().out
        assert "4,040" in printed
        assert "9,450" in printed
        kinds = {json.loads(line)["kind"] for line in (tmp_path / "problems.jsonl").read_text().splitlines()}
        assert status == bool(kinds)
        assert kinds <= {"duplicate across identities"}


def kinds_of(problems):
    return [problem["kind"] for problem in problems]


class TestImages:
    def test_undecodable_and_odd_sized_are_named(self, tmp_path):
        faces = [[face(1), b"no image"], [face(2, (90, 80)), face(3)]]
        source = records(tmp_path, faces)
        status, report, problems = check(source)
        assert status == 1
        assert kinds_of(problems) == ["undecodable", "odd size"]
        reader = RecordReader(source / "train.rec")
        for problem, key in zip(problems, (2, 3), strict=True):
            place = {"file": str(source / "train.rec"), "record": key, "offset": int(reader.offsets[key])}
            assert problem["places"] == [place]
        assert "90 x 80 pixels, expected 112 x 112" in problems[1]["detail"]
        assert report["rows"]["undecodable"] == "1"

    def test_images_of_no_bytes(self, tmp_path):
        (tmp_path / "faces" / "ann").mkdir(parents=True)
        (tmp_path / "faces" / "ann" / "1.png").write_bytes(face(1))
        (tmp_path / "faces" / "ann" / "2.png").touch()
        (tmp_path / "pairs.bin").write_bytes(pickle.dumps(([face(i) for i in range(39)] + [b""], [True, False] * 10)))
        for source, where in (
            (im2rec(tmp_path / "data", [(0, face(1)), (0, b""), (1, face(2))]), "train.rec, record 1 at byte"),
            (tmp_path / "faces", "2.png"),
            (tmp_path / "pairs.bin", "pairs.bin, record 39"),
        ):
            found, problems = find_problems(open_source(source), scan(open_source(source), 1))
            assert [problem.kind for problem in problems] == ["undecodable"]
            assert where in str(problems[0])
            assert "there is no image in it" in str(problems[0])
            assert found.rows["problems"] == "1"

    def test_another_size_may_be_the_right_one(self, tmp_path):
        source = im2rec(tmp_path / "data", [(0, face(1, (60, 50))), (0, face(2, (60, 50)))])
        assert check(source, "--image-size", "60", "50")[0] == 0
        assert check(source)[0] == 1

    def test_damaged_record(self, tmp_path):
        source = records(tmp_path)
        reader = RecordReader(source / "train.rec")
        content = bytearray((source / "train.rec").read_bytes())
        content[int(reader.offsets[4])] ^= 0xFF
        (source / "train.rec").write_bytes(content)
        status, report, problems = check(source)
        assert status == 1
        assert problems[0]["kind"] == "unreadable"
        assert problems[0]["places"][0]["record"] == 4
        assert "expected the magic" in problems[0]["detail"]
        assert report["images"] == 5

    def test_folder_with_a_damaged_and_an_empty_one(self, tmp_path):
        for name in ("ann", "bob", "cid"):
            (tmp_path / "faces" / name).mkdir(parents=True)
        (tmp_path / "faces" / "ann" / "1.png").write_bytes(face(1))
        (tmp_path / "faces" / "cid" / "2.png").write_bytes(face(2)[:50])
        (tmp_path / "faces" / "cid" / "list.txt").write_text("x")
        status, _, problems = check(tmp_path / "faces")
        assert status == 1
        assert kinds_of(problems) == ["undecodable", "label gap", "identity without images", "other files"]
        assert problems[0]["places"] == [
            {"file": str(tmp_path / "faces" / "cid" / "2.png"), "record": None, "offset": None}
        ]


class TestLabels:
    def test_gaps(self, tmp_path):
        status, report, problems = check(im2rec(tmp_path / "data", [(0, face(1)), (2, face(2)), (5, face(3))]))
        assert status == 1
        assert kinds_of(problems) == ["label gap"]
        assert "1, 3, 4 (3 labels)" in problems[0]["detail"]
        assert report["rows"]["labels"] == "0 to 5, 3 of them without an image"
        assert (report["identities"], report["num_classes"]) == (3, 6)

    @pytest.mark.parametrize(
        ("label", "message"), [(0.5, "0.5 is no whole"), (-1, "-1 is no"), (float("nan"), "nan")]
    )
    def test_no_identity(self, tmp_path, label, message):
        status, report, problems = check(im2rec(tmp_path / "data", [(0, face(1)), (label, face(2)), (0, face(3))]))
        assert status == 1
        assert kinds_of(problems) == ["label"]
        assert problems[0]["places"][0]["record"] == 1
        assert message in problems[0]["detail"]
        assert report["counts"] == [2]

    def test_above_num_classes(self, tmp_path, capsys):
        source = records(tmp_path)
        assert check(source, "--num-classes", "3")[0] == 0
        status, _, problems = check(source, "--num-classes", "2")
        assert status == 1
        assert kinds_of(problems) == ["label"] * 3
        assert "label 2 is not below num_classes = 2" in capsys.readouterr().out

    def test_labels_that_count_something_else(self, tmp_path):
        status, _, problems = check(im2rec(tmp_path / "data", [(0, face(1)), (9_000_000, face(2))]))
        assert status == 1
        assert kinds_of(problems) == ["label"]


class TestDuplicates:
    def test_across_identities_are_flagged(self, tmp_path, capsys):
        faces = [[face(1), face(2), face(1)], [face(3)], [face(2), face(1), face(4)]]
        status, report, problems = check(records(tmp_path, faces))
        assert status == 1
        assert kinds_of(problems) == ["duplicate across identities"] * 2
        by_count = sorted(problems, key=lambda problem: len(problem["places"]))
        assert [place["record"] for place in by_count[0]["places"]] == [2, 5]
        assert [place["record"] for place in by_count[1]["places"]] == [1, 3, 6]
        assert "the same image 3 times under 2 identities (0, 2)" in by_count[1]["detail"]
        assert (report["duplicates_within"], report["duplicates_across"]) == (1, 2)
        assert "record 2 at byte" in capsys.readouterr().out

    def test_within_an_identity_are_counted(self, tmp_path):
        status, report, _ = check(records(tmp_path, [[face(1)] * 4, [face(2)]]))
        assert (status, report["duplicates_within"]) == (0, 3)

    def test_pairs(self, tmp_path):
        bins = [face(value) for value in (1, 1, 2, 2, *range(3, 23))]
        (tmp_path / "pairs.bin").write_bytes(pickle.dumps((bins, [True, False] + [False] * 10)))
        status, _, problems = check(tmp_path / "pairs.bin")
        assert status == 1
        assert ["two persons" in problem["detail"] for problem in problems] == [False, True]
        assert [place["record"] for place in problems[1]["places"]] == [2, 3]

    def test_too_few_pairs(self, tmp_path):
        (tmp_path / "pairs.bin").write_bytes(pickle.dumps(([face(1), face(2)], [True])))
        assert "fewer than the 10 folds" in check(tmp_path / "pairs.bin")[2][0]["detail"]


class TestFilesThatDisagree:
    def lines(self, source):
        return (source / "train.idx").read_text().splitlines()

    def test_a_record_that_the_index_leaves_out(self, tmp_path):
        source = im2rec(tmp_path / "data", [(0, face(i)) for i in range(6)])
        lines = self.lines(source)
        (source / "train.idx").write_text("\n".join(lines[:3] + lines[4:]) + "\n")
        status, report, problems = check(source)
        assert status == 1
        assert kinds_of(problems) == ["index"]
        assert "in no line of the index" in problems[0]["detail"]
        assert problems[0]["places"][0]["record"] == 2
        assert report["images"] == 5

    def test_swapped_lines(self, tmp_path):
        source = records(tmp_path)
        rows = [line.split("\t") for line in self.lines(source)]
        rows[2][1], rows[3][1] = rows[3][1], rows[2][1]
        (source / "train.idx").write_text("\n".join("\t".join(row) for row in rows) + "\n")
        status, _, problems = check(source)
        assert status == 1
        assert [p["places"][0]["record"] for p in problems if p["kind"] == "index"] == [2, 3]

    def test_header_record(self, tmp_path):
        source = records(tmp_path)
        with RecordWriter(tmp_path / "other.rec") as writer:
            reader = RecordReader(source / "train.rec")
            for position, key in enumerate(reader.keys.tolist()):
                writer.write(key, pack([9, 12]) if key == 0 else reader.read_at(position))
        status, _, problems = check(tmp_path / "other.rec", out=tmp_path / "report")
        assert status == 1
        assert kinds_of(problems) == ["header"]
        assert "9 and 12 where images and identities end, found 7 and 10" in problems[0]["detail"]

    def test_identity_records(self, tmp_path):
        source = records(tmp_path)
        with RecordWriter(tmp_path / "other.rec") as writer:
            reader = RecordReader(source / "train.rec")
            for position, key in enumerate(reader.keys.tolist()):
                writer.write(key, pack([1, 4], id=7) if key == 7 else reader.read_at(position))
        status, report, problems = check(tmp_path / "other.rec", out=tmp_path / "report")
        assert (status, problems) == (0, [])
        assert report["rows"]["identity records"].startswith("3; ")
        assert (
            "images of several labels in one: 1 (the first is record key 7 with 1 and 4)"
            in (report["rows"]["identity records"])
        )

    @pytest.mark.parametrize("text", ["4,112,112", "3,112,96", "many"])
    def test_property(self, tmp_path, text):
        source = records(tmp_path)
        (source / "property").write_text(text + "\n")
        status, _, problems = check(source)
        assert status == 1
        assert kinds_of(problems) == ["property"]
        assert problems[0]["places"][0]["file"] == str(source / "property")

    def test_payloads_in_several_parts_are_no_gap(self, tmp_path):
        magic = struct.pack("<I", 0xCED7230A)
        image = face(5)
        image += bytes(-(24 + len(image)) % 4) + magic * 3 + b"end"  # PNG readers stop before it
        status, _, problems = check(im2rec(tmp_path / "data", [(0, image), (0, face(1)), (1, image + b"x")]))
        assert (status, problems) == (0, [])


class TestCannotBeRead:
    @pytest.mark.parametrize("name", ["nowhere", "empty", "text.txt", "bad.bin", "train.rec"])
    def test_one_line_and_status_2(self, tmp_path, capsys, name):
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.txt").write_text("hello")
        (tmp_path / "bad.bin").write_bytes(b"\x80\x02cos\nsystem\nU\x02ls\x85R.")
        (tmp_path / "train.rec").write_bytes(b"")
        assert main([str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("check_data: error: ")
        assert str((tmp_path / name).with_suffix("")) in printed.err
        assert len(printed.err.splitlines()) == 1
        assert printed.out == ""

    def test_truncated_index(self, tmp_path, capsys):
        source = records(tmp_path)
        (source / "train.idx").write_text("0\t0\n1")
        assert main([str(source)]) == 2
        assert "line 2" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--workers", "--num-classes"])
    def test_numbers_below_1(self, tmp_path, capsys, option):
        assert main([str(tmp_path), option, "0"]) == 2
        assert f"{option} must be at least 1, got 0" in capsys.readouterr().err

    def test_options_that_cannot_be(self, tmp_path, capsys):
        source = records(tmp_path / "set")
        (tmp_path / "file").write_text("x")
        assert main([str(source), "--image-size", "112", "-1"]) == 2
        assert "--image-size must be at least 1 1, got 112 -1" in capsys.readouterr().err
        assert main([str(source), "--out", str(tmp_path / "file")]) == 2
        assert "file is a file: --out takes the folder" in capsys.readouterr().err

    def test_no_config_lines_for_a_set_without_images(self, tmp_path, capsys):
        (tmp_path / "faces" / "ann").mkdir(parents=True)
        assert main([str(tmp_path / "faces")]) == 1
        printed = capsys.readouterr().out
        assert "there is nothing to train on" in printed
        assert "config." not in printed
