"""The device that a process computes on: choosing it, preparing it, copying to it without waiting for it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

_CPU_INFO = Path("/proc/cpuinfo")
_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # in the environment; the first goes before the second
_LIMITS_BELOW_BF16 = frozenset(
    ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def choose_device(name: str) -> torch.device:
    """Turn a ``--device`` into a device; "auto" is the first GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def computes_bfloat16(device: torch.device) -> bool | None:
    """Whether ``device`` has bfloat16 in hardware, so that it is faster than float32; None where nobody says."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_computes_bfloat16()


def cpu_computes_bfloat16() -> bool | None:
    """Whether this machine's CPU has instructions for bfloat16, and torch uses them; None if the system is silent."""
    limit = next((os.environ[name] for name in _LIMITS if name in os.environ), "")
    if limit.lower() in _LIMITS_BELOW_BF16 or not torch.backends.mkldnn.is_available():
        return False
    flags = _cpu_flags()
    return bool(flags & _BF16_FLAGS) if flags else None


def _cpu_flags() -> Set[str]:
    """What the CPU can do, in Linux's words; none where they are not known."""
    try:
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(words, "").split())


def prepare_device(device: torch.device) -> None:
    """Make repeated steps fast: on a GPU let cuDNN search for kernels, on a CPU keep freed memory.

    glibc returns large blocks to the system as they are freed, so that a training step spends its time in page
    faults on the next one's. After this call the process keeps them.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    elif platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``; what the host sends is queued behind the device's work, and the host goes on at once.

    A plain ``x.to(device)`` would wait until the device has caught up, and a copy from memory that is not pinned
    may. Towards the host this is a plain copy: its result must be there when the call returns.
    """
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device)
    if device.type == "cuda" and not x.is_pinned():
        x = x.pin_memory()  # torch keeps the pinned copy until the stream has read it
    return x.to(device, non_blocking=True)


class OnItsWay:
    """A small tensor on its way to the host, which does not wait for the device until it reads it.

    Args:
        x: any tensor; what it holds may change after this.
    """

    def __init__(self, x: Tensor) -> None:
        is_cuda = x.device.type == "cuda"
        self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=is_cuda)
        self._host.copy_(x.detach(), non_blocking=True)
        self._arrived = torch.cuda.current_stream(x.device).record_event() if is_cuda else None

    def read(self) -> Tensor:
        """Its values; waits until the device has come as far as it had work when this was made."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def single_threaded_worker(device: torch.device, name: str) -> ThreadPoolExecutor:
    """One background thread in which torch uses no further ones; a second team would get in training's way.

    The number of OpenMP threads is per calling thread, that of the matrix library is global; hence the reset.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix=name)
    threads = torch.get_num_threads()
    worker.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    if device.type == "cuda":
        worker.submit(torch.cuda.set_device, device).result()
    return worker
