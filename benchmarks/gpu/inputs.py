"""How fast faces come: the project's own loader on record files of JPEGs, by number of worker processes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.records.writer import write_face_records
from dataset import get_dataloader
from utils.decode import encode_rgb
from utils.opencv import cv2


def measure_input(case: dict[str, Any], device: torch.device, folder: Path) -> dict[str, Any]:
    """Decoded images a second with ``workers`` processes (0: the caller itself), in batches of ``batch``."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        _write_faces(Path(name), case.get("faces", 2048))
        loader = get_dataloader(name, case["batch"], num_workers=case["workers"], device=device)
        images, began_s, epoch = 0, 0.0, 0
        budget_s, warm = case.get("budget_s", 2.0), 4 + 2 * case["workers"]
        batches = 0
        while not began_s or time.perf_counter() - began_s < budget_s:
            loader.batch_sampler.set_position(epoch, 0)
            for batch in loader:
                batches += 1
                if began_s:
                    images += len(batch.labels_B)
                    if time.perf_counter() - began_s >= budget_s:
                        break
                elif batches >= warm:
                    began_s = time.perf_counter()
            epoch += 1
        took_s = time.perf_counter() - began_s
        del loader
    return {**case, "images_per_s": images / took_s}


def _write_faces(folder: Path, number: int) -> None:
    """Smooth noise as JPEG files of quality 95, about as many bytes as aligned faces have."""
    rng = np.random.default_rng(0)
    distinct = []
    for _ in range(min(number, 64)):
        coarse = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC).astype(np.float64)
        distinct.append(encode_rgb(np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8), ".jpg"))
    write_face_records(folder, [[distinct[i % len(distinct)]] * 8 for i in range(max(1, number // 8))])
