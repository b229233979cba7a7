"""Embed one face, compare two, or embed many: ``python inference.py --model work_dirs/run/model.pt FACE [FACE ...]``.

Many are images, folders (with those within) and lists (.txt, a path a line): ``--out`` names their .npz or .csv.

The network's input is an aligned face: RGB, 112 x 112, ``(x / 255 - 0.5) / 0.5``. A photo is aligned by five
landmarks (left eye, right eye, nose, left and right corner of the mouth, x and y in pixels; left as the viewer sees
it), or with ``--detector`` by those that OpenCV finds. A square image without either counts as aligned.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("inference.py")

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.detector import open_detector
from embedder.embedder import Embedder, describe_input
from embedder.gallery import cosine, person_of, read_embeddings, result_lines
from embedder.load import load_embedder
from embedder.many import Embeddings, find_images, write_embeddings, write_few
from embedder.origin import Origin, origin_of
from embedder.photos import LANDMARKS, embed_faces, embed_photos, load_face, read_landmarks
from embedder.threshold import Threshold
from utils.text import any_name_can_be_printed, complain, plain


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; on a wrong one, print what is wrong and exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="inference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", metavar="FACE", help="one image, two to compare, or many")
    parser.add_argument("--img", help=argparse.SUPPRESS)  # with --weight, as other projects call them
    parser.add_argument(
        "--model", "--weight", required=True, help="model.pt, the run's folder that holds it, or an .onnx file"
    )
    parser.add_argument(
        "--network", help="its name (default: from config.json next to model.pt, else from the weights)"
    )
    parser.add_argument(
        "--landmarks",
        action="append",
        default=[],
        help=f"{LANDMARKS}; once for each image, in the same order; if it begins with a minus: --landmarks=-3.5,...",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="add the mirror image's embedding, as evaluation does (default: as --threshold or --gallery was made)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write the embeddings there: .npz or .csv with the images' names, any number of them; of one or two "
        "also .npy (images, D) float32, or .json with everything",
    )
    parser.add_argument(
        "--threshold",
        type=Path,
        metavar="FILE.json",
        help="say whether two images, or an image and what --gallery finds, show one person: a file of eval.pairs",
    )
    parser.add_argument(
        "--bgr", action="store_true", help="feed the network blue first (default: RGB, or what the .onnx file says)"
    )
    parser.add_argument(
        "--detector", type=Path, metavar="YUNET.onnx", help="align photos by the main face that OpenCV finds with it"
    )
    parser.add_argument(
        "--gallery",
        type=Path,
        metavar="FOLDER_or_NPZ",
        help="search each image in it; folders name people",
    )
    parser.add_argument("--top", type=int, default=5, help="with --gallery: how many to name (default 5)")
    parser.add_argument("--batch-size", type=int, default=64, help="of many: images per forward pass (default 64)")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="of many: threads that read and align; 0: none",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    options = parser.parse_args(argv)
    options.images += [options.img] if options.img else []
    if not options.images:
        parser.error("expected an image, a folder or a list")
    return options


def is_many(options: argparse.Namespace) -> bool:
    """Whether what was given is a job for one file of names and embeddings."""
    given = [Path(text) for text in options.images]
    is_job = options.gallery is not None or (options.out is not None and options.out.suffix in (".npz", ".csv"))
    return is_job or len(given) > 2 or any(path.is_dir() or path.suffix.lower() == ".txt" for path in given)


def check_many(options: argparse.Namespace) -> None:
    """Raise ValueError for options that do not fit many images, or a search."""
    is_search = options.gallery is not None
    is_written = options.out is not None
    if (is_written or not is_search) and not (is_written and options.out.suffix in (".npz", ".csv")):
        raise ValueError(f"many images are embedded into a file: --out must end in .npz or .csv, got {options.out}")
    if options.landmarks:
        raise ValueError("--landmarks are for one image or two; --detector aligns many, and those of a search")
    if options.threshold is not None and not is_search:
        raise ValueError("--threshold is for two images or, with --gallery, for each face that is found")
    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")


def load_for(options: argparse.Namespace, made: Mapping[Path, Origin]) -> tuple[Embedder, bool]:
    """Load the network, and choose ``--flip`` as the files were made with whose content it is compared.

    Raises:
        ValueError: this network gives others than what the files were made from, or see :func:`load_embedder`.
    """
    flipped = "" if options.flip else next((str(path) for path, origin in made.items() if origin.flip), "")
    if flipped:
        print(plain(f"with --flip, as {flipped} was made"), file=sys.stderr)
    flip = options.flip or bool(flipped)
    embedder = load_embedder(options.model, options.network, options.device, bgr=options.bgr)
    for path, origin in made.items():
        origin.check(path, embedder, flip)
    return embedder, flip


def run_many(options: argparse.Namespace) -> None:
    """Embed any number of images into one file, or search each; ValueError and OSError for what the user can fix."""
    check_many(options)
    images = find_images(options.images)
    threshold, known = None, None
    made: dict[Path, Origin] = {}
    if options.threshold is not None:
        threshold = Threshold.read(options.threshold)
        made[options.threshold] = threshold.origin
    if options.gallery is not None and not options.gallery.is_dir():
        known, made[options.gallery] = read_embeddings(options.gallery)
    embedder, flip = load_for(options, made)
    detector = open_detector(options.detector) if options.detector is not None else None

    def embed(given: Sequence[str], paths: Sequence[Path]) -> Embeddings:
        found = embed_photos(embedder, paths, detector, options.batch_size, options.num_workers, flip)
        roots = [Path(text) for text in given if Path(text).is_dir()]
        found.people = [person_of(name, roots) for name in found.names]
        return found

    found = embed(options.images, images)
    print(plain(f"{found.summary()}; input {describe_input(embedder)}"), file=sys.stderr)
    if options.out is not None:
        write_embeddings(options.out, found, str(options.model), origin_of(embedder, flip))
    if options.gallery is None:
        return
    if known is None:
        known = embed([str(options.gallery)], find_images([str(options.gallery)]))
        print(plain(f"gallery: {known.summary()}"), file=sys.stderr)
    if threshold is not None:
        print(threshold.in_gallery(len(known.names)), file=sys.stderr)
    for line in result_lines(found, known, options.top, None if threshold is None else threshold.threshold):
        print(line)


def check_few(options: argparse.Namespace) -> None:
    """Raise ValueError for options that do not fit one image or two."""
    n = len(options.images)
    if options.landmarks and len(options.landmarks) != n:
        raise ValueError(f"--landmarks is needed once for each of {n} images, found {len(options.landmarks)}")
    if options.out is not None and options.out.suffix not in (".npy", ".json"):
        raise ValueError(f"--out must end in .npz, .csv, .npy or .json, got {options.out}")
    if options.landmarks and options.detector is not None:
        raise ValueError("landmarks come from --landmarks or from --detector: give one of the two")
    if options.threshold is not None and n != 2:
        raise ValueError(f"--threshold says whether two images show one person, or needs --gallery; found {n} image")


def run_few(options: argparse.Namespace) -> None:
    """Embed one image, or compare two; raises ValueError and OSError for what the user can fix."""
    check_few(options)
    n = len(options.images)
    threshold = Threshold.read(options.threshold) if options.threshold is not None else None
    landmarks: list[NDArray[np.float64] | None] = [read_landmarks(given) for given in options.landmarks]
    landmarks += [None] * (n - len(landmarks))
    embedder, flip = load_for(options, {options.threshold: threshold.origin} if threshold is not None else {})
    detector = open_detector(options.detector) if options.detector is not None else None
    faces = [
        load_face(Path(path), points, embedder.image_size, detector)
        for path, points in zip(options.images, landmarks, strict=True)
    ]
    for face in faces:
        print(f"{'warning: ' if face.doubtful else ''}{face.path}: {face.how}", file=sys.stderr)
    embeddings_BD = embed_faces(embedder, faces, flip)
    contract = describe_input(embedder)
    what = f"network {embedder.name}, {embedder.embedding_size} numbers; input {contract}"
    print(f"{options.model}: {what}", file=sys.stderr)
    similarity = cosine(embeddings_BD[0], embeddings_BD[1]) if n == 2 else None
    if options.out is not None:
        report: dict[str, Any] = {
            "model": str(options.model),
            "sha256": embedder.sha256,
            "network": embedder.name,
            "input": contract,
            "flip": flip,
            "images": [
                {"path": str(face.path), "how": face.how, "embedding": row.tolist()}
                for face, row in zip(faces, embeddings_BD, strict=True)
            ],
            "cosine": similarity,
        }
        if threshold is not None and similarity is not None:
            report |= {"threshold": threshold.threshold, "same_person": similarity >= threshold.threshold}
        write_few(options.out, embeddings_BD, report)
    elif n == 1:
        print(json.dumps([float(f"{value:.6g}") for value in embeddings_BD[0]]))
    if similarity is not None:
        print(f"cosine {similarity:.4f}")
        if threshold is not None:
            print(threshold.verdict(similarity))


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    options = parse_arguments(argv)
    try:
        if is_many(options):
            run_many(options)
        else:
            run_few(options)
    except (ValueError, OSError) as error:
        complain("inference.py", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
