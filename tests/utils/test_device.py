"""Copies to a device, with tensors that say where they are and note what is asked of them."""

import ctypes
import platform

import pytest
import torch

from utils import device
from utils.device import computes_bfloat16, cpu_computes_bfloat16, prepare_device, to_device


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
    for limit in device._LIMITS:
        monkeypatch.delenv(limit, raising=False)
    assert cpu_computes_bfloat16() is has


@pytest.mark.parametrize(
    ("name", "limit", "has"),
    [
        ("ONEDNN_MAX_CPU_ISA", "AVX2", False),
        ("DNNL_MAX_CPU_ISA", "avx512_core_vnni", False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", True),
        ("ONEDNN_MAX_CPU_ISA", "DEFAULT", True),
    ],
)
def test_a_limit_in_the_environment_takes_bfloat16_away(name, limit, has, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_bf16\n")
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(device, "_LIMITS", (name,))
    monkeypatch.setenv(name, limit)
    assert cpu_computes_bfloat16() is has


def test_a_gpu_is_asked_whether_it_computes_bfloat16_itself(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or True)
    assert computes_bfloat16(torch.device("cuda")) is True
    assert asked == [{"including_emulation": False}]
