"""Lists of others name files outside their folder: refused, with a way out; links of image folders are followed."""

import json
import os
import re

import numpy as np
import pytest

import eval_ijbc
from data.faces import ImageFolder
from eval.ijb.lists import read_ijb
from eval.pairs.__main__ import main as eval_pairs
from eval.pairs.bin_file import load_bin
from face_files import face, make_image_folder
from ijb_tree import arguments, make_model, make_tree
from made_faces import encode
from tiny_runs import run
from tools.check_data import main as check_data
from tools.make_bin import main as make_bin
from tools.pack_rec import main as pack_rec
from training.data import examine
from utils.folders import FolderNotes, identity_folders, image_names

HOW = ("absolute", "up", "link", "linked folder")


@pytest.fixture
def folder(tmp_path):
    """A folder with an image, and another image outside it."""
    for place in ("given", "private"):
        (tmp_path / place / "ann").mkdir(parents=True)
        (tmp_path / place / "ann" / "ann_0001.jpg").write_bytes(encode(60))
    return tmp_path / "given"


def entry_of(folder, how):
    """A list's entry that leads to the private image."""
    private = folder.parent / "private" / "ann"
    (folder / "link.jpg").symlink_to(private / "ann_0001.jpg")
    (folder / "linked").symlink_to(private)
    entries = {"absolute": private / "ann_0001.jpg", "up": "../private/ann/ann_0001.jpg", "link": "link.jpg"}
    return entries.get(how, "linked/ann_0001.jpg")


def said(capsys):
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("how", HOW)
def test_csv_of_pairs(folder, capsys, how):
    entry = entry_of(folder, how)
    listed, out = folder / "a.csv", folder.parent / "a.bin"
    listed.write_text(f"ann/ann_0001.jpg,ann/ann_0001.jpg,1\nann/ann_0001.jpg,{entry},0\n")
    assert make_bin([str(listed), str(out)]) == 2
    text = said(capsys)
    assert f"{listed}, line 2: '{entry}' leads outside the folder {folder}; " in text
    assert "--allow-outside" in text
    assert not out.exists()
    assert make_bin([str(listed), str(out), "--allow-outside"]) == 0
    assert load_bin(out).encoded == [encode(60)] * 4


@pytest.mark.parametrize("how", HOW)
def test_csv_in_evaluation(folder, capsys, how):
    entry = entry_of(folder, how)
    (folder / "a.csv").write_text(f"ann/ann_0001.jpg,{entry},1\n" * 2 + f"{entry},ann/ann_0001.jpg,0\n" * 2)
    model = make_model(folder.parent / "run" / "model.pt")
    command = ["--model", str(model), "--data", str(folder), "--device", "cpu", "--folds", "2"]
    assert eval_pairs(command) == 2
    assert f"a.csv, line 1: '{entry}' leads outside the folder {folder}; " in said(capsys)
    assert eval_pairs([*command, "--allow-outside"]) == 0


@pytest.mark.parametrize("name", ["../private/ann", "linked", "link"])
def test_lfw_list(folder, capsys, name):
    """Image i of a person is <name>/<name>_000i.jpg."""
    private = folder.parent / "private"
    (private / "private").mkdir()
    (private / "private" / "ann_0001.jpg").write_bytes(encode(60))
    (private / "ann" / "linked_0001.jpg").write_bytes(encode(60))
    (folder / "linked").symlink_to(private / "ann")
    (folder / "link").mkdir()
    (folder / "link" / "link_0001.jpg").symlink_to(private / "ann" / "ann_0001.jpg")
    listed, out = folder.parent / "pairs.txt", folder.parent / "a.bin"
    listed.write_text(f"1 1\nann 1 1\nann 1 {name} 1\n")
    assert make_bin([str(listed), str(out), "--root", str(folder)]) == 2
    text = said(capsys)
    assert f"pairs.txt, line 3: '{name}/{name}_0001" in text
    assert f" leads outside the folder {folder}; " in text
    assert "--root" in text
    assert make_bin([str(listed), str(out), "--root", str(folder), "--allow-outside"]) == 0
    assert len(load_bin(out).encoded) == 4


@pytest.mark.parametrize("form", ["{0}\t{1}", "{0} {1}", "{2}\t{1}\t{0}", "1\t{0}\t{1}"])
@pytest.mark.parametrize("how", HOW)
def test_list_to_pack(folder, capsys, how, form):
    entry = entry_of(folder, how)
    listed, out = folder.parent / "a.lst", folder.parent / "packed"
    listed.write_text(form.format("ann/ann_0001.jpg", 0, 7) + "\n" + form.format(entry, 1, 8) + "\n")
    command = [str(folder), str(out), "--list", str(listed), "--workers", "1"]
    assert pack_rec(command) == 2
    text = said(capsys)
    assert f"a.lst, line 2: '{entry}' leads outside the folder {folder}; " in text
    assert "SRC" in text
    assert not out.exists()
    assert pack_rec([*command, "--allow-outside"]) == 0
    assert json.loads((out / "classes.json").read_text()) == ["0", "1"]


def test_absolute_paths_inside_are_taken(folder):
    listed = folder.parent / "a.lst"
    listed.write_text(f"{folder / 'ann' / 'ann_0001.jpg'}\t0\n")
    assert pack_rec([str(folder), str(folder.parent / "out"), "--list", str(listed), "--workers", "1"]) == 0
    assert pack_rec([str(folder.parent), str(folder.parent / "out2"), "--list", str(listed), "--workers", "1"]) == 0


@pytest.mark.parametrize("how", HOW)
def test_ijb_lists(tmp_path, capsys, how):
    root = make_tree(tmp_path / "ijb")
    (tmp_path / "private").mkdir()
    (root / "loose_crop" / "3.jpg").rename(tmp_path / "private" / "a.jpg")
    (root / "loose_crop" / "link.jpg").symlink_to(tmp_path / "private" / "a.jpg")
    (root / "loose_crop" / "linked").symlink_to(tmp_path / "private")
    entry = {"absolute": tmp_path / "private" / "a.jpg", "up": "../../private/a.jpg", "link": "link.jpg"}
    entry = entry.get(how, "linked/a.jpg")
    for what in ("face_tid_mid", "name_5pts_score"):
        listed = root / "meta" / f"ijbc_{what}.txt"
        listed.write_text(listed.read_text().replace("\n3.jpg ", f"\n{entry} "))
    command = arguments(make_model(tmp_path / "run" / "model.pt"), root, tmp_path)
    assert eval_ijbc.main(command) == 2
    text = said(capsys)
    assert f"ijbc_face_tid_mid.txt, line 4: '{entry}' leads outside the folder {root / 'loose_crop'}; " in text
    assert not (tmp_path / "out" / "IJBC" / "cache").exists()
    assert len(read_ijb(root, allow_outside=True).stamps) == 30
    assert eval_ijbc.main([*command, "--allow-outside"]) == 0


@pytest.fixture
def linked(tmp_path):
    """An image folder: one identity is a link out of it, one image of another, one link stays inside."""
    root = make_image_folder(tmp_path / "faces")
    (tmp_path / "elsewhere" / "d").mkdir(parents=True)
    (tmp_path / "elsewhere" / "d" / "0.png").write_bytes(face(40))
    (root / "d").symlink_to(tmp_path / "elsewhere" / "d")
    (root / "b" / "9.png").symlink_to(tmp_path / "elsewhere" / "d" / "0.png")
    (root / "b" / "8.png").symlink_to("../a/0.png")
    return root


def test_links_of_an_image_folder_are_followed_and_counted(linked, capsys):
    faces = ImageFolder(linked)
    assert len(faces) == 9
    assert int(faces.load(len(faces) - 1)[0][0, 0, 0]) == 40
    assert f"links that lead out of the folder are followed: 2, the first {linked / 'd'}" in faces.note
    (note,) = examine(faces, None)[1].warnings
    assert note == faces.note
    check_data([str(linked), "--workers", "1"])
    assert re.search(r"links out of the folder +\| 2, followed: \S+/d ", capsys.readouterr().out)
    assert pack_rec([str(linked), str(linked.parent / "packed"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.count("are followed: 2, the first") == 1


def test_a_folder_without_links_says_nothing(tmp_path, capsys):
    root = make_image_folder(tmp_path / "faces")
    assert ImageFolder(root).note == ""
    check_data([str(root), "--workers", "1"])
    assert re.search(r"links out of the folder +\| none ", capsys.readouterr().out)


def test_counting_ends_early_where_it_would_take_long(linked):
    links = FolderNotes(linked, most=1)
    for name in identity_folders(linked, links):
        image_names(linked / name, links)
    assert "followed: 1 or more, the first" in links.note()


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_goes_on_in_a_foreign_folder_without_writing_through_its_links(tmp_path, exists):
    run(tmp_path / "out", "num_epoch=1")
    private = tmp_path / "private"
    private.mkdir()
    for name in ("training.log", "metrics.jsonl", "config.json", "model.pt", "classes.json"):
        (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / "out" / name).symlink_to(private / name)
        if exists:
            (private / name).write_text("mine")
    run(tmp_path / "out", "num_epoch=2", "resume=True")
    assert {path.read_text() for path in private.iterdir()} == ({"mine"} if exists else set())
    assert (tmp_path / "out" / "model.pt").stat().st_size > 1000


def test_pipes_among_images_are_left_out(tmp_path):
    """Reading one would wait for ever."""
    root = make_image_folder(tmp_path / "faces")
    os.mkfifo(root / "a" / "7.jpg")
    (root / "a" / "8.jpg").symlink_to("7.jpg")
    (root / "a" / "9.jpg").symlink_to("/dev/zero")
    assert image_names(root / "a") == [b"0.png", b"1.png"]
    assert np.array_equal(ImageFolder(root).labels, [0, 0, 1, 2, 2, 2])


def test_links_to_nowhere_are_errors_and_not_left_out(tmp_path):
    root = make_image_folder(tmp_path / "faces")
    (root / "a" / "7.png").symlink_to("missing.png")
    faces = ImageFolder(root)
    assert len(faces) == 7
    with pytest.raises(FileNotFoundError, match=r"7\.png"):
        faces.load(2)


def test_pipes_in_a_list_are_not_read(tmp_path, capsys):
    root = make_image_folder(tmp_path / "faces")
    os.mkfifo(root / "a" / "7.jpg")
    (tmp_path / "a.lst").write_text("a/0.png\t0\na/7.jpg\t0\n")
    command = [str(root), str(tmp_path / "out"), "--list", str(tmp_path / "a.lst"), "--workers", "1"]
    assert pack_rec(command) == 0
    assert "7.jpg: a pipe or a device, which may never end: expected a file" in capsys.readouterr().out
