"""Draw docs/figures/stale_momentum.png: how old the gradients are that an update of a row consists of."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, DARK = "#2b6cb0", "#dd6b20", "#2f855a", "#2d3748"
BETA, GAP = 0.9, 16  # momentum; steps between two visits of a row


def older_than(weights: np.ndarray, ages: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Share of an update that comes from gradients of more than so many steps ago, in percent."""
    share = weights / weights.sum()
    return np.array([100 * share[ages > step].sum() for step in steps])


def main() -> None:
    """Write the picture beside this file."""
    visits = np.arange(400)
    steps = np.arange(0, 401)
    lines = (
        ("full softmax, momentum 0.9: visited in every step", BETA**visits, visits, DARK),
        ("visited every 16 steps, momentum kept", BETA**visits, GAP * visits, ORANGE),
        ("the same, momentum decays with the steps between", BETA ** (GAP * visits), GAP * visits, GREEN),
        ("the same, no momentum", (visits == 0).astype(float), GAP * visits, BLUE),
    )
    figure = Figure(figsize=(8, 3.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for label, weights, ages, colour in lines:
        older = older_than(weights, ages, steps)
        axes.step(steps, older, where="post", color=colour, label=label, linewidth=2)
    axes.set(xlabel="age of a gradient, steps", ylabel="share of an update that is older, %", ylim=(-2, 100))
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(Path(__file__).with_name("stale_momentum.png"))


if __name__ == "__main__":
    main()
