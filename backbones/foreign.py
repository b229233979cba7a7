"""Files that people take for a network's weights, told apart by their first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own
_MXNET = b"\x12\x01\x00\x00\x00\x00\x00\x00"  # number 0x112, the first of a list of arrays
# A protocol buffer: field 1 is a small number, the version, then the producer, the graph, the operators or a text.
_ONNX_SECOND_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"
_CONVERT = "convert the network to ONNX to evaluate it; it cannot be trained here"
_ARCHIVE = "an archive of files: unpack it, and give the file with the weights in it"
# What has no mark at its beginning, or that of another format.
_ENDINGS = {
    ".caffemodel": f"a file of Caffe's weights; {_CONVERT}",
    ".prototxt": "the description of a Caffe network, without any weights",
    ".pb": f"a TensorFlow graph; {_CONVERT}",
}
_NCNN = f"ncnn's weights, which hold no names of tensors; {_CONVERT}, from the network that it was made from"
# Where in a file, what stands there, and what the file is then.
_MARKS = (
    (0, b"\x89HDF\r\n\x1a\n", f"a file of HDF5, as Keras and TensorFlow write; {_CONVERT}"),
    (4, b"TFL3", f"a TensorFlow Lite model; {_CONVERT}"),
    (0, b"7767517", "the description of an ncnn network, without any weights"),
    (0, b"\x47\x6b\x30\x01", _NCNN),  # of 16 bits
    (0, b"\x93NUMPY", "an array of numpy, expected a state_dict of tensors"),
    (0, b"\x1f\x8b", _ARCHIVE),  # gzip
    (0, b"7z\xbc\xaf\x27\x1c", _ARCHIVE),
    (0, b"Rar!", _ARCHIVE),
    (257, b"ustar", _ARCHIVE),
)
_TAIL_BYTES = 1 << 20


def name_of_format(path: Path) -> str:
    """What a file is and what to do with it, "safetensors" for one of these, "" for what torch may have saved.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a pointer of Git LFS, not the weights themselves: fetch them with git lfs pull"
    if head.startswith(_MXNET):
        return "a file of mxnet's parameters; convert the network to ONNX with mxnet to evaluate it"
    if not head.startswith((b"PK", b"\x80")):  # torch.save's, whatever their names
        if path.suffix.lower() in _ENDINGS:
            return _ENDINGS[path.suffix.lower()]
        if path.suffix == ".bin" and path.with_suffix(".param").is_file():
            return _NCNN
    if len(head) > 2 and head[0] == 8 and head[1] < 32 and head[2] in _ONNX_SECOND_FIELDS:
        return (
            "an ONNX model, expected a state_dict: it can be evaluated under a name that ends in .onnx, not trained"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably of a download that asked for a login: download the file itself"
    for at, mark, meaning in _MARKS:
        if head[at : at + len(mark)] == mark:
            return meaning
    if head.lstrip().startswith(b"{"):
        is_symbol = b'"nodes"' in head or path.name.endswith("-symbol.json")
        return f"{'the description of an mxnet network' if is_symbol else 'a text of JSON'}, without any weights"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= min(size, _SAFETENSORS_HEADER_LIMIT):
        return "safetensors"
    if head.startswith(b"\x80") and _speaks_of_paddle(path):
        return f"a file of Paddle's parameters; {_CONVERT}"
    return _archive_name(path)


def _speaks_of_paddle(path: Path) -> bool:
    """Whether a pickle names what Paddle puts last into its own; nothing is unpickled."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return b"StructuredToParameterName@@" in file.read()


def _archive_name(path: Path) -> str:
    """What a zip archive is, by the names of its parts; "" where torch may have saved it, or it is none.

    torch.save writes ``.../data.pkl``, and no constants, which belong to a program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, expected a state_dict of tensors"
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if any(name.endswith(".weights.h5") for name in names):
        return f"a Keras model; {_CONVERT}"
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz file of numpy's arrays, expected a state_dict of tensors; write it anew with torch.save"
    inside = [name for name in names if not name.endswith("/")]
    return f"{_ARCHIVE} (of {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''})" if inside else ""
