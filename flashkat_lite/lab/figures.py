"""Figures in one style: SVG, a palette safe for the colour-blind, white paper here and the page's colours in the book.

Every colour below is mapped to a theme-aware one when the book is built, so use these and no others.
"""

import contextlib
import functools
import io
import math
import os
import re
import textwrap
from collections.abc import Sequence
from html import escape

import ipywidgets
import matplotlib
from IPython.display import SVG, display

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

from . import fitting

INK, MUTED, GRID, PAPER = "#1a1a1a", "#666666", "#d9d9d9", "#ffffff"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#e69f00"
NAMES = dict(ink=INK, muted=MUTED, grid=GRID, paper=PAPER, blue=BLUE, orange=ORANGE, green=GREEN)
NAMES |= dict(purple=PURPLE, sky=SKY, yellow=YELLOW)

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flashkat",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW]),
}

# Each drawing has a parser of formulas of its own, and so reads all of them anew: half of its time.
with contextlib.suppress(AttributeError):  # of a Matplotlib that keeps them elsewhere
    _parse = MathTextParser._parse_cached.__wrapped__
    _parsers = functools.cache(MathTextParser)
    _parsed = functools.lru_cache(2000)(lambda output, *asked: _parse(_parsers(output), *asked))
    _outputs = {"vector": "path", "raster": "agg"}
    MathTextParser._parse_cached = lambda parser, *asked: _parsed(_outputs[parser._output_type], *asked)

# A page's letters are others than those that a formula was set with, and would fall beside its lines.
with contextlib.suppress(AttributeError):
    _as_text, _as_path = RendererSVG._draw_text_as_text, RendererSVG._draw_text_as_path

    def _drawn(self, gc, x, y, words, prop, angle, ismath, mtext=None):
        if ismath:
            return _as_path(self, gc, x, y, words, prop, angle, ismath, mtext)
        return _as_text(self, gc, x, y, words, prop, angle, ismath, mtext)

    RendererSVG._draw_text_as_text = _drawn


def new(width: float = 7.2, height: float = 3.4, **subplots) -> tuple[Figure, Axes]:
    """A figure in our style, in inches; keyword arguments go to `plt.subplots`."""
    plt.rcParams.update(STYLE)
    return plt.subplots(figsize=(width, height), layout="constrained", **subplots)


def svg(figure: Figure) -> str:
    """The figure as SVG text, the same bytes each time, its words in place (`fitting`); the figure is closed."""
    fitting.finish(figure)
    plt.close(figure)
    return _saved(figure)


def _saved(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def for_phones(figure: Figure) -> str | None:
    """The figure as SVG text once more, 3.56 inches wide, if it can be; it is changed by that."""
    if (narrow := getattr(figure, "narrow", None)) is not None:
        return svg(narrow())
    return _saved(figure) if fitting.narrow(figure) else None


def show(figure: Figure) -> None:
    """Display as image/svg+xml. Caption and alt text live in the cell's metadata.

    Where outputs are kept (`make execute`), the drawing for phones is text in this one's metadata; the book finds it.
    """
    display(SVG(_with_phones(svg(figure), figure)))


def _with_phones(drawing: str, figure: Figure) -> str:
    """The drawing of `figure`, with the one for phones as text in it where outputs are kept; changes the figure."""
    if not os.environ.get("FLASHKAT_PHONES") or (phones := for_phones(figure)) is None:
        return drawing
    kept = f'<metadata id="for-phones">{escape(phones, quote=False)}</metadata>'
    return drawing.replace("</svg>", f"{kept}</svg>")


def footnote(figure: Figure, text: str, size: float = 8) -> None:
    """A line under everything, for the GPU and date of what is drawn; `size` in points."""
    figure.supxlabel(text, x=0.01, horizontalalignment="left", fontsize=size, color=MUTED)


def ladder(
    rungs: Sequence[tuple[str, float]], limit: tuple[str, float], title: str, source: str, width: float = 7.2
) -> Figure:
    """Times as bars that start at the limit, on a logarithmic axis: a bar's length is how far there is to go.

    rungs: (name, milliseconds), slowest first; limit: likewise; width: inches. Below 5, for a phone, names stand above
    the bars and the label of a long bar within it.
    """
    words, where = title, source
    narrow, slowest = width < 5, max(ms for _, ms in rungs)
    size, row = (9.75, 0.5) if narrow else (11, 0.45)
    figure, axes = new(width, 1.8 + row * len(rungs))
    name, least = limit
    low, high = least / (1.1 if narrow else 1.6), slowest * (1.2 if narrow else 12)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    for y, (rung, ms) in enumerate(rungs):
        axes.barh(y, ms - least, left=least, height=0.55, color=BLUE if ms < 10 * least else ORANGE)
        times = f"{ms / least:,.0f}×" if ms > 10 * least else f"{ms / least:.2f}×"
        label = dict(text=f"{_ms(ms)}  ({times})", xy=(ms, y), textcoords="offset points", va="center_baseline")
        if narrow and math.log(ms / least) > 0.7 * math.log(high / low):
            # Large and bold: on the bar's colour smaller letters would be too pale.
            axes.annotate(**label, xytext=(-6, 0), ha="right", color=PAPER, fontsize=14, fontweight="bold")
        else:
            axes.annotate(**label, xytext=(6, 0), fontsize=size)
        if narrow:
            axes.annotate(rung, (least, y - 0.32), (2, 2), textcoords="offset points", fontsize=size)
    axes.axvline(least, color=GREEN, linewidth=2)
    top = -1.05 if narrow else -0.62
    label = f"{name}: {_ms(least)}"
    axes.annotate(label, (least, top), (6, 0), textcoords="offset points", color=GREEN, va="center", fontsize=size)
    axes.set_ylim(len(rungs) - 0.4, top - 0.33)
    axes.set_yticks(range(len(rungs)), [""] * len(rungs) if narrow else [n for n, _ in rungs])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=size)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda ms, _: f"{ms:,g}")
    axes.set_xlabel("time of one backward pass (ms, logarithmic)", fontsize=size)
    if narrow:
        title, source = textwrap.fill(title, int(11 * width)), textwrap.fill(source, int(13 * width))
    bold = dict(fontsize=11 if narrow else 12, fontweight="bold")
    figure.suptitle(title, x=0.01, horizontalalignment="left", **bold)
    footnote(figure, source, size=size if narrow else 8)
    figure.narrow = functools.partial(ladder, rungs, limit, words, where, fitting.PHONE)
    return figure


def _ms(ms: float) -> str:
    return f"{ms:,.{max(0, 2 - math.floor(math.log10(ms)))}f} ms"


def inline(figure: Figure, alt: str) -> str:
    """The figure as inline SVG for a page: named by `alt`, no background, colours that follow the page's theme.

    Where outputs are kept, the drawing for phones is in it, as `show` has it.
    """
    plt.close(figure)
    # As it is: frames under a slider must not shift against one another.
    text = _with_phones(_saved(figure), figure)
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="patch_1">.*?</g>', "", text, count=1, flags=re.S)
    for name, colour in NAMES.items():
        fallback = "currentColor" if name == "ink" else colour
        text = text.replace(colour, f"var(--fk-{name}, {fallback})")
    label = escape(alt, quote=True)
    return re.sub(
        r"<svg ([^>]*)>", rf'<svg role="img" aria-label="{label}" style="max-width:100%;height:auto" \1>', text, count=1
    )


def movable(frames: Sequence[str], description: str, start: int = 0) -> ipywidgets.Widget:
    """HTML frames under a slider. The two are joined in the browser, so it moves in the built page, with no kernel."""
    frames = _equally_high(frames)
    slider = ipywidgets.IntSlider(
        value=start, min=0, max=len(frames) - 1, description=description, readout=False,
        layout=ipywidgets.Layout(width="100%"), style={"description_width": "initial"},
    )  # fmt: skip
    stack = ipywidgets.Stack([ipywidgets.HTML(frame) for frame in frames], selected_index=start)
    ipywidgets.jslink((slider, "value"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])


PHONES_BOX = re.compile(r'(id="for-phones".*?height=")([\d.]+)(pt"[^&]*?viewBox="0) 0 ([\d.]+) [\d.]+"', re.DOTALL)


def _equally_high(frames: Sequence[str]) -> list[str]:
    """Drawings for phones, whose titles take one line or three, with room above, so that what is below stays put."""
    highest = max((float(found[2]) for frame in frames for found in PHONES_BOX.finditer(frame)), default=0)

    def raise_top(found: re.Match) -> str:
        before, height, between, width = found.groups()
        return f'{before}{highest:g}{between} {float(height) - highest:g} {width} {highest:g}"'

    return [PHONES_BOX.sub(raise_top, frame) for frame in frames]
