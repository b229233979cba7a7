"""Verification sets as Python 2 wrote them, attacks hidden deep inside, and the memory of three public-size sets."""

import pickle
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.pairs.bin_file import load_bin
from paths import ROOT

RNG = np.random.default_rng(0)
# Longer and shorter than 256 bytes, all byte values, newlines and quotes among them; more than one batch of 1000.
IMAGES = [bytes(RNG.integers(0, 256, size, np.uint8)) for size in (3, 255, 256, 4000)] * 301
SAME = [i % 3 == 0 for i in range(len(IMAGES) // 2)]


class Python2Pickler(pickle._Pickler):
    """Writes bytes and names as Python 2 writes its 8-bit strings, and numpy's functions where they were then."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        if not self.bin:
            self.write(b"S" + repr(data)[1:].encode() + b"\n")
        elif len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core").replace("builtins", "__builtin__")
        self.write(f"c{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)


def write(path, value, protocol):
    with path.open("wb") as file:
        Python2Pickler(file, protocol).dump(value)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, SAME),
        (IMAGES, np.array(SAME)),
        ([np.frombuffer(image, np.uint8).copy() for image in IMAGES], SAME),
        (IMAGES, [np.bool_(flag) for flag in SAME]),
    ],
    ids=["strings", "array of flags", "arrays", "numpy flags"],
)
def test_python_2_files(tmp_path, content, protocol):
    path = write(tmp_path / "set.bin", content, protocol)
    data = path.read_bytes()
    assert protocol == 0 or (data[:2] == b"\x80\x02") == (protocol == 2)
    assert b"_core" not in data
    assert b"_codecs" not in data  # which Python 3 would need for bytes
    pairs = load_bin(path)
    assert pairs.encoded == IMAGES
    assert all(type(image) is bytes for image in pairs.encoded)
    assert pairs.issame.tolist() == SAME


CALL = b"c%s\n%s\nU\x02ls\x85R"  # a function called with 'ls'
FORBIDDEN = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("builtins", "bytes.fromhex"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("codecs", "open"),
    ("_codecs", "decode"),
    ("importlib", "import_module"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("numpy", "ndarray.tofile"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy._core.multiarray", "frombuffer"),
    ("numpy.core.numeric", "fromfunction"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.diagnose", "run_command"),
    ("eval.pairs.bin_file", "load_bin"),
]
PLACES = {
    "alone": b"%s.",
    "as the images": b"%s]\x86.",
    "as an image": b"](U\x01aU\x01b%se](\x88e\x86.",
    "as a flag": b"](U\x01aU\x01be](%se\x86.",
    "as a dtype's code": b"](cnumpy\ndtype\n%s\x85Re]\x86.",
    "as an array's data": b"](cnumpy\nndarray\n)R(K\x01K\x03\x85NN%stbe]\x86.",
    "in a tuple in a list in a dictionary's place": b"}]](((%sttteb.",
    "as an argument": b"cbuiltins\nbytes\n%s\x85R.",
    "after the memo": b"U\x02lsq\x00h\x00%s\x87.",
}


@pytest.mark.parametrize(("module", "name"), FORBIDDEN, ids=".".join)
def test_attacks_are_refused_by_name_wherever_they_are(tmp_path, module, name):
    path = tmp_path / "evil.bin"
    for place in PLACES.values():
        for protocol in (b"", b"\x80\x02"):
            path.write_bytes(protocol + place % (CALL % (module.encode(), name.encode())))
            with pytest.raises(ValueError, match=r"refused, because it asks for ") as caught:
                load_bin(path)
            assert f"{module}.{name}"[:40] in str(caught.value)
            assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "instruction"),
    [
        (b"(S'ls'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nU\x02lso.", "OBJ"),
        (b"\x80\x02cos\nsystem\nU\x02ls\x85\x81.", "NEWOBJ"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93U\x02ls\x85}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"Pfile\n.", "PERSID"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
    ],
)
def test_other_ways_to_call_are_refused_by_the_instruction(tmp_path, payload, instruction):
    path = tmp_path / "evil.bin"
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=rf"evil\.bin: refused at byte \d+: the instruction {instruction},"):
        load_bin(path)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_cut_of_a_python_2_file_is_told(tmp_path, protocol):
    small = (IMAGES[:3] + IMAGES[:1], [True, False])
    data = write(tmp_path / "whole.bin", small, protocol).read_bytes()
    path = tmp_path / "cut.bin"
    for end in [*range(0, len(data) - 1, 7), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"cut\.bin: (it is no pickle, or )?(damaged or )?cut short"):
            load_bin(path)


@pytest.mark.parametrize("opcode", [b"T", b"B", b"\x8e", b"X", b"\x8d", b"\x8b", b"\x96"])
def test_huge_lengths_are_told_before_memory_is_taken(tmp_path, opcode):
    """Of each instruction that carries its own length, at the largest that is no negative one."""
    width = 8 if opcode in (b"\x8e", b"\x8d", b"\x96") else 4
    path = tmp_path / "huge.bin"
    path.write_bytes(b"\x80\x05](" + opcode + (2 ** (8 * width - 1) - 1).to_bytes(width, "little") + b"abc")
    with pytest.raises(ValueError, match=r"huge\.bin: damaged or cut short: the \w+ at byte 4 reaches beyond"):
        load_bin(path)


def write_public_size(path, images, rng):
    """A set as Python 2 wrote it, straight to the file: ``images`` encoded images of 10 to 12 KB."""
    pool = rng.bytes(1 << 20)
    with path.open("wb") as file:
        file.write(b"\x80\x02](")
        for size, start in zip(
            rng.integers(10_000, 12_001, images).tolist(), rng.integers(0, 1 << 19, images).tolist(), strict=True
        ):
            file.write(b"T" + size.to_bytes(4, "little") + pool[start : start + size])
        file.write(b"e](" + b"\x88\x89" * (images // 4) + b"e\x86.")


MEASURE = """
import sys
from eval.pairs.bin_file import load_bin

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
sets = [load_bin(path) for path in sys.argv[1:]]
print(before, peak(), sum(len(image) for s in sets for image in s.encoded), *(len(s.encoded) for s in sets))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads the peak of resident memory from /proc")
def test_three_public_size_sets_take_less_than_600_mb(tmp_path):
    """lfw, cfp_fp and agedb_30 have 12,000, 14,000 and 12,000 images; interpreter and numpy are counted too."""
    rng = np.random.default_rng(1)
    sizes = {"lfw": 12_000, "cfp_fp": 14_000, "agedb_30": 12_000}
    paths = [tmp_path / f"{name}.bin" for name in sizes]
    for path, images in zip(paths, sizes.values(), strict=True):
        write_public_size(path, images, rng)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    before, peak, content, *found = map(int, done.stdout.split())
    assert found == list(sizes.values())
    assert content > 400e6
    assert peak < 600e6
    assert peak - before < 1.05 * content  # each byte once: no second copy while a file is read


def test_the_measured_module_reads_nothing_else():
    """The figure above is that of ``eval.pairs.bin_file``, which does not load torch."""
    code = "import sys, eval.pairs.bin_file; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(ROOT), check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
