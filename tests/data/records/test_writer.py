import signal
import subprocess
import sys

import numpy as np
import pytest

from data.records.layout import unpack
from data.records.reader import RecordReader
from data.records.writer import FaceRecordWriter, RecordWriter, range_record, write_face_records
from face_files import record
from paths import ROOT


def write(folder, records, name="r"):
    path = folder / f"{name}.rec"
    with RecordWriter(path) as writer:
        for key, payload in records:
            writer.write(key, payload)
    return path


def records_then_an_error():
    yield 0, b"new"
    raise KeyError


@pytest.fixture
def folder(tmp_path):
    return tmp_path


class TestWriter:
    def test_nothing_is_left_after_an_exception(self, folder):
        with pytest.raises(KeyError):
            write(folder, records_then_an_error())
        assert list(folder.iterdir()) == []

    def test_an_older_file_survives_an_exception(self, folder):
        path = write(folder, [(0, b"old")])
        with pytest.raises(KeyError):
            write(folder, records_then_an_error())
        assert record(RecordReader(path), 0) == b"old"

    def test_names_appear_at_the_end(self, folder):
        with RecordWriter(folder / "r.rec") as writer:
            writer.write(0, b"x")
            assert not (folder / "r.rec").exists()
        assert sorted(path.name for path in folder.iterdir()) == ["r.idx", "r.rec"]

    def test_negative_key(self, folder):
        with pytest.raises(ValueError, match="keys start at 0, got -1"):
            write(folder, [(-1, b"x")])

    def test_too_long(self, folder, monkeypatch):
        monkeypatch.setattr("data.records.writer.MAX_PART", 7)
        with pytest.raises(ValueError, match=r"r\.rec: record key 3: 8 bytes are over 7"):
            write(folder, [(3, b"12345678")])


class TestWriteFaceRecords:
    def test_contents(self, folder):
        write_face_records(folder / "new", [[b"a0", b"a1"], [b"b0"]], (112, 96))
        reader = RecordReader(folder / "new/train.rec")
        headers = [unpack(record(reader, key)) for key in reader.keys]
        assert [(h.flag, h.label.tolist(), h.id, bytes(image)) for h, image in headers] == [
            (2, [4, 6], 0, b""),
            (0, [0], 1, b"a0"),
            (0, [0], 2, b"a1"),
            (0, [1], 3, b"b0"),
            (2, [1, 3], 4, b""),
            (2, [3, 4], 5, b""),
        ]
        assert (folder / "new/property").read_text() == "2,112,96\n"
        assert len(list((folder / "new").iterdir())) == 3

    def test_refused(self, folder):
        with pytest.raises(ValueError, match="identity 1 has no image"):
            write_face_records(folder, [[b"a"], []])
        with pytest.raises(ValueError, match="no identities"):
            write_face_records(folder, [])

    def test_an_index_of_before_never_stands_beside_new_records(self, folder, monkeypatch):
        """As if the process ended between the two renames."""
        path = write(folder, [(0, b"old")])
        seen = []
        before_the_names = RecordWriter._before_the_names

        def look(writer, kind, *_):
            before_the_names(writer, kind)
            seen.append(sorted(found.name for found in folder.glob("r.*")))

        monkeypatch.setattr(RecordWriter, "_before_the_names", look)
        write(folder, [(0, b"new"), (1, b"more")])
        assert seen == [["r.rec"]]
        assert record(RecordReader(path), 1) == b"more"

    def test_killed_in_the_middle(self, folder):
        script = (
            "import sys, time\n"
            "from data.records.writer import RecordWriter\n"
            "with RecordWriter(sys.argv[1]) as writer:\n"
            "    for key in range(10**9):\n"
            "        writer.write(key, bytes(1000))\n"
            "        if key == 5000: print('going', flush=True)\n"
        )
        path = folder / "r.rec"
        process = subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"going\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not path.exists()
        assert not path.with_suffix(".idx").exists()


class TestRangeRecord:
    @pytest.mark.parametrize("start", [0, 5, 2**24 - 3, 2**24 + 1, 2**24 + 3, 42_474_557, 2**31 + 129])
    @pytest.mark.parametrize("key", [0, 7])
    def test_rounded_inwards_and_exact_where_float32_is(self, start, key):
        stop = start + 40
        low, high = (int(label) for label in unpack(range_record(start, stop, key))[0].label)
        assert start - 4096 < low <= start if key == 0 else start <= low < start + 4096
        assert high <= stop
        if stop <= 2**24:
            assert (low, high) == (start, stop)

    def test_layout(self):
        header, image = unpack(range_record(3, 9, 12))
        assert (header.flag, header.label.tolist(), header.id, len(image)) == (2, [3, 9], 12, 0)


def add_all(folder, labels):
    with FaceRecordWriter(folder) as writer:
        for label in labels:
            writer.add(label, b"x")


class TestFaceRecordWriter:
    def test_streams_what_write_face_records_writes(self, folder):
        write_face_records(folder / "whole", [[b"a0", b"a1"], [b"b0"]], (112, 96))
        with FaceRecordWriter(folder / "streamed", (112, 96)) as writer:
            for label, image in [(0, b"a0"), (0, b"a1"), (1, b"b0")]:
                writer.add(label, image)
            assert (writer.identities, writer.next_key) == (2, 4)
        for name in ("train.rec", "train.idx", "property"):
            assert (folder / "streamed" / name).read_bytes() == (folder / "whole" / name).read_bytes()

    def test_identities_out_of_order(self, folder):
        with pytest.raises(ValueError, match="identity 2 after identity 0"):
            add_all(folder / "o", [0, 2])
        assert list((folder / "o").iterdir()) == []

    def test_no_image_is_an_error_that_leaves_nothing(self, folder):
        with pytest.raises(ValueError, match="no identities to write"):
            add_all(folder / "o", [])
        assert list((folder / "o").iterdir()) == []

    def test_more_identities_than_labels(self, folder, monkeypatch):
        monkeypatch.setattr("data.records.writer.EXACT_LABELS", 2)
        with pytest.raises(ValueError, match="more than 2 identities"):
            add_all(folder / "o", range(3))


class TestSharedData:
    def test_same_bytes_as_the_file_that_mxnet_wrote(self, shared_data, folder):
        theirs = shared_data / "lfw_train"
        reader = RecordReader(theirs / "train.rec")
        in_file_order = [(int(reader.keys[i]), reader.read_at(i)) for i in np.argsort(reader.offsets)]
        ours = write(folder, in_file_order, "train")
        for name in ("train.rec", "train.idx"):
            assert (folder / name).read_bytes() == (theirs / name).read_bytes()
        assert ours.stat().st_size == 35_128_600
