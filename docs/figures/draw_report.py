"""Photograph a report for the documents: ``python docs/figures/draw_report.py REPORT.html``, after ``make demo``.

Writes report.png beside this file, in 256 colours, so that it stays small.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image  # comes with matplotlib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tools.screenshot import screenshot

WIDTH, HEIGHT = 1280, 2960  # of the window, in pixels
SCALE = 0.75


def main(argv: Sequence[str] | None = None) -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the report")
    page = parser.parse_args(argv).page
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.png"
        screenshot(page, full, WIDTH, HEIGHT)
        size = (round(SCALE * WIDTH), round(SCALE * HEIGHT))
        image = Image.open(full).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    few = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(Path(__file__).with_name("report.png"), optimize=True)


if __name__ == "__main__":
    main()
