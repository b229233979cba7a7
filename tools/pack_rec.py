"""Pack images of faces into record files in insightface's form.

    python -m tools.pack_rec SRC OUT [options]

SRC is a folder with one folder of aligned face images for each identity; with --list, the folder that the paths of
the list are relative to. Writes to the folder OUT:

    train.rec, train.idx   the records
    property               identities,height,width
    classes.json           the identities' names, the i-th for label i
    unreadable.txt         files that are not images, and identities left without one, if there are any

and prints the lines for the config. The images are streamed: memory does not grow with their number. The same images
give the same bytes for any number of workers.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("pack_rec")

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.records.writer import FaceRecordWriter
from tools.parts.ordered_map import ordered_map
from tools.parts.pack_sources import FaceFiles, FolderFiles, ListFiles
from tools.parts.record_output import check_out, config_lines, print_config, write_classes
from tools.shuffle_rec import shuffle_records
from utils.atomic import open_atomic
from utils.bars import open_bar
from utils.decode import Fitted, FittedFace, fit_face
from utils.folders import IMAGE_SUFFIXES
from utils.text import any_name_can_be_printed, complain, plain

_FILES_A_TASK = 32
_PROGRESS_S = 10.0
_RATE_S = 5.0  # before, a number of images a second would tell how long the start takes
_SHOWN = 5  # unreadable files that are printed


@dataclass(frozen=True)
class Coding:
    """How images are stored."""

    size: int = 112  # side in pixels
    encoding: str = ".jpg"  # or ".png"
    quality: int = 95  # of JPEG
    copy: bool = False  # keep the bytes of an image that already has the size


@dataclass
class Packed:
    """What became of the files."""

    images: int = 0
    classes: list[str] = field(default_factory=list)  # names by label
    fitted: Fitted = field(default_factory=Fitted)
    unreadable: list[str] = field(default_factory=list)  # the first few, with the reason
    n_unreadable: int = 0
    empty: list[str] = field(default_factory=list)  # identities left out


def pack_files(files: FaceFiles, out: Path, coding: Coding, workers: int) -> Packed:
    """Write the records of ``files`` into the folder ``out``.

    An identity without a readable image gets no label; later ones move up.

    Args:
        files: what to pack.
        out: made if missing; each file gets its name when it is complete.
        coding: how images are stored.
        workers: processes that decode and encode; 1: this one.

    Raises:
        ValueError: there is no readable image.
        OSError: a file cannot be written, or a worker died.
    """
    result = Packed()
    work = functools.partial(_fit_files, coding=coding)
    shown = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with (
        FaceRecordWriter(out, (coding.size, coding.size)) as writer,
        open_atomic(out / "unreadable.txt") as report,
        open_bar(len(files.names), "identity") as bar,
    ):
        current = -1  # the identity whose images came last
        for fitted in ordered_map(work, _tasks(files), workers):
            for identity, path, face in fitted:
                if isinstance(face, str):
                    report.write(os.fsencode(f"{path}\t{face}\n"))
                    result.n_unreadable += 1
                    result.unreadable += [f"{path}: {face}"][: _SHOWN - len(result.unreadable)]
                    continue
                if identity != current:
                    current = identity
                    result.classes.append(files.names[identity])
                writer.add(len(result.classes) - 1, face.encoded)
                result.images += 1
                result.fitted.see(face)
            bar.update(current + 1 - bar.n)
            if bar.disable and time.perf_counter() - shown > _PROGRESS_S:
                shown = time.perf_counter()
                print(f"{result.images:,} images, {current + 1:,} of {len(files.names):,} identities", flush=True)
        if result.images + result.n_unreadable == 0:
            raise ValueError(f"no image in any of {len(files.names)} identity folders ({', '.join(IMAGE_SUFFIXES)})")
        if result.images == 0:
            first = f"; the first: {result.unreadable[0]}" if result.unreadable else ""
            raise ValueError(f"none of {result.n_unreadable} files could be read as an image{first}")
        packed = set(result.classes)
        result.empty = [name for name in files.names if name not in packed]
        for name in result.empty:
            report.write(os.fsencode(f"{name}\tidentity without a readable image, left out\n"))
        write_classes(out, result.classes)
    if not (result.n_unreadable or result.empty):
        (out / "unreadable.txt").unlink()
    return result


def _tasks(files: FaceFiles) -> Iterator[list[tuple[int, str]]]:
    """Yield identity and path of some files at a time."""
    task = []
    for identity, paths in enumerate(files):
        for path in paths:
            task.append((identity, path))
            if len(task) == _FILES_A_TASK:
                yield task
                task = []
    if task:
        yield task


def _fit_files(task: list[tuple[int, str]], coding: Coding) -> list[tuple[int, str, FittedFace | str]]:
    """Add to each the face, or what is wrong with the file."""
    return [(identity, path, _fit_file(path, coding)) for identity, path in task]


def _fit_file(path: str, coding: Coding) -> FittedFace | str:
    file = Path(path)
    if not file.is_file() and file.exists() and not file.is_dir():
        return "a pipe or a device, which may never end: expected a file"
    try:
        encoded = file.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    try:
        return fit_face(encoded, coding.size, coding.encoding, coding.quality, coding.copy)
    except ValueError as error:
        return str(error)


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 2 for input that cannot be packed."""
    args = _parse(argv)
    start = time.perf_counter()
    try:
        coding = Coding(args.size, args.encoding, args.quality, args.copy)
        _check(args)
        files = _files(args)
        if args.shuffle is None:
            packed = pack_files(files, args.out, coding, args.workers)
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".pack_rec.", dir=args.out) as folder:
                packed = pack_files(files, Path(folder), coding, args.workers)
                shuffle_records(Path(folder) / "train.rec", args.out, args.shuffle)
                for name in ("classes.json", "unreadable.txt"):
                    (args.out / name).unlink(missing_ok=True)
                    if (Path(folder) / name).exists():
                        (Path(folder) / name).replace(args.out / name)
    except (ValueError, OSError) as error:
        complain("pack_rec", error)
        return 2
    except KeyboardInterrupt:
        print("pack_rec: interrupted, nothing is written", file=sys.stderr)
        return 130
    _report(packed, args.out, time.perf_counter() - start)
    for line in files.notes.lines() if isinstance(files, FolderFiles) else ():
        print(plain(line))
    return 0


def _files(args: argparse.Namespace) -> FolderFiles | ListFiles:
    if args.list is None:
        return FolderFiles(args.src)
    files = ListFiles(args.list, args.src, args.allow_outside, args.columns)
    print("\n".join(map(plain, files.describe())), flush=True)
    return files


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="pack_rec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "src", type=Path, metavar="SRC", help="folder of identity folders, or the root of the list's paths"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the records")
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="list of images with labels: text or csv, im2rec's or insightface's; the form is found by "
        "looking at all lines, and printed",
    )
    parser.add_argument(
        "--columns",
        default="",
        metavar="WORDS",
        help="where a list leaves it open: a word for each column, such as path,-,label (name in place of "
        "label for labels that are text, - for what is left out)",
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="take paths of the list that lead out of SRC, or are links out of it",
    )
    parser.add_argument("--size", type=int, default=112, metavar="N", help="pixels per side (default: 112)")
    parser.add_argument("--encoding", choices=(".jpg", ".png"), default=".jpg", help="default: .jpg")
    parser.add_argument("--quality", type=int, default=95, metavar="N", help="JPEG quality, 1 to 100 (default: 95)")
    parser.add_argument("--copy", action="store_true", help="keep the bytes of images that already have the size")
    parser.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="mix the identities in the file, for disks that seek slowly (im2rec's form, see tools.shuffle_rec)",
    )
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, metavar="N", help=f"processes (default: {workers})")
    parser.add_argument("--overwrite", action="store_true", help="replace record files already in OUT")
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError or FileExistsError for what can be seen before any work."""
    for name, low, high in (("size", 1, 4096), ("quality", 1, 100), ("workers", 1, 1024), ("shuffle", 0, None)):
        value = getattr(args, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise ValueError(f"--{name} must be {allowed}, got {value}")
    if not args.src.is_dir():
        raise FileNotFoundError(f"{args.src}: no such folder")
    if args.columns and args.list is None:
        raise ValueError("--columns says what the columns of a list are: give it with --list")
    if args.list is None and args.out.resolve().is_relative_to(args.src.resolve()):
        raise ValueError(f"{args.out} lies in {args.src}, whose folders are identities: choose a folder outside")
    check_out(args.out, [], args.overwrite)


def _report(packed: Packed, out: Path, seconds: float) -> None:
    rate = f", {packed.images / seconds:,.0f} a second" if seconds >= _RATE_S else ""
    print(f"{out}: {packed.images:,} images of {len(packed.classes):,} identities in {seconds:.1f} s{rate}")
    for line in packed.fitted.lines():
        print(line)
    if packed.n_unreadable:
        where = out / "unreadable.txt"
        print(f"{packed.n_unreadable:,} files are unreadable and left out, all in {where}; the first:")
        print("\n".join(f"    {plain(line)}" for line in packed.unreadable))
    if packed.empty:
        more = f" and {len(packed.empty) - _SHOWN} more" if len(packed.empty) > _SHOWN else ""
        print(
            f"{len(packed.empty):,} identities have no readable image and no label: "
            f"{plain(', '.join(packed.empty[:_SHOWN]))}{more}"
        )
    print_config(config_lines(out, len(packed.classes), packed.images))


if __name__ == "__main__":
    sys.exit(main())
