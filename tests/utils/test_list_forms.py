"""What people's lists say is read as they wrote it, in every form that documents show."""

import csv
import io
import os
import string
import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils.face_list import read_face_list
from utils.list_images import ListedImages
from utils.pair_list import images_of, read_pair_list
from utils.paths import ListedPaths

NAMES = st.text(string.ascii_letters + string.digits + "_-é李", min_size=1, max_size=8)
SPACED = st.tuples(NAMES, NAMES).map(" ".join)
PATHS = st.tuples(NAMES | SPACED, NAMES | SPACED, st.sampled_from((".jpg", ".JPEG", ".png"))).map(
    lambda parts: f"x{parts[0]}/x{parts[1]}{parts[2]}"
)
ROWS = st.lists(st.tuples(PATHS, st.integers(0, 5)), min_size=3, max_size=8).filter(
    lambda rows: len({label for _, label in rows}) > 1
)


def as_csv(separator, heading=""):
    def write(rows):
        out = io.StringIO()
        writer = csv.writer(out, delimiter=separator)
        writer.writerows([heading.split(separator)] * bool(heading) + [[path, label] for path, label in rows])
        return out.getvalue()

    return write


def lines(form, heading=""):
    return lambda rows: heading + "".join(form.format(p=p, l=label, i=i) + "\n" for i, (p, label) in enumerate(rows))


FORMS = {
    "blank": lines("{p} {l}"),
    "blank, heading": lines("{p} {l}", "image label\n"),
    "label first": lines("{l} {p}"),
    "tab": lines("{p}\t{l}"),
    "tab, label first, heading": lines("{l}\t{p}", "label\tpath\n"),
    "im2rec": lines("{i}\t{l}\t{p}"),
    "im2rec, more labels": lines("{i}\t{l}.000000\t0.5\t7\t{p}"),
    "insightface": lines("1\t{p}\t{l}"),
    "four columns": lines("{p} 0 {l} 0"),
    "csv": as_csv(","),
    "csv, heading": as_csv(",", "filename,identity"),
    "semicolons": as_csv(";"),
    "comments and blank lines": lines("{p} {l}\n\n# no entry", "# made by hand\n"),
    "index of pandas": lines('{i},"{p}",{l}', ",path,label\n"),
}


def write(folder, text, encoding="utf-8", end="\n"):
    path = folder / "list.txt"
    path.write_bytes(text.replace("\r\n", "\n").replace("\n", end).encode(encoding))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lists")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(
    rows=ROWS,
    encoding=st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-16-le")),
    end=st.sampled_from(("\n", "\r\n", "\r")),
)
def test_every_form_gives_back_paths_and_labels(folder, form, rows, encoding, end):
    numbers = sorted(label for _, label in rows)
    assume(form != "four columns" or numbers != [*range(numbers[0], numbers[0] + len(rows))])  # else left open
    listed = read_face_list(write(folder, FORMS[form](rows), encoding, end))
    assert [(path, int(float(label))) for _, path, label in listed.entries()] == rows
    assert listed.count == len(rows)
    assert listed.describe().startswith(f"list: {len(rows)} lines, ")


PAIRS = st.lists(st.tuples(PATHS, PATHS, st.booleans()), min_size=2, max_size=6)
FLAGS = st.sampled_from(("10", ("1", "-1"), ("True", "False"), ("same", "different")))
PAIR_FORMS = {
    "blank": ("{a} {b} {s}", ""),
    "tab": ("{a}\t{b}\t{s}", ""),
    "csv": ('"{a}","{b}",{s}', ""),
    "semicolons": ("{a};{b};{s}", ""),
    "columns by name": ('7,{s},"{b}","{a}"', "fold,same,image2,image1\n"),
    "heading": ('"{a}","{b}",{s}', "path1,path2,label\n"),
}


@pytest.mark.parametrize("form", PAIR_FORMS)
@settings(max_examples=12, deadline=None)
@given(
    rows=PAIRS,
    flags=FLAGS,
    end=st.sampled_from("\n\r"),
)
def test_every_form_gives_back_pairs(folder, form, rows, flags, end):
    line, heading = PAIR_FORMS[form]
    text = heading + "".join(line.format(a=a, b=b, s=flags[not same]) + "\n" for a, b, same in rows)
    assert [pair[1:] for pair in read_pair_list(write(folder, text, end=end)).pairs] == rows


@settings(max_examples=12, deadline=None)
@given(rows=st.lists(st.tuples(NAMES, st.integers(1, 9999), NAMES, st.integers(1, 9999)), min_size=2, max_size=6))
@pytest.mark.parametrize("heading", ["", "10\t{n}\n", "name,imagenum1,imagenum2,\n"])
def test_lfws_form(folder, rows, heading):
    rows = [("a", 1, "b", 2) if a.isdecimal() or b.isdecimal() else (a, i, b, j) for a, i, b, j in rows]
    separator = "," if "," in heading else "\t"
    parts = [(a, i, j) if a == b else (a, i, b, j) for a, i, b, j in rows]
    text = "".join(separator.join(map(str, row)) + "\n" for row in parts)
    heading = f"{len(rows)}\n" if "{n}" in heading else heading
    found = read_pair_list(write(folder, heading + text))
    assert found.is_lfw
    assert [pair[1:] for pair in found.pairs] == [
        (f"{a}/{a}_{i:04d}", f"{b}/{b}_{j:04d}", a == b) for a, i, b, j in rows
    ]


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200) | st.text('a b.jpg/,;\t\n"10#\\', max_size=80).map(str.encode))
def test_anything_else_is_one_clear_line(folder, content):
    path = folder / "any.txt"
    path.write_bytes(content)
    for read in (read_face_list, read_pair_list):
        try:
            found = read(path)
        except ValueError as error:
            text = str(error)
            assert str(path) in text
            assert "\n" not in text
            assert len(text) < 1500
        else:
            assert list(found.entries() if read is read_face_list else found.pairs)


class TestImages:
    """Entries find the images on this machine."""

    def images(self, tmp_path, text, encoding="utf-8", files=("p1/a.jpg", "p2/b c.jpg")):
        for file in files:
            (tmp_path / "root" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / file).touch()
        listed = read_face_list(write(tmp_path, text, encoding))
        sample = [path for _, path, _ in listed.entries()]
        images = ListedImages(ListedPaths(listed.text.path, tmp_path / "root", "way out"), listed.text, sample)
        found = [images.path(path, line.number) for line, path, _ in listed.entries()]
        assert [str(path.relative_to(tmp_path / "root")) for path in found] == list(files)
        return images.notes

    @pytest.mark.skipif(os.name == "nt", reason="there they are the usual ones")
    def test_windows_separators(self, tmp_path):
        assert self.images(tmp_path, "0\t1\tp1\\a.jpg\n1\t2\tp2\\b c.jpg\n") == ["backslashes read as /"]

    @pytest.mark.parametrize("prefix", ["/home/ann/faces/", "faces/", "D:\\faces\\"])
    def test_a_folder_of_another_machine(self, tmp_path, prefix):
        separator = "\\" if "\\" in prefix else "/"
        notes = self.images(tmp_path, f"{prefix}p1{separator}a.jpg 0\n{prefix}p2{separator}b c.jpg 1\n")
        assert f"{prefix.replace(chr(92), '/')!r} taken off" in notes[-1]

    def test_a_folder_of_another_machine_though_an_image_is_missing(self, tmp_path):
        for i in range(40):
            (tmp_path / "root" / f"{i}.jpg").parent.mkdir(exist_ok=True)
            if i % 4:
                (tmp_path / "root" / f"{i}.jpg").touch()
        path = write(tmp_path, "".join(f"{'de'[i % 2]}:\\faces\\{i}.jpg {i // 2}\n" for i in range(40)))
        listed = read_face_list(path)
        sample = listed.sample(20)
        assert sample == [f"d:\\faces\\{i}.jpg" for i in range(0, 40, 2)]
        images = ListedImages(
            ListedPaths(path, tmp_path / "root", "way out"), listed.text, [*sample, "e:\\faces\\1.jpg"]
        )
        assert images.path("d:\\faces\\5.jpg", 1) == tmp_path / "root" / "5.jpg"
        assert images.path("e:\\faces\\0.jpg", 1) == tmp_path / "root" / "0.jpg"
        assert "'d:/faces/' and 'e:/faces/' taken off" in images.notes[-1]
        few = ListedImages(ListedPaths(path, tmp_path / "root", "way out"), listed.text, ["x/1.jpg", "x/a", "x/b"])
        assert not few._prefixes

    @pytest.mark.skipif(os.name == "nt", reason="such names are no names there")
    @pytest.mark.parametrize("spelling", ["NFC", "NFD", "gb18030", "cp1252"])
    def test_names_that_the_disk_spells_otherwise(self, tmp_path, spelling):
        name = "王/a.jpg" if spelling == "gb18030" else "Zoë/a.jpg"
        form = {"NFC": "NFD", "NFD": "NFC"}.get(spelling, "NFC")
        if "NF" in spelling:
            there = unicodedata.normalize(spelling, name)
        else:
            there = os.fsdecode(name.encode(spelling))
        (tmp_path / "root" / there).parent.mkdir(parents=True)
        (tmp_path / "root" / there).touch()
        path = write(tmp_path, f"faces/{unicodedata.normalize(form, name)} 0\n")
        listed = read_face_list(path)
        images = ListedImages(ListedPaths(path, tmp_path / "root", "way out"), listed.text, listed.sample(20))
        assert [images.path(entry, 1) for _, entry, _ in listed.entries()] == [tmp_path / "root" / there]
        assert images.notes[0] == f"names on the disk are {spelling}"

    def test_no_endings(self, tmp_path):
        assert self.images(tmp_path, "p1/a 0\np2/b c 1\n") == []

    @pytest.mark.parametrize("encoding", ["gbk", "latin-1"])
    def test_other_encodings(self, tmp_path, encoding):
        names = ("王/a.jpg", "李/b.jpg") if encoding == "gbk" else ("Zoë/a.jpg", "Jürgen/b.jpg")
        notes = self.images(tmp_path, "".join(f"{name} {i}\n" for i, name in enumerate(names)), encoding, names)
        assert notes == [f"read as {'gb18030' if encoding == 'gbk' else 'cp1252'}"]

    @pytest.mark.skipif(os.name == "nt", reason="such names are no names there")
    def test_names_that_are_no_utf8_on_the_disk_either(self, tmp_path):
        name = os.fsdecode("王/a.jpg".encode("gbk"))
        (tmp_path / "list.txt").write_bytes("王/a.jpg 0\n".encode("gbk"))
        listed = read_face_list(tmp_path / "list.txt")
        assert [path for _, path, _ in listed.entries()] == [name]

    def test_a_race_folder_of_rfw(self, tmp_path):
        for person, number in (("m.01", 1), ("m.01", 2), ("m.02", 1)):
            image = tmp_path / "data" / "African" / person / f"{person}_{number:04d}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
        path = tmp_path / "African_pairs.txt"
        path.write_text("m.01\t1\t2\nm.01\t1\tm.02\t1\n")
        found = images_of(read_pair_list(path), tmp_path / "data", "way out")
        assert found.paths[1][1] == tmp_path / "data" / "African" / "m.02" / "m.02_0001.jpg"


def test_the_switch_settles_what_a_list_leaves_open(tmp_path):
    path = write(tmp_path, "a.jpg 1 2\nb.jpg 3 1\nc.jpg 3 7\n")
    with pytest.raises(ValueError, match="columns 2 and 3 could both be the label"):
        read_face_list(path)
    assert [label for _, _, label in read_face_list(path, "path,label,-").entries()] == ["1", "3", "3"]
    for columns in ("path", "path,path", "path,label,name", "path,what", "label,-"):
        with pytest.raises(ValueError, match="--columns must have one path, one label or name"):
            read_face_list(path, columns)
    with pytest.raises(ValueError, match="expected 4 "):
        read_face_list(write(tmp_path, "a.jpg\t1\n"), "path,label,-,-")


def test_a_heading_that_comes_again_is_counted(tmp_path):
    listed = read_face_list(write(tmp_path, "path label\na.jpg 1\nb.jpg 2\npath label\nc.jpg 3\n"))
    assert [label for _, _, label in listed.entries()] == ["1", "2", "3"]
    assert "the heading again 1 times" in listed.describe()
