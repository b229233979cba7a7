"""Which images come in which order: a function of (seed, epoch), the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_DRAW = 3  # keeps what is drawn from a set apart from other uses of (seed, epoch)


class WeightedSet(NamedTuple):
    """A set of images, and how often each of them comes in an epoch."""

    images: int
    weight: float  # 1: each once; 0.5: half of them, drawn anew each epoch; 2.5: each twice, and half once more

    @property
    def images_drawn(self) -> int:
        """How many of its images come in an epoch, repeats included."""
        return self.images * int(self.weight) + round(self.images * (self.weight % 1))


class EpochSampler(Sampler[list[int]]):
    """The batches of one rank: its slices of a permutation of (seed, epoch).

    Step s of an epoch is the global batch ``permutation[s * G : (s + 1) * G]`` whatever the number of ranks; rank
    r takes the r-th B of it. The n mod G images left over wait for another epoch.

    The position is where the next iteration starts. Workers that read ahead do not move it: the training loop says
    how far it has come with ``set_position``, before each epoch and before it saves.

    Args:
        n: images.
        batch_size: B.
        rank: r.
        world_size: W; G = W * B.
        seed: of the run.
        chunk: images that lie together and stay so until they are shuffled within a window of chunks (see
            :func:`epoch_permutation`), for disks that seek slowly; 0: all are shuffled among themselves.
        sets: the ``n`` images as sets with weights, in their order. None: each image once.

    Raises:
        ValueError: an epoch has fewer images than G.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 2048,
        *,
        chunk: int = 0,
        sets: Sequence[WeightedSet] | None = None,
    ) -> None:
        assert 0 <= rank < world_size
        assert sets is None or sum(one.images for one in sets) == n
        self.sets = [WeightedSet(n, 1.0)] if sets is None else list(sets)
        self.n = sum(one.images_drawn for one in self.sets)  # images of an epoch
        self.batch_size, self.rank, self.seed, self.chunk = batch_size, rank, seed, chunk
        self.global_batch = batch_size * world_size
        if not 1 <= self.global_batch <= self.n:
            raise ValueError(
                f"an epoch of {self.n} images has no global batch of {world_size} ranks x {batch_size} = "
                f"{self.global_batch}: change batch_size, start fewer ranks, or add images"
            )
        self.steps_per_epoch = self.n // self.global_batch
        self.epoch, self.step = 0, 0

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration start at this step of this epoch; ValueError if there is no such step."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise ValueError(f"no step {step} of epoch {epoch}: an epoch has {self.steps_per_epoch} steps")
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Batches that the next iteration yields."""
        return self.steps_per_epoch - self.step

    def __iter__(self) -> Iterator[list[int]]:
        # The position is taken now, not at the first batch: the loop may move it on while this runs.
        return self._batches(self.epoch, self.step)

    def _batches(self, epoch: int, step: int) -> Iterator[list[int]]:
        order = epoch_permutation(self.n, self.seed, epoch, max(self.chunk, 1))
        if any(one.weight != 1 for one in self.sets):
            order = _draw(self.sets, self.seed, epoch)[order]
        for s in range(step, self.steps_per_epoch):
            start = s * self.global_batch + self.rank * self.batch_size
            yield order[start : start + self.batch_size].tolist()


def epoch_permutation(n: int, seed: int, epoch: int, chunk: int = 1, window: int = 64) -> NDArray[np.int64]:
    """Every sample once, in an order that is a function of the arguments alone, the same on every rank.

    A plain permutation sends a disk to another place for every image. A spinning disk serves about a hundred such
    places a second; reading whole stretches is a hundred times as fast. So the samples are cut into chunks of
    consecutive ones, the chunks are shuffled, and then the samples of each window of chunks among themselves. The
    price: samples that lie together come within one window of each other. Shuffle the file once
    (``tools/shuffle_rec.py``) so that neighbours are not images of one person.

    Args:
        n: samples.
        seed: of the run.
        epoch: each one puts other chunks together.
        chunk: consecutive samples that stay together until they are shuffled within their window; 1: none, a plain
            permutation.
        window: chunks that are shuffled together.

    Returns:
        (n,) of [0, n).

    Raises:
        ValueError: ``chunk`` or ``window`` is below 1.
    """
    if chunk < 1 or window < 1:
        raise ValueError(f"chunk and window must be at least 1, got {chunk} and {window}")
    rng = np.random.default_rng([seed, epoch])
    if chunk == 1 or n <= chunk:
        return rng.permutation(n)
    chunks = rng.permutation(-(-n // chunk))
    order = (chunks[:, None] * chunk + np.arange(chunk)).reshape(-1)
    order = order[order < n]  # the last chunk may be short
    for start in range(0, n, window * chunk):
        rng.shuffle(order[start : start + window * chunk])
    return order


def _draw(sets: Sequence[WeightedSet], seed: int, epoch: int) -> NDArray[np.int64]:
    """The images of an epoch in the order in which they lie, each as often as its set's weight says."""
    parts, start = [], 0
    for number, (images, weight) in enumerate(sets):
        times = np.full(images, int(weight))
        drawn = np.random.default_rng([seed, epoch, _DRAW, number]).permutation(images)
        times[drawn[: round(images * (weight % 1))]] += 1
        parts.append(np.repeat(np.arange(start, start + images), times))
        start += images
    return np.concatenate(parts)
