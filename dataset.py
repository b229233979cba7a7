"""The door to the data: opens what ``rec`` names, and makes the loader that batches it.

    from dataset import get_dataloader

    loader = get_dataloader("/data/ms1mv3", batch_size=128)
    for images_BHW3, labels_B, sample_ids_B, damaged in loader:
        ...

The sets are in ``data/faces.py``, several as one in ``data/joined.py``, the order in ``data/sampler.py``, DALI in
``data/dali.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.dali import DaliLoader, EncodedFaces
from data.databases import FaceDatabase, is_database
from data.faces import Batch, FaceDataset, FaceRecords, ImageFolder, OnBadSample, Size, SyntheticFaces
from data.joined import JoinedSets
from data.sampler import EpochSampler, WeightedSet
from data.shards.faces import FaceShards
from data.shards.names import are_shards, short_name
from data.storage import is_address
from data.workers import WorkerLoader
from utils.folders import identity_folders

__all__ = ["Batch", "Loader", "get_dataloader", "join_sources", "open_faces"]

Source = str | Path
NO_PARQUET = (
    "parquet and arrow files are not read: save each image into the folder of its identity, for example with "
    'load_dataset("parquet", ...) of the package datasets, and train on that folder or pack it with tools.pack_rec'
)


class FaceLoader(WorkerLoader[Batch]):
    """torch's loader for a set of faces, in the order of an :class:`EpochSampler`."""

    dataset: FaceDataset
    batch_sampler: EpochSampler


Loader = FaceLoader | DaliLoader


def get_dataloader(
    source: Source | FaceDataset | Sequence[Source],
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 2048,
    num_workers: int = 2,
    num_classes: int | None = None,
    num_image: int | None = None,
    image_size: Size = (112, 112),
    device: torch.device | str = "cpu",
    class_map: Source | None = None,
    weights: Sequence[float] | None = None,
    shuffle_chunk: int = 0,
    on_bad_sample: OnBadSample = "stop",
    dali: bool = False,
    timeout_s: float = 1800.0,
) -> Loader:
    """A loader of :class:`Batch` whose ``batch_sampler`` is an :class:`EpochSampler`.

    Args:
        source: what :func:`open_faces` opens, a list of these as one set, "synthetic", or a data set.
        batch_size: B.
        rank: whose part of each global batch is yielded.
        world_size: the number of ranks.
        seed: for the order, and for "synthetic".
        num_workers: processes that read and decode; 0: this one does.
        num_classes: for "synthetic" only.
        num_image: for "synthetic" only.
        image_size: that every image must have.
        device: for CUDA, memory is pinned, and DALI decodes there.
        class_map: see :class:`JoinedSets`.
        weights: of the sets, see :class:`data.sampler.WeightedSet`; None: 1 each.
        shuffle_chunk: see :class:`EpochSampler`.
        on_bad_sample: whether a damaged image is an error or is replaced; a data set given here keeps its own.
        dali: decode with nvidia-dali; "synthetic" has nothing to decode.
        timeout_s: how long a batch of the worker processes may take to come.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: a source holds no images, ``weights`` do not match the sets, an epoch is less than a global batch,
            or DALI is not installed.
    """
    if isinstance(source, FaceDataset):
        dataset = source
    elif str(source) == "synthetic":
        if num_classes is None or num_image is None:
            raise ValueError(f'"synthetic" needs num_classes and num_image, got {num_classes} and {num_image}')
        dataset = SyntheticFaces(num_classes, num_image, seed, image_size)
    elif isinstance(source, str | Path) and class_map is None:
        dataset = open_faces(source, image_size, on_bad_sample, shuffle_chunk)
    else:
        sources = [source] if isinstance(source, str | Path) else list(source)
        dataset = join_sources(sources, image_size, on_bad_sample, shuffle_chunk, class_map)
    sizes = [len(one) for one in dataset.sets]
    if weights is not None and len(weights) != len(sizes):
        raise ValueError(f"{len(weights)} weights for {len(sizes)} sets: give one for each")
    sets = list(map(WeightedSet, sizes, weights or [1.0] * len(sizes)))
    sampler = EpochSampler(len(dataset), batch_size, rank, world_size, seed, chunk=shuffle_chunk, sets=sets)
    options: dict[str, Any] = {
        "batch_sampler": sampler,
        "num_workers": num_workers,
        "timeout_s": timeout_s,
        "persistent_workers": num_workers > 0,
        "generator": torch.Generator().manual_seed(seed),  # else each epoch would draw from torch's global state
    }
    device = torch.device(device)
    if dali and dataset.is_encoded:
        return DaliLoader(dataset, sampler, WorkerLoader(EncodedFaces(dataset), **options), device, num_workers)
    return FaceLoader(dataset, pin_memory=device.type == "cuda", **options)


def open_faces(
    source: Source, image_size: Size = (112, 112), on_bad_sample: OnBadSample = "stop", shuffle_chunk: int = 0
) -> FaceRecords | ImageFolder | FaceShards | FaceDatabase:
    """Open a folder with train.rec, a .rec file, a folder of identity folders, LMDB, or shards.

    Shards are a folder with .tar files in it, a pattern of them, or one of them, here or behind an address.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is none of these, or damaged.
    """
    if is_address(source) or are_shards(source):
        return FaceShards(source, image_size, on_bad_sample, shuffle_chunk)
    if is_database(source):
        return FaceDatabase(source, image_size, on_bad_sample)
    path = Path(source)
    if path.suffix in (".parquet", ".arrow") or (path.is_dir() and next(path.glob("*.parquet"), None) is not None):
        raise ValueError(f"{source}: {NO_PARQUET}")
    if path.suffix == ".rec" or (path / "train.rec").exists():
        return FaceRecords(path, image_size, on_bad_sample, shuffle_chunk)
    if path.suffix in (".txt", ".csv", ".lst", ".tsv", ".list") and path.is_file():
        raise ValueError(
            f"{source}: training reads no lists; pack it: python -m tools.pack_rec ROOT OUT --list {source} "
            "(ROOT: where its paths start), then give rec=OUT"
        )
    if not path.is_dir():
        several = "; several sets are written [A,B]" if "," in str(source) else ""
        found = "another kind of file" if path.exists() else "no such folder"
        raise FileNotFoundError(f'{source}: {found}; expected a folder, a .rec file or "synthetic"{several}')
    if identity_folders(path):
        return ImageFolder(path, image_size, on_bad_sample)
    records = sorted(file.name for file in path.glob("*.rec"))
    hint = f"; give {records[0]} by its own path" if records else ""
    raise ValueError(f"{source}: neither train.rec with train.idx in it, nor <identity>/<image> below it{hint}")


def join_sources(
    sources: Sequence[Source],
    image_size: Size = (112, 112),
    on_bad_sample: OnBadSample = "stop",
    shuffle_chunk: int = 0,
    class_map: Source | None = None,
) -> JoinedSets:
    """Open one set or several with :func:`open_faces`, as one under their short names; raises as that does."""
    _refuse_single_shards(sources)
    opened = [open_faces(one, image_size, on_bad_sample, shuffle_chunk) for one in sources]
    return JoinedSets(opened, [_short_name(one) for one in sources], class_map, on_bad_sample)


def _short_name(source: Source) -> str:
    """What a set is called in a class map and in messages: its folder, or its file where that is not train.rec."""
    if is_address(source) or are_shards(source):
        return short_name(str(source))
    path = Path(source).resolve()
    return path.parent.name if path.name == "train.rec" else path.stem if path.suffix == ".rec" else path.name


def _refuse_single_shards(sources: Sequence[Source]) -> None:
    """Raise ValueError for a list of the shards of one set: each would count as a set with people of its own."""
    folders = [str(source).rpartition("/")[0] for source in sources if str(source).endswith(".tar")]
    single = [source for source in sources if str(source).endswith(".tar") and not set("{*?[") & set(str(source))]
    if len(single) > 1 and len(set(folders)) < len(folders):
        raise ValueError(
            f"{single[0]} and {single[1]} in a list are two sets, whose labels are numbered one after the other; the "
            "shards of one set are given as their folder, or as a pattern such as train-{0000..0099}.tar or {a,b}.tar"
        )
