import os
import pickle

import fsspec
import pytest

import data.storage as storage
from data.faces import FaceRecords
from data.records.layout import MAGIC_BYTES, pack
from data.storage import LocalFiles, Range, RemoteFiles, is_address, open_store
from dataset import get_dataloader, open_faces
from face_files import LABELS, VALUES, contents, face, insightface_records, write
from tar_files import write_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MHS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_WAIT_S", 0)


@pytest.fixture
def bucket(tmp_path):
    """The shards of ``tar_files`` in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.put(f"{write_shards(tmp_path / 'set')}/", "/bucket/set", recursive=True)
    yield system
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize(
    "source", ["memory://bucket/set", "memory://bucket/set/train-{0..1}.tar", "memory://bucket/set/train-*.tar"]
)
def test_shards_behind_an_address_are_the_same_set(bucket, source, chunk):
    faces = open_faces(source, shuffle_chunk=chunk)
    assert contents(faces) == (VALUES, LABELS)
    assert "memory:/" in faces.where(3)
    (batch,) = get_dataloader(source, 6, num_workers=1, shuffle_chunk=chunk)
    order = batch.sample_ids_B.argsort()
    assert batch.images_BHW3[order][:, 5, 5, 0].tolist() == VALUES


def test_files_of_this_machine_behind_an_address(tmp_path):
    folder = write_shards(tmp_path / "set")
    assert contents(open_faces(f"file://{folder}")) == (VALUES, LABELS)
    assert not list(folder.glob("*.index"))


def test_a_batch_is_one_call_and_a_chunk_is_read_once(bucket, monkeypatch):
    asked = []
    inner = RemoteFiles.read_many
    faces = open_faces("memory://bucket/set")
    chunked = open_faces("memory://bucket/set", shuffle_chunk=2)
    monkeypatch.setattr(
        RemoteFiles, "read_many", lambda self, ranges: asked.append(len(ranges)) or inner(self, ranges)
    )
    faces.read_many([5, 0, 2])
    assert asked == [3]
    chunked.read_many([0, 1, 2])  # chunk 1 lies in both shards
    chunked.read_many([3, 1, 0])
    assert asked == [3, 3, 0]


def test_chunks_are_forgotten_when_there_are_too_many(bucket, monkeypatch):
    monkeypatch.setattr("data.shards.faces._KEPT_BYTES", 1)
    faces = open_faces("memory://bucket/set", shuffle_chunk=2)
    assert contents(faces) == (VALUES, LABELS)
    assert not faces._chunks


@pytest.mark.parametrize("order", ["as written", "reversed keys"])
@pytest.mark.parametrize("chunk", [0, 4])
def test_records_behind_an_address_are_those_of_the_file(bucket, tmp_path, order, chunk):
    records = insightface_records()
    in_parts = face(7) + MAGIC_BYTES * 2 + b"abc" + MAGIC_BYTES + b"z" * 5 + MAGIC_BYTES
    records[6] = 6, pack([2, 9.5], in_parts, 6)
    write(tmp_path, records if order == "as written" else records[::-1])
    for name in ("train.rec", "train.idx"):
        bucket.put(str(tmp_path / name), f"/bucket/rec/{name}")
    here = FaceRecords(tmp_path)
    for source in ("memory://bucket/rec", "memory://bucket/rec/train.rec"):
        there = open_faces(source, shuffle_chunk=chunk)
        assert there.labels.tolist() == here.labels.tolist()
        every = range(len(here))
        assert [(bytes(a), b) for a, b in there.read_many(every)] == [(bytes(a), b) for a, b in here.read_many(every)]
    assert bytes(there.read(5)[0]) == in_parts
    assert "train.rec: image at byte" in there.where(0)


def test_damaged_records_behind_an_address_are_refused(bucket, tmp_path):
    write(tmp_path, insightface_records())
    rec, idx = ((tmp_path / name).read_bytes() for name in ("train.rec", "train.idx"))
    for content, index, message in (
        (rec[:-9], idx, r"train\.rec: no whole record at byte"),
        (rec[:40] + bytes(8) + rec[48:], idx, r"train\.rec: no whole record at byte 40"),
        (rec, idx.replace(b"\t40", b"\t44"), "no record begins where its index says"),
        (rec, idx[: idx.index(b"3\t")], "its index lists 3 of 10 records"),
        (rec, b"x", r"memory:.*train\.idx: line 1 is b'x'"),
    ):
        bucket.pipe({"/bucket/rec/train.rec": content, "/bucket/rec/train.idx": index})
        with pytest.raises(ValueError, match=message):
            open_faces("memory://bucket/rec")
    bucket.rm("/bucket/rec/train.idx")
    with pytest.raises(FileNotFoundError, match=r"train\.idx: no such file"):
        open_faces("memory://bucket/rec")


class Failing:
    """A file system whose first calls fail."""

    def __init__(self, inner, failures, error):
        self.inner, self.failures, self.error = inner, failures, error

    def cat_ranges(self, *args, **kwargs):
        self.failures -= 1
        if self.failures >= 0:
            raise self.error
        return self.inner.cat_ranges(*args, **kwargs)

    def info(self, path):
        return {}


def failing(bucket, failures, error=None):
    error = error or ConnectionError("reset by peer")
    store = RemoteFiles("memory://bucket")
    store._own = os.getpid(), Failing(bucket, failures, error)
    return store


def test_what_fails_is_tried_again_a_few_times(bucket):
    part = [Range("memory://bucket/set/train-0.tar", 0, 6)]
    assert failing(bucket, 4).read_many(part) == [b"00.png"]
    with pytest.raises(OSError, match=r"train-0\.tar: ConnectionError: reset by peer \(attempt 5 of 5\)"):
        failing(bucket, 5).read_many(part)
    with pytest.raises(OSError, match="does not say how large it is"):
        failing(bucket, 0).facts(["memory://bucket/x"])


def test_a_server_that_sends_whole_files_is_refused(bucket, monkeypatch):
    monkeypatch.setattr(Failing, "cat_ranges", lambda self, files, *_, **__: [self.inner.cat_file(f) for f in files])
    with pytest.raises(OSError, match=r"train-0\.tar: the server sent \d+ bytes instead of 6: it cannot send parts"):
        failing(bucket, 0).read_many([Range("memory://bucket/set/train-0.tar", 0, 6)])


def test_there_is_a_pause_only_after_a_failure_and_only_what_failed_is_asked_for_again(bucket, monkeypatch):
    pauses, asked = [], []
    monkeypatch.setattr(storage, "_WAIT_S", 0.5)
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    first, second = (Range("memory://bucket/set/train-0.tar", at, 6) for at in (0, 1024))
    assert failing(bucket, 0).read_many([first, first]) == [b"00.png"] * 2
    assert failing(bucket, 0).read_many([Range(first.file, 0, 0)]) == [b""]
    assert pauses == []

    def second_fails(self, files, starts, ends, **_):
        asked.append(starts)
        return [
            OSError("lost") if s and len(asked) < 3 else b"x" * (e - s) for s, e in zip(starts, ends, strict=True)
        ]

    monkeypatch.setattr(Failing, "cat_ranges", second_fails)
    assert failing(bucket, 0).read_many([first, second]) == [b"x" * 6] * 2
    assert asked == [[0, 1024], [1024], [1024]]
    assert pauses == [0.5, 1.0]


def test_what_is_not_there_or_not_allowed_is_not_tried_again(bucket):
    refused = failing(bucket, 2, PermissionError("no key"))
    with pytest.raises(OSError, match=r"PermissionError: no key \(attempt 1 of 5\)"):
        refused.read_many([Range("memory://bucket/set/train-0.tar", 0, 6)])
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/other\.tar: no such file"):
        open_faces("memory://bucket/other.tar")
    with pytest.raises(FileNotFoundError, match="memory://nothing"):
        open_faces("memory://nothing")


def test_protocols_without_a_package_say_what_to_install():
    with pytest.raises(ValueError, match=r"nonsense://a: Protocol not known"):
        open_faces("nonsense://a")
    with pytest.raises(ValueError, match=r"pip install fsspec, with s3fs"):
        _without("abfs")


def _without(protocol):
    with pytest.MonkeyPatch.context() as patch:

        def missing(*_, **__):
            raise ImportError("Install adlfs")

        patch.setattr(fsspec.core, "url_to_fs", missing)
        open_faces(f"{protocol}://a/b")


def test_paths_are_no_addresses(tmp_path):
    assert is_address("s3://a")
    assert is_address("simplecache::s3://a")
    assert not any(map(is_address, ("C://a", "/a", "a:b", tmp_path)))
    assert isinstance(open_store("/a"), LocalFiles)


def test_stores_cross_to_other_processes(tmp_path):
    (tmp_path / "a").write_bytes(b"abcdef")
    store = LocalFiles()
    assert store.read_many([Range(str(tmp_path / "a"), 1, 3)]) == [b"bcd"]
    again = pickle.loads(pickle.dumps(store))
    assert again.read_many([Range(str(tmp_path / "a"), 4, 9)]) == [b"ef"]
    assert pickle.loads(pickle.dumps(RemoteFiles("memory://a"))).protocol == "memory"
