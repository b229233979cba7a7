import pytest

from eval.search.images import FaceLoader, read_faces, read_tinyface
from made_faces import encode, make_folder
from tinyface_tree import make_tinyface


@pytest.fixture
def folder(tmp_path):
    people = {"ann": {"1.jpg": encode(10), "2.PNG": encode(20, suffix=".png")}, "bob": {"1.jpg": encode(30)}}
    return make_folder(tmp_path / "people", people)


def test_a_folder_of_people(folder):
    (folder / "ann" / "notes.txt").write_text("no image")
    faces = read_faces(folder)
    assert faces.people == ["ann", "ann", "bob"]
    assert [path.name for path in faces.paths] == ["1.jpg", "2.PNG", "1.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "people/ann/1.jpg,Ann\npeople/bob/1.jpg,Bob\n",
        "path,person\npeople/ann/1.jpg,Ann\n\npeople/bob/1.jpg, Bob\n",
        "\ufeffid,age,File\nAnn,3,people/ann/1.jpg\nBob,4,people/bob/1.jpg\n",
    ],
)
def test_a_list(folder, tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    faces = read_faces(tmp_path / "list.csv")
    assert faces.people == ["Ann", "Bob"]
    assert faces.paths == [folder / "ann" / "1.jpg", folder / "bob" / "1.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("people/ann/1.jpg,Ann,7\n", "line 1: expected path,person or a first line that names the columns"),
        ("path,person\npeople/ann/1.jpg\n", "line 2: expected path,person"),
        ("people/ann/9.jpg,Ann\n", "line 1: no image"),
        ("../ann.jpg,Ann\n", "leads outside the folder"),
        ("path,person\n", "no images in it"),
    ],
)
def test_a_list_that_is_wrong(folder, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_faces(tmp_path / "list.csv")


def test_other_sources_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"found images such as 1\.jpg beside each other"):
        read_faces(folder / "ann")
    with pytest.raises(FileNotFoundError, match="no folder or list"):
        read_faces(tmp_path / "gone")
    (tmp_path / "list.txt").write_text("a")
    with pytest.raises(ValueError, match=r"expected a folder of people's folders"):
        read_faces(tmp_path / "list.txt")


def test_images_of_another_size_are_counted(folder):
    (folder / "ann" / "1.jpg").write_bytes(encode(10, (50, 40)))
    load = FaceLoader(read_faces(folder), 112)
    assert load(0, 3).shape == (3, 112, 112, 3)
    assert load.note().startswith("1 of 3 images had another size than 112 x 112")
    (folder / "bob" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"bob/1\.jpg: not a decodable image.*; copy it again"):
        load(2, 3)


def test_tinyface(tmp_path):
    make_tinyface(tmp_path / "tinyface" / "Testing_Set")
    gallery, probes = read_tinyface(tmp_path / "tinyface")
    assert gallery.people == ["1", "1", "2", "2", "3", "3", "4", "4", "5", "5", "distractor 0", "distractor 1"]
    assert probes.people == ["1", "2", "3", "4", "5"]


def test_tinyface_that_is_not(tmp_path):
    root = make_tinyface(tmp_path)
    (root / "Probe" / "mug.jpg").write_bytes(encode(1))
    with pytest.raises(ValueError, match=r"mug\.jpg: expected a name such as 12_3\.jpg"):
        read_tinyface(root)
    (root / "Gallery_Match").rename(root / "gallery")
    with pytest.raises(FileNotFoundError, match="no folder Gallery_Match; TinyFace's test set has"):
        read_tinyface(root)
