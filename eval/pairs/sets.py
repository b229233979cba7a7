"""Verification pairs by name: a .bin file, or a csv list of image files, ``path1,path2,issame`` a line."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.pairs.bin_file import PairSet, load_bin
from eval.pairs.columns import pair_places, read_columns
from utils.paths import ListedPaths

__all__ = ["ENDINGS", "find_pairs", "load_csv", "load_pairs"]

ENDINGS = (".bin", ".csv")
_FLAGS = {"1": True, "true": True, "same": True, "0": False, "false": False, "different": False}
_WAY_OUT = (
    "put the list into the folder that holds all its images or, if you trust it, give --allow-outside to eval.pairs, "
    "or to tools.make_bin, which makes a .bin of it"
)


def find_pairs(target: str, folder: Path) -> Path:
    """Where a set lies: a target that ends in .bin or .csv is a path, another is a name in ``folder``.

    A name means ``<folder>/<name>.bin``, or the .csv beside it where there is no .bin.
    """
    if target.endswith(ENDINGS):
        return Path(target)
    paths = [folder / f"{target}{ending}" for ending in ENDINGS]
    return next((path for path in paths if path.is_file()), paths[0])


def load_pairs(path: Path, allow_outside: bool = False) -> PairSet:
    """Read a verification set by its ending; raises as :func:`load_csv` and ``eval.pairs.bin_file.load_bin`` do."""
    if path.suffix != ".csv":
        return load_bin(path)
    pairs = load_csv(path, allow_outside)
    return replace(pairs, columns=read_columns(path, pairs.issame))


def load_csv(path: Path, allow_outside: bool = False) -> PairSet:
    """Read a list of pairs; the images stay encoded, one that is named twice is read once.

    Args:
        path: lines ``path1,path2,issame`` of aligned faces; relative paths start at the list's folder; issame is 1
            or 0, true or false, same or different. A first line that names the columns is skipped; with the names
            path1, path2 and issame (or label) they may stand in any order, beside others.
        allow_outside: read images outside the list's folder too.

    Raises:
        FileNotFoundError: no such list, or an image of it is missing; the message gives the line.
        OSError: a file cannot be read.
        ValueError: a line of another form, or a path that leads out of the list's folder, named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no verification set {path}")
    paths = ListedPaths(path, path.parent, _WAY_OUT, allow_outside)
    files: dict[Path, bytes] = {}
    encoded: list[bytes] = []
    flags: list[bool] = []
    with path.open(newline="", encoding="utf-8-sig") as text:
        rows = csv.reader(text, skipinitialspace=True)
        places: tuple[int, ...] | None = None
        try:
            for row in rows:
                if not row:
                    continue
                if rows.line_num == 1 and (places := pair_places(row)):
                    continue
                if places is not None and len(row) > max(places):
                    row = [row[place] for place in places]
                flag = _FLAGS.get(row[-1].strip().lower())
                if rows.line_num == 1 and len(row) == 3 and _names_columns(row):
                    continue
                if len(row) != 3 or flag is None:
                    raise ValueError(
                        f"{path}, line {rows.line_num}: expected path1,path2,issame with issame 1 or 0, "
                        f"found {','.join(row)[:80]!r}"
                    )
                for name in row[:2]:
                    image = paths.join(name.strip(), rows.line_num)
                    if image not in files:
                        files[image] = _read(image, f"{path}, line {rows.line_num}")
                    encoded.append(files[image])
                flags.append(flag)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {rows.line_num + 1}: no csv text ({error})") from None
    return PairSet(path.stem, encoded, np.array(flags, bool))


def _names_columns(row: list[str]) -> bool:
    """Tell a first line of names from a pair; a column of flags may well be called "same"."""
    flag = row[2].strip().lower()
    return flag not in _FLAGS or (flag == "same" and not any(Path(name.strip()).suffix for name in row[:2]))


def _read(image: Path, where: str) -> bytes:
    if not image.is_file():
        raise FileNotFoundError(f"{where}: no image {image}; relative paths start at the list's folder")
    return image.read_bytes()
