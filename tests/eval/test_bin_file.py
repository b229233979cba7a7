import os
import pickle
import struct

import numpy as np
import pytest

from eval.pairs import load_bin

IMAGES = [bytes([255, 216, i, 0, 200]) for i in range(6)]
SAME = [True, False, True]


def write(path, value, protocol=pickle.DEFAULT_PROTOCOL):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def check(path):
    pairs = load_bin(path)
    assert pairs.name == path.stem
    assert pairs.encoded == IMAGES
    assert all(type(image) is bytes for image in pairs.encoded)
    assert pairs.issame.dtype == bool
    assert pairs.issame.tolist() == SAME


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, SAME),
        (tuple(IMAGES), tuple(SAME)),
        [IMAGES, np.array(SAME)],
        (IMAGES, list(np.array(SAME))),
        (IMAGES, [int(flag) for flag in SAME]),
        (IMAGES, np.array(SAME, np.int64)),
        ([np.frombuffer(image, np.uint8) for image in IMAGES], SAME),
        ([np.frombuffer(image, np.uint8).copy() for image in IMAGES], SAME),
        ([bytearray(image) for image in IMAGES], SAME),
    ],
    ids=["bytes", "tuples", "flag-array", "flag-scalars", "int-flags", "int-array", "views", "arrays", "bytearray"],
)
def test_every_protocol_and_form(tmp_path, content, protocol):
    check(write(tmp_path / "set.bin", content, protocol))


def python2_string(data):
    return b"U" + bytes([len(data)]) + data  # SHORT_BINSTRING, the 8-bit str of Python 2


def test_python_2_strings(tmp_path):
    """Protocol 2 as Python 2 writes it: images are 8-bit strings, booleans single opcodes."""
    images = b"](" + b"".join(python2_string(image) for image in IMAGES) + b"e"
    flags = b"](" + b"".join(b"\x88" if flag else b"\x89" for flag in SAME) + b"e"
    path = tmp_path / "lfw.bin"
    path.write_bytes(b"\x80\x02" + images + flags + b"\x86.")
    check(path)


def test_python_2_arrays(tmp_path):
    """Python 2 names numpy.core and hands type codes over as 8-bit strings."""

    def array(image):
        state = b"(K\x01K" + bytes([len(image)]) + b"\x85" + dtype + b"\x89" + python2_string(image) + b"t"
        made = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\nK\x00\x85" + python2_string(b"b")
        return made + b"\x87R" + state + b"b"

    dtype = b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R"
    minus_one = b"J" + struct.pack("<i", -1)
    dtype += b"(K\x03" + python2_string(b"|") + b"NNN" + minus_one * 2 + b"K\x00tb"
    images = b"](" + b"".join(array(image) for image in IMAGES) + b"e"
    flags = b"](" + b"".join(b"\x88" if flag else b"\x89" for flag in SAME) + b"e"
    path = tmp_path / "set.bin"
    path.write_bytes(b"\x80\x02" + images + flags + b"\x86.")
    check(path)


class Attack:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__, np.load, np.fromfile, print])
def test_code_is_refused_by_name(tmp_path, function, protocol):
    marker = tmp_path / "ran"
    path = write(tmp_path / "evil.bin", (Attack(function, f"touch {marker}"), SAME), protocol)
    with pytest.raises(ValueError, match=rf"evil\.bin: refused.*\.{function.__name__}"):
        load_bin(path)
    assert not marker.exists()


def test_dotted_names_do_not_reach_deeper(tmp_path):
    path = tmp_path / "evil.bin"
    path.write_bytes(b"\x80\x04\x8c\x08builtins\x8c\x0ebytes.__base__\x93.")
    with pytest.raises(ValueError, match=r"builtins\.bytes\.__base__"):
        load_bin(path)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"cbuiltins\nbytes\nJ\x00\x00\x00\x7f\x85R.", "does not load"),  # bytes(2**31): all memory
        (b"cnumpy\ndtype\nU\x01O\x85R.", "type 'O'"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "latin1"),
        # Whatever is hung onto an admitted function stays with that load.
        (b"c_codecs\nencode\n}X\x04\x00\x00\x00evilK\x01sb.", "expected a pair"),
    ],
)
def test_admitted_globals_take_only_what_a_set_needs(tmp_path, payload, message):
    path = tmp_path / "evil.bin"
    path.write_bytes(b"\x80\x02" + payload)
    with pytest.raises(ValueError, match=message):
        load_bin(path)
    check(write(tmp_path / "good.bin", ([np.frombuffer(i, np.uint8) for i in IMAGES], SAME), 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "expected a pair .* found a str"),
        ((IMAGES,), "found a tuple of 1"),
        ((IMAGES, SAME, SAME), "found a tuple of 3"),
        (({}, SAME), "first part is a dict"),
        ((IMAGES, "yes"), "second part is a str"),
        ((IMAGES, np.zeros((3, 1), bool)), "one-dimensional"),
        ((IMAGES[:5], SAME), r"5 images and 3 flags, .*\(6\)"),
        ((IMAGES, [True, False, 2]), "flag 2 is 2"),
        ((IMAGES, [True, False, None]), "flag 2 is None"),
        (([*IMAGES[:5], "text"], SAME), "image 5 is a str"),
        (([*IMAGES[:5], np.zeros(3, np.int64)], SAME), "image 5 is array of int64"),
    ],
)
def test_wrong_content_names_file_expected_and_found(tmp_path, content, message):
    path = write(tmp_path / "odd.bin", content)
    with pytest.raises(ValueError, match=message) as caught:
        load_bin(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_broken_file(tmp_path, cut):
    path = write(tmp_path / "cut.bin", (IMAGES, SAME))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cut\.bin.*does not load"):
        load_bin(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.bin"):
        load_bin(tmp_path / "none.bin")


def test_empty_set(tmp_path):
    pairs = load_bin(write(tmp_path / "empty.bin", ([], [])))
    assert pairs.encoded == []
    assert pairs.issame.shape == (0,)


def test_real_faces(shared_data):
    pairs = load_bin(shared_data / "lfw_train" / "lfw.bin")
    assert len(pairs.encoded) == 2400
    assert pairs.issame.shape == (1200,)
    assert all(image[:2] == b"\xff\xd8" for image in pairs.encoded)
