"""Image folders as people have them: deeper levels, other files, names of any bytes; nothing is left out silently."""

import json
import os
import pickle
import re

import cv2
import numpy as np
import pytest

import train
from data.faces import FaceRecords, ImageFolder
from dataset import get_dataloader, open_faces
from face_files import LABELS, VALUES, contents, face, make_image_folder
from tiny_runs import TINY, run
from tools import check_data, convert_set, find_duplicates, make_bin, merge_rec, pack_rec, show_data, shuffle_rec
from utils.folders import FolderNotes, identity_folders, image_names

STRANGE = {"gbk": "张三{}".encode("gbk"), "latin1": "José_{}".encode("latin-1")}
RUN = ["num_classes=auto", "num_image=None", "head_size=2", "batch_size=2"]


@pytest.fixture
def folder(tmp_path):
    return make_image_folder(tmp_path / "faces")


@pytest.fixture
def nested(folder):
    """Two of six images lie deeper, one of them two levels."""
    for name in ("a/1", "c/2"):
        deeper = folder / name[0] / "session" / ("x" if name[0] == "c" else "")
        deeper.mkdir(parents=True)
        (folder / f"{name}.png").rename(deeper / f"{name[2:]}.png")
    return folder


def test_deeper_images_are_their_first_folders(nested):
    faces = ImageFolder(nested)
    assert contents(faces) == (VALUES, LABELS)
    assert faces.classes == ["a", "b", "c"]
    assert image_names(nested / "c") == [b"0.png", b"1.png", b"session/x/2.png"]
    assert "2 of 6 images lie deeper than <identity>/<image> and are taken, the first " in faces.note
    assert faces.where(1) == str(nested / "a" / "session" / "1.png")


def test_every_way_to_use_a_folder_takes_them_and_says_so(nested, tmp_path, capsys):
    said = "2 of 6 images lie deeper than <identity>/<image> and are taken"
    assert pack_rec.main([str(nested), str(tmp_path / "packed"), "--workers", "1", "--encoding", ".png"]) == 0
    assert said in capsys.readouterr().out
    assert contents(FaceRecords(tmp_path / "packed")) == (VALUES, LABELS)
    assert make_bin.main([str(nested), str(tmp_path / "x.bin"), "--pairs", "4"]) == 0
    assert said in capsys.readouterr().out
    assert check_data.main([str(nested), "--workers", "1"]) == 0
    assert "| deeper than <identity>/<image> | 2 images, taken" in capsys.readouterr().out
    run(tmp_path / "run", f"rec={nested}", *RUN)
    log = (tmp_path / "run" / "training.log").read_text()
    assert log.count(said) == 1
    assert "data: 6 images of 3 identities" in log


def test_what_is_left_out_is_counted_by_reason_with_an_example(folder):
    for name in ("a/x.txt", "b/y.TXT", "b/no_ending", "c/z.heic", "a/.hidden.jpg", "loose.jpg", "list.txt"):
        (folder / name).write_bytes(b"")
    os.mkfifo(folder / "c" / "pipe.png")
    faces = ImageFolder(folder)
    assert contents(faces) == (VALUES, LABELS)
    assert "4 without an image's ending (.txt 2, no ending 1, .heic 1), such as " in faces.note
    assert f"1 hidden, such as {folder / 'a' / '.hidden.jpg'}" in faces.note
    assert f"1 loose in the folder itself, of nobody, such as {folder / 'loose.jpg'}" in faces.note
    assert f"1 no file but a pipe or a device, such as {folder / 'c' / 'pipe.png'}" in faces.note


def test_left_out_files_are_a_problem_to_check_data(folder, tmp_path, capsys):
    (folder / "a" / "x.heic").write_bytes(b"")
    assert check_data.main([str(folder), "--workers", "1", "--out", str(tmp_path / "report")]) == 1
    (problem,) = map(json.loads, (tmp_path / "report" / "problems.jsonl").read_text().splitlines())
    assert (problem["kind"], problem["detail"]) == (
        "other files",
        f"left out: 1 without an image's ending (.heic 1), such as {folder / 'a' / 'x.heic'}",
    )
    assert pack_rec.main([str(folder), str(tmp_path / "packed"), "--workers", "1"]) == 0
    assert "left out: 1 without an image's ending (.heic 1)" in capsys.readouterr().out


def test_a_person_who_is_a_broken_link_is_an_error_everywhere(folder, tmp_path, capsys):
    """Left out, all later people would silently get other labels while a disk is not mounted."""
    (folder / "a").rename(tmp_path / "disk")
    (folder / "a").symlink_to(tmp_path / "disk")
    assert contents(open_faces(folder)) == (VALUES, LABELS)
    (tmp_path / "disk").rename(tmp_path / "away")
    said = f"{folder / 'a'}: a link to {tmp_path / 'disk'}, where there is nothing: mount the disk"
    with pytest.raises(FileNotFoundError, match=re.escape(said)):
        open_faces(folder)
    assert pack_rec.main([str(folder), str(tmp_path / "packed"), "--workers", "1"]) == 2
    assert said in capsys.readouterr().err
    assert check_data.main([str(folder), "--workers", "1"]) == 2
    assert said in capsys.readouterr().err


def test_folders_of_the_system_are_no_people(folder, tmp_path, capsys):
    for name in ("@eaDir/0.png", "__MACOSX/a/._0.png", "lost+found/x", "b/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(face(1))
    said = f"left out: 4 folders of the system's own, such as {folder}/"
    faces = open_faces(folder)
    assert contents(faces) == (VALUES, LABELS)
    assert said in faces.note
    assert pack_rec.main([str(folder), str(tmp_path / "packed"), "--workers", "1", "--encoding", ".png"]) == 0
    assert said in capsys.readouterr().out
    assert contents(FaceRecords(tmp_path / "packed")) == (VALUES, LABELS)
    assert convert_set.main([str(folder), str(tmp_path / "shards")]) == 0
    assert said in capsys.readouterr().out
    (tmp_path / "shards" / "lost+found").mkdir()
    assert contents(open_faces(tmp_path / "shards")) == (VALUES, LABELS)


def test_links_in_circles_end(folder):
    (folder / "a" / "up").symlink_to("..")
    (folder / "b" / "self").symlink_to(".")
    (folder / "c" / "to_a").symlink_to("../a")
    notes = FolderNotes(folder)
    found = {name: image_names(folder / name, notes) for name in identity_folders(folder)}
    assert [len(names) for names in found.values()] == [2, 1, 5]
    assert notes.left_out["links to a folder that is read already"] == 3


@pytest.mark.parametrize("names", [["all"], ["train", "val"], ["Test"]])
def test_parts_of_a_set_are_no_people(tmp_path, names, capsys):
    for name in names:
        make_image_folder(tmp_path / "set" / name)
    with pytest.raises(ValueError, match=f"give the folder whose folders are the people, such as .*/set/{names[0]}"):
        ImageFolder(tmp_path / "set")
    assert pack_rec.main([str(tmp_path / "set"), str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "give the folder whose folders are the people" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.rec").exists()
    assert check_data.main([str(tmp_path / "set"), "--workers", "1"]) == 1


def test_people_with_sessions_only_are_people(tmp_path):
    for name in ("ann", "bob"):
        make_image_folder(tmp_path / "set" / name)
    assert ImageFolder(tmp_path / "set").labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".pgm", ".ppm", ".bmp", ".webp", ".jp2", ".jfif"])
def test_endings(tmp_path, suffix):
    grey = np.full((112, 112) if suffix == ".pgm" else (112, 112, 3), 77, np.uint8)
    kind = {".jfif": ".jpg"}.get(suffix, suffix.lower())
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / f"1{suffix}").write_bytes(cv2.imencode(kind, grey)[1].tobytes())
    faces = ImageFolder(tmp_path)
    assert abs(int(faces.load(0)[0].mean()) - 77) <= 1
    assert faces.note == ""


def test_a_file_that_opencv_cannot_read_is_named(folder):
    (folder / "a" / "2.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60))
    faces = ImageFolder(folder)
    with pytest.raises(ValueError, match=r"a/2\.jp2: not a decodable image: 72 bytes"):
        faces.load(2)


@pytest.fixture
def deep(folder):
    """Three images of a 12-bit camera, one transparent, two as usual."""
    for name in ("a/0", "a/1", "b/0"):
        levels = np.linspace(0, 4095, 112 * 112).astype(np.uint16).reshape(112, 112)
        (folder / f"{name}.png").write_bytes(cv2.imencode(".png", levels)[1].tobytes())
    clear = np.full((112, 112, 4), 90, np.uint8)
    (folder / "c" / "0.png").write_bytes(cv2.imencode(".png", clear)[1].tobytes())
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_what_decoding_changes_travels_with_the_batches(deep, workers):
    batches = list(get_dataloader(deep, 2, num_workers=workers))
    found = {}
    for kind, count, where in (changed for batch in batches for changed in batch.changed):
        found[kind[:12]] = found.get(kind[:12], 0) + count
        assert where.startswith(str(deep))
    assert found == {"more than 8 ": 3, "transparency": 1}


def test_what_decoding_changes_is_said_once(deep, tmp_path, capsys):
    run(tmp_path / "run", f"rec={deep}", "num_epoch=3", *RUN)
    log = (tmp_path / "run" / "training.log").read_text()
    assert log.count("data: images with more than 8 bits, scaled to 8 by the image's own range: ") == 1
    assert log.count("data: images with transparency, which is left out: 1 of ") == 1
    capsys.readouterr()
    assert check_data.main([str(deep), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "images with more than 8 bits, scaled to 8 by the image's own range | 3 " in printed
    assert "images with transparency, which is left out" in printed


@pytest.fixture(scope="module", params=STRANGE)
def strange(request, tmp_path_factory):
    """A folder whose people's names are no UTF-8, a run on it, and its records."""
    root = tmp_path_factory.mktemp(request.param)
    source = os.path.join(os.fsencode(root), STRANGE[request.param].replace(b"{}", b"set"))  # noqa: PTH118
    for number in range(4):
        person = os.path.join(source, STRANGE[request.param].replace(b"{}", b"%d" % number))  # noqa: PTH118
        try:
            os.makedirs(person)  # noqa: PTH103
        except OSError:
            pytest.skip("this system's names are UTF-8")
        for image in range(3):
            with open(os.path.join(person, b"%d.png" % image), "wb") as file:  # noqa: PTH118, PTH123
                file.write(face(40 * number + image))
    names = [os.fsdecode(STRANGE[request.param].replace(b"{}", b"%d" % number)) for number in range(4)]
    run(root / "run", f"rec={os.fsdecode(source)}", "num_epoch=1", *RUN)
    assert pack_rec.main([os.fsdecode(source), str(root / "packed"), "--workers", "1", "--encoding", ".png"]) == 0
    return root, os.fsdecode(source), names


def test_any_name_comes_back_from_classes_json(strange):
    root, source, names = strange
    for path in (root / "run" / "classes.json", root / "packed" / "classes.json"):
        assert path.read_bytes().isascii()
        assert json.loads(path.read_text(encoding="utf-8")) == names
    assert ImageFolder(source).class_names() == FaceRecords(root / "packed").class_names() == names
    assert pickle.loads(pickle.dumps(ImageFolder(source))).load(3)[1] == 1
    (root / "run" / "training.log").read_text(encoding="utf-8")
    assert json.loads((root / "run" / "config.json").read_text(encoding="utf-8"))["rec"] == source


def test_any_name_is_the_same_person_after_packing(strange, tmp_path, capsys):
    root, source, names = strange
    run(root / "run", f"rec={root / 'packed'}", "num_epoch=2", "resume=True", *RUN)
    run(tmp_path / "new", f"rec={root / 'packed'}", f"init_centres={root / 'run'}", *RUN)
    assert "4 of 4 people carried over" in (tmp_path / "new" / "training.log").read_text(encoding="utf-8")
    os.rename(os.path.join(source, names[0]), os.path.join(source, "zzz"))  # noqa: PTH104, PTH118
    try:
        with pytest.raises(SystemExit):
            train.main([TINY, f"rec={source}", f"output={root / 'run'}", "num_epoch=3", "resume=True", *RUN])
        assert "the people differ" in capsys.readouterr().err
    finally:
        os.rename(os.path.join(source, "zzz"), os.path.join(source, names[0]))  # noqa: PTH104, PTH118


def test_every_tool_takes_any_name(strange, tmp_path, capsysbinary):
    root, source, names = strange
    out = str(tmp_path / os.fsdecode(b"\xff"))
    assert show_data.main([source, f"{out}.png", "--identities", f"{names[0]},{names[2]}"]) == 0
    assert check_data.main([source, "--workers", "1", "--out", f"{out}_report"]) == 0
    assert make_bin.main([source, f"{out}.bin", "--pairs", "4"]) == 0
    assert merge_rec.main([str(root / "packed"), str(root / "packed"), f"{out}_merged"]) == 0
    assert json.loads((tmp_path / f"{out}_merged" / "classes.json").read_text()) == [f"packed/{n}" for n in 2 * names]
    assert shuffle_rec.main([str(root / "packed"), f"{out}_mixed"]) == 0
    assert FaceRecords(f"{out}_mixed").class_names() == names
    assert find_duplicates.main([str(root / "run"), "--threshold", "0.9", "--device", "cpu", "--out", out]) == 0
    printed = capsysbinary.readouterr()
    assert b"/\xff.png: 2 rows\n" in printed.out
    assert b"Traceback" not in printed.err
    assert b"error" not in printed.err


def test_unreadable_files_are_listed_by_the_bytes_of_their_names(strange, tmp_path):
    _, source, names = strange
    damaged = os.path.join(source, names[1], "damaged.png")  # noqa: PTH118
    with open(damaged, "wb") as file:  # noqa: PTH123
        file.write(b"none")
    try:
        assert pack_rec.main([source, str(tmp_path / "out"), "--workers", "1"]) == 0
    finally:
        os.remove(damaged)  # noqa: PTH107
    assert (tmp_path / "out" / "unreadable.txt").read_bytes().startswith(os.fsencode(damaged) + b"\t")
