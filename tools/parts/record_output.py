"""The folder that a packing tool leaves, and the lines for the config that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.atomic import write_json

OUTPUTS = ("train.rec", "train.idx", "property", "classes.json", "unreadable.txt")


def check_out(out: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Look at the folder before any work.

    Args:
        out: the folder for the records.
        sources: record files that are to be read.
        overwrite: whether what is in ``out`` may be replaced.

    Raises:
        FileExistsError: ``out`` is a file, a source's folder, or holds what may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: give the folder that the records go to")
    if any(source.resolve().parent == out.resolve() for source in sources):
        raise FileExistsError(f"{out} holds what is to be read: choose another folder")
    found = [name for name in OUTPUTS if (out / name).exists()]
    if found and not overwrite:
        raise FileExistsError(f"{out} holds {', '.join(found)} already: choose another folder, or --overwrite")


def write_classes(out: Path, names: Sequence[str | None] | None) -> None:
    """Write classes.json; without names, remove one that describes older records."""
    path = out / "classes.json"
    if names is None:
        path.unlink(missing_ok=True)
        return
    write_json(path, names)


def config_lines(rec: Path | str, num_classes: int, num_image: int) -> list[str]:
    """What to put into a config to train on ``rec``, a path or an address, from wherever training is started."""
    return [
        f"config.rec = {str(rec.resolve()) if isinstance(rec, Path) else rec!r}",
        f"config.num_classes = {num_classes}",
        f"config.num_image = {num_image}",
    ]


def pair_config_lines(path: Path) -> list[str]:
    """What to put into a config to verify on the set ``path``."""
    return [f"config.val_targets = [{str(path.resolve())!r}]"]


def print_config(lines: Sequence[str]) -> None:
    """Print these lines below a heading."""
    print("\nFor the config:\n\n" + "\n".join(f"    {line}" for line in lines))
