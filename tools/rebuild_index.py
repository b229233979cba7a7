"""Make the index of a record file anew, from the .rec file alone.

    python -m tools.rebuild_index SOURCE

SOURCE is a .rec file, or a folder with train.rec. Its index (train.idx beside train.rec) lists where each record
begins; it can be lost, cut short or belong to another file, while the records are sound. The keys are the numbers in
the records' headers where these hold together, as packers write them; else they are counted from 0 on, which makes a
header record in front number 0 and the images 1, 2, 3, ..., or in im2rec's form the images 0, 1, 2, ...

A record that is cut short at the file's end is left out. An index that lists every record is kept unless --force is
given; a damaged one is kept as NAME.idx.old. The .rec file is only read.

Exit status: 0 the index is whole, 2 it cannot be made.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("rebuild_index")

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data.records.rebuild import Rebuilt, read_records, what_is_wrong, write_index
from utils.text import any_name_can_be_printed, complain, plain


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="rebuild_index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a .rec file, or a folder with train.rec")
    parser.add_argument("--force", action="store_true", help="write the index even if there is a sound one")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    rec_path = args.source / "train.rec" if args.source.is_dir() else args.source
    idx_path = rec_path.with_suffix(".idx")
    try:
        if rec_path.suffix != ".rec":
            raise ValueError(f"{rec_path}: expected a file that ends in .rec, or a folder with train.rec")
        found = read_records(rec_path)
        problem = what_is_wrong(idx_path, found) if idx_path.exists() else "it is missing"
        if problem or args.force:
            kept = _keep_old(idx_path) if idx_path.exists() else None
            write_index(idx_path, found)
    except (ValueError, OSError) as error:
        complain("rebuild_index", error)
        return 2
    except KeyboardInterrupt:
        print("rebuild_index: interrupted, nothing is written", file=sys.stderr)
        return 130
    if found.left_out:
        print(plain(f"left out: {found.left_out}; copy {rec_path.name} again to have it"))
    if not (problem or args.force):
        print(plain(f"{idx_path}: sound, it lists all {len(found.keys_N):,} records; nothing is written (--force)"))
        return 0
    print(plain(f"{idx_path}: written anew{f', because {problem}' if problem else ''}: {_in_words(found)}"))
    if kept is not None:
        print(plain(f"the one before is {kept}"))
    print(f"{time.perf_counter() - start:.1f} s; python -m tools.check_data looks at the images too")
    return 0


def _in_words(found: Rebuilt) -> str:
    keys = "the records' own numbers" if found.has_own_keys else "counted, since the records' own numbers are no keys"
    parts = f", {found.in_parts:,} of them in several parts" if found.in_parts else ""
    form = "a header record first" if found.has_header else "no header record"
    low, high = int(found.keys_N.min()), int(found.keys_N.max())
    return f"{len(found.keys_N):,} records{parts}, {form}, keys {low} to {high} ({keys})"


def _keep_old(path: Path) -> Path:
    """Give an index that is to be replaced another name, unless an earlier one has it; returns that name."""
    old = path.with_name(path.name + ".old")
    if not old.exists():
        old.hardlink_to(path)
    return old


if __name__ == "__main__":
    sys.exit(main())
