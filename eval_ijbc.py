"""Evaluate a trained network on IJB-B or IJB-C: align, embed, make templates, verify pairs 1:1, identify probes 1:N.

python eval_ijbc.py --model-prefix work_dirs/run/model.pt --image-path ijb/IJBC --result-dir results
torchrun --nproc_per_node=8 eval_ijbc.py --model-prefix ... --image-path ... --protocol both

IJB-C at D = 512 takes 1.8 GiB of memory plus the network (measured by benchmarks/bench_ijb.py), and 1.8 GiB of disk
for the embeddings. Shapes: P pairs, U templates, D embedding size.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("eval_ijbc.py")

import argparse
import os
import sys
import tempfile
import time
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from embedder.embedder import Embedder
from embedder.load import load_embedder
from eval.ijb.lists import PROTOCOLS, TARGETS, IJBTree, read_ijb
from eval.ijb.results import IJBReport, write_results
from eval.ijb.run import Embedded, embedded_tree, identify_tree, tree_templates, verify_scores, with_intervals
from eval.ijb.templates import FeatureMode, pair_scores
from utils.device import choose_device, prepare_device
from utils.distributed import get_rank, get_world_size, init_ranks, together
from utils.fate import one_fate, speaks
from utils.text import any_name_can_be_printed, complain

_RANK_TIMEOUT_S = 86_400.0  # a rank may wait this long for one on a slower device


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; on a wrong one, print what is wrong and exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="eval_ijbc.py",
        description="Evaluate a network on IJB-B or IJB-C. Results: RESULT_DIR/TARGET/JOB.npy (scores in the order "
        "of the pair list), .pdf and .png (ROC), .txt and .json (tables), .html (report with pictures). Embeddings "
        "are kept in RESULT_DIR/TARGET/cache, so a second run takes seconds, even in another mode. Under torchrun "
        "the ranks divide the images among themselves.",
    )
    parser.add_argument(
        "--model-prefix", required=True, help="model.pt, the run's folder that holds it, or an .onnx file"
    )
    parser.add_argument("--image-path", required=True, help="the folder that holds meta/ and loose_crop/")
    parser.add_argument("--result-dir", default=".", help="where RESULT_DIR/TARGET/JOB.* are written")
    parser.add_argument(
        "--batch-size", type=int, default=128, help="images per forward pass, 256 at most (default 128)"
    )
    parser.add_argument(
        "--network",
        help="the network's name (default: from config.json next to model.pt, else from the weights)",
    )
    parser.add_argument("--job", default="insightface", help="name of the result files and of the rows in the tables")
    parser.add_argument("--target", default="IJBC", type=str.upper, choices=TARGETS, help="default IJBC")
    parser.add_argument(
        "--protocol", default="11", type=str.lower, choices=PROTOCOLS, help="11 (default): pairs; 1n: galleries; both"
    )
    switches = (
        ("--flip", "add the embedding of the mirror image"),
        ("--norm-score", "weigh an embedding by its length in a template; without it each is scaled to length 1"),
        ("--detector-score", "weigh an image by the face detector's score"),
        ("--cache", "keep embeddings for the next run"),
        ("--report", "write an HTML report with pictures"),
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="read images outside loose_crop if the lists or links say so"
    )
    for name, meaning in switches:
        parser.add_argument(name, action=BooleanOptionalAction, default=True, help=f"{meaning} (default: on)")
    parser.add_argument(
        "--bgr", action="store_true", help="feed the network blue first (default: RGB, or what the .onnx file says)"
    )
    parser.add_argument("--bf16", action="store_true", help="run the network's products in bfloat16")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="threads that decode and align (default: one per processor, at most 8)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)  # torch.distributed.launch
    return parser.parse_args(argv)


def evaluate(options: argparse.Namespace, device: torch.device | None = None) -> IJBReport | None:
    """Run the whole evaluation and write its files, the scores as soon as they are ready.

    Args:
        options: of :func:`parse_arguments`.
        device: where this rank computes; None takes ``options.device``.

    Returns:
        what was found; None on every rank but 0.

    Raises:
        FileNotFoundError: weights, lists or images are missing.
        OSError: the result folder cannot be written to; checked before the work.
        ValueError: what was given does not fit; then no results have been written, or only the scores.
    """
    start_s = time.monotonic()
    embedder, tree = together(lambda: _prepare(options, device))
    folder = Path(options.result_dir) / tree.target
    together(lambda: _open_result_folder(folder) if get_rank() == 0 else None)
    mode = FeatureMode(options.flip, options.norm_score, options.detector_score)
    if get_rank() == 0:
        _announce(embedder, tree, mode)
    threads = max(1, options.num_workers)
    embed_start_s = time.monotonic()
    with embedded_tree(embedder, tree, folder / "cache", options.batch_size, threads, options.cache) as embedded:
        if get_rank() != 0:
            return None
        embed_s = time.monotonic() - embed_start_s
        _tell_cache(embedded, len(tree.names), options.cache)
        unique, templates_UD = tree_templates(embedded.cache, tree, mode)
    report = IJBReport(options.job, tree, mode, folder / options.job)
    _run_protocols(options.protocol, report, unique, templates_UD)
    new = len(tree.names) - embedded.reused
    speed = {
        "embedded_images": new,
        "embedding_imgs_per_s": new / embed_s,
        "total_s": time.monotonic() - start_s,
    }
    write_results(report, embedder, options.model_prefix, options.protocol, speed, options.report)
    print(report.text)
    print(f"Written: {report.stem}.*: {' '.join(sorted({path.suffix for path in report.files}))}")
    return report


def _prepare(options: argparse.Namespace, device: torch.device | None) -> tuple[Embedder, IJBTree]:
    """Check what was given; nothing is embedded or written yet."""
    if options.batch_size < 1 or options.num_workers < 0:
        raise ValueError(
            f"--batch-size must be at least 1 and --num-workers at least 0, got {options.batch_size} and "
            f"{options.num_workers}"
        )
    if Path(options.job).name != options.job:
        raise ValueError(f"--job names files, so it cannot be {options.job!r}; give a name without /")
    device = device or choose_device(options.device)
    embedder = load_embedder(options.model_prefix, options.network, device, options.bf16, options.bgr)
    prepare_device(device)
    return embedder, read_ijb(options.image_path, options.target, options.protocol, options.allow_outside)


def _open_result_folder(folder: Path) -> None:
    """Make the folder and try to write there: better now than after hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"probe")
    except OSError as error:
        raise OSError(f"the results cannot be written to {folder} ({error}); choose another --result-dir") from None


def _announce(embedder: Embedder, tree: IJBTree, mode: FeatureMode) -> None:
    pairs = f", {len(tree.pair_label):,} pairs" if len(tree.pair_label) else ""
    galleries = "".join(f", gallery {name} {len(g.template_ids):,}" for name, g in tree.galleries.items())
    probes = f", {len(tree.probes.template_ids):,} probes" if tree.probes is not None else ""
    ranks = f", {get_world_size()} ranks" if get_world_size() > 1 else ""
    print(
        f"{tree.target}: {len(tree.names):,} images, {len(np.unique(tree.template_ids)):,} templates{pairs}"
        f"{galleries}{probes}; network {embedder.name}{ranks}"
    )
    print(f"Mode: {mode}", flush=True)


def _tell_cache(embedded: Embedded, n_images: int, kept: bool) -> None:
    for name in embedded.damaged:
        print(f"Damaged, made again: {embedded.cache.folder / name}")
    if embedded.reused:
        print(f"{embedded.reused:,} of {n_images:,} embeddings were there already: {embedded.cache.folder}")
    elif kept:
        print(f"Embeddings are kept for the next run: {embedded.cache.folder}", flush=True)


def _run_protocols(
    protocol: str, report: IJBReport, unique: NDArray[np.int64], templates_UD: NDArray[np.float64]
) -> None:
    """Run what was asked for; the pairs' scores are written before anything else can fail."""
    tree = report.tree
    if protocol != "1n":
        scores = pair_scores(templates_UD, unique, tree.pair_template_1, tree.pair_template_2)
        report.scores = scores
        report.write(".npy", lambda file: np.save(file, scores))
    if protocol != "11":
        report.identification = identify_tree(tree, unique, templates_UD)
    if report.scores is not None:
        found = verify_scores(tree.pair_label, report.scores)
        report.verification = with_intervals(found, tree, report.scores)


@any_name_can_be_printed()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    options = parse_arguments(argv)
    device: torch.device | None = None
    try:
        if "WORLD_SIZE" in os.environ:  # a launcher's child
            device = init_ranks(options.device, _RANK_TIMEOUT_S, options.local_rank).device
    except (ValueError, OSError) as error:
        complain("eval_ijbc.py", error)
        return 2
    try:
        with one_fate():
            _evaluate_or_say(options, device)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _evaluate_or_say(options: argparse.Namespace, device: torch.device | None) -> None:
    """Evaluate; end with status 2 and one message for what the user can fix."""
    try:
        evaluate(options, device)
    except (ValueError, OSError) as error:  # on all ranks, or on this one alone
        if speaks(error):
            complain("eval_ijbc.py", error)
        sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
