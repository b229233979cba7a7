import json
import re

import pytest

from made_faces import encode, make_folder
from packed_faces import PEOPLE, near, run, values


@pytest.fixture
def src(tmp_path):
    return make_folder(tmp_path / "faces", PEOPLE)


class TestList:
    def pack(self, src, tmp_path, text, *extra):
        (tmp_path / "faces.lst").write_bytes(text.encode() if isinstance(text, str) else text)
        return run(src, tmp_path / "out", "--list", tmp_path / "faces.lst", "--workers", 1, *extra)

    @pytest.mark.parametrize(
        "text",
        [
            "eve/b.jpg 9\nann/2.jpg 10\nbob/only.jpg 9\nann/10.jpg 10\n",
            "0\t9.000000\teve/b.jpg\n1\t10.000000\tann/2.jpg\n7\t9\tbob/only.jpg\n3\t10\tann/10.jpg\n",
            "1\teve/b.jpg\t9\n1\tann/2.jpg\t10\n1\tbob/only.jpg\t9\n1\tann/10.jpg\t10\n",
            "0\t9\t0.5\t0.25\teve/b.jpg\n1\t10\t1\t2\tann/2.jpg\n7\t9\t3\t4\tbob/only.jpg\n3\t10\t5\t6\tann/10.jpg\n",
            "\ufeffeve/b.jpg\t9\r\n\r\nann/2.jpg\t10\r\nbob/only.jpg\t9\r\nann/10.jpg\t10",
        ],
        ids=["path label", "im2rec", "insightface", "im2rec with more labels", "tab, windows, bom, blank line"],
    )
    def test_forms(self, src, tmp_path, text):
        """Numbers are sorted as numbers, and an identity's images keep the order of their lines."""
        assert self.pack(src, tmp_path, text) == 0
        found, labels = values(tmp_path / "out")
        assert near(found, [60, 40, 20, 10])
        assert labels == [0, 0, 1, 1]
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["9", "10"]

    @pytest.mark.parametrize(
        ("text", "form"),
        [
            (
                "image label\n{a} 0\n{b} 1\n{c} 10\n",
                "blank-separated, heading line 'image label', path in",
            ),
            ("path,label\n{a},0\n{b},1\n{c},10\n", "comma-separated, heading line 'path,label', path in"),
            (
                "{a} 0 0 0\n{b} 0 1 0\n{c} 0 10 0\n",
                "path in column 1, label in column 3, columns 2, 4 left",
            ),
            (
                "0\t0\teve\\b.jpg\n1\t1\tann\\2.jpg\n2\t10\tbob\\only.jpg\n",
                "1 left out; backslashes read as /",
            ),
        ],
        ids=["heading", "csv", "four columns", "windows"],
    )
    def test_forms_are_named_and_numbers_stay_themselves(self, src, tmp_path, capsys, text, form):
        assert self.pack(src, tmp_path, text.format(a="eve/b.jpg", b="ann/2.jpg", c="bob/only.jpg")) == 0
        found, labels = values(tmp_path / "out")
        assert near(found, [60, 20, 40])
        assert labels == [0, 1, 2]
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["0", "1", "10"]
        printed = capsys.readouterr().out
        assert printed.startswith("list: 3 lines, ")
        assert form in printed
        assert "labels: whole numbers 0 to 10, numbered from 0 in their order\n" in printed

    def test_names_are_numbered_in_a_stated_order(self, src, tmp_path, capsys):
        assert self.pack(src, tmp_path, "eve/b.jpg 10\nann/2.jpg 9\n", "--columns", "path,name") == 0
        assert near(values(tmp_path / "out")[0], [60, 20])
        assert "labels: names, numbered from 0 in the order of their text: 0 is '10'" in capsys.readouterr().out
        assert run(src, tmp_path / "out2", "--columns", "path,label") == 2
        assert "give it with --list" in capsys.readouterr().err

    def test_names_blanks_and_absolute_paths(self, tmp_path):
        src = make_folder(tmp_path / "faces", {"a b": {"c d.jpg": encode(10)}, "x": {"y.jpg": encode(20)}})
        text = f"a b/c d.jpg\tZoë Smith\n{src / 'x' / 'y.jpg'}\tAda\n"
        assert self.pack(src, tmp_path, text) == 0
        assert near(values(tmp_path / "out")[0], [20, 10])
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["Ada", "Zoë Smith"]

    def test_blanks_in_a_path_before_a_label(self, tmp_path):
        src = make_folder(tmp_path / "faces", {"a b": {"c d.jpg": encode(10)}})
        assert self.pack(src, tmp_path, "a b/c d.jpg 5\n") == 0

    def test_long_numbers_stay_apart(self, src, tmp_path):
        ids = [12345678901234567890, 12345678901234567891]
        assert self.pack(src, tmp_path, f"eve/b.jpg {ids[1]}\nann/2.jpg {ids[0]}\n") == 0
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == [str(i) for i in ids]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the list is empty"),
            ("\n \n", "the list is empty"),
            ("eve/b.jpg\n", "line 1 is 'eve/b.jpg', expected a path and a label; .* 'p1/a.jpg 0'"),
            ("eve/b.jpg 1\nann/2.jpg\n", "line 2 is 'ann/2.jpg'"),
            (
                "eve/b.jpg\tx y\nann/2.jpg y\n",
                "line 2 is 'ann/2.jpg y', expected 2 tab-separated columns",
            ),
            (
                "eve/b.jpg 0\nann/2.jpg 1\nann/10.jpg one\nbob/only.jpg 2\n",
                "line 3 is .* of 3 other lines .* path,name",
            ),
            (
                "eve/b.jpg 1 2\nann/2.jpg 3 1\nann/1.JPEG 3 7\n",
                "columns 2 and 3 could .* --columns path,-,label",
            ),
            ("eve/b.jpg eve/a.png 1\n", "two images on each line, .* tools.make_bin"),
            ("001 2\n003 4\n", "which column is the path.* --columns"),
            ("image label\n", "a heading and no line below it"),
            (
                "nowhere/b.jpg 0\nnowhere/c.jpg 1\n",
                "none of its 2 images is there, .* line 1: .*/b.jpg",
            ),
            ("x" * 10_000_000, "line 1: longer than 65,536 bytes"),
            ("eve/b.jpg 0\nann/2\0.jpg 0\n", "line 2: a zero byte"),
            (
                "1\teve/b.jpg\t3\n0\tann/2.jpg\t4\n",
                "line 2 starts with 0, which in insightface lists marks a face that is not aligned",
            ),
        ],
    )
    def test_refused(self, src, tmp_path, capsys, text, message):
        assert self.pack(src, tmp_path, text) == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.startswith(f"pack_rec: error: {tmp_path / 'faces.lst'}")
        assert error.count("\n") == 1
        assert len(error) < 1000

    def test_missing_images_are_listed(self, src, tmp_path, capsys):
        assert self.pack(src, tmp_path, "eve/b.jpg 0\nnone.jpg 1\n") == 0
        printed = capsys.readouterr().out
        assert f"missing: 1 of 2 images, the first line 2: {src / 'none.jpg'}" in printed
        assert "none.jpg: No such file" in printed

    def test_labels_below_zero_are_nobody(self, src, tmp_path, capsys):
        assert self.pack(src, tmp_path, "eve/b.jpg 0\nann/2.jpg -1\nbob/only.jpg 1\nann/10.jpg -1.0\n") == 0
        assert near(values(tmp_path / "out")[0], [60, 40])
        printed = capsys.readouterr().out
        assert (
            "left out: 2 images whose label is below 0, which stands for nobody known; the first in line 2" in printed
        )
        assert "0 to 1, each keeps its number\n" in printed
        assert self.pack(src, tmp_path, "eve/b.jpg -1\nann/2.jpg -1\n", "--overwrite") == 2
        assert "all labels are below 0" in capsys.readouterr().err

    def test_numbers_keep_their_spelling_if_they_have_one(self, src, tmp_path, capsys):
        text = "eve/b.jpg 007\nann/2.jpg 010\nbob/only.jpg 10\nann/10.jpg 7.000000\n"
        assert self.pack(src, tmp_path, text) == 0
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["007", "10"]
        assert "; 1 of them are written in several ways, such as 010 and 10: one\n" in capsys.readouterr().out

    def test_an_image_of_two_people_is_told(self, src, tmp_path, capsys):
        text = "eve/b.jpg 0\nann/2.jpg 1\neve/b.jpg 1\nann/2.jpg 1\nbob/only.jpg 0\n"
        assert self.pack(src, tmp_path, text) == 0
        assert (
            "more than once: 2 images are listed, and packed, several times, 1 of them as several people"
            in capsys.readouterr().out
        )
        assert self.pack(src, tmp_path, "eve/b.jpg 0\nann/2.jpg 1\n", "--overwrite") == 0
        assert "more than once" not in capsys.readouterr().out
