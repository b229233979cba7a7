"""Find mistakes in the labels of a set of faces with a network that was trained on it.

    python -m tools.find_duplicates RUN [--test SET ...] [--out FOLDER]

RUN is the folder that train.py left. Its model.pt, or the network that --model names, embeds some images of each
class of the training set, and into RUN/duplicates (or FOLDER) go

    duplicates.csv, .png                pairs of classes that are probably one person, side by side in the picture
    class_map.json                      the same for class_map in a config, and for merge_rec --class-map
    classes_with_two_people.csv, .png   classes whose images fall into two groups, unlike as two people
    test_overlap.csv, .png              people of the test sets (--test) who are in the training set

Look at the pictures before you use the map: a network finds only those whom it can tell apart from others. One that
has trained long on a wrong label knows it by heart, and two people under that label are then one to it; a network
that was trained on other data does not.

How it decides. Two classes are one person from a certain cosine of the means of their images on. All pairs of classes
are compared, nearly all of them strangers; from the mean and spread of these cosines follows the one that --expected
pairs of strangers exceed by chance, if they are normally distributed. For test sets the limit is found in the same
way. No limit follows from under 1,000 pairs, or from fewer than 100 times --expected. A class is divided into the two
groups that are most unlike. It is two people if images of different groups are less alike than those of nine in ten
pairs of classes; or if the ratio of the cosines between and within groups is lower than chance gives to --expected
classes, judged by the median and upper quartile of all. --threshold and --apart set these limits by hand. The cosine
of the checkpoint's centres stands beside that of the images; centres that no step has updated say nothing and are
left out. So are damaged images of test sets; those of the training set are an error unless the run skips them.

A class_map.json that is there and says something else stays as it is, since it may have been corrected or be in use:
the new one is then class_map.new.json, and the exit status is 2. --overwrite replaces it.

Cost: --images images a class, embedded as they are and mirrored; then C * C / 2 * D multiplications for C classes, on
--device. --near-centres reads only classes whose centre is near another one or near somebody of a test set, and 1,000
at random: less on large sets, but it misses people whose labels training has pushed apart. Memory: blocks of images
and of cosines, but no embedding of a class stays there; on disk, 8 * D bytes a class in FOLDER while it runs.

Exit status: 0 done, 2 what was given cannot be used, or another map is in the way.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("find_duplicates")

import argparse
import math
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.faces import FaceRecords
from data.joined import JoinedSets
from embedder.load import load_embedder
from tools.parts.duplicate_output import MAP, Output
from tools.parts.duplicate_search import Centres, Found, Options, search
from tools.parts.nearest import LEAST_PAIRS
from tools.parts.run_faces import ClassImages, open_run_faces, write_unit_centres
from tools.parts.test_people import TestPeople, open_test
from training.checkpoint import find_checkpoint
from utils.device import choose_device
from utils.text import any_name_can_be_printed, complain, plain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        with any_name_can_be_printed():
            _find(args)
    except (ValueError, OSError) as error:
        complain("find_duplicates", error)
        return 2
    except KeyboardInterrupt:
        print("find_duplicates: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="find_duplicates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = Options()
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, with model.pt and config.json")
    parser.add_argument(
        "--test",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="test sets: .bin, folders of identity folders, records",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/duplicates")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="another network for the images, .pt or .onnx (default: RUN's)",
    )
    parser.add_argument("--rec", nargs="+", metavar="SET", help="where the run's training sets lie now, if moved")
    for name, kind, text in (
        ("images", int, "images of each class that are looked at"),
        ("neighbours", int, "most similar classes of each that are considered"),
        ("expected", float, "mistakes to expect from chance alone, in each table; higher finds more"),
        ("batch-size", int, "images of a forward pass"),
    ):
        default = getattr(known, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--threshold", type=float, metavar="COSINE", help="from which two classes are one person")
    parser.add_argument("--apart", type=float, metavar="RATIO", help="up to which a class is two people")
    parser.add_argument("--near-centres", action="store_true", help="read only classes whose centres are near others")
    parser.add_argument("--shown", type=int, default=50, metavar="N", help="rows of each picture (default: 50)")
    parser.add_argument("--overwrite", action="store_true", help="replace a class_map.json that says something else")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def _find(args: argparse.Namespace) -> None:
    _check(args)
    faces, sources = open_run_faces(args.run, args.rec)
    embedder = load_embedder(args.model or args.run, device=args.device)
    size = (embedder.image_size, embedder.image_size)
    if faces.image_size != size:
        raise ValueError(
            f"{args.model or args.run}: the network takes images of (height, width) {size}, but the run's faces are "
            f"{faces.image_size}: give a --model that takes these"
        )
    tests = [open_test(path, size, args.images) for path in args.test]
    out: Path = args.out or args.run / "duplicates"
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: --out takes the folder that the tables go to")
    options = Options(
        args.images,
        args.neighbours,
        args.expected,
        args.threshold,
        args.apart,
        args.near_centres,
        args.batch_size,
        choose_device(args.device),
    )
    with _scratch(out) as scratch:
        centres = _centres(args.run, faces, Path(scratch), options)
        found = search(faces, embedder, centres, tests, options, Path(scratch))
        output = Output(out, faces, args.shown, options.images)
        groups = output.pairs(found)
        output.doubles(found)
        output.overlaps(found, tests)
        people = output.map(groups, args.overwrite)
        _print(people, faces, centres, found, groups, tests, options.images)
    if people.name != MAP:
        raise FileExistsError(
            f"{out / MAP} is another map, which stays; {people.name} beside it has what was found now, as the tables "
            "do: take over what you want, or search again with --overwrite or another --out"
        )
    if groups:
        are_records = all(isinstance(one, FaceRecords) for one in faces.sets)
        num_classes = faces.num_classes - sum(len(group) - 1 for group in groups)
        _print_use(people, sources if are_records else [], num_classes)


def _scratch(out: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".find_duplicates_", dir=out)
    except OSError as problem:
        raise OSError(f"{out}: cannot write there ({problem.strerror}): give another folder with --out") from None


def _check(args: argparse.Namespace) -> None:
    for name, least in (("images", 1), ("neighbours", 1), ("batch_size", 1), ("shown", 0)):
        if (value := getattr(args, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not args.expected > 0:
        raise ValueError(f"--expected must be above 0, got {args.expected:g}")
    for name in ("threshold", "apart"):
        if (value := getattr(args, name)) is not None and not -1 <= value <= 1:
            raise ValueError(f"--{name} must be in [-1, 1], got {value:g}")
    if args.model is not None and args.near_centres:
        raise ValueError("--near-centres needs the network that the centres were trained with: leave --model out")
    if not args.run.is_dir():
        raise FileNotFoundError(f"{args.run}: no such folder; expected one that a run of train.py has left")


def _centres(run: Path, faces: JoinedSets, scratch: Path, options: Options) -> Centres | None:
    """The checkpoint's centres; None if there is none and none is needed."""
    try:
        checkpoint = find_checkpoint(run)
    except FileNotFoundError as error:
        if options.near_centres:
            raise FileNotFoundError(f"{error}. Without --near-centres none is needed") from None
        return None
    return Centres(*write_unit_centres(checkpoint, scratch / "centres.npy", ClassImages(faces).counts > 0))


def _print(
    people: Path,
    faces: JoinedSets,
    centres: Centres | None,
    found: Found,
    groups: Sequence[Sequence[int]],
    tests: Sequence[TestPeople],
    images: int,
) -> None:
    print(
        f"looked at {found.embedded_images:,} images of {found.embedded_classes:,} of {faces.num_classes:,} classes, "
        f"at most {images:,} of each (--images)"
    )
    for note in [one.note for one in faces.sets] + [test.note for test in tests]:
        if note:
            print(plain(note))
    if centres is None:
        print("no checkpoint: centres are not compared")
    elif centres.untouched:
        print(f"{centres.untouched:,} centres were never updated and are left out")
    if found.damaged:
        print(f"{len(found.damaged):,} damaged images are left out, the first: {plain(found.damaged[0])}")
    largest = f", the largest of {len(groups[0])} classes" if groups else ""
    if found.threshold > 1:
        print(f"one person under several labels: {_no_limit(found.threshold, found.compared)}")
    else:
        print(
            f"one person under several labels: {len(found.pairs):,} pairs of classes with a cosine of at least "
            f"{found.threshold:.3f}; {len(groups):,} people in {people.name}{largest}"
        )
    limits = f"ratio up to {found.ratio_limit:.3f} or cosine between groups up to {found.between_limit:.3f}"
    if found.ratio_limit == -math.inf:
        limits = "too few for a limit: give --apart"
    doubles = f"{len(found.doubles):,} of {found.divisible:,} classes with enough images"
    print(f"two people under one label: {doubles}; {limits}")
    for t, (test, look) in enumerate(zip(tests, found.tests, strict=True)):
        seen = {overlap.person for overlap in found.overlaps if overlap.test == t}
        if found.test_threshold > 1:
            print(f"{test.name}: {_no_limit(found.test_threshold, found.test_compared)}")
        else:
            print(
                f"{test.name}: {len(seen):,} of {look.people:,} people are in the training set, with a cosine of at "
                f"least {found.test_threshold:.3f}"
            )
        if look.damaged:
            lost = len(test.people) - look.people
            print(
                f"    {len(look.damaged):,} damaged images are left out, and {lost:,} people who have no others; the "
                f"first: {plain(look.damaged[0])}"
            )
    print(f"written: {people.parent}")


def _no_limit(limit: float, compared: int) -> str:
    """Why nothing can be said where the limit is above any cosine."""
    if limit < math.inf:
        return (
            f"cannot tell, because the limit would be {limit:.3f} and a cosine is at most 1: this network makes too "
            "many strangers alike. Train longer, raise --expected, or give another --model"
        )
    if compared < LEAST_PAIRS:
        return "too few classes for a limit: give --threshold"
    return f"too few classes for a limit at this --expected ({compared:,} pairs): lower it, or give --threshold"


def _print_use(people: Path, sources: Sequence[str], num_classes: int) -> None:
    sheet = people.with_name("duplicates.png")
    ways = "use it either way" if sources else "train on it"
    print(f"\nLook at {sheet}, take what is wrong out of {people}, then {ways}:\n")
    print(f"    config.class_map = {str(people.resolve())!r}    # and config.num_classes = {num_classes}")
    if sources:
        command = ["python", "-m", "tools.merge_rec", *sources, "OUT", "--class-map", str(people)]
        print(f"    {plain(shlex.join(command))}")


if __name__ == "__main__":
    sys.exit(main())
