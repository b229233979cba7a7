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
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.align import align_face
from embedder.detector import Detector, open_detector
from embedder.embedder import Embedder, embed_with_mirrored
from embedder.gallery import nearest, person_of, read_embeddings
from embedder.landmarks import check_face
from embedder.load import load_embedder
from embedder.many import Embeddings, embed_many, find_images, write_embeddings
from embedder.threshold import Threshold
from utils.atomic import open_atomic, write_json
from utils.decode import decode_rgb, resize_square
from utils.text import any_name_can_be_printed, complain, plain

LANDMARKS = "ten numbers x1,y1,...,x5,y5, or a file of them (.json: also [[x, y], ...])"


@dataclass(frozen=True)
class Face:
    """An aligned face, and how it came to be one."""

    path: Path
    image: NDArray[np.uint8]  # (H, W, 3) RGB, H = W the network's
    how: str
    doubtful: bool  # the way is not a good one


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
    parser.add_argument("--flip", action="store_true", help="add the mirror image's embedding, as evaluation does")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the embeddings there: .npz or .csv with the images' names, any number of them; of one or two "
        "also .npy (images, D) float32, or .json with everything",
    )
    parser.add_argument(
        "--threshold", type=Path, metavar="FILE.json", help="say of two whether they are one person, by what it says"
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
        "--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="of many: threads that read and align"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    options = parser.parse_args(argv)
    options.images += [options.img] if options.img else []
    if not options.images:
        parser.error("expected an image, a folder or a list")
    return options


def read_landmarks(given: str) -> NDArray[np.float64]:
    """Read the landmarks of one face from the command line, or from the file that it names.

    Returns:
        (5, 2) x, y in pixels.

    Raises:
        ValueError: not ten numbers.
        OSError: the file cannot be read.
    """
    text, source = given, "--landmarks"
    if re.search(r"[^\d\s.,;eE+-]", given):  # letters: a file's name
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"--landmarks {given}: expected {LANDMARKS}; there is no such file")
        text, source = path.read_text(encoding="utf-8", errors="replace"), given
    try:
        numbers = [float(word) for word in re.split(r"[\s,;\[\]]+", text) if word]
    except ValueError as error:
        raise ValueError(f"{source}: expected {LANDMARKS}; {str(error)[:80]}") from None
    if len(numbers) != 10:
        raise ValueError(f"{source}: expected {LANDMARKS}, found {len(numbers)} numbers")
    return np.array(numbers).reshape(5, 2)


def load_face(
    path: Path, landmarks: NDArray[np.float64] | None, image_size: int = 112, detector: Detector | None = None
) -> Face:
    """Read an image and align it, or take it as aligned.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image, landmarks that cannot be used, or a photo that needs landmarks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no image {path}")
    try:
        photo = decode_rgb(path.read_bytes())
        if detector is not None:
            landmarks = detector.detect(photo).main_landmarks()
        if landmarks is not None:
            warning = check_face(landmarks, photo.shape[1], photo.shape[0])
            how = f"aligned by its landmarks{'; ' if warning else ''}{warning}"
            return Face(path, align_face(photo, landmarks, image_size), how, doubtful=bool(warning))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    height, width = photo.shape[:2]
    if height == width == image_size:
        return Face(path, photo, "taken as aligned", doubtful=False)
    if height != width:
        raise ValueError(
            f"{path}: {width} x {height} is no aligned face; give its five landmarks with --landmarks, or align it "
            f"to {image_size} x {image_size} first"
        )
    how = f"resized from {width} x {height}, taken as aligned"
    return Face(path, resize_square(photo, image_size), how, doubtful=True)


def embed_faces(embedder: Embedder, faces: Sequence[Face], flip: bool = False) -> NDArray[np.float32]:
    """Embed faces, with ``flip`` as the sum with their mirror images: (faces, D), not normalised.

    Raises:
        ValueError: the network gives nan or infinity.
    """
    images_BHW3 = np.stack([face.image for face in faces])
    embeddings_BD = embed_with_mirrored(embedder.embed, images_BHW3) if flip else embedder.embed(images_BHW3)
    if not np.isfinite(embeddings_BD).all():
        raise ValueError("the embedding holds nan or infinity: the weights are broken, or training had diverged")
    return embeddings_BD


def cosine(first_D: NDArray[np.float32], second_D: NDArray[np.float32]) -> float:
    """The cosine of two embeddings, nan where one is zero."""
    lengths = np.linalg.norm(first_D.astype(np.float64)) * np.linalg.norm(second_D.astype(np.float64))
    return float(first_D.astype(np.float64) @ second_D / lengths) if lengths > 0 else float("nan")


def write_out(path: Path, embeddings_BD: NDArray[np.float32], report: dict[str, Any]) -> None:
    """Write the embeddings as .npy, or them and the report as .json; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, report)
    else:
        with open_atomic(path) as file:
            np.save(file, embeddings_BD)


def describe_input(embedder: Embedder) -> str:
    """What the network takes, in words."""
    mean, std = getattr(embedder, "mean", 127.5), getattr(embedder, "std", 127.5)  # an ONNX file may have its own
    scaling = "(x / 255 - 0.5) / 0.5" if mean == std == 127.5 else f"(x - {mean:g}) / {std:g}"
    return f"{embedder.color_order}, {embedder.image_size} x {embedder.image_size}, {scaling}"


def is_many(options: argparse.Namespace) -> bool:
    """Whether what was given is a job for one file of names and embeddings."""
    given = [Path(text) for text in options.images]
    is_job = options.gallery is not None or (options.out is not None and options.out.suffix in (".npz", ".csv"))
    return is_job or len(given) > 2 or any(path.is_dir() or path.suffix.lower() == ".txt" for path in given)


def run_many(options: argparse.Namespace) -> None:
    """Embed any number of images into one file; raises ValueError and OSError for what the user can fix."""
    if options.gallery is None and (options.out is None or options.out.suffix not in (".npz", ".csv")):
        raise ValueError(f"many images are embedded into a file: --out must end in .npz or .csv, got {options.out}")
    if options.landmarks or options.threshold is not None:
        raise ValueError("--landmarks and --threshold are for one image or two; --detector aligns many")
    if options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    images = find_images(options.images)
    detector = open_detector(options.detector) if options.detector is not None else None
    embedder = load_embedder(options.model, options.network, options.device, bgr=options.bgr)
    found = embed_images(images, embedder, detector, options)
    print(plain(f"{found.summary()}; input {describe_input(embedder)}"), file=sys.stderr)
    if options.out is not None:
        write_embeddings(options.out, found, str(options.model), embedder.sha256, options.flip)
    if options.gallery is not None:
        search(found, embedder, detector, options)


def embed_images(
    images: Sequence[Path], embedder: Embedder, detector: Detector | None, options: argparse.Namespace
) -> Embeddings:
    """Embed files as the options say, and warn of those that were only resized."""
    resized: set[Path] = set()
    size = embedder.image_size

    def load(path: Path) -> NDArray[np.uint8]:
        face = load_face(path, None, size, detector)
        if face.doubtful and detector is None:
            resized.add(path)
        return face.image

    found = embed_many(embedder, images, load, options.batch_size, options.num_workers, options.flip)
    if resized:
        print(f"warning: {len(resized):,} images were resized to {size} x {size}, taken as aligned", file=sys.stderr)
    return found


def search(queries: Embeddings, embedder: Embedder, detector: Detector | None, options: argparse.Namespace) -> None:
    """Print, for each query, the nearest of the gallery: query, rank, person, image, cosine, tabs between."""
    if options.gallery.is_dir():
        known = embed_images(find_images([str(options.gallery)]), embedder, detector, options)
        print(plain(f"gallery: {known.summary()}"), file=sys.stderr)
    else:
        known = read_embeddings(options.gallery, embedder.sha256, options.flip)
    places, cosines = nearest(queries.values_ND, known.values_ND, options.top)
    for query, row, scores in zip(queries.names, places, cosines, strict=True):
        for rank, (place, score) in enumerate(zip(row, scores, strict=True), 1):
            name = known.names[place]
            print("\t".join([plain(query), str(rank), plain(person_of(name)), plain(name), f"{score:.4f}"]))


def verdict(similarity: float, threshold: Threshold) -> str:
    """Whether two faces are one person's, and how often two people reach this cosine."""
    same = "same person" if similarity >= threshold.threshold else "different people"
    low, high = threshold.false_match_rate_interval
    text = (
        f"{same}: the threshold is {threshold.threshold:.4f}, where {threshold.false_match_rate:.3g} of "
        f"{threshold.impostor_pairs:,} impostor pairs match ({low:.3g} to {high:.3g})"
    )
    rate = threshold.false_match_rate_at(similarity)
    if rate == 0:
        return f"{text}; none reaches the last measured cosine below this one"
    return text if rate is None else f"{text}; at this cosine at most {rate:.3g} of them do"


def check_threshold(threshold: Threshold, embedder: Embedder, flip: bool) -> None:
    """Raise ValueError where a threshold was measured on other cosines than these."""
    if threshold.flip != flip:
        raise ValueError(
            f"the threshold was measured {'with' if threshold.flip else 'without'} --flip; give it the same"
        )
    if re.fullmatch("[0-9a-f]{64}", threshold.model) and threshold.model != embedder.sha256:
        raise ValueError(
            f"the threshold was measured with the model of sha256 {threshold.model[:12]}..., this one's is "
            f"{embedder.sha256[:12]}...: measure it again with this model"
        )


def run(options: argparse.Namespace) -> None:
    """Embed, print, write; raises ValueError and OSError for what the user can fix."""
    if is_many(options):
        run_many(options)
        return
    n = len(options.images)
    if options.landmarks and len(options.landmarks) != n:
        raise ValueError(f"--landmarks is needed once for each of {n} images, found {len(options.landmarks)}")
    if options.out is not None and options.out.suffix not in (".npy", ".json"):
        raise ValueError(f"--out must end in .npz, .csv, .npy or .json, got {options.out}")
    if options.landmarks and options.detector is not None:
        raise ValueError("landmarks come from --landmarks or from --detector: give one of the two")
    if options.threshold is not None and n != 2:
        raise ValueError(f"--threshold says whether two images show one person, found {n}")
    threshold = Threshold.read(options.threshold) if options.threshold is not None else None
    landmarks: list[NDArray[np.float64] | None] = [read_landmarks(given) for given in options.landmarks]
    landmarks += [None] * (n - len(landmarks))
    embedder = load_embedder(options.model, options.network, options.device, bgr=options.bgr)
    if threshold is not None:
        check_threshold(threshold, embedder, options.flip)
    detector = open_detector(options.detector) if options.detector is not None else None
    faces = [
        load_face(Path(path), points, embedder.image_size, detector)
        for path, points in zip(options.images, landmarks, strict=True)
    ]
    for face in faces:
        print(f"{'warning: ' if face.doubtful else ''}{face.path}: {face.how}", file=sys.stderr)
    embeddings_BD = embed_faces(embedder, faces, options.flip)
    contract = describe_input(embedder)
    print(
        f"{options.model}: network {embedder.name}, {embedder.embedding_size} numbers; input {contract}",
        file=sys.stderr,
    )
    similarity = cosine(embeddings_BD[0], embeddings_BD[1]) if n == 2 else None
    if options.out is not None:
        report = {
            "model": str(options.model),
            "sha256": embedder.sha256,
            "network": embedder.name,
            "input": contract,
            "flip": options.flip,
            "images": [
                {"path": str(face.path), "how": face.how, "embedding": row.tolist()}
                for face, row in zip(faces, embeddings_BD, strict=True)
            ],
            "cosine": similarity,
        }
        write_out(options.out, embeddings_BD, report)
    elif n == 1:
        print(json.dumps([float(f"{value:.6g}") for value in embeddings_BD[0]]))
    if similarity is not None:
        print(f"cosine {similarity:.4f}")
        if threshold is not None:
            print(verdict(similarity, threshold))


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    options = parse_arguments(argv)
    try:
        run(options)
    except (ValueError, OSError) as error:
        complain("inference.py", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
