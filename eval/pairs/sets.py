"""Verification pairs by name: a .bin file, a list of image files, or a folder of bcolz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.pairs.bcolz_folder import is_bcolz, load_bcolz
from eval.pairs.bin_file import PairSet, load_bin
from eval.pairs.columns import read_columns
from utils.pair_list import ENDINGS as LIST_ENDINGS
from utils.pair_list import images_of, read_pair_list

__all__ = ["ENDINGS", "find_pairs", "load_list", "load_pairs"]

ENDINGS = (".bin", *LIST_ENDINGS)
_WAY_OUT = (
    "give the folder that holds all images with --root or, if you trust the list, --allow-outside; to eval.pairs, or "
    "to tools.make_bin, which makes a .bin of it"
)


def find_pairs(target: str, folder: Path) -> Path:
    """Where a set lies: a target that ends as a set does, or is a folder of bcolz, is a path, another a name.

    A name means ``<folder>/<name>.bin``, or where there is none the list or the folder of bcolz beside it.
    """
    if target.endswith(ENDINGS) or ("/" in target and is_bcolz(Path(target))):
        return Path(target)
    paths = [folder / f"{target}{ending}" for ending in ENDINGS]
    found = next((path for path in paths if path.is_file()), None)
    if found is None and is_bcolz(folder / target):
        return folder / target
    return found or paths[0]


def load_pairs(path: Path, allow_outside: bool = False, root: Path | None = None) -> PairSet:
    """Read a verification set by its ending; raises as ``load_list``, ``load_bin`` and ``load_bcolz`` do."""
    if path.suffix in LIST_ENDINGS:
        return load_list(path, allow_outside, root)
    return load_bcolz(path) if is_bcolz(path) else load_bin(path)


def load_list(path: Path, allow_outside: bool = False, root: Path | None = None) -> PairSet:
    """Read a list of pairs of aligned faces; the images stay encoded, one that is named twice is read once.

    Further columns tell people and groups, see ``eval.pairs.columns``.

    Args:
        path: a list in any form that ``utils.pair_list`` reads.
        allow_outside: read images outside ``root`` too.
        root: where relative paths, or LFW's names, start; None: the list's folder.

    Raises:
        FileNotFoundError: no such list, or images of it are missing; counts them, and names the first and its line.
        OSError: a file cannot be read.
        ValueError: no form fits all lines, or a path leads out of ``root``; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no verification set {path}")
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; --root is the folder that the paths of {path} start at")
    listed, paths, notes = images_of(read_pair_list(path), root or path.parent, _WAY_OUT, allow_outside)
    columns = read_columns(listed, paths)
    files: dict[Path, bytes] = {}
    encoded: list[bytes] = []
    for pair in paths:
        for image in pair:
            if image not in files:
                files[image] = image.read_bytes()
            encoded.append(files[image])
    flags = np.array([pair.same for pair in listed.pairs], bool)
    return PairSet(path.stem, encoded, flags, "; ".join([listed.form, *notes, *columns.notes]), columns)
