import pickle

import pytest

from data.databases import parse_datum
from dataset import get_dataloader, open_faces
from face_files import FACES, LABELS, VALUES, contents, face

lmdb = pytest.importorskip("lmdb", reason="the package lmdb is not installed")

IMAGES = [image for images in FACES for image in images]


def write_database(folder, items):
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in items:
            transaction.put(key, value)
    return folder


def numbered(labels=LABELS, first=1):
    items = [(b"num-samples", b"%d" % len(labels))]
    for i, (image, label) in enumerate(zip(IMAGES, labels, strict=True), first):
        items += [(b"image-%09d" % i, image), (b"label-%09d" % i, str(label).encode())]
    return items


def varint(number):
    number &= (1 << 64) - 1
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def datum(data, label, is_encoded=True):
    sizes = b"\x08\x03\x10\x70\x18\x70"  # channels, height, width
    return sizes + b"\x22" + varint(len(data)) + data + b"\x28" + varint(label) + b"\x38" + varint(is_encoded)


def caffe(labels=LABELS, **options):
    return [(b"%08d_a.jpg" % i, datum(*one, **options)) for i, one in enumerate(zip(IMAGES, labels, strict=True))]


def listed(folder):
    write_database(folder, [(b"b/%d" % i, image) for i, image in enumerate(IMAGES)])
    (folder / "labels.txt").write_text("".join(f"b/{i} {LABELS[i]}\n" for i in range(6)))
    return folder


@pytest.mark.parametrize("form", ["numbered", "caffe", "listed"])
def test_three_forms_are_read(tmp_path, form):
    folder = (
        listed(tmp_path)
        if form == "listed"
        else write_database(tmp_path, {"numbered": numbered, "caffe": caffe}[form]())
    )
    faces = open_faces(folder)
    assert faces.form == form
    assert faces.note == ""
    assert contents(faces) == (VALUES, LABELS)
    assert faces.labels.tolist() == LABELS
    (batch,) = get_dataloader(str(folder), 6, num_workers=2)
    order = batch.sample_ids_B.argsort()
    assert batch.images_BHW3[order][:, 5, 5, 0].tolist() == VALUES


def test_a_single_file_database_and_class_names(tmp_path):
    folder = write_database(tmp_path / "a", numbered())
    (folder / "data.mdb").rename(tmp_path / "faces.mdb")
    (tmp_path / "classes.json").write_text('["x", "y", "z"]')
    faces = open_faces(tmp_path / "faces.mdb")
    assert contents(faces) == (VALUES, LABELS)
    assert faces.class_names() == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "the database is empty"),
        ([(b"__keys__", b"x")], r"'__keys__' of folder2lmdb, whose values are pickles.*tools\.pack_rec"),
        ([(b"0", pickle.dumps((b"x", 1)))], "is a pickle, which can run code"),
        ([(b"0", b"\x93\xc4\x10abc")], r"neither an image nor Caffe's Datum \(93c410616263"),
        ([(b"0", face(1))], r"images without labels: write a line `KEY LABEL` .*labels\.txt"),
        ([(b"num-samples", b"many")], "num-samples is b'many'"),
        (numbered(["ann", *LABELS[1:]]), "key 'image-000000001': its label is b'ann', expected a whole number"),
        (numbered()[:-1], "key 'image-000000006': its label is missing"),
        (caffe([-1, *LABELS[1:]]), "label -1 is not between"),
        (caffe(is_encoded=False), "a Datum with raw pixels.*convert_imageset --encoded"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, items, message):
    write_database(tmp_path, items)
    with pytest.raises(ValueError, match=message):
        open_faces(tmp_path).labels  # noqa: B018


def test_a_damaged_label_is_left_out_where_that_is_asked_for(tmp_path):
    write_database(tmp_path, caffe([-1, *LABELS[1:]]))
    assert open_faces(tmp_path, on_bad_sample="skip").labels.tolist() == [-1, *LABELS[1:]]


def test_lists_are_checked(tmp_path):
    listed(tmp_path)
    for text, message in (
        ("b/0 x\n", "line 1 is .*expected `KEY LABEL`"),
        ("b/0 1\nb/0 1\n", "a key more than once"),
        ("\n", "no line `KEY LABEL`"),
    ):
        (tmp_path / "labels.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_faces(tmp_path)
    (tmp_path / "labels.txt").write_text("\ufeffb/0 7\r\nb/1 9\r\n", encoding="utf-8")  # as Windows' editors save it
    faces = open_faces(tmp_path)
    assert [faces.read(i)[1] for i in range(2)] == [7, 9]
    (tmp_path / "labels.txt").write_text("b/9 1\n")
    with pytest.raises(ValueError, match=r"key 'b/9', which labels\.txt lists: the database has no such key"):
        open_faces(tmp_path).read(0)


def test_numbers_may_begin_with_zero(tmp_path):
    faces = open_faces(write_database(tmp_path, numbered(first=0)))
    assert contents(faces) == (VALUES, LABELS)
    assert faces.labels.tolist() == LABELS
    assert "image-000000000" in faces.where(0)
    assert faces.note == ""


def test_entries_that_are_not_read_are_said(tmp_path):
    for name, first in (("a", 1), ("b", 0)):
        faces = open_faces(write_database(tmp_path / name, [*numbered(first=first)[1:], (b"num-samples", b"4")]))
        assert contents(faces) == (VALUES[:4], LABELS[:4])
        assert "4 of its 13 entries are not read, since num-samples is 4" in faces.note
    folder = listed(tmp_path / "c")
    assert open_faces(folder).note == ""
    (folder / "labels.txt").write_text("\ufeff" + (folder / "labels.txt").read_text())  # as editors on Windows write
    assert contents(open_faces(folder)) == (VALUES, LABELS)
    (folder / "labels.txt").write_text("".join(f"b/{i} {LABELS[i]}\n" for i in range(5)))
    faces = open_faces(folder)
    assert len(faces) == 5
    assert "1 of its 6 entries are not read, since labels.txt lists no more" in faces.note


def test_keys_that_end_in_zeros_stay_whole(tmp_path):
    items = [(i.to_bytes(4, "little"), datum(IMAGES[i], LABELS[i])) for i in range(6)]
    assert contents(open_faces(write_database(tmp_path, items))) == (VALUES, LABELS)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"\xff" * 8192)
    with pytest.raises(ValueError, match="no LMDB database that can be read"):
        open_faces(tmp_path)


def test_datum_refuses_what_is_none():
    whole = datum(b"abc", 5)
    assert parse_datum(whole)[1:] == (5, True)
    assert bytes(parse_datum(whole).data) == b"abc"
    for cut in range(1, len(whole) - 4):
        with pytest.raises(ValueError, match=r"cut short|no Datum"):
            parse_datum(whole[: cut if cut < 8 else 9])
    for other in (b"\x80" * 20, b"\xff\xff", b"\x0b", b"{}", b""):
        with pytest.raises(ValueError, match=r"cut short|no Datum"):
            parse_datum(other)
