"""Damage a checkpoint in a thousand ways, load it, and see whether anything goes unnoticed.

``PYTHONPATH=tests python -m faults.checkpoint_damage --out FILE.jsonl``. The checkpoint is the second one of two
ranks, with a layer of changed heads on a full one. It is loaded as a run loads it, into one rank.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.checkpoint import load_heads
from heads.optim import RowAdamW
from losses import ArcFace
from partial_fc_mhs import PartialFCMHS
from ranks import run_ranks
from training.checkpoint import load_training, newest_sound, open_saved_heads
from training.saving import Saver
from utils.manifest import DamagedError

C, L, D = 4_000, 3, 16
Damage = Callable[[Path, random.Random, Path], Path]  # (checkpoint, rng, another run's) -> the file damaged


def make_classifier() -> PartialFCMHS:
    classifier = PartialFCMHS(ArcFace(), D, C, head_size=L, seed=3)
    RowAdamW(classifier.shard, 0.1)
    return classifier


def write_run(rank: int, world_size: int, output: Path, seed: int) -> None:
    """Two checkpoints of heads that a generator has filled, the second with few changed ones."""
    shard = make_classifier().shard
    generator = torch.Generator().manual_seed(100 * seed + rank)
    saver = Saver(output, shard, keep=9, full_every=5)
    start, end = shard.layout.head_start, shard.layout.head_end
    for step, heads_h in ((4, torch.arange(start, end, 2)), (8, torch.arange(start, end, 7))):
        rows = (len(shard.layout.classes_of(heads_h)), D)
        values = {name: torch.randn(rows, generator=generator) for name in shard.storage.names}
        shard.steps = step
        shard.storage.store(heads_h, values, step)
        network = {"weight": torch.randn(300, 300, generator=torch.Generator().manual_seed(seed + step))}
        saver.begin(step, {"head": shard.settings(), "backbone": network, "format": 2}, None)
    saver.close()


def loaded(checkpoint: Path) -> list[Tensor]:
    """All that a run takes from a checkpoint."""
    state = load_training(checkpoint)
    shard = make_classifier().shard
    shard.load_settings(state["head"])
    load_heads(shard, open_saved_heads(checkpoint, state["head"]))
    return [*state["backbone"].values(), *shard.tensors().values(), *shard.storage.counts.values()]


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def _any_file(checkpoint: Path, rng: random.Random) -> Path:
    return rng.choice(_files(checkpoint))


def _rewrite(path: Path, content: bytes) -> None:
    """Without writing through to the files of other checkpoints that share it."""
    path.unlink()
    path.write_bytes(content)


def flip_a_bit(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = _any_file(checkpoint, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    _rewrite(path, bytes(content))
    return path


def cut(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = _any_file(checkpoint, rng)
    content = path.read_bytes()
    _rewrite(path, content[: rng.choice([0, 1, rng.randrange(len(content)), len(content) - 1])])
    return path


def lengthen(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = _any_file(checkpoint, rng)
    _rewrite(path, path.read_bytes() + rng.randbytes(rng.randint(1, 5000)))
    return path


def zeros(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = _any_file(checkpoint, rng)
    before = path.read_bytes()
    content = bytearray(before)
    while content == before:  # zeros may be there already
        start = rng.randrange(len(content)) if rng.random() < 0.7 else 0
        end = min(len(content), start + rng.choice([1, 64, 4096, len(content)]))
        content[start:end] = bytes(end - start)
    _rewrite(path, bytes(content))
    return path


def remove(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = _any_file(checkpoint, rng)
    path.unlink()
    return path


def swap_two(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    contents = (b"", b"")
    while contents[0] == contents[1]:  # both ranks may have counted the same
        first, second = rng.sample(_files(checkpoint), 2)
        contents = first.read_bytes(), second.read_bytes()
    _rewrite(first, contents[1])
    _rewrite(second, contents[0])
    return first


def of_another_run(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    theirs = {path: (other / path.relative_to(checkpoint)).read_bytes() for path in _files(checkpoint)}
    path = rng.choice([path for path, content in theirs.items() if content != path.read_bytes()])
    _rewrite(path, theirs[path])
    return path


def part_of_another_run(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = rng.choice(sorted((checkpoint / "heads").iterdir()))
    shutil.rmtree(path)
    shutil.copytree(other / path.relative_to(checkpoint), path)
    return path


def remove_a_part(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = rng.choice([*sorted((checkpoint / "heads").iterdir()), *sorted(checkpoint.glob("heads/*/layer_*"))])
    shutil.rmtree(path)
    return path


def objects(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    path = rng.choice([path for path in _files(checkpoint) if path.suffix == ".npy"])
    path.unlink()
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return path


def other_numbers(checkpoint: Path, rng: random.Random, other: Path) -> Path:
    """Right in its form: heads twice, out of order, beyond the last; other counts, shapes and types."""
    path = rng.choice([path for path in _files(checkpoint) if path.suffix == ".npy"])
    array = np.load(path)
    kind = rng.randrange(5)
    if kind == 0:
        array = array.astype(np.float64 if array.dtype == np.float32 else np.int16)
    elif kind == 1:
        array = np.concatenate([array, array[:1]])
    elif kind == 2:
        array = array[:, None] if array.ndim == 1 else array.ravel()
    else:
        place = rng.randrange(array.size)
        array.flat[place] = rng.choice([array.flat[place - 1], -1, 1 << 30, 0])
        if np.array_equal(array, np.load(path)):
            array.flat[place] += 1
    path.unlink()
    np.save(path, array)
    return path


DAMAGES: dict[str, tuple[Damage, int]] = {  # and how many of a thousand
    "a bit flipped": (flip_a_bit, 300),
    "cut short": (cut, 120),
    "longer": (lengthen, 40),
    "zeros in it": (zeros, 150),
    "missing": (remove, 60),
    "two swapped": (swap_two, 80),
    "another run's": (of_another_run, 80),
    "another run's part": (part_of_another_run, 10),
    "a part missing": (remove_a_part, 20),
    "objects in it": (objects, 40),
    "other numbers in right form": (other_numbers, 100),
}


class Place:
    """Two runs to damage copies of, and what the first one's second checkpoint holds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, [folder / "run", folder / "other"]
        for seed, run in enumerate(self.runs):
            run_ranks(write_run, 2, run, seed)
        self.expected = loaded(self.runs[0] / "checkpoints" / "step_8")

    def damage(self, kind: str, seed: int) -> dict[str, Any]:
        """One damage, and what came of it."""
        run = self.folder / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.runs[0], run)
        checkpoint = run / "checkpoints" / "step_8"
        path = DAMAGES[kind][0](checkpoint, random.Random(f"{kind} {seed}"), self.runs[1] / "checkpoints" / "step_8")
        row = {"kind": kind, "seed": seed, "file": path.relative_to(checkpoint).as_posix()}
        message = ""
        try:
            found = loaded(checkpoint)
        except DamagedError as error:
            message = str(error)
            names_it = f"{checkpoint}/" in message and "\n" not in message
            row["outcome"] = "refused, a file named" if names_it else "refused, no file named"
            if newest_sound(checkpoint.parent) != checkpoint.with_name("step_4"):
                row["outcome"] = "refused, the sound one before not found"
        except Exception as error:
            message, row["outcome"] = f"{type(error).__name__}: {error}", "traceback"
        else:
            same = len(found) == len(self.expected) and all(map(torch.equal, found, self.expected))
            row["outcome"] = "loads, equal" if same else "loads other values"
        return {**row, "message": message.replace(str(run), "RUN")}


def main() -> int:
    """Run the command line; 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        rows = [place.damage(kind, seed) for kind, (_, count) in DAMAGES.items() for seed in range(count)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = [row["outcome"] for row in rows]
    print(*(f"{outcomes.count(outcome):5} {outcome}" for outcome in sorted(set(outcomes))), sep="\n")
    return int(any(outcome != "refused, a file named" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
