"""What the type of the classifier's products costs in learning, and how exact its gradient is.

    python benchmarks/classifier_precision.py --quick
    python benchmarks/classifier_precision.py --out FILE.jsonl
    python benchmarks/classifier_precision.py --gradients

The task "features" of learning.py with heads of 12: equal first weights and order of images for both types, so that
seeds are paired. The network itself computes in float32 in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from prettytable import PrettyTable
from torch import Tensor

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import learning_features
from benchmarks.learning_arms import SPARSE, Arm
from losses import CosFace
from partial_fc_mhs import PartialFCMHS

TYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
ARM = Arm("heads of 12", 12, 0.0, "batch", SPARSE)
SIZE = learning_features.Size(4000, images=6, batch=128, epochs=8)
QUICK = learning_features.Size(400, images=4, batch=32, epochs=2, test_identities=100)
FIGURES = ("loss", "rank1", "tar_0.0001", "step_ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write a record a run, and print means and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="one JSON object a run")
    parser.add_argument("--gradients", action="store_true", help="only the gradients' errors, in seconds")
    parser.add_argument("--quick", action="store_true", help="small: shows whether it works")
    options = parser.parse_args(argv)
    size = QUICK if options.quick else SIZE
    torch.set_num_threads(1)
    if options.gradients:
        print(gradient_table())
        return 0
    records: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, dtype in TYPES.items():
            found = learning_features.train_and_test(ARM, seed, size, dtype)
            records.append({"classifier": name, "seed": seed, **dataclasses.asdict(size), **found})
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    print(table(records))
    return 0


def gradient_of(
    noise: float, dtype: torch.dtype, amp_dtype: torch.dtype | None, size: tuple[int, int, int]
) -> tuple[float, Tensor]:
    """The loss and the embeddings' gradient (G, D), of embeddings beside their centres by ``noise``, in float64."""
    C, G, D = size
    random = torch.Generator().manual_seed(0)
    classifier = PartialFCMHS(
        CosFace(64, 0.4), D, C, head_size=12, negative_rate=1.0, dtype=dtype, amp_dtype=amp_dtype
    )
    centres_CD = F.normalize(torch.randn(C, D, generator=random, dtype=torch.float64))
    classifier.shard.visits.fill_(1)
    classifier.shard.weight.copy_(centres_CD)
    labels_G = torch.randint(0, C, (G,), generator=random)
    beside_GD = F.normalize(torch.randn(G, D, generator=random, dtype=torch.float64))
    x_GD = (centres_CD[labels_G] + noise * beside_GD).to(dtype).requires_grad_()
    loss = classifier(x_GD, labels_G)
    loss.backward()
    assert x_GD.grad is not None
    return loss.item(), x_GD.grad.double()


def gradient_table(size: tuple[int, int, int] = (1536, 128, 512)) -> PrettyTable:
    """Relative errors against float64 at a large, a small and a tiny loss; ``size`` is (C, G, D)."""
    types = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
    shown = PrettyTable(["loss", *types], align="r")
    for noise in (8.0, 1.5, 1.0):
        loss, exact_GD = gradient_of(noise, torch.float64, None, size)
        found = [gradient_of(noise, torch.float32, amp, size)[1] for amp in types.values()]
        shown.add_row([f"{loss:.2g}", *(f"{float((one - exact_GD).norm() / exact_GD.norm()):.1e}" for one in found)])
    return shown


def table(records: Sequence[dict[str, Any]]) -> PrettyTable:
    """Mean of each type over the seeds, and the paired difference with its standard deviation."""
    by_type = {name: [r for r in records if r["classifier"] == name] for name in TYPES}
    shown = PrettyTable(["figure", *TYPES, "difference", "+-"], align="r")
    for figure in FIGURES:
        columns = [[r[figure] for r in by_type[name]] for name in TYPES]
        differences = [half - exact for exact, half in zip(*columns, strict=True)]
        spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
        values = [*map(statistics.mean, columns), statistics.mean(differences), spread]
        shown.add_row([figure, *(f"{value:.4f}" for value in values)])
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
