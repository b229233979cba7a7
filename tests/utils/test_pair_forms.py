"""Lists of pairs whose flags are inverted, whose names are numbers, or which have two lines a pair."""

import pytest

from utils.pair_list import images_of, read_pair_list


def read(tmp_path, text):
    (tmp_path / "pairs.txt").write_text(text)
    return read_pair_list(tmp_path / "pairs.txt")


@pytest.mark.parametrize("heading", ["is_different", "different", "Distance", "impostor", "mismatch"])
@pytest.mark.parametrize(("same", "other"), [("0", "1"), ("False", "True"), ("0.0", "1.0")])
def test_headings_of_two_persons_invert_the_flag(tmp_path, heading, same, other):
    for first in ("path1,path2", "left,right"):
        if first == "left,right" and heading in ("is_different", "Distance"):
            continue  # of a heading nobody knows, only words that are flags themselves are understood
        listed = read(tmp_path, f"{first},{heading}\na.jpg,b.jpg,{same}\na.jpg,c.jpg,{other}\n")
        assert [pair.same for pair in listed.pairs] == [True, False]
        assert "1 is for two persons as its heading says" in listed.form


def test_words_that_say_it_themselves_are_not_inverted(tmp_path):
    listed = read(tmp_path, "path1,path2,different\na.jpg,b.jpg,same\na.jpg,c.jpg,different\n")
    assert [pair.same for pair in listed.pairs] == [True, False]
    listed = read(tmp_path, "path1,path2,distance,label\na.jpg,b.jpg,0.3,1\na.jpg,c.jpg,1.5,0\n")
    assert [pair.same for pair in listed.pairs] == [True, False]
    listed = read(tmp_path, "a b different\na c same\n")
    assert [pair.same for pair in listed.pairs] == [False, True]


def test_numbers_as_names_of_files_or_of_people(tmp_path):
    text = "0001 0002 1\n0001 0003 0\n"
    for folder, names in (("flat", ("0001", "0002", "0003")), ("lfw", [f"0001/0001_000{i}" for i in range(4)])):
        for name in names:
            image = tmp_path / folder / f"{name}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    flat = images_of(read(tmp_path, text), tmp_path / "flat", "way out")
    assert [pair.same for pair in flat.listed.pairs] == [True, False]
    assert flat.paths[1] == (tmp_path / "flat" / "0001.jpg", tmp_path / "flat" / "0003.jpg")
    lfw = images_of(read(tmp_path, text), tmp_path / "lfw", "way out")
    assert lfw.listed.is_lfw
    assert lfw.paths[0] == (tmp_path / "lfw/0001/0001_0002.jpg", tmp_path / "lfw/0001/0001_0001.jpg")


def test_two_lines_a_pair(tmp_path):
    listed = read(tmp_path, "a b.jpg 3\nc.jpg 3\na b.jpg 0\nd.jpg 0\n")
    assert [pair[1:] for pair in listed.pairs] == [("a b.jpg", "c.jpg", True), ("a b.jpg", "d.jpg", False)]
    assert [pair.line for pair in listed.pairs] == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a.jpg 1\nb.jpg 1\nc.jpg 2\nd.jpg 2\n",
            "0 of 2 have 0, for two persons; if the numbers are folds or people",
        ),
        ("".join(f"{i}.jpg {i // 2}\n" for i in range(24)), "1 of 12 have 0"),
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\n", "line 3: expected two paths and a flag.*CALFW's two lines a pair"),
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\nd.jpg 1\n", "line 4: expected two paths"),
    ],
)
def test_lists_of_images_are_no_pairs(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)
