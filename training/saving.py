"""Saving while training goes on: a moment's state is held on to, and a thread of each rank writes it.

A save has three parts: :meth:`Saver.begin` between two steps, the writing in the threads, and :meth:`Saver.finish`,
between two later steps, which gives the checkpoint its name once all ranks have written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from heads.checkpoint import HeadPart, HeadSave, HeadSaver
from heads.shard import HeadShard
from training.checkpoint import (
    BEST,
    FORMAT,
    HEADS,
    REPLACED,
    TRAINING,
    VERSION,
    Best,
    first_non_finite,
    list_checkpoints,
    step_of,
)
from utils.atomic import open_atomic, sync_folder, write_json
from utils.device import single_threaded_worker
from utils.distributed import all_gather_objects, get_rank, get_world_size, together
from utils.log import log
from utils.manifest import FileSum, Manifest, SummedFile, write_manifest
from utils.progress import progress

T = TypeVar("T")

RAW = "model_raw.pt"  # the last weights, where model.pt holds their average

DISK_S = 120.0  # without a block taken, after which a disk does not excuse a run that is asked to end
SHARE = 0.8  # of timeout_s: a rank whose disk does not answer says so before the others miss it


class SaveError(OSError):
    """A checkpoint or a model could not be written; the message says what to do."""


@dataclass(frozen=True)
class _Pending:
    """A save whose files are being written."""

    partial: Path
    final: Path | None  # the checkpoint's folder; None: the model alone is written
    facts: dict[str, Any]
    heads: HeadSave | None
    written: Future[tuple[FileSum | None, HeadPart | None]]  # training.pt's, this rank's heads


class Saver:
    """Writes a run's checkpoints and model.pt, one save at a time. All ranks call its methods at the same steps.

    Args:
        output: the run's folder.
        shard: this rank's heads.
        keep: newest checkpoints to keep.
        full_every: see :class:`~heads.checkpoint.HeadSaver`.
    """

    def __init__(self, output: Path, shard: HeadShard, keep: int, full_every: int = 1) -> None:
        self.output, self.folder, self.keep = output, output / "checkpoints", keep
        self.best: Best | None = None  # its checkpoint is kept, too
        # The step of the newest one that shares no file with the newest of all: a damaged file leaves it sound.
        self._spare: int | None = None
        self._shares_files = full_every > 1
        self._heads = HeadSaver(shard, full_every)
        self._worker = single_threaded_worker(shard.device, "save")
        self._pending: _Pending | None = None
        self._waited_for: Future[Any] | None = None  # this rank's part of a save for which training stands still
        self._named = 0  # checkpoints
        self._is_main = get_rank() == 0

    @property
    def is_pending(self) -> bool:
        """Whether a save waits for :meth:`finish`; the same on every rank."""
        return self._pending is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is still at it."""
        return self._pending is not None and not self._pending.written.done()

    @property
    def holds_up(self) -> bool:
        """Whether training stands still for a save that goes on: the disk takes data, or the others' disks may."""
        if self._waited_for is None:
            return False
        return self._waited_for.done() or time.monotonic() - progress.wrote_s < DISK_S

    def begin(
        self,
        step: int,
        training: dict[str, Any] | None,
        model: Mapping[str, Tensor] | None,
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Start to save; finishes the save before first. What is given may change once this returns.

        Args:
            step: optimizer steps taken.
            training: for ``checkpoints/step_N``, equal on every rank; None: no checkpoint.
            model: a network's state_dict for model.pt, whose tensors may be in ``training`` too; None: no model.
            average: the average of such networks, likewise; it then goes to model.pt, and ``model`` to model_raw.pt.

        Raises:
            SaveError: on every rank when any rank could not write, also in the save before.
            FloatingPointError: what was to be saved before is not finite.
        """
        self.finish()
        final, partial = self.folder / f"step_{step}", self.folder / f".step_{step}.partial"
        heads = None
        if training is not None:
            self.or_error(final, lambda: _start_over(partial) if self._is_main else None)
            wants_all = self._heads.wants_all() or self._named == 1  # the first one is then the spare
            all_heads = any(all_gather_objects(wants_all, "heads to save"))
            heads = self.or_error(final, lambda: self._heads.begin(all_heads))
        copy = _Copies()
        models = {"model.pt": model} if average is None else {RAW: model, "model.pt": average}
        state, weights = (
            copy(value) if self._is_main else None for value in (training, None if model is None else models)
        )
        progress.wrote_s = time.monotonic()
        written = self._worker.submit(self._write, partial, heads, state, weights)
        self._pending = _Pending(partial, None if training is None else final, _facts(step, training), heads, written)

    def finish(self) -> None:
        """Wait until all ranks have written what was begun, if anything was, and give the checkpoint its name.

        Collectives: three object gathers, one without a checkpoint.

        Raises:
            SaveError, FloatingPointError: as :meth:`begin`.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        target = pending.final or self.output / "model.pt"
        self._waited_for = pending.written
        try:
            training_sum, part = self.or_error(target, lambda: _result(pending.written), pending.partial)
        finally:
            self._waited_for = None
        if pending.final is None or part is None:
            return
        files = {f"{HEADS}/{name}": own for name, own in part.sums.items()}
        if training_sum is not None:
            files[TRAINING] = training_sum
        everyones = {name: own for one in all_gather_objects(files) for name, own in one.items()}
        manifest = Manifest(pending.facts, everyones)
        is_full = part.is_full
        self.or_error(
            target, lambda: self._name(pending, manifest, is_full) if self._is_main else None, pending.partial
        )
        self._heads.finish(part, pending.final / HEADS)
        self._named += 1
        log.info("checkpoint: %s, %.1f MiB", pending.final, manifest.total_bytes() / 2**20)

    def write_best(self, best: Best, model: Mapping[str, Tensor]) -> None:
        """Write model_best.pt, and keep the checkpoint of its step, which must be finished, until a better one comes.

        Raises:
            SaveError: on every rank.
        """
        path = self.output / "model_best.pt"
        self.or_error(path, lambda: _write_finite(model, path) if self._is_main else None)
        self.best = best
        path = self.output / BEST
        self.or_error(path, lambda: write_json(path, asdict(best)) if self._is_main else None)

    def close(self) -> None:
        """Finish, and end the thread."""
        self.finish()
        self._worker.shutdown(wait=True)

    def abandon(self) -> None:
        """Give up what is being written, so that a process that fails can end. No collective."""
        if self._pending is not None and self._pending.heads is not None:
            self._pending.heads.close()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _write(
        self,
        partial: Path,
        heads: HeadSave | None,
        state: dict[str, Any] | None,
        models: dict[str, dict[str, Tensor]] | None,
    ) -> tuple[FileSum | None, HeadPart | None]:
        try:
            for value in (state, models):
                _check_finite(value)
            part = None if heads is None else heads.write(partial / HEADS)
        finally:
            if heads is not None:
                heads.close()
        training_sum = None
        if state is not None:
            with SummedFile(partial / TRAINING) as file:
                _save(state, file)
            training_sum = file.sum
        for name, weights in (models or {}).items():
            write_model(weights, self.output / name)
        if models is not None and RAW not in models:
            (self.output / RAW).unlink(missing_ok=True)  # of a run that kept an average and goes on without
        return training_sum, part

    def _name(self, pending: _Pending, manifest: Manifest, is_full: bool) -> None:
        """Complete a checkpoint with its manifest and its name, and drop the oldest ones."""
        final = pending.final
        assert final is not None
        write_manifest(pending.partial, manifest)
        sync_folder(pending.partial)
        earlier = [step_of(path) for path in list_checkpoints(self.folder) if path != final]
        if is_full and self._shares_files:
            self._spare = earlier[-1] if earlier else None
        if final.exists():
            final.rename(final.with_name(f".{final.name}{REPLACED}"))  # RunFolder brings it back if this ends here
        pending.partial.rename(final)
        sync_folder(self.folder)
        kept = {step_of(path) for path in list_checkpoints(self.folder)[-self.keep :]}
        kept |= {self.best.step} if self.best is not None else set()
        kept |= {self._spare} if self._spare is not None else set()
        try:
            for old in list_checkpoints(self.folder):
                if step_of(old) not in kept:
                    old.rename(old.with_name(f".{old.name}.old"))  # never half of one under a complete one's name
        except OSError as error:  # the new one is complete all the same
            log.warning("an old checkpoint in %s could not be removed: %s", self.folder, error)
        self._worker.submit(_drop_old, self.folder)

    def or_error(self, target: Path, do: Callable[[], T], partial: Path | None = None) -> T:
        """:func:`together`, with an error that says what to do."""
        try:
            return together(do)
        except (OSError, FloatingPointError) as error:
            if isinstance(error, TimeoutError):  # a disk that does not answer is not asked for anything else
                raise SaveError(f"could not write {target}: {error}; go on with resume = 'auto'") from error
            if self._is_main and partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise SaveError(
                    f"could not write {target}: {error}. Make room there and go on with resume = 'auto', or "
                    f"elsewhere with output=NEW resume=PATH; the last checkpoint is {self.last()}"
                ) from error
            raise FloatingPointError(
                f"{target} is not written, because {error}: training has diverged. Lower lr, lengthen the warm-up, "
                f"or use bf16 in place of fp16; the last checkpoint is {self.last()}"
            ) from error

    def last(self) -> str:
        """The newest checkpoint, in words."""
        found = list_checkpoints(self.folder)
        return str(found[-1]) if found else "not yet there"


def write_model(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a network's plain state_dict, complete or not at all.

    Raises:
        OSError: the disk is full or not writable; an older file stays as it was.
    """
    with open_atomic(path) as file:
        _save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, file)


def _result(written: Future[T]) -> T:
    """Wait for the writing; raises TimeoutError when the disk has taken nothing for most of a collective's time."""
    limit_s = SHARE * progress.timeout_s
    while not written.done():
        wait([written], timeout=min(1.0, limit_s / 8))
        if not written.done() and time.monotonic() - progress.wrote_s > limit_s:
            raise TimeoutError(f"the disk has taken nothing for {limit_s:g} s ({SHARE:g} of timeout_s)")
    return written.result()


class _Copies:
    """Copies of nested values on the CPU; a tensor that comes twice is copied once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self._done:  # the tensor is kept beside its copy, so that its id stays its own
                self._done[id(value)] = (value, value.detach().to("cpu", copy=True))
            return self._done[id(value)][1]
        if isinstance(value, Mapping):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        return value


def _check_finite(value: Any) -> None:
    if name := first_non_finite(value):
        raise FloatingPointError(f"{name} is not finite")


def _write_finite(state: Mapping[str, Tensor], path: Path) -> None:
    _check_finite(state)
    write_model(state, path)


def _facts(step: int, training: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "project": VERSION,
        "torch": torch.__version__,
        "step": step,
        "ranks": get_world_size(),
        "classifier": {} if training is None else training["head"],
    }


def _start_over(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    (partial / HEADS).mkdir(parents=True)


def _drop_old(folder: Path) -> None:
    for old in (*folder.glob(".step_*.old"), *folder.glob(f".step_*{REPLACED}")):
        try:
            shutil.rmtree(old)
        except OSError as error:  # tried again after the next save
            log.warning("an old checkpoint in %s could not be removed: %s", folder, error)


def _save(value: Any, file: Any) -> None:
    """torch.save, which hides why it cannot write."""
    try:
        torch.save(value, file)
    except RuntimeError as error:
        hidden: BaseException | None = error
        while hidden is not None and not isinstance(hidden, OSError):
            hidden = hidden.__cause__ or hidden.__context__
        raise (hidden or error) from None
