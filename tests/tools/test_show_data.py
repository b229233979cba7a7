"""The sheets show the right faces in the right places."""

import pickle

import cv2
import numpy as np
import pytest

from data.records.writer import write_face_records
from tools import show_augment, show_data
from tools.parts.contact_sheet import FACE, contact_sheet, write_png
from tools.parts.face_sources import open_source
from tools.show_data import draw_rows, main


def face(value, size=(112, 112)):
    return cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1].tobytes()


FACES = [[face(10 * i + j) for j in range(i + 1)] for i in range(8)]  # identity i has i + 1 images


@pytest.fixture
def records(tmp_path):
    write_face_records(tmp_path / "data", FACES)
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path):
    for name, images in zip("hgfedcba", FACES, strict=True):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i, image in enumerate(images):
            (tmp_path / "faces" / name / f"{i}.png").write_bytes(image)
    return tmp_path / "faces"


def values(rows):
    """The grey value of every image, row by row."""
    return [[int(image[0, 0, 0]) for image in images] for _, images in rows]


def test_identities_are_spread_over_the_set(records):
    rows = draw_rows(open_source(records), "3", 4)
    assert [texts for texts, _ in rows] == [["label 0", "1 images"], ["label 4", "5 images"], ["label 7", "8 images"]]
    assert values(rows) == [[0], [40, 41, 43, 44], [70, 72, 75, 77]]


def test_chosen_identities_in_the_order_asked(records):
    rows = draw_rows(open_source(records), "5,2", 2)
    assert values(rows) == [[50, 55], [20, 22]]
    assert len(draw_rows(open_source(records), "6,", 1)) == 1


def test_a_folder_has_names(folder):
    rows = draw_rows(open_source(folder), "c,h", 9)
    assert [texts for texts, _ in rows] == [["c", "label 2", "6 images"], ["h", "label 7", "1 images"]]
    assert values(rows) == [[50, 51, 52, 53, 54, 55], [0]]
    assert values(draw_rows(open_source(folder), "h", 9)) == [[0]]


def test_pairs(tmp_path):
    bins = [face(value) for value in range(20)]
    (tmp_path / "set.bin").write_bytes(pickle.dumps((bins, [True, False] * 5)))
    rows = draw_rows(open_source(tmp_path / "set.bin"), "3,4", 1)
    assert [texts for texts, _ in rows] == [["pair 3", "two persons"], ["pair 4", "one person"]]
    assert values(rows) == [[6, 7], [8, 9]]


def test_a_damaged_image_is_a_red_square(tmp_path):
    write_face_records(tmp_path / "data", [[face(1), b"no image"]])
    ((_, images),) = draw_rows(open_source(tmp_path / "data"), "1", 5)
    assert images[1][0, 0].tolist() == [200, 30, 30]


def test_sheet_places_faces_after_the_text():
    red, wide = np.full((112, 112, 3), (255, 0, 0), np.uint8), np.full((20, 40, 3), (0, 0, 255), np.uint8)
    sheet = contact_sheet([(["a"], [red]), (["a longer text", "two"], [red, wide])])
    margin = sheet.shape[1] - 2 * (FACE + 4)
    assert sheet.shape[0] == 2 * (FACE + 4) + 4
    assert (sheet[4 : 4 + FACE, margin : margin + FACE] == (255, 0, 0)).all()
    cell = sheet[-4 - FACE : -4, margin + FACE + 4 : margin + 2 * FACE + 4]
    assert (cell[FACE // 2] == (0, 0, 255)).all()
    assert (cell[0] == 230).all()
    assert (sheet[:, : margin - 8] < 128).any()


def test_command(records, tmp_path, capsys):
    assert main([str(records), str(tmp_path / "sheet.png"), "--identities", "4", "--per-identity", "3"]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 4 * 116 + 4
    assert "4 rows" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--identities", "99,"], "no identity '99'; labels here: 0 to 7"),
        (["--identities", "ann"], "takes a number, or ids with commas"),
        (["--per-identity", "0"], "--per-identity must be at least 1"),
    ],
)
def test_wrong_choices(records, tmp_path, capsys, options, message):
    assert main([str(records), str(tmp_path / "sheet.png"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_wrong_places(records, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "sheet.png")]) == 2
    assert main([str(records), str(tmp_path / "sheet.jpg")]) == 2
    assert main([str(records), str(tmp_path / "no" / "sheet.png")]) == 2
    assert [line[:17] for line in capsys.readouterr().err.splitlines()] == ["show_data: error:"] * 3


class TestShowAugment:
    def test_picture_and_times(self, records, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(show_augment, "BATCH", 8)
        out = tmp_path / "augment.png"
        assert show_augment.main([str(records), str(out), "--columns", "2", "--quick"]) == 0
        rows = len(show_augment.OPERATIONS) + len(show_augment.PRESETS)
        assert cv2.imread(str(out)).shape[0] == rows * 116 + 4
        printed = capsys.readouterr().out
        assert "flip alone" in printed
        assert 'augment = "adaface"' in printed
        assert "low_res on all" in printed

    def test_wrong_input(self, tmp_path, capsys):
        write_face_records(tmp_path / "small", [[face(1, (50, 50))]])
        assert show_augment.main([str(tmp_path / "small"), str(tmp_path / "x.png")]) == 2
        assert "no image of 112 x 112 pixels" in capsys.readouterr().err
        assert show_augment.main([str(tmp_path / "small"), str(tmp_path / "x.png"), "--columns", "0"]) == 2


@pytest.mark.parametrize("command", [main, show_augment.main])
def test_identities_without_images(tmp_path, capsys, command):
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    assert command([str(tmp_path / "faces"), str(tmp_path / "x.png")]) == 2
    assert "faces: no images in it" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_write_png_is_rgb(tmp_path):
    image = np.zeros((3, 4, 3), np.uint8)
    image[..., 0] = 255
    write_png(tmp_path / "red.png", image)
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]
    assert show_data.FACE == FACE
