import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from eval.pairs.bin_file import load_bin

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
        (b"cbuiltins\nbytes\nJ\x00\x00\x00\x7f\x85R.", "expected bytes, found int"),  # bytes(2**31): all memory
        (b"cnumpy\ndtype\nU\x01O\x85R.", "type 'O'"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "latin1"),
        # Hanging something onto an admitted function takes a filled dictionary.
        (b"c_codecs\nencode\n}X\x04\x00\x00\x00evilK\x01sb.", "refused at byte 30: the instruction SETITEM"),
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
        ((IMAGES, [True, False, 2]), "flag 2 is another number, expected"),
        ((IMAGES, [True, False, None]), "flag 2 is a NoneType"),
        (([*IMAGES[:5], "text"], SAME), "image 5 is a str"),
        (([*IMAGES[:5], np.zeros(3, np.int64)], SAME), "image 5 is an array of int64"),
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
    with pytest.raises(ValueError, match=r"cut\.bin.*(cut short|does not fit the file)"):
        load_bin(path)


def refused(path, payload, message):
    """The file is refused with a short message, and for less memory than a few times its bytes."""
    path.write_bytes(payload)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load_bin(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300
    assert peak < 12 * len(payload) + 200_000
    return str(caught.value)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x01.", "LONG_BINPUT to place 33554431 after 3"),
        (b"\x80\x02Nq\xff.", "BINPUT to place 255 after 3"),
        (b"Np33554431\n.", "PUT to place 33554431"),
        (b"Np" + b"9" * 5000 + b"\n.", "PUT at byte 1 is a number of 5000 digits"),
        (b"Npx\n.", r"does not load \(ValueError\)"),
        (b"I" + b"9" * 5000 + b"\n.", "INT at byte 0 is a number of 5000 digits"),
        (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.", "BINBYTES8 at byte 2 reaches beyond"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.", "BYTEARRAY8 at byte 2 reaches beyond"),
        (b"\x80\x02T\xff\xff\xff\xffx.", "BINSTRING at byte 2 reaches beyond"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fx.", "LONG4 at byte 2 reaches beyond"),
        (b"\x80\x04\x95" + (2**50).to_bytes(8, "little") + b"N.", "FRAME at byte 2 does not fit"),
        (b"cnumpy\nndarray", "GLOBAL at byte 0 reaches beyond"),
        (b"P1\n.", "instruction PERSID"),
        (b"NQ.", "instruction BINPERSID"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\xff.", "unknown instruction 0xff"),
        (b"\x80\x02N", "cut short"),
        (b"\x80\x63N.", r"does not load \(ValueError\)"),
        (b"h\x07.", r"does not load \(UnpicklingError\)"),
        (b"]" * 200_001 + b".", "too many instructions"),
    ],
)
def test_what_takes_all_memory_is_refused(tmp_path, payload, message):
    refused(tmp_path / "evil.bin", payload, message)


def test_an_argument_may_not_cross_the_end_of_its_frame(tmp_path):
    """There pickle's loader would drop bytes, and follow other instructions than the ones that were checked."""
    frame = b"\x80\x04\x95" + (3).to_bytes(8, "little")
    refused(tmp_path / "evil.bin", frame + b"NC\x05Nr\xff\xff\x7f.", "SHORT_BINBYTES at byte 12 crosses the end")
    refused(tmp_path / "evil.bin", frame + b"\x95" + (1).to_bytes(8, "little") + b"N.", "crosses|FRAME")


def test_shared_parts_are_never_printed(tmp_path):
    """The billion laughs: thirty lists of two, each naming the one before twice, print as 2**30 words."""
    laughs = b"\x80\x04U\x03lol\x94" + b"".join(b"]\x94(h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(30))
    for before, after, message in (
        (b"", b".", "flag 0 is a list"),
        (b"](" + b"N" * 2 + b"e](", b"e\x86.", "flag 0 is a list"),
        (b"](", b"Ne]\x88a\x86.", "image 0 is a list"),
        (b"cnumpy\ndtype\n", b"\x85R.", "expected a short text, found list"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00a", b"\x86R.", "expected a short text, found list"),
        (b"c_codecs\nencode\n", b"\x85R.", "another encoding"),
    ):
        refused(tmp_path / "evil.bin", laughs + before + b"h\x1d" + after, message)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b"", b".", "found a tuple of 1"),
        (b"cnumpy\ndtype\n", b"\x85R.", "short text, found tuple"),
        (b"](", b"Ne]\x88a\x86.", "image 0 is a tuple"),
        (b"cnumpy\nndarray\n)R", b"b.", "five parts"),
        (b"}", b"Ns.", "instruction SETITEM"),  # hashing a deep key overflows the stack
    ],
)
def test_deep_content_is_a_value_error(tmp_path, before, after, message):
    deep = b"]" + b"\x85" * 90_000
    path = tmp_path / "evil.bin"
    path.write_bytes(b"\x80\x02" + before + deep + after)
    with pytest.raises(ValueError, match=message) as caught:
        load_bin(path)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_long_global_is_named_in_short(tmp_path):
    message = refused(tmp_path / "evil.bin", b"cos\n" + b"system\x1b" * 1000 + b"\n.", r"asks for os\.system")
    assert "\x1b" not in message


def test_one_image_named_many_times_is_one_object(tmp_path):
    big = bytes(range(256)) * 4000
    for value in (big, np.frombuffer(big, np.uint8), np.frombuffer(big, np.uint8).copy(), bytearray(big)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path = write(tmp_path / "set.bin", ([value] * 2000, [True] * 1000), protocol)
            pairs = load_bin(path)
            assert pairs.encoded[0] == pairs.encoded[-1] == big
            assert len({id(image) for image in pairs.encoded}) == 1


def test_one_text_does_not_become_many_images(tmp_path):
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000
    call = b"c_codecs\nencode\n"
    many = b"\x80\x02" + text + b"q\x00" + call + b"q\x01](" + b"h\x01h\x00\x85R" * 1000 + b"e."
    refused(tmp_path / "evil.bin", many, "unfolds to more bytes than the file has")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"N", "five parts"),
        (b"(K\x01K\x03\x85NNU\x03abct", "type is a NoneType"),
        (b"(K\x01K\x03\x85DTYPENKAt", "expected array data as bytes, found int"),
        (b"(K\x01K\x04\x85DTYPENU\x03abct", "shape does not fit its 3 bytes"),
        (b"(K\x01K\x02\x85DTYPENU\x03abct", r"shape \(2,\) and type uint8 with 3 bytes"),
        (b"(K\x01NDTYPENU\x03abct", "shape does not fit"),
        (b"(K\x01\x8a\x09" + b"\x7f" * 9 + b"\x85DTYPENU\x03abct", "shape does not fit"),
    ],
)
def test_arrays_that_do_not_add_up(tmp_path, state, message):
    dtype = b"cnumpy\ndtype\nU\x02u1\x85R"
    array = b"\x80\x02cnumpy\nndarray\n)R" + state.replace(b"DTYPE", dtype) + b"b."
    refused(tmp_path / "evil.bin", array, message)


def test_array_without_content(tmp_path):
    empty = b"cnumpy\nndarray\n)R"
    refused(tmp_path / "evil.bin", b"\x80\x02](" + empty * 2 + b"e]\x88a\x86.", "image 0 is an array without content")
    refused(tmp_path / "evil.bin", b"\x80\x02]" + empty + b"\x86.", "one-dimensional")


def test_the_protocol_of_python_2_text_pickles(tmp_path):
    path = tmp_path / "old.bin"
    images = b"(lp1\n" + b"".join(b"S'" + "".join(f"\\x{x:02x}" for x in i).encode() + b"'\na" for i in IMAGES)
    path.write_bytes(b"(" + images + b"(lp2\n" + b"".join(b"I0%d\na" % flag for flag in SAME) + b"tp3\n.")
    check(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_any_changed_byte_is_a_set_or_a_value_error(tmp_path, protocol):
    whole = pickle.dumps(([np.frombuffer(image, np.uint8).copy() for image in IMAGES], np.array(SAME)), protocol)
    rng = np.random.default_rng(protocol)
    path = tmp_path / "set.bin"
    read, messages = 0, []
    for _ in range(400):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            read += len(load_bin(path).encoded) == 6
        except ValueError as error:
            messages.append(str(error))
    assert read
    assert messages
    assert all(text.startswith(str(path)) and len(text) < len(str(path)) + 300 for text in messages)


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
