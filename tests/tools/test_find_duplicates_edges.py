"""Small sets, odd names, damaged images, networks and folders that do not fit, maps that are in use."""

import csv
import json
import os
import pickle
import struct
import tempfile

import pytest

from data.records.writer import write_face_records
from made_faces import encode
from planted_runs import CLASSES, TWO, face, pairs_of, people, run, table, write_centres, write_run
from tools import find_duplicates
from tools.parts import duplicate_output

STRANGERS = [[face(220 + i, k) for k in range(2)] for i in range(20)]  # enough of a test set for a limit


def records_run(folder, classes, **settings):
    write_face_records(folder / "set", classes)
    return write_run(folder / "run", str(folder / "set"), sum(map(len, classes)), **settings)


@pytest.mark.parametrize("number", [1, 2, 3, 40])
def test_a_few_strangers_show_no_limit(number, tmp_path, network, capsys):
    """The most alike of them are no more one person than the least."""
    trained = records_run(tmp_path, [[face(100 + i, k) for k in range(5)] for i in range(number)])
    test = tmp_path / "test"
    write_face_records(test, STRANGERS)
    assert find_duplicates.main([str(trained), "--test", str(test)]) == 0
    assert pairs_of(trained / "duplicates") == set()
    assert json.loads((trained / "duplicates" / "class_map.json").read_text()) == []
    printed = capsys.readouterr().out
    assert "one person under several labels: too few classes for a limit: give --threshold\n" in printed
    if number < 40:
        assert table(trained / "duplicates" / "test_overlap.csv") == []
        assert f"{test}: too few classes for a limit: give --threshold\n" in printed
        assert "classes with enough images; too few for a limit: give --apart\n" in printed
        assert table(trained / "duplicates" / "classes_with_two_people.csv") == []


def test_too_much_is_expected_for_a_limit(trained, tmp_path, capsys):
    write_face_records(tmp_path / "test", [*STRANGERS, [face(7, 250)]])
    argv = [str(trained), "--test", str(tmp_path / "test"), "--expected", "20"]
    assert find_duplicates.main(argv) == 0
    assert pairs_of(trained / "duplicates") == set()
    lower = "pairs): lower it, or give --threshold"
    assert f"too few classes for a limit at this --expected (1,770 {lower}" in capsys.readouterr().out
    assert find_duplicates.main([*argv, "--threshold", "0.7"]) == 2  # another map is there
    printed = capsys.readouterr().out
    assert "2 people in class_map.new.json" in printed
    assert "1 of 21 people are in the training set" in printed


def test_names_that_are_no_text(tmp_path, network, capsysbinary):
    """Folders may have any name but "/": the tables and what is printed have the bytes, the sheets one plain line."""
    odd = os.fsdecode(b"j\xf6rg")
    names = {3: odd, 5: "two\nlines", 40: "p40"}
    folder = tmp_path / odd
    for i, images in enumerate(people()):
        own = folder / names.get(i, f"p{i:02}")
        try:
            own.mkdir(parents=True)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        for k, image in enumerate(images):
            (own / f"{k}.png").write_bytes(image)
    trained = write_run(tmp_path / "run", str(folder), sum(map(len, people())))
    test = tmp_path / os.fsdecode(b"test\xff")
    for i, images in enumerate([*STRANGERS, [face(3, 250)]]):
        (test / os.fsdecode(b"%d\xfe" % i)).mkdir(parents=True)
        for k, image in enumerate(images):
            (test / os.fsdecode(b"%d\xfe" % i) / f"{k}.png").write_bytes(image)
    out = tmp_path / os.fsdecode(b"out\xfd")
    assert run(trained, "--test", test, "--out", out) == 0
    with (out / "duplicates.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {odd, "two\nlines"} <= {row[name] for row in rows for name in ("name_1", "name_2")}
    found = (out / "test_overlap.csv").read_bytes()
    assert os.fsencode(test) in found
    assert b"j\xf6rg" in found
    assert (out / "test_overlap.png").is_file()
    joined = json.loads((out / "class_map.json").read_text())
    assert {odd, "p40"} in [set(entry["0"]) for entry in joined]
    printed = capsysbinary.readouterr().out
    assert os.fsencode(test) + b": 1 of 21 people are in the training set" in printed
    assert b"written: " + os.fsencode(out) + b"\n" in printed
    assert b"merge_rec" not in printed  # it takes records only


def test_names_in_a_sheet_are_one_line_of_letters():
    assert duplicate_output._drawn("two\nlines\tand a tab") == "two lines and a tab"
    assert duplicate_output._drawn("j\udcf6rg \u00e9") == "j?rg ?"
    assert len(duplicate_output._drawn("x" * 99)) == 24


def test_damaged_images_are_on_no_side_of_a_class_of_two_people(tmp_path, network, capsys):
    classes = people()
    classes[TWO][1:1] = [b"no image", b"none either"]
    skip = records_run(tmp_path, classes, on_bad_sample="skip")
    before = network.seen
    assert run(skip) == 0
    assert network.seen - before == 2 * sum(map(len, classes))  # nothing is embedded a second time
    (double,) = table(skip / "duplicates" / "classes_with_two_people.csv")
    first, second = double["first_person"].split("; "), double["second_person"].split("; ")
    assert (len(first), len(second)) == (4, 4)
    start = 1 + sum(map(len, classes[:TWO]))
    damaged = {f"record key {start + 1}", f"record key {start + 2}"}
    assert not [place for place in first + second if any(key + " " in place for key in damaged)]
    assert "2 damaged images are left out" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_any_more_is_no_red_square(trained, monkeypatch, capsys):
    def unplugged(*_):
        raise OSError("the disk is gone")

    pairs = duplicate_output.Output.pairs

    def late(self, found):
        monkeypatch.setattr(self.faces, "load", unplugged)
        return pairs(self, found)

    monkeypatch.setattr(duplicate_output.Output, "pairs", late)
    assert run(trained) == 2
    assert "the disk is gone" in capsys.readouterr().err
    assert not (trained / "duplicates" / "class_map.json").exists()


def test_pictures_are_of_images_that_were_looked_at(tmp_path, network):
    """One that was not may be damaged, which is an error where the run does not skip such images."""
    classes = people()
    classes[3] = [face(3, k) for k in range(9)]
    classes[3][3] = b"no image"
    stop = records_run(tmp_path, classes)
    assert run(stop, "--images", "4") == 2
    assert run(stop, "--images", "3", "--threshold", "0.7") == 0
    assert (3, 40) in pairs_of(stop / "duplicates")


def test_a_network_that_takes_another_size(tmp_path, network, capsys):
    network.image_size = 128
    for way in ("stop", "skip"):
        (tmp_path / way).mkdir()
        trained = records_run(tmp_path / way, people(), on_bad_sample=way)
        assert run(trained) == 2
        message = "the network takes images of (height, width) (128, 128), but the run's faces are (112, 112): give a"
        assert message in capsys.readouterr().err
        assert not (trained / "duplicates").exists()


def test_nothing_to_look_at(tmp_path, network, capsys):
    trained = records_run(tmp_path, [[b"no image"] * 3] * 4, on_bad_sample="skip")
    write_centres(trained, 4, left_out=range(4))
    earlier = trained / "duplicates" / "duplicates.csv"
    earlier.parent.mkdir()
    earlier.write_text("of an earlier search")
    assert run(trained) == 2
    assert "all images looked at, 12, are damaged; the first: " in capsys.readouterr().err
    assert run(trained, "--near-centres") == 2
    assert "no centre has been updated yet: search without --near-centres" in capsys.readouterr().err
    assert [path.name for path in earlier.parent.iterdir()] == [earlier.name]
    assert earlier.read_text() == "of an earlier search"


def test_another_map_is_not_replaced(trained, capsys):
    assert run(trained) == 0
    out = trained / "duplicates"
    found = json.loads((out / "class_map.json").read_text())
    (out / "class_map.json").write_text(json.dumps(found))  # the same in another form
    assert run(trained) == 0
    corrected = json.dumps(found[1:])
    (out / "class_map.json").write_text(corrected)
    capsys.readouterr()
    assert run(trained) == 2
    captured = capsys.readouterr()
    assert "class_map.json is another map, which stays; class_map.new.json beside it" in captured.err
    assert "config.class_map" not in captured.out
    assert (out / "class_map.json").read_text() == corrected
    assert json.loads((out / "class_map.new.json").read_text()) == found
    (out / "class_map.json").write_text("no JSON")
    assert run(trained) == 2
    assert run(trained, "--overwrite") == 0
    assert json.loads((out / "class_map.json").read_text()) == found
    assert not (out / "class_map.new.json").exists()


def test_damaged_images_of_test_sets_are_left_out(trained, tmp_path, capsys):
    people_of_test = [*STRANGERS, [face(7, 249), b"no image", face(7, 250)], [b"none"]]
    write_face_records(tmp_path / "test", people_of_test)
    assert run(trained, "--test", tmp_path / "test") == 0
    (overlap,) = table(trained / "duplicates" / "test_overlap.csv")
    assert (overlap["person"], overlap["images_compared"], overlap["class"]) == ("label 20", "2", "7")
    captured = capsys.readouterr()
    assert "1 of 21 people are in the training set" in captured.out
    assert "    2 damaged images are left out, and 1 people who have no others; the first: " in captured.out
    assert "on_bad_sample" not in captured.out + captured.err
    small = encode(7, (96, 96))
    (tmp_path / "t.bin").write_bytes(pickle.dumps(([face(7, 250), small, small, b"no"], [True, False])))
    assert run(trained, "--test", tmp_path / "t.bin", "--threshold", "0.7") == 0
    (overlap,) = table(trained / "duplicates" / "test_overlap.csv")
    assert (overlap["person"], overlap["images_compared"], overlap["class"]) == ("image 0", "1", "7")
    (tmp_path / "t.bin").write_bytes(pickle.dumps(([small, small], [True])))
    assert run(trained, "--test", tmp_path / "t.bin") == 2
    assert "none of its images can be used; the first: " in capsys.readouterr().err


def test_damaged_labels_of_test_sets_are_left_out(trained, tmp_path, capsys):
    write_face_records(tmp_path / "test", [*STRANGERS, [face(7, 249), face(7, 250)]])
    data = bytearray((tmp_path / "test" / "train.rec").read_bytes())
    at = data.rindex(face(7, 249)) - 20  # float32 label of the record's header, after its flag
    data[at : at + 4] = struct.pack("<f", 0.5)
    (tmp_path / "test" / "train.rec").write_bytes(data)
    assert run(trained, "--test", tmp_path / "test") == 0
    (overlap,) = table(trained / "duplicates" / "test_overlap.csv")
    assert (overlap["images_compared"], overlap["class"]) == ("1", "7")
    assert "1 damaged images are left out, and 0 people" in capsys.readouterr().out


def test_an_empty_verification_set(trained, tmp_path, capsys):
    (tmp_path / "t.bin").write_bytes(pickle.dumps(([], [])))
    assert run(trained, "--test", tmp_path / "t.bin") == 2
    assert "t.bin: there is no pair in it: make the set again" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert run(trained, "--out", tmp_path / "file" / "out") == 2
    assert f"error: {tmp_path / 'file' / 'out'}: cannot write there" in capsys.readouterr().err

    def refuse(*_, **names):
        raise PermissionError(13, "Permission denied", f"{names['dir']}/.find_duplicates_x")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert run(trained, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'out'}: cannot write there (Permission denied): give another folder" in error


def test_the_command_that_is_printed_can_be_pasted(tmp_path, network, capsys):
    folder = tmp_path / "my faces; rm"
    folder.mkdir()
    assert run(records_run(folder, people())) == 0
    printed = capsys.readouterr().out
    assert f"    python -m tools.merge_rec '{folder / 'set'}' OUT --class-map '{folder}/run/duplicates/" in printed
    assert f"config.num_classes = {CLASSES - 3}\n" in printed
