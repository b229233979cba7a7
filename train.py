"""Train a face-embedding network: ``train.py configs/NAME [key=value ...]``.

Alone, under torchrun or under ``python -m torch.distributed.launch``; every rank runs this file. Steps are
followed by a log line, a verification or a checkpoint where the config asks for one.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import ends_at_once

    ends_at_once("train.py")  # until there is a run that saves first

import argparse
import contextlib
import gc
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.errors import record

from dataset import Batch
from training.checkpoint import newest_sound
from training.data import RunData, data_folder, open_data, verification_targets
from training.first_centres import set_first_centres
from training.identity import Identity
from training.memory import advice_on_memory
from training.metrics import MetricsWriter
from training.precision import settle_precision
from training.report import Speedometer, StepReport, announce, skipped_text, step_bar
from training.run import TrainingRun
from training.run_folder import RunFolder, Start
from training.saving import RAW
from training.sigterm import nothing_to_save_yet
from training.verification import Verification
from training.wandb_log import check_wandb
from utils.config import get_config
from utils.device import prepare_device
from utils.distributed import Ranks, all_gather_objects, broadcast_object, close_ranks, init_ranks, together
from utils.fate import one_fate, speaks, tell_launcher
from utils.log import init_logging, log, warn_once
from utils.manifest import DamagedError
from utils.processes import ends_soon
from utils.settings import Config
from utils.text import clock, plain


@nothing_to_save_yet()
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
        tell_launcher(str(error))
        parser.exit(2, f"train.py: {plain(str(error))}\n")
    with one_fate():
        try:
            run, data = prepare(cfg, ranks)
        except (ValueError, OSError) as error:  # on all ranks, or on this one alone
            parser.exit(2, f"train.py: {plain(str(error))}\n" if speaks(error) else None)
        try:
            with lost_workers_are_named():
                train(run, data)
        except (OSError, FloatingPointError) as error:  # a full or failing disk, a lost worker, divergence
            if isinstance(error, ConnectionError):
                raise
            parser.exit(1, f"train.py: {plain(str(error))}\n" if speaks(error) else None)
        finally:
            run.saver.abandon()


def prepare(cfg: Config, ranks: Ranks) -> tuple[TrainingRun, RunData]:
    """Check everything that a user may have got wrong, build the run, say what it is.

    Of an earlier run nothing is touched before settings, data and checkpoints have been checked.

    Raises:
        ValueError: settings, data and earlier runs that do not fit together, on every rank.
        OSError: a file that the config names is missing or cannot be read or written, on every rank.
    """
    init_logging(ranks.is_main)
    together(lambda: check_wandb(cfg))
    folder = RunFolder(cfg, ranks)
    start = folder.look()
    prepare_device(ranks.device)
    cfg = settle_precision(cfg, ranks)
    data, cfg = open_data(cfg, ranks)
    with advice_on_memory(cfg, ranks.world_size):
        run, chosen = make_run(cfg, ranks, folder.path, start, data)
        if chosen is None:
            set_first_centres(cfg, run.classifier.shard, run.backbone, data.faces)
    folder.open(chosen, run.step)
    run.lock = folder.lock
    run.find_best()
    init_logging(ranks.is_main, folder.path)
    announce(run, data, chosen)
    return run, data


def make_run(cfg: Config, ranks: Ranks, output: Path, start: Start, data: RunData) -> tuple[TrainingRun, Path | None]:
    """Build the run and go on from a checkpoint, if there is one: the first sound one of those that ``start`` names.

    Raises:
        ValueError: it belongs to another run, or none is sound; says how to go on.
    """
    steps, identity = data.steps_per_epoch(cfg.gradient_acc), Identity(cfg, data)
    for checkpoint in start.checkpoints:
        run = TrainingRun(cfg, ranks, output, steps, identity.facts)
        try:
            run.load(checkpoint, partial(identity.check, checkpoint))
        except DamagedError as error:
            run.close()
            del run  # its memory is wanted by the next one
            gc.collect()
            if not start.falls_back:
                raise ValueError(f"{error}. {way_on(checkpoint, ranks)}") from error
            warn_once("%s; the checkpoint before it is tried", error)
            continue
        return run, checkpoint
    if start.checkpoints:
        raise ValueError(
            f"none of the {len(start.checkpoints)} checkpoints in {output / 'checkpoints'} is sound: python -m "
            f"tools.check_run {output} says why; resume=False overwrite=True starts over"
        )
    return TrainingRun(cfg, ranks, output, steps, identity.facts), None


def way_on(damaged: Path, ranks: Ranks) -> str:
    """What to do about a damaged checkpoint; rank 0 looks at those beside it."""
    sound = broadcast_object(newest_sound(damaged.parent, damaged) if ranks.is_main else None)
    if sound is None:
        return (
            f"There is no other sound checkpoint in {damaged.parent}: start over with resume=False overwrite=True, "
            f"or elsewhere with output=NEW init_backbone={damaged.parent.parent / 'model.pt'}"
        )
    return f"The newest sound checkpoint is {sound}: resume = 'auto' goes on from it, or resume = {str(sound)!r}"


def train(run: TrainingRun, data: RunData) -> None:
    """Run the epochs that are left; at the end of each, model.pt is in the output folder."""
    cfg, begin_s = run.cfg, time.monotonic()
    with (
        MetricsWriter(run.output, run.step, cfg, run.is_main) as metrics,
        advice_on_memory(cfg, run.world_size),
        run.stop,
        step_bar(run) as bar,
    ):
        verification = Verification(
            verification_targets(cfg),
            data_folder(cfg),
            run.device,
            cfg.batch_size,
            metrics,
            run.stop,
            cfg.image_size[0],
        )
        if run.step == 0:
            run.verify(verification)  # a broken set shows before the first step
        report = StepReport(run, data, metrics, bar)
        while run.epoch < cfg.num_epoch:
            batches = epoch_batches(run, data, report.speed)
            while run.step_in_epoch < run.steps_per_epoch:
                run.train_step(batches)
                report.count()
                if run.is_due(cfg.frequent):
                    report.write()
                with report.speed.paused():
                    run.save_if_due()
                    if run.is_due(cfg.verbose):
                        run.verify(verification)
                if run.stop.agreed:
                    stop_here(run)
            with report.speed.paused():
                run.end_epoch()
                if not run.is_due(cfg.verbose):
                    run.verify(verification)
            if run.stop.agreed and run.epoch < cfg.num_epoch:
                stop_here(run)
        run.saver.finish()
        if not broadcast_object((run.output / "model.pt").exists()):  # resumed after a crash just before it
            run.save(model=True)
        run.close()
        metrics.artifact = run.output / "model.pt" if cfg.save_artifacts else None
    if warning := skipped_text(run.skipped, run.step):
        warn_once(warning)
    which = f" (average of the weights; the last ones: {RAW})" if cfg.average_decay() else ""
    log.info("done: %s%s, after %s", run.output / "model.pt", which, clock(time.monotonic() - begin_s))


def epoch_batches(run: TrainingRun, data: RunData, speed: Speedometer) -> Iterator[Batch]:
    """The rest of the epoch's batches; before each, the classifier is told the labels of the next.

    The time that training waits for the loader is counted.
    """
    run.classifier.shard.forget_prefetched()
    arriving = data.batches(run.epoch, run.step_in_epoch * run.cfg.gradient_acc)

    def following() -> Batch | None:
        asked_s = time.monotonic()
        batch = next(arriving, None)
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


@contextlib.contextmanager
def lost_workers_are_named() -> Iterator[None]:
    """Turn the loss of a loader's worker, which torch raises wherever training is just then, into an OSError."""
    try:
        yield
    except RuntimeError as error:
        if "/dev/shm is full" in str(error):  # the last line of a worker's traceback says what to do
            raise OSError(str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")) from error
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a loader worker on {platform.node()} has ended without a word, for example for want of memory (see "
            "dmesg): lower num_workers or batch_size, and go on with resume = 'auto' "
            f"({' '.join(str(error).split())})"
        ) from error


def stop_here(run: TrainingRun) -> NoReturn:
    """Save what there is and end every rank's process, as SIGTERM or Ctrl-C asked. Collective: an object gather."""
    cause = next((cause for cause in all_gather_objects(run.stop.cause, "causes") if cause), "SIGTERM")
    run.save(model=not run.cfg.save_all_states)
    run.saver.close()
    left = "resume = 'auto' goes on from there"
    if not run.cfg.save_all_states:
        left = "model.pt is written, no checkpoint (save_all_states)"
    text = f"stopped by {cause} after step {run.step}; {left}"
    warn_once(text)
    tell_launcher(text)
    close_ranks()
    sys.exit(run.stop.exit_status(cause))


if __name__ == "__main__":
    with ends_soon():
        record(main)()  # so that torchrun shows the traceback of the rank that failed first
