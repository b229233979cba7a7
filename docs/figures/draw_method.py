"""Draw docs/figures/method.png, the picture of how sampled heads work; run it from the project's root."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

BLUE, ORANGE, GREY, DARK = "#2b6cb0", "#dd6b20", "#e2e8f0", "#2d3748"
HEADS, SLOTS = 14, 4
LABELLED = {2: [1], 6: [0, 3], 11: [2]}  # head -> slots that hold a label of the batch


def main() -> None:
    """Write the picture beside this file."""
    figure = Figure(figsize=(11, 4.4), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 110)
    ax.set_ylim(0, 44)
    ax.axis("off")

    def box(x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.3", facecolor=colour, edgecolor="none"))
        ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", color="white", fontsize=10)

    def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = DARK, width: float = 1.5) -> None:
        ax.add_patch(
            FancyArrowPatch((x1, y1), (x2, y2), arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=width)
        )

    ax.text(2, 41, "one batch", color=DARK, fontsize=11, weight="bold")
    for i, label in enumerate(("class 9", "class 24", "class 27", "class 46")):
        y = 33 - 6.5 * i
        ax.add_patch(Rectangle((2, y), 4.2, 4.6, facecolor="#cbd5e0", edgecolor=DARK, linewidth=0.8))
        ax.text(4.1, y + 2.3, "face", ha="center", va="center", fontsize=7, color=DARK)
        ax.text(7.2, y + 2.3, label, ha="left", va="center", fontsize=9, color=ORANGE)
    arrow(15.5, 25.5, 19, 25.5)
    box(20, 19.5, 11, 12, "backbone\n(data parallel)", BLUE)
    arrow(32, 25.5, 35.5, 25.5)
    box(36.5, 21.5, 10.5, 8, "embeddings\nof all ranks", BLUE)

    ax.text(55, 41, "class centres, cut into heads of 4", color=DARK, fontsize=11, weight="bold")
    left, width, height = 55, 3.3, 4.6
    for head in range(HEADS):
        x = left + head * (width + 0.5)
        for slot in range(SLOTS):
            y = 32 - slot * (height + 0.25)
            holds_label = slot in LABELLED.get(head, [])
            colour = ORANGE if holds_label else "#f6ad55" if head in LABELLED else GREY
            ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=0.8))
            ax.text(
                x + width / 2,
                y + height / 2,
                str(head * SLOTS + slot),
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if holds_label else DARK if head in LABELLED else "#a0aec0",
            )
        if head in LABELLED:
            arrow(x + width / 2, 11.6, x + width / 2, 16.4, ORANGE)
    ax.plot([left + 7 * 3.8 - 0.25] * 2, [15.5, 38.5], color=DARK, linestyle=":", linewidth=1)
    ax.text(left + 3.5 * 3.8, 38.2, "rank 0", ha="center", fontsize=9, color=DARK)
    ax.text(left + 10.5 * 3.8, 38.2, "rank 1", ha="center", fontsize=9, color=DARK)
    arrow(48, 25.5, 54, 25.5)

    box(
        55,
        7,
        53,
        4.2,
        "softmax over the selected heads, update of their rows only",
        ORANGE,
    )
    ax.text(
        55,
        3.2,
        "orange: a label of the batch     light: its head, computed and updated too\n"
        "grey: not read, not computed, not written; every bit stays",
        fontsize=9,
        color=DARK,
        va="center",
    )
    figure.savefig(Path(__file__).with_name("method.png"))


if __name__ == "__main__":
    main()
