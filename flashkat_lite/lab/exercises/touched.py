"""What a kernel's programs touched, as one picture: programs down, addresses across, from the guard's own notes."""

import contextlib
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from IPython.display import HTML, display

SECTOR = 32  # bytes
MOST = 2**20  # active positions of the launch that is drawn
ROWS, WIDE, HIGH = 48, 640, 220  # rows of programs that are told apart; the picture in pixels
KINDS = {"loads": ("loaded", "var(--fk-blue, #0072b2)"), "stores": ("stored", "var(--fk-green, #009e73)")}
KINDS |= {"adds": ("added to", "var(--fk-orange, #d55e00)")}


class Touched:
    """Keeps, of the launches that it is told, the one that a picture shows best: several programs, not too many."""

    def __init__(self) -> None:
        self.best, self.score = None, ()

    def __call__(self, launch: Any) -> None:
        positions = sum(event.addresses.size for kind in KINDS for event in getattr(launch, kind))
        programs = len(launch.places)
        score = positions <= MOST, 1 < programs <= ROWS, positions
        if 0 < positions <= MOST and score > self.score:
            self.best, self.score = launch, score

    def show(self) -> None:
        """Draw it; where that fails, nothing is drawn, since a right answer stays right."""
        if self.best is not None:
            with contextlib.suppress(Exception):
                display(HTML(picture(self.best)))


def picture(launch: Any) -> str:
    """Return HTML: for each of the kernel's tensors that was touched, where by which program, and how well."""
    tensors = list(_tensors(launch))
    programs = len(launch.places)
    rows = min(programs, ROWS)
    across, high = (WIDE - 8 * (len(tensors) - 1)) / len(tensors), min(HIGH / rows, 16)
    marks, lines = [], []
    for place, tensor in enumerate(tensors):
        left = place * (across + 8)
        mine = {kind: list(_of(launch, kind, tensor)) for kind in KINDS}
        bins = min(int(across / 3), max(1, (tensor.high - tensor.low + SECTOR - 1) // SECTOR))
        marks.append(f'<text x="{left:.0f}" y="12" style="fill: currentColor">{escape(tensor.name[:18])}</text>')
        frame = "fill: none; stroke: currentColor; stroke-width: 0.5; opacity: 0.5"
        marks.append(_box(left, 18, across, rows * high, frame))
        for kind, events in mine.items():
            touched = np.zeros((rows, bins), dtype=bool)
            for program, addresses in events:
                at = (addresses - np.uint64(tensor.low)) * np.uint64(bins) // np.uint64(tensor.high - tensor.low)
                touched[program * rows // programs, at.astype(np.int64)] = True
            for row, first, last in _runs(touched):
                width = (last - first) * across / bins
                marks.append(
                    _box(left + first * across / bins, 18 + row * high, width, high * 0.9, f"fill: {KINDS[kind][1]}")
                )
        lines += [f"<li>{line}</li>" for line in _counts(tensor, mine)]
    name = escape(getattr(getattr(launch.kernel, "fn", None), "__name__", "the kernel"))
    said = f"{programs:,} programs of {name}, one below the other, and the addresses that each touched"
    height = 20 + rows * high
    drawing = (
        f'<svg viewBox="0 0 {WIDE} {height:.0f}" width="{WIDE}" role="img" aria-label="{said}" '
        f'style="max-width: 100%; font: 12px sans-serif">{"".join(marks)}</svg>'
    )
    key = ", ".join(f'<span style="color: {colour}">■</span> {word}' for word, colour in KINDS.values())
    return f'<div class="fk-touched"><p>{said}: {key}.</p>{drawing}<ul>{"".join(lines)}</ul></div>'


def _tensors(launch: Any) -> Iterator[Any]:
    """The tensors that the kernel was given and that programs touched, in the order of their names."""
    order = {name: place for place, name in enumerate(launch.names.values())}
    known = {(t.low, t.high): t for storage in launch.storages.values() for t in storage.tensors if t.high > t.low}
    for tensor in sorted(known.values(), key=lambda t: (order.get(t.name, len(order)), t.low)):
        if any(True for kind in KINDS for _ in _of(launch, kind, tensor)):
            yield tensor


def _of(launch: Any, kind: str, tensor: Any) -> Iterator[tuple[int, np.ndarray]]:
    """(program, addresses) of each access of this kind to a tensor."""
    for event in getattr(launch, kind):
        if tensor.low <= event.addresses[0] < tensor.high:  # all of an access, or nearly, is one tensor's
            inside = (event.addresses >= tensor.low) & (event.addresses < tensor.high)
            yield event.program, event.addresses if inside.all() else event.addresses[inside]


def _counts(tensor: Any, mine: dict[str, list]) -> Iterator[str]:
    """What is counted of a tensor: sectors and how much of them was wanted, additions and their addresses."""
    name = f"<code>{escape(tensor.name)}</code>"
    for kind, (word, _) in KINDS.items():
        events = [addresses for _, addresses in mine[kind]]
        if not events:
            continue
        elements = sum(map(len, events))
        if kind == "adds":
            _, times = np.unique(np.concatenate(events), return_counts=True)
            yield f"{name}: {elements:,} additions to {times.size:,} addresses, {times.max():,} at most to one"
            continue
        sectors = sum(np.unique(one // np.uint64(SECTOR)).size for one in events)
        wanted = sum(np.unique(one).size for one in events) * tensor.size
        unused = max(0.0, 1 - wanted / (sectors * SECTOR))
        yield f"{name}: {elements:,} elements {word} in {sectors:,} sectors of 32 bytes, {unused:.0%} of these unused"


def _runs(touched: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row, first, end) of each run of True in each row."""
    for row, line in enumerate(touched):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(np.int8)))
        for first, end in edges.reshape(-1, 2).tolist():
            yield row, first, end


def _box(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" style="{style}"/>'
