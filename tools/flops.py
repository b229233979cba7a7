"""What a network costs: parameters and multiply-adds of one 112 x 112 face. ``python -m tools.flops [NAME ...]``.

Counts as insightface's tables do: a multiplication with its addition counts once, and only convolutions and matrix
products count, which are over 99 % of the work. This is what "6.3 GFLOPs" means for its r50; others count it double.
"""

from __future__ import annotations

if __name__ == "__main__":
    from utils.interrupts import end_in_one_line

    end_in_one_line("flops")

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from prettytable import PrettyTable
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backbones import MODEL_NAMES, get_model
from backbones.base import Backbone
from utils.text import complain


@dataclass(frozen=True)
class Cost:
    """What one network costs."""

    parameters: int  # numbers that training changes or could change: weights, biases, scales, slopes
    multiply_adds: int  # of one image


def cost_of(network: nn.Module) -> Cost:
    """Count a network's parameters, and the multiply-adds of its convolutions and matrix products for one image.

    On the meta device, ``with torch.device("meta"): get_model(name)``, nothing is allocated or computed. The
    network's training mode is restored.
    """
    assert isinstance(network, Backbone)
    parameters = list(network.parameters())
    was_training = network.training
    network.eval()  # a batch of one has no batch statistics
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            # The two parts by themselves: autocast, which forward switches, does not exist on the meta device.
            network.project(network.trunk(torch.zeros((1, *network.input_shape), device=parameters[0].device)))
    finally:
        network.train(was_training)
    return Cost(sum(p.numel() for p in parameters), counter.get_total_flops() // 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for what the user can fix."""
    parser = argparse.ArgumentParser(prog="flops", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NAME", help=f"default: all of {', '.join(MODEL_NAMES)}")
    parser.add_argument("--embedding-size", type=int, default=512, help="numbers per embedding (default 512)")
    options = parser.parse_args(argv)
    table = PrettyTable(["network", "parameters (M)", "multiply-adds (G)"], align="r")
    table.align["network"] = "l"
    try:
        for name in options.networks or MODEL_NAMES:
            with torch.device("meta"):
                cost = cost_of(get_model(name, options.embedding_size))
            table.add_row([name, f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.3f}"])
    except ValueError as error:
        complain("flops", error)
        return 2
    print(table)
    print("One multiplication with its addition counts once; convolutions and matrix products only.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
