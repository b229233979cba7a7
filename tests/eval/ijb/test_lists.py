import re

import numpy as np
import pytest

from embedder.align import TEMPLATE
from eval.ijb import lists as ijb
from eval.ijb.lists import read_ijb

POINTS = np.stack([(TEMPLATE + 10 * i).round(1).ravel() for i in range(4)])


@pytest.fixture
def tree(tmp_path):
    """Four images, three templates, three pairs, under both names."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "loose_crop").mkdir()
    for i in range(4):
        (tmp_path / "loose_crop" / f"{i}.jpg").write_bytes(b"jpeg")
    for lower in ("ijbc", "ijbb"):
        stem = tmp_path / "meta" / lower
        points = [" ".join(f"{x:.1f}" for x in face) for face in POINTS]
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
    np.testing.assert_array_equal(read.landmarks.reshape(4, 10), POINTS.astype(np.float32))
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
            " ".join(f"{x:.1f}" for x in POINTS[1]),
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


def add_galleries(root, target="IJBC"):
    """Persons 10 and 20 in the first gallery, 30 in the second; a template may stand on several lines."""
    first, second = ijb.GALLERIES[target]
    lower = target.lower()
    (root / "meta" / f"{lower}_1N_gallery_{first}.csv").write_text("T,S,F\n3,10,a\n3,10,b\n1,20,c\n")
    (root / "meta" / f"{lower}_1N_gallery_{second}.csv").write_text("T,S\n4,30\n")
    (root / "meta" / f"{lower}_1N_probe_mixed.csv").write_text("T,S\n4,30\n1,20\n")


@pytest.mark.parametrize("target", ["IJBC", "IJBB"])
def test_galleries_and_probes(tree, target):
    add_galleries(tree, target)
    read = read_ijb(tree, target, "both")
    first, second = ijb.GALLERIES[target]
    assert read.galleries[first].template_ids.tolist() == [1, 3]
    assert read.galleries[first].subject_ids.tolist() == [20, 10]
    assert read.galleries[second].template_ids.tolist() == [4]
    assert read.probes.subject_ids.tolist() == [20, 30]
    assert len(read.pair_label) == 3
    (tree / "meta" / f"{target.lower()}_template_pair_label.txt").unlink()
    read = read_ijb(tree, target, "1n")
    assert len(read.pair_label) == 0
    assert len(read.galleries) == 2
    with pytest.raises(FileNotFoundError, match=r"protocol both: meta/.*_template_pair_label\.txt missing"):
        read_ijb(tree, target, "both")


def test_one_to_n_lists_are_checked(tree):
    wanted = r"1N_gallery_G1\.csv, meta/ijbc_1N_gallery_G2\.csv, meta/ijbc_1N_probe_mixed\.csv missing"
    with pytest.raises(FileNotFoundError, match=wanted):
        read_ijb(tree, protocol="1n")
    with pytest.raises(ValueError, match="11, 1n, both, got '12'"):
        read_ijb(tree, protocol="12")
    add_galleries(tree)
    gallery = tree / "meta" / "ijbc_1N_gallery_G1.csv"
    text = gallery.read_text()
    for wrong, message in (
        (text + "9,40\n", r"gallery_G1\.csv, line 5: template 9 has no images"),
        (text + "1,21\n", r"gallery_G1\.csv: template 1 is of subject 20 on one line and of 21 on another"),
        (text + "1\n", r"gallery_G1\.csv, line 5: expected 2 whole numbers"),
    ):
        gallery.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_ijb(tree, protocol="1n")


def test_everything_wrong_is_named_at_once(tree):
    add_galleries(tree)
    (tree / "loose_crop" / "2.jpg").unlink()
    change(tree, "name_5pts_score", "1.jpg", "9.jpg")
    change(tree, "template_pair_label", "1 4 0", "1 8 0")
    (tree / "meta" / "ijbc_1N_probe_mixed.csv").write_text("T,S\n7,30\n")
    with pytest.raises(FileNotFoundError) as caught:
        read_ijb(tree, protocol="both")
    message = str(caught.value)
    assert message.startswith("4 problems: (1) ")
    for part in (
        "line 2 is '1.jpg'",
        "line 2: template 8 has no images",
        "probe_mixed.csv, line 2: template 7 has no images",
        "(4) 1 of 4 images are missing",
    ):
        assert part in message


def test_many_missing_images_are_counted(tree):
    for i in range(4):
        (tree / "loose_crop" / f"{i}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4 of 4 images are missing in .*: 0\.jpg, 1\.jpg, 2\.jpg, 3\.jpg$"):
        read_ijb(tree)


def test_stamps_tell_a_changed_image(tree):
    before = read_ijb(tree).stamps
    assert before.shape == (4, 2)
    assert before[:, 0].tolist() == [4] * 4
    (tree / "loose_crop" / "2.jpg").write_bytes(b"another")
    after = read_ijb(tree).stamps
    assert (before != after).any(axis=1).tolist() == [False, False, True, False]


def test_template_ids_far_apart(tree):
    change(tree, "face_tid_mid", "3.jpg 4 7", f"3.jpg {1 << 40} 7")
    change(tree, "template_pair_label", "1 4 0\n3 4 0", f"1 {1 << 40} 0\n3 {1 << 40} 0")
    assert read_ijb(tree).pair_template_2.tolist() == [3, 1 << 40, 1 << 40]
    change(tree, "template_pair_label", f"3 {1 << 40} 0", "3 2 0")
    with pytest.raises(ValueError, match="line 3: template 2 has no images"):
        read_ijb(tree)


@pytest.fixture
def many(tree):
    """100 images under IJB-C's names, and what writes their landmarks."""
    meta = tree / "meta"
    points = TEMPLATE * 2 + np.random.default_rng(0).normal(0, 1, (100, 5, 2)) + 50
    (meta / "ijbc_face_tid_mid.txt").write_text("".join(f"{i % 4}.jpg {(1, 3, 4)[i % 3]} {i}\n" for i in range(100)))

    def write(faces):
        lines = (f"{i % 4}.jpg {' '.join(map(str, face.ravel()))} 0.9\n" for i, face in enumerate(faces))
        (meta / "ijbc_name_5pts_score.txt").write_text("".join(lines))

    return points, write


def test_landmarks_in_another_order_are_refused_by_its_name(tree, many):
    points, write = many
    for wrong, name in (
        (points[:, [1, 0, 2, 4, 3]], "left and right exchanged"),
        (points[:, :, ::-1], "y before x"),
        (points.transpose(0, 2, 1), "x1,...,x5,y1,...,y5"),
    ):
        write(wrong)
        message = rf"of \d+ of 100 images lie as .*\(line 1 first\).* given with {re.escape(name)}"
        with pytest.raises(ValueError, match=message):
            read_ijb(tree)
    write(points / 400)
    with pytest.raises(ValueError, match="of 100 of 100 images lie within 0 to 1, from line 1 on"):
        read_ijb(tree)
    write(points[:, [0, 2, 1, 4, 3]])
    with pytest.raises(ValueError, match=r"of 100 of 100 images miss a face's places by more than 10 of 112"):
        read_ijb(tree)


def test_a_few_bad_landmarks_are_counted(tree, many, caplog):
    points, write = many
    points[[7, 9]] = points[[7, 9]][:, :, ::-1]
    write(points)
    with caplog.at_level("WARNING", "mhs_arcface"):
        assert len(read_ijb(tree).names) == 100
    (line,) = set(caplog.messages)
    assert "the landmarks of 2 of 100 images miss a face's places" in line
    assert "(line 8 3.jpg, line 10 1.jpg): faces" in line
    assert line.endswith("2 of them fit another order")
