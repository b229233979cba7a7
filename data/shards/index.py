"""The index of a set of shards: where each image lies and whose it is, made once and kept in a file.

The file lies beside the shards; where that is not allowed, and for shards behind an address, in the folder that the
environment variable MHS_CACHE names (by default ~/.cache/mhs_arcface). It is a line of JSON and three arrays, which
all processes of a machine share. Each shard's size and time of change (or a server's ETag) stand in it, and where
there is none a checksum of some of its bytes. An index of other shards is not used but made anew; so is that of a
copy with other times, since a label can change under the same size, and to find that takes as long as the index.

Shapes: N images.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.shards.records import scan_records
from data.shards.tar import MOST_LABEL, Samples, scan_shard
from data.storage import FileFacts, LocalFiles, Range, RemoteFiles, Store, is_address
from utils.atomic import open_atomic
from utils.text import parse_json

log = logging.getLogger("mhs_arcface")  # that of utils.log, which a loader's worker need not import
_FORM = "mhs_arcface shards 2"
_PIECES, _PIECE = 8, 4096  # pieces of a shard whose checksum is kept, and bytes of each
_TYPES: tuple[np.dtype[Any], ...] = (np.dtype("<i8"), np.dtype("<u4"), np.dtype("<i4"))  # offsets, sizes, labels
_MAX_LINE = 1 << 30  # bytes of JSON
_KEPT_PROBLEMS = 20
_NO_PLACE = (errno.EROFS, errno.EACCES, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_POOL_FROM = 1 << 30  # bytes of shards from which several processes read them


class ShardIndex(NamedTuple):
    """N images of a set of shards, one shard after the other, in each in the order of their bytes."""

    files: list[str]
    starts: NDArray[np.int64]  # (shards + 1,) each shard's first image, and N
    offsets: NDArray[np.int64]  # (N,)
    sizes: NDArray[np.uint32]  # (N,)
    labels: NDArray[np.int32]  # (N,) -1: unknown
    names: list[str] | None  # of the labels, where the shards have names instead of numbers
    problems: list[str]  # the first of the samples without an image or a label
    problem_count: int


def open_index(files: Sequence[str], store: LocalFiles | RemoteFiles) -> ShardIndex:
    """The index of these shards: read, or made if there is none that fits.

    Of several processes on one machine that need it at once, one makes it and the others wait.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is damaged, see :func:`scan_shard`, or none has a usable image.
    """
    facts = store.facts(files)
    places = _places(files)
    reasons = []
    for path in places:
        if not isinstance(index := _load(path, files, facts, store), str):
            return index
        reasons += [f"{path} is not the index of these shards ({index})"] if index else []
    if reasons:
        log.warning("data: %s: it is made again", "; ".join(reasons))
    for path in places:
        try:
            if is_address(files[0]) or path.parent != Path(files[0]).resolve().parent:
                path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                if not isinstance(index := _load(path, files, facts, store), str):
                    return index  # another process has made it meanwhile
                probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                probe.touch()  # before the work
                try:
                    index, heads = _build(files, facts, store)
                finally:
                    probe.unlink(missing_ok=True)
                _save(path, index, facts, heads)
                return index
        except PermissionError:
            continue
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
    log.warning("data: no folder to keep the shards' index in: set MHS_CACHE to one; it is made at each start now")
    return _build(files, facts, store)[0]


def index_name(files: Sequence[str]) -> str:
    """The file name of the index of these shards, beside them."""
    names = "\n".join(file.replace("\\", "/").rpartition("/")[2] for file in files)
    return f"shards-{zlib.crc32(names.encode('utf-8', 'surrogateescape')):08x}.index"


def _places(files: Sequence[str]) -> list[Path]:
    """Where the index may lie, the first choice first."""
    folders = {file.rpartition("/")[0] if is_address(file) else str(Path(file).resolve().parent) for file in files}
    whole = "\n".join(sorted(folders)).encode("utf-8", "surrogateescape")
    cache = Path(os.environ.get("MHS_CACHE") or Path("~/.cache/mhs_arcface")).expanduser()
    cached = cache / f"{zlib.crc32(whole):08x}-{index_name(files)}"
    if os.environ.get("MHS_CACHE") or len(folders) > 1 or is_address(files[0]):
        return [cached]
    return [Path(folders.pop()) / index_name(files), cached]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes of this machine; no file stays behind. Windows: no lock."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("data: waiting for another process, which makes the index of the shards")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: two may do the same work
            log.info("data: %s cannot be locked", folder)
        yield
    finally:
        os.close(handle)


def _build(
    files: Sequence[str], facts: Sequence[FileFacts], store: LocalFiles | RemoteFiles
) -> tuple[ShardIndex, list[int]]:
    """Read all shards' headers; the index, and each shard's checksum, see :func:`_checksums`."""
    total = sum(fact.size for fact in facts)
    log.info("data: making the index of %d shards, %.1f GB", len(files), total / 1e9)
    jobs = list(zip(files, (fact.size for fact in facts), [store] * len(files), strict=True))
    processes = min(len(files), os.cpu_count() or 1, 16) if total >= _POOL_FROM else 1
    with contextlib.ExitStack() as stack:
        if processes > 1:
            # Not forked: this process may have threads, and locks that they hold.
            spawning = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=spawning))
            results = pool.map(_scan, jobs)
        else:
            results = map(_scan, jobs)
        shards = list(tqdm(results, "index", len(jobs), unit=" shards", disable=None))
    return _join(files, shards), _checksums(files, facts, store)


def _scan(job: tuple[str, int, Store]) -> Samples:
    return scan_records(*job) if job[0].endswith(".rec") else scan_shard(*job)


def _join(files: Sequence[str], shards: Sequence[Samples]) -> ShardIndex:
    labels, names = _number([shard.labels for shard in shards])
    sizes = np.concatenate([shard.sizes for shard in shards])
    problems = [problem for shard in shards for problem in shard.problems]
    if len(sizes) == 0:
        first = f"; the first problem: {problems[0]}" if problems else ""
        raise ValueError(f"{files[0]}: no image in {len(files)} shards; expected KEY.jpg and KEY.cls{first}")
    if int(sizes.max()) >= 1 << 31:
        raise ValueError(f"{files[0]}: a member of {int(sizes.max())} bytes is no image of a face")
    starts = np.cumsum([0, *(len(shard.offsets) for shard in shards)])
    offsets = np.concatenate([shard.offsets for shard in shards])
    return ShardIndex(
        list(files), starts, offsets, sizes.astype(np.uint32), labels, names, problems[:_KEPT_PROBLEMS], len(problems)
    )


def _number(parts: Sequence[NDArray[np.int64] | NDArray[np.str_]]) -> tuple[NDArray[np.int32], list[str] | None]:
    """All shards' labels as numbers; where one is a name, all are: label i is the i-th by sorted name."""
    texts = [part for part in parts if part.dtype.kind == "U"]
    if all(not text or text.isdecimal() for part in texts for text in np.unique(part).tolist()):
        numbers = [_as_numbers(part) if part.dtype.kind == "U" else part for part in parts]
        return np.concatenate(numbers).astype(np.int32), None
    words = [part if part.dtype.kind == "U" else _as_texts(part) for part in parts]
    found = {text for part in words for text in np.unique(part).tolist()}
    names = sorted(found - {""})
    number_of = {name: i for i, name in enumerate(names)} | {"": -1}
    labels = [np.array([number_of[text] for text in part.tolist()], np.int32) for part in words]
    return np.concatenate(labels), names


def _as_texts(part: NDArray[Any]) -> NDArray[np.str_]:
    return np.array(["" if label < 0 else str(label) for label in part.tolist()], np.str_)


def _as_numbers(part: NDArray[Any]) -> NDArray[np.int64]:
    return np.array([int(text) if text else -1 for text in part.tolist()], np.int64)


def _save(path: Path, index: ShardIndex, facts: Sequence[FileFacts], heads: Sequence[int]) -> None:
    shards = [
        [*fact, head, int(count)] for fact, head, count in zip(facts, heads, np.diff(index.starts), strict=True)
    ]
    head = {
        "form": _FORM,
        "shards": shards,
        "names": index.names,
        "problems": index.problems,
        "problem_count": index.problem_count,
    }
    line = json.dumps(head).encode()
    with open_atomic(path) as file:
        file.write(line + b" " * (-(len(line) + 1) % 8) + b"\n")
        arrays: tuple[NDArray[Any], ...] = (index.offsets, index.sizes, index.labels)
        for array, kind in zip(arrays, _TYPES, strict=True):
            file.write(array.astype(kind).tobytes())


def _load(
    path: Path, files: Sequence[str], facts: Sequence[FileFacts], store: LocalFiles | RemoteFiles
) -> ShardIndex | str:
    """The index in this file; else why it is not of these shards, "" where there is none."""
    if not path.is_file():
        return ""
    try:
        index, shards = _read(path, files)
        return _difference(files, facts, shards, store) or index
    except (ValueError, LookupError, TypeError, OSError) as error:
        return str(error) or "it cannot be read"


def _read(path: Path, files: Sequence[str]) -> tuple[ShardIndex, list[list[Any]]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        line = file.readline(_MAX_LINE)
    head = parse_json(line.decode())
    if head["form"] != _FORM:
        raise ValueError("another form")
    shards, names, problems = head["shards"], head["names"], head["problems"]
    counts = [shard[3] for shard in shards]
    if not all(isinstance(count, int) and 0 <= count < size for count in counts) or len(shards) != len(files):
        raise ValueError(f"of {len(shards)} shards, not {len(files)}")
    n = sum(counts)
    if n == 0 or size != len(line) + n * sum(kind.itemsize for kind in _TYPES):
        raise ValueError("another length than it announces")
    arrays, at = [], len(line)
    for kind in _TYPES:
        arrays.append(np.memmap(path, kind, "r", at, (n,)))
        at += n * kind.itemsize
    offsets, sizes, labels = arrays
    ends = np.repeat([shard[0] for shard in shards], counts)
    most = MOST_LABEL if names is None else len(names) - 1
    if (offsets < 0).any() or (offsets + sizes > ends).any() or labels.min() < -1 or labels.max() > most:
        raise ValueError("images outside their shards, or labels without a name")
    if not all(isinstance(text, str) for text in [*(names or []), *problems]):
        raise ValueError("names that are no texts")
    starts = np.cumsum([0, *counts])
    count = int(head["problem_count"])
    return ShardIndex(list(files), starts, offsets, sizes, labels, names, problems, count), shards


def _difference(files: Sequence[str], facts: Sequence[FileFacts], shards: list[list[Any]], store: Store) -> str:
    """What tells that a shard is not the one that was indexed, "" if all are."""
    for file, fact, shard in zip(files, facts, shards, strict=True):
        if fact.size != shard[0]:
            return f"{file} has {fact.size} bytes, it had {shard[0]}"
        if fact.stamp != shard[1]:
            return f"{file} has another time of change"
    found = _checksums(files, facts, store)
    changed = [file for file, checksum, shard in zip(files, found, shards, strict=True) if checksum != shard[2]]
    return f"{changed[0]} has changed" if changed else ""


def _checksums(files: Sequence[str], facts: Sequence[FileFacts], store: Store) -> list[int]:
    """Of each file without a time of change, a checksum of pieces spread from its first to its last bytes; else 0."""
    wanted = []
    unstamped = [i for i, fact in enumerate(facts) if not fact.stamp]
    for file, fact in ((files[i], facts[i]) for i in unstamped):
        length = min(_PIECE, fact.size)
        wanted += [Range(file, at, length) for at in np.linspace(0, fact.size - length, _PIECES).astype(int).tolist()]
    pieces = store.read_many(wanted)
    checksums = [0] * len(files)
    for n, i in enumerate(unstamped):
        checksums[i] = zlib.crc32(b"".join(pieces[n * _PIECES : (n + 1) * _PIECES]))
    return checksums


def samples_between(index: ShardIndex, start: int, stop: int) -> list[Range]:
    """The bytes from image ``start`` to the end of image ``stop - 1``: one range in each shard that has some."""
    ranges = []
    first, last = (int(np.searchsorted(index.starts, i, side="right")) - 1 for i in (start, stop - 1))
    for shard in range(first, last + 1):
        low, high = max(start, int(index.starts[shard])), min(stop, int(index.starts[shard + 1]))
        if high > low:
            begin = int(index.offsets[low:high].min())  # records may lie in another order
            end = int((index.offsets[low:high] + index.sizes[low:high]).max())
            ranges.append(Range(index.files[shard], begin, end - begin))
    return ranges
