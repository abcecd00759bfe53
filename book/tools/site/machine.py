"""The machine in one drawing, for the head of each chapter and part: what is tested there is lit.

Numbers are those of chapter 5's and 6's records. Until a reader has measured them, a question mark stands for them.
"""

from functools import cache
from html import escape

PLACES = ("arithmetic", "registers", "shared", "l2", "queue", "hbm")
ALL = frozenset(PLACES)
LIT = {  # of a chapter by its number, of a part by its name
    "01": {"arithmetic"},
    "02": {"arithmetic"},
    "03": {"arithmetic"},
    "04": {"arithmetic", "hbm"},
    "05": {"registers", "shared", "l2", "hbm"},
    "06": {"l2", "queue"},
    "07": {"arithmetic", "l2", "hbm"},
    "08": ALL,
    "09": {"registers", "shared", "queue"},
    "10": {"registers", "hbm"},
    "11": {"arithmetic", "registers", "hbm"},
    "12": {"arithmetic", "queue"},
    "13": {"hbm"},
    "14": {"registers", "hbm"},
    "15": {"l2", "queue"},
    "part1_function": {"arithmetic"},
    "part2_machine": {"registers", "shared", "l2", "queue", "hbm"},
    "part3_disease": ALL,
    "part4_cure": {"arithmetic", "registers", "shared", "queue", "hbm"},
    "part5_use": {"registers", "queue", "hbm"},
}
UNKNOWN = {"01", "02", "03", "04", "05", "06", "part1_function", "part2_machine"}
INK, MUTED, GRID, BLUE = "#1a1a1a", "#666666", "#d9d9d9", "#0072b2"


@cache
def numbers() -> dict[str, tuple[str, str]]:
    """Of each place two lines: what it holds, and how long it takes and how much it delivers."""
    from flashkat_lite import records

    latency, speed = records.load("latency_by_size"), records.load("bandwidth_by_size").data
    device = latency.device
    waits = {row["bytes"]: row["ns"] for row in latency.data if row["how"] == "plain"}
    near = min(ns for size, ns in waits.items() if 2**20 <= size <= 16 * 2**20)
    own = [row for row in speed if row["how"] == "L2, own tiles"]
    l1 = records.load("l1_wire").data["gbps"]
    l2, hbm = max(row["gbps"] for row in own if row["bytes"] < device["l2_bytes"] / 3), own[-1]["gbps"]
    one = next(r for r in records.load("atomic_rate").data if r["addresses"] == 1)["per_ns"]
    return {
        "arithmetic": ("4 instructions", "a cycle"),
        "registers": ("256 KiB each", "no wait"),
        "shared": ("256 KiB each", f"{min(waits.values()):.0f} ns · {_thousands(l1)} GB/s"),
        "l2": (f"{device['l2_bytes'] / 1e6:.0f} MB in two halves", f"{near:.0f} ns · {_thousands(l2)} GB/s"),
        "queue": ("one addition at a time", f"{one:.2f} additions a ns"),
        "hbm": (f"{device['memory_bytes'] / 1e9:.0f} GB", f"{max(waits.values()):.0f} ns · {_thousands(hbm)} GB/s"),
    }


def multiprocessors() -> int:
    from flashkat_lite import records

    return records.load("latency_by_size").device["multiprocessors"]


def _thousands(gbps: float) -> str:
    return f"{round(gbps, -3 if gbps > 1e4 else -2):,.0f}"


NAMES = {
    "arithmetic": "arithmetic",
    "registers": "registers",
    "shared": "shared memory, L1",
    "l2": "L2 cache",
    "queue": "queue at an address",
    "hbm": "HBM",
}
# Left, top, width, height of each box, and the frame of the multiprocessors, in a drawing of this size
WIDE = (
    720,
    148,
    (4, 18, 372, 126),
    {
        "arithmetic": (14, 42, 172, 94),
        "registers": (194, 42, 172, 44),
        "shared": (194, 92, 172, 44),
        "l2": (396, 18, 172, 60),
        "queue": (396, 84, 172, 60),
        "hbm": (588, 18, 128, 126),
    },
)
NARROW = (
    342,
    304,
    (2, 18, 338, 126),
    {
        "arithmetic": (10, 42, 156, 94),
        "registers": (174, 42, 158, 44),
        "shared": (174, 92, 158, 44),
        "l2": (2, 160, 166, 62),
        "queue": (174, 160, 166, 62),
        "hbm": (2, 238, 338, 62),
    },
)


def said(of: str) -> str:
    """The drawing in words."""
    lit = [NAMES[place] for place in PLACES if place in LIT[of]]
    known = of not in UNKNOWN
    parts = [f"{NAMES[p]}: {', '.join(lines if known else lines[:1])}" for p, lines in numbers().items()]
    return f"The machine, an H200. Lit: {', '.join(lit)}. {'; '.join(parts)}."


def draw(of: str, narrow: bool = False) -> str:
    """SVG of the machine, for the chapter or part `of`."""
    width, height, frame, boxes = NARROW if narrow else WIDE
    parts = [
        f'<rect x="{frame[0]}" y="{frame[1]}" width="{frame[2]}" height="{frame[3]}" rx="6" '
        f'style="fill: none; stroke: {MUTED}; stroke-width: 1; stroke-dasharray: 4 3"/>',
        _words(frame[0] + 8, frame[1] + 16, f"a multiprocessor, one of {multiprocessors()}", MUTED, 12),
        _words(frame[0], 12, "the chip", MUTED, 12),
    ]
    for place, (x, y, w, h) in boxes.items():
        lit = place in LIT[of]
        colour = BLUE if lit else GRID
        parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="4" style="fill: {colour}; '
            f'fill-opacity: {0.16 if lit else 0.12}; stroke: {colour}; stroke-width: {2.5 if lit else 1.2}"/>'
        )
        lines = [NAMES[place], *numbers()[place]]
        if of in UNKNOWN and place != "arithmetic":
            lines[2] = "? ns · ? GB/s" if place != "queue" else "? additions a ns"
        if h < 50:
            lines = [lines[0], f"{lines[1].removesuffix(' each')} · {lines[2]}" if place == "registers" else lines[2]]
        top = y + h / 2 - 8 * len(lines) + 12.5
        for row, line in enumerate(lines):
            weight = 650 if row == 0 and lit else 400
            parts.append(_words(x + 8, top + 16 * row, line, INK if lit else MUTED, 13 if row == 0 else 12, weight))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(said(of))}">{"".join(parts)}</svg>'
    )


def _words(x: float, y: float, text: str, colour: str, size: int, weight: int = 400) -> str:
    style = f"fill: {colour}; font-size: {size}px; font-weight: {weight}; font-family: sans-serif"
    return f'<text x="{x:g}" y="{y:g}" style="{style}">{escape(text)}</text>'
