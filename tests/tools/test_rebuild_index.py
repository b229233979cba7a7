import os

import numpy as np
import pytest

from data.faces import FaceRecords
from data.records.layout import MAGIC, PART, pack
from data.records.reader import RecordReader
from data.records.writer import write_face_records
from face_files import FACES, LABELS, VALUES, contents, face, write
from tools.rebuild_index import main

MAGIC_BYTES = MAGIC.to_bytes(4, "little")


@pytest.fixture
def folder(tmp_path):
    write_face_records(tmp_path, FACES)
    return tmp_path


def lines(folder):
    return (folder / "train.idx").read_text().splitlines(keepends=True)


def lose_index(folder):
    before = (folder / "train.idx").read_bytes()
    (folder / "train.idx").unlink()
    return before


def test_a_lost_index_comes_back_to_the_byte(folder, capsys):
    before = lose_index(folder)
    with pytest.raises(FileNotFoundError, match=r"python -m tools\.rebuild_index .*train\.rec"):
        RecordReader(folder / "train.rec")
    assert main([str(folder)]) == 0
    assert (folder / "train.idx").read_bytes() == before
    assert contents(FaceRecords(folder)) == (VALUES, LABELS)
    said = capsys.readouterr().out
    assert "because it is missing: 10 records, a header record first, keys 0 to 9 (the records' own numbers)" in said
    assert sorted(path.name for path in folder.iterdir()) == ["property", "train.idx", "train.rec"]


def test_an_index_of_another_name(folder, capsys):
    before = lose_index(folder)
    (folder / "train.rec").rename(folder / "faces.rec")
    assert main([str(folder / "faces.rec")]) == 0
    assert (folder / "faces.idx").read_bytes() == before


@pytest.mark.parametrize("form", ["im2rec", "im2rec from 1", "numbers with gaps", "backwards"])
def test_keys_as_the_packer_gave_them(tmp_path, form):
    keys = {"im2rec": [0, 1, 2], "im2rec from 1": [1, 2, 3], "numbers with gaps": [4, 9, 50], "backwards": [2, 1, 0]}
    write(tmp_path, [(key, pack(i, face(i), key)) for i, key in enumerate(keys[form])])
    before = lose_index(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "train.idx").read_bytes() == before


@pytest.mark.parametrize("number", [0, 7, 2**63])
def test_keys_are_counted_where_the_records_say_none(tmp_path, number, capsys):
    """As in a file merged from others: the header record gets 0, so that the images are where insightface looks."""
    records = [(0, pack([4, 5], b"", number)), *((k, pack(0, face(k), number)) for k in (1, 2, 3))]
    write(tmp_path, [*records, (4, pack([1, 4], b"", number))])
    before = lose_index(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "train.idx").read_bytes() == before
    assert "keys 0 to 4 (counted, since" in capsys.readouterr().out


def test_a_header_record_that_is_not_the_first_number_is_counted(tmp_path):
    write(tmp_path, [(0, pack([3, 4], b"", 9)), (1, pack(0, face(1), 1)), (2, pack(0, face(2), 2))])
    before = lose_index(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "train.idx").read_bytes() == before


def test_records_in_several_parts(tmp_path, capsys):
    image = face(5) + b"\0" * (-len(face(5)) % 4) + MAGIC_BYTES * 3 + b"end"
    write(tmp_path, [(0, pack(0, face(1), 0)), (1, pack(1, image, 1)), (2, pack(2, MAGIC_BYTES * 9, 2))])
    before = lose_index(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "train.idx").read_bytes() == before
    assert "3 records, 2 of them in several parts" in capsys.readouterr().out


@pytest.mark.parametrize("left", [1, 7, 9, 40])
def test_a_last_record_that_is_cut_short_is_left_out_and_said(folder, left, capsys):
    before = lines(folder)
    data = (folder / "train.rec").read_bytes()
    start = int(before[-1].split()[1])
    (folder / "train.rec").write_bytes(data[: start + left] if left < 9 else data[: start + 20])
    assert main([str(folder)]) == 0
    assert lines(folder) == before[:-1]
    assert f"left out: a record that is cut short at byte {start}" in capsys.readouterr().out
    assert contents(FaceRecords(folder)) == (VALUES, LABELS)


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_a_file_that_ends_within_an_image_is_trained_on_with_a_note(folder, mode):
    before = lines(folder)
    start = int(before[5].split()[1])
    os.truncate(folder / "train.rec", start + 60)
    with pytest.raises(ValueError, match=r"python -m tools\.rebuild_index"):
        FaceRecords(folder, on_bad_sample=mode)
    assert main([str(folder)]) == 0
    assert lines(folder) == before[:5]
    faces = FaceRecords(folder, on_bad_sample=mode)
    assert contents(faces) == (VALUES[:4], LABELS[:4])
    assert faces.labels.tolist() == LABELS[:4]
    assert f"train.rec: it ends within the record at byte {start}, which is left out" in faces.note
    assert faces.warning == ""


@pytest.mark.parametrize("numbers", [[0, *range(107, 101, -1), 2, 1, 3], [0, *range(101, 107), 1, 2, 3]])
def test_numbers_that_do_not_increase_after_a_header_record_are_no_keys(folder, numbers):
    """As keys they would move the identity records among the images."""
    reader = RecordReader(folder / "train.rec")
    payloads = [bytearray(reader.read_at(i)) for i in range(len(reader))]
    for payload, number in zip(payloads, numbers, strict=True):
        payload[8:16] = number.to_bytes(8, "little")
    write(folder, list(enumerate(map(bytes, payloads))))
    before = lose_index(folder)
    assert main([str(folder)]) == 0
    assert (folder / "train.idx").read_bytes() == before
    assert contents(FaceRecords(folder)) == (VALUES, LABELS)


def test_zeros_of_an_unfinished_download_are_left_out_and_said(folder, capsys):
    before = lines(folder)
    data, start = (folder / "train.rec").read_bytes(), int(before[4].split()[1])
    (folder / "train.rec").write_bytes(data[:start] + bytes(len(data) - start))
    assert main([str(folder)]) == 0
    assert lines(folder) == before[:4]
    assert f"left out: zeros from byte {start} on" in capsys.readouterr().out


def test_damage_in_the_middle_is_named_and_nothing_written(folder, capsys):
    start = int(lines(folder)[4].split()[1])
    lose_index(folder)
    with (folder / "train.rec").open("r+b") as file:
        file.seek(start)
        file.write(b"oops")
    assert main([str(folder)]) == 2
    assert f"record number 4 at byte {start}: expected the magic" in capsys.readouterr().err
    assert not (folder / "train.idx").exists()


def test_a_sound_index_is_kept(folder, capsys):
    shuffled = "".join(lines(folder)[::-1])
    (folder / "train.idx").write_text(shuffled)
    assert main([str(folder)]) == 0
    assert (folder / "train.idx").read_text() == shuffled
    assert "sound, it lists all 10 records; nothing is written" in capsys.readouterr().out
    assert main([str(folder), "--force"]) == 0
    assert "".join(lines(folder)[::-1]) == shuffled
    assert (folder / "train.idx.old").read_text() == shuffled


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:2], "it lists 2 of 10 records"),
        (lambda text: ["0\t0\n", "1\t4\n"], "1 of its 2 lines point at no record's start"),
        (lambda text: [*text[:9], text[8].replace("8", "9", 1)], "two of its lines point at the same record"),
        (lambda text: ["no index"], "expected `key<TAB>offset`"),
        (lambda text: [], "the index is empty"),
    ],
)
def test_a_damaged_index_is_replaced_and_kept_beside(folder, damage, said, capsys):
    before = lines(folder)
    damaged = "".join(damage(before))
    (folder / "train.idx").write_text(damaged)
    with pytest.raises(ValueError, match=r"python -m tools\.rebuild_index .*train\.rec"):
        np.asarray(FaceRecords(folder).labels)
    assert main([str(folder)]) == 0
    assert lines(folder) == before
    assert (folder / "train.idx.old").read_text() == damaged
    assert said in capsys.readouterr().out


def test_what_is_no_record_file(tmp_path, capsys):
    (tmp_path / "train.rec").write_bytes(PART.pack(MAGIC, 500) + b"short")
    for source, said in (
        (tmp_path, "no whole record in it: a record that is cut short at byte 0"),
        (tmp_path / "other.rec", "other.rec: no such file"),
        (tmp_path / "train.idx", "expected a file that ends in .rec"),
    ):
        assert main([str(source)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "train.idx").exists()
