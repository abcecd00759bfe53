"""What a kernel's programs touched, as one picture: programs down, addresses across, from the guard's own notes."""

import contextlib
import math
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from IPython.display import HTML, display

SECTOR = 32  # bytes
MOST = 2**20  # active positions of the launch that is drawn
ROWS, WIDE, HIGH = 48, 320, 220  # rows of programs that are told apart; a panel in pixels
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
    """Return HTML: for each of the kernel's tensors that was touched, where by which program, and how well.

    A panel a tensor: beside one another where there is room, below one another on a phone.
    """
    programs = len(launch.places)
    panels, lines, seen = [], [], set()
    for tensor in _tensors(launch):
        mine = {kind: events for kind in KINDS if (events := list(_of(launch, kind, tensor)))}
        panels.append(_panel(tensor, mine, programs))
        lines += [f"<li>{line}</li>" for line in _counts(tensor, mine)]
        seen |= set(mine)
    name = escape(getattr(getattr(launch.kernel, "fn", None), "__name__", "the kernel"))
    down = "one below the other" if programs <= ROWS else f"{math.ceil(programs / ROWS):,} to a line"
    key = ", ".join(
        f'<span style="color: {KINDS[kind][1]}">■</span> {KINDS[kind][0]}' for kind in KINDS if kind in seen
    )
    beside = "display: flex; flex-wrap: wrap; align-items: flex-end; gap: 1em; max-width: 60em"
    return (
        f'<div class="fk-touched"><p>{programs:,} programs of {name}, {down}, and the addresses that each touched: '
        f'{key}.</p><div style="{beside}">{"".join(panels)}</div><ul>{"".join(lines)}</ul></div>'
    )


def _panel(tensor: Any, mine: dict[str, list], programs: int) -> str:
    """A tensor's programs and addresses; what was loaded lies above what was stored or added to in a program's line."""
    rows, length = min(programs, ROWS), tensor.high - tensor.low
    high = min(HIGH / rows, 16)
    bins = min(WIDE // 3, max(1, (length + SECTOR - 1) // SECTOR))
    part, marks = 0.9 * high / len(mine), []
    for place, (kind, events) in enumerate(mine.items()):
        touched = np.zeros((rows, bins), dtype=bool)
        for program, addresses in events:
            at = (addresses - np.uint64(tensor.low)) * np.uint64(bins) // np.uint64(length)
            touched[program * rows // programs, at.astype(np.int64)] = True
        for row, first, last in _runs(touched):
            x, width = first * WIDE / bins, (last - first) * WIDE / bins
            marks.append(_box(x, row * high + place * part, width, part, f"fill: {KINDS[kind][1]}"))
    said = " and ".join(f"{KINDS[kind][0]} by {_shared(events)}" for kind, events in mine.items())
    name, edge = escape(tensor.name), "border: 1px solid; box-sizing: border-box; display: block"
    return (
        f'<figure style="flex: 1 1 15em; min-width: 0; margin: 0"><figcaption><code>{name}</code>: {said}</figcaption>'
        f'<svg viewBox="0 0 {WIDE} {rows * high:.0f}" preserveAspectRatio="none" width="100%" '
        f'height="{rows * high + 2:.0f}" role="img" aria-label="{name}, by program and address: {said}" '
        f'style="{edge}">{"".join(marks)}</svg>'
        '<div style="display: flex; justify-content: space-between; font-size: smaller">'
        f"<span>byte 0</span><span>byte {length - 1:,}</span></div></figure>"
    )


def _shared(events: list[tuple[int, np.ndarray]]) -> str:
    """Whose the touched sectors are, in words."""
    whose = {}
    for program, addresses in events:
        whose.setdefault(program, []).append(np.unique(addresses // np.uint64(SECTOR)))
    of_each = [np.unique(np.concatenate(sectors)) for sectors in whose.values()]
    if len(of_each) == 1:
        return "one program"
    _, many = np.unique(np.concatenate(of_each), return_counts=True)
    if many.max() == 1:
        return f"{len(of_each):,} programs, each in sectors of its own"
    return f"{len(of_each):,} programs, {many.max():,} of them at most in one sector"


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
    for kind, of_kind in mine.items():
        word, events = KINDS[kind][0], [addresses for _, addresses in of_kind]
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
