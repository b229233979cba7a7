"""Shuffle the records of a file, so that reading it from front to back gives images in random order.

    python -m tools.shuffle_rec IN OUT --seed 0

Files are usually written identity by identity. Disks that seek slowly are fastest when images are read in the order
of the file, so that order must be random; see ``data/sampler.py``. IN may have insightface's or im2rec's form. The
folder OUT gets im2rec's form: every record an image, keys 0, 1, 2, ... in the order of the file. Insightface's header
and identity records name ranges of keys, which mean nothing after shuffling, and are left out. Every image's payload,
including its label, stays the same to the byte.

Reads and writes run from front to back. Files larger than --memory-mb go through temporary files in OUT, so twice
their size must be free there.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("shuffle_rec")

import argparse
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.faces import read_class_names
from data.records.images import find_images, first_image_size, read_labels
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, write_property
from tools.parts.record_output import check_out, config_lines, print_config, write_classes
from utils.text import any_name_can_be_printed, complain, plain

_SPILLED = struct.Struct("<QQ")  # place in the new order, length
_READ_AT_ONCE = 256  # records


def shuffle_records(rec_path: Path, out: Path, seed: int, memory_mb: int = 1024) -> tuple[int, int]:
    """Write the images of a record file into ``out``/train.rec, shuffled, and property beside it.

    The result depends on the file and the seed only.

    Args:
        rec_path: a .rec file of either family.
        out: made if missing.
        seed: of the order.
        memory_mb: how much of the records memory may hold.

    Returns:
        The number of images, and that of classes.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read, or the result cannot be written.
    """
    reader = RecordReader(rec_path)
    span = find_images(reader)
    labels_N = read_labels(reader, span, lambda note: print(plain(note)))
    n = len(labels_N)
    in_file_order = reader.offsets[span.start : span.stop].argsort(kind="stable") + span.start  # (N,) positions
    place_N = np.random.default_rng(seed).permutation(n)  # of the i-th image in the file
    out.mkdir(parents=True, exist_ok=True)
    parts = -(-rec_path.stat().st_size // (memory_mb << 20))
    with RecordWriter(out / "train.rec") as writer:
        for key, payload in enumerate(_in_new_order(reader, in_file_order, place_N, parts, out)):
            writer.write(key, payload)
        classes = int(labels_N.max()) + 1
        write_property(out, classes, first_image_size(reader, span))
    return n, classes


def _in_new_order(
    reader: RecordReader, positions: NDArray[np.int64], place_N: NDArray[np.int64], parts: int, folder: Path
) -> Iterator[bytes]:
    """Yield the payloads by place, with one of ``parts`` equal ranges of places in memory at a time."""
    size = -(-len(place_N) // parts)  # places of one part
    if parts == 1:
        yield from _sorted(_by_file(reader, positions, place_N), 0, size)
        return
    with ExitStack() as stack:
        spills = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(parts)]
        for place, payload in _by_file(reader, positions, place_N):
            spills[place // size].write(_SPILLED.pack(place, len(payload)) + payload)
        for part, spill in enumerate(spills):
            spill.seek(0)
            yield from _sorted(_unspill(spill.read()), part * size, size)
            spill.truncate(0)  # make room for what is still to be written


def _by_file(
    reader: RecordReader, positions: NDArray[np.int64], place_N: NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(positions), _READ_AT_ONCE):
        payloads = reader.read_many(positions[start : start + _READ_AT_ONCE])
        yield from zip(place_N[start : start + _READ_AT_ONCE].tolist(), map(bytes, payloads), strict=True)


def _unspill(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        place, length = _SPILLED.unpack_from(data, at)
        at += _SPILLED.size + length
        yield place, data[at - length : at]


def _sorted(placed: Iterator[tuple[int, bytes]], first: int, size: int) -> Iterator[bytes]:
    payloads: list[bytes | None] = [None] * size
    for place, payload in placed:
        payloads[place - first] = payload
    for i, kept in enumerate(payloads):
        if kept is not None:  # the last part may be short
            yield kept
        payloads[i] = None


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 2 for input that cannot be shuffled."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="shuffle_rec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN", help="a .rec file, or a folder with train.rec")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the new records")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order (default: 0)")
    parser.add_argument("--memory-mb", type=int, default=1024, metavar="N", help="memory for records (default: 1024)")
    parser.add_argument("--overwrite", action="store_true", help="replace records already in OUT")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        for name, low in (("seed", 0), ("memory_mb", 1)):
            if getattr(args, name) < low:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
        source = args.source / "train.rec" if args.source.is_dir() else args.source
        check_out(args.out, [source], args.overwrite)
        names = read_class_names(source)
        n, classes = shuffle_records(source, args.out, args.seed, args.memory_mb)
        write_classes(args.out, names)
    except (ValueError, OSError) as error:
        complain("shuffle_rec", error)
        return 2
    except KeyboardInterrupt:
        print("shuffle_rec: interrupted, nothing is written", file=sys.stderr)
        return 130
    print(f"{args.out}: {n:,} images mixed in {time.perf_counter() - start:.1f} s")
    print_config([*config_lines(args.out, classes, n), "config.shuffle_chunk = 512  # on a disk that seeks slowly"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
