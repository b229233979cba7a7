"""Verification during training: the sets of a run, evaluated over all ranks, logged in insightface's wording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.pairs import PairSet, load_bin, verify
from utils.distributed import all_gather_objects, get_rank
from utils.logging import MetricsWriter, log


class Verification:
    """The verification sets of a run; one that cannot be read or fails is a warning and never ends training.

    Collectives when made: one object gather, so that every rank has the same sets.

    Args:
        targets: names of sets, ``<folder>/<name>.bin``, or paths that end in .bin.
        folder: where named sets lie.
        device: where the backbone lives.
        batch_size: images of one rank in one forward.
        metrics: takes accuracy and mean cosines of each set.
    """

    def __init__(
        self, targets: Sequence[str], folder: Path, device: torch.device, batch_size: int, metrics: MetricsWriter
    ) -> None:
        self.device, self.batch_size, self.metrics = device, batch_size, metrics
        self.best: dict[str, float] = {}
        loaded: dict[str, PairSet] = {}
        problems: dict[str, str] = {}
        for target in targets:
            path = Path(target) if target.endswith(".bin") else folder / f"{target}.bin"
            try:
                loaded[target] = load_bin(path)
            except (OSError, ValueError, MemoryError) as error:
                problems[target] = str(error) or type(error).__name__
        on_ranks = all_gather_objects((problems, {target: len(pairs.encoded) for target, pairs in loaded.items()}))
        self.sets: list[PairSet] = []  # the same on every rank
        for target in targets:
            problem = next((f"rank {r}: {p[target]}" for r, (p, _) in enumerate(on_ranks) if target in p), None)
            if problem is None and len({sizes[target] for _, sizes in on_ranks}) > 1:
                problem = "its number of images differs between ranks; copy the same file to all hosts"
            if problem is None:
                self.sets.append(loaded[target])
                self.best[loaded[target].name] = metrics.highest(f"{loaded[target].name}/accuracy")
            elif get_rank() == 0:
                log.warning("verification set %s is left out: %s", target, problem)

    def __call__(self, backbone: nn.Module, step: int) -> None:
        """Evaluate every set and log accuracy, its best so far and the mean cosines.

        All ranks call it with the same weights and buffers. Collectives: those of ``eval.pairs.verify`` for each set.
        """
        for pairs in self.sets:
            tag = f"[{pairs.name}][{step}]"
            try:
                result = verify(backbone, pairs, self.device, self.batch_size)
            except ValueError as error:  # the same on every rank
                log.warning("%sverification failed: %s", tag, error)
                continue
            best = self.best[pairs.name] = float(np.fmax(self.best[pairs.name], result.accuracy))
            log.info("%sNorm of straight + mirrored: %f", tag, result.norm)
            log.info("%sAccuracy-Flip: %1.5f+-%1.5f", tag, result.accuracy, result.accuracy_std)
            log.info("%sAccuracy-Highest: %1.5f", tag, best)
            log.info("%sCosine: genuine %.4f, impostor %.4f", tag, result.genuine_cosine, result.impostor_cosine)
            if hint := result.message or (result.hint() if step else ""):
                log.warning("%s%s", tag, hint)
            values = {
                "accuracy": result.accuracy,
                "genuine_cosine": result.genuine_cosine,
                "impostor_cosine": result.impostor_cosine,
            }
            self.metrics.write(step, {f"{pairs.name}/{name}": value for name, value in values.items()})
