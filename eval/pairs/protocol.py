"""Verification of pairs of faces: is it the same person? Cross-validated accuracy, as lfw defines it.

Shapes: n pairs, N = 2n images (rows 2i and 2i + 1 are pair i), D embedding size, F folds, T = 400 thresholds,
K = 4 false accept rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from embedder.batches import LoadBatch, Stopped, embed_batches, never
from embedder.embedder import LengthMeter
from eval.pairs.bin_file import PairSet
from eval.pairs.distinct import DistinctImages
from utils.decode import Resized, decode_rgb, resize_square, resized_text
from utils.device import to_device
from utils.distributed import all_gather_objects, all_reduce_sum_, get_rank, get_world_size, part_of

# On the squared distance of L2-normalised embeddings, which is 2 - 2 * cosine.
THRESHOLDS: NDArray[np.float64] = np.arange(0, 4, 0.01)  # (T,)
FARS: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)  # false accept rates whose true accept rate is reported


def _nan_curve() -> NDArray[np.float64]:
    return np.full(len(THRESHOLDS), np.nan)


def _nan_points() -> NDArray[np.float64]:
    return np.full(len(FARS), np.nan)


@dataclass(frozen=True)
class PairResult:
    """What verification of one set found. Figures that could not be computed are nan; ``message`` says why."""

    pairs: int = 0  # n
    accuracy: float = float("nan")  # mean over folds, 0 to 1
    accuracy_std: float = float("nan")  # over folds
    accuracy_per_fold: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # (F,)
    correct: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))  # (n,) decided rightly in its fold
    tpr: NDArray[np.float64] = field(default_factory=_nan_curve)  # (T,) true positive rate, mean over folds
    fpr: NDArray[np.float64] = field(default_factory=_nan_curve)  # (T,) false positive rate, mean over folds
    tar: NDArray[np.float64] = field(default_factory=_nan_points)  # (K,) at FARS; nan below one impostor pair
    genuine_cosine: float = float("nan")  # mean over pairs of the same person
    impostor_cosine: float = float("nan")  # mean over pairs of two persons
    spread: float = float("nan")  # standard deviation of the embeddings, mean over dimensions
    norm: float = float("nan")  # mean length of straight and mirrored embeddings each; evaluate_pairs() leaves it out
    non_finite: int = 0  # embeddings that hold a nan or an infinity
    resized: int = 0  # images that had another size than the network takes
    not_square: int = 0  # among them, whose faces are distorted
    message: str = ""  # why a figure is missing or rests on fewer folds

    def notes(self) -> list[str]:
        """What a reader of the figures should know, usually nothing."""
        return [note for note in (self.message, self.size_note(), self.hint()) if note]

    def size_note(self) -> str:
        """Say that images were resized, "" if none was."""
        return resized_text(self.resized, self.not_square, 2 * self.pairs)

    def hint(self) -> str:
        """Say what is probably wrong, or "" if nothing stands out."""
        if self.non_finite:
            return (
                f"{self.non_finite} embeddings hold nan or infinity: training has diverged or a precision "
                "overflows; look at the learning rate, the loss scale and the logged loss"
            )
        if self.impostor_cosine > 0.98 or self.spread < 1e-3:  # unrelated embeddings of 512 numbers have 0.044
            return (
                f"all embeddings are nearly the same (spread {self.spread:.2e}): the network has collapsed, its "
                "weights were not loaded, or its input is constant; accuracy means nothing here"
            )
        cosines = f"(mean cosines {self.genuine_cosine:.3f} and {self.impostor_cosine:.3f})"
        gap = self.genuine_cosine - self.impostor_cosine
        if gap < -0.05:
            return (
                f"genuine pairs are less alike than impostor pairs {cosines}: the set's flags are inverted, or its "
                "images are not in the order of its pairs"
            )
        if gap < 0.02:
            return (
                f"genuine and impostor pairs look alike {cosines}: usual before training; later it means labels that "
                "do not match the images, a loss that does not move, or images aligned or coloured unlike this set's"
            )
        return ""


def pair_loader(
    encoded: Sequence[bytes],
    image_size: int = 112,
    resized: Resized | None = None,
    numbers: NDArray[np.integer[Any]] | None = None,
) -> LoadBatch:
    """Make a function from (start, end) to those images, decoded and resized: (end - start, H, W, 3) uint8 RGB.

    With ``numbers`` they are those of these numbers: ``numbers[start:end]``.

    It raises ValueError for an image that does not decode; the message gives its index. Those that had another size
    are put into ``resized``.
    """

    def load(start: int, end: int) -> NDArray[np.uint8]:
        out = np.empty((end - start, image_size, image_size, 3), np.uint8)
        for row, index in enumerate(range(start, end) if numbers is None else numbers[start:end].tolist()):
            try:
                image = decode_rgb(encoded[index])
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from None
            if resized is not None:
                resized.see(index, image, image_size)
            out[row] = resize_square(image, image_size)
        return out

    return load


def _fold_counts(
    bins: NDArray[np.int64], folds: NDArray[np.int64], n_folds: int, keep: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Count, per fold and threshold, the kept pairs whose distance is below it: (F, T)."""
    width = len(THRESHOLDS) + 1
    flat = np.bincount((folds * width + bins)[keep], minlength=n_folds * width)
    return flat.reshape(n_folds, width).cumsum(axis=1)[:, :-1]


def _mean_cosine(cosines: NDArray[np.float64], keep: NDArray[np.bool_]) -> float:
    return float(cosines[keep].mean()) if keep.any() else float("nan")


def _tar_at_fars(cosines: NDArray[np.float64], issame: NDArray[np.bool_]) -> NDArray[np.float64]:
    """True accept rate at each of FARS, nan where that is less than one impostor pair: (K,)."""
    if issame.all() or not issame.any():
        return _nan_points()
    from eval.roc import roc  # slow to import, and not every run verifies

    curve = roc(issame, cosines)
    return np.array([curve.tar_at(far) if curve.resolves(far) else np.nan for far in FARS])


def evaluate_pairs(embeddings: NDArray[Any], issame: NDArray[np.bool_], folds: int = 10) -> PairResult:
    """Cross-validate the distance threshold over contiguous, unshuffled folds.

    For each fold, the first threshold of best accuracy on the other folds decides on this one. Source:
    the lfw protocol as arcface_torch runs it; equal to it on the recorded ``pair_verification.npz``.

    Args:
        embeddings: (2n, D), L2-normalised.
        issame: (n,), True where the pair is of one person.
        folds: F; with fewer pairs than folds, one fold a pair.

    Returns:
        A result in every case: non-finite embeddings or fewer than two pairs leave ``accuracy`` nan.

    Raises:
        ValueError: the number of embeddings is not twice that of ``issame``, or ``folds`` is below 2.
    """
    issame = np.asarray(issame, bool)
    n = len(issame)
    if len(embeddings) != 2 * n:
        raise ValueError(f"expected two embeddings for each of {n} pairs, found {len(embeddings)}")
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    if n == 0:
        return PairResult(message="no pairs")
    finite_N = np.isfinite(embeddings).all(axis=1)
    non_finite = int(2 * n - finite_N.sum())
    finite_n = finite_N[0::2] & finite_N[1::2]
    first_nD = np.asarray(embeddings[0::2][finite_n], np.float64)
    second_nD = np.asarray(embeddings[1::2][finite_n], np.float64)
    cosines = np.einsum("nd,nd->n", first_nD, second_nD)
    known = issame[finite_n]
    result = PairResult(
        pairs=n,
        genuine_cosine=_mean_cosine(cosines, known),
        impostor_cosine=_mean_cosine(cosines, ~known),
        spread=float(np.std(embeddings[finite_N], axis=0, dtype=np.float64).mean())
        if finite_N.any()
        else float("nan"),
        non_finite=non_finite,
    )
    if non_finite:
        return replace(result, message=f"{non_finite} of {2 * n} embeddings are not finite: no accuracy")
    if n == 1:
        return replace(result, message="one pair cannot be cross-validated: no accuracy")
    notes = [] if n >= folds else [f"{n} pairs for {folds} folds: {n} folds used"]
    if issame.all() or not issame.any():
        kind = "genuine" if issame.all() else "impostor"
        notes.append(f"all pairs are {kind}: accuracy alone says nothing, and there is no TAR")
    folds = min(folds, n)

    difference_nD = first_nD - second_nD
    squared = np.einsum("nd,nd->n", difference_nD, difference_nD)
    # A pair is accepted where squared < threshold: bin k means thresholds k, k + 1, ... accept it.
    bins = np.searchsorted(THRESHOLDS, squared, side="right")
    ends = [part_of(n, f, folds)[1] for f in range(folds)]
    fold_of_pair = np.searchsorted(ends, np.arange(n), side="right")
    accepted_genuine = _fold_counts(bins, fold_of_pair, folds, issame)  # (F, T)
    accepted_impostor = _fold_counts(bins, fold_of_pair, folds, ~issame)
    genuine = np.bincount(fold_of_pair[issame], minlength=folds)[:, None]  # (F, 1)
    impostor = np.bincount(fold_of_pair[~issame], minlength=folds)[:, None]
    correct = accepted_genuine + impostor - accepted_impostor
    best = (correct.sum(axis=0) - correct).argmax(axis=1)  # (F,) over the other folds
    accuracy = correct[np.arange(folds), best] / (genuine + impostor)[:, 0]
    return replace(
        result,
        accuracy=float(accuracy.mean()),
        accuracy_std=float(accuracy.std()),
        accuracy_per_fold=accuracy,
        correct=(bins <= best[fold_of_pair]) == issame,
        tpr=(accepted_genuine / np.maximum(genuine, 1)).mean(axis=0),
        fpr=(accepted_impostor / np.maximum(impostor, 1)).mean(axis=0),
        tar=_tar_at_fars(cosines, issame),
        message="; ".join(notes),
    )


def evaluate_embeddings(embeddings: NDArray[np.float32], issame: NDArray[np.bool_], folds: int = 10) -> PairResult:
    """Scale embeddings to length 1 and evaluate them; their mean length is the result's ``norm``.

    Args:
        embeddings: (2n, D), as the network gives them; a row of zeros stays one.
        issame: (n,).
        folds: see :func:`evaluate_pairs`, which also says what it raises.
    """
    embeddings_ND = embeddings.astype(np.float64)
    finite_N = np.isfinite(embeddings_ND).all(axis=1)
    norm_N1 = np.full((len(embeddings_ND), 1), np.nan)
    norm_N1[finite_N] = np.linalg.norm(embeddings_ND[finite_N], axis=1, keepdims=True)
    normalised_ND = np.divide(embeddings_ND, norm_N1, out=embeddings_ND.copy(), where=norm_N1 > 0)
    result = evaluate_pairs(normalised_ND, issame, folds)
    return replace(result, norm=float(norm_N1[finite_N].mean()) if finite_N.any() else float("nan"))


def thin_out(pair_set: PairSet, n: int) -> PairSet:
    """Take ``n`` pairs, spread evenly over those of one person and over those of two, half of each if possible.

    A set of at most ``n`` pairs is returned unchanged. The choice is the same on every rank.
    """
    if len(pair_set.issame) <= n:
        return pair_set
    kinds = np.flatnonzero(pair_set.issame), np.flatnonzero(~pair_set.issame)
    genuine = min(len(kinds[0]), max(n // 2, n - len(kinds[1])))
    chosen = [
        kind[np.linspace(0, len(kind) - 1, count).round().astype(int)]
        for kind, count in zip(kinds, (genuine, n - genuine), strict=True)
        if count
    ]
    pairs = np.sort(np.concatenate(chosen))
    encoded = [pair_set.encoded[i] for pair in pairs for i in (2 * pair, 2 * pair + 1)]
    return replace(pair_set, encoded=encoded, issame=pair_set.issame[pairs])


def verify(
    backbone: nn.Module,
    pair_set: PairSet,
    device: torch.device,
    batch_size: int,
    folds: int = 10,
    image_size: int = 112,
    is_stopping: Callable[[], bool] = never,
) -> PairResult:
    """Embed a set's different images, shared out over the ranks, and evaluate it; every rank gets the same result.

    Collectives: one object gather (the embedding size, an error if any, whether to stop, how many were resized,
    lengths) and one all-reduce of an embedding (D,) float32 for each different image. An image that one rank cannot
    decode is an error on all of them, so that none is left waiting.

    Args:
        backbone: the same weights on every rank, bare or in DistributedDataParallel.
        pair_set: the same on every rank.
        device: where ``backbone`` lives.
        batch_size: images per forward pass on one rank.
        folds: see :func:`evaluate_pairs`.
        image_size: side in pixels that the network takes.
        is_stopping: asked after each batch; a rank that is to stop leaves off, and waits for the others.

    Raises:
        Stopped: any rank is to stop; raised on every rank.
        ValueError: an image of the set does not decode; the message gives the set and the index.
    """
    distinct = DistinctImages(pair_set.encoded)
    start, end = part_of(len(distinct), get_rank(), get_world_size())
    part_UD, error, resized = np.empty((0, 0), np.float32), "", Resized()
    meter = LengthMeter(distinct.times_U[start:end])
    try:
        load = pair_loader(pair_set.encoded, image_size, resized, distinct.first_U)
        part_UD = embed_batches(
            backbone,
            lambda a, b: load(start + a, start + b),
            end - start,
            device,
            batch_size,
            is_stopping=is_stopping,
            meter=meter,
        )
    except Stopped:
        pass  # the others hear of it
    except ValueError as problem:
        error = f"verification set {pair_set.name}, {problem}"
    sizes = distinct.count(resized.images), distinct.count(resized.not_square)
    report = part_UD.shape[1], error, is_stopping(), sizes, meter.sum, meter.count
    reports = all_gather_objects(report, f"reports on the set {pair_set.name}")
    dims, errors, stops, resizings, sums, counts = zip(*reports, strict=True)
    if any(stops):
        raise Stopped
    for other_error in filter(None, errors):
        raise ValueError(other_error)
    all_UD = torch.zeros((len(distinct), max(dims)), device=device)
    if end > start:
        all_UD[start:end] = to_device(torch.from_numpy(part_UD), device)
    found_UD: NDArray[np.float32] = all_reduce_sum_(all_UD, "embeddings").cpu().numpy()
    result = evaluate_embeddings(found_UD[distinct.place_N], pair_set.issame, folds)
    meter.sum, meter.count = sum(sums), sum(counts)
    n_resized, n_not_square = (sum(of_rank) for of_rank in zip(*resizings, strict=True))
    return replace(result, norm=meter.mean(), resized=n_resized, not_square=n_not_square)
