"""The number format of a run's network: where the settings leave it open, chosen from the machine for all ranks.

What a device lacks in hardware it emulates, many times slower than float32; a short measurement says how many times.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from utils.device import computes_bfloat16
from utils.distributed import Ranks, all_gather_objects, broadcast_object
from utils.log import log, warn_once
from utils.precision import Precision
from utils.settings import Config

_PROBE_S, _TRIES = 0.5, 2  # of the measurement: about so long, and at least so many tries of each type


class Found(NamedTuple):
    """What a rank computes on."""

    name: str
    kind: str  # "cuda" or "cpu"
    has_bf16: bool | None  # in hardware; None: the system does not say

    def is_fast_in(self, precision: str) -> bool:
        """Whether nothing need be measured; float16 is fast on every GPU that torch supports, and on few CPUs."""
        return {"float32": True, "bf16": self.has_bf16 is True, "fp16": self.kind == "cuda"}[precision]


def settle_precision(cfg: Config, ranks: Ranks) -> Config:
    """Decide what precision = "auto" is on these machines, log it, and warn of a precision that is slow on them.

    Collectives: one object gather; one object broadcast more if a rank may lack what is asked for.
    """
    device = ranks.device
    found = all_gather_objects(
        Found(_name_of(device), device.type, computes_bfloat16(device)), "what devices compute"
    )
    reason = "as set"
    if cfg.precision == "auto":
        precision, reason = choose_precision(found)
        cfg = cfg.with_precision(precision)
    log.info("precision: %s (%s)", cfg.precision, reason)
    slow = next((rank for rank, one in enumerate(found) if not one.is_fast_in(cfg.precision)), None)
    if slow is not None:
        dtype = cfg.amp_dtype()
        assert dtype is not None, "float32 is fast anywhere"
        factor = broadcast_object(slowdown(dtype, device) if ranks.rank == slow else None, slow)
        if factor > 1:
            instead = "'bf16', which is in hardware" if all(one.has_bf16 for one in found) else "'float32'"
            text = "precision: %s takes %.1f times as long as float32 on %s, which has no hardware for it (measured "
            text += "on one convolution): set precision = 'auto' or %s"
            warn_once(text, cfg.precision, factor, found[slow].name, instead)
    return cfg


def choose_precision(found: Sequence[Found]) -> tuple[Precision, str]:
    """What "auto" is for ranks on these devices, and why: the fastest format that all have in hardware."""
    for rank, one in enumerate(found):
        if not one.has_bf16:
            known = "has no" if one.has_bf16 is False else "is not known to have"
            hint = "; precision = 'fp16' may be faster" if one.kind == "cuda" else ""
            return "float32", f"auto: rank {rank}, {one.name}, {known} bfloat16 in hardware{hint}"
    kinds = {"cuda": "GPU", "cpu": "CPU"}
    return "bf16", f"auto: the {kinds[found[0].kind]} has it in hardware"


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """Time of a 3x3 convolution, forward and backward, in ``dtype`` over that in float32; the least of each.

    On a CPU it is computing time on one thread, which other processes' work does not change much.
    """
    times = {torch.float32: math.inf, dtype: math.inf}
    x = torch.ones(4, 64, 28, 28, device=device).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.ones(64, 64, 3, 3, device=device, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind in times:
            _step_s(x, weight, kind)  # prepares the kernels
        begin_s, turns = time.monotonic(), 0
        while turns < _TRIES or time.monotonic() - begin_s < _PROBE_S / 2:
            times = {kind: min(least, _step_s(x, weight, kind)) for kind, least in times.items()}
            turns += 1
    finally:
        torch.set_num_threads(threads)
    return times[dtype] / times[torch.float32]


def _step_s(x: Tensor, weight: Tensor, kind: torch.dtype) -> float:
    clock = time.thread_time if x.device.type == "cpu" else time.perf_counter
    begin_s = clock()
    with torch.autocast(x.device.type, dtype=kind, enabled=kind != torch.float32):
        out = conv2d(x, weight, padding=1)
    gradient, _ = torch.autograd.grad(out.sum(), (x, weight))
    gradient.sum().item()  # waits for a GPU
    return clock() - begin_s


def _name_of(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{kind} of {platform.node()}"
