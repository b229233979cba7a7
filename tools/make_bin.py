"""Make a verification set in insightface's .bin form.

    python -m tools.make_bin pairs.txt OUT.bin --root FACES     a list of pairs in any form, see docs/prepare_data.md
    python -m tools.make_bin FACES OUT.bin --pairs 6000         drawn from a folder of identity folders
    python -m tools.make_bin SET OUT.bin --pairs 6000           drawn from a .rec file or a folder with train.rec
    python -m tools.make_bin lfw OUT.bin                        a folder of bcolz, with lfw_list.npy beside it

Half of the drawn pairs, or as many as --impostors says, are of two people; both kinds are evenly mixed, none comes
twice, and none pairs two images with identical bytes. An image that already has the size is copied as it is.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("make_bin")

import argparse
import hashlib
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.records.images import find_images, read_labels
from data.records.reader import RecordReader
from eval.pairs.bcolz_folder import is_bcolz, load_bcolz
from eval.pairs.sets import load_list
from tools.parts.pack_sources import FolderFiles
from tools.parts.pair_sampling import Pair, sample_pairs
from tools.parts.record_output import pair_config_lines, print_config
from utils.atomic import open_atomic
from utils.decode import Fitted, fit_face
from utils.text import any_name_can_be_printed, complain, plain


@dataclass(frozen=True)
class EncodedPairs:
    """2n encoded images, and whether images 2i and 2i + 1 show one person."""

    images: list[bytes]
    issame: list[bool]


class _Images(Protocol):
    """Encoded images with labels."""

    labels: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        """The encoded image."""


class _FolderImages:
    def __init__(self, root: Path) -> None:
        folders = FolderFiles(root)
        files = list(folders)
        for line in folders.notes.lines():
            print(plain(line))
        self.paths = np.array([os.fsencode(path) for of_identity in files for path in of_identity])
        self.labels = np.repeat(np.arange(len(files)), [len(of_identity) for of_identity in files])

    def read(self, index: int) -> bytes:
        return Path(os.fsdecode(bytes(self.paths[index]))).read_bytes()


class _RecordImages:
    def __init__(self, rec_path: Path) -> None:
        self.reader = RecordReader(rec_path)
        span = find_images(self.reader)
        self.start = span.start
        self.labels = read_labels(self.reader, span, lambda note: print(plain(note)))

    def read(self, index: int) -> bytes:
        return bytes(self.reader.read_face(self.start + index)[1])


def drawn(source: Path, pairs: int, seed: int, impostors: int | None = None) -> EncodedPairs:
    """Draw pairs from a folder of identities or records; raises as :func:`sample_pairs` and the readers."""
    is_records = source.suffix == ".rec" or (source / "train.rec").exists()
    images: _Images
    if is_records:
        images = _RecordImages(source / "train.rec" if source.is_dir() else source)
    else:
        images = _FolderImages(source)

    def digest(index: int) -> bytes:
        return hashlib.blake2b(images.read(index), digest_size=16).digest()

    found: list[Pair] = sample_pairs(images.labels, pairs, seed, digest, impostors)
    return EncodedPairs([images.read(index) for a, b, _ in found for index in (a, b)], [same for _, _, same in found])


def write_bin(path: Path, pairs: EncodedPairs, size: int, quality: int) -> Fitted:
    """Write a pickle of (images, issame), each image ``size`` x ``size``.

    Args:
        path: complete or absent.
        pairs: with at least one pair.
        size: in pixels.
        quality: of the JPEGs of images that are resized.

    Returns:
        What was done to how many different images.

    Raises:
        ValueError: an image does not decode; names its place.
        OSError: the file cannot be written.
    """
    fitted: dict[bytes, bytes] = {}  # an image that is in several pairs is one object, and is in the file once
    images, done = [], Fitted()
    for i, encoded in enumerate(pairs.images):
        if encoded not in fitted:
            try:
                face = fit_face(encoded, size, ".jpg", quality)
            except ValueError as error:
                raise ValueError(f"image {i % 2 + 1} of pair {i // 2 + 1}: {error}; leave the pair out") from None
            fitted[encoded] = face.encoded
            done.see(face)
        images.append(fitted[encoded])
    with open_atomic(path) as file:
        pickle.dump((images, pairs.issame), file, protocol=4)
    return done


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status, 2 for pairs that cannot be made."""
    args = _parse(argv)
    try:
        pairs = _pairs(args)
        done = write_bin(args.out, pairs, args.size, args.quality)
    except (ValueError, OSError) as error:
        complain("make_bin", error)
        return 2
    same = sum(pairs.issame)
    print(f"{args.out}: {len(pairs.issame):,} pairs, {same:,} genuine and {len(pairs.issame) - same:,} impostor")
    for line in done.lines():
        print(line)
    if same in (0, len(pairs.issame)):
        print("all pairs are of one kind: no accuracy can be had from them")
    print_config(pair_config_lines(args.out))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="make_bin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="list of pairs, folder of identities or of bcolz, or records"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the .bin file")
    parser.add_argument(
        "--root", type=Path, metavar="FACES", help="folder that a list's paths start at (default: the list's)"
    )
    parser.add_argument("--pairs", type=int, metavar="N", help="how many pairs to draw")
    parser.add_argument(
        "--impostors", type=int, metavar="N", help="how many of these are of two people (default: half)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draw (default: 0)")
    parser.add_argument("--size", type=int, default=112, metavar="N", help="pixels per side (default: 112)")
    parser.add_argument(
        "--quality", type=int, default=95, metavar="N", help="JPEG quality of resized images (default: 95)"
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="read images outside --root, or the list's folder, if a list says so",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parser.parse_args(argv)


def _pairs(args: argparse.Namespace) -> EncodedPairs:
    for name, low, high in (("pairs", 2, 10**7), ("seed", 0, 2**63), ("size", 1, 4096), ("quality", 1, 100)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name} must be {low} to {high}, got {value}")
    if args.out.suffix != ".bin":
        raise ValueError(f"{args.out}: verification sets are found by their ending .bin: name it so")
    if not args.out.parent.is_dir():
        raise FileNotFoundError(f"{args.out.parent}: no such folder for {args.out.name}: make it first")
    if args.out.exists() and not args.overwrite:
        raise FileExistsError(f"{args.out} exists already: choose another name, or --overwrite")
    if not args.source.exists():
        raise FileNotFoundError(f"{args.source}: no such file or folder")
    if args.impostors is not None and args.pairs is None:
        raise ValueError("--impostors says how many of --pairs are of two people: give --pairs N, too")
    if args.impostors is not None and not 0 <= args.impostors <= args.pairs:
        raise ValueError(f"--impostors must be 0 to {args.pairs}, of --pairs {args.pairs}, got {args.impostors}")
    is_list = args.source.is_file() and args.source.suffix != ".rec"
    if (is_list or is_bcolz(args.source)) and args.pairs is not None:
        raise ValueError(f"--pairs draws from a folder or records, but {args.source} has its pairs: leave it out")
    if args.root is not None and not is_list:
        raise ValueError("--root belongs to a list of pairs only: the folder that its paths start at")
    if is_list or is_bcolz(args.source):
        listed = load_list(args.source, args.allow_outside, args.root) if is_list else load_bcolz(args.source)
        print(plain(listed.form))
        return EncodedPairs(listed.encoded, listed.issame.tolist())
    if args.pairs is None:
        raise ValueError("--pairs N is missing: how many pairs to draw")
    return drawn(args.source, args.pairs, args.seed, args.impostors)


if __name__ == "__main__":
    sys.exit(main())
