"""Faces in records: one training run of learning.py, through the project's own training step.

Training takes a record folder and one of verification pairs of other people, at 56 x 56 pixels on a small iresnet.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backbones
import train
from backbones.iresnet import IResNet
from benchmarks.learning_arms import Arm
from benchmarks.learning_features import Cost
from eval.pairs.protocol import FARS, verify
from eval.pairs.sets import load_pairs
from training.report import Speedometer
from utils.config import get_config
from utils.distributed import Ranks

NETWORK = "r56"


class HalfSizeIResNet(IResNet):
    """rtiny on images of half the side: a quarter of its cost."""

    def __init__(self, num_features: int, dropout: float, amp_dtype: torch.dtype | None) -> None:
        widths = (16, 32, 64, 128)
        super().__init__((1, 1, 2, 1), num_features, dropout, amp_dtype, widths=widths, stem_stride=2)
        self.fc = nn.Linear(widths[-1] * 2 * 2, num_features)

    def trunk(self, x: Tensor) -> Tensor:
        """Images (B, 3, 112, 112) to (B, 128, 2, 2)."""
        return super().trunk(F.avg_pool2d(x, 2))


@dataclass(frozen=True)
class Faces:
    """What is learnt, and for how long."""

    rec: str  # folder with train.rec
    pairs: str  # .bin
    batch: int = 64
    epochs: int = 12
    lr: float = 0.1
    dim: int = 128


def train_and_test(arm: Arm, seed: int, faces: Faces) -> dict[str, Any]:
    """One run: what it cost, and how well it verifies the pairs."""
    backbones._NETWORKS[NETWORK] = HalfSizeIResNet
    rule = arm.rule
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the run's log
        cfg = get_config(
            "configs/base.py",
            [
                *(f"{key}={value}" for key, value in {**arm.head_options(), **vars(rule)}.items()),
                *(f"rec={faces.rec}", f"batch_size={faces.batch}", f"num_epoch={faces.epochs}", f"lr={faces.lr}"),
                *(f"network={NETWORK}", f"embedding_size={faces.dim}", "loss=cosface", "margin=0.3", "scale=32"),
                *("warmup_epoch=1", f"seed={seed}", "num_workers=0", "device=cpu", "save_all_states=False"),
                f"output={folder}",
            ],
        )
        run, data = train.prepare(cfg, Ranks(0, 1, 0, torch.device("cpu")))
        cost, loss = Cost(), torch.zeros(())
        update = run.row_optimizer.step

        def step(closure: Any = None) -> None:
            cost.look(run.classifier)
            update(closure)

        run.row_optimizer.step = step  # type: ignore[method-assign]
        for _ in range(cfg.num_epoch):
            batches = train.epoch_batches(run, data, Speedometer())
            for _ in range(run.steps_per_epoch):
                started_s = time.perf_counter()
                loss = run.train_step(batches)
                cost.step_s.append(time.perf_counter() - started_s)
            run.epoch, run.step_in_epoch = run.epoch + 1, 0
        pairs = load_pairs(Path(faces.pairs))
        result = verify(run.backbone, pairs, run.device, 256)
    tar = {f"tar_{far:g}": float(tar) for far, tar in zip(FARS, result.tar, strict=True)}
    classes = run.classifier.shard.layout.num_classes
    return {"loss": float(loss), **cost.record(classes), "accuracy": result.accuracy, **tar}


def count_classes(rec: Path) -> int:
    """Identities of a record folder, from its ``property``."""
    return int((rec / "property").read_text().split(",")[0])
