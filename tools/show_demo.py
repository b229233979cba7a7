"""Say what the demo found and where its pictures are: ``python -m tools.show_demo RUN_DIR DATA_DIR``."""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("show_demo")

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> None:
    """Print accuracy before and after training, and the files worth opening."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the training's output folder")
    parser.add_argument("data", type=Path, help="the folder of made-up faces")
    args = parser.parse_args(argv)
    lines = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    accuracy = [line["demo/accuracy"] for line in lines if "demo/accuracy" in line]
    print(
        f"\nPairs of people that the training has not seen: {100 * accuracy[0]:.1f} % right with the untrained "
        f"network, {100 * accuracy[-1]:.1f} % with the trained one.\n\n"
        f"  the faces        {args.data / 'faces.png'}\n"
        f"  the report       {args.run / 'ijb_test_results' / 'IJBC' / 'insightface.html'} (open it in a browser)\n"
        f"  the network      {args.run / 'model.pt'}\n"
        f"  the curves       tensorboard --logdir {args.run / 'tensorboard'}\n"
    )


if __name__ == "__main__":
    main()
