"""Write sets of faces as tar shards, or as records.

    python -m tools.convert_set SET [SET ...] OUT [--to records] [options]

Each SET is whatever training takes: records, identity folders, shards (a folder, a pattern such as
train-{0000..0099}.tar, an address such as s3://bucket/folder), LMDB. Several become one, numbered as in training on
``rec = [SET, SET, ...]``. OUT is a folder and gets

    train-000000.tar, ...   shards in WebDataset's form, KEY.jpg and KEY.cls, and their index; or, with --to records,
    train.rec, train.idx    records in im2rec's form, and property
    classes.json            the classes' names, if they have any

Images, labels and their order stay as they are, so that training on OUT gives the same batches; --shuffle mixes them.
Images are neither decoded nor resized. The same input gives the same bytes.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("convert_set")

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.faces import FaceDataset
from data.records.layout import EXACT_LABELS, pack
from data.records.writer import RecordWriter, write_property
from data.shards.names import has_shard_name
from data.shards.writer import OWN_NAME, ShardWriter
from dataset import join_sources, open_faces
from tools.parts.record_output import check_out, config_lines, print_config, write_classes
from utils.bars import open_bar
from utils.decode import decode_rgb
from utils.text import complain, plain

_READ_AT_ONCE = 256  # images


def write_shards(faces: FaceDataset, out: Path, shard_bytes: int, seed: int | None = None) -> int:
    """Write all images as shards and open them, which makes their index; the number of shards.

    Args:
        faces: the images and labels.
        out: made if missing.
        shard_bytes: of a shard, at most.
        seed: of the order in which they are written; None: as they are.

    Raises:
        ValueError: an image or a label is damaged.
        OSError: a file cannot be read or written.
    """
    with ShardWriter(out, shard_bytes) as writer:
        for index, encoded, label in _images(faces, seed):
            try:
                writer.add(label, encoded)
            except ValueError as error:
                raise ValueError(f"{faces.where(index)}: {error}") from None
    write_classes(out, faces.class_names())
    open_faces(out)
    return writer.shards


def write_records(faces: FaceDataset, out: Path, seed: int | None = None) -> None:
    """Write all images as records in im2rec's form; as :func:`write_shards`."""
    if faces.num_classes > EXACT_LABELS:
        raise ValueError(f"{faces.num_classes:,} classes, but records hold labels up to {EXACT_LABELS:,} only")
    encoded, _ = faces.read(0)
    try:
        height, width = decode_rgb(encoded).shape[:2]
    except ValueError as error:
        raise ValueError(f"{faces.where(0)}: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    with RecordWriter(out / "train.rec") as writer:
        for key, (_, encoded, label) in enumerate(_images(faces, seed)):
            writer.write(key, pack(label, encoded, key))
        write_property(out, faces.num_classes, (height, width))
    write_classes(out, faces.class_names())


def _images(faces: FaceDataset, seed: int | None) -> Iterator[tuple[int, bytes | memoryview, int]]:
    """Yield index, file and label of each image in the order in which they are written."""
    order = np.arange(len(faces)) if seed is None else np.random.default_rng(seed).permutation(len(faces))
    labels = faces.labels
    with open_bar(len(faces), "image", "converted", lines=sys.stderr) as bar:
        for start in range(0, len(order), _READ_AT_ONCE):
            indices = order[start : start + _READ_AT_ONCE].tolist()
            for index, (encoded, _) in zip(indices, faces.read_many(indices), strict=True):
                yield index, encoded, int(labels[index])
            bar.update(len(indices))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 2 for a set that cannot be written."""
    args = _parse(argv)
    start = time.perf_counter()
    try:
        _check(args)
        faces: FaceDataset
        if len(args.sets) == 1 and args.class_map is None:
            faces = open_faces(args.sets[0])
        else:
            faces = join_sources(args.sets, class_map=args.class_map)
        if args.to == "records":
            write_records(faces, args.out, args.shuffle)
            what = "records"
        else:
            shards = write_shards(faces, args.out, args.shard_size * 10**6, args.shuffle)
            what = f"{shards:,} shard{'' if shards == 1 else 's'}"
    except (ValueError, OSError) as error:
        complain("convert_set", error)
        return 2
    except KeyboardInterrupt:
        print("convert_set: interrupted, nothing is written", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    for text in (text for one in faces.sets for text in (one.warning, one.note) if text):
        print(plain(text))
    print(plain(f"{args.out}: {len(faces):,} images of {faces.num_classes:,} classes as {what} in {seconds:.1f} s"))
    print_config(config_lines(args.out, faces.num_classes, len(faces)))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="convert_set", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help="what training takes as rec")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for what is written")
    parser.add_argument("--to", choices=("shards", "records"), default="shards", help="default: shards")
    parser.add_argument(
        "--shard-size", type=int, default=1000, metavar="MB", help="of a shard, at most (default: 1000)"
    )
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="mix the images, for shuffle_chunk")
    parser.add_argument("--class-map", metavar="FILE", help="JSON list of the people who have several labels")
    parser.add_argument("--overwrite", action="store_true", help="replace what is already in OUT")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError or FileExistsError for what can be seen before any work."""
    if args.shard_size < 1:
        raise ValueError(f"--shard-size is in MB, at least 1, got {args.shard_size}")
    if args.shuffle is not None and args.shuffle < 0:
        raise ValueError(f"--shuffle takes a seed, at least 0, got {args.shuffle}")
    if args.out.exists() and not args.out.is_dir():
        raise FileExistsError(f"{args.out} is a file: give the folder that is to be written to")
    folders = [Path(one) if Path(one).is_dir() else Path(one).parent for one in args.sets]
    if any(args.out.resolve() == folder.resolve() for folder in folders):
        raise FileExistsError(f"{args.out} holds what is to be read: choose another folder")
    check_out(args.out, [], args.overwrite)
    if not args.out.is_dir():
        return
    found = sorted(path.name for path in args.out.iterdir() if has_shard_name(path.name))
    strange = [name for name in found if args.to == "records" or not OWN_NAME.fullmatch(name)]
    records = args.to == "shards" and (args.out / "train.rec").exists()
    if (found and not args.overwrite) or strange or records:
        name = "train.rec" if records else (strange or found)[0]
        way = "choose another folder" if strange or records else "choose another folder, or --overwrite"
        raise FileExistsError(f"{args.out} holds {name} already: {way}")


if __name__ == "__main__":
    sys.exit(main())
