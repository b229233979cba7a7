"""Folders of bcolz, written here as it writes them; the real codecs are tried where they are installed."""

import json
import struct
import sys
import types

import numpy as np
import pytest

from eval.pairs.__main__ import list_sets
from eval.pairs.bcolz_folder import is_bcolz, load_bcolz
from eval.pairs.sets import find_pairs, load_pairs
from pair_stub import face
from tools.make_bin import main as make_bin
from utils.decode import decode_rgb

CODECS = ("stored", "blosc", "numcodecs.blosc")


def stored(data):
    """A buffer of Blosc that is not compressed, which its flag 2 says."""
    return struct.pack("<BBBBIII", 2, 1, 2, 4, len(data), len(data), len(data) + 16) + data


@pytest.fixture(params=CODECS)
def compress(request, monkeypatch):
    """Write with one codec, and let only that one be there for reading."""
    name = request.param
    for other in {"blosc", "numcodecs.blosc", "blosc2"} - {name}:
        monkeypatch.setitem(sys.modules, other, None)
    if name == "stored":
        monkeypatch.setitem(sys.modules, "blosc", types.SimpleNamespace(decompress=lambda data: bytes(data[16:])))
        return stored
    codec = pytest.importorskip(name, reason=f"{name} is not installed")
    if name == "blosc":
        return lambda data: codec.compress(data, typesize=4, cname="lz4", shuffle=codec.SHUFFLE)
    return lambda data: codec.Blosc(cname="lz4", shuffle=1).encode(np.frombuffer(data, "<f4"))


def write_folder(root, images, flags, compress, chunk, name="lfw"):
    """What bcolz writes for (2n, 3, H, W) float32."""
    for part in ("meta", "data"):
        (root / name / part).mkdir(parents=True)
    sizes = {"shape": list(images.shape), "nbytes": images.nbytes, "cbytes": images.nbytes}
    storage = {"dtype": "float32", "cparams": {"clevel": 5, "shuffle": 1, "cname": "lz4"}, "chunklen": chunk}
    (root / name / "meta" / "sizes").write_text(json.dumps(sizes))
    (root / name / "meta" / "storage").write_text(json.dumps(storage))
    for number, start in enumerate(range(0, len(images), chunk)):
        header = b"blpk" + bytes((1, 1, 0, 0)) + struct.pack("<q", 1)
        data = images[start : start + chunk].tobytes()
        (root / name / "data" / f"__{number}.blp").write_bytes(header + compress(data))
    np.save(root / f"{name}_list.npy", np.array(flags))
    return root / name


@pytest.fixture
def faces():
    return [face(seed) for seed in range(6)]


def normalised(faces):
    """RGB uint8 (H, W, 3) -> BGR float32 (3, H, W) from -1 to 1, as torchvision makes it of a BGR image."""
    return np.stack([(image[..., ::-1].transpose(2, 0, 1) / np.float32(255) - 0.5) / 0.5 for image in faces])


def test_images_come_back_to_the_bit(tmp_path, faces, compress):
    folder = write_folder(tmp_path, normalised(faces), [True, False, True], compress, chunk=4)
    pairs = load_pairs(find_pairs("lfw", tmp_path))
    assert (pairs.name, pairs.issame.tolist()) == ("lfw", [True, False, True])
    assert pairs.form == "folder of bcolz: 3 pairs, read as BGR"
    assert all((decode_rgb(encoded) == image).all() for encoded, image in zip(pairs.encoded, faces, strict=True))
    assert list_sets(tmp_path) == ["lfw"]
    assert find_pairs(str(folder), tmp_path / "elsewhere") == folder


def test_images_that_were_never_saved_are_counted(tmp_path, faces, folder):
    images = normalised(faces)
    images[4:] = 0
    empty = write_folder(tmp_path, images, [True, False, True], stored, chunk=4, name="empty")
    assert "2 images are of one colour" in load_bcolz(empty).form


@pytest.fixture
def folder(tmp_path, faces, monkeypatch):
    monkeypatch.setitem(sys.modules, "blosc", types.SimpleNamespace(decompress=lambda data: bytes(data[16:])))
    return write_folder(tmp_path, normalised(faces), [True, False, True], stored, chunk=4)


def test_a_bin_is_made_of_it(folder, faces, tmp_path, capsys):
    assert make_bin([str(folder), str(tmp_path / "lfw.bin")]) == 0
    assert "folder of bcolz: 3 pairs" in capsys.readouterr().out
    pairs = load_pairs(tmp_path / "lfw.bin")
    assert (decode_rgb(pairs.encoded[5]) == faces[5]).all()
    assert make_bin([str(folder), str(tmp_path / "two.bin"), "--pairs", "3"]) == 2
    assert "has its pairs: leave it out" in capsys.readouterr().err


def test_without_a_codec_the_error_names_the_line_for_pip(folder, monkeypatch):
    for name in ("blosc", "numcodecs.blosc", "blosc2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"no package that decodes it is there: pip install blosc$"):
        load_bcolz(folder)


def damaged(folder, what):
    sizes, chunk = folder / "meta" / "sizes", folder / "data" / "__1.blp"
    if what == "cut":
        chunk.write_bytes(chunk.read_bytes()[:-9])
    elif what == "lying":
        data = bytearray(chunk.read_bytes())
        data[20:24] = (1 << 31).to_bytes(4, "little")
        chunk.write_bytes(data)
    elif what == "gone":
        chunk.unlink()
    elif what == "values":
        start = bytearray(chunk.read_bytes())
        start[32:36] = np.float32(255).tobytes()
        chunk.write_bytes(start)
    elif what == "flags":
        np.save(folder.with_name("lfw_list.npy"), np.array([True]))
    elif what == "no flags":
        folder.with_name("lfw_list.npy").unlink()
    elif what == "grey":
        sizes.write_text('{"shape": [6, 112, 112]}')
    elif what == "json":
        sizes.write_text("{")
    elif what == "double":
        (folder / "meta" / "storage").write_text('{"dtype": "float64", "chunklen": 4}')


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", "__1.blp: damaged, or no file of bcolz"),
        ("lying", "__1.blp: damaged.* found 2,147,483,648"),
        ("gone", "__1.blp is missing: copy the whole folder again"),
        ("values", "image 4 has values from .* to 255, expected -1 to 1"),
        ("flags", "expected 2 images for each of 1 pairs in lfw_list.npy, found 6"),
        ("no flags", "lfw_list.npy is missing"),
        ("grey", r"expected square images .* found shape \(6, 112, 112\)"),
        ("json", "meta: not what bcolz writes"),
        ("double", "expected float32, found float64"),
    ],
)
def test_damage_is_one_line(folder, what, message):
    damaged(folder, what)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_bcolz(folder)
    assert "\n" not in str(caught.value)


def test_other_folders_are_none(tmp_path):
    assert not is_bcolz(tmp_path)
