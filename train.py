"""Train a face-embedding network: ``train.py configs/NAME [key=value ...]``.

Alone, under torchrun or under ``python -m torch.distributed.launch``; every rank runs this file. After each step
comes maybe a log line, a verification, a checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from backbones import get_model
from dataset import Batch
from training.banner import banner_lines
from training.data import RunData, WaitingHint, data_folder, open_data, verification_targets
from training.memory import MemoryPlan, plan_memory
from training.metrics import MetricsWriter, check_wandb
from training.output import check_output, open_output
from training.report import Speedometer
from training.run import TrainingRun
from training.verification import Verification
from utils.atomic import write_json
from utils.config import Config, get_config
from utils.device import prepare_device
from utils.distributed import Ranks, barrier, close_ranks, init_ranks, together
from utils.log import init_logging, log


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ``argv`` defaults to the process's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configs/NAME, with or without .py, or a path")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that go before the config's")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by torch.distributed.launch")
    args = parser.parse_args(argv)
    try:
        cfg = get_config(args.config, args.overrides)
        ranks = init_ranks(cfg.device, cfg.timeout_s, args.local_rank)
    except (ValueError, OSError) as error:
        parser.exit(2, f"train.py: {error}\n")
    try:
        run, data = prepare(cfg, ranks)
    except (ValueError, OSError) as error:
        close_ranks()
        parser.exit(2, f"train.py: {error}\n" if ranks.is_main else None)
    try:
        train(run, data)
        barrier()
    except torch.OutOfMemoryError:
        log.error(
            "out of memory; this rank needs %s. Lower batch_size or head_size, or set head_storage", memory_of(run)
        )
        raise
    finally:
        close_ranks()


def prepare(cfg: Config, ranks: Ranks) -> tuple[TrainingRun, RunData]:
    """Check everything that a user may have got wrong, build the run, say what it is.

    Nothing of an earlier run is touched before all checks have passed.

    Raises:
        ValueError: settings, data and earlier runs that do not fit together, on every rank.
        OSError: a file that the config names is missing or cannot be read or written, on every rank.
    """
    init_logging(ranks.is_main)
    together(lambda: check_wandb(cfg))
    output, start = check_output(cfg, ranks)
    prepare_device(ranks.device)
    data, cfg = open_data(cfg, ranks)
    run = TrainingRun(cfg, ranks, output, data.steps_per_epoch(cfg.gradient_acc))
    if start is not None:
        run.load(start)
    open_output(cfg, ranks)
    init_logging(ranks.is_main, output)
    announce(run, data, start)
    return run, data


def train(run: TrainingRun, data: RunData) -> None:
    """Run the epochs that are left; model.pt stands in the output folder at the end of each."""
    cfg = run.cfg
    with MetricsWriter(run.output, run.step, cfg, run.is_main) as metrics, run.stop:
        verification = Verification(verification_targets(cfg), data_folder(cfg), run.device, cfg.batch_size, metrics)
        if run.step == 0:
            run.verify(verification)  # a broken set shows before the first step
        speed, hint = Speedometer(), WaitingHint(cfg, data.faces)
        first_step, logged_step = run.step, run.step
        loss_sum = torch.zeros((), device=run.device)
        while run.epoch < cfg.num_epoch:
            batches = epoch_batches(run, data, speed)
            while run.step_in_epoch < run.steps_per_epoch:
                loss_sum += run.train_step(batches)
                speed.images += cfg.total_batch(run.world_size)
                if run.step % cfg.frequent == 0:
                    loss = loss_sum.item() / (run.step - logged_step)
                    log_step(run, metrics, speed, hint, loss, run.step - first_step)
                    logged_step = run.step
                    loss_sum.zero_()
                if cfg.verbose and run.step % cfg.verbose == 0:
                    with speed.paused():
                        run.verify(verification)
                if cfg.checkpoint_steps and run.step % cfg.checkpoint_steps == 0:
                    with speed.paused():
                        run.save()
                if run.stop.agreed:
                    stop_here(run)
            with speed.paused():
                run.end_epoch()
                if not (cfg.verbose and run.step % cfg.verbose == 0):
                    run.verify(verification)
        if not (run.output / "model.pt").exists():  # resumed after a crash between the last checkpoint and it
            run.save_model()
        run.classifier.shard.storage.close()
        metrics.artifact = run.output / "model.pt" if cfg.save_artifacts else None
    log.info("done: %s", run.output / "model.pt")


def stop_here(run: TrainingRun) -> NoReturn:
    """Save what there is and end the process, as SIGTERM asked."""
    if run.cfg.save_all_states:
        run.save()
        log.warning("stopped by SIGTERM after step %d; resume = True goes on from there", run.step)
    else:
        run.save_model()
        log.warning(
            "stopped by SIGTERM after step %d; model.pt is written, no checkpoint (save_all_states)", run.step
        )
    sys.exit(143)


def epoch_batches(run: TrainingRun, data: RunData, speed: Speedometer) -> Iterator[Batch]:
    """The rest of the epoch's batches; before each, the classifier learns the labels of the one after it.

    The time that the loader kept the training waiting is counted.
    """
    run.classifier.shard.forget_prefetched()
    arriving = data.batches(run.epoch, run.step_in_epoch * run.cfg.gradient_acc)

    def following() -> Batch | None:
        asked_s = time.monotonic()
        batch: Batch | None = next(arriving, None)
        speed.waited_s += time.monotonic() - asked_s
        if batch is None:
            return None
        run.damaged.count(batch)
        run.classifier.shard.prefetch(batch.labels_B)
        return batch

    ahead = following()
    while ahead is not None:
        batch, ahead = ahead, following()
        yield batch


def announce(run: TrainingRun, data: RunData, start: Path | None) -> None:
    """Log what the run is, and leave config.json and classes.json."""
    cfg, classifier = run.cfg, run.classifier
    ranks = Ranks(run.rank, run.world_size, 0, run.device)
    for line in banner_lines(
        cfg, ranks, classifier.shard.layout.num_classes, cfg.num_image or 0, run.steps_per_epoch
    ):
        log.info(line)
    for line in data.describe():
        log.info("data: %s", line)
    scope = {"batch": "all selected heads", "own": "the sample's own head"}[cfg.head_scope]
    log.info("loss: %s, softmax over %s", classifier.margin_loss, scope)
    log.info("augmentation: %s", run.augment)
    log.info("output: %s", run.output)
    if start is not None:
        log.info("resumed from %s: epoch %d, step %d", start, run.epoch, run.step)
    if run.is_main:
        log.info("memory: %s", memory_of(run))
        for key, value in cfg.as_dict().items():
            log.info(": %-32s%s", key, value)
        write_json(run.output / "config.json", cfg.as_dict())
        if (classes := data.class_list()) is not None:
            write_json(run.output / "classes.json", classes)


def memory_of(run: TrainingRun) -> MemoryPlan:
    """What this rank needs at the peak of a step."""
    cfg, shard = run.cfg, run.classifier.shard
    rows = shard.layout.classes_here
    with torch.random.fork_rng(devices=[]):  # the run's own random state, for dropout, stays as it is
        # A fresh network, since the run's own may talk to other ranks.
        network = get_model(cfg.network, cfg.embedding_size, cfg.dropout, amp_dtype=cfg.amp_dtype())
        return plan_memory(
            backbone=network,
            image_size=cfg.image_size,
            batch_size=cfg.batch_size,
            gradient_acc=cfg.gradient_acc,
            world_size=run.world_size,
            optimizer=cfg.optimizer,
            rows=rows,
            embedding_size=cfg.embedding_size,
            head_size=shard.layout.head_size,
            drawn_rows=round(shard.negative_rate * rows),
            head_storage=cfg.head_storage,
        )


def log_step(
    run: TrainingRun, metrics: MetricsWriter, speed: Speedometer, hint: WaitingHint, loss: float, done: int
) -> None:
    """Write the log line and the metrics of the steps since the last one."""
    stats = run.classifier.stats
    assert stats is not None
    imgs_per_s, waiting = speed.read()
    lr = run.schedules[0].get_last_lr()[0]
    hours = speed.hours_left(done, run.total_steps - run.steps_done)
    scale = f"Fp16 Grad Scale: {run.scaler.get_scale():2.0f}   " if run.cfg.fp16 else ""
    log.info(
        f"Speed {imgs_per_s:.2f} samples/sec   Loss {loss:.4f}   LearningRate {lr:.6f}   Epoch: {run.epoch}   "
        f"Global Step: {run.step}   {scale}Required: {hours:1.0f} hours   "
        f"Cosine: {stats.positive_cosine:.4f}   Top1: {stats.top1:.4f}   Waiting: {100 * waiting:.0f} %"
    )
    if run.is_main:
        hint.check(waiting)
    metrics.write(
        run.step,
        {
            "loss": loss,
            "learning_rate": float(lr),
            "epoch": run.epoch,
            "images_per_s": imgs_per_s,
            "data_wait_share": waiting,
            "positive_cosine": float(stats.positive_cosine),
            "top1": float(stats.top1),
            "selected_heads": float(stats.selected_heads),
            "selected_classes": float(stats.selected_classes),
            "skipped_steps": run.skipped,
            "skipped_images": run.damaged.of_all_ranks(run.device) if run.cfg.on_bad_sample == "skip" else 0,
            "loss_scale": run.scaler.get_scale(),
        },
    )


if __name__ == "__main__":
    main()
