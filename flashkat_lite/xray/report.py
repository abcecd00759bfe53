"""What a forecast says: a line with a range, a table by source line, warnings, a picture, JSON."""

import linecache
import math
import textwrap
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any

from .counting import SECTOR, Launch, Outside, Torch
from .model import Estimate, estimate, simpler, together
from .prices import Prices
from .warp import placed

SPREAD = {"waiting": 1.5, "one unit's additions": 1.5, "additions": 1.5}  # factor; the other terms: SURE
SURE = 1.25
WORDS = {
    "HBM": "HBM's bytes bind",
    "L2": "L2's bytes bind",
    "issue": "issuing instructions binds",
    "integer": "the integer pipe binds",
    "product": "integer multiply-adds bind",
    "special": "special functions and conversions bind",
    "memory": "the load/store pipe binds",
    "double": "float64 binds",
    "waiting": "warps wait",
    "programs": "starting programs binds",
    "one unit's additions": "additions queue at the fullest unit of L2",
    "additions": "the number of additions binds",
}


@dataclass(frozen=True)
class Row:
    """One access of the source, by all programs. Bytes; `used` and `masked` are shares; `stalled`: of a warp's time."""

    file: str
    line: int
    text: str
    kind: str  # "load", "store" or "add"
    argument: str
    asked: float  # bytes that active lanes want
    sectors: float  # moved for them, of 32 bytes
    used: float
    masked: float
    additions: float
    addresses: float
    turns: float
    stalled: float

    @property
    def wasted(self) -> float:
        """Bytes of the sectors that nobody asked for."""
        return max(self.sectors * SECTOR - self.asked, 0.0)


@dataclass(frozen=True)
class Forecast:
    """What a function should take on a GPU: `ms`, between `low` and `high`, and why.

    launches and estimates belong together, in order. Printing it gives one line; `table()` the rest.
    """

    name: str
    prices: Prices
    launches: list[Launch | Torch]
    estimates: list[Estimate]

    @property
    def ms(self) -> float:
        return together(self.estimates, self.prices)

    @property
    def main(self) -> Estimate:
        """The launch that takes longest."""
        return max(self.estimates, key=lambda e: e.ms)

    @property
    def bound(self) -> str:
        return self.main.bound

    @property
    def spread(self) -> float:
        """The factor within which the committed comparison keeps almost all kernels that the same term binds."""
        return SPREAD.get(self.bound, SURE) * (1.5 if self.prices.extrapolated else 1.0)

    @property
    def low(self) -> float:
        return (self.ms - self.main.ms + self.main.low) / self.spread

    @property
    def high(self) -> float:
        return (self.ms - self.main.ms + self.main.high) * self.spread

    @property
    def ill(self) -> bool:
        """Whether many writers on few addresses hold a launch back: additions at one unit of L2 take longest of all."""
        return any(isinstance(launch, Launch) and _binds(one) == "one unit's additions"
                   for launch, one in zip(self.launches, self.estimates))  # fmt: skip

    @property
    def least(self) -> float:
        """ms of moving once what its launches touch, at the rate of a copy."""
        prices = self.prices
        touched = Counter()
        for launch in self.launches:
            if isinstance(launch, Launch):
                for (kind, name), sectors in launch.touched.items():
                    nbytes = min(SECTOR * launch.scale * sectors, launch.sizes.get(name, math.inf))
                    touched[kind] = max(touched[kind], 0) + nbytes
        ns = touched["load"] / prices.read + touched["store"] / prices.write + prices.overhead
        return ns / 1e6

    def __str__(self) -> str:
        main = self.main
        launch = self.launches[self.estimates.index(main)]
        label = " (extrapolated from data sheets)" if self.prices.extrapolated else ""
        text = f"{_a(self.prices.name)}{label} would take about {_ms(self.ms)} ({_ms(self.low)} to {_ms(self.high)})"
        text += f": {WORDS[self.bound]}"
        if isinstance(launch, Launch) and self.bound == "waiting":
            programs, warps = _some(main.fit, "program"), _some(launch.warps, "warp")
            text += f", {programs} of {warps} on a multiprocessor (limited by {main.fits_by})"
        if len(self.estimates) > 1:
            text += f", in {launch.name}, the longest of {len(self.estimates)} launches"
        return f"{text}. Moving its bytes once takes {_ms(self.least)}."

    def rows(self) -> list[Row]:
        """Return a row for each access of the source, launch by launch."""
        found = []
        for launch, one in zip(self.launches, self.estimates):
            if isinstance(launch, Torch):
                continue
            by_argument = Counter(name for name, _ in launch.words)
            for (kind, (file, number), name), a in launch.accesses.items():
                asked, moved = launch.scale * a.active * a.size, launch.scale * a.sectors
                stalled = (
                    one.warp.stalls.get(placed((file, number)), 0.0) / max(one.warp.cycles, 1.0)
                    if kind == "load"
                    else 0.0
                )
                adding = kind == "add"
                turns = a.turns * launch.programs / max(launch.alone, 1)
                found.append(Row(
                    file, number, linecache.getline(file, number).strip(), kind, name, asked, moved,
                    min(asked / max(moved * SECTOR, 1.0), 4.0), 1 - a.active / max(a.lanes, 1.0),
                    launch.scale * a.active if adding else 0.0, by_argument[name] if adding else 0, turns, stalled,
                ))  # fmt: skip
        return found

    def warnings(self) -> list[str]:
        """Return what a reader should know beyond the time: queues of additions, shared places, idle lanes."""
        return [text for launch, one in zip(self.launches, self.estimates) if isinstance(launch, Launch)
                for text in [*_queues(launch, one, self.prices), *_wasted(launch, one), *_shared(launch)]]  # fmt: skip

    def table(self) -> str:
        """Return the line, the terms, the table by source line and the warnings, as text."""
        text = [f"{self.name}: {self}"]
        for launch, one in zip(self.launches, self.estimates):
            if isinstance(launch, Torch):
                text.append(f"  PyTorch's {launch.name}: {_ms(one.ms)}, by its bytes alone")
                continue
            text.append(
                f"  {launch.name}: {_ms(one.ms)}; {launch.programs:,} programs of {launch.warps} warps ({launch.ran} "
                f"were run), {one.fit} on a multiprocessor ({one.fits_by}); {launch.report.registers} registers, "
                f"{launch.report.spills} bytes spilled"
            )
            for name, ms in sorted(one.terms.items(), key=lambda t: -t[1])[:6]:
                text.append(f"    {'→' if name == one.bound else ' '} {name:22}{ms:10.4f} ms")
        text.append(f"  {'line':>6}  {'':5} {'argument':12}{'MB asked':>12}{'used':>6}{'masked':>8}{'stalls':>8}")
        for row in self.rows():
            text.append(
                f"  {row.line:6}  {row.kind:5} {row.argument:12}{row.asked / 1e6:12,.1f}{row.used:6.0%}"
                f"{row.masked:8.0%}{row.stalled:8.0%}  {row.text[:60]}"
            )
            if row.kind == "add":
                text.append(
                    f"{'':17}{row.additions:,.0f} additions on {row.addresses:,} addresses (of those seen), "
                    f"{row.turns:,.0f} turns"
                )
        return "\n".join([*text, *(f"  {warning}" for warning in self.warnings())])

    def json(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        launches = []
        for launch, one in zip(self.launches, self.estimates):
            row = {
                "name": launch.name,
                "ms": one.ms,
                "bound": one.bound,
                "terms": one.terms,
                "read": one.read,
                "written": one.written,
            }
            if isinstance(launch, Launch):
                row |= {"grid": list(launch.grid), "warps": launch.warps, "registers": launch.report.registers,
                        "spills": launch.report.spills, "fit": one.fit, "fits_by": one.fits_by}  # fmt: skip
            launches.append(row)
        return {
            "name": self.name, "gpu": self.prices.name, "extrapolated": self.prices.extrapolated, "ms": self.ms,
            "low": self.low, "high": self.high, "bound": self.bound, "least": self.least, "launches": launches,
            "rows": [vars(row) for row in self.rows()], "warnings": self.warnings(), "line": str(self),
        }  # fmt: skip

    def bytes_alone(self) -> dict[str, float]:
        """Return what simpler models say, in ms: see `model.simpler`."""
        each = [simpler(one, self.prices) for one in self.estimates]
        extra = (len(each) - 1) * (self.prices.overhead - self.prices.again) / 1e6
        return {name: sum(e[name] for e in each) - extra for name in each[0]}

    def _repr_html_(self) -> str:
        return html(self)


def forecast(name: str, launches: list[Launch | Torch], prices: Prices) -> Forecast:
    """Return the forecast of a function's launches. Raises ValueError where it has none, Outside for the unknown."""
    if outside := next((one.outside for one in launches if isinstance(one, Launch) and one.outside), ""):
        raise Outside(outside)
    if not any(isinstance(launch, Launch) for launch in launches):
        raise ValueError(f"{name} launched no Triton kernel: there is nothing to x-ray")
    return Forecast(name, prices, launches, [estimate(launch, prices) for launch in launches])


def _ms(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms" if ms >= 0.1 else f"{1e3 * ms:.3g} µs"


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _a(name: str) -> str:
    short = name.removeprefix("NVIDIA ").split()[0] if "GeForce" not in name else name.removeprefix("NVIDIA ")
    return f"An {short}" if short[0] in "AEFHILMNORSX8" else f"A {short}"


def _binds(one: Estimate) -> str:
    """Return which term of additions binds a launch, if one does; else ""."""
    rest = max(t for k, t in one.terms.items() if "additions" not in k)
    return one.bound if "additions" in one.bound and one.terms["one unit's additions"] >= rest else ""


def _queues(launch: Launch, one: Estimate, prices: Prices) -> list[str]:
    """Many writers, few addresses: said where it binds; where it does not, one calm line."""
    if not launch.words:
        return []
    lines = sorted({line for kind, (_, line), _ in launch.accesses if kind == "add"})
    scale = launch.programs / max(launch.alone, 1)
    count = scale * sum(launch.words.values())
    where = f"Line{'s' * (len(lines) > 1)} {_listed(lines)} of {launch.name}"
    unit, rest = one.terms["one unit's additions"], [t for k, t in one.terms.items() if "additions" not in k]
    if not _binds(one):
        ms = max(unit, one.terms["additions"])
        return [f"{where}: {count:,.0f} additions, {_ms(ms)}, beside {_ms(max(rest))} of the rest."]
    sectors = len(launch.queue)
    turns = sum(t for programs in launch.queue.values() for _, t in programs)
    adds = [a for (kind, *_), a in launch.accesses.items() if kind == "add"]
    a_sector = turns / max(sum(a.sectors for a in adds) * launch.alone / launch.ran, 1e-9)
    busy = min(max(1, -(-sectors // 8)) * 1.0, prices.units)
    if a_sector > 4:
        cure = "Most turns are lanes of one warp that meet at a word: sum within the warp first"
    elif turns / max(launch.alone, 1) < 1.5 * sectors:
        cure = "Each program adds once to each place: fewer, larger programs make fewer additions"
    else:
        cure = "Sum in the program first: fewer additions help in proportion"
    (name, word), most = max(launch.words.items(), key=lambda item: item[1])
    return [
        f"{where}: {count:,.0f} additions meet at {len(launch.words):,} addresses in {sectors:,} sectors; the fullest, "
        f"{name}[{word}], gets {most / sum(launch.words.values()):.1%} of them. Additions to one address wait for one "
        f"another, {prices.turn[0]:.1f} ns each, and these sectors belong to about {busy:.0f} of {prices.units} units "
        f"of L2: about {_ms(unit)}, where the bytes take {_ms(one.terms['HBM'])}. {cure}; more addresses help until "
        f"about {prices.units} units are busy; faster memory does not help. Their order is left to chance: a float's "
        "sum may differ from run to run."
    ]  # fmt: skip


def _wasted(launch: Launch, one: Estimate) -> list[str]:
    """Lines whose warps ask for a word here and a word there, where moving bytes binds and most are theirs."""
    accesses = {key: a for key, a in launch.accesses.items() if key[0] != "add"}
    moved = sum(a.sectors for a in accesses.values())
    if one.bound not in ("HBM", "L2", "memory", "waiting"):
        return []
    return [
        f"Line {line} of {launch.name} uses {a.active * a.size / (SECTOR * a.sectors):.0%} of the bytes that its warps "
        f"move: their lanes ask for words apart, and each brings {SECTOR} bytes. Let neighbouring lanes ask for "
        "neighbouring words."
        for (_, (_, line), _), a in accesses.items()
        if a.sectors > moved / 4 and a.active * a.size < SECTOR * a.sectors / 2
    ]


def _shared(launch: Launch) -> list[str]:
    where = "where another program loads or stores: their order is left to chance."
    return [f"Line {line} of {launch.name} stores to {name} {where}"
            for name, (_, line) in sorted(launch.races)]  # fmt: skip


def _listed(lines: list[int]) -> str:
    return str(lines[0]) if len(lines) == 1 else ", ".join(map(str, lines[:-1])) + f" and {lines[-1]}"


def _bar(share: float, colour: str, top: str = "0", height: str = "100%", left: float = 0.0) -> str:
    """Return a box of so many hundredths of its row's width."""
    place = f"position:absolute;left:{100 * left:.2f}%;top:{top};height:{height};width:{100 * share:.2f}%"
    return f'<span style="{place};background:{colour}"></span>'


def bars(
    name: str, gpu: str, ms: float, low: float, high: float, least: float, terms: dict[str, float], bound: str,
    recorded: float | None = None,
) -> str:  # fmt: skip
    """Return a picture in HTML: a bar a term, the one that binds marked, its bytes once as a line, the record if given.

    It is as wide as there is room, and its label says in words what it shows. Times are in ms.
    """

    def colour(name: str, other: str) -> str:
        return f"var(--fk-{name}, {other})"

    found = [("forecast", ms, colour("blue", "#0072b2"))]
    found += [("recorded", recorded, colour("green", "#009e73"))] if recorded else []
    found += [
        (term, t, colour("orange", "#d55e00") if term == bound else colour("muted", "#767676"))
        for term, t in sorted(terms.items(), key=lambda t: -t[1])[:6]
    ]
    most, rows = max(high, least, *(t for _, t, _ in found)), []
    once = f"position:absolute;left:{100 * least / most:.2f}%;top:-3px;height:calc(100% + 6px)"
    for what, t, fill in found:
        text, inside = escape(what), _bar(t / most, fill)
        if what == bound:
            text = f"<strong>{text}, binds</strong>"
        elif what == "forecast":
            text = f"<strong>{text}</strong>"
            inside += _bar((high - low) / most, "currentColor", "calc(50% - 1px)", "2px", low / most)
        inside += f'<span style="{once};border-left:2px dashed {colour("green", "#009e73")}"></span>'
        track = f'<span style="position:relative;height:1.1em;min-width:0">{inside}</span>'
        rows.append(f'<span style="text-align:right">{text}</span>{track}<span>{_ms(t)}</span>')
    said = ", ".join(f"{what} {_ms(t)}" for what, t, _ in found)
    label = (
        f"{name} on {gpu}: {said}; forecast between {_ms(low)} and {_ms(high)}; its bytes once {_ms(least)}, the "
        f"dashed line; {bound} binds"
    )
    grid = "display:grid;grid-template-columns:minmax(5rem,30%) 1fr 5rem;gap:.35rem .6rem;align-items:center"
    return (
        f'<div role="img" aria-label="{escape(label)}" style="{grid};max-width:40rem;margin:.5rem 0">{"".join(rows)}'
        f"<span></span><span>dashed: its bytes once, {_ms(least)}</span></div>"
    )


def picture(forecast: Forecast, recorded: float | None = None) -> str:
    """Return the picture of a forecast, and of the time that was recorded, if one is given: see `bars`."""
    main = forecast.main
    return bars(
        forecast.name, forecast.prices.name, forecast.ms, forecast.low, forecast.high, forecast.least, main.terms,
        main.bound, recorded,
    )  # fmt: skip


AROUND = 120  # lines of a kernel's source that are shown


def source(forecast: Forecast) -> str:
    """Return the kernels' lines, from the first to the last that reaches memory, with their numbers beside, as HTML."""
    head = ["line", "source", "MB asked", "sectors used", "lanes masked", "additions", "turns", "stalls"]
    by_place: dict[str, dict[int, list[Row]]] = {}
    for row in forecast.rows():
        by_place.setdefault(row.file, {}).setdefault(row.line, []).append(row)
    body = []
    for file, lines in by_place.items():
        shown = range(min(lines), max(lines) + 1) if max(lines) - min(lines) < AROUND else sorted(lines)
        texts = textwrap.dedent("\n".join(linecache.getline(file, number).rstrip() for number in shown)).split("\n")
        for number, text in zip(shown, texts):
            for k, row in enumerate(lines.get(number) or [None]):
                body.append(f'<tr><th scope="row">{number}</th>{_code(text if k == 0 else "")}{_numbers(row)}</tr>')
    heads = "".join(f'<th scope="col">{h}</th>' for h in head)
    table = f'<table class="fk-table"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div style="overflow-x:auto" tabindex="0" role="region" aria-label="source with its numbers">{table}</div>'


def _code(text: str) -> str:
    style = "overflow-wrap:anywhere;white-space:pre-wrap"  # beside its numbers on a phone too
    return f'<td style="min-width:16rem;text-align:left"><code style="{style}">{escape(text[:100])}</code></td>'


def _numbers(row: Row | None) -> str:
    """Return a row's cells; empty ones for a line that reaches no memory."""
    if row is None:
        return "<td></td>" * 6
    numbers = [f"{row.asked / 1e6:,.1f}", f"{row.used:.0%}", f"{row.masked:.0%}"]
    numbers += [f"{row.additions:,.0f}", f"{row.turns:,.0f}"] if row.kind == "add" else ["–", "–"]
    numbers += [f"{row.stalled:.0%}" if row.stalled >= 0.005 else "–"]
    return "".join(f"<td>{n}</td>" for n in numbers)


def html(forecast: Forecast, recorded: float | None = None) -> str:
    """Return the line, the picture, the source's lines with their numbers, and the warnings, as HTML."""
    under = "".join(f'<p class="fk-note">{escape(text)}</p>' for text in forecast.warnings())
    return f'<p class="fk-note">{escape(str(forecast))}</p>{picture(forecast, recorded)}{source(forecast)}{under}'


def compared(first: Forecast, second: Forecast) -> str:
    """Return in words which of two is faster, and which term moved."""
    a, b = first.main.terms, second.main.terms
    moved = max(a.keys() & b.keys(), key=lambda k: abs(a[k] - b[k]))
    faster, slower = sorted((first, second), key=lambda f: f.ms)
    ratio = slower.ms / faster.ms
    says = (
        f"{faster.name} should be {ratio:.2f} times as fast as {slower.name}"
        if ratio > 1.03
        else "They should take about the same time"
    )
    times = f"{first.name} {_ms(first.ms)} ({first.bound}), {second.name} {_ms(second.ms)} ({second.bound})"
    return f"{says}: {times}. {moved} moved most: {_ms(a[moved])} and {_ms(b[moved])}."
