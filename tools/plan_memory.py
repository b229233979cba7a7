"""Predict a recipe's memory per rank: ``python -m tools.plan_memory configs/NAME --ranks 8 [key=value ...]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields

from prettytable import PrettyTable

from backbones import get_model
from training.memory import MIB, MemoryPlan, plan_memory
from utils.config import Config, get_config
from utils.distributed import part_of


def main(argv: Sequence[str] | None = None) -> MemoryPlan:
    """Print the plan of the fullest rank and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="configs/NAME, with or without .py, or a path")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that go before the config's")
    parser.add_argument("--ranks", type=int, default=1, help="processes over all machines (default 1)")
    args = parser.parse_intermixed_args(argv)
    try:
        cfg = get_config(args.config, args.overrides)
        plan = plan_of(cfg, args.ranks)
    except (ValueError, OSError) as error:
        parser.exit(2, f"plan_memory: {error}\n")
    table = PrettyTable(["part", "MiB a rank"])
    table.align = "r"
    for field in fields(plan):
        table.add_row([field.name, f"{getattr(plan, field.name) / MIB:.0f}"])
    table.add_row(["total", f"{plan.total / MIB:.0f}"])
    print(table)
    return plan


def plan_of(cfg: Config, ranks: int) -> MemoryPlan:
    """The plan of the rank that holds most classes.

    Raises:
        ValueError: the number of identities is left to the data, or ``ranks`` is below 1.
    """
    num_classes = cfg.class_count()
    if num_classes is None:
        raise ValueError("num_classes = 'auto' leaves the number to the data: add num_classes=N")
    if ranks < 1:
        raise ValueError(f"--ranks must be at least 1, got {ranks}")
    head_size, negative_rate = cfg.head_layout()
    start, end = part_of(-(-num_classes // head_size), 0, ranks)
    rows = min(num_classes, (end - start) * head_size)
    return plan_memory(
        backbone=get_model(cfg.network, cfg.embedding_size, cfg.dropout, amp_dtype=cfg.amp_dtype()),
        image_size=cfg.image_size,
        batch_size=cfg.batch_size,
        gradient_acc=cfg.gradient_acc,
        world_size=ranks,
        optimizer=cfg.optimizer,
        rows=rows,
        embedding_size=cfg.embedding_size,
        head_size=head_size,
        drawn_rows=round(negative_rate * rows),
        head_storage=cfg.head_storage,
    )


if __name__ == "__main__":
    main()
