import numpy as np
import pytest

from data.records.images import find_images, first_image_size, read_labels
from data.records.layout import pack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_face_records
from made_faces import encode


def test_insightface(tmp_path):
    write_face_records(tmp_path, [[encode(1, (20, 30))], [encode(2), encode(3)]])
    reader = RecordReader(tmp_path / "train.rec")
    assert find_images(reader) == (True, 1, 4)
    assert read_labels(reader, find_images(reader)).tolist() == [0, 1, 1]
    assert first_image_size(reader, find_images(reader)) == (20, 30)


def test_im2rec(tmp_path):
    with RecordWriter(tmp_path / "f.rec") as writer:
        for key, label in ((9, 2), (4, [5, 0.5]), (6, 7)):
            writer.write(key, pack(label, b"image"))
    reader = RecordReader(tmp_path / "f.rec")
    assert find_images(reader) == (False, 0, 3)
    assert read_labels(reader, find_images(reader)).tolist() == [5, 7, 2]
    with pytest.raises(ValueError, match=r"record key 4 at byte .*: not a decodable image"):
        first_image_size(reader, find_images(reader))


def test_no_image(tmp_path):
    with RecordWriter(tmp_path / "f.rec") as writer:
        writer.write(0, pack([1, 3]))
        writer.write(1, pack([1, 1]))
    with pytest.raises(ValueError, match=r"f\.rec: none of its 2 records holds an image"):
        find_images(RecordReader(tmp_path / "f.rec"))


def test_a_label_that_is_none(tmp_path):
    with RecordWriter(tmp_path / "f.rec") as writer:
        writer.write(0, pack(1, b"image"))
        writer.write(1, pack(0.5, b"image"))
    reader = RecordReader(tmp_path / "f.rec")
    with pytest.raises(ValueError, match=r"record key 1 at byte 40: label 0\.5 is no whole number"):
        read_labels(reader, find_images(reader))


def test_real_faces(shared_data):
    for name, images, identities, is_insightface in (
        ("lfw_train", 9450, 4040, True),
        ("lfw_small_im2rec", 738, 40, False),
    ):
        reader = RecordReader(shared_data / name / "train.rec")
        span = find_images(reader)
        labels = read_labels(reader, span)
        assert (len(labels), len(np.unique(labels)), span.is_insightface) == (images, identities, is_insightface)
        assert first_image_size(reader, span) == (112, 112)
