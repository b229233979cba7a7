"""Made-up features of many identities, an open-set test: one training run of learning.py.

An identity is a point around one of 300 centres; an image of it is that point beside fresh nuisance, through a fixed
random network. The backbone is a small MLP. The test: 2,000 other identities, one gallery and seven probe images of
each. Identities and test are the same for all arms and seeds; a seed decides first weights, order of images, heads.

Shapes: C classes, N images, X numbers of a feature, D of an embedding, G samples of a step, T test identities.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.learning_arms import Arm
from heads.optim import RowSGD
from losses import CosFace
from partial_fc_mhs import PartialFCMHS
from training.schedule import PolySchedule

FARS = (1e-2, 1e-3, 1e-4, 1e-5)
POINT, NUISANCE, X = 32, 32, 128  # numbers of an identity's point, of an image's nuisance, of its features
CLUSTERS, TEST_IDENTITIES, TEST_IMAGES = 300, 2000, 8
LR, MOMENTUM, WEIGHT_DECAY, WARMUP, CLIP = 0.1, 0.9, 5e-4, 0.05, 5.0


@dataclass(frozen=True)
class Size:
    """How much there is to learn, and for how long."""

    classes: int = 8000  # C
    images: int = 6  # of each
    batch: int = 128  # G
    epochs: int = 8
    dim: int = 64  # D
    test_identities: int = TEST_IDENTITIES


class _World:
    """Features of identities that are drawn once for a number of classes."""

    def __init__(self, size: Size) -> None:
        self.random = torch.Generator().manual_seed(1)
        self.mix = self._normal(POINT + NUISANCE, 256) / POINT**0.5
        self.out = self._normal(256, X) / 8
        self.clusters = self._normal(CLUSTERS, POINT)
        self.train = self._images(self._people(size.classes), size.images)  # (N, X), a class's images in a row
        self.test = self._images(self._people(size.test_identities), TEST_IMAGES)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def _people(self, count: int) -> Tensor:
        cluster = torch.randint(0, CLUSTERS, (count,), generator=self.random)
        return 0.9 * self.clusters[cluster] + 0.45 * self._normal(count, POINT)

    def _images(self, people: Tensor, each: int) -> Tensor:
        blocks = []
        for some in people.split(5000):
            some = some.repeat_interleave(each, 0)
            hidden = torch.tanh(torch.cat((some, self._normal(len(some), NUISANCE)), 1) @ self.mix)
            blocks.append(torch.tanh(hidden @ self.out) + 0.1 * self._normal(len(some), X))
        return torch.cat(blocks)


_world = lru_cache(1)(_World)


def train_and_test(arm: Arm, seed: int, size: Size, amp_dtype: torch.dtype | None = None) -> dict[str, Any]:
    """One run: what it cost, and how well it tells the test's identities apart; ``amp_dtype`` is the classifier's."""
    world = _world(size)
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        *(nn.Linear(X, 256), nn.BatchNorm1d(256), nn.PReLU()),
        *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.PReLU()),
        *(nn.Linear(256, size.dim), nn.BatchNorm1d(size.dim)),
    )
    classifier = PartialFCMHS(
        CosFace(32.0, 0.3), size.dim, size.classes, amp_dtype=amp_dtype, seed=seed, **arm.head_options()
    )
    rule = arm.rule
    optimizer = torch.optim.SGD(backbone.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
    row_optimizer = RowSGD(classifier.shard, LR, rule.row_momentum, WEIGHT_DECAY, idle=rule.row_idle)
    steps_per_epoch = size.classes * size.images // size.batch
    steps = steps_per_epoch * size.epochs
    rate = PolySchedule(LR, steps, round(steps * WARMUP), power=2)
    cost = Cost()
    order = torch.Generator().manual_seed(seed)
    class_of = torch.randperm(size.classes, generator=order)  # which identities share a head
    loss = torch.zeros(())
    for step in range(steps):
        if step % steps_per_epoch == 0:
            images = torch.randperm(len(world.train), generator=order)
        batch = images[step % steps_per_epoch * size.batch :][: size.batch]
        started_s = time.perf_counter()
        labels = class_of[batch // size.images]
        classifier.shard.prefetch(labels)
        optimizer.param_groups[0]["lr"] = rate(step)
        row_optimizer.param_groups[0]["lr"] = rule.row_lr * rate(step)
        loss = classifier(backbone(world.train[batch]), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), CLIP)
        cost.look(classifier)
        for one in (optimizer, row_optimizer):
            one.step()
            one.zero_grad()
        cost.step_s.append(time.perf_counter() - started_s)
    return {"loss": loss.item(), **cost.record(size.classes), **_identify(backbone.eval(), world.test)}


class Cost:
    """What the steps of a run worked on, looked at before each update."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self._selected: list[int] = []  # classes, every 20 steps
        self._negatives: list[float] = []  # other classes that a sample is compared with, mean over samples

    def look(self, classifier: PartialFCMHS) -> None:
        """Count the classes of the pending forward."""
        if len(self.step_s) % 20:
            return
        selection = classifier.shard.pending[-1].selection
        self._selected.append(len(selection.classes_S))
        hidden = 0.0 if selection.hidden_GS is None else float(selection.hidden_GS.sum(1).float().mean())
        self._negatives.append(len(selection.classes_S) - 1 - hidden)

    def record(self, classes: int) -> dict[str, Any]:
        """Means over the run, and the median step."""
        return {
            "share": sum(self._selected) / len(self._selected) / classes,
            "negatives": sum(self._negatives) / len(self._negatives),
            "step_ms": 1e3 * sorted(self.step_s)[len(self.step_s) // 2],
            "steps": len(self.step_s),
        }


@torch.no_grad()
def _identify(backbone: nn.Module, test: Tensor) -> dict[str, Any]:
    """Rank-1 rate of probes among the gallery, and the true accept rate of all probe-gallery pairs at FARS."""
    embeddings = F.normalize(backbone(test)).unflatten(0, (-1, TEST_IMAGES))  # (T, 8, D)
    gallery, probes = embeddings[:, 0], embeddings[:, 1:]
    cosines = torch.einsum("tpd,gd->tpg", probes, gallery)  # (T, 7, T)
    own = torch.arange(len(gallery))
    genuine = cosines[own, :, own].clone()  # (T, 7)
    cosines[own, :, own] = -2
    is_first = genuine > cosines.amax(2)
    impostor = cosines.flatten()
    count = impostor.numel() - genuine.numel()
    highest = impostor.topk(max(1, round(max(FARS) * count))).values
    tar = {f"tar_{far:g}": float((genuine > highest[max(1, round(far * count)) - 1]).float().mean()) for far in FARS}
    return {"rank1": float(is_first.float().mean()), **tar}
