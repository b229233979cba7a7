"""The report of ``python -m eval.pairs``: each verification set as a section of one page.

Shapes: n pairs, N = 2n images, D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder.embedder import Embedder
from eval.pairs.bin_file import PairSet
from eval.pairs.protocol import FARS, PairResult
from eval.report.figures import percent
from eval.report.write import PairScores, Section, Tile, model_facts, write_report
from eval.roc import roc
from utils.decode import decode_rgb


def pair_section(name: str, pairs: PairSet, embeddings_ND: NDArray[np.float32], result: PairResult) -> Section:
    """Make a set's section, without curve and faces where no ROC can be drawn.

    Args:
        name: the set's.
        pairs: its encoded images are kept, to show the worst pairs.
        embeddings_ND: (2n, D), as the network gives them.
        result: of the same embeddings.
    """
    shown = None
    if np.isfinite(embeddings_ND).all() and 0 < np.count_nonzero(pairs.issame) < len(pairs.issame):
        cosines = _cosines(embeddings_ND)
        numbers = np.arange(len(pairs.encoded))
        shown = PairScores(
            curve=roc(pairs.issame, cosines),
            scores=cosines,
            labels=pairs.issame,
            first=numbers[0::2],
            second=numbers[1::2],
            image_of=lambda number: decode_rgb(pairs.encoded[number]),
            id_word="image",
            fars=FARS,
        )
    folds = len(result.accuracy_per_fold)
    figures = {
        f"Accuracy, {folds} folds ± {100 * result.accuracy_std:.2f}": (result.accuracy, percent(result.accuracy)),
        "Mean genuine cosine": (result.genuine_cosine, f"{result.genuine_cosine:.3f}"),
        "Mean impostor cosine": (result.impostor_cosine, f"{result.impostor_cosine:.3f}"),
    }
    tiles = [Tile(label, text) for label, (value, text) in figures.items() if not math.isnan(value)]
    return Section(name, pairs=shown, headline=tiles, notes=result.notes())


def _cosines(embeddings_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each pair, 0 where an embedding is zero: (n,)."""
    first_nD, second_nD = (embeddings_ND[k::2].astype(np.float64) for k in (0, 1))
    lengths = np.linalg.norm(first_nD, axis=1) * np.linalg.norm(second_nD, axis=1)
    products = np.einsum("nd,nd->n", first_nD, second_nD)
    cosines: NDArray[np.float64] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines


class PairsReport:
    """Collects sets while they are evaluated, then writes the page; the images of all sets stay in memory."""

    def __init__(self) -> None:
        self.sections: list[Section] = []

    def add(self, name: str, pairs: PairSet, embeddings_ND: NDArray[np.float32], result: PairResult) -> None:
        """Add one set; see :func:`pair_section`."""
        self.sections.append(pair_section(name, pairs, embeddings_ND, result))

    def write(self, path: Path, model: str, embedder: Embedder, flip: bool, printed: str) -> list[Path]:
        """Write the page and its pictures; makes the folder.

        Args:
            path: the HTML file.
            model: where the network was loaded from.
            embedder: what made the embeddings.
            flip: whether those of mirror images were added.
            printed: the table of all sets.

        Raises:
            OSError: a file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "straight + mirrored" if flip else "straight only"
        sections = [replace(section, mode=mode) for section in self.sections]
        facts = model_facts(model, embedder)
        return write_report(path, "Verification of pairs", sections, facts, printed=printed, worst_at_far=1e-3)
