import numpy as np
import pytest

from eval import ijb
from eval.ijb import read_ijb, read_named_lines, read_number_lines


@pytest.fixture
def tree(tmp_path):
    """Four images, three templates, three pairs, under both names."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").mkdir()
    for i in range(4):
        (tmp_path / "loose_crop" / f"{i}.jpg").write_bytes(b"jpeg")
    for lower in ("ijbc", "ijbb"):
        stem = tmp_path / "meta" / lower
        points = [" ".join(f"{10 * i + k}.5" for k in range(10)) for i in range(4)]
        stem.with_name(f"{lower}_face_tid_mid.txt").write_text("0.jpg 1 5\n1.jpg 1 5\n2.jpg 3 6\n3.jpg 4 7\n")
        stem.with_name(f"{lower}_template_pair_label.txt").write_text("1 3 1\n1 4 0\n3 4 0\n")
        stem.with_name(f"{lower}_name_5pts_score.txt").write_text(
            "".join(f"{i}.jpg {points[i]} 0.{i + 1}\n" for i in range(4))
        )
    return tmp_path


def change(tree, what, old, new):
    path = tree / "meta" / f"ijbc_{what}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("target", ["IJBC", "IJBB"])
def test_reads_every_list(tree, target):
    read = read_ijb(tree, target)
    assert read.target == target
    assert read.names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert read.template_ids.tolist() == [1, 1, 3, 4]
    assert read.media_ids.tolist() == [5, 5, 6, 7]
    assert read.landmarks.shape == (4, 5, 2)
    assert read.landmarks[1].ravel().tolist() == [10 + k + 0.5 for k in range(10)]
    np.testing.assert_allclose(read.detector_scores, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert read.pair_template_1.tolist() == [1, 1, 3]
    assert read.pair_template_2.tolist() == [3, 4, 4]
    assert read.pair_label.tolist() == [1, 0, 0]


@pytest.mark.parametrize("what", ["face_tid_mid", "template_pair_label", "name_5pts_score"])
def test_missing_list_is_named(tree, what):
    (tree / "meta" / f"ijbc_{what}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"meta/ijbc_{what}\.txt missing"):
        read_ijb(tree)
    read_ijb(tree, "IJBB")


def test_missing_folders(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*loose_crop/ missing"):
        read_ijb(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="IJBC, IJBB, got 'IJBA'"):
        read_ijb(tree, "IJBA")


def test_missing_images_are_named(tree):
    (tree / "loose_crop" / "2.jpg").unlink()
    (tree / "loose_crop" / "3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 4 images .*2\.jpg, 3\.jpg"):
        read_ijb(tree)


def test_images_may_lie_in_folders(tree):
    (tree / "loose_crop" / "img").mkdir()
    (tree / "loose_crop" / "2.jpg").rename(tree / "loose_crop" / "img" / "2.jpg")
    change(tree, "face_tid_mid", "2.jpg", "img/2.jpg")
    change(tree, "name_5pts_score", "2.jpg", "img/2.jpg")
    assert read_ijb(tree).names[2] == "img/2.jpg"


@pytest.mark.parametrize(
    ("what", "old", "new", "message"),
    [
        ("name_5pts_score", "2.jpg", "9.jpg", r"line 3 is '2\.jpg' in .*tid_mid.* and '9\.jpg' in .*5pts"),
        ("face_tid_mid", "3.jpg 4 7\n", "", "has 3 lines and .* 4"),
        ("face_tid_mid", "1.jpg 1 5", "1.jpg 1", "line 2: expected a file name and 2 whole numbers, found '1.jpg 1'"),
        ("face_tid_mid", "1.jpg 1 5", "1.jpg 1 5 6", "tid_mid.txt, line 2"),
        ("face_tid_mid", "1.jpg 1 5", "1.jpg 1 x", "tid_mid.txt, line 2"),
        ("face_tid_mid", "1.jpg 1 5", "1.jpg 1 5.5", "tid_mid.txt, line 2"),
        ("name_5pts_score", "0.2\n", "high\n", "5pts_score.txt, line 2: expected a file name and 11 numbers"),
        (
            "name_5pts_score",
            "10.5 11.5 12.5 13.5 14.5 15.5 16.5 17.5 18.5 19.5",
            "7 9 7.2 9 7 9.1 7.9 9 7 9",
            r"5pts_score.txt, line 2: the landmarks of 1.jpg all lie in one point \(1 such .* list and of .*tid_mid",
        ),
        ("name_5pts_score", "0.2\n", "nan\n", "line 2: landmarks or score of 1.jpg are not finite"),
        ("template_pair_label", "1 4 0", "1 4", "label.txt, line 2: expected 3 whole numbers, found '1 4'"),
        ("template_pair_label", "1 4 0", "1 4 0.5", "label.txt, line 2"),
        ("template_pair_label", "1 4 0", "1 4 2", "line 2: label 2, expected 0 or 1"),
        ("template_pair_label", "1 4 0", "1 8 0", "line 2: template 8 has no images"),
        ("template_pair_label", "1 3 1", "1 3 0", "0 of 3 pairs are of one person"),
        ("template_pair_label", "1 4 0\n", "\n", "label.txt, line 2"),
        ("template_pair_label", "1 4 0\n3 4 0", "1 4\n0 3 4 0", "label.txt, line 2: .* found '1 4'"),
        ("template_pair_label", "1 4 0\n3 4 0", "1 4 0 3\n4 0", "label.txt, line 2: .* found '1 4 0 3'"),
        ("template_pair_label", "1 4 0\n", "\n1 4 0\n", "label.txt, line 2: .* found ''"),
    ],
)
def test_wrong_rows_are_named(tree, what, old, new, message):
    change(tree, what, old, new)
    with pytest.raises(ValueError, match=message):
        read_ijb(tree)


@pytest.mark.parametrize("what", ["face_tid_mid", "template_pair_label", "name_5pts_score"])
def test_empty_list(tree, what):
    (tree / "meta" / f"ijbc_{what}.txt").write_text("\n")
    with pytest.raises(ValueError, match=rf"ijbc_{what}\.txt is empty"):
        read_ijb(tree)


def test_line_ends_and_tabs(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"1 2 3\r\n4\t5  6")
    assert read_number_lines(path, 3).tolist() == [[1, 2, 3], [4, 5, 6]]
    path.write_bytes(b"a.jpg\t1  2\r\nb.jpg 3 4\r\n\r\n")
    names, numbers = read_named_lines(path, 2, np.int64)
    assert names == ["a.jpg", "b.jpg"]
    assert numbers.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("block", [1, 2, 5, 6, 7, 1 << 20])
def test_every_line_is_looked_at_in_any_block(tmp_path, monkeypatch, block):
    monkeypatch.setattr(ijb, "_BYTES_PER_BLOCK", block)
    path = tmp_path / "list.txt"
    lines = ["1 2", "  3\t-4  ", "500000 6\r", "7 8"]
    for end in ("", "\n"):
        path.write_text("\n".join(lines) + end, newline="")
        assert read_number_lines(path, 2).tolist() == [[1, 2], [3, -4], [500000, 6], [7, 8]]
    for row in range(4):
        for wrong in ("1", "1 2 3", ""):
            path.write_text("\n".join([*lines[:row], wrong, *lines[row:]]) + "\n1 2", newline="")
            with pytest.raises(ValueError, match=rf"line {row + 1}: expected 2 whole numbers, found '{wrong}'"):
                read_number_lines(path, 2)
