"""The classifier's step alone: forward, backward, row update, and the announcement of the next labels.

Shapes: G batch, D embedding size, C classes, L classes per head, S selected classes.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.classifier_case import Case, Labels, sampled_classifier
from benchmarks.gpu.timing import counting_waits, forget_peak, peak_of_memory, time_steps
from utils.device import prepare_device

AMP = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": None}
GIB = 2**30


class Steps:
    """A classifier with its optimizer, whose steps have no backbone to hide behind."""

    def __init__(self, case: Case, amp: torch.dtype | None, device: torch.device | str) -> None:
        self.classifier, self.optimizer = sampled_classifier(case, amp, device)
        g = torch.Generator().manual_seed(0)
        self.inputs = [torch.randn(case.batch, case.dim, generator=g).to(device) for _ in range(4)]
        self.number = 0
        self._ahead: list[Tensor] = []

    def make(self, labels: Iterator[Tensor]) -> Tensor:
        """One step, after the labels of the one that follows have been announced; its loss."""
        while len(self._ahead) < 2:
            self._ahead.append(next(labels))
            self.classifier.shard.prefetch(self._ahead[-1])
        x_GD = self.inputs[self.number % len(self.inputs)].detach().requires_grad_()
        self.number += 1
        loss: Tensor = self.classifier(x_GD, self._ahead.pop(0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def visit(self, batches: Sequence[Tensor]) -> None:
        """One step for each batch, without announcements of others."""
        for labels in batches:
            self.classifier(self.inputs[0].detach().requires_grad_(), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def close(self) -> None:
        """Release files and memory."""
        self.classifier.shard.forget_prefetched()
        self.classifier.shard.storage.close()


def obstacle(case: Case, device: torch.device) -> str | None:
    """Why this machine cannot hold the centres, with the figures; None if nothing speaks against it."""
    need = 4.0 * case.row_arrays * case.dim * case.classes
    if case.storage == "device" and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if need > 0.9 * free:
            return f"needs {need / GIB:.0f} GiB, the device has {free / GIB:.0f} of {total / GIB:.0f} GiB free"
    touched = 4.0 * case.row_arrays * case.dim * case.touched_classes()
    if case.storage == "host" or device.type == "cpu":
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        if touched > 0.8 * ram:
            return f"touches {touched / GIB:.1f} GiB, {ram / GIB:.1f} GiB of memory are free"
    if case.storage == "file":
        free = shutil.disk_usage(case.folder).free
        if touched > 0.8 * free:
            return f"writes {touched / GIB:.1f} GiB, {case.folder} has {free / GIB:.1f} GiB free"
    return None


def measure_classifier(case: dict[str, Any], device: torch.device, folder: Path) -> dict[str, Any]:
    """The step of ``classes`` identities on a ``storage``, with what its floor is counted from.

    Args:
        case: ``classes``, ``storage`` and ``batch``; it may have ``precision``, ``head_size``, ``identities``,
            ``budget_s``.
        device: that computes.
        folder: for heads in files.

    Returns:
        the times; ``floor_flop``: of the three products on the selected rows; ``floor_bytes``: of these rows, read
        once and written once where they live. Or ``left_out``: why it cannot be.
    """
    prepare_device(device)
    forget_peak(device)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made = Case(
            method="mhs",
            storage=case["storage"],
            classes=case["classes"],
            head_size=case.get("head_size", 12),
            batch=case["batch"],
            dim=case.get("dim", 512),
            ranks=1,
            amp="none",
            steps=case.get("most_steps", 200),
            identities=case.get("identities", 20_000),
            even_labels=False,
            warm_steps=10,
            budget_s=case.get("budget_s", 1.5),
            folder=name,
        )
        if why := obstacle(made, device):
            return {**case, "left_out": why}
        steps = Steps(made, AMP[case.get("precision", "float32")], device)
        try:
            return {**case, **_measure(steps, made, device)}
        finally:
            steps.close()
            del steps
            gc.collect()
            forget_peak(device)


def _measure(steps: Steps, case: Case, device: torch.device) -> dict[str, Any]:
    labels = Labels(case, 0)
    opening, rest = labels.first_visits()
    steps.visit([*opening, *rest])
    coming = (one for _ in iter(int, 1) for one in labels.draw(64))
    for _ in range(case.warm_steps):
        steps.make(coming)
    storage = steps.classifier.shard.storage
    waited_s = storage.waited_s
    found: dict[str, Any] = time_steps(lambda: steps.make(coming), device, case.budget_s, case.steps)
    found["rows_wait_share"] = (storage.waited_s - waited_s) * 1e3 / (found["step_ms"] * found["steps"])
    found.update(peak_of_memory(device))
    with counting_waits(device) as waits:
        for _ in range(4):
            steps.make(coming)
    found.update(waits.per_step(4))
    assert steps.classifier.stats is not None
    selected = int(steps.classifier.stats.selected_classes)
    found["selected_classes"] = selected
    found["floor_flop"] = 3 * 2.0 * case.batch * selected * case.dim
    found["floor_bytes"] = 2.0 * 4 * case.row_arrays * selected * case.dim
    return found
