"""From photographs to a folder that can be trained on; the detector is a stand-in, landmarks of a file are real."""

import csv
import io
import os
import shutil

import cv2
import numpy as np
import pytest

from embedder import detector
from embedder.align import TEMPLATE, align_face
from made_faces import contents
from made_photos import LANDMARKS, photo_of
from pair_stub import png
from tools import align_faces, check_data
from tools.parts import aligned_folder, photo_faces
from utils.decode import decode_rgb

SMALL = TEMPLATE * 0.5 + (150, 120)  # 18 pixels between the eyes


class StandIn:
    """A detector that finds a face in what is not dark, and a smaller one beside it where the corner is white."""

    def detect(self, image):
        if image.mean() < 10:
            return detector.no_faces()
        n = 2 if image[0, 0].min() == 255 else 1
        points = np.stack([LANDMARKS, LANDMARKS * 0.8])[:n]
        low, high = points.min(axis=1), points.max(axis=1)
        return detector.Faces(np.concatenate([low, high - low], axis=1), points, np.full(n, 0.9))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    for module in (align_faces, detector):  # of the command, and of its workers, here in this process
        monkeypatch.setattr(module, "open_detector", lambda path: StandIn())
    (tmp_path / "yunet.onnx").write_bytes(b"graph")
    return tmp_path / "yunet.onnx"


def photo(seed=3, corner=0):
    image = photo_of(LANDMARKS, seed=seed)
    image[0, 0] = corner
    return image


def write(root, files):
    for name, data in files.items():
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else png(data))
    return root


def row(path, landmarks, *more):
    return ",".join([path, *(f"{x:.6f}" for x in np.ravel(landmarks)), *more])


def run(photos, out, *options):
    return align_faces.main([str(photos), str(out), "--workers", "1", *map(str, options)])


def left_out(out):
    text = (out / "left_out.csv").read_text(encoding="utf-8", errors="surrogateescape")
    return {line["path"]: line["reason"] for line in csv.DictReader(io.StringIO(text, newline=""))}


def faces_below(out):
    return sorted(name for name in contents(out) if name != "left_out.csv" and not name.startswith("."))


def fails(capsys, *arguments):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


STRANGE = os.fsdecode(b"p\xd5\xe6/\xd5.jpg")


@pytest.fixture
def photos(tmp_path):
    """Three people, in every state."""
    return write(
        tmp_path / "photos",
        {
            "ann/a.jpg": photo(1),
            "ann/a.png": photo(2),
            "ann/trip/b c.JPEG": photo(3),
            "ann/notes.txt": b"no image",
            STRANGE: photo(4),
            "bob/broken.jpg": b"no image",
            "bob/small.jpg": photo(6),
            "bob/nobody.jpg": photo(7),
            "bob/unlisted.jpg": photo(8),
        },
    )


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "found.csv"
    lines = [
        "path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5",
        row("ann/a.jpg", LANDMARKS),
        row("ann/a.png", LANDMARKS),
        row("ann/a.png", SMALL),  # too small to count as a second face
        row("ann/trip/b c.JPEG", LANDMARKS),
        row("ann/trip/b c.JPEG", LANDMARKS * 0.9),
        row(STRANGE, LANDMARKS),
        row("bob/broken.jpg", LANDMARKS),
        row("bob/small.jpg", SMALL),
        "bob/nobody.jpg,0,0,0,0,0,0,0,0,0,0",
        row("eve/gone.jpg", LANDMARKS),
    ]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    return path


NAMES = ["ann/a.jpg.png", "ann/a.png.png", "ann/trip/b c.png", os.fsdecode(b"p\xd5\xe6/\xd5.png")]
LEFT_OUT = {
    "bob/broken.jpg": photo_faces.DAMAGED,
    "bob/nobody.jpg": photo_faces.NO_FACE,
    "bob/small.jpg": photo_faces.SMALL,
    "bob/unlisted.jpg": "no line in the file of landmarks",
}


def test_landmarks_of_another_detector_align_a_tree_under_its_own_names(photos, table, tmp_path, capfd):
    before, out = contents(photos), tmp_path / "out dir"
    assert run(photos, out, "--landmarks", table, "--workers", 2) == 0
    assert faces_below(out) == NAMES
    assert left_out(out) == LEFT_OUT
    for seed, name in enumerate(NAMES, 1):
        found = decode_rgb((out / name).read_bytes())
        np.testing.assert_array_equal(found, align_face(photo(seed), np.round(LANDMARKS, 6)))
    printed = capfd.readouterr().out
    assert f"{out}: 4 faces of 2 people; 8 photographs in " in printed
    assert "1 photographs show several faces: the main one was taken" in printed
    assert f"4 photographs are left out, all in {out}/left_out.csv:" in printed
    assert f"    1 {photo_faces.SMALL}, such as bob/small.jpg" in printed
    assert "1 people have no face left: bob\n" in printed
    assert "1 of its 8 paths are no photograph in PHOTOS" in printed
    assert "1 without an image's ending (.txt 1)" in printed
    assert printed.endswith(f"\nNext:\n\n    python -m tools.check_data '{out}'\n")
    assert contents(photos) == before
    assert check_data.main([str(out), "--workers", "1"]) == 0


def test_a_detector_takes_the_main_face_and_may_leave_groups_out(tmp_path, stand_in, capsys):
    photos = write(
        tmp_path / "photos", {"ann/1.jpg": photo(1), "ann/2.jpg": photo(2, 255), "bob/1.jpg": photo(3) * 0}
    )
    assert run(photos, tmp_path / "all", "--detector", stand_in) == 0
    assert faces_below(tmp_path / "all") == ["ann/1.png", "ann/2.png"]
    found = decode_rgb((tmp_path / "all" / "ann" / "2.png").read_bytes())
    np.testing.assert_array_equal(found, align_face(photo(2, 255), LANDMARKS))
    assert left_out(tmp_path / "all") == {"bob/1.jpg": photo_faces.NO_FACE}
    assert run(photos, tmp_path / "one", "--detector", stand_in, "--skip-several", "--format", "jpg") == 0
    assert faces_below(tmp_path / "one") == ["ann/1.jpg"]
    assert left_out(tmp_path / "one") == {"ann/2.jpg": photo_faces.SEVERAL, "bob/1.jpg": photo_faces.NO_FACE}
    jpeg = decode_rgb((tmp_path / "one" / "ann" / "1.jpg").read_bytes()).astype(int)
    assert 0 < np.abs(jpeg - align_face(photo(1), LANDMARKS)).mean() < 6
    capsys.readouterr()
    few = fails(capsys, photos, tmp_path / "none", "--detector", stand_in, "--min-eyes", 60)
    assert f"none of 3 photographs gave a face; the first, ann/1.jpg: {photo_faces.SMALL} (49.3 pixels" in few
    assert run(photos, tmp_path / "none", "--detector", stand_in) == 0  # nothing was there to go on with


def test_a_folder_of_photographs_stays_flat(tmp_path, stand_in, capsys):
    photos = write(tmp_path / "photos", {"1.jpg": photo(1), "2.jpg": photo(2)})
    assert run(photos, tmp_path / "out", "--detector", stand_in) == 0
    assert faces_below(tmp_path / "out") == ["1.png", "2.png"]
    printed = capsys.readouterr().out
    assert "2 faces; 2 photographs" in printed
    assert f"python inference.py --model work_dirs/NAME {tmp_path}/out --out faces.npz" in printed


def test_faces_from_the_side_and_photographs_of_nobody_are_told(tmp_path, capsys):
    photos = write(tmp_path / "photos", {"loose.jpg": photo(1), **{f"ann/{i}.jpg": photo(i) for i in range(3)}})
    side = (LANDMARKS - LANDMARKS.mean(0)) * (0.2, 1) + LANDMARKS.mean(0)
    lines = [row("loose.jpg", LANDMARKS), *(row(f"ann/{i}.jpg", LANDMARKS) for i in range(2)), row("ann/2.jpg", side)]
    (tmp_path / "found.csv").write_text("\n".join(lines))
    assert run(photos, tmp_path / "out", "--landmarks", tmp_path / "found.csv") == 0
    assert faces_below(tmp_path / "out") == ["ann/0.png", "ann/1.png", "ann/2.png", "loose.png"]
    printed = capsys.readouterr().out
    assert "4 faces of 1 people; 4 photographs" in printed
    assert "1 faces are seen from the side, or their landmarks are poor: look at them" in printed
    assert "1 photographs lie in no person's folder" in printed
    assert "no face left" not in printed


def test_an_interrupted_run_goes_on_and_equals_one_that_was_not(photos, table, tmp_path, capsys, monkeypatch):
    assert run(photos, tmp_path / "whole", "--landmarks", table) == 0
    out, files, write_face = tmp_path / "out", [], aligned_folder.open_atomic

    def interrupted(path, *rest):
        files.append(path)
        if len(files) == 3:
            raise KeyboardInterrupt
        return write_face(path, *rest)

    monkeypatch.setattr(aligned_folder, "open_atomic", interrupted)
    assert run(photos, out, "--landmarks", table) == 130
    assert capsys.readouterr().err == "align_faces: interrupted; the same line again goes on from there\n"
    assert sorted(contents(out)) == [aligned_folder.SETTINGS, *NAMES[:2]]
    files += [None] * 3
    assert run(photos, out, "--landmarks", table) == 0
    assert "4 faces of 2 people, 2 of them from before; 6 photographs" in capsys.readouterr().out
    whole, again = contents(tmp_path / "whole"), contents(out)
    assert again == whole
    assert "begun with another --min-eyes: give the same" in fails(
        capsys, photos, out, "--landmarks", table, "--min-eyes", 30
    )
    assert contents(out) == whole


def test_half_a_file_never_gets_a_faces_name(photos, table, tmp_path, capsys, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aligned_folder.open_atomic.__wrapped__.__globals__["os"], "fsync", full)
    assert "No space left" in fails(capsys, photos, tmp_path / "out", "--landmarks", table)
    assert faces_below(tmp_path / "out") == []
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_folders_that_lie_one_in_the_other_and_foreign_ones_are_refused(photos, table, tmp_path, capsys):
    source = ("--landmarks", table)
    before = contents(photos)
    for out in (photos, photos / "out", photos / ".." / "photos" / "out", tmp_path):
        assert "lie one in the other" in fails(capsys, photos, out, *source)
    (tmp_path / "link").symlink_to(photos)
    assert "lie one in the other" in fails(capsys, photos, tmp_path / "link" / "out", *source)
    write(tmp_path / "foreign", {"a.txt": b"mine"})
    assert "did not write: choose an empty folder" in fails(capsys, photos, tmp_path / "foreign", *source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".align_faces.json").write_text("{}")
    (tmp_path / "out" / "ann").symlink_to(photos / "ann")
    assert "was begun with another PHOTOS" in fails(capsys, photos, tmp_path / "out", *source)
    (tmp_path / "out" / "ann").unlink()
    assert run(photos, tmp_path / "out", *source) == 0
    shutil.rmtree(tmp_path / "out" / "ann")
    (tmp_path / "out" / "ann").symlink_to(photos / "ann")
    capsys.readouterr()
    assert "leads to where the photographs are" in fails(capsys, photos, tmp_path / "out", *source)
    assert contents(photos) == before


def test_what_cannot_be_done_is_one_line(photos, table, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no file" in (said := fails(capsys, photos, out, "--detector", tmp_path / "none.onnx"))
    assert "face_detection_yunet" in said
    assert "no such folder" in fails(capsys, tmp_path / "nowhere", out, "--landmarks", table)
    assert "no photograph in it" in fails(capsys, write(tmp_path / "x", {"a.txt": b""}), out, "--landmarks", table)
    assert "--workers must be" in fails(capsys, photos, out, "--landmarks", table, "--workers", 0)
    assert "--min-eyes must be" in fails(capsys, photos, out, "--landmarks", table, "--min-eyes", "nan")
    assert "no such list" in fails(capsys, photos, out, "--landmarks", tmp_path / "none.csv")
    assert "is a file" in fails(capsys, photos, table, "--landmarks", table)
    assert not out.exists()
    for arguments in ([], ["--detector", "a", "--landmarks", "b"]):
        with pytest.raises(SystemExit) as caught:
            run(photos, out, *arguments)
        assert caught.value.code == 2


def test_a_detector_that_fails_on_a_photo_is_told_apart_from_the_photo(tmp_path):
    class Failing:
        def detect(self, image):
            raise cv2.error("(-215) bad\nsize")

    path = write(tmp_path, {"a.jpg": photo()}) / "a.jpg"
    photo_faces._detector = Failing()
    try:
        outcome = photo_faces.align_photo(photo_faces.Photo(str(path), None), photo_faces.Rules())
    finally:
        photo_faces._detector = None
    assert (outcome.reason, outcome.detail) == (photo_faces.DETECTOR, "(-215) bad size")
    gone = photo_faces.align_photo(photo_faces.Photo(str(tmp_path / "b.jpg"), None), photo_faces.Rules())
    assert (gone.reason, gone.detail) == (photo_faces.UNREADABLE, "No such file or directory")


@pytest.mark.parametrize("wrong", [LANDMARKS[[1, 0, 2, 4, 3]], np.ones((5, 2)), LANDMARKS * 0 + (1, np.nan)])
def test_landmarks_that_are_no_faces_leave_a_photo_out(tmp_path, wrong):
    path = write(tmp_path, {"a.jpg": photo()}) / "a.jpg"
    faces = detector.Faces(np.array([[0.0, 0, 9, 9]]), wrong[None], np.ones(1))
    outcome = photo_faces.align_photo(photo_faces.Photo(str(path), faces), photo_faces.Rules())
    assert (outcome.encoded, outcome.reason) == (b"", photo_faces.ODD)


def test_faces_names_stay_apart():
    names = [b"a.jpg", b"a.png", b"b.jpg", b"c.d.jpeg"]
    assert aligned_folder.face_names(names, ".png") == [b"a.jpg.png", b"a.png.png", b"b.png", b"c.d.png"]
    with pytest.raises(ValueError, match=r"two photographs would both become a\.jpg\.png: rename"):
        aligned_folder.face_names([b"a.jpg", b"a.jpg.bmp", b"a.png"], ".png")
