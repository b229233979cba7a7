"""Stands in for the reader of saved heads until that lands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heads.checkpoint import centres_dtype, read_parts
from heads.shard import first_centres
from training.checkpoint import load_training


class SavedHeads:
    """See open_saved_heads."""

    def __init__(self, checkpoint: Path) -> None:
        self.settings: dict[str, int] = load_training(checkpoint)["head"]
        self.parts = read_parts(checkpoint / "heads")

    def centres(self, classes_N: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Rows and updates."""
        L, D, seed = (self.settings[name] for name in ("head_size", "embedding_size", "seed"))
        dtype = torch.from_numpy(np.empty(0, centres_dtype(self.parts))).dtype
        rows_ND = first_centres(seed, torch.from_numpy(classes_N), D, dtype).numpy()
        updates_N = np.zeros(len(classes_N), np.int32)
        for part in self.parts:
            for i, number in enumerate(classes_N.tolist()):
                place = int(np.searchsorted(part.heads_n, number // L))
                if place < len(part.heads_n) and part.heads_n[place] == number // L:
                    rows_ND[i] = part.centres[place * L + number % L]
                    updates_N[i] = part.visits_n[place]
        return rows_ND, updates_N


def open_saved_heads(checkpoint: Path) -> SavedHeads:
    """Open."""
    return SavedHeads(checkpoint)
