"""The index past 2^24 records, and what it takes of memory."""

import itertools
import time

import numpy as np
import pytest

from data.records.index import RecordIndex, read_index
from data.records.layout import pack, unpack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter
from face_files import index_bytes

FIRST_INEXACT = 2**24 + 1  # the first whole number that float32 does not hold
STRIDE = 100  # bytes from record to record of the long file
LENGTH = 2**24 + 4096


def lines(first, last, stride):
    """The text of lines ``key<TAB>key * stride`` for first..last, of numbers with as many digits each."""
    keys = np.arange(first, last)
    columns = []
    for numbers, end in ((keys, b"\t"), (keys * stride, b"\n")):
        digits = len(str(numbers[-1]))
        columns += [(numbers // 10**place % 10 + ord("0")).astype(np.uint8) for place in range(digits - 1, -1, -1)]
        columns.append(np.full(len(keys), ord(end), np.uint8))
    return np.stack(columns, 1).tobytes()


def write_long_index(path, length, stride=STRIDE):
    """As many lines, in pieces within which no number gains a digit."""
    bounds = {0, length, *(10**i for i in range(1, 12)), *(-(-(10**i) // stride) for i in range(1, 12))}
    bounds |= set(range(0, length, 1 << 20))
    cuts = sorted(bound for bound in bounds if bound <= length)
    with path.open("wb") as file:
        for first, last in itertools.pairwise(cuts):
            file.write(lines(first, last, stride))


@pytest.fixture(scope="module")
def long_files(tmp_path_factory):
    """More than 2^24 records of 100 bytes; the file is a hole but for some."""
    folder = tmp_path_factory.mktemp("long")
    write_long_index(folder / "train.idx", LENGTH)
    present = [0, 2**24 - 1, 2**24, FIRST_INEXACT, FIRST_INEXACT + 2, LENGTH - 1]
    with (folder / "train.rec").open("wb") as file:
        for key in present:
            with RecordWriter(folder / "one.rec") as writer:
                writer.write(key, pack(key % 1000, key.to_bytes(8, "little"), key))
            record = (folder / "one.rec").read_bytes()
            assert len(record) <= STRIDE
            file.seek(key * STRIDE)
            file.write(record)
        file.truncate(LENGTH * STRIDE)
    return folder, present


def test_the_text_of_a_long_index(tmp_path):
    write_long_index(tmp_path / "i", 12345)
    assert (tmp_path / "i").read_text() == "".join(f"{i}\t{i * STRIDE}\n" for i in range(12345))


def test_past_two_to_the_24_records(long_files):
    folder, present = long_files
    start = time.perf_counter()
    reader = RecordReader(folder / "train.rec")
    assert time.perf_counter() - start < 30
    assert len(reader) == LENGTH
    assert index_bytes(reader.index) == 8 * LENGTH
    for key in present:
        header, image = unpack(reader.read_at(key))
        assert int.from_bytes(image, "little") == header.id == key
        assert reader.index.key(key) == key
    tail = reader.scan_headers(FIRST_INEXACT, FIRST_INEXACT + 1)
    assert tail.labels.tolist() == [FIRST_INEXACT % 1000]
    with pytest.raises(ValueError, match=f"record key {FIRST_INEXACT + 1} at byte {(FIRST_INEXACT + 1) * STRIDE}"):
        reader.read_at(FIRST_INEXACT + 1)


def test_keys_and_offsets_past_float_precision(tmp_path):
    keys = [2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**62 + 1]
    offsets = [2**53 + 4, 2**24 + 4, 2**53 + 8, 2**62, 0]
    (tmp_path / "r.idx").write_text("".join(f"{k}\t{o}\n" for k, o in zip(keys, offsets, strict=True)))
    index = read_index(tmp_path / "r.idx")
    assert index.keys.tolist() == keys
    assert index.offsets.tolist() == offsets


@pytest.mark.parametrize(
    "text",
    ["0\t0\t\n7\t16\t\n", "0 0\n7  16\n", "\ufeff0\t0\n7\t16\n", " 0\t0 \r\n\t7\t16", "\ufeff0 0\r\n7 \t16 \r\n"],
)
def test_blanks_and_a_byte_order_mark_are_no_damage(tmp_path, text):
    (tmp_path / "r.idx").write_bytes(text.encode())
    index = read_index(tmp_path / "r.idx")
    assert (index.keys.tolist(), index.offsets.tolist()) == ([0, 7], [0, 16])


@pytest.mark.parametrize(
    ("keys", "bytes_a_record"),
    [(range(5, 1005), 8), (range(0, 2000, 2), 16), (list(range(999, -1, -1)), 8), ([*range(999), 5000], 16)],
    ids=["consecutive", "every other", "backwards", "one apart"],
)
def test_bytes_a_record(tmp_path, keys, bytes_a_record):
    (tmp_path / "r.idx").write_text("".join(f"{key}\t{i * 4}\n" for i, key in enumerate(keys)))
    index = read_index(tmp_path / "r.idx")
    assert index_bytes(index) == bytes_a_record * 1000
    assert index.keys.tolist() == sorted(keys)
    assert [index.key(i) for i in range(1000)] == sorted(keys)
    offset_of = {key: i * 4 for i, key in enumerate(keys)}
    assert index.offsets.tolist() == [offset_of[key] for key in sorted(keys)]


@pytest.mark.parametrize("block", [8, 20, 64])
@pytest.mark.parametrize("keys", [range(50), [*range(10), *range(20, 60)], [*range(30, 60), *range(30)]])
def test_blocks_that_do_not_follow_each_other(tmp_path, monkeypatch, block, keys):
    monkeypatch.setattr("data.records.index._IDX_BLOCK", block)
    (tmp_path / "r.idx").write_text("".join(f"{key}\t{key * 8}\n" for key in keys))
    index = read_index(tmp_path / "r.idx")
    assert index.keys.tolist() == sorted(keys)
    assert index.offsets.tolist() == [key * 8 for key in sorted(keys)]


def test_order_in_the_file():
    assert RecordIndex(range(3), np.array([0, 8, 16])).is_in_file_order
    assert not RecordIndex(range(3), np.array([0, 16, 8])).is_in_file_order
    assert RecordIndex(np.array([2, 0, 1]), np.array([16, 0, 8])).is_in_file_order
