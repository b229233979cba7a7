"""Every byte of a folder can be checked, and each thing that is not as written is named."""

import os

import pytest

from utils import manifest as module
from utils.manifest import (
    CheckedFile,
    DamagedError,
    FileSum,
    Manifest,
    SummedFile,
    read_manifest,
    verify,
    write_manifest,
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 100)


def write(path, content, pieces=7):
    with SummedFile(path) as file:
        for start in range(0, len(content), pieces):
            file.write(content[start : start + pieces])
    return file.sum


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 1234])
@pytest.mark.parametrize("pieces", [1, 7, 100, 5000])
def test_sums_do_not_depend_on_how_a_file_is_written(tmp_path, size, pieces):
    content = os.urandom(size)
    found = write(tmp_path / "a", content, pieces)
    assert (tmp_path / "a").read_bytes() == content
    assert found == write(tmp_path / "b", content, 33)
    assert FileSum.of_json(found.as_json()) == found
    assert b"".join(CheckedFile(tmp_path / "a", found).chunks()) == content


def test_a_part_is_checked_and_no_more(tmp_path):
    content = bytearray(os.urandom(1000))
    expected = write(tmp_path / "a", bytes(content))
    content[555] ^= 4
    (tmp_path / "a").write_bytes(content)
    file = CheckedFile(tmp_path / "a", expected)
    assert file.read(100, 300) == content[100:400]
    assert file.read(600, 400) == content[600:]
    for start, count in ((500, 1), (0, 1000), (599, 1), (450, 60)):
        with pytest.raises(DamagedError, match="a is damaged: bytes 500 to 599 are not those that were written"):
            file.read(start, count)


def test_another_size_is_damage(tmp_path):
    expected = write(tmp_path / "a", bytes(150))
    (tmp_path / "a").write_bytes(bytes(149))
    with pytest.raises(DamagedError, match="a is damaged: 149 bytes, 150 were written"):
        CheckedFile(tmp_path / "a", expected)
    (tmp_path / "a").unlink()
    with pytest.raises(DamagedError, match="a is missing"):
        CheckedFile(tmp_path / "a", expected)
    (tmp_path / "a").write_bytes(bytes(10))
    with pytest.raises(DamagedError, match="ends before byte 11"):
        CheckedFile(tmp_path / "a", None).read(5, 6)


def test_a_file_that_fails_to_be_written_is_not_synced(tmp_path):
    file = SummedFile(tmp_path / "a")
    file.__exit__(ValueError, ValueError(), None)
    with pytest.raises(ValueError, match="closed file"):
        file.write(b"x")


def make_folder(folder):
    (folder / "sub").mkdir()
    files = {name: write(folder / name, os.urandom(250)) for name in ("one", "sub/two")}
    manifest = Manifest({"step": 3}, files)
    write_manifest(folder, manifest)
    return manifest


def test_a_manifest_comes_back_and_its_folder_verifies(tmp_path):
    manifest = make_folder(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest.below("sub") == {"two": manifest.files["sub/two"]}
    assert manifest.total_bytes() == 500
    verify(tmp_path, manifest)
    (tmp_path / "sub" / "two").write_bytes(bytes(250))
    verify(tmp_path, manifest, 0, 2)
    with pytest.raises(DamagedError, match="two is damaged"):
        verify(tmp_path, manifest, 1, 2)


def test_each_byte_of_a_manifest_counts(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
            read_manifest(tmp_path)
    path.write_bytes(content + b"\n")
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../one", "sub/../../one", "..\\one"])
def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path, name):
    write_manifest(tmp_path, Manifest({}, {name: FileSum(0, ())}))
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"checksum": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_a_giant_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_MANIFEST", 1000)
    (tmp_path / "manifest.json").write_bytes(bytes(1001))
    with pytest.raises(DamagedError, match="1001 bytes are too many"):
        read_manifest(tmp_path)
