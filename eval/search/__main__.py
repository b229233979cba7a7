"""The command ``python -m eval.search``: whose is each probe? 1:N on any folders or lists of faces."""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("eval.search")

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from embedder.embedder import Embedder
from embedder.load import load_embedder
from eval.search.images import ListOptions, NamedFaces, read_faces, read_tinyface
from eval.search.report import as_json, counts_line, rates_table, write_page
from eval.search.run import SearchResult, embed_faces, search_faces
from utils.atomic import write_json
from utils.text import any_name_can_be_printed, complain, plain


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; on a wrong one, print what is wrong and exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="eval.search",
        description="Search probes in a gallery: rank-k, mean average precision, and TPIR at FPIR where probes "
        "are of people who are not in the gallery; each with a 95 % interval. A gallery or probes are a folder with "
        "a folder a person, or a list of images with people as labels; the same name is the same person.",
        epilog="Exit status: 0, or 2 for what you can mend.",
    )
    parser.add_argument("--model", required=True, help="model.pt, the run's folder that holds it, or an .onnx file")
    parser.add_argument("--gallery", type=Path, metavar="DIR_or_LIST", help="enrolled faces")
    parser.add_argument("--probes", type=Path, metavar="DIR_or_LIST", help="faces to search for")
    parser.add_argument(
        "--tinyface",
        type=Path,
        metavar="DIR",
        help="TinyFace's test set instead: the folder of Gallery_Match, Gallery_Distractor and Probe",
    )
    parser.add_argument("--mean", action="store_true", help="one template a person, the mean; else one an image")
    parser.add_argument(
        "--network", help="its name (default: from config.json next to model.pt, else from the weights)"
    )
    parser.add_argument("--no-flip", action="store_true", help="embed images without their mirror images")
    parser.add_argument(
        "--root", type=Path, metavar="FACES", help="folder that the images of lists start at (default: the list's)"
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="read images outside --root, or the folder of their list"
    )
    parser.add_argument(
        "--columns", default="", metavar="WORDS", help="what a list's columns are, such as path,-,label"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="images per forward pass (default 128)")
    parser.add_argument(
        "--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that decode (default: up to 8)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every figure there")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with a picture there")
    return parser.parse_args(argv)


def read_sides(options: argparse.Namespace) -> tuple[NamedFaces, NamedFaces]:
    """The gallery and the probes that were asked for.

    Raises:
        FileNotFoundError: a folder or list is missing.
        ValueError: not exactly one way of naming both, or a folder or list without images.
    """
    if options.tinyface is not None:
        if options.gallery or options.probes or options.mean:
            raise ValueError("--tinyface fixes gallery, probes and templates: leave --gallery, --probes, --mean out")
        return read_tinyface(options.tinyface)
    if options.gallery is None or options.probes is None:
        raise ValueError("give --gallery and --probes, or --tinyface")
    lists = ListOptions(options.root, options.allow_outside, options.columns)
    if (options.root or options.columns) and options.gallery.is_dir() and options.probes.is_dir():
        raise ValueError("--root and --columns are for lists, but --gallery and --probes are folders: leave them out")
    return read_faces(options.gallery, lists), read_faces(options.probes, lists)


def evaluate(options: argparse.Namespace) -> tuple[SearchResult, Embedder]:
    """Embed both sides and search.

    Raises:
        FileNotFoundError: a model, folder, list or image is missing.
        ValueError: an option out of its range, or what was given does not fit.
        OSError: a file cannot be read.
    """
    if options.batch_size < 1 or options.num_workers < 0:
        raise ValueError(
            f"--batch-size must be at least 1 and --num-workers at least 0, got {options.batch_size} and "
            f"{options.num_workers}"
        )
    gallery, probes = read_sides(options)
    read = [f"{name}: {note}" for name, side in (("gallery", gallery), ("probes", probes)) for note in side.notes]
    for note in read:
        print(plain(note), flush=True)
    embedder = load_embedder(options.model, options.network, options.device)
    threads, flip = max(1, options.num_workers), not options.no_flip
    gallery_ND, about_gallery = embed_faces(embedder, gallery, options.batch_size, flip, threads, "gallery")
    probes_QD, about_probes = embed_faces(embedder, probes, options.batch_size, flip, threads, "probes")
    result = search_faces(gallery, probes, (gallery_ND, probes_QD), options.mean)
    names = (("gallery", about_gallery), ("probes", about_probes))
    result.notes.extend(f"{name}: {note}" for name, note in names if note)
    result.read.extend(read)
    return result, embedder


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    options = parse_arguments(argv)
    try:
        result, embedder = evaluate(options)
        table = rates_table(result.found).get_string()
        print(counts_line(result))
        print(table)
        for note in result.notes:
            print(plain(note))
        flip = not options.no_flip
        if options.out is not None:
            facts = {"model": str(options.model), "sha256": embedder.sha256, "network": embedder.name, "flip": flip}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, facts | as_json(result))
        if options.report is not None:
            name = "TinyFace" if options.tinyface is not None else f"{options.probes.stem} in {options.gallery.stem}"
            write_page(options.report, name, result, options.model, embedder, flip, table)
            print(f"Report: {options.report}")
    except (ValueError, OSError) as error:
        complain("eval.search", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
