"""The loader with nvidia-dali as its decoder: on the GPU (nvjpeg) where there is one, else on the CPU.

Reading, order, what each rank gets, resuming and stand-ins for damaged images are those of the plain loader: its
worker processes read the files, and DALI is fed with them through ``external_source``. So DALI needs no index of its
own, header and identity records never reach the decoder, and labels and sample ids are equal by construction.

The GPU mode has not yet been run on a GPU.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import importlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.faces import Batch, Changed, Encoded, FaceDataset
from data.sampler import EpochSampler
from utils.decode import encode_png, may_change

log = logging.getLogger("mhs_arcface")  # that of utils.log, which a loader's worker need not import
BATCHES_AHEAD = 2  # that DALI decodes while the training computes
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class EncodedBatch(NamedTuple):
    """A batch that is still to be decoded."""

    files: Tensor  # uint8: the B files one after the other
    sizes_B: Tensor  # int64: bytes of each
    labels_B: Tensor  # int64
    sample_ids_B: Tensor  # int64
    damaged: Sequence[str] = ()
    changed: Sequence[Changed] = ()


class EncodedFaces(Dataset[EncodedBatch]):
    """The files of a data set, undecoded."""

    def __init__(self, faces: FaceDataset) -> None:
        self.faces = faces

    def __getitems__(self, indices: Sequence[int]) -> EncodedBatch:
        """The files of one batch, in one array so that they cross from a worker in one piece."""
        files: list[Encoded] = [b""] * len(indices)
        labels_B, ids_B, damaged = self.faces.usable(indices, self._read, files.__setitem__)
        joined = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
        sizes_B, changed = torch.tensor([len(file) for file in files]), self.faces.take_changed()
        return EncodedBatch(joined, sizes_B, labels_B, ids_B, damaged, changed)

    def _read(self, indices: Sequence[int]) -> list[tuple[Encoded, int]]:
        found = self.faces.read_many(indices)
        for index, (file, _) in zip(indices, found, strict=True):
            # DALI fills in what a truncated JPEG lacks; the plain loader refuses the image.
            if len(file) == 0 or (file[:2] == _JPEG_START and _JPEG_END not in bytes(file[-64:])):
                self.faces.decode(file, index)
        # DALI would decode these otherwise than the plain loader.
        return [
            (encode_png(self.faces.decode(file, index)), label) if may_change(file) else (file, label)
            for index, (file, label) in zip(indices, found, strict=True)
        ]


class DaliLoader:
    """Yields the same batches as the plain loader, pixels equal but for what two JPEG decoders differ by.

    A batch that DALI refuses, or in which an image has another size, is decoded as the plain loader does it: that
    names the image, or replaces it.

    Args:
        dataset: of images with files.
        batch_sampler: as for the plain loader.
        reading: yields the batches of :class:`EncodedFaces`.
        device: where DALI decodes, and where the images of a batch then are.
        num_threads: of the CPU decoder.

    Raises:
        ValueError: nvidia-dali is not installed.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        batch_sampler: EpochSampler,
        reading: DataLoader[EncodedBatch],
        device: torch.device,
        num_threads: int,
    ) -> None:
        self.dataset, self.batch_sampler, self.reading = dataset, batch_sampler, reading
        self.device, self.num_threads = device, max(1, num_threads)
        import_dali()
        self._pipeline: Any = None
        self._refused = 0  # batches that DALI could not decode and the plain loader could

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(1)  # one thread, because a pipeline belongs to one
        pending: deque[Future[Batch]] = deque()
        try:
            for batch in self.reading:
                pending.append(pool.submit(self._decode, batch))
                if len(pending) > BATCHES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, batch: EncodedBatch) -> Batch:
        try:
            images_BHW3 = self._run(batch)
        except (RuntimeError, IndexError) as error:  # the pipeline cannot be used any more
            self._pipeline, problem, images_BHW3 = None, str(error), None
        else:
            problem = "an image of another size"
        if images_BHW3 is not None:
            return Batch(images_BHW3, batch.labels_B, batch.sample_ids_B, batch.damaged, batch.changed)
        again = self.dataset.__getitems__(batch.sample_ids_B.tolist())
        if not again.damaged:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                log.warning("dali: %d batches had to be decoded without it so far: %s", self._refused, problem)
        return again._replace(damaged=[*batch.damaged, *again.damaged], changed=batch.changed)

    def _run(self, batch: EncodedBatch) -> Tensor | None:
        """(B, H, W, 3) uint8, None if an image has another size; an error in DALI ends the pipeline."""
        if self._pipeline is None:
            self._pipeline = self._build()
        ends = batch.sizes_B.cumsum(0).numpy()
        self._pipeline.feed_input("encoded", np.split(batch.files.numpy(), ends[:-1]))
        (decoded,) = self._pipeline.run()
        return self._images(decoded, len(batch.labels_B))

    def _images(self, decoded: Any, count: int) -> Tensor | None:
        """(B, H, W, 3) uint8, None if an image has another size."""
        shape = (*self.dataset.image_size, 3)
        if len(decoded) != count or any(tuple(decoded[i].shape()) != shape for i in range(count)):
            return None
        if self.device.type == "cuda":
            images_BHW3 = torch.empty((count, *shape), dtype=torch.uint8, device=self.device)
            feed = importlib.import_module("nvidia.dali.plugin.pytorch").feed_ndarray
            feed(decoded.as_tensor(), images_BHW3, cuda_stream=torch.cuda.current_stream(self.device))
            return images_BHW3
        array: NDArray[np.uint8] = np.array(decoded.as_tensor(), copy=True)
        return torch.from_numpy(array)

    def _build(self) -> Any:
        dali, fn, types = import_dali()
        on_gpu = self.device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=self.batch_sampler.batch_size,
            num_threads=self.num_threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,  # the thread that calls it runs ahead
        )
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            where = "mixed" if on_gpu else "cpu"
            pipeline.set_outputs(fn.decoders.image(encoded, device=where, output_type=types.RGB))
        pipeline.build()
        return pipeline


def import_dali() -> tuple[Any, Any, Any]:
    """The modules nvidia.dali, its fn and its types; ValueError with the line that installs them if not."""
    try:
        return tuple(importlib.import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))  # type: ignore[return-value]
    except ImportError as error:
        raise ValueError(
            f"dali = True needs nvidia-dali ({error}): pip install -r requirement-dali.txt, or set dali = False"
        ) from None
