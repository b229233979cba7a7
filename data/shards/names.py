"""Which shards a source means: a folder, a pattern such as train-{0000..0099}.tar or train-*.tar, one .tar file."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.storage import Store, is_address
from utils.folders import SYSTEM_FOLDERS

MOST_SHARDS = 1_000_000
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")


def are_shards(source: str | Path) -> bool:
    """Whether a source that is no address names shards: by its ending, or as a folder with shards in it.

    A folder with train.rec is one of records; one with folders in it is one of identities, whatever lies beside them.
    """
    if str(source).endswith((".tar", *COMPRESSED)):
        return True
    path = Path(source)
    if not path.is_dir() or (path / "train.rec").exists():
        return False
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in SYSTEM_FOLDERS]
    return any(has_shard_name(entry.name) for entry in visible) and not any(entry.is_dir() for entry in visible)


def has_shard_name(name: str) -> bool:
    """Whether a file's name is that of a tar file, packed or not."""
    return name.endswith((".tar", *COMPRESSED)) and not name.startswith(".")


def find_shards(source: str | Path, store: Store) -> list[str]:
    """The shards in their order, which is that of the samples: as a pattern lists them, or by name.

    Behind an address, this may also be one record file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: they are compressed, or a pattern cannot be understood.
    """
    text = str(source)
    files = [file for pattern in expand_braces(text) for file in _matching(pattern, store)]
    packed = [file for file in files if file.endswith(COMPRESSED)]
    if packed:
        raise ValueError(
            f"{packed[0]}: a compressed tar file has to be unpacked from its start for every image: unpack it once "
            "(gunzip, or gzip -d; images do not become smaller by it) and give the .tar"
        )
    if not files:
        raise FileNotFoundError(f"{source}: no .tar file there; expected shards such as train-0000.tar, or train.rec")
    if len(set(files)) < len(files):
        raise ValueError(f"{source}: it names {next(f for f in files if files.count(f) > 1)} more than once")
    return files


def _matching(pattern: str, store: Store) -> list[str]:
    if is_address(pattern):
        if pattern.endswith((".tar", ".rec")) and "*" not in pattern:
            return [pattern]
        found = store.names(pattern)
        records = [file for file in found if file.endswith("/train.rec")]
        return records or [file for file in found if has_shard_name(file.rpartition("/")[2])]
    if Path(pattern).is_dir():
        return [file for file in store.names(pattern) if has_shard_name(Path(file).name)]
    if glob.has_magic(pattern) and not Path(pattern).exists():
        return sorted(file for file in glob.glob(pattern) if Path(file).is_file())  # noqa: PTH207
    if not Path(pattern).is_file():
        raise FileNotFoundError(f"{pattern}: no such file; expected a .tar file")
    return [pattern]


def expand_braces(pattern: str) -> Iterator[str]:
    """What a shell makes of ``{0000..0099}`` and ``{a,b}``; ValueError for more than a million names."""
    found = next((m for m in _BRACES.finditer(pattern) if ".." in m[1] or "," in m[1]), None)
    if found is None:
        yield pattern
        return
    for word in _words(found[1], pattern):
        yield from expand_braces(pattern[: found.start()] + word + pattern[found.end() :])


def _words(inside: str, pattern: str) -> Sequence[str] | Iterator[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        if ".." in inside:
            raise ValueError(f"{pattern}: expected numbers in {{{inside}}}, such as {{0000..0099}}")
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not first <= last < first + MOST_SHARDS:
        raise ValueError(f"{pattern}: {{{inside}}} should count up, by at most {MOST_SHARDS:,} names")
    width = len(ends[1]) if ends[1].startswith("0") or len(ends[1]) == len(ends[2]) else 0
    return (f"{number:0{width}d}" for number in range(first, last + 1))


def short_name(source: str) -> str:
    """What a set of shards is called in class maps and messages: its folder, or what a single .tar is called."""
    folder, _, last = source.rstrip("/").replace("\\", "/").rpartition("/")
    if not last.endswith(".tar"):
        return last
    return folder.rpartition("/")[2] if set("{*?[") & set(last) and folder else last.removesuffix(".tar")
