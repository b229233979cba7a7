"""A training step in two forms that do the same work: this project's, and the reference's.

The reference's form is that of insightface's arcface_torch as its papers and documents describe it, written anew:
float32, memory laid out as torch has it (NCHW), torch's own settings of allocator and optimizer, one dense parameter
with all class centres, one SGD over everything, the loss read in each step. It is given what costs it nothing: its
images are ready on the device, in float32, augmented and normalised, which the reference leaves to its loader.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

import train
import training.run
from backbones import get_model
from backbones.base import to_network_input
from benchmarks.baselines import DensePartialFC, FullSoftmax
from benchmarks.step_parts import Watch, during, watched, watching
from data.augment import Augmentation
from dataset import Batch
from heads.shard import first_centres
from losses import get_margin
from training.data import RunData, open_data
from training.report import Speedometer
from training.schedule import schedule_of
from utils.config import get_config
from utils.device import to_device
from utils.distributed import Ranks
from utils.log import init_logging, log
from utils.settings import Config

KEPT = 8  # batches that the reference's form holds ready, and trains on in turn
FLOAT32 = ("precision=float32",)
_PRECISIONS = ("precision", "fp16", "bf16")  # spellings of one setting
PLAIN_MARGINS = ("arcface", "cosface", "combined")  # functions of the cosine alone


class Ours:
    """The run that ``train.py`` makes of a config, one step at a time; epochs repeat without end.

    Args:
        cfg: of a new run that leaves no checkpoint.
        ranks: this process among its peers.
    """

    def __init__(self, cfg: Config, ranks: Ranks) -> None:
        log.addFilter(_is_warning)
        try:
            self.run, data = train.prepare(cfg, ranks)
        except BaseException:
            log.removeFilter(_is_warning)
            raise
        self.cfg, self._is_main = self.run.cfg, ranks.is_main
        self._data = _WatchedData(data)
        self._batches = self._all_batches()

    def step(self) -> Tensor:
        """One optimizer step; the loss."""
        return self.run.train_step(self._batches)

    def _all_batches(self) -> Iterator[Batch]:
        while True:
            yield from train.epoch_batches(self.run, self._data, Speedometer())
            self.run.step_in_epoch = 0

    def skipped(self) -> int:
        """Steps without finite gradients so far, the last one included; waits for the device."""
        self.run.settle()
        return self.run.skipped

    @property
    def model(self) -> nn.Module:
        """The network as it is called, in DDP with several ranks."""
        return self.run.model

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The autocast type, None for float32."""
        return self.run.amp_dtype

    @contextmanager
    def watching(self, watch: Watch) -> Iterator[None]:
        """Have a watch told of the parts of each step."""
        run = self.run
        with ExitStack() as stack:

            def put(place: Any, name: str, part: str) -> None:
                stack.enter_context(patch.object(place, name, watched(watch, part, getattr(place, name))))

            put(training.run, "to_device", "copy")
            put(training.run, "to_network_input", "augment")
            put(run, "augment", "augment")
            put(run.classifier.shard, "prefetch", "classifier")
            put(training.run, "gather_evidence", "check")
            put(run.scaler, "unscale_", "check")
            put(run.stop, "ask", "agree")
            put(run.stop, "learn", "agree")
            stack.enter_context(patch.object(self._data, "watch", watch))
            stack.enter_context(watching(watch, run.model, run.classifier, run.optimizers))
            yield

    def close(self) -> None:
        """Let go of files, workers and threads."""
        self._batches = iter(())
        self.run.saver.abandon()
        self.run.close()
        init_logging(self._is_main)  # lets go of the file in the run's folder
        log.removeFilter(_is_warning)


def _is_warning(line: logging.LogRecord) -> bool:
    return line.levelno >= logging.WARNING


class _WatchedData(RunData):
    """The same data; a watch is told of the time that the loader is waited for."""

    def __init__(self, data: RunData) -> None:
        super().__init__(data.loader)
        self.watch: Watch | None = None

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """See :meth:`RunData.batches`."""
        arriving = super().batches(epoch, first)
        while True:
            if self.watch is None:
                batch = next(arriving, None)
            else:
                with during(self.watch, "wait"):
                    batch = next(arriving, None)
            if batch is None:
                return
            yield batch


class Reference:
    """The reference's form of the same step: same first weights, first centres, images, margin and rate.

    Its softmax runs over all classes, or with ``sample_rate`` over PartialFC's share of them; heads do not exist.

    Args:
        cfg: as for :class:`Ours`; its precision does not count.
        ranks: this process among its peers.

    Raises:
        ValueError: a setting that this form has no counterpart of.
    """

    amp_dtype: torch.dtype | None = None

    def __init__(self, cfg: Config, ranks: Ranks) -> None:
        check_reference(cfg)
        data, cfg = open_data(cfg, ranks)
        self.cfg, self.device, self._steps = cfg, ranks.device, 0
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as the reference does
        self.rate = schedule_of(cfg, ranks.world_size, data.steps_per_epoch(cfg.gradient_acc))
        torch.manual_seed(cfg.seed)
        backbone = get_model(**cfg.network_options() | {"amp_dtype": None}).to(self.device)
        torch.manual_seed(cfg.seed + ranks.rank)
        self.backbone = self.model = backbone
        if ranks.world_size > 1:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(backbone, device_ids)
            self.model.broadcast_buffers = False
        self.classifier = self._make_classifier()
        parameters = [*backbone.parameters(), *self.classifier.parameters()]
        self.optimizer: Optimizer
        if cfg.optimizer == "adamw":
            self.optimizer = AdamW(parameters, self.rate.base_lr, weight_decay=cfg.weight_decay)
        else:
            self.optimizer = SGD(parameters, self.rate.base_lr, cfg.momentum, weight_decay=cfg.weight_decay)
        self._batches = self._ready_batches(data)

    def _make_classifier(self) -> FullSoftmax:
        cfg = self.cfg
        num_classes, sample_rate = cfg.class_count(), cfg.head_layout()[2]
        assert num_classes is not None
        margin, D = get_margin(**cfg.margin_options()), cfg.embedding_size
        if sample_rate is None:
            classifier = FullSoftmax(margin, D, num_classes)
        else:
            classifier = DensePartialFC(margin, D, num_classes, sample_rate=sample_rate)
        classes_N = torch.arange(classifier.class_start, classifier.class_end)
        with torch.no_grad():
            classifier.weight.copy_(first_centres(cfg.seed, classes_N, D, torch.float32))
        return classifier.to(self.device)

    def _ready_batches(self, data: RunData) -> list[tuple[Tensor, Tensor]]:
        """The first images (B, 3, H, W) and labels (B,) that a run gets."""
        augment = Augmentation(self.cfg.augmentation(), self.cfg.seed)
        ready = []
        for batch in data.batches(0):
            images = augment(to_device(batch.images_BHW3, self.device), batch.sample_ids_B, 0)
            ready.append((to_network_input(images).contiguous(), to_device(batch.labels_B, self.device)))
            if len(ready) == KEPT:
                break
        return ready

    def step(self) -> Tensor:
        """One optimizer step; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self._steps)
        images, labels_B = self._batches[self._steps % len(self._batches)]
        loss: Tensor = self.classifier(self.model(images), labels_B)
        loss.backward()
        if self.cfg.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.backbone.parameters(), self.cfg.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._steps += 1
        loss.item()
        return loss.detach()

    def skipped(self) -> int:
        """None: it never looks whether gradients are finite."""
        return 0

    def watching(self, watch: Watch) -> AbstractContextManager[None]:
        """Have a watch told of the parts of each step."""
        return watching(watch, self.model, self.classifier, [self.optimizer])

    def close(self) -> None:
        """Let go of the images."""
        self._batches = []


def laid_over(overrides: Sequence[str], more: Sequence[str]) -> list[str]:
    """``more`` behind ``overrides``; of the latter no spelling of the precision is left where ``more`` names one."""
    has_precision = any(_key(text) == "precision" for text in more)
    return [*(text for text in overrides if not (has_precision and _key(text) in _PRECISIONS)), *more]


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def check_reference(cfg: Config) -> None:
    """Raise ValueError for a setting that the reference's form has no counterpart of."""
    loss = "combined" if cfg.margin_list is not None else cfg.loss
    wrong = [
        ("loss", cfg.loss, f"one of {', '.join(PLAIN_MARGINS)}", loss not in PLAIN_MARGINS),
        ("gradient_acc", cfg.gradient_acc, "1", cfg.gradient_acc != 1),
        ("freeze_backbone", cfg.freeze_backbone, "False", cfg.freeze_backbone),
        ("init_backbone", cfg.init_backbone, "None", cfg.init_backbone is not None),
        ("nesterov", cfg.nesterov, "False", cfg.nesterov),
    ]
    for name, value, wanted, is_wrong in wrong:
        if is_wrong:
            raise ValueError(
                f"the reference's form needs {name} = {wanted}, got {value!r}: set it, or leave the form out with "
                "--no-reference"
            )


def equal_overrides(cfg: Config) -> list[str] | None:
    """What makes of a config a run that computes the reference's numbers: float32, a softmax over all classes.

    It is to be laid over the config's overrides (:func:`laid_over`). None where there is no such run, because
    PartialFC's classes are drawn at random.
    """
    if cfg.head_layout()[2] is not None:
        return None
    classes = "auto" if cfg.num_classes == "auto" else cfg.class_count()
    heads = [f"num_classes={classes}", "head_size=None", "negative_rate=None", "sample_rate=1.0", "head_scope=batch"]
    rows = ["row_lr=1.0", "row_momentum=None", "row_idle=None"]
    return [*FLOAT32, *heads, *rows]


def open_config(config: str, overrides: Sequence[str], output: Path) -> Config:
    """A config for measuring: it leaves nothing behind and verifies nothing."""
    cfg = get_config(config, overrides)
    return dataclasses.replace(
        cfg,
        output=str(output),
        resume=False,
        overwrite=False,
        save_all_states=False,
        using_wandb=False,
        val_targets=(),
        keep_best=None,
        init_centres=None,
    )
