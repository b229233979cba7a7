"""Which column of a list is the label: people are neither merged nor cut into single images."""

import pytest

from utils.face_list import read_face_list
from utils.list_columns import whole_number

PEOPLE = ("Ann Lee", "Ann Lee", "Bob Ray", "Bob Ray")


def labels(tmp_path, text, columns=""):
    (tmp_path / "list.txt").write_text(text)
    return tuple(label for _, _, label in read_face_list(tmp_path / "list.txt", columns).entries())


def lines(heading, form):
    rows = [form.format(k=k, p=f"p{k // 2}/{k}.jpg", n=name, i=k // 2, g=k % 2) for k, name in enumerate(PEOPLE)]
    return "".join(f"{line}\n" for line in [heading] * bool(heading) + rows)


@pytest.mark.parametrize(
    ("heading", "form"),
    [
        ("id,image,celebrity", "{k},{p},{n}"),
        ("id,filename,person_name", "{k},{p},{n}"),
        ("id,image,folder", "{k},{p},{n}"),
        ("id,path,identity_name,gender", "{k},{p},{n},{g}"),
        ("path,target,identity_name", "{p},{g},{n}"),
        ("path,celebrity,x,y,w,h", "{p},{n},{g},{g},50,60"),
        ("path,star,x,y", "{p},{n},{g},{i}"),  # y is a place here, not the label
        ("path,label,celebrity", "{p},0,{n}"),
        ("path,gender,fullname", "{p},{g},{n}"),
    ],
)
def test_a_heading_never_makes_rows_or_another_property_the_people(tmp_path, heading, form):
    assert labels(tmp_path, lines(heading, form)) == PEOPLE


@pytest.mark.parametrize(
    ("heading", "form", "both"),
    [
        ("id,image,star", "{k},{p},{n}", "1 and 3"),
        ("id,image,folder_number", "{k},{p},{i}", "1 and 3"),
        ("path,class,fullname", "{p},{g},{n}", "2 and 3"),
        ("path,person,subject", "{p},{n},{i}", "2 and 3"),
        ("", "{p},0,{k}", "2 and 3"),
        ("", "{g},{p},{i}", "1 and 3"),
        ("label,path,star", "{k},{p},{n}", "1 and 3"),
    ],
)
def test_what_a_list_leaves_open_names_the_switch(tmp_path, heading, form, both):
    with pytest.raises(ValueError, match=f"columns {both} could both be the label: .* --columns"):
        labels(tmp_path, lines(heading, form))


@pytest.mark.parametrize(
    ("heading", "form"),
    [
        ("path,name,label", "{p},{n},{i}"),  # of two that say who it is, the one called label
        ("identity,path,label", "9{g},{p},{i}"),
        ("path,label,source_file", "{p},{i},{n}"),
        ("path,x,y,label", "{p},{g},{k},{i}"),
        ("path,y,fold", "{p},{i},{g}"),
        ("", "{k}\t2\t5\t{i}\t0.1\t0.2\t0.3\t0.4\t{p}"),  # im2rec's of boxes: two numbers of the heading first
        ("", "{p} {i} 0.{k}5"),  # fractions are no labels
        ("", "{p},{i},{k}"),
    ],
)
def test_numbers_of_people(tmp_path, heading, form):
    assert labels(tmp_path, lines(heading, form)) == ("0", "0", "1", "1")


def test_one_line_of_im2rec(tmp_path):
    assert labels(tmp_path, "0\t7\tp1/a.jpg\n") == ("7",)
    assert labels(tmp_path, "1\tp1/a.jpg\t7\n") == ("7",)


def test_flags_before_paths_divided_at_blanks(tmp_path):
    """insightface's 1 does not count up, but is a column all the same, and no part of the path."""
    text = "1 p1/a.jpg 3\n1 p1/b.jpg 3\n1 p2/a.jpg 4\n"
    assert labels(tmp_path, text) == ("3", "3", "4")
    paths = [path for _, path, _ in read_face_list(tmp_path / "list.txt").entries()]
    assert paths == ["p1/a.jpg", "p1/b.jpg", "p2/a.jpg"]


def test_names_divided_like_columns_are_not_cut(tmp_path):
    with pytest.raises(ValueError, match=r"'Ann' and 'Lee', divided by blanks: .* put a tab between path and name"):
        labels(tmp_path, lines("", "{p} {n}"))


def test_numbers_are_whole_only_where_none_is_lost():
    assert whole_number("1000000000000000003.0") == 1000000000000000003
    assert whole_number("-3.000") == -3
    assert whole_number("1e10") == 10**10
    assert whole_number("100") == 100
    for text in ("1e20", "2.50", "3.1", "Ann0", "", ".", "1e400"):
        assert whole_number(text) is None


def test_a_first_line_that_says_how_many_follow(tmp_path):
    for heading in ("", "image_id identity\n"):
        text = f"3\n{heading}000001.jpg 2\n000002.jpg 9\n000003.jpg 2\n"
        assert labels(tmp_path, text) == ("2", "9", "2")
        listed = read_face_list(tmp_path / "list.txt")
        assert listed.sample(20) == ["000001.jpg", "000002.jpg", "000003.jpg"]
        with pytest.raises(ValueError, match=r"first line announces 4 images, but 3 follow: .* remove it"):
            labels(tmp_path, "4" + text[1:])
    with pytest.raises(ValueError, match="expected a path and a label"):
        labels(tmp_path, "9" * 5000)


def test_excels_line_of_the_separator_is_skipped(tmp_path):
    assert labels(tmp_path, "sep=;\npath;label\na.jpg;3\nb.jpg;4\n") == ("3", "4")


def test_a_first_image_without_an_ending_is_no_heading(tmp_path):
    with pytest.raises(ValueError, match=r"line 1 is 'img1 Ann', expected .* a path that ends as an image does"):
        labels(tmp_path, "img1 Ann\nimg2.jpg Ann\nimg3.jpg Bob\n")
    assert labels(tmp_path, "bild person\nimg2.jpg Ann\nimg3.jpg Bob\n") == ("Ann", "Bob")
    assert labels(tmp_path, "path label\nimg2.jpg label\nimg3.jpg Bob\n") == ("label", "Bob")
