"""Align photographs of people: a face of 112 x 112 pixels of each, ready to train on.

    python -m tools.align_faces PHOTOS OUT --detector face_detection_yunet_2023mar.onnx
    python -m tools.align_faces PHOTOS OUT --landmarks found.csv

PHOTOS is a folder with a folder for each person, images at any depth below; or a folder of images, whoever they
show. The folder OUT gets the same tree of aligned faces under the same names. What has no usable face is left out,
counted, and listed in OUT/left_out.csv. A run that was stopped goes on where it was if it is started again. PHOTOS
is never written to.

The face that is taken is the main one: of those at least half as large as the largest (area times the detector's
score), the one nearest the middle of the photo. Bring the detector's file yourself, from OpenCV's model zoo
(opencv_zoo); nothing is fetched. With --landmarks, another detector's, a line is path,x1,y1,...,x5,y5: left eye,
right eye, nose, left and right corner of the mouth as the viewer sees them, in pixels of the upright photo; a photo
with several faces has several lines.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("align_faces")

import argparse
import functools
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedder.detector import open_detector
from tools.parts.aligned_folder import AlignedFolder
from tools.parts.landmark_table import LandmarkTable
from tools.parts.ordered_map import ordered_map
from tools.parts.photo_faces import Outcome, Photo, Rules, align_photo, use_detector
from utils.bars import open_bar
from utils.folders import IMAGE_SUFFIXES, FolderNotes, image_names
from utils.text import any_name_can_be_printed, complain, plain

_SHOWN = 10  # people that are named
_NOT_LISTED = Outcome(reason="no line in the file of landmarks")


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 2 for what the user can mend."""
    args = _parse(argv)
    start_s = time.perf_counter()
    try:
        _check(args)
        notes = FolderNotes(args.photos)
        names = image_names(args.photos, notes)
        if not names:
            raise ValueError(f"{args.photos}: no photograph in it ({', '.join(IMAGE_SUFFIXES)})")
        table = LandmarkTable(args.landmarks, args.photos) if args.landmarks is not None else None
        if table is not None and (note := table.check_names(names)):
            print(plain(note), flush=True)
        rules = Rules(args.min_eyes, args.skip_several, f".{args.format}")
        source = args.landmarks if table is not None else args.detector
        folder = AlignedFolder(args.out, args.photos, names, rules, source)
        _align(folder, rules, table, args)
        folder.write_left_out()
        _report(folder, notes, time.perf_counter() - start_s)
    except (ValueError, OSError) as error:
        complain("align_faces", error)
        return 2
    except KeyboardInterrupt:
        print("align_faces: interrupted; the same line again goes on from there", file=sys.stderr)
        return 130
    return 0


def _align(folder: AlignedFolder, rules: Rules, table: LandmarkTable | None, args: argparse.Namespace) -> None:
    """Align what is not there yet."""
    todo = folder.missing()
    listed = [name for name in todo if table is None or name in table]
    work = functools.partial(align_photo, rules=rules)
    workers = max(1, min(args.workers, len(listed)))
    photos, setup = _photos(listed, table, args.photos), functools.partial(use_detector, args.detector)
    outcomes = ordered_map(work, photos, workers, setup)
    total = len(folder.names)
    with open_bar(total, "photograph", "aligned", done=total - len(todo)) as bar:
        for name in todo:
            folder.put(name, next(outcomes) if table is None or name in table else _NOT_LISTED)
            bar.update()


def _photos(names: Sequence[bytes], table: LandmarkTable | None, root: Path) -> Iterator[Photo]:
    for name in names:
        yield Photo(str(root / os.fsdecode(name)), None if table is None else table.faces(name))


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError or OSError for what can be seen before any work."""
    if args.workers < 1 or args.workers > 1024:
        raise ValueError(f"--workers must be 1 to 1024, got {args.workers}")
    if not args.min_eyes >= 0:
        raise ValueError(f"--min-eyes must be 0 or more pixels, got {args.min_eyes}")
    if not args.photos.is_dir():
        raise FileNotFoundError(f"{args.photos}: no such folder; expected <person>/<photograph> in it")
    if args.out.exists() and not args.out.is_dir():
        raise FileExistsError(f"{args.out} is a file: give the folder that the faces go to")
    photos, out = args.photos.resolve(), args.out.resolve()
    if out.is_relative_to(photos) or photos.is_relative_to(out):
        raise ValueError(f"{args.out} and {args.photos} lie one in the other: choose a folder beside the photographs")
    if args.detector is not None:
        open_detector(args.detector)


def _report(folder: AlignedFolder, notes: FolderNotes, seconds: float) -> None:
    people = f" of {len(folder.people_kept):,} people" if folder.people else ""
    before = f", {folder.before:,} of them from before" if folder.before else ""
    pace = f"; {folder.tried:,} photographs in {seconds:.1f} s" if folder.tried else ""
    print(f"{plain(str(folder.out))}: {folder.kept:,} faces{people}{before}{pace}")
    if folder.several:
        print(f"{folder.several:,} photographs show several faces: the main one was taken (or --skip-several)")
    if folder.doubtful:
        print(f"{folder.doubtful:,} faces are seen from the side, or their landmarks are poor: look at them")
    for line in folder.left_out_lines():
        print(plain(line))
    if lost := folder.people_lost():
        more = f" and {len(lost) - _SHOWN:,} more" if len(lost) > _SHOWN else ""
        print(f"{len(lost):,} people have no face left: {plain(', '.join(lost[:_SHOWN]))}{more}")
    if folder.people and folder.loose:
        print(f"{folder.loose:,} photographs lie in no person's folder: their faces too, which training leaves out")
    for line in filter(None, (notes.note(), notes.left_out_text() if notes.left_out else "")):
        print(plain(line))
    out = shlex.quote(str(folder.out))
    if folder.people:
        print(f"\nNext:\n\n    python -m tools.check_data {out}")
    else:
        print(f"\nNext:\n\n    python inference.py --model work_dirs/NAME {out} --out faces.npz")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="align_faces", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of people's folders, or of photographs")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the faces, outside PHOTOS")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--detector", type=Path, metavar="YUNET.onnx", help="find faces with OpenCV's FaceDetectorYN")
    source.add_argument(
        "--landmarks", type=Path, metavar="FILE.csv", help="take the faces that another detector found"
    )
    parser.add_argument(
        "--min-eyes",
        type=float,
        default=20.0,
        metavar="N",
        help="leave out smaller faces: pixels between the eyes, as seen from the front (default: 20)",
    )
    parser.add_argument(
        "--skip-several", action="store_true", help="leave out photographs with several faces of that size"
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg"),
        default="png",
        help="png (default) loses nothing; jpg, of quality 95, is smaller",
    )
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, metavar="N", help=f"processes (default: {workers})")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
