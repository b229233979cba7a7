"""Copies to a device, with tensors that say where they are and note what is asked of them."""

import ctypes
import platform

import pytest
import torch

from utils import device
from utils.device import cpu_computes_bfloat16, prepare_device, to_device


class Noted:
    """A host tensor of a machine with a GPU."""

    device = torch.device("cpu")

    def __init__(self, pinned):
        self.pinned, self.asked = pinned, []

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        self.asked.append("pin")
        return self

    def to(self, device, non_blocking=False):
        self.asked.append("copy" if non_blocking else "copy and wait")
        return self


def test_memory_is_pinned_once():
    for pinned, expected in ((False, ["pin", "copy"]), (True, ["copy"])):
        x = Noted(pinned)
        to_device(x, torch.device("cuda"))
        assert x.asked == expected


def test_other_copies_are_plain():
    x = Noted(pinned=False)
    to_device(x, torch.device("cpu"))
    x.device = torch.device("cuda")
    to_device(x, torch.device("cpu"))
    assert x.asked == ["copy and wait", "copy and wait"]


@pytest.mark.parametrize(("system", "libc"), [("Darwin", ""), ("Windows", ""), ("Linux", "musl")])
def test_only_glibc_is_told_to_keep_memory(monkeypatch, system, libc):
    def load(name):
        raise AssertionError("no library is loaded here")

    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(ctypes, "CDLL", load)
    prepare_device(torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("model name : x\nflags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_fp16\nflags\t\t: avx512_bf16\n", False),  # the first core speaks for all
        ("processor : 0\n", None),
        (None, None),
    ],
)
def test_whether_the_cpu_computes_bfloat16_is_read_from_linux(text, has, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "cpuinfo")
    assert cpu_computes_bfloat16() is has
