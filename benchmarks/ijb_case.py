"""One measured run of the IJB evaluation, in a process of its own; ``bench_ijb.py`` starts it.

The process prints one JSON object: seconds of each stage, the largest resident memory, and what came out.

Shapes: N images, D embedding size, U templates, P pairs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import peak_mib

METHODS = ("reference", "this project")
INTERVALS = "intervals"  # a stage that the reference has not

T = TypeVar("T")
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What one process does."""

    method: str  # of METHODS
    part: str  # "features": all but the network, on made-up embeddings; "photos": from photo to table
    tree: str  # folder of the IJB tree
    embeddings: str  # folder of the embeddings' parts; of the results for "photos"
    images: int
    model: str = ""  # weights, for "photos"
    batch_size: int = 128


class Stages:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, do: Callable[[], T]) -> T:
        """Do it, and note how long it took."""
        start = time.perf_counter()
        out = do()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return out


def reference_features(case: Case) -> Outcome:
    """Everything but the network, as the field's evaluator does it; its clock starts with embeddings in memory."""
    from benchmarks import ijb_reference as reference
    from eval.ijb.cache import EmbeddingCache

    halves = EmbeddingCache(Path(case.embeddings), case.images).read(0, case.images)
    meta = Path(case.tree) / "meta"
    stage = Stages()
    templates, media, first, second, labels = stage(
        "read lists",
        lambda: reference.read_lists(meta / "ijbc_face_tid_mid.txt", meta / "ijbc_template_pair_label.txt"),
    )
    _, detector = stage("landmarks to matrices", lambda: reference.read_landmarks(meta / "ijbc_name_5pts_score.txt"))
    features = stage("features and templates", lambda: reference.image_features(halves, detector))
    pooled, unique = stage("features and templates", lambda: reference.template_features(features, templates, media))
    scores = stage("pair scores", lambda: reference.pair_scores(pooled, unique, first, second))
    table = stage("ROC and table", lambda: reference.tar_table("net-IJBC", labels, scores))
    return _outcome(stage, scores, table) | {"list_reader": reference.list_reader()[0]}


def our_features(case: Case) -> Outcome:
    """Everything but the network, as eval_ijbc.py does it; reading the embeddings from the cache is timed."""
    from embedder.align import similarity_transform
    from eval.ijb.cache import EmbeddingCache
    from eval.ijb.lists import read_lists
    from eval.ijb.run import tar_table, tree_templates, verify_scores, with_intervals
    from eval.ijb.templates import FeatureMode, pair_scores
    from utils.device import prepare_device

    prepare_device(torch.device("cpu"))
    stage = Stages()
    tree = stage("read lists", lambda: read_lists(case.tree, "IJBC"))
    stage("landmarks to matrices", lambda: similarity_transform(tree.landmarks))
    cache = EmbeddingCache(Path(case.embeddings), case.images)
    unique, pooled = stage("features and templates", lambda: tree_templates(cache, tree, FeatureMode()))
    scores = stage("pair scores", lambda: pair_scores(pooled, unique, tree.pair_template_1, tree.pair_template_2))
    found = stage("ROC and table", lambda: verify_scores(tree.pair_label, scores))
    table = stage("ROC and table", lambda: tar_table("net-IJBC", found.tar).get_string())
    stage(INTERVALS, lambda: with_intervals(found, tree, scores))
    return _outcome(stage, scores, table)


def reference_photos(case: Case) -> Outcome:
    """From photo to table as the field's evaluator does it: contiguous float32 tensors, batch after batch."""
    from benchmarks import ijb_reference as reference
    from embedder.load import load_network

    tree = Path(case.tree)
    meta = tree / "meta"
    stage = Stages()

    def run() -> tuple[Any, str]:
        backbone = load_network(case.model)[0].eval()
        templates, media, first, second, labels = reference.read_lists(
            meta / "ijbc_face_tid_mid.txt", meta / "ijbc_template_pair_label.txt"
        )
        halves, detector = reference.embed_images(
            backbone, tree / "loose_crop", meta / "ijbc_name_5pts_score.txt", case.batch_size
        )
        features = reference.image_features(halves, detector)
        pooled, unique = reference.template_features(features, templates, media)
        scores = reference.pair_scores(pooled, unique, first, second)
        return scores, reference.tar_table("net-IJBC", labels, scores)

    scores, table = stage("photo to table", run)
    return _outcome(stage, scores, table)


def our_photos(case: Case) -> Outcome:
    """From photo to table by eval_ijbc.py itself, with result files and curve, without the HTML report."""
    import eval_ijbc
    from eval.ijb.run import tar_table

    options = eval_ijbc.parse_arguments(
        [
            *("--model-prefix", case.model, "--image-path", case.tree, "--result-dir", case.embeddings),
            *("--batch-size", str(case.batch_size), "--device", "cpu", "--no-report"),
        ]
    )
    stage = Stages()
    report = stage("photo to table", lambda: eval_ijbc.evaluate(options))
    assert report is not None
    assert report.scores is not None
    assert report.verification is not None
    return _outcome(stage, report.scores, tar_table("net-IJBC", report.verification.tar).get_string())


def _outcome(stage: Stages, scores: Any, table: str) -> Outcome:
    return {"seconds": stage.seconds, "peak_mib": peak_mib(), "scores": scores, "table": table}


def main() -> None:
    """Run the case given as JSON, with the file for the scores; print the outcome."""
    case = Case(**json.loads(sys.argv[1]))
    run = {
        ("reference", "features"): reference_features,
        ("this project", "features"): our_features,
        ("reference", "photos"): reference_photos,
        ("this project", "photos"): our_photos,
    }[case.method, case.part]
    outcome = run(case)
    np.save(sys.argv[2], outcome.pop("scores"))
    print(json.dumps({"case": asdict(case), **outcome}))


if __name__ == "__main__":
    main()
