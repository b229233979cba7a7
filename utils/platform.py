"""What the machine is told before training: memory allocator on CPUs, convolution tuning on GPUs."""

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt


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
