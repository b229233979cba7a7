"""Files that people take for a network's weights, told apart by their first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own
_MXNET = b"\x12\x01\x00\x00\x00\x00\x00\x00"  # number 0x112, the first of a list of arrays
# A protocol buffer: field 1 is a small number, the version, then the producer, the graph, the operators or a text.
_ONNX_SECOND_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"


def name_of_format(path: Path) -> str:
    """What a file is and what to do with it, "safetensors" for one of these, "" for what torch may have saved.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a pointer of Git LFS, not the weights themselves: fetch them with git lfs pull"
    if head.startswith(_MXNET):
        return "a file of mxnet's parameters; convert the network to ONNX with mxnet to evaluate it"
    if len(head) > 2 and head[0] == 8 and head[1] < 32 and head[2] in _ONNX_SECOND_FIELDS:
        return (
            "an ONNX model, expected a state_dict: it can be evaluated under a name that ends in .onnx, not trained"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, probably of a download that asked for a login: download the file itself"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= min(size, _SAFETENSORS_HEADER_LIMIT):
        return "safetensors"
    return "a TorchScript program, expected a state_dict of tensors" if _is_torchscript(path) else ""


def _is_torchscript(path: Path) -> bool:
    """Whether it is an archive with a program in it; torch.save writes no constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
