"""Shards that somebody may send to do harm: sizes that lie, headers without end, names that lead elsewhere."""

import tarfile
import tracemalloc

import pytest

from data.shards.tar import scan_shard
from data.storage import LocalFiles
from dataset import open_faces
from face_files import LABELS, VALUES, contents, face
from hostile import PAYLOADS, Payload
from tar_files import samples, write_shards, write_tar

END = bytes(1024)


def header(name="a.jpg", size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse_map(text):
    """A member whose map of holes is its content, in the form of pax 1.0."""
    fields = b"".join(
        b"%d %s\n" % (len(record) + 3, record)
        for record in (
            b"GNU.sparse.major=1",
            b"GNU.sparse.minor=0",
            b"GNU.sparse.realsize=9",
            b"GNU.sparse.name=a.jpg",
        )
    )
    return (
        header("x", len(fields), tarfile.XHDTYPE)
        + fields.ljust(512, b"\0")
        + header(size=512)
        + text.ljust(512, b"\0")
    )


def old_sparse():
    """A sparse member of GNU's old form that says that its map goes on."""
    block = bytearray(header(kind=tarfile.GNUTYPE_SPARSE))
    block[482] = 1  # isextended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "content",
    [
        header(size=1 << 40) + END,
        header(size=-1024) + END,
        header("x", 1 << 33, tarfile.XHDTYPE) + END,
        header("x", -512, tarfile.XHDTYPE) + END,
        header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME) + END,
        header("././@LongLink", -512, tarfile.GNUTYPE_LONGNAME) + END,
        header("x", 0, tarfile.XHDTYPE) * 3000 + END,
        sparse_map(b"99999999\n0\n"),
        old_sparse(),
        old_sparse() + (bytes(504) + b"\1" + bytes(7)) * 3000,
    ],
)
def test_lying_headers_are_refused_at_once_and_take_no_memory(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.tar: .*cut short or damaged"):
            scan_shard(str(path), len(content), LocalFiles())
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    outside = tmp_path / "outside.jpg"
    members = [(f"../{outside.name}"[:-4] + f".{field}", data) for field, data in (("jpg", face(5)), ("cls", b"0"))]
    members += [(f"{outside}.x.png", face(6)), (str(outside).replace(".jpg", ".cls"), b"1")]
    faces = open_faces(write_tar(tmp_path / "set" / "a.tar", members).parent)
    assert contents(faces) == ([5, 6], [0, 1])
    assert not outside.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_index_or_a_label_with_a_payload_runs_nothing(tmp_path, payload):
    marker = tmp_path / "ran"
    content = PAYLOADS[payload](Payload(marker))
    folder = write_shards(tmp_path / "set")
    open_faces(folder)
    (index,) = folder.glob("*.index")
    index.write_bytes(content)
    assert contents(open_faces(folder)) == (VALUES, LABELS)
    write_tar(tmp_path / "other" / "a.tar", [*samples(), ("z.png", face(1)), ("z.cls", content), ("z.pkl", content)])
    with pytest.raises(ValueError, match=r"'z\.cls' at byte"):
        open_faces(tmp_path / "other").labels  # noqa: B018
    assert not marker.exists()
