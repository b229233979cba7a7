import pytest

from eval.pairs.sets import load_pairs
from eval.search.images import FaceLoader, ListOptions, alike_names, read_faces, read_tinyface
from made_faces import encode, make_folder
from tinyface_tree import make_tinyface
from utils.folders import IMAGE_SUFFIXES


@pytest.fixture
def folder(tmp_path):
    people = {"ann": {"1.jpg": encode(10), "2.PNG": encode(20, suffix=".png")}, "bob": {"1.jpg": encode(30)}}
    return make_folder(tmp_path / "people", people)


def test_a_folder_of_people(folder):
    (folder / "ann" / "notes.txt").write_text("no image")
    (folder / "loose.jpg").write_bytes(encode(40))
    (folder / "bob" / "session" / "x").mkdir(parents=True)
    (folder / "bob" / "session" / "x" / "4.TIFF").write_bytes(encode(50, suffix=".tiff"))
    faces = read_faces(folder)
    assert faces.people == ["ann", "ann", "bob", "bob"]
    assert [path.name for path in faces.paths] == ["1.jpg", "2.PNG", "1.jpg", "4.TIFF"]
    deeper, left_out = faces.notes
    assert "1 of 4 images lie deeper than <identity>/<image> and are taken" in deeper
    assert "1 without an image's ending (.txt 1)" in left_out
    assert "1 loose in the folder itself, of nobody" in left_out


@pytest.mark.parametrize("ending", IMAGE_SUFFIXES)
def test_every_ending_of_an_image_is_taken_from_folders_and_lists(tmp_path, ending):
    written = {".jpe": ".jpg", ".jfif": ".jpg", ".pnm": ".ppm", ".pgm": ".ppm"}.get(ending, ending)
    make_folder(tmp_path, {"ann": {f"1{ending}": encode(10, suffix=written)}})
    (tmp_path / "list.txt").write_text(f"ann/1{ending} Ann\n")
    for source in (tmp_path, tmp_path / "list.txt"):
        faces = read_faces(source)
        assert FaceLoader(faces, 112)(0, 1).shape == (1, 112, 112, 3)
    (tmp_path / "pairs.txt").write_text(f"ann/1{ending} ann/1 1\n")
    assert len(set(load_pairs(tmp_path / "pairs.txt").encoded)) == 1


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("list.csv", "people/ann/1.jpg,Ann\npeople/bob/1.jpg,Bob\n", "utf-8"),
        ("list.csv", "path,person\npeople/ann/1.jpg,Ann\n\npeople/bob/1.jpg, Bob\n", "utf-8"),
        ("list.csv", "id,age,File\nAnn,3,people/ann/1.jpg\nBob,4,people/bob/1.jpg\n", "utf-8-sig"),
        ("list.txt", "# enrolled\npeople/ann/1.jpg Ann\npeople/bob/1.jpg Bob\n", "utf-8"),
        ("list.tsv", "Ann\tpeople\\ann\\1.jpg\nBob\tpeople\\bob\\1.jpg\n", "utf-16"),
        ("list.lst", "/far/people/ann/1.jpg;Ann\n/far/people/bob/1.jpg;Bob\n", "utf-8"),
    ],
)
def test_a_list(folder, tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    faces = read_faces(tmp_path / name)
    assert faces.people == ["Ann", "Bob"]
    assert faces.paths == [folder / "ann" / "1.jpg", folder / "bob" / "1.jpg"]
    assert faces.notes[0].startswith("list: 2 lines, ")


def test_numbers_name_people_however_they_are_written(folder, tmp_path):
    (tmp_path / "list.lst").write_text("0\t7.000000\tann/1.jpg\n1\t007\tann/2.PNG\n2\t8.0\tbob/1.jpg\n")
    assert read_faces(tmp_path / "list.lst", ListOptions(folder)).people == ["7", "007", "8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("people/ann/1.jpg,Ann,7\npeople/bob/1.jpg,Bob,5\n", "columns 2 and 3 could both be the label: .* --columns"),
        ("path,person\npeople/ann/1.jpg\n", "line 2 is 'people/ann/1.jpg', expected"),
        ("people/ann/1.jpg,Ann\npeople/ann/9.jpg,Ann\n", "line 2: no image .*; 1 of 2 images are missing; .* --root"),
        ("../ann.jpg,Ann\n", "leads outside the folder"),
        ("path,person\n", "no line below it"),
        (
            "path,person\npeople/ann/1.jpg,Lee, Ann\npeople/bob/1.jpg,Lee, Bob\n",
            "names 2 columns, but .* have 3: .* quotes",
        ),
        ("people/ann/1.jpg,Ann\npeople/bob/1.jpg,Lee, Bob\n", "line 2 .* expected 2 comma-separated columns"),
        ("path person\npeople/ann/1.jpg Lee Ann\npeople/bob/1.jpg Lee Bob\n", "names 2 columns, but .* have 3"),
        ("people/ann/1.jpg,Ann\npeople/bob/1.jpg,\n", "line 2 is 'people/bob/1.jpg,', expected"),
        ('path,person\npeople/ann/1.jpg,Ann\npeople/bob/1.jpg,""\n', "line 3 is .*, expected"),
        ("people/ann/1.jpg,Ann,3\npeople/bob/1.jpg,,4\n", "line 2 is 'people/bob/1.jpg,,4', expected"),
        ("", "the list is empty"),
    ],
)
def test_a_list_that_is_wrong(folder, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_faces(tmp_path / "list.csv")


def test_names_in_quotes_may_hold_commas(folder, tmp_path):
    (tmp_path / "list.csv").write_text('path,person\npeople/ann/1.jpg,"Lee, Ann"\npeople/bob/1.jpg,"Lee, Bob"\n')
    assert read_faces(tmp_path / "list.csv").people == ["Lee, Ann", "Lee, Bob"]


def test_a_name_is_the_same_however_its_letters_are_stored(tmp_path):
    composed, apart = "J\u00fcrgen", "Ju\u0308rgen"
    make_folder(tmp_path / "people", {f"{apart} ": {"1.jpg": encode(10)}})
    (tmp_path / "list.csv").write_text(f"people/{apart} /1.jpg,{composed}\n", encoding="utf-8")
    assert read_faces(tmp_path / "people").people == read_faces(tmp_path / "list.csv").people == [composed]


def test_names_that_differ_in_capital_letters_alone_are_found():
    names = ["ann", "Bob", "Ann", "ANN", "bob", "cy", "cy"]
    assert alike_names(names) == [("ann", "Ann"), ("ann", "ANN"), ("Bob", "bob")]
    assert alike_names(["Jos\u00e9", "JOS\u00c9", "jose"]) == [("Jos\u00e9", "JOS\u00c9")]


def test_labels_below_zero_are_nobody_and_not_one_person(folder, tmp_path):
    (tmp_path / "list.txt").write_text("ann/1.jpg -1\nann/2.PNG -1\nbob/1.jpg 0\n")
    faces = read_faces(tmp_path / "list.txt", ListOptions(folder))
    assert len(set(faces.people)) == 3
    assert faces.people[2] == "0"
    assert "2 images whose label is below 0 are each of a person of their own" in faces.notes[0]
    named = read_faces(tmp_path / "list.txt", ListOptions(folder, columns="path,name"))
    assert named.people == ["-1", "-1", "0"]


def test_columns_settle_what_a_list_leaves_open(folder, tmp_path):
    (tmp_path / "list.csv").write_text("people/ann/1.jpg,Ann,7\npeople/bob/1.jpg,Bob,5\n")
    assert read_faces(tmp_path / "list.csv", ListOptions(columns="path,name,-")).people == ["Ann", "Bob"]


def test_other_sources_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"found no image in a folder; .* 2 loose in the folder itself, of nobody"):
        read_faces(folder / "ann")
    with pytest.raises(ValueError, match=r"1\.jpg is an image: expected a folder of people's folders"):
        read_faces(folder / "ann" / "1.jpg")
    with pytest.raises(FileNotFoundError, match="no folder or list"):
        read_faces(tmp_path / "gone")
    (tmp_path / "set").mkdir()
    folder.rename(tmp_path / "set" / "train")
    with pytest.raises(ValueError, match=r"give the folder whose folders are the people, such as .*train"):
        read_faces(tmp_path / "set")


def test_images_of_another_size_are_counted(folder):
    (folder / "ann" / "1.jpg").write_bytes(encode(10, (50, 40)))
    (folder / "ann" / "2.PNG").write_bytes(encode(10, (50, 50)))
    load = FaceLoader(read_faces(folder), 112)
    assert load(0, 3).shape == (3, 112, 112, 3)
    assert load.note().startswith(
        "2 of 3 images had another size and were resized, 1 of them not square before and distorted: are"
    )
    assert load.note().endswith("1.jpg")
    (folder / "bob" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"bob/1\.jpg: not a decodable image.*; copy it again"):
        load(2, 3)


def test_tinyface(tmp_path):
    root = make_tinyface(tmp_path / "tinyface" / "Testing_Set")
    (root / "Gallery_Distractor" / "0" / "Thumbs.db").touch()
    gallery, probes = read_tinyface(tmp_path / "tinyface")
    assert gallery.people == ["1", "1", "2", "2", "3", "3", "4", "4", "5", "5", "distractor 0", "distractor 1"]
    assert probes.people == ["1", "2", "3", "4", "5"]
    assert "left out: 1 without an image's ending (.db 1)" in gallery.notes[0]


def test_tinyface_that_is_not(tmp_path):
    root = make_tinyface(tmp_path)
    (root / "Probe" / "mug.jpg").write_bytes(encode(1))
    with pytest.raises(ValueError, match=r"mug\.jpg: expected a name such as 12_3\.jpg"):
        read_tinyface(root)
    (root / "Gallery_Match").rename(root / "gallery")
    with pytest.raises(FileNotFoundError, match="no folder Gallery_Match; TinyFace's test set has"):
        read_tinyface(root)
