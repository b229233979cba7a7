"""Draw the course of one or more runs into one picture.

    python -m tools.plot_run RUN [RUN ...] --out run.png

RUN is the folder that train.py writes, also while the run is in progress, or a metrics.jsonl. The picture shows loss,
learning rate, verification accuracy, images a second and the share of time spent waiting for data, by optimizer step;
runs in colours. Loss, speed and waiting are drawn twice: thin as logged, thick as a mean over neighbouring log lines,
whose number the picture states.

Exit status: 0 drawn, 2 a run has no figures or the picture cannot be written.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("plot_run")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.parts.run_curves import read_runs
from tools.parts.run_figure import draw_runs
from utils.atomic import open_atomic
from utils.text import complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="plot_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a metrics.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, .png")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="log lines in a mean (default: a fortieth of a run's); 1: none"
    )
    args = parser.parse_args(argv)
    try:
        if args.out.suffix.lower() != ".png":
            raise ValueError(f"--out takes the name of a .png, got {args.out}")
        if args.smooth is not None and args.smooth < 1:
            raise ValueError(f"--smooth must be at least 1, got {args.smooth}")
        if not args.out.parent.is_dir():
            raise FileNotFoundError(f"{args.out.parent}: no such folder for {args.out.name}: make it first")
        runs = read_runs(args.runs)
        with open_atomic(args.out) as file:
            draw_runs(runs, args.smooth, file)
    except (ValueError, OSError) as error:
        complain("plot_run", error)
        return 2
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
