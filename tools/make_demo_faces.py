"""Make up a small set of faces to train and evaluate on, without downloading anything.

    python -m tools.make_demo_faces work_dirs/demo

renders 200 identities to train on, 1,200 images of 60 others as verification pairs, and 800 images of 60 more as an
IJB tree. Under OUT_DIR:

    train/train.rec, train.idx, property   insightface's form, 112 x 112, aligned with slightly shaky landmarks
    train/demo.bin                         verification pairs; config: val_targets = ["demo"]
    IJBC/meta, IJBC/loose_crop             templates for eval_ijbc.py
    faces.png                              what they look like, one person a row
    demo.json                              the parameters

The folder appears complete or not at all. The same parameters give the same bytes for any number of workers.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TypeVar

import numpy as np

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("make_demo_faces")

from data.records.writer import write_face_records
from tools.demo_faces.sets import LooseCrop, aligned_faces, loose_crops, template_pairs, verification_pairs
from utils.opencv import cv2

_VERSION = 1  # of the pictures: raise it when the same parameters give others
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Recipe:
    """The parameters that decide every byte."""

    identities: int = 200  # to train on
    images_per_identity: int = 20
    test_identities: int = 60  # in demo.bin
    test_images_per_identity: int = 20  # a multiple of 4
    ijb_identities: int = 60
    ijb_images_per_identity: int = 13  # about; templates are whole
    ijb_impostor_pairs: int = 20000  # at most
    seed: int = 0
    version: int = _VERSION

    def check(self) -> None:
        """Raise ValueError on a number that makes no set."""
        least = {"identities": 1, "images_per_identity": 1, "test_identities": 2, "test_images_per_identity": 4}
        least |= {"ijb_identities": 2, "ijb_images_per_identity": 1, "ijb_impostor_pairs": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} must be at least {low}, got {getattr(self, name)}")
        if self.test_images_per_identity % 4:
            raise ValueError(
                f"--test-images-per-identity must be a multiple of 4, got {self.test_images_per_identity}: half of "
                "a person's images go into genuine pairs, half into impostor pairs"
            )


def make_demo(out: Path, recipe: Recipe, workers: int = 2) -> bool:
    """Render the demo into ``out``.

    Args:
        out: made, parents too; if it already holds the demo of the same recipe, it is left alone.
        recipe: what to render.
        workers: processes; 1 renders in this one.

    Returns:
        True if it was rendered now, False if it was there.

    Raises:
        ValueError: numbers that make no set.
        FileExistsError: ``out`` holds anything else.
    """
    recipe.check()
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if _is_there(out, recipe):
        return False
    if not hasattr(cv2, "triangleRasterize"):
        raise ValueError(
            f"drawing faces takes OpenCV 5, found {cv2.__version__}: pip install -U opencv-python-headless"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        _fill(partial, recipe, workers)
        partial.chmod(0o755)
        (partial / "demo.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_there(out: Path, recipe: Recipe) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "demo.json"
    if not record.is_file():
        raise FileExistsError(f"{out} exists and was not made by this command: choose another folder or remove it")
    found = json.loads(record.read_text())
    wanted = asdict(recipe)
    differ = [f"{key} = {found.get(key)}, asked {value}" for key, value in wanted.items() if found.get(key) != value]
    if differ:
        raise FileExistsError(
            f"{out} holds a demo with other parameters ({'; '.join(differ)}): choose another folder or remove it"
        )
    return True


def _fill(folder: Path, recipe: Recipe, workers: int) -> None:
    seed = recipe.seed
    faces = functools.partial(aligned_faces, seed, "train", count=recipe.images_per_identity)
    test_faces = functools.partial(aligned_faces, seed, "pairs", count=recipe.test_images_per_identity)
    templates = functools.partial(loose_crops, seed, count=recipe.ijb_images_per_identity)
    with _pool(workers) as pool:
        train = _render("training faces", faces, recipe.identities, pool)
        test = _render("verification faces", test_faces, recipe.test_identities, pool)
        crops = _render("loose crops", templates, recipe.ijb_identities, pool)
    write_face_records(folder / "train", train)
    _write_bin(folder / "train" / "demo.bin", test, np.random.default_rng((seed, 1 << 21)))
    _write_ijb(folder / "IJBC", crops, recipe.ijb_impostor_pairs, np.random.default_rng((seed, 1 << 22)))
    _write_sheet(folder / "faces.png", [*train[:10], *test[:4]])


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Pool | None]:
    """Processes, or None for a single worker, which renders here."""
    if workers == 1:
        threads = cv2.getNumThreads()
        try:
            yield None
        finally:
            cv2.setNumThreads(threads)
    else:
        with get_context("spawn").Pool(workers) as pool:
            yield pool


def _render(
    what: str, of_identity: Callable[[int], list[_Result]], identities: int, pool: Pool | None
) -> list[list[_Result]]:
    """Call ``of_identity`` for every identity; results in order."""
    start = time.perf_counter()
    every = range(identities)
    out = [of_identity(i) for i in every] if pool is None else pool.map(of_identity, every, chunksize=1)
    images, seconds = sum(map(len, out)), time.perf_counter() - start
    print(f"{what}: {images} images of {identities} identities in {seconds:.1f} s", flush=True)
    return out


def _write_bin(path: Path, faces: Sequence[Sequence[bytes]], rng: np.random.Generator) -> None:
    pairs = verification_pairs(len(faces), len(faces[0]), rng)
    bins = [faces[identity][image] for a, b, _ in pairs for identity, image in (a, b)]
    with path.open("wb") as file:
        pickle.dump((bins, [same for _, _, same in pairs]), file, protocol=4)


def _write_ijb(folder: Path, crops: Sequence[Sequence[LooseCrop]], impostors: int, rng: np.random.Generator) -> None:
    (folder / "meta").mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    owners: list[int] = []
    media = image = 0
    tid_mid, landmarks = [], []
    for identity, of_identity in enumerate(crops):
        first_template = len(owners) + 1
        for crop in of_identity:
            image += 1
            (folder / "loose_crop" / f"{image}.jpg").write_bytes(crop.encoded)
            tid_mid.append(f"{image}.jpg {first_template + crop.template} {media + crop.medium + 1}\n")
            numbers = " ".join(f"{v:.3f}" for v in crop.landmarks.reshape(-1))
            landmarks.append(f"{image}.jpg {numbers} {crop.score:.6f}\n")
        owners += [identity] * (of_identity[-1].template + 1)
        media += of_identity[-1].medium + 1
    pairs = template_pairs(np.array(owners), impostors, rng)
    for name, lines in (
        ("ijbc_face_tid_mid.txt", tid_mid),
        ("ijbc_name_5pts_score.txt", landmarks),
        ("ijbc_template_pair_label.txt", [f"{a} {b} {same}\n" for a, b, same in pairs.tolist()]),
    ):
        (folder / "meta" / name).write_text("".join(lines))


def _write_sheet(path: Path, faces: Sequence[Sequence[bytes]], columns: int = 10) -> None:
    """One person a row."""
    gap = 4
    columns = min(columns, max(map(len, faces)))
    sheet = np.full((len(faces) * (112 + gap) + gap, columns * (112 + gap) + gap, 3), 255, np.uint8)
    for row, images in enumerate(faces):
        for column, encoded in enumerate(images[:columns]):
            y, x = row * (112 + gap) + gap, column * (112 + gap) + gap
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            sheet[y : y + 112, x : x + 112] = image
    done, png = cv2.imencode(".png", sheet)
    assert done
    path.write_bytes(png.tobytes())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="make_demo_faces.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    default = Recipe()
    for name, help_text in (
        ("identities", "people to train on"),
        ("images_per_identity", "training images of each"),
        ("test_identities", "people in demo.bin"),
        ("test_images_per_identity", "images of each, a multiple of 4"),
        ("ijb_identities", "people in the IJB tree"),
        ("ijb_images_per_identity", "images of each, roughly"),
        ("ijb_impostor_pairs", "impostor pairs of templates, at most"),
        ("seed", "another seed gives other people"),
    ):
        value = getattr(default, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{help_text} (default: {value})")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    options = vars(parser.parse_args(argv))
    out, workers = options.pop("out_dir"), options.pop("workers")
    start = time.perf_counter()
    try:
        made = make_demo(out, Recipe(**options), workers)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    if made:
        print(f"{out}: complete after {time.perf_counter() - start:.1f} s")
    else:
        print(f"{out}: already there with these parameters, nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
