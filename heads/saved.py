"""The classifier in a checkpoint, as it is read: the ranks' parts, each in layers; later ones hold newer values.

``heads/rank_R_of_W/layer_I/`` holds the heads that rank R had updated, all of them or those since layer I - 1:
``heads.npy`` (head numbers, ascending), ``visits.npy`` (their updates), for optimizers that ask for it
``last_step.npy`` and, for the centres and each optimizer state, ``NAME.npy`` with one row per class. Checkpoints
without checksums hold one layer, whose files lie in ``rank_R_of_W`` itself. Heads in no layer were never updated:
their values follow from the seed.

Shapes: n heads of one layer, L classes per head, D embedding size, C classes, N any number of classes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heads.arrays import CENTRES
from heads.layout import Layout
from heads.shard import first_centres
from heads.storage import LAST_STEP, VISITS
from utils.manifest import CheckedFile, DamagedError, FileSum

MERGED_BLOCK_BYTES = 16 * 2**20  # of centres; making initial ones takes about ten times as much
_MAX_HEADER = 4096  # bytes of an .npy file's header
_PART, _LAYER = re.compile(r"rank_(\d+)_of_(\d+)"), re.compile(r"layer_(\d+)")
_HEADS = "heads"


class NpyRows:
    """An .npy file, read by rows; see :class:`~utils.manifest.CheckedFile` for what is checked.

    Args:
        path: the file.
        expected: its sum, None where none was written.

    Raises:
        DamagedError: it is missing, no .npy file of numbers, or its size does not fit its header.
    """

    def __init__(self, path: Path, expected: FileSum | None) -> None:
        self._file = CheckedFile(path, expected)
        head = io.BytesIO(self._file.read(0, min(_MAX_HEADER, self._file.size)))
        try:
            version = np.lib.format.read_magic(head)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            self.shape, in_columns, self.dtype = read(head)
            if in_columns or self.dtype.hasobject or self.dtype.kind not in "fiu" or not self.shape:
                raise ValueError(f"an array of {self.dtype}, shape {self.shape}")
        except (ValueError, KeyError, TypeError, SyntaxError, OverflowError, MemoryError) as error:
            raise DamagedError(f"{path} is damaged: no array of numbers in rows ({error})") from error
        self.forget()
        self._start = head.tell()
        self._row_bytes = self.dtype.itemsize
        for size in self.shape[1:]:
            self._row_bytes *= size
        if self._file.size != self._start + self.shape[0] * self._row_bytes:
            raise DamagedError(f"{path} is damaged: {self._file.size} bytes do not fit an array of {self.shape}")

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def rows(self, start: int, end: int) -> NDArray[Any]:
        """Rows [start, end), a writable copy; DamagedError if they are not what was written."""
        data = self._file.read(self._start + start * self._row_bytes, (end - start) * self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(end - start, *self.shape[1:])

    def all(self) -> NDArray[Any]:
        """Every row; nothing stays in memory beside them."""
        found = self.rows(0, self.shape[0])
        self.forget()
        return found

    def forget(self) -> None:
        """Let go of the memory of what was read last."""
        self._file.forget()


@dataclass(frozen=True)
class Layer:
    """Some heads of one rank, and their values at one time."""

    path: Path
    heads_n: NDArray[np.int64]  # ascending
    counts: dict[str, NDArray[np.int32]]  # VISITS and, where it was counted, LAST_STEP: (n,)
    arrays: dict[str, NpyRows]  # name -> L rows for each head, fewer for the last head of all

    def forget(self) -> None:
        """Let go of the memory of what was read last."""
        for rows in self.arrays.values():
            rows.forget()


@dataclass(frozen=True)
class SavedHeads:
    """All ranks' layers, older ones before newer ones."""

    settings: dict[str, int]  # the classifier's num_classes, head_size, embedding_size, seed, ...
    layers: list[Layer]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The centres' number type; a layer without heads cannot tell it."""
        return next((own.arrays[CENTRES].dtype for own in self.layers if len(own.heads_n)), np.dtype(np.float32))

    @property
    def state_names(self) -> set[str]:
        """The arrays beside the centres."""
        return {name for own in self.layers for name in own.arrays} - {CENTRES}

    def centres(self, classes_N: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The centres (N, D) of some classes, ascending, and how often the heads of each were updated (N,).

        Raises:
            DamagedError: they are not what was written.
        """
        L, D, seed = (self.settings[name] for name in ("head_size", "embedding_size", "seed"))
        dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype
        rows_ND = first_centres(seed, torch.from_numpy(classes_N), D, dtype).numpy()
        updates_N = np.zeros(len(classes_N), np.int32)
        heads_N = classes_N // L
        for layer in self.layers:
            place_N = np.searchsorted(layer.heads_n, heads_N)
            here_N = place_N < len(layer.heads_n)
            here_N[here_N] = layer.heads_n[place_N[here_N]] == heads_N[here_N]
            chosen = np.flatnonzero(here_N)
            if not len(chosen):
                continue
            source = place_N[chosen] * L + classes_N[chosen] % L
            for start, end in _runs(source):
                rows_ND[chosen[start:end]] = layer.arrays[CENTRES].rows(int(source[start]), int(source[end - 1]) + 1)
            updates_N[chosen] = layer.counts[VISITS][place_N[chosen]]
        return rows_ND, updates_N

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
        """Yield consecutive classes' centres (N, D), and the updates of their heads (N,), until all C are done."""
        C, D = self.settings["num_classes"], self.settings["embedding_size"]
        at_once = max(1, MERGED_BLOCK_BYTES // (D * self.dtype.itemsize))
        for start in range(0, C, at_once):
            yield self.centres(np.arange(start, min(start + at_once, C)))


def open_heads(
    folder: Path,
    settings: Mapping[str, int],
    files: Mapping[str, FileSum] | None,
    wanted: Layout | None = None,
) -> SavedHeads:
    """Open what the ranks left.

    Args:
        folder: a checkpoint's heads/.
        settings: the classifier's.
        files: sums of the files, by their names below ``folder``; None: it was written without them.
        wanted: whose heads are of use; parts that hold none of them are not opened. None: all are.

    Raises:
        DamagedError: a file is missing or damaged, named.
    """
    names = _files_in(folder) if files is None else sorted(files)
    by_part: dict[tuple[int, int], dict[int, list[str]]] = {}
    for name in names:
        part, *layer, _ = name.split("/")
        number, is_layer = _PART.fullmatch(part), [_LAYER.fullmatch(one) for one in layer]
        if number is None or len(is_layer) > 1 or None in is_layer:
            raise DamagedError(f"{folder / name} does not belong to a checkpoint")
        index = int(is_layer[0][1]) if is_layer and is_layer[0] else 0
        by_part.setdefault((int(number[1]), int(number[2])), {}).setdefault(index, []).append(name)
    world_sizes = {world_size for _, world_size in by_part}
    ranks = sorted(rank for rank, _ in by_part)
    if len(world_sizes) != 1 or ranks != list(range(*world_sizes)):
        raise DamagedError(f"{folder} is damaged: it holds the heads of ranks {ranks}, not of all of a run's")
    layers = []
    for (rank, world_size), part_layers in sorted(by_part.items()):
        layout = Layout.of_rank(settings["num_classes"], settings["head_size"], rank, world_size)
        if wanted is not None and not _overlap(layout, wanted):
            continue
        layers += [_open_layer(folder, part_layers[i], files, settings, layout) for i in sorted(part_layers)]
    return SavedHeads(dict(settings), layers)


def _overlap(one: Layout, other: Layout) -> bool:
    return one.head_start < other.head_end and other.head_start < one.head_end


def _files_in(folder: Path) -> list[str]:
    try:
        return sorted(path.relative_to(folder).as_posix() for path in folder.glob("rank_*_of_*/**/*.npy"))
    except OSError as error:
        raise DamagedError(f"{folder} cannot be read: {error}") from error


def _open_layer(
    folder: Path,
    names: list[str],
    files: Mapping[str, FileSum] | None,
    settings: Mapping[str, int],
    layout: Layout,
) -> Layer:
    arrays = {Path(name).stem: NpyRows(folder / name, None if files is None else files[name]) for name in names}
    path = (folder / names[0]).parent
    for name in (_HEADS, VISITS, CENTRES):
        if name not in arrays:
            raise DamagedError(f"{path / name}.npy is missing")
    heads_n = arrays.pop(_HEADS).all()
    _check(
        heads_n.ndim == 1
        and heads_n.dtype == np.int64
        and bool((np.diff(heads_n) > 0).all())
        and (not len(heads_n) or layout.head_start <= heads_n[0] <= heads_n[-1] < layout.head_end),
        path / f"{_HEADS}.npy",
        f"expected ascending numbers of heads from {layout.head_start} to {layout.head_end - 1}",
    )
    counts = {name: arrays.pop(name).all() for name in (VISITS, LAST_STEP) if name in arrays}
    for name, count_n in counts.items():
        _check(
            count_n.shape == heads_n.shape
            and count_n.dtype == np.int32
            and bool((count_n >= (name == VISITS)).all()),
            path / f"{name}.npy",
            f"expected a count for each of {len(heads_n)} heads",
        )
    expected = (len(layout.classes_of(torch.from_numpy(heads_n))), settings["embedding_size"])
    for rows in arrays.values():
        _check(
            rows.shape == expected and rows.dtype in (np.float32, np.float64),
            rows.path,
            f"expected {expected[0]} rows of {expected[1]} numbers, found {rows.dtype} of shape {rows.shape}",
        )
    return Layer(path, heads_n, counts, arrays)


def _check(holds: bool, path: Path, expected: str) -> None:
    if not holds:
        raise DamagedError(f"{path} is damaged: {expected}")


def _runs(numbers_N: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The places [start, end) of consecutive numbers among ascending ones."""
    breaks = np.flatnonzero(np.diff(numbers_N) != 1) + 1
    edges = [0, *breaks.tolist(), len(numbers_N)]
    yield from pairwise(edges)
