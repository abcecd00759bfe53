"""The figure that each chapter opens on: its question, drawn from the records or from counting, without its answer."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from ..paths import KEPT, ROOT

OPENINGS = {}
DRAWINGS = ROOT / "book" / "images" / "openings"  # by `python book/tools ladder`: to draw takes a second a chapter


def opening(number: str, alt: str) -> Callable:
    """Register a function of a width in inches that draws the opening of a chapter; `alt` names what it shows."""

    def register(draw: Callable) -> Callable:
        OPENINGS[number] = (draw, alt)
        return draw

    return register


@cache
def sources() -> str:
    """A hash of what the drawings are made by, and of the records that they show."""
    from flashkat_lite.records import DEFAULT_GPU

    code = Path(__file__).read_text(encoding="utf-8")
    lab = ROOT / "flashkat_lite" / "lab"
    shown = sorted(set(re.findall(r'_data\("(\w+)"\)', code)))
    texts = [path.read_text(encoding="utf-8") for path in (lab / "figures.py", lab / "fitting.py")]
    texts += [(KEPT / DEFAULT_GPU / f"{name}.json").read_text(encoding="utf-8") for name in shown]
    return hashlib.sha256("\n".join([code, *texts]).encode()).hexdigest()


def outputs() -> dict[Path, str]:
    """What each file of drawings should hold."""
    parts = {number: dict(zip(("wide", "narrow", "alt"), draw(number))) for number in OPENINGS}
    return {
        DRAWINGS / f"{number}.json": json.dumps({"of": sources(), **part}, ensure_ascii=False, indent=0) + "\n"
        for number, part in parts.items()
    }


@cache
def drawn(number: str) -> tuple[str, str, str]:
    """The opening of a chapter as SVG, the same for a phone, and its alternative text; as kept, if up to date."""
    path = DRAWINGS / f"{number}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (kept["wide"], kept["narrow"], kept["alt"]) if kept.get("of") == sources() else draw(number)


def draw(number: str) -> tuple[str, str, str]:
    from flashkat_lite.lab import figures

    make, alt = OPENINGS[number]
    figure, facts = make()
    return figures.svg(figure), figures.for_phones(figure), alt.format(*facts)


def _data(name: str):
    from flashkat_lite import records

    return records.load(name)


def _bars(
    title: str,
    rows: Sequence[tuple[str, float | None, str]],
    axis: str,
    source: str | None = None,
    log: bool = False,
    limit: tuple[float, str] | None = None,
    high: float | None = None,
):
    """Named bars with a word at their ends; a bar without a length is the question: an empty one, and a mark."""
    from flashkat_lite.lab import figures as F

    figure, axes = F.new(7.2, 1.25 + 0.44 * len(rows))
    most = high or max(length for _, length, _ in rows if length)
    least = (limit[0] if limit else min(length for _, length, _ in rows if length)) / 3 if log else 0
    if log:
        axes.set_xscale("log")
    axes.set_xlim(least or 0, most * (8 if log else 1.3))
    for y, (_, length, word) in enumerate(rows):
        if length is None:
            end = math.sqrt((limit[0] if limit else least) * most) if log else most
            axes.barh(y, end - least, left=least, height=0.6, color="none", edgecolor=F.MUTED, linestyle="--")
            axes.annotate(
                word, (end, y), (6, 0), textcoords="offset points", va="center_baseline", weight="bold", size=14
            )
            continue
        hot = length == most and len(rows) > 1
        axes.barh(y, length - least, left=least, height=0.6, color=F.ORANGE if hot else F.BLUE)
        start = max(length, limit[0]) if limit else length  # a word right of the limit's line, not on it
        axes.annotate(word, (start, y), (6, 0), textcoords="offset points", va="center_baseline")
    if limit:
        axes.axvline(limit[0], color=F.GREEN, linewidth=2)
        axes.annotate(
            limit[1], (limit[0], -0.72), (5, 0), textcoords="offset points", color=F.GREEN, va="center", size=10
        )
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -1.05 if limit else -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(axis)
    axes.set_title(title)
    axes.title.set_text("")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title("", loc="left")
    if source:
        F.footnote(figure, source)
    return figure


def _empty(width: float, height: float, title: str):
    """A sheet without axes, 100 wide, for what is drawn by hand."""
    from flashkat_lite.lab import figures as F

    figure, axes = F.new(width, height)
    axes.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, axes


@opening(
    "01",
    "Two panels. An edge of an MLP is a straight line through the origin, one number; an edge of a KAN is a curve.",
)
def a_curve_on_an_edge():
    import numpy as np

    from flashkat_lite.lab import figures as F

    figure, (left, right) = F.new(7.2, 2.7, ncols=2, sharey=True)
    x = np.linspace(-1, 1, 200)
    left.plot(x, 0.7 * x, color=F.BLUE, linewidth=2.5)
    right.plot(x, 0.5 * np.sin(4 * x) + 0.35 * np.cos(7 * x), color=F.ORANGE, linewidth=2.5)
    left.set_title("an edge of an MLP: a number", fontsize=11)
    right.set_title("an edge of a KAN: a curve", fontsize=11)
    left.set(xlabel="input of the edge", ylabel="its output")
    right.set_xlabel("input of the edge")
    figure.suptitle("What does a curve buy, and what does it cost?", x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, ()


@opening("02", "Two panels: eight different curves, one for each of eight columns; and one curve, shared by the eight.")
def a_curve_for_a_group():
    import numpy as np

    from flashkat_lite.lab import figures as F

    figure, (left, right) = F.new(7.2, 2.7, ncols=2, sharey=True)
    x = np.linspace(-1, 1, 200)
    for k in range(8):
        left.plot(x, 0.5 * np.sin(3 * x + k) + 0.3 * np.cos(5 * x - 2 * k) * x, color=F.ORANGE, linewidth=1.4)
    right.plot(x, 0.5 * np.sin(3 * x + 1) + 0.3 * np.cos(5 * x - 2) * x, color=F.BLUE, linewidth=3)
    left.set_title("KAN: a curve for each edge", fontsize=11)
    right.set_title("GR-KAN: one for a group of columns", fontsize=11)
    left.set(xlabel="input", ylabel="output")
    right.set_xlabel("input")
    figure.suptitle(
        "What is left of the idea if a group shares one curve?", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    return figure, ()


def _learn(steps: int = 2000):
    """Adam on 1/(1 + x²) from the identity, with sign(0) = 0: grid, target, fit, and the largest |b| on the way."""
    import numpy as np

    x = np.linspace(-3, 3, 256)
    target, powers = 1 / (1 + x**2), np.stack([x**k for k in range(6)])
    bumps = np.abs(np.stack([x**k for k in range(1, 5)]))
    theta, moved = np.array([0.0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), 0.0
    mean, square = np.zeros(10), np.zeros(10)
    for step in range(1, steps + 1):
        P, Q = theta[:6] @ powers, 1 + np.abs(theta[6:]) @ bumps
        error = 2 * (P / Q - target) / len(x)
        gradient = np.concatenate([powers @ (error / Q), -np.sign(theta[6:]) * (bumps @ (error * P / Q**2))])
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        theta -= 0.01 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        moved = max(moved, np.abs(theta[6:]).max())
    return x, target, (theta[:6] @ powers) / (1 + np.abs(theta[6:]) @ bumps), moved


@opening(
    "03",
    "Line chart: after 2,000 steps the learned function follows the target roughly; its four denominator "
    "coefficients are still {}.",
)
def four_that_do_not_move():
    from flashkat_lite.lab import figures as F

    x, target, fit, moved = _learn()
    figure, axes = F.new(7.2, 2.9)
    axes.plot(x, target, "--", color=F.MUTED, linewidth=2)
    axes.plot(x, fit, color=F.ORANGE, linewidth=2.5)
    axes.text(-3, 1.42, f"learned in 2,000 steps; $b_1$ to $b_4$ are all {moved:g}", color=F.ORANGE, va="top")
    axes.text(-3, 1.08, "dashed: the goal, 1/(1 + x²)", color=F.MUTED)
    axes.set_ylim(top=1.45)
    axes.set(xlabel="x", ylabel="F(x)", title="The loss falls, and four of ten coefficients never move")
    return figure, (f"{moved:g}",)


@opening(
    "04",
    "Bars of time: a copy takes {:.2f} ms, PyTorch's GELU {:.2f}; the rational function, in eager PyTorch and in one "
    "kernel, question marks.",
)
def as_fast_as_a_copy():
    record = _data("forward_eager")
    ms = {what: record.data[what]["ms"] for what in ("copy", "GELU")}
    rows = [
        ("a copy", ms["copy"], f"{ms['copy']:.2f} ms"),
        ("GELU (PyTorch)", ms["GELU"], f"{ms['GELU']:.2f} ms"),
        ("F(x), eager PyTorch", None, "?"),
        ("F(x), one kernel", None, "?"),
    ]
    title = "One number in, one number out: how long should that take?"
    return _bars(title, rows, "time of one forward pass (ms, logarithmic)", record.source, log=True, high=10), [
        *ms.values()
    ]


@opening(
    "05",
    "Two bars: reading 67 million numbers side by side takes {:.2f} ms, reading as many that lie 32 bytes "
    "apart {:.2f} ms.",
)
def as_many_numbers():
    record = _data("strides_and_alignment")
    at = {row["what"]: row["ms"] for row in record.data}
    near, far = at["1"], at["8"]
    rows = [("side by side", near, f"{near:.3f} ms"), ("32 bytes apart", far, f"{far:.3f} ms")]
    title = f"As many numbers, {far / near:.1f} times the time"
    return _bars(title, rows, "time to read 67 million float32 (ms)", record.source), (near, far)


@opening(
    "06", "Two bars: of 65,536 additions of 1 to one total, atomic additions keep all, load-add-store at most 2,048."
)
def lost_additions():
    rows = [
        ("atomic additions", 65536, "65,536 arrive"),
        ("load, add, store", 2048, "at most 2,048: a warp's 32 loads find one value"),
    ]
    figure = _bars("65,536 threads add 1 to one total", rows, "what the total can be in the end")
    return figure, ()


@opening(
    "07",
    "Bars on a logarithmic axis: the forward pass takes {:.2f} ms, a copy's time; a backward pass would take "
    "{:.2f} ms by its bytes; written the obvious way, a question mark.",
)
def how_slow():
    record = _data("atomic_backward")
    ms = {what: record.data[what]["ms"] for what in ("forward", "add")}
    rows = [
        ("forward", ms["forward"], f"{ms['forward']:.2f} ms: a copy's time"),
        ("backward, by its bytes", ms["add"], f"{ms['add']:.2f} ms"),
        ("backward, as written", None, "?"),
    ]
    title = "A backward pass written the obvious way: how slow can it be?"
    return _bars(title, rows, "time of one pass (ms, logarithmic)", record.source, log=True, high=300), [*ms.values()]


@opening(
    "08",
    "A line-up: arithmetic, the forward pass, loads, fences, returned values, a warp's own collisions, "
    "additions in line. Beside each an empty box and a question mark.",
)
def the_line_up():
    from flashkat_lite.lab import figures as F

    suspects = ["arithmetic", "the forward pass", "loads", "fences", "returned values", "collisions in a warp"]
    suspects += ["additions in line"]
    figure, axes = F.new(7.2, 3.3)
    axes.barh(range(7), [1] * 7, height=0.62, color="none", edgecolor=F.MUTED, linestyle="--")
    for y in range(7):
        axes.annotate("?", (0.5, y), ha="center", va="center_baseline", weight="bold")
    axes.set_yticks(range(7), suspects)
    axes.set_ylim(6.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 1], ["none", "all of it"])
    axes.set_xlabel("what goes of the time when the suspect is taken away")
    figure.suptitle("A factor of a thousand, and seven suspects", x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, ()


@opening(
    "09",
    "Bars on a logarithmic axis: atomic additions {:,.0f} ms, block reduction a question mark, the limit {:.2f} ms.",
)
def sum_first():
    record = _data("ladder")
    ms = {r["what"]: r["ms"] for r in record.data["results"] if r["columns"] == 768 and r["dtype"] == "float32"}
    rows = [
        ("an addition for each term", ms["backward_atomic"], f"{ms['backward_atomic']:,.0f} ms"),
        ("a sum, then an addition", None, "?"),
    ]
    limit = (ms["add"], f"the limit: {ms['add']:.2f} ms")
    figure = _bars(
        "Sum first, add once: how near does it come?",
        rows,
        "time of one backward pass (ms, logarithmic)",
        record.source,
        log=True,
        limit=limit,
    )
    return figure, (ms["backward_atomic"], ms["add"])


@opening(
    "10",
    "Bars of the share of the limit that block reduction reaches: {:.2f} at 192 columns, {:.2f} at 768, "
    "{:.2f} at 3,072.",
)
def half_is_left():
    from flashkat_lite.lab import figures as F

    record = _data("ladder")
    ms = {(r["what"], r["columns"]): r["ms"] for r in record.data["results"] if r["dtype"] == "float32"}
    widths = (192, 768, 3072)
    shares = [ms["add", d] / ms["backward_block", d] for d in widths]
    figure, axes = F.new(7.2, 2.6)
    axes.barh(range(3), shares, height=0.6, color=F.BLUE)
    axes.barh(
        range(3), [1 - s for s in shares], left=shares, height=0.6, color="none", edgecolor=F.MUTED, linestyle="--"
    )
    for y, share in enumerate(shares):
        axes.annotate(
            f"{share:.2f}",
            (share, y),
            (-6, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            color=F.PAPER,
            weight="bold",
        )
        axes.annotate("?", ((1 + share) / 2, y), ha="center", va="center_baseline", weight="bold", size=14)
    axes.axvline(1, color=F.GREEN, linewidth=2)
    axes.set_yticks(range(3), [f"{d:,} columns" for d in widths])
    axes.set_ylim(2.5, -0.5)
    axes.set_xlim(0, 1.04)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the limit (green)")
    figure.suptitle(
        "Block reduction stops at half of what memory allows", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    F.footnote(figure, record.source)
    return figure, shares


@opening("11", "Two bars, bfloat16's time over float32's: {:.2f} for the limit, {:.2f} for the backward kernel.")
def half_the_bytes():
    record = _data("ladder")
    ms = {(r["what"], r["dtype"]): r["ms"] for r in record.data["results"] if r["columns"] == 768}
    limit, kernel = (ms[what, "bfloat16"] / ms[what, "float32"] for what in ("add", "backward_stationary"))
    rows = [("the limit", limit, f"{limit:.2f}"), ("the kernel", kernel, f"{kernel:.2f}")]
    return _bars(
        "Half the bytes, but not half the time", rows, "time in bfloat16 over time in float32", record.source
    ), (limit, kernel)


@opening("12", "A histogram of one sum of {:,} terms, computed {} times on the same input: {} different values.")
def many_answers():
    from flashkat_lite.lab import figures as F

    record = _data("spread")
    values = record.data["atomic"]
    different = len(set(values))
    figure, axes = F.new(7.2, 2.8)
    axes.hist(values, bins=24, color=F.ORANGE)
    axes.set(
        xlabel="error of the sum (units)",
        ylabel="runs",
        title=f"One sum, one input, {len(values)} runs: {different} different answers",
    )
    F.footnote(figure, record.source)
    return figure, (record.data["terms"], len(values), different)


@opening(
    "13",
    "A chain: linear, kernel, linear, loss. The arrow of gradients reaches the last linear layer and ends "
    "at the kernel.",
)
def no_gradient_arrives():
    from flashkat_lite.lab import figures as F

    figure, axes = _empty(7.2, 2.2, "The output is right, and all before the kernel stays as it was drawn")
    axes.set(xlim=(0, 100), ylim=(0, 40))
    for k, (name, learns) in enumerate((("linear", False), ("kernel", False), ("linear", True), ("loss", True))):
        colour = F.BLUE if learns else F.GRID
        axes.add_patch(
            F.plt.Rectangle(
                (1 + 26 * k, 18), 19, 14, facecolor="none", edgecolor=F.ORANGE if k == 1 else colour, linewidth=2.5
            )
        )
        axes.text(10.5 + 26 * k, 25, name, ha="center", va="center")
        if k < 3:
            axes.annotate("", (26.6 + 26 * k, 28), (20.4 + 26 * k, 28), arrowprops=dict(arrowstyle="->", color=F.MUTED))
    axes.annotate("", (72.4, 22), (78.6, 22), arrowprops=dict(arrowstyle="->", color=F.BLUE, linewidth=2))
    axes.text(62.5, 8, "gradients", ha="center", color=F.BLUE)
    axes.text(10.5, 8, "None", ha="center", color=F.ORANGE, weight="bold")
    axes.text(36.5, 8, "None", ha="center", color=F.ORANGE, weight="bold")
    return figure, ()


@opening(
    "14",
    "Stacked bars of bytes an element: the norm reads 4 and writes 4, the cast 4 and 2, the rational "
    "function 2 and 2: 18 in all.",
)
def bytes_of_three():
    from flashkat_lite.lab import figures as F

    passes = {"norm": (4, 4), "cast": (4, 2), "rational": (2, 2)}
    figure, axes = F.new(7.2, 2.6)
    for y, (read, written) in enumerate(passes.values()):
        axes.barh(y, read, height=0.6, color=F.BLUE)
        axes.barh(y, written, left=read, height=0.6, color=F.SKY)
        axes.annotate(
            f"reads {read}, writes {written}",
            (read + written, y),
            (6, 0),
            textcoords="offset points",
            va="center_baseline",
        )
    axes.set_yticks(range(3), passes)
    axes.set_ylim(2.5, -0.5)
    axes.set_xlim(0, 12)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("bytes an element")
    total = sum(map(sum, passes.values()))
    figure.suptitle(
        f"Three kernels, each near its limit, move {total} bytes an element",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return figure, ()


@opening(
    "15",
    "Dots: terms for each address. A coefficient of ours {:,}, a norm's weight {:,}, a row of an "
    "embedding {} on average.",
)
def many_writers():
    from flashkat_lite.lab import figures as F

    rows, columns, groups = 1024 * 197, 768, 8
    tokens, words = 2**18, 2**15
    places = {
        "a coefficient of ours": rows * columns // groups,
        "a bias, a norm's weight": rows,
        "a row of an embedding": tokens // words,
    }
    figure, axes = F.new(7.2, 2.5)
    axes.set_xscale("log")
    axes.set_xlim(1, 3e8)
    axes.plot([*places.values()], range(3), "o", color=F.BLUE, markersize=9)
    for y, count in enumerate(places.values()):
        axes.annotate(f"{count:,}", (count, y), (9, 0), textcoords="offset points", va="center_baseline")
    axes.set_yticks(range(3), places)
    axes.set_ylim(2.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("terms that meet at one address (logarithmic)")
    figure.suptitle("Where else do many write to few addresses?", x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, [*places.values()]
