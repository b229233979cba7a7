"""The IJB evaluation as insightface's evaluator goes about it: one image, one template, one list at a time.

Written from its description, with its types: features and media in float32, templates and scores in float64. The
benchmark times it, and tests compare this project's results with it.

Shapes: N images, D embedding size, U templates, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from prettytable import PrettyTable
from sklearn.metrics import roc_curve
from sklearn.preprocessing import normalize
from torch import nn

from embedder.align import TEMPLATE

FARS = [10**-6, 10**-5, 10**-4, 10**-3, 10**-2, 10**-1]
_PAIRS_PER_BATCH = 100_000


def list_reader() -> tuple[str, Callable[[Path], NDArray[Any]]]:
    """The reader of space-separated lists: pandas, as in the field, or numpy where pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        return "numpy", lambda path: np.loadtxt(path, dtype=object, encoding="utf-8", delimiter=" ", ndmin=2)
    return "pandas", lambda path: np.asarray(pandas.read_csv(path, sep=" ", header=None).values)


def read_lists(image_list: Path, pair_list: Path) -> tuple[NDArray[np.int64], ...]:
    """Templates (N,), media (N,), and the pairs' first template, second template and label (P,)."""
    _, read = list_reader()
    images, pairs = read(image_list), read(pair_list)
    return (
        images[:, 1].astype(np.int64),
        images[:, 2].astype(np.int64),
        pairs[:, 0].astype(np.int64),
        pairs[:, 1].astype(np.int64),
        pairs[:, 2].astype(np.int64),
    )


def umeyama(source: NDArray[np.float32]) -> NDArray[np.float64]:
    """The similarity of one face's five points to the template, by the singular value decomposition: (2, 3)."""
    source_mean, target_mean = source.mean(axis=0), TEMPLATE.mean(axis=0)
    source_centred, target_centred = source - source_mean, TEMPLATE - target_mean
    covariance = target_centred.T @ source_centred / len(source)
    signs = np.ones(2)
    if np.linalg.det(covariance) < 0:
        signs[1] = -1
    u, values, v = np.linalg.svd(covariance)
    rotation = u @ np.diag(signs) @ v
    scale = values @ signs / source_centred.var(axis=0).sum()
    matrix = np.empty((2, 3))
    matrix[:, :2] = scale * rotation
    matrix[:, 2] = target_mean - scale * rotation @ source_mean
    return matrix


def landmarks_of_line(line: str) -> tuple[str, NDArray[np.float32], str]:
    """Name, (5, 2) landmarks and detector score of one line of the landmark list."""
    words = line.strip().split(" ")
    points = np.array([float(word) for word in words[1:-1]], dtype=np.float32).reshape((5, 2))
    return words[0], points, words[-1]


def read_landmarks(landmark_list: Path) -> tuple[list[NDArray[np.float64]], NDArray[np.float32]]:
    """The matrix of each face, and the detector scores (N,), without looking at the images."""
    matrices, scores = [], []
    with landmark_list.open() as file:
        lines = file.readlines()
    for line in lines:
        _, points, score = landmarks_of_line(line)
        matrices.append(umeyama(points))
        scores.append(score)
    return matrices, np.array(scores).astype(np.float32)


def embed_images(
    backbone: nn.Module, image_folder: Path, landmark_list: Path, batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embed every image and its mirror image: (N, 2 * D) and the detector scores (N,)."""
    with landmark_list.open() as file:
        lines = file.readlines()
    rest = len(lines) % batch_size
    features: list[NDArray[np.float32]] = []
    scores: list[str] = []
    batch = np.empty((2 * batch_size, 3, 112, 112))
    for index, line in enumerate(lines[: len(lines) - rest]):
        scores.append(_fill(batch, index % batch_size, image_folder, line))
        if (index + 1) % batch_size == 0:
            features.append(_forward(backbone, batch))
    if rest:
        batch = np.empty((2 * rest, 3, 112, 112))
        for index, line in enumerate(lines[len(lines) - rest :]):
            scores.append(_fill(batch, index, image_folder, line))
        features.append(_forward(backbone, batch))
    return np.concatenate(features), np.array(scores).astype(np.float32)


def _fill(batch: NDArray[np.float64], place: int, image_folder: Path, line: str) -> str:
    """Put one face and its mirror image into the batch; its detector score."""
    name, points, score = landmarks_of_line(line)
    image = cv2.imread(str(image_folder / name))
    assert image is not None
    face = cv2.warpAffine(image, umeyama(points), (112, 112), borderValue=0.0)
    face = cv2.cvtColor(face, cv2.COLOR_BGR2RGB)
    batch[2 * place] = np.transpose(face, (2, 0, 1))
    batch[2 * place + 1] = np.transpose(np.fliplr(face), (2, 0, 1))
    return score


@torch.no_grad()
def _forward(backbone: nn.Module, batch: NDArray[np.float64]) -> NDArray[np.float32]:
    images = torch.Tensor(batch)
    images.div_(255).sub_(0.5).div_(0.5)
    out: NDArray[np.float32] = backbone(images).reshape(len(batch) // 2, -1).numpy()
    return out


def image_features(
    halves: NDArray[np.float32],
    scores: NDArray[np.float32],
    flip: bool = True,
    norm_score: bool = True,
    detector_score: bool = True,
) -> NDArray[np.float32]:
    """Fold the halves (N, 2 * D) into features (N, D)."""
    size = halves.shape[1] // 2
    features = halves[:, :size] + halves[:, size:] if flip else halves[:, :size]
    if not norm_score:
        features = features / np.sqrt(np.sum(features**2, -1, keepdims=True))
    return features * scores[:, np.newaxis] if detector_score else features


def template_features(
    features: NDArray[np.float32], templates: NDArray[np.int64], media: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pool one template after the other: (U, D) and the templates (U,)."""
    unique = np.unique(templates)
    out = np.zeros((len(unique), features.shape[1]))
    for row, template in enumerate(unique):
        (own,) = np.where(templates == template)
        own_features, own_media = features[own], media[own]
        by_media = []
        for one, count in zip(*np.unique(own_media, return_counts=True), strict=True):
            (same,) = np.where(own_media == one)
            if count == 1:
                by_media += [own_features[same]]
            else:
                by_media += [np.mean(own_features[same], axis=0, keepdims=True)]
        out[row] = np.sum(np.array(by_media), axis=0)
    return normalize(out), unique


def pair_scores(
    features: NDArray[np.float64], unique: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Score the pairs in large batches: (P,)."""
    row_of = np.zeros((max(unique) + 1, 1), dtype=int)
    for row, template in enumerate(unique):
        row_of[template] = row
    scores = np.zeros((len(first),))
    everything = np.array(range(len(first)))
    batches = [everything[i : i + _PAIRS_PER_BATCH] for i in range(0, len(first), _PAIRS_PER_BATCH)]
    for batch in batches:
        product = features[row_of[first[batch]]] * features[row_of[second[batch]]]
        scores[batch] = np.sum(product, -1).flatten()
    return scores


def tar_table(method: str, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> str:
    """The printed table, each FAR looked up in a list of the whole curve."""
    far, tar, _ = roc_curve(labels, scores)
    far, tar = np.flipud(far), np.flipud(tar)
    row = [method]
    for wanted in FARS:
        _, place = min(list(zip(abs(far - wanted), range(len(far)), strict=True)))
        row.append(f"{tar[place] * 100:.2f}")
    table = PrettyTable(["Methods", *(str(wanted) for wanted in FARS)])
    table.add_row(row)
    return table.get_string()
