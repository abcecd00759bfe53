"""A drawing of the GPU: where programs live, and the memories with the ways between them."""

from collections.abc import Mapping
from typing import Any

from . import figures


def chip(said: Mapping[str, str] | None = None) -> Any:
    """Return a figure of the chip. said: words for the ways to "registers", "L1", "L2", "far L2" and "HBM"."""
    said = said or {}
    figure, axes = figures.new(7.2, 4.6)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.axis("off")

    def box(
        left: float, bottom: float, width: float, height: float, text: str, colour: str, alpha: float = 0.25
    ) -> None:
        place = (left, bottom), width, height
        axes.add_patch(figures.plt.Rectangle(*place, facecolor=colour, alpha=alpha, linewidth=0))
        axes.add_patch(figures.plt.Rectangle(*place, fill=False, edgecolor=colour, linewidth=1.2))
        axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=8.5)

    def way(x: float, low: float, high: float, key: str, side: str = "left") -> None:
        arrow = {"arrowstyle": "<->", "color": figures.MUTED, "linewidth": 1.4}
        axes.annotate("", (x, high), (x, low), arrowprops=arrow)
        place = x + (1 if side == "left" else -1), (low + high) / 2
        axes.text(*place, said.get(key, ""), ha=side, va="center", fontsize=8.5, weight="bold", color=figures.BLUE)

    def multiprocessor(left: float, width: float, name: str) -> None:
        box(left, 55, width, 43, "", figures.MUTED, 0.08)
        axes.text(left + width / 2, 97.3, name, ha="center", va="top", fontsize=8.5, weight="bold")
        box(left + 2, 77, width - 4, 14, "registers, 256 KiB\n64 warps", figures.GREEN)
        way(left + 5, 69, 77, "registers" if left == 2 else "")
        box(left + 2, 58, width - 4, 11, "shared memory\nand L1, 256 KiB", figures.GREEN)

    multiprocessor(2, 43, "multiprocessor 0")
    multiprocessor(55, 43, "multiprocessor 131")
    axes.text(50, 75, "…", ha="center", fontsize=14)
    way(12, 43, 55, "L1")
    way(88, 43, 55, "", "right")
    box(2, 31, 43, 12, "L2, one partition", figures.ORANGE)
    box(55, 31, 43, 12, "L2, the other partition", figures.ORANGE)
    axes.annotate("", (55, 37), (45, 37), arrowprops={"arrowstyle": "<->", "color": figures.MUTED, "linewidth": 1.4})
    axes.text(50, 45, "fabric", ha="center", fontsize=8.5)
    axes.text(50, 29, said.get("far L2", ""), ha="center", va="top", fontsize=8.5, weight="bold", color=figures.BLUE)
    way(12, 14, 31, "HBM")
    way(88, 14, 31, "", "right")
    box(2, 2, 96, 12, "HBM", figures.PURPLE)
    return figure
