"""Our record files against mxnet itself: what one writes, the other reads to the byte."""

import itertools
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.records.images import find_images, read_labels
from data.records.layout import MAGIC, pack, unpack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_face_records
from face_files import record
from mxnet_server import mxnet_commands

pytestmark = pytest.mark.mxnet
MAGIC_BYTES = struct.pack("<I", MAGIC)
EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Pieces that put the magic on and off 4-byte boundaries, alone, doubled, and at both ends; now and then a long one.
pieces = st.one_of(
    st.just(MAGIC_BYTES), st.just(MAGIC_BYTES * 2), st.binary(max_size=9), st.just(MAGIC_BYTES[:2]), st.just(bytes(4))
)
payloads = st.one_of(
    st.lists(pieces, max_size=8).map(b"".join),
    st.integers(0, 20_000).map(lambda n: (b"long" + MAGIC_BYTES) * (n // 8)),
)
labels = st.floats(width=32, allow_nan=False)
records = st.dictionaries(st.integers(0, 2**31), payloads, min_size=1, max_size=12)
FIXED = [
    b"",
    b"x",
    MAGIC_BYTES,
    MAGIC_BYTES * 3,
    b"ab" + MAGIC_BYTES,
    b"abcd" + MAGIC_BYTES,
    MAGIC_BYTES + b"a",
    bytes(3),
]
names = itertools.count()


@pytest.fixture(scope="module")
def mxnet(tmp_path_factory):
    with mxnet_commands(tmp_path_factory.mktemp("mxnet")) as run:
        yield run


def write(stem, pairs):
    with RecordWriter(stem.with_suffix(".rec")) as writer:
        for key, payload in pairs:
            writer.write(key, payload)


def check_both_directions(mxnet, folder, pairs):
    number = next(names)
    ours, theirs = folder / f"ours{number}", folder / f"theirs{number}"
    write(ours, pairs)
    _, (by_key, in_order) = mxnet(("write", (theirs, pairs)), ("read", (ours,)))
    assert by_key == dict(pairs)
    assert in_order == [payload for _, payload in pairs]
    for suffix in (".rec", ".idx"):
        assert ours.with_suffix(suffix).read_bytes() == theirs.with_suffix(suffix).read_bytes()
    reader = RecordReader(theirs.with_suffix(".rec"))
    assert {key: record(reader, key) for key, _ in pairs} == dict(pairs)
    assert reader.read_many(range(len(pairs))) == [dict(pairs)[key] for key in sorted(dict(pairs))]


def test_fixed_payloads(mxnet, tmp_path):
    check_both_directions(mxnet, tmp_path, list(enumerate(FIXED)))
    check_both_directions(mxnet, tmp_path, list(enumerate(reversed(FIXED), 10)))


@EXAMPLES
@given(found=records)
def test_any_payloads(mxnet, tmp_path, found):
    check_both_directions(mxnet, tmp_path, list(found.items()))


@EXAMPLES
@given(
    label=st.one_of(labels, st.lists(labels, min_size=1, max_size=6)), image=payloads, id_=st.integers(0, 2**64 - 1)
)
def test_any_header(mxnet, label, image, id_):
    ours = pack(label, image, id_)
    theirs, (flag, their_label, their_id, their_id2, their_image) = mxnet(
        ("pack", (label, image, id_)), ("unpack", (ours,))
    )
    assert ours == theirs
    header, encoded = unpack(theirs)
    assert (header.flag, header.id, header.id2, bytes(encoded)) == (flag, their_id, their_id2, their_image)
    assert (header.label.tolist() if header.flag else header.label.item()) == their_label == label


@EXAMPLES
@given(
    faces=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 2**24), st.lists(st.integers(0, 2**24), min_size=1, max_size=3)), payloads
        ),
        min_size=1,
        max_size=8,
    )
)
def test_face_records_of_mxnet(mxnet, tmp_path, faces):
    """Headers, label vectors and images of a file that mxnet wrote in im2rec's form, scanned and read here."""
    stem = tmp_path / f"faces{next(names)}"
    packed = mxnet(*(("pack", (label, b"image" + image, i)) for i, (label, image) in enumerate(faces)))
    mxnet(("write", (stem, list(enumerate(packed)))))
    reader = RecordReader(stem.with_suffix(".rec"))
    assert read_labels(reader, find_images(reader)).tolist() == [int(np.ravel(label)[0]) for label, _ in faces]
    for i, (label, image) in enumerate(faces):
        header, encoded = reader.read_face(i)
        assert (header.label.tolist(), bytes(encoded)) == (np.ravel(label).tolist(), b"image" + image)


@EXAMPLES
@given(faces=st.lists(st.lists(payloads, min_size=1, max_size=3), min_size=1, max_size=5))
def test_insightface_form_read_as_arcface_torch_does(mxnet, tmp_path, faces):
    folder = tmp_path / f"set{next(names)}"
    write_face_records(folder, faces)
    (found,) = mxnet(("faces", (folder / "train",)))
    expected = [(label, image) for label, images in enumerate(faces) for image in images]
    assert found == [(key, *face) for key, face in enumerate(expected, 1)]


def test_real_faces(mxnet, shared_data):
    """Every record of the files that mxnet wrote reads as mxnet reads it."""
    for name in ("lfw_train", "lfw_small_im2rec"):
        reader = RecordReader(shared_data / name / "train.rec")
        ((by_key, in_order),) = mxnet(("read", (shared_data / name / "train",)))
        ours = reader.read_many(range(len(reader)))
        assert dict(zip(reader.keys.tolist(), ours, strict=True)) == by_key
        assert [ours[i] for i in np.argsort(reader.offsets)] == in_order
