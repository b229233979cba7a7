"""Predict a recipe's memory per rank: ``python -m tools.plan_memory configs/NAME --ranks 8 [key=value ...]``."""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("plan_memory")

import argparse
from collections.abc import Sequence
from dataclasses import fields

from prettytable import PrettyTable

from training.memory import MIB, MemoryPlan, plan_of
from utils.config import get_config
from utils.text import plain


def main(argv: Sequence[str] | None = None) -> MemoryPlan:
    """Print the plan of the fullest rank and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="configs/NAME, with or without .py, or a path")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config's")
    parser.add_argument("--ranks", type=int, default=1, help="processes on all machines together (default 1)")
    args = parser.parse_intermixed_args(argv)
    try:
        cfg = get_config(args.config, args.overrides)
        if cfg.precision == "auto":
            cfg = cfg.with_precision("float32")
            print("precision = 'auto' is counted as float32, which takes more; give precision=bf16 for a GPU")
        plan = plan_of(cfg, args.ranks)
    except (ValueError, OSError) as error:
        parser.exit(2, f"plan_memory: {plain(str(error))}\n")
    table = PrettyTable(["part", "MiB a rank"])
    table.align = "r"
    for field in fields(plan):
        table.add_row([field.name, f"{getattr(plan, field.name) / MIB:.0f}"])
    table.add_row(["total", f"{plan.total / MIB:.0f}"])
    print(table)
    return plan


if __name__ == "__main__":
    main()
