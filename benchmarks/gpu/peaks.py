"""What the device can do at best: products a second, bytes a second. The floors of the other tables use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.timing import Clock

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}


def measure_peaks(device: torch.device, size: int, repeats: int) -> dict[str, Any]:
    """Operations and bytes a second, the best of some repeats.

    Args:
        device: that is measured.
        size: side of the square matrices, and MiB of the copies.
        repeats: of each.

    Returns:
        ``<type>_tflop_per_s``: two operations for each multiply-add; ``copy_gb_per_s``: bytes read and written on
        the device; ``to_device_gb_per_s`` and ``to_host_gb_per_s``: between pinned host memory and the device.
    """
    found: dict[str, Any] = {"size": size}
    for name, dtype in TYPES.items():
        found[f"{name}_tflop_per_s"] = 2 * size**3 / _matmul_ms(device, size, dtype, name == "tf32", repeats) / 1e9
    number = size * 2**20
    a, b = (torch.ones(number, dtype=torch.uint8, device=device) for _ in range(2))
    found["copy_gb_per_s"] = 2 * number / _best_ms(lambda: b.copy_(a), device, repeats) / 1e6
    part = a[: max(1, number // 8)]
    host = torch.ones(len(part), dtype=torch.uint8, pin_memory=device.type == "cuda")
    found["to_device_gb_per_s"] = (
        len(part) / _best_ms(lambda: part.copy_(host, non_blocking=True), device, repeats) / 1e6
    )
    found["to_host_gb_per_s"] = (
        len(part) / _best_ms(lambda: host.copy_(part, non_blocking=True), device, repeats) / 1e6
    )
    return found


def _matmul_ms(device: torch.device, size: int, dtype: torch.dtype, tf32: bool, repeats: int) -> float:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return _best_ms(lambda: torch.mm(a, b, out=out), device, repeats)
    finally:
        torch.set_float32_matmul_precision(before)


def _best_ms(do: Callable[[], object], device: torch.device, repeats: int) -> float:
    for _ in range(2):
        do()
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        do()
        clock.mark()
    return max(min(clock.intervals_ms()), 1e-6)
