"""What a run says about itself: the start banner, and the log lines and metrics of its steps."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data.faces import FaceDataset, ImageFolder
from heads.selection import expected_share
from training.data import RunData
from training.memory import plan_of
from training.metrics import MetricsWriter
from training.optimizers import RowRule, row_rule
from training.run import TrainingRun
from training.schedule import rate_text
from utils.atomic import write_json
from utils.bars import open_bar
from utils.distributed import Ranks, all_gather_objects
from utils.log import log
from utils.settings import Config
from utils.text import clock

DATA_WAIT_LIMIT = 0.2  # share of time waiting for data above which the log says so
_HINT_EVERY = 100  # log lines


def announce(run: TrainingRun, data: RunData, start: Path | None) -> None:
    """Log what the run is, and write config.json and classes.json."""
    cfg, classifier = run.cfg, run.classifier
    ranks = Ranks(run.rank, run.world_size, 0, run.device)
    num_classes = classifier.shard.layout.num_classes
    for line in banner_lines(cfg, ranks, num_classes, cfg.num_image or 0, run.steps_per_epoch):
        log.info(line)
    for line in data.describe():
        log.info("data: %s", line)
    scope = {"batch": "all selected heads", "own": "the sample's own head"}[cfg.head_scope]
    log.info("loss: %s, softmax over %s", classifier.margin_loss, scope)
    log.info("augmentation: %s", run.augment)
    if classifier.shard.storage.cache is not None:
        log.info("head cache: %s", classifier.shard.storage.cache)
    log.info("output: %s", run.output)
    if start is not None:
        log.info("resumed from %s: epoch %d, step %d", start, run.epoch, run.step)
    if run.is_main:
        log.info("memory: %s", plan_of(cfg, run.world_size))
        for key, value in cfg.as_dict().items():
            log.info(": %-32s%s", key, value)
        write_json(run.output / "config.json", cfg.as_dict())
        if (classes := data.class_list()) is not None:
            write_json(run.output / "classes.json", classes)


def banner_lines(cfg: Config, ranks: Ranks, num_classes: int, num_image: int, steps_per_epoch: int) -> list[str]:
    """The lines, on every rank (one collective: each rank's host and device)."""
    device = str(ranks.device)
    if ranks.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(ranks.device)})"
    hosts = all_gather_objects(f"{platform.node()} {device}")
    head_size, negative_rate, sample_rate = cfg.head_layout()
    share = expected_share(num_classes, head_size, negative_rate, cfg.batch_size * ranks.world_size, sample_rate)
    draws = f"negatives {negative_rate:g}" if sample_rate is None else f"sample rate {sample_rate:g}"
    precision = {None: "float32", torch.float16: "float16 with loss scaling", torch.bfloat16: "bfloat16"}
    exact = ", classifier in float32" if cfg.classifier_dtype() != cfg.amp_dtype() else ""
    lines = [
        f"torch {torch.__version__}, {precision[cfg.amp_dtype()]}{exact}, seed {cfg.seed}",
        *(f"rank {rank}: {where}" for rank, where in enumerate(hosts)),
        f"batch: {ranks.world_size} ranks x {cfg.batch_size} x accumulation {cfg.gradient_acc} = "
        f"{cfg.total_batch(ranks.world_size)}, {_optimizer_text(cfg)}",
        f"rate: {rate_text(cfg, ranks.world_size, steps_per_epoch)}",
        f"data: {num_image} images of {num_classes} identities from {', '.join(cfg.sources())}",
        f"steps: {steps_per_epoch} an epoch, {steps_per_epoch * cfg.num_epoch} in all",
        f"classifier: {num_classes} classes in {-(-num_classes // head_size)} heads of {head_size}, {draws}; "
        f"a step works on about {100 * share:.3g} % of the classes",
        f"class centres: {_rule_text(cfg, row_rule(cfg, ranks.world_size))}",
    ]
    if cfg.freeze_backbone:
        lines.append("backbone: frozen, as init_backbone or the checkpoint gave it; only the classifier trains")
    elif cfg.freeze_bn:
        also = ", scales and shifts" if cfg.freeze_bn is True else ""
        lines.append(f"batch norm: running statistics{also} frozen, as init_backbone or the checkpoint gave them")
    if decay := cfg.average_decay():
        lines.append(
            f"average: verification, model.pt and model_best.pt take the weights' average over the steps, of decay "
            f"{decay:g}, in its first t steps at most (1 + t) / (10 + t); model_raw.pt holds the last weights"
        )
    if share > 0.5 and negative_rate < 0.5 and sample_rate is None:
        lines.append(
            "note: with heads this long most classes are in every step, so heads save little; a smaller head_size "
            "saves more and shows each sample fewer other classes"
        )
    unread = cfg.without_effect()
    if cfg.row_idle in ("keep", "decay") and cfg.optimizer == "sgd" and not row_rule(cfg, ranks.world_size).momentum:
        unread.append("row_idle")  # there is no momentum to keep
    notes = [f"note: {name} = {getattr(cfg, name)!r} has no effect" for name in unread]
    if cfg.gradient_compression and ranks.world_size == 1 and not cfg.freeze_backbone:
        text = f"note: gradient_compression = {cfg.gradient_compression!r} has no effect"
        notes.append(f"{text}: one rank alone sends no gradients")
    return [*lines, *notes]


def skipped_text(skipped: int, steps: int) -> str:
    """What it means that most steps of a run were skipped; "" if not more than half were."""
    if 2 * skipped <= steps:
        return ""
    text = f"{skipped} of {steps} steps were skipped, because their gradients were not finite: "
    text += "nothing was trained" if skipped == steps else "little was trained"
    return f"{text}. Train for more steps, in which the loss scale settles, or use bf16 in place of fp16, or lower lr"


def _optimizer_text(cfg: Config) -> str:
    spared = "" if cfg.decay_norms_and_biases or cfg.freeze_backbone else ", norms and biases without"
    return f"{cfg.optimizer}, weight decay {cfg.weight_decay:g}{spared}"


def _rule_text(cfg: Config, rule: RowRule) -> str:
    if cfg.optimizer == "adamw":
        return f"adamw at {rule.lr:g} x lr, idle steps {rule.idle}"
    momentum = f"momentum {rule.momentum:g}" if rule.momentum else "no momentum"
    matters = rule.momentum > 0 or rule.idle == "dense"
    return f"sgd at {rule.lr:g} x lr, {momentum}" + (f", idle steps {rule.idle}" if matters else "")


def step_bar(run: TrainingRun) -> Any:
    """The bar of a run's steps, where rank 0 writes to a terminal."""
    return open_bar(run.total_steps, "step", done=run.steps_done, shown=run.is_main)


class StepReport:
    """The log lines and metrics of a run's steps, each over the steps since the last one.

    Args:
        run: as it is before its next step.
        data: what it trains on.
        metrics: receives the figures.
        bar: of :func:`step_bar`.
    """

    def __init__(self, run: TrainingRun, data: RunData, metrics: MetricsWriter, bar: Any) -> None:
        self.run, self.metrics, self.bar = run, metrics, bar
        self.speed, self.hint = Speedometer(), WaitingHint(run.cfg, data.faces)
        self._first_step = run.step

    def count(self) -> None:
        """Take a step's images into account."""
        self.speed.images += self.run.cfg.total_batch(self.run.world_size)
        self.bar.update()
        if self.run.step == self._first_step + 1:  # a slow run shows before the first line of figures
            passed_s = time.monotonic() - self.speed.start_s
            log.info("the first step took %.1f s, the start of the loader included", passed_s)

    def write(self) -> None:
        """Write the log line and the metrics. With ``on_bad_sample`` "skip" one all-reduce of one number."""
        run, stats = self.run, self.run.classifier.stats
        assert stats is not None
        loss = run.mean_loss()
        imgs_per_s, waiting = self.speed.read()
        lr, loss_scale = run.rate(run.steps_done), run.scaler.get_scale()
        left_s = self.speed.seconds_left(run.step - self._first_step, run.total_steps - run.steps_done)
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        cache = run.classifier.shard.storage.cache
        hit_rate = {} if cache is None else {"head_cache_hit_rate": cache.hit_rate()}
        scale = f"Fp16 Grad Scale: {loss_scale:2.0f}   " if run.cfg.fp16 else ""
        log.info(
            f"Speed {imgs_per_s:.2f} samples/sec   Loss {loss:.4f}   LearningRate {lr:.6f}   Epoch: {run.epoch}   "
            f"Global Step: {run.step}   {scale}Required: {clock(left_s)}   "
            f"Cosine: {stats.positive_cosine:.4f}   Top1: {stats.top1:.4f}   Waiting: {100 * waiting:.0f} %"
            + "".join(f"   Cache: {100 * rate:.0f} %" for rate in hit_rate.values() if not math.isnan(rate))
        )
        if run.is_main:
            self.hint.check(waiting)
        self.metrics.write(
            run.step,
            {
                "loss": loss,
                "learning_rate": lr,
                "epoch": run.epoch,
                "images_per_s": imgs_per_s,
                "data_wait_share": waiting,
                "positive_cosine": float(stats.positive_cosine),
                "top1": float(stats.top1),
                "selected_heads": float(stats.selected_heads),
                "selected_classes": float(stats.selected_classes),
                **hit_rate,
                "skipped_steps": run.skipped,
                "skipped_images": run.damaged.of_all_ranks(run.device) if run.cfg.on_bad_sample == "skip" else 0,
                "loss_scale": loss_scale,
            },
        )


class Speedometer:
    """Images a second and the share of the time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.start_s = self.since_s = time.monotonic()
        self.waited_s = 0.0
        self.images = 0

    def read(self) -> tuple[float, float]:
        """(images a second, share of time waiting for data), then start over."""
        now = time.monotonic()
        passed = max(now - self.since_s, 1e-9)
        result = self.images / passed, min(self.waited_s / passed, 1.0)
        self.since_s, self.waited_s, self.images = now, 0.0, 0
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside on something other than training, such as verification."""
        begin_s = time.monotonic()
        yield
        passed_s = time.monotonic() - begin_s
        self.since_s += passed_s
        self.start_s += passed_s

    def seconds_left(self, done: int, left: int) -> float:
        """Seconds for ``left`` steps at the mean pace of the ``done`` steps taken so far."""
        return (time.monotonic() - self.start_s) / max(done, 1) * left


class WaitingHint:
    """Says what to do when training waits for data; at most every 100 log lines, and not at the first one."""

    def __init__(self, cfg: Config, faces: FaceDataset) -> None:
        ways = [f"raise num_workers ({cfg.num_workers})"]
        if any(isinstance(one, ImageFolder) for one in faces.sets):
            ways.append("pack the image folder into records (python -m tools.pack_rec)")
        if faces.is_encoded and not cfg.dali:
            ways.append("set dali = True where there is a GPU")
        self.ways = ", ".join([*ways, "move the data to a faster disk"])
        self.lines = 0
        self.said_at: int | None = None

    def check(self, waiting: float) -> None:
        """Take one log line's share of waiting time into account."""
        self.lines += 1
        is_due = self.said_at is None or self.lines - self.said_at >= _HINT_EVERY
        if waiting > DATA_WAIT_LIMIT and is_due and self.lines > 1:  # the first one includes the workers' start
            self.said_at = self.lines
            log.warning("the step waits for data %.0f %% of the time: %s", 100 * waiting, self.ways)
