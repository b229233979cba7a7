import multiprocessing
import os
import pickle
import random
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records.layout import MAGIC, pack, unpack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter
from face_files import record

MAGIC_BYTES = struct.pack("<I", MAGIC)

# Pieces that put the magic on and off 4-byte boundaries, alone, doubled, and at both ends.
pieces = st.one_of(st.just(MAGIC_BYTES), st.binary(max_size=9), st.just(MAGIC_BYTES[:2]))
payloads = st.lists(pieces, max_size=8).map(b"".join)
finite = st.floats(width=32, allow_nan=False)


def write(folder, records, name="r"):
    path = folder / f"{name}.rec"
    with RecordWriter(path) as writer:
        for key, payload in records:
            writer.write(key, payload)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path


class TestPack:
    @given(finite, st.binary(max_size=50), st.integers(0, 2**64 - 1))
    def test_scalar_label(self, label, image, id_):
        header, rest = unpack(pack(label, image, id_))
        assert (header.flag, header.label.tolist(), header.id, header.id2) == (0, [label], id_, 0)
        assert bytes(rest) == image

    @given(st.lists(finite, min_size=1, max_size=6), st.binary(max_size=50))
    def test_label_vector(self, labels, image):
        header, rest = unpack(pack(labels, image, 3))
        assert (header.flag, header.label.tolist(), header.id) == (len(labels), labels, 3)
        assert header.label.dtype == np.float32
        assert bytes(rest) == image

    def test_empty_label_vector(self):
        with pytest.raises(ValueError, match="at least one"):
            pack([])

    def test_too_short_for_the_header(self):
        with pytest.raises(ValueError, match="24 bytes, got 10"):
            unpack(bytes(10))

    def test_too_short_for_the_labels(self):
        with pytest.raises(ValueError, match="announces 3 labels, 36 bytes with it, got 35"):
            unpack(pack([1, 2, 3])[:-1])


class TestRoundTrip:
    @settings(max_examples=60, deadline=None)
    @given(records=st.dictionaries(st.integers(0, 10**12), payloads, min_size=1, max_size=8))
    def test_any_payload(self, tmp_path_factory, records):
        reader = RecordReader(write(tmp_path_factory.mktemp("r"), records.items()))
        assert reader.keys.tolist() == sorted(records)
        assert len(reader) == len(records)
        assert {key: record(reader, key) for key in records} == records
        assert [reader.read_at(i) for i in range(len(reader))] == [records[key] for key in sorted(records)]

    @settings(max_examples=40, deadline=None)
    @given(
        records=st.lists(st.tuples(st.one_of(finite, st.lists(finite, min_size=1, max_size=3)), payloads), min_size=1)
    )
    def test_scan_equals_reading(self, tmp_path_factory, records):
        packed = [(i, pack(label, image, MAGIC)) for i, (label, image) in enumerate(records)]
        scan = RecordReader(write(tmp_path_factory.mktemp("r"), packed)).scan_headers()
        headers = [unpack(payload)[0] for _, payload in packed]
        assert scan.flags.tolist() == [header.flag for header in headers]
        assert scan.labels.tolist() == [header.label[0] for header in headers]
        assert scan.sizes.tolist() == [len(payload) for _, payload in packed]
        assert scan.has_image.tolist() == [len(image) > 0 for _, image in records]

    def test_scan_where_the_header_itself_holds_the_magic(self, folder):
        label = np.frombuffer(MAGIC_BYTES, "<f4")[0]
        scan = RecordReader(write(folder, [(0, pack(float(label), b"x")), (1, pack(2.0, b"y"))])).scan_headers()
        assert scan.labels.tolist() == [label, 2.0]

    def test_layout_of_a_split_record(self, folder):
        path = write(folder, [(0, b"abcd" + MAGIC_BYTES + b"e")])
        assert path.read_bytes() == (
            MAGIC_BYTES
            + struct.pack("<I", 1 << 29 | 4)
            + b"abcd"
            + MAGIC_BYTES
            + struct.pack("<I", 3 << 29 | 1)
            + b"e\0\0\0"
        )

    @pytest.mark.parametrize("size", [8183, 8184, 8185, 100_000])
    def test_longer_than_the_first_read(self, folder, size):
        payload = random.Random(0).randbytes(size)
        assert record(RecordReader(write(folder, [(0, payload), (1, b"next")])), 0) == payload

    def test_keys_out_of_order(self, folder):
        reader = RecordReader(write(folder, [(5, b"five"), (2, b"two"), (9, b"nine")]))
        assert reader.keys.tolist() == [2, 5, 9]
        assert [record(reader, key) for key in (9, 2, 5)] == [b"nine", b"two", b"five"]

    def test_index_of_another_name_and_with_windows_line_ends(self, folder):
        path = write(folder, [(1, b"a"), (2, b"b")])
        other = folder / "other.idx"
        other.write_bytes(path.with_suffix(".idx").read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
        assert record(RecordReader(path, other), 2) == b"b"

    def test_index_read_in_blocks(self, folder, monkeypatch):
        monkeypatch.setattr("data.records.index._IDX_BLOCK", 16)
        reader = RecordReader(write(folder, [(i, str(i).encode()) for i in range(300)]))
        assert [record(reader, i) for i in range(300)] == [str(i).encode() for i in range(300)]
        (folder / "r.idx").write_text("".join(f"{i}\t0\n" for i in range(50)) + "x\t0\n")
        with pytest.raises(ValueError, match=r"line 51 is b'x.t0'"):
            RecordReader(folder / "r.rec")


class TestReadMany:
    @pytest.mark.parametrize("keys", [range(40), range(0, 120, 3), [*range(20), *range(40, 20, -1)]])
    @pytest.mark.parametrize("chunk", [0, 7])
    def test_equals_single_reads(self, folder, keys, chunk):
        rng = random.Random(3)
        records = [
            (key, rng.choice([b"", b"abcd" + MAGIC_BYTES, rng.randbytes(rng.randrange(9000))])) for key in keys
        ]
        path = write(folder, records)
        reader, plain = RecordReader(path, chunk=chunk), RecordReader(path)
        positions = [rng.randrange(len(records)) for _ in range(100)]
        assert reader.read_many(positions) == [plain.read_at(i) for i in positions]
        assert reader.read_many(np.array(positions)) == [dict(records)[int(plain.keys[i])] for i in positions]
        assert reader.read_at(5) == plain.read_at(5)
        assert reader.read_many([]) == []

    def test_a_file_that_has_become_shorter(self, folder):
        path = write(folder, [(i, bytes(100)) for i in range(5)])
        reader = RecordReader(path)
        os.truncate(path, 3 * 108 + 4)
        assert reader.read_many([0, 2]) == [bytes(100)] * 2
        for read in (lambda: reader.read_many([1, 3]), lambda: reader.read_at(3)):
            with pytest.raises(ValueError, match=r"record key 3 at byte 324: .*the file's end \(truncated\)"):
                read()

    @pytest.mark.parametrize("most", [1, 7, 100, 2000])
    def test_a_system_that_gives_less_than_asked(self, folder, monkeypatch, most):
        """As Linux does past 2 GiB, and file systems of networks do at any size."""
        records = [
            (0, b""),
            (1, b"abcd" + MAGIC_BYTES + b"efgh"),
            (2, bytes(9000)),
            (5, b"x" * 20),
            (3, b"y" * 10000),
        ]
        path = write(folder, records)
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, most), offset))
        reader = RecordReader(path)
        assert reader.read_many(range(5)) == [payload for _, payload in sorted(records)]
        assert [record(reader, key) for key, _ in records] == [payload for _, payload in records]

    @pytest.mark.parametrize("position", [-1, 3])
    def test_outside(self, folder, position):
        reader = RecordReader(write(folder, [(i, b"x") for i in range(3)]))
        with pytest.raises(IndexError, match=f"record {position} of 3"):
            reader.read_many([0, position, 1])

    def test_a_damaged_record_is_named(self, folder):
        path = write(folder, [(i, bytes(100)) for i in range(5)])
        with path.open("r+b") as file:
            file.seek(3 * 108)
            file.write(b"JUNK")
        with pytest.raises(ValueError, match="record key 3 at byte 324: expected the magic"):
            RecordReader(path).read_many(range(5))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no hints")
class TestHints:
    @pytest.fixture
    def hints(self, monkeypatch):
        given = []
        monkeypatch.setattr(os, "posix_fadvise", lambda fd, *args: given.append(args))
        return given

    def test_none_while_reads_are_fast_and_all_of_a_call_once_they_are_slow(self, folder, hints, monkeypatch):
        reader = RecordReader(write(folder, [(i, bytes(100)) for i in range(20)]))
        monkeypatch.setattr("data.records.reader._SLOW_READ_S", 1e9)
        reader.read_many(range(20))
        reader.read_many(range(20))
        assert hints == []
        monkeypatch.setattr("data.records.reader._SLOW_READ_S", 0.0)
        reader.read_many(range(20))
        assert hints == []
        reader.read_many([7, 3])
        assert hints == [(7 * 108, 108, os.POSIX_FADV_WILLNEED), (3 * 108, 108, os.POSIX_FADV_WILLNEED)]

    def test_chunks_are_asked_for_whole_and_once(self, folder, hints):
        reader = RecordReader(write(folder, [(i, bytes(100)) for i in range(20)]), chunk=8)
        reader.read_many([9, 10, 19])
        assert hints == [(8 * 108, 8 * 108, os.POSIX_FADV_WILLNEED), (16 * 108, 4 * 108, os.POSIX_FADV_WILLNEED)]
        reader.read_at(15)
        assert len(hints) == 2
        reader.read_at(0)
        assert hints[2:] == [(0, 8 * 108, os.POSIX_FADV_WILLNEED)]

    def test_no_chunk_where_keys_do_not_follow_the_file(self, folder, hints):
        reader = RecordReader(write(folder, [(i, b"x") for i in (2, 0, 1)]), chunk=2)
        assert reader.read_many(range(3)) == [b"x"] * 3
        assert hints == []


@pytest.mark.parametrize("chunk", [0, 7])
def test_a_system_that_takes_no_hints(folder, monkeypatch, chunk):
    """As macOS."""
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    monkeypatch.setattr("data.records.reader._SLOW_READ_S", 0.0)
    reader = RecordReader(write(folder, [(i, bytes(100)) for i in range(20)]), chunk=chunk)
    for _ in range(2):
        assert reader.read_many(range(20)) == [bytes(100)] * 20
    reader.will_need(0, 20)


class TestDamage:
    @pytest.fixture
    def path(self, folder):
        return write(folder, [(0, b"first"), (7, b"abcd" + MAGIC_BYTES + b"efgh"), (8, bytes(9000))])

    def check(self, path, key, *words):
        with pytest.raises(ValueError) as caught:
            record(RecordReader(path), key)
        for word in (str(path), f"record key {key} at byte ", "copy both again", *words):
            assert word in str(caught.value)

    def patch(self, path, offset, data):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def test_bad_magic(self, path):
        self.patch(path, 0, b"JUNK")
        self.check(path, 0, "key 0 at byte 0:", "expected the magic 0xced7230a", "0x4b4e554a")
        with pytest.raises(ValueError, match="expected the magic"):
            RecordReader(path).scan_headers()

    def test_bad_magic_between_parts(self, path):
        self.patch(path, 28, b"JUNK")
        self.check(path, 7, "key 7 at byte 16:", "the magic 0xced7230a at byte 28")

    def test_a_part_of_the_wrong_kind(self, path):
        self.patch(path, 32, struct.pack("<I", 4))
        self.check(path, 7, "part kind 2 or 3 at byte 28, got 0")

    def test_index_into_the_middle_of_a_record(self, path):
        path.with_suffix(".idx").write_text("7\t28\n")
        self.check(path, 7, "at byte 28", "got kind 3")

    @pytest.mark.parametrize("cut", [5, 8000, 9000])
    def test_truncated(self, path, cut):
        os.truncate(path, path.stat().st_size - cut)
        self.check(path, 8, "truncated: expected 9000 bytes at byte 48")

    def test_truncated_between_parts(self, path):
        path.with_suffix(".idx").write_text("7\t16\n")
        os.truncate(path, 30)
        self.check(path, 7, "the magic 0xced7230a at byte 28, got the file's end (truncated)")

    @pytest.mark.parametrize("idx", ["0\t0\n7\t9044\n", "0\t0\n7\t9999999\n", "0\t0\n7\t2\n"])
    def test_offset_outside(self, path, idx):
        path.with_suffix(".idx").write_text(idx)
        with pytest.raises(ValueError, match=r"r\.rec: record key 7 .* multiple of 4 inside the file's 9048 bytes"):
            RecordReader(path)

    @pytest.mark.parametrize(
        "row", ["5", "5\t", "\t5", "5\t5\t5", "5 5 5", "a\t5", "5\t5.0", "-1\t0", "1\t-4", "", " "]
    )
    def test_malformed_index(self, path, row):
        path.with_suffix(".idx").write_text(f"0\t0\n{row}\n7\t16\n")
        with pytest.raises(ValueError, match=r"r\.idx: line 2 is b'.* expected `key<TAB>offset`"):
            RecordReader(path)

    @pytest.mark.parametrize("text", ["", "\n", "\n\n"])
    def test_empty_index(self, path, text):
        path.with_suffix(".idx").write_text(text)
        with pytest.raises(ValueError, match=r"r\.idx: the index is empty"):
            RecordReader(path)

    def test_repeated_key(self, path):
        path.with_suffix(".idx").write_text("7\t16\n0\t0\n7\t16\n")
        with pytest.raises(ValueError, match=r"r\.idx: key 7 stands there more than once"):
            RecordReader(path)

    def test_missing_files(self, path):
        path.with_suffix(".idx").unlink()
        with pytest.raises(FileNotFoundError, match=r"r\.idx: no such file; expected r\.rec with its index r\.idx"):
            RecordReader(path)
        with pytest.raises(FileNotFoundError, match=r"none\.rec: no such file"):
            RecordReader(path.with_name("none.rec"))

    def test_no_such_record(self, path):
        with pytest.raises(IndexError, match="record 3 of 3"):
            RecordReader(path).read_at(3)

    def test_scan_of_a_record_too_short_for_its_header(self, path):
        with pytest.raises(ValueError, match="record key 0 at byte 0: a face record starts with a header"):
            RecordReader(path).scan_headers()


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_worker_reads(self, folder, method):
        reader = RecordReader(write(folder, [(i, str(i).encode() * 1000) for i in range(20)]))
        record(reader, 3)  # opened here, to be opened again there
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map(reader.read_at, range(20)) == [reader.read_at(i) for i in range(20)]

    def test_fork_opens_anew(self, folder):
        reader = RecordReader(write(folder, [(0, b"x")]))
        record(reader, 0)
        fd, pid = reader._fd, reader._pid
        reader._pid = pid + 1  # as seen from a forked child
        assert record(reader, 0) == b"x"
        assert reader._fd != fd
        os.close(fd)

    def test_pickle_leaves_the_file_behind(self, folder):
        reader = RecordReader(write(folder, [(0, b"x")]))
        record(reader, 0)
        copy = pickle.loads(pickle.dumps(reader))
        assert copy._fd is None
        assert record(copy, 0) == b"x"
        copy.close()
        assert record(copy, 0) == b"x"

    @pytest.mark.parametrize("pread", [True, False])
    def test_threads_share_a_reader(self, folder, monkeypatch, pread):
        if not pread:
            monkeypatch.delattr(os, "pread")
        reader = RecordReader(write(folder, [(i, str(i).encode() * 3000) for i in range(50)]))
        wrong = []

        def check():
            wrong.extend(i for i in range(50) if record(reader, i) != str(i).encode() * 3000)

        threads = [threading.Thread(target=check) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
