"""Merge several sets of records into one.

    python -m tools.merge_rec A B ... OUT [--class-map FILE]

A, B, ... are .rec files or folders with train.rec, in insightface's or im2rec's form. The labels of each set continue
after those of the one before, as in training on ``rec = [A, B, ...]``. People who are in several sets become one
class if --class-map names them. It is a JSON list of entries such as {"0": 17, "1": "ann"}: class 17 of A is the
class called ann in B (see data/joined.py). With one set, {"0": [17, 40]} makes its classes 17 and 40 one; the
class_map.json of find_duplicates has such entries. OUT is a folder; it gets train.rec and train.idx in insightface's
form, property and, if a set has names, classes.json. Encoded images stay as they are.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("merge_rec")

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prettytable import PrettyTable

from data.faces import FaceRecords
from data.joined import JoinedSets
from data.records.images import find_images, first_image_size
from data.records.layout import EXACT_LABELS, pack, unpack
from data.records.reader import RecordReader
from data.records.writer import RecordWriter, range_record, write_property
from data.shards.names import has_shard_name
from tools.parts.record_output import check_out, config_lines, print_config, write_classes
from utils.text import any_name_can_be_printed, complain, plain

_READ_AT_ONCE = 256  # records


def merge_records(joined: JoinedSets, readers: Sequence[RecordReader], out: Path) -> None:
    """Write the images of all sets into ``out``/train.rec, in insightface's form.

    Keys follow the classes; in the file, the images are in the sets' order, one set after another.

    Args:
        joined: sets of records.
        readers: theirs.
        out: made if missing.

    Raises:
        ValueError: a record is damaged, the images' sizes differ, or there are more classes than a float32 label
            tells apart.
        OSError: a file cannot be read or written.
    """
    spans = [find_images(reader) for reader in readers]
    sizes = [first_image_size(reader, span) for reader, span in zip(readers, spans, strict=True)]
    if len(set(sizes)) > 1:
        raise ValueError(f"the sets' images are of (height, width) {sizes}: make them one size first")
    labels_N, classes = joined.labels, joined.num_classes
    if classes > EXACT_LABELS:
        raise ValueError(f"{classes:,} classes, but float32 labels are exact up to {EXACT_LABELS:,} only")
    counts_C = np.bincount(labels_N, minlength=classes)
    starts_C = np.cumsum([1, *counts_C])  # each class's first key; the last is the end
    key_N = np.empty(len(labels_N), np.int64)
    key_N[labels_N.argsort(kind="stable")] = np.arange(1, len(labels_N) + 1)
    end = len(labels_N) + 1
    out.mkdir(parents=True, exist_ok=True)
    with RecordWriter(out / "train.rec") as writer:
        writer.write(0, range_record(end, end + classes, 0))
        i = 0  # in all sets
        for reader, span in zip(readers, spans, strict=True):
            for start in range(span.start, span.stop, _READ_AT_ONCE):
                positions = np.arange(start, min(start + _READ_AT_ONCE, span.stop))
                for payload in reader.read_many(positions):
                    header, encoded = unpack(payload)
                    label = [labels_N[i], *header.label[1:]] if header.flag else labels_N[i]
                    writer.write(int(key_N[i]), pack(label, encoded, int(key_N[i])))
                    i += 1
        for c in range(classes):
            writer.write(end + c, range_record(int(starts_C[c]), int(starts_C[c + 1]), end + c))
        write_property(out, classes, sizes[0])
    write_classes(out, joined.class_names())


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 2 for sets that cannot be merged."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="merge_rec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="a .rec file, or a folder with train.rec")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the new records")
    parser.add_argument(
        "--class-map", type=Path, metavar="FILE", help="JSON list of the people who have several labels"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace records already in OUT")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        _refuse_other_forms(args)
        sources = [path / "train.rec" if path.is_dir() else path for path in args.sets]
        check_out(args.out, sources, args.overwrite)
        sets = [FaceRecords(source) for source in sources]
        joined = JoinedSets(sets, [_name(path) for path in args.sets], args.class_map)
        merge_records(joined, [one.reader for one in sets], args.out)
    except (ValueError, OSError) as error:
        complain("merge_rec", error)
        return 2
    except KeyboardInterrupt:
        print("merge_rec: interrupted, nothing is written", file=sys.stderr)
        return 130
    table = PrettyTable(["set", "images", "its classes", "classes of earlier sets"])
    table.align = "r"
    for part in joined.parts():
        classes = f"{part.classes.start} to {part.classes.stop - 1}" if part.classes else "none"
        table.add_row([plain(part.name), f"{len(part.images):,}", classes, f"{part.shared:,}"])
    print(table)
    for one in sets:
        if one.note:
            print(plain(one.note))
    seconds = time.perf_counter() - start
    print(f"{args.out}: {len(joined):,} images of {joined.num_classes:,} classes in {seconds:.1f} s")
    print_config(config_lines(args.out, joined.num_classes, len(joined)))
    return 0


def _refuse_other_forms(args: argparse.Namespace) -> None:
    """Raise ValueError for a set that is there but is no records, with the command that takes it."""
    for path in args.sets:
        is_folder = path.is_dir() and not (path / "train.rec").exists()
        is_file = path.is_file() and path.suffix != ".rec" and not path.with_suffix(".idx").exists()
        is_pattern = not path.exists() and (":/" in str(path) or has_shard_name(path.name))
        if is_folder or is_file or is_pattern:
            more = ["--class-map", str(args.class_map)] if args.class_map is not None else []
            command = [*map(str, args.sets), str(args.out), "--to", "records", *more]
            raise ValueError(
                f"{path} is no folder with train.rec and no .rec file. A folder of images, LMDB and shards are "
                f"merged by: python -m tools.convert_set {shlex.join(command)}"
            )


def _name(path: Path) -> str:
    """What a set is called in messages and in names of its classes."""
    path = path.resolve()
    return path.parent.name if path.name == "train.rec" else path.stem


if __name__ == "__main__":
    sys.exit(main())
