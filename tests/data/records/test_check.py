import numpy as np
import pytest

from data.faces import FaceRecords
from data.records.check import check_records, find_stop, is_whole
from data.records.layout import MAGIC, pack
from data.records.reader import RecordReader
from data.records.writer import write_face_records
from face_files import LABELS, face, insightface_records, write

MAGIC_BYTES = MAGIC.to_bytes(4, "little")


def check(folder):
    reader = RecordReader(folder / "train.rec")
    return check_records(reader, 1, find_stop(reader))


@pytest.fixture
def canonical(tmp_path):
    """10 identities with 3 images each, in insightface's form: image i of identity k has key 3k + i + 1."""
    write_face_records(tmp_path, [[face(10 * k + i) for i in range(3)] for k in range(10)])
    return tmp_path


def patch(folder, key, at, data):
    """Overwrite bytes of the payload of a record."""
    reader = RecordReader(folder / "train.rec")
    offset = int(reader.offsets[reader.keys == key][0]) + 8 + at
    with (folder / "train.rec").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_sound_file(canonical):
    result = check(canonical)
    assert result[1:] == ("", "", "")
    assert result.labels_N.tolist() == np.repeat(np.arange(10), 3).tolist()


def test_an_image_with_another_label_than_its_neighbours_is_used_and_said(canonical):
    patch(canonical, 5, 4, np.float32(7).tobytes())
    result = check(canonical)
    assert result.problem == ""
    assert "images of several labels in one: 1 (the first is record key 32 with 4 and 7)" in result.note
    for how in ("stop", "skip"):
        faces = FaceRecords(canonical, on_bad_sample=how)
        assert faces.labels[3:6].tolist() == [1, 7, 1]
        assert len(faces.find_unusable()) == 0
        assert faces.note == result.note
        assert faces.warning == ""


def test_a_damaged_identity_record_is_only_said(canonical):
    patch(canonical, 33, 24, np.array([np.nan, 12], "<f4").tobytes())
    patch(canonical, 34, 0, b"\xff\xff\xff\xff")
    result = check(canonical)
    assert result.problem == ""
    assert "no range of keys: 2 (the first is record key 33)" in result.note
    assert result.labels_N.tolist() == np.repeat(np.arange(10), 3).tolist()


@pytest.mark.parametrize("key", [1, 30])
def test_a_damaged_header_at_either_end_of_the_images(canonical, key):
    """The last image stays an image, though its record cannot be read."""
    patch(canonical, key, -8, b"\0\0\0\0")
    result = check(canonical)
    assert f"record key {key} at byte" in result.problem
    assert "expected the magic" in result.problem
    assert np.flatnonzero(result.labels_N < 0).tolist() == [key - 1]
    assert len(result.labels_N) == 30


def test_missing_lines(canonical):
    lines = (canonical / "train.idx").read_text().splitlines(keepends=True)
    for gone in (1, 17, 30, 33, len(lines) - 1):
        (canonical / "train.idx").write_text("".join(lines[:gone] + lines[gone + 1 :]))
        offset = lines[gone].split()[1]
        assert f"does not list the record at byte {offset} of train.rec" in check(canonical).unlisted, gone
    with pytest.raises(ValueError, match=r"train\.idx: it does not list the record at byte"):
        FaceRecords(canonical).labels  # noqa: B018
    faces = FaceRecords(canonical, on_bad_sample="skip")
    assert len(faces.labels) == 30
    assert "does not list" in faces.warning


def test_a_line_twice_hides_no_missing_one(canonical):
    """All records are of one size, so that the sum of the listed ones is the file's."""
    lines = (canonical / "train.idx").read_text().splitlines(keepends=True)
    lines[17] = f"17\t{lines[18].split()[1]}\n"
    (canonical / "train.idx").write_text("".join(lines))
    assert "does not list" in check(canonical).unlisted


def test_records_in_several_parts_leave_no_gap(tmp_path):
    """Also where a missing line follows one: its end lies a few bytes beyond what its length says."""
    records = insightface_records()
    records[3] = (3, pack(1, face(20) + b"\0" * (-len(face(20)) % 4) + MAGIC_BYTES * 9 + b"end"))
    write(tmp_path, records)
    result = check(tmp_path)
    assert (result.unlisted, result.problem) == ("", "")
    assert result.labels_N.tolist() == LABELS
    lines = (tmp_path / "train.idx").read_text().splitlines(keepends=True)
    (tmp_path / "train.idx").write_text("".join(lines[:4] + lines[5:]))
    assert f"the record at byte {lines[4].split()[1]} of" in check(tmp_path).unlisted


def test_keys_shuffled_against_the_file(canonical):
    lines = (canonical / "train.idx").read_text().splitlines(keepends=True)
    (canonical / "train.idx").write_text("".join(lines[::-1]))
    assert check(canonical)[1:] == ("", "", "")


def test_is_whole():
    labels = np.array([0, 1, 2**24, 2**24 + 2, -1, 0.5, np.nan, np.inf], np.float32)
    assert is_whole(labels).tolist() == [True, True, True, False, False, False, False, False]
