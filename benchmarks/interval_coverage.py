"""How often 95 % intervals hold the truth, on made-up scores of people who differ in how alike they are to others.

    python benchmarks/interval_coverage.py --out docs/results/interval_coverage.jsonl

Each set is new people; the truth comes from 2,000 of them. ``dense``: every pair of the images of 80 people.
``sparse``: each of 1,200 people in one genuine and two
impostor pairs, as in lfw. ``search``: 3 probes of each of 120 people, and one each of 200 others, in a gallery of one
template a person.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from eval.bootstrap import Resampler, tar_intervals
from eval.identification import identify
from eval.roc import roc

FARS = (1e-3, 1e-2, 1e-1)
Found = dict[str, tuple[float, float]]


def _scores(
    rng: np.random.Generator, first: NDArray[np.int64], second: NDArray[np.int64], people: int
) -> NDArray[np.float64]:
    """A pair's score depends on how alike its people are to everybody, and on noise."""
    like_all, own = rng.normal(0, 0.35, people), rng.normal(0, 0.5, people)
    same = first == second
    scores: NDArray[np.float64] = like_all[first] + like_all[second] + rng.normal(0, 1, len(first))
    scores += same * (3.2 + own[first])
    return scores


def _dense(rng: np.random.Generator, people: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    of = np.repeat(np.arange(people), 4)
    a, b = np.triu_indices(len(of), 1)
    return of[a], of[b], _scores(rng, of[a], of[b], people)


def _sparse(
    rng: np.random.Generator, people: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    own = np.arange(people)
    first, second = np.r_[own, own], np.r_[own, np.roll(own, 1)]
    return first, second, _scores(rng, first, second, people)


def _pairs(
    make: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]],
    people: int,
    sets: int,
    draws: int,
) -> Iterator[tuple[dict[str, float], Found]]:
    first, second, scores = make(np.random.default_rng(10**6), 2_000 if make is _dense else 10**6)
    curve = roc(first == second, scores)
    truth = {f"TAR at {far:g}": curve.tar_at(far) for far in FARS}
    for seed in range(sets):
        first, second, scores = make(np.random.default_rng(seed), people)
        resampler = Resampler(first == second, first, second, draws=draws)
        yield truth, {f"TAR at {far:g}": found for far, found in tar_intervals(resampler, scores, FARS).items()}


def _search(rng: np.random.Generator, draws: int, gallery: NDArray[np.float64]) -> Any:
    def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return out

    blur = np.repeat(rng.uniform(0.6, 1.8, len(gallery)), 3)[:, None]
    probes = np.repeat(gallery, 3, axis=0) + blur * rng.normal(size=(3 * len(gallery), gallery.shape[1]))
    others = rng.normal(size=(200, gallery.shape[1]))
    people = np.r_[np.repeat(np.arange(len(gallery)), 3), len(gallery) + np.arange(200)]
    return identify(
        unit(np.r_[probes, others]), people, unit(gallery), np.arange(len(gallery)), (1, 5), (0.1,), draws=draws
    )


def _searches(sets: int, draws: int) -> Iterator[tuple[dict[str, float], Found]]:
    """The gallery stays the same, as the intervals have it; probes and how blurred a person is are new."""
    gallery = np.random.default_rng(10**6).normal(size=(120, 16))

    def rates(found: Any) -> dict[str, float]:
        return {
            **{f"rank-{rank}": share for rank, share in found.rank.items()},
            "TPIR at FPIR 0.1": found.open_set[0].tpir,
            "TPIR at FPIR 0.1, similarities": found.tpir[0.1],
        }

    many = [rates(_search(np.random.default_rng(10**7 + seed), 0, gallery)) for seed in range(300)]
    truth = {name: float(np.mean([one[name] for one in many])) for name in many[0]}
    for seed in range(sets):
        found = _search(np.random.default_rng(seed), draws, gallery)
        *ranks, similarities, _ = found.intervals()
        bounds = (*ranks, found.open_set[0].interval, similarities)
        yield truth, dict(zip(truth, bounds, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; prints a table and appends to the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few sets: under a minute")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl")
    options = parser.parse_args(argv)
    sets, draws = (20, 100) if options.quick else (300, 400)
    cases: dict[str, Callable[[], Iterator[tuple[dict[str, float], Found]]]] = {
        "dense": lambda: _pairs(_dense, 80, sets, draws),
        "sparse": lambda: _pairs(_sparse, 1_200, sets, draws),
        "search": lambda: _searches(sets, draws),
    }
    rows = []
    for case, run in cases.items():
        held: dict[str, list[bool]] = {}
        width: dict[str, list[float]] = {}
        for truth, found in run():
            for name, (low, high) in found.items():
                held.setdefault(name, []).append(bool(low <= truth[name] <= high))
                width.setdefault(name, []).append(high - low)
        for name, hits in held.items():
            rows.append(
                {"case": case, "figure": name, "sets": sets, "draws": draws, "truth": truth[name],
                 "held_share": float(np.mean(hits)), "mean_width": float(np.mean(width[name]))}
            )  # fmt: skip
            print(f"{case:7} {name:32} truth {truth[name]:.4f}  held {rows[-1]['held_share']:.3f}", flush=True)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
