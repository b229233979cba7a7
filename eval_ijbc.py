"""Evaluate a trained backbone on IJB-B or IJB-C, 1:1: align, embed, make templates, score pairs, draw the ROC.

python eval_ijbc.py --model-prefix work_dirs/run/model.pt --image-path ijb/IJBC --result-dir results

Memory for IJB-C at D = 512: 0.9 GiB of embeddings (N * D float32), freed before the ROC, and about 1.5 GiB for
its 15.7 million pairs. Shapes: N images, B batch, D embedding size, P pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prettytable import PrettyTable
from torch import Tensor, nn

from backbones import MODEL_NAMES, get_model
from eval.align import align_face
from eval.embed import embed_batches
from eval.ijb import TARGETS, IJBTree, read_ijb
from eval.roc import FAR_GRID, Roc, plot_roc, roc
from eval.templates import pair_scores, template_features
from utils.images import decode_rgb
from utils.weights import read_state_dict

DEFAULT_NETWORK = "r50"


@dataclass(frozen=True)
class IJBReport:
    """What one evaluation found, and where it was written."""

    scores: NDArray[np.float64]  # (P,) cosine of each pair of templates
    curve: Roc
    tar: dict[float, float]  # FAR -> TAR, 0 to 1
    unresolved: list[float]  # FARs below one impostor pair
    files: list[Path]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; on a wrong one, print what is wrong and exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="eval_ijbc.py",
        description="Evaluate a backbone on IJB-B or IJB-C (1:1). Results: RESULT_DIR/TARGET/JOB.npy (scores in "
        "the order of the pair list), .pdf and .png (ROC), .txt and .json (TAR at FAR).",
    )
    parser.add_argument("--model-prefix", required=True, help="model.pt, or the run's folder that holds it")
    parser.add_argument("--image-path", required=True, help="the folder that holds meta/ and loose_crop/")
    parser.add_argument("--result-dir", default=".", help="where RESULT_DIR/TARGET/JOB.* are written")
    parser.add_argument("--batch-size", type=int, default=128, help="images per forward pass (default 128)")
    parser.add_argument(
        "--network",
        help="the network's name (default: the one in config.json beside model.pt, else " + DEFAULT_NETWORK + ")",
    )
    parser.add_argument("--job", default="insightface", help="name of the result files and of the table's row")
    parser.add_argument("--target", default="IJBC", type=str.upper, choices=TARGETS, help="default IJBC")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="threads that decode and align (default: one per processor, at most 8)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def choose_device(name: str) -> torch.device:
    """Turn ``--device`` into a device; "auto" is the first GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here")
    return device


def _read_run_config(model_path: Path) -> dict[str, Any]:
    path = model_path.parent / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); mend it, or move it away and give --network") from None
    return config if isinstance(config, dict) else {}


def _describe_mismatch(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """Say how weights differ from what a network wants, "" where they fit."""
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    shapes = [
        f"{key} ({tuple(found[key].shape)} instead of {tuple(wanted[key].shape)})"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("tensors are missing", missing),
            ("are not the network's", extra),
            ("have another shape", shapes),
        )
        if names
    ]
    return "; ".join(parts)


def _fitting_networks(weights: dict[str, Tensor], embedding_size: int) -> list[str]:
    """Names of the networks that these weights load into; nothing is allocated."""
    with torch.device("meta"):
        networks = {name: get_model(name, num_features=embedding_size) for name in MODEL_NAMES}
    return [name for name, net in networks.items() if not _describe_mismatch(net.state_dict(), weights)]


def load_backbone(model: Path, network: str | None = None) -> tuple[nn.Module, str]:
    """Build the network and load its weights.

    Args:
        model: ``model.pt``, or the folder that holds it.
        network: the network's name; None takes it from ``config.json`` beside the weights, else r50. The
            embedding size comes from there too, else from the weights' last vector.

    Returns:
        the network on the CPU, and its name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds no weights, or weights of another network.
    """
    path = model / "model.pt" if model.is_dir() else model
    weights = read_state_dict(path)
    config = _read_run_config(path)
    source = "--network"
    if network is None and "network" in config:
        network, source = config["network"], str(path.parent / "config.json")
        if not isinstance(network, str):
            raise ValueError(f"{source}: network is {network!r}, expected a name; give --network")
    if network is None:
        network, source = DEFAULT_NETWORK, "the default"
    vectors = [len(value) for value in weights.values() if value.ndim == 1]
    embedding_size = config.get("embedding_size", vectors[-1] if vectors else 512)
    if not isinstance(embedding_size, int):
        raise ValueError(f"{path.parent / 'config.json'}: embedding_size is {embedding_size!r}, not a number")
    backbone = get_model(network, num_features=embedding_size)
    mismatch = _describe_mismatch(backbone.state_dict(), weights)
    if mismatch:
        fitting = _fitting_networks(weights, embedding_size)
        way_out = f"They fit --network {' or '.join(fitting)}" if fitting else "Choose another with --network"
        raise ValueError(
            f"{path} does not hold the weights of network {network!r} (chosen by {source}): {mismatch}. {way_out}"
        )
    backbone.load_state_dict(weights)
    return backbone, network


def embed_tree(
    backbone: nn.Module, tree: IJBTree, device: torch.device, batch_size: int, threads: int
) -> NDArray[np.float32]:
    """Align and embed every image of the tree, straight plus mirrored: (N, D)."""

    def load(start: int, end: int) -> NDArray[np.uint8]:
        out = np.empty((end - start, 112, 112, 3), np.uint8)
        for row, index in enumerate(range(start, end)):
            path = tree.image_folder / tree.names[index]
            try:
                out[row] = align_face(decode_rgb(path.read_bytes()), tree.landmarks[index])
            except ValueError as error:
                raise ValueError(
                    f"{path}: {error}. Copy the file again from where the set came, or take its line out of both "
                    f"lists in {tree.image_folder.parent / 'meta'} ({tree.target.lower()}_face_tid_mid.txt and "
                    "_name_5pts_score.txt)"
                ) from None
        return out

    return embed_batches(backbone, load, len(tree.names), device, batch_size, threads=threads, progress=tree.target)


def tar_table(method: str, tar: dict[float, float]) -> PrettyTable:
    """Build the table of the field: a row per method, a column per FAR, TAR in percent."""
    table = PrettyTable(["Methods", *(f"{far:g}" for far in tar)])
    table.add_row([method, *(f"{100 * value:.2f}" for value in tar.values())])
    return table


def _open_result_folder(folder: Path) -> None:
    """Make the folder and try to write there: better now than after hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"probe")
    except OSError as error:
        raise OSError(f"the results cannot be written to {folder} ({error}); choose another --result-dir") from None


def evaluate(options: argparse.Namespace) -> IJBReport:
    """Run the whole evaluation and write its files, the scores as soon as they are there.

    Raises:
        FileNotFoundError: weights, lists or images are missing.
        OSError: the result folder cannot be written to; found out before the work.
        ValueError: what was given does not fit; no results have been written then, or the scores alone.
    """
    start_s = time.monotonic()
    if options.batch_size < 1 or options.num_workers < 0:
        raise ValueError(
            f"--batch-size must be at least 1 and --num-workers at least 0, got {options.batch_size} and "
            f"{options.num_workers}"
        )
    device = choose_device(options.device)
    backbone, network = load_backbone(Path(options.model_prefix), options.network)
    tree = read_ijb(options.image_path, options.target)
    print(
        f"{tree.target}: {len(tree.names):,} images, {len(np.unique(tree.template_ids)):,} templates, "
        f"{len(tree.pair_label):,} pairs; network {network} on {device}"
    )
    stem = Path(options.result_dir) / tree.target / options.job
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("npy", "pdf", "png", "txt", "json")]
    scores_file, pdf, png, text_file, json_file = files
    _open_result_folder(stem.parent)
    backbone.to(device).to(memory_format=torch.channels_last)
    embed_start_s = time.monotonic()
    embeddings_ND = embed_tree(backbone, tree, device, options.batch_size, max(1, options.num_workers))
    embed_s = time.monotonic() - embed_start_s
    bad = int(len(embeddings_ND) - np.isfinite(embeddings_ND).all(axis=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(embeddings_ND)} embeddings hold nan or infinity: the weights of "
            f"{options.model_prefix} are broken, or training had diverged"
        )
    unique, templates_UD = template_features(embeddings_ND, tree.detector_scores, tree.template_ids, tree.media_ids)
    del embeddings_ND  # the largest array; the ROC needs room of its own
    scores = pair_scores(templates_UD, unique, tree.pair_template_1, tree.pair_template_2)
    np.save(scores_file, scores)
    curve = roc(tree.pair_label, scores)
    tar = {far: curve.tar_at(far) for far in FAR_GRID}
    unresolved = [far for far in FAR_GRID if not curve.resolves(far)]

    method = f"{options.job}-{tree.target}"
    table = tar_table(method, tar)
    note = (
        f"Not resolved: FAR {', '.join(f'{far:g}' for far in unresolved)} is less than one of the "
        f"{curve.impostor:,} impostor pairs."
        if unresolved
        else ""
    )
    figure = plot_roc({method: curve}, f"ROC on {tree.target}, 1:1 verification")
    figure.savefig(pdf)
    figure.savefig(png)
    text = "\n".join([table.get_string(), *([note] if note else [])])
    text_file.write_text(text + "\n")
    summary = {
        "job": options.job,
        "target": tree.target,
        "network": network,
        "model": str(options.model_prefix),
        "images": len(tree.names),
        "templates": len(unique),
        "genuine_pairs": curve.genuine,
        "impostor_pairs": curve.impostor,
        "tar_at_far": {f"{far:g}": value for far, value in tar.items()},
        "unresolved_far": [f"{far:g}" for far in unresolved],
        "embedding_imgs_per_s": len(tree.names) / embed_s,
        "total_s": time.monotonic() - start_s,
    }
    json_file.write_text(json.dumps(summary, indent=2) + "\n")
    print(text)
    print(f"Written: {stem}.npy .pdf .png .txt .json")
    return IJBReport(scores, curve, tar, unresolved, files)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can mend."""
    options = parse_arguments(argv)
    try:
        evaluate(options)
    except (ValueError, OSError) as error:
        print(f"eval_ijbc.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
