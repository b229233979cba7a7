"""Draw docs/figures/architecture.png, four walks through the code; run it from the project's root.

A box is a file; its colour is its department. A file that is no longer there is an error, so that the picture cannot
outlive what it shows.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent.parent
DARK = "#2d3748"
COLOURS = {
    "data": "#2f855a",
    "heads": "#dd6b20",
    "training": "#2b6cb0",
    "embedder": "#6b46c1",
    "eval": "#b83280",
    "top level, losses, utils": "#4a5568",
}
WIDTH, HEIGHT, STEP, LINE = 16.0, 7.5, 18.3, 12.0
PER_LINE = 7


class Stop(NamedTuple):
    """A file on a walk, and what happens there."""

    file: str
    what: str


WALKS: dict[str, list[Stop]] = {
    "A label, from its record to the update of its row": [
        Stop("data/records/reader.py", "record: label, JPEG"),
        Stop("data/faces.py", "a set: image, label"),
        Stop("data/sampler.py", "order of the epoch"),
        Stop("dataset.py", "loader: batches"),
        Stop("train.py", "announces the labels\nof the next batch"),
        Stop("heads/shard.py", "gathers labels,\nprefetches heads"),
        Stop("heads/selection.py", "heads that hold\na label"),
        Stop("heads/storage.py", "fetches their rows\nbeside the step"),
        Stop("heads/arrays.py", "device, host\nor file"),
        Stop("training/run.py", "augments, embeds"),
        Stop("partial_fc_mhs.py", "cosines, margin,\nsoftmax over ranks"),
        Stop("losses/margin.py", "ArcFace, CosFace, ..."),
        Stop("training/verdict.py", "all finite, on\nall ranks?"),
        Stop("heads/optim.py", "updates those rows,\nwrites them back"),
    ],
    "A face, from its file to a score": [
        Stop("eval/ijb/lists.py", "images, templates,\npairs"),
        Stop("utils/decode.py", "JPEG to RGB"),
        Stop("embedder/align.py", "five landmarks to\n112 x 112"),
        Stop("embedder/batches.py", "batches, threads"),
        Stop("embedder/load.py", "model.pt or ONNX"),
        Stop("eval/ijb/cache.py", "keeps embeddings"),
        Stop("eval/ijb/templates.py", "averages images of\na template"),
        Stop("eval/roc.py", "TAR at FAR"),
        Stop("eval/ijb/results.py", "tables, files"),
        Stop("eval/report/page.py", "one HTML page"),
    ],
    "A checkpoint, out and back": [
        Stop("training/run.py", "collects what moves"),
        Stop("training/saving.py", "a thread writes while\ntraining goes on"),
        Stop("heads/checkpoint.py", "each rank's changed\nheads, as a layer"),
        Stop("utils/manifest.py", "checksums; then the\nfolder's name"),
        Stop("training/run_folder.py", "where to go on from"),
        Stop("training/identity.py", "the same people,\nloss, network?"),
        Stop("heads/saved.py", "any number of ranks\nreads its heads"),
    ],
    "An end, from its cause to every rank's last line": [
        Stop("utils/distributed.py", "counts collectives"),
        Stop("utils/fate.py", "a reason to end goes\nto all ranks"),
        Stop("utils/processes.py", "a rank has gone,\nor is stopped"),
        Stop("data/workers.py", "loader workers end\nwith their rank"),
        Stop("training/sigterm.py", "SIGTERM, Ctrl-C: save\nand end together"),
    ],
}


def main() -> None:
    """Write the picture beside this file; FileNotFoundError for a file that the project no longer has."""
    lines = sum(-(-len(walk) // PER_LINE) for walk in WALKS.values())
    height = lines * LINE + len(WALKS) * 6 + 8
    figure = Figure(figsize=(13, height / 10), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 130)
    ax.set_ylim(0, height)
    ax.axis("off")
    top = height - 4
    for title, walk in WALKS.items():
        ax.text(2, top, title, color=DARK, fontsize=12, weight="bold", va="center")
        places = [
            (2 + number % PER_LINE * STEP, top - 4.5 - HEIGHT - number // PER_LINE * LINE)
            for number in range(len(walk))
        ]
        for stop, (x, y) in zip(walk, places, strict=True):
            if not (ROOT / stop.file).is_file():
                raise FileNotFoundError(f"{stop.file} is in the picture and not in the project")
            ax.add_patch(
                FancyBboxPatch(
                    (x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.2", facecolor=colour(stop.file), linewidth=0
                )
            )
            ax.text(x + WIDTH / 2, y + HEIGHT - 1.9, stop.file, ha="center", va="center", color="white", fontsize=8)
            ax.text(x + WIDTH / 2, y + 2.8, stop.what, ha="center", va="center", color="white", fontsize=8.5)
        for (x1, y1), (x2, y2) in itertools.pairwise(places):
            if y1 == y2:
                start, end = (x1 + WIDTH + 0.2, y1 + HEIGHT / 2), (x2 - 0.2, y2 + HEIGHT / 2)
            else:  # down between the lines, back to the left, and on
                middle, right, left = (y1 + y2 + HEIGHT) / 2, x1 + WIDTH / 2, x2 + WIDTH / 2
                ax.plot([right, right, left], [y1 - 0.2, middle, middle], color=DARK, linewidth=1.3)
                start, end = (left, middle), (left, y2 + HEIGHT + 0.2)
            ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=DARK, linewidth=1.3))
        top -= 6 + -(-len(walk) // PER_LINE) * LINE
    x = 2.0
    for name, shade in COLOURS.items():
        ax.add_patch(FancyBboxPatch((x, 1.6), 2, 2, boxstyle="round,pad=0.1", facecolor=shade, linewidth=0))
        ax.text(x + 3, 2.6, name, va="center", color=DARK, fontsize=9)
        x += 8 + 1.25 * len(name)
    figure.savefig(Path(__file__).with_name("architecture.png"))


def colour(file: str) -> str:
    """The colour of a file's department."""
    return COLOURS.get(file.split("/")[0], COLOURS["top level, losses, utils"])


if __name__ == "__main__":
    main()
