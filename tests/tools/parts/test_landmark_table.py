import numpy as np
import pytest

from made_photos import LANDMARKS
from tools.parts.landmark_table import LandmarkTable

NUMBERS = [f"{x:.3f}" for x in LANDMARKS.ravel()]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    for name in ("1 a.jpg", "2.jpg"):
        (tmp_path / "photos" / "ann" / name).write_bytes(b"photo")
    return tmp_path / "photos"


def table(root, lines):
    path = root.parent / "found.csv"
    path.write_text("\n".join(lines))
    return LandmarkTable(path, root)


HEADING = ["name", *(f"p{k}{axis}" for k in range(1, 6) for axis in "xy")]


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("more", [[], ["0.98"]])
@pytest.mark.parametrize("heading", [False, True])
def test_every_common_form_is_read(root, separator, more, heading):
    lines = [separator.join([f"ann/{name}", *NUMBERS, *more]) for name in ("1 a.jpg", "2.jpg")]
    heading_line = separator.join(HEADING + ["score"] * len(more))
    found = table(root, [heading_line] * heading + lines)
    for name in (b"ann/1 a.jpg", b"ann/2.jpg"):
        np.testing.assert_allclose(found.faces(name).landmarks, [LANDMARKS.round(3)])
        assert found.faces(name).boxes[0].tolist() == [
            *LANDMARKS.min(0).round(3),
            *np.ptp(LANDMARKS.round(3), axis=0),
        ]
    assert b"ann/3.jpg" not in found
    assert found.check_names([b"ann/1 a.jpg", b"ann/2.jpg", b"x.jpg"]) == ""


@pytest.mark.parametrize(
    "start", ["C:\\work\\photos\\ann\\2.jpg", "/home/ann/photos/ann/2.jpg", "./ann/2.jpg", "ann/2"]
)
def test_paths_of_elsewhere_are_found(root, start):
    assert b"ann/2.jpg" in table(root, [",".join([start, *NUMBERS])])


@pytest.mark.parametrize("nothing", [["0"] * 10, ["nan"] * 10, ["-1"] * 10, [""] * 10, []])
def test_a_photo_without_a_face_may_have_a_line(root, nothing):
    found = table(root, [",".join(["ann/1 a.jpg", *NUMBERS]), ",".join(["ann/2.jpg", *nothing])])
    assert len(found.faces(b"ann/2.jpg").scores) == 0
    assert len(found.faces(b"ann/1 a.jpg").scores) == 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (LANDMARKS.T.ravel(), r"line 2 first\); they seem to be given with x1,\.\.\.,x5,y1"),
        (LANDMARKS[[1, 0, 2, 4, 3]].ravel(), r"left and right exchanged"),
        ((LANDMARKS / 240).ravel(), r"lie within 0 to 1, from line 2 on"),
        ([3, *LANDMARKS.ravel()[:9]], r"line 2 first"),
        ([10, 10, 90, 90, *LANDMARKS.ravel()], r"line 2 is 'ann/2\.jpg,10,10.*: a line is path,x1,y1"),
        (LANDMARKS.ravel()[:8], r"line 2 is .*: a line is path,x1,y1"),
        (["x"] * 10, r"line 2 is"),
    ],
)
def test_numbers_that_are_no_landmarks_are_refused_with_their_line(root, numbers, message):
    with pytest.raises(ValueError, match=message):
        table(root, ["path," + ",".join(HEADING[1:]), ",".join(["ann/2.jpg", *map(str, numbers)])])


def test_files_without_what_is_looked_for_are_named(root):
    with pytest.raises(ValueError, match="is empty: a line is"):
        table(root, ["# only a comment"])
    with pytest.raises(ValueError, match="holds a heading and no face"):
        table(root, [",".join(HEADING)])
    with pytest.raises(ValueError, match=r"leads outside the folder .*; give the folder that holds all photographs"):
        table(root, [",".join(["../x.jpg", *NUMBERS])])
    found = table(root, [",".join(["bob/1.jpg", *NUMBERS])])
    with pytest.raises(ValueError, match=r"none of its 1 paths is a photograph in PHOTOS, such as 'bob/1\.jpg'"):
        found.check_names([b"ann/2.jpg"])
