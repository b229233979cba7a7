"""Verification during training: the sets of a run, evaluated over all ranks, logged in insightface's wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from embedder.batches import Stopped
from eval.pairs.bin_file import PairSet
from eval.pairs.distinct import DistinctImages
from eval.pairs.protocol import FARS, PairResult, pair_loader, thin_out, verify
from eval.pairs.sets import find_pairs, load_pairs
from training.metrics import MetricsWriter
from training.sigterm import StopRequest
from utils.distributed import all_gather_objects, get_rank, get_world_size, part_of, together
from utils.log import log

# Before training, a set of more pairs than this is only checked: every image is decoded, a few pairs are embedded.
WHOLE_AT_START = 1_500
PAIRS_AT_START = 150


class Verification:
    """The verification sets of a run; one that cannot be read or fails is a warning and never ends training.

    Collectives when made: one object gather, so that every rank has the same sets.

    Args:
        targets: names of sets, ``<folder>/<name>.bin`` or a list or a folder of bcolz there, or paths of such files.
        folder: where named sets lie.
        device: where the backbone lives.
        batch_size: images of one rank in one forward.
        metrics: receives each set's figures.
        stop: looked at between batches; what it stops leaves no figures.
        image_size: side in pixels that the network takes.
    """

    def __init__(
        self,
        targets: Sequence[str],
        folder: Path,
        device: torch.device,
        batch_size: int,
        metrics: MetricsWriter,
        stop: StopRequest | None = None,
        image_size: int = 112,
    ) -> None:
        self.stop, self.image_size = stop or StopRequest(), image_size
        self.device, self.batch_size, self.metrics = device, batch_size, metrics
        self.best: dict[str, float] = {}
        loaded: dict[str, PairSet] = {}
        problems: dict[str, str] = {}
        targets = list(dict.fromkeys(targets))
        for target in targets:
            try:
                loaded[target] = load_pairs(find_pairs(target, folder))
            except (OSError, ValueError, MemoryError) as error:
                problems[target] = _reason(error)
        on_ranks = all_gather_objects((problems, {target: len(pairs.encoded) for target, pairs in loaded.items()}))
        self.sets: list[PairSet] = []  # the same on every rank
        for target in targets:
            problem = next(
                (f"{_place(r, len(on_ranks))}{p[target]}" for r, (p, _) in enumerate(on_ranks) if target in p), None
            )
            if problem is None and len({sizes[target] for _, sizes in on_ranks}) > 1:
                problem = "its number of images differs between ranks; copy the same file to all hosts"
            if problem is None:
                pairs = loaded[target]
                if pairs.name in self.best:  # another file of that name: its figures need a name of their own
                    pairs = replace(pairs, name=target)
                self.sets.append(pairs)
                self.best[pairs.name] = metrics.highest(f"{pairs.name}/accuracy")
            else:
                _warn(f"verification set {target} is left out: {problem}")

    def __call__(self, backbone: nn.Module, step: int) -> dict[str, float]:
        """Evaluate every set, log what was found and hand it to the metrics; none further if the run is to stop.

        Returns the figures of all sets by their names in the metrics, the same on every rank; none if it was stopped.

        At step 0, before training, large sets are only checked, and one with a broken image is left out from then on.

        All ranks call it with the same weights and buffers. Collectives: those of ``eval.pairs.verify`` for each
        set, at step 0 one more object gather for a large one.
        """
        figures: dict[str, float] = {}
        for pairs in list(self.sets):
            tag = f"[{pairs.name}][{step}]"
            chosen = pairs
            try:
                if step == 0 and len(pairs.issame) > WHOLE_AT_START:
                    chosen = thin_out(pairs, PAIRS_AT_START)
                    together(lambda pairs=pairs: _decode_share(pairs, self.stop))  # type: ignore[misc]
                result = verify(
                    backbone,
                    chosen,
                    self.device,
                    self.batch_size,
                    image_size=self.image_size,
                    is_stopping=lambda: self.stop.asked,
                )
            except Stopped:  # the same on every rank
                self.stop.settle(True)
                log.info("%sNot finished: the run is asked to stop", tag)
                return {}
            except ValueError as error:  # the same on every rank
                if step == 0:
                    self.sets.remove(pairs)
                reason = str(error).removeprefix(f"verification set {pairs.name}, ")
                _warn(
                    f"verification set {pairs.name} is left out: {reason}" if step == 0 else f"{tag}failed: {reason}"
                )
                continue
            if chosen is not pairs:
                log.info("%sA look at %d of %d pairs before training", tag, len(chosen.issame), len(pairs.issame))
            else:
                self.best[pairs.name] = float(np.fmax(self.best[pairs.name], result.accuracy))
                found = {f"{pairs.name}/{name}": value for name, value in _figures(result).items()}
                self.metrics.write(step, found)
                figures |= found
            self._log(tag, result, self.best[pairs.name], is_trained=step > 0)
        return figures

    def _log(self, tag: str, result: PairResult, best: float, is_trained: bool) -> None:
        log.info("%sXNorm: %f", tag, result.norm)
        log.info("%sAccuracy-Flip: %1.5f+-%1.5f", tag, result.accuracy, result.accuracy_std)
        if not np.isnan(best):
            log.info("%sAccuracy-Highest: %1.5f", tag, best)
        tar = ", ".join(f"{t:.4f} at FAR {far:g}" for far, t in zip(FARS, result.tar, strict=True) if not np.isnan(t))
        if tar:
            log.info("%sTAR: %s", tag, tar)
        log.info(
            "%sCosine: genuine %.4f, impostor %.4f, spread %.4f",
            tag,
            result.genuine_cosine,
            result.impostor_cosine,
            result.spread,
        )
        for note in result.notes():
            if is_trained or note == result.message:
                _warn(f"{tag}{note}")


def _reason(error: Exception) -> str:
    """Why a set cannot be read, for a line that has named it already."""
    text = str(error) or type(error).__name__
    missing = text.removeprefix("no verification set ")
    return text if missing == text else f"there is no {missing}"


def _place(rank: int, ranks: int) -> str:
    return f"rank {rank}: " if ranks > 1 else ""


def _warn(text: str) -> None:
    """Warn once about what every rank has found."""
    if get_rank() == 0:
        log.warning(text)


def _figures(result: PairResult) -> dict[str, float]:
    """What the metrics record of one set."""
    names = ("accuracy", "genuine_cosine", "impostor_cosine", "spread", "norm")
    tar = {f"tar_at_far_{far:g}": float(t) for far, t in zip(FARS, result.tar, strict=True) if not np.isnan(t)}
    return {name: getattr(result, name) for name in names} | tar


def _decode_share(pairs: PairSet, stop: StopRequest, at_once: int = 64) -> None:
    """Decode this rank's share of the images; ValueError for the first that does not decode."""
    distinct = DistinctImages(pairs.encoded)
    load = pair_loader(pairs.encoded, numbers=distinct.first_U)
    start, end = part_of(len(distinct), get_rank(), get_world_size())
    try:
        for first in range(start, end, at_once):
            if not stop.asked:  # :func:`verify` tells the others
                load(first, min(first + at_once, end))
    except ValueError as error:
        raise ValueError(f"verification set {pairs.name}, {error}") from None
