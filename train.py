"""Train a face-embedding network: ``train.py configs/NAME [key=value ...]``.

Alone, under torchrun or under ``python -m torch.distributed.launch``; every rank runs this file. After each step
comes maybe a log line, a verification, a checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch.utils.data import DataLoader

from backbones import get_model
from dataset import Batch, EpochSampler, FaceDataset, ImageFolder, check_labels, get_dataloader
from eval.verification import Verification
from training_run import TrainingRun
from utils.banner import banner_lines
from utils.config import Config, get_config
from utils.distributed import Ranks, all_gather_objects, barrier, close_ranks, init_ranks, together
from utils.logging import MetricsWriter, Speedometer, check_wandb, init_logging, log
from utils.memory import MemoryPlan, plan_memory
from utils.output import check_output, open_output, write_json
from utils.platform import prepare_device

SYNTHETIC_IMAGES = 1_000_000  # of "synthetic" data without num_image
DATA_WAIT_LIMIT = 0.2  # share of time waiting for data above which the log says so


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
        run, loader = prepare(cfg, ranks)
    except (ValueError, OSError) as error:
        close_ranks()
        parser.exit(2, f"train.py: {error}\n" if ranks.is_main else None)
    try:
        train(run, loader)
        barrier()
    except torch.OutOfMemoryError:
        log.error(
            "out of memory; this rank needs %s. Lower batch_size or head_size, or set head_storage", memory_of(run)
        )
        raise
    finally:
        close_ranks()


def prepare(cfg: Config, ranks: Ranks) -> tuple[TrainingRun, DataLoader[Batch]]:
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
    loader, cfg = open_data(cfg, ranks)
    run = TrainingRun(cfg, ranks, output, steps_per_epoch(cfg, loader))
    if start is not None:
        run.load(start)
    open_output(cfg, ranks)
    init_logging(ranks.is_main, output)
    announce(run, loader, start)
    return run, loader


def train(run: TrainingRun, loader: DataLoader[Batch]) -> None:
    """Run the epochs that are left; model.pt stands in the output folder at the end of each."""
    cfg = run.cfg
    with MetricsWriter(run.output, run.step, cfg, run.is_main) as metrics, run.stop:
        verification = Verification(cfg.val_targets, data_folder(cfg), run.device, cfg.batch_size, metrics)
        if run.step == 0:
            run.verify(verification)  # a broken set shows before the first step
        speed, first_step, logged_step = Speedometer(), run.step, run.step
        loss_sum = torch.zeros((), device=run.device)
        while run.epoch < cfg.num_epoch:
            batches = epoch_batches(run, loader, speed)
            while run.step_in_epoch < run.steps_per_epoch:
                loss_sum += run.train_step(batches)
                speed.images += cfg.total_batch(run.world_size)
                if run.step % cfg.frequent == 0:
                    log_step(run, metrics, speed, loss_sum.item() / (run.step - logged_step), run.step - first_step)
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
        run.head.storage.close()
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


def open_data(cfg: Config, ranks: Ranks) -> tuple[DataLoader[Batch], Config]:
    """Open the data and check its labels, once on each host; returns the config with the counts filled in.

    Raises:
        ValueError: labels outside ``num_classes``, too few images, hosts whose data differ; on every rank.
        FileNotFoundError: there is no data at ``rec``; on every rank.
    """
    if not cfg.rec:
        raise ValueError("rec is not set: give the folder of the training data, in the config or as rec=FOLDER")
    error: Exception | None = None
    found: DataSummary | None = None
    loader: DataLoader[Batch] | None = None
    synthetic = cfg.rec == "synthetic"
    try:
        loader = get_dataloader(
            cfg.rec,
            cfg.batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=cfg.seed,
            num_workers=cfg.num_workers,
            num_classes=cfg.class_count() if synthetic else None,
            num_image=(cfg.num_image or SYNTHETIC_IMAGES) if synthetic else None,
            image_size=cfg.image_size,
            device=ranks.device,
        )
        if ranks.local_rank == 0:
            found = DataSummary.of(loader.dataset, cfg.class_count())
    except FileNotFoundError as problem:
        error = FileNotFoundError(f"{problem}. Give the folder of the training data with rec=FOLDER")
    except (ValueError, OSError) as problem:
        error = problem
    reports = all_gather_objects((error, found))
    for other_error, _ in reports:
        if other_error is not None:
            raise other_error
    summaries = {summary for _, summary in reports if summary is not None}
    if len(summaries) != 1:
        raise ValueError(f"the hosts' data differ, copy the same to all: {'; '.join(map(str, sorted(summaries)))}")
    assert loader is not None
    data = summaries.pop()
    if data.empty_classes:
        log.warning("data: %d of %d identities have no image", data.empty_classes, data.num_classes)
    if cfg.num_image not in (None, data.num_image):
        log.warning(
            "num_image = %d in the config, %d found; the schedule follows the data", cfg.num_image, data.num_image
        )
    num_classes = cfg.num_classes if isinstance(cfg.num_classes, tuple) else data.num_classes
    return loader, dataclasses.replace(cfg, num_classes=num_classes, num_image=data.num_image)


class DataSummary(NamedTuple):
    """What has to be the same on every host."""

    num_classes: int
    num_image: int
    empty_classes: int  # identities without an image
    checksum: int  # of the labels in their order, and of the folders' names

    @classmethod
    def of(cls, dataset: object, num_classes: int | None) -> DataSummary:
        """Read all labels and a few images; ValueError when a label or an image does not fit."""
        assert isinstance(dataset, FaceDataset)
        num_classes = num_classes or dataset.num_classes
        labels = dataset.labels
        check_labels(labels, num_classes)
        for index in np.linspace(0, len(dataset) - 1, 8).astype(int):
            dataset.load(int(index))
        names = "\n".join(dataset.classes) if isinstance(dataset, ImageFolder) else ""
        checksum = zlib.crc32(names.encode(), zlib.crc32(labels.tobytes()))
        return cls(num_classes, len(dataset), num_classes - len(np.unique(labels)), checksum)


def data_folder(cfg: Config) -> Path:
    """Where the verification sets lie: the data's folder, also when ``rec`` names a file in it."""
    return Path(cfg.rec).parent if cfg.rec.endswith(".rec") else Path(cfg.rec)


def steps_per_epoch(cfg: Config, loader: DataLoader[Batch]) -> int:
    """Optimizer steps of one epoch, the same on every rank; ValueError when there is not one."""
    steps = sampler_of(loader).steps_per_epoch // cfg.gradient_acc
    if steps == 0:
        raise ValueError(
            f"{cfg.num_image} images are less than one step's batch; lower batch_size or gradient_acc "
            f"({cfg.gradient_acc}), or use fewer ranks"
        )
    return steps


def sampler_of(loader: DataLoader[Batch]) -> EpochSampler:
    """The loader's batch sampler, as what it is."""
    assert isinstance(loader.batch_sampler, EpochSampler)
    return loader.batch_sampler


def epoch_batches(run: TrainingRun, loader: DataLoader[Batch], speed: Speedometer) -> Iterator[Batch]:
    """The rest of the epoch's batches; before each, the classifier learns the labels of the one after it.

    The time that the loader kept the training waiting is counted.
    """
    sampler_of(loader).set_position(run.epoch, run.step_in_epoch * run.cfg.gradient_acc)
    run.head.forget_prefetched()
    arriving = iter(loader)

    def following() -> Batch | None:
        asked_s = time.monotonic()
        batch: Batch | None = next(arriving, None)
        speed.waited_s += time.monotonic() - asked_s
        if batch is None:
            return None
        batch = batch._replace(labels_B=batch.labels_B.to(run.device, non_blocking=True))
        run.head.prefetch(batch.labels_B)
        return batch

    ahead = following()
    while ahead is not None:
        batch, ahead = ahead, following()
        yield batch


def announce(run: TrainingRun, loader: DataLoader[Batch], start: Path | None) -> None:
    """Log what the run is, and leave config.json and classes.json."""
    cfg, head = run.cfg, run.head
    ranks = Ranks(run.rank, run.world_size, 0, run.device)
    for line in banner_lines(cfg, ranks, head.num_classes, cfg.num_image or 0, run.steps_per_epoch):
        log.info(line)
    scope = {"batch": "all selected heads", "own": "the sample's own head"}[cfg.head_scope]
    log.info("loss: %s, softmax over %s", head.margin_loss, scope)
    log.info("output: %s", run.output)
    if start is not None:
        log.info("resumed from %s: epoch %d, step %d", start, run.epoch, run.step)
    if run.is_main:
        log.info("memory: %s", memory_of(run))
        for key, value in cfg.as_dict().items():
            log.info(": %-32s%s", key, value)
        write_json(run.output / "config.json", cfg.as_dict())
        if isinstance(loader.dataset, ImageFolder):
            write_json(run.output / "classes.json", loader.dataset.classes)


def memory_of(run: TrainingRun) -> MemoryPlan:
    """What this rank needs at the peak of a step."""
    cfg, head = run.cfg, run.head
    rows = head.class_end - head.class_start
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
            head_size=head.head_size,
            drawn_rows=round(head.negative_rate * rows),
            head_storage=cfg.head_storage,
        )


def log_step(run: TrainingRun, metrics: MetricsWriter, speed: Speedometer, loss: float, done: int) -> None:
    """Write the log line and the metrics of the steps since the last one."""
    stats = run.head.stats
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
    if waiting > DATA_WAIT_LIMIT and run.is_main:
        log.warning(
            f"the step waits for data {100 * waiting:.0f} % of the time: raise num_workers "
            f"({run.cfg.num_workers}), or move the data to a faster disk"
        )
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
            "loss_scale": run.scaler.get_scale(),
        },
    )


if __name__ == "__main__":
    main()
