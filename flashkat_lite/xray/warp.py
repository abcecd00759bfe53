"""One warp, alone: from a kernel's SASS, what it asks of each pipe and how long it takes when nobody is in its way.

Instructions issue in order, each when its registers are ready. How often a loop runs follows from its loads and
stores: the interpreter counted them by source line, and the compiler says which line each instruction comes from.
"""

import functools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import PurePath

from ..inspection import Report
from .counting import Launch, Line

PIPES = {  # cycles that a quarter of a multiprocessor needs for an instruction, cycles until its result, opcodes
    "special": (8, 24, r"MUFU|I2F|F2I|F2F\b|POPC"),
    "memory": (4, 26, r"LD|ST|SHFL|RED|ATOM"),
    "double": (2, 10, r"D(ADD|MUL|FMA)"),
    "float": (1, 4.5, r"F(FMA|ADD|MUL)|HFMA2\b"),
    "product": (2, 5, r"IMAD"),
    "other": (1, 6, r"U|BRA|BAR|EXIT|BS|DEPBAR|LDGDEPBAR|MEMBAR|WARPSYNC"),
    "integer": (2, 5, r""),
}
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);")
MARKER = re.compile(r'^\s*//## File "(.*?)", line (\d+)')
GLOBAL = {"load": r"LDG\.|LDGSTS", "store": r"STG", "add": r"REDG?\.|ATOMG?\."}


def pipe_of(opcode: str) -> str:
    """Return the pipe that an instruction goes through."""
    if opcode == "LDGDEPBAR":
        return "other"
    return next(pipe for pipe, (*_, names) in PIPES.items() if re.match(names, opcode))


def placed(line: Line) -> Line:
    """Return a line without its folder: what Triton keeps on disk names the folder where it was first compiled."""
    return PurePath(line[0]).name, line[1]


def width_of(opcode: str) -> int:
    """Return the bits that a load or store moves for a thread."""
    found = re.findall(r"\.(?:U|S)?(8|16|64|128)\b", opcode)
    return int(found[-1]) if found else 32


def kind_of(opcode: str) -> str | None:
    """Return "load", "store" or "add" for an access to global memory."""
    return next((kind for kind, names in GLOBAL.items() if re.match(names, opcode)), None)


@dataclass
class Instruction:
    opcode: str
    operands: str
    line: Line | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @functools.cached_property
    def ports(self) -> float:
        """Cycles for which reading its registers keeps two ports busy, by a published model: see chapter 11."""
        registers = re.findall(r"\bR(\d+)(\.reuse)?\b", self.operands.partition(",")[2])
        banks = Counter(int(n) % 2 for n, _ in dict.fromkeys(registers))
        return 1.0 if len(registers) < 3 else max(1.0, 0.5 * len(registers), *(0.75 * n for n in banks.values()))


@dataclass
class Loop:
    first: int
    last: int
    inner: list["Loop"] = field(default_factory=list)
    runs: float = 1.0  # of its body, in all
    trips: float = 1.0  # each time that it is entered
    ahead: int = 1  # passes whose loads are under way at a time


@dataclass
class Warp:
    """What one warp executes and how long it takes alone.

    executed: instructions by pipe; ports: cycles of reading registers; cycles: from start to end; ahead: passes of its
    main loop whose loads are under way; meetings: barriers that it reaches with loads behind it; stalls: cycles of
    waiting for loads, by source line.
    """

    executed: Counter
    ports: float
    cycles: float
    ahead: float
    meetings: float
    stalls: dict[Line, float]


def registers_of(text: str, opcode: str = "") -> list[str]:
    span = 4 if ".128" in opcode else 2 if re.search(r"\.64|WIDE|^CS2R|^D[AFM]", opcode) else 1
    found = re.findall(r"\b(R|UR|P|UP)(\d+)(\.64)?", text)
    return [f"{kind}{int(n) + i}" for kind, n, wide in found for i in range(max(span, 2 if wide else 1))]


def read(report: Report) -> tuple[list[Instruction], Loop]:
    """Return the instructions of a kernel and its loops: see `_read`."""
    lines, spans = _read(report.sass, tuple(map(tuple, report.origins)))
    root = Loop(0, len(lines))
    for first, last in spans:
        inside = root
        while deeper := next((loop for loop in inside.inner if loop.first <= first and last <= loop.last), None):
            inside = deeper
        inside.inner.append(Loop(first, last))
    return lines, root


@functools.lru_cache(64)
def _read(sass: str, origins: tuple) -> tuple[list[Instruction], list[tuple[int, int]]]:
    """Return the instructions and the spans of loops, outer ones first; what calls a subroutine is taken to be rare."""
    main = re.split(r"^\$__internal.*:", sass, flags=re.M)[0]
    blocks = re.split(r"^(\.L_x_\d+):", main, flags=re.M)
    lines, labels, spans, line = [], {}, [], None
    places = {start + k: placed((file, first + k)) for start, count, file, first in origins for k in range(count)}
    for label, text in zip(["", *blocks[1::2]], blocks[::2]):
        labels[label] = len(lines)
        found = []
        for row in text.splitlines():
            if marker := MARKER.match(row):
                line = placed((marker[1], int(marker[2])))
                if re.fullmatch(r"kernel_\d+\.py", line[0]) and origins:
                    line = places.get(line[1])
            elif (one := INSTRUCTION.match(row)) and one[1] != "NOP":
                found.append((one[1], one[2], line))
        for opcode, operands, at in [] if any(op.startswith("CALL") for op, *_ in found) else found:
            silent = re.match(r"ST|REDG?\.|BRA|EXIT|BAR|LDGSTS", opcode)
            first, *rest = operands.split(",") if not silent else ["", operands]
            reads, writes = registers_of(",".join(rest)), registers_of(first, opcode)
            lines.append(Instruction(opcode, operands, at, tuple(reads), tuple(writes)))
            target = "".join(re.findall(r"\.L_x_\d+", operands)[:1]) if opcode.startswith("BRA") else ""
            if target and labels.get(target, len(lines)) < len(lines) - 1:
                spans.append((labels[target], len(lines)))
    return lines, sorted(set(spans), key=lambda span: (span[0], -span[1]))


def own(loop: Loop) -> list[int]:
    """Return the places of a loop's instructions that are in none of its inner loops."""
    inner = {k for other in loop.inner for k in range(other.first, other.last)}
    return [k for k in range(loop.first, loop.last) if k not in inner]


def below(loop: Loop) -> list[Loop]:
    """Return all loops inside of a loop, outer ones first."""
    return [found for other in loop.inner for found in (other, *below(other))]


def count_trips(lines: list[Instruction], root: Loop, launch: Launch) -> None:
    """Say of each loop how often it runs.

    The interpreter counted how much a thread loads and stores in each line of the source. What its instructions in a
    loop's body move, which the compiler may have unrolled, divides that. The largest bodies are served first; what is
    left over falls to the compiler's loops for the rest. A loop without accesses runs as often as the source's longest.
    """
    wanted = Counter()  # bytes of a thread, by (kind, line)
    for (kind, line, _), access in launch.accesses.items():
        positions = max(access.lanes / access.calls / (32 * launch.warps), 1)
        wanted[kind, placed(line)] += access.size * positions * access.calls / launch.ran
    loops, left = below(root), Counter(wanted)
    left.subtract(_moved(lines, root, wanted))
    moved = [_moved(lines, loop, wanted) for loop in loops]
    shortest = min((loop.last - loop.first for loop in loops), default=1)
    for loop, mine in sorted(zip(loops, moved), key=lambda pair: -sum(pair[1].values())):
        if mine:
            key = max(mine, key=lambda k: wanted[k])
            loop.runs = max(left[key], 0) / mine[key]
            loop.runs = float(int(loop.runs + 1e-6)) if loop.runs >= 2 else loop.runs
            left.subtract({k: loop.runs * n for k, n in mine.items()})
        else:
            unrolled = 1 if any(moved) else round((loop.last - loop.first) / shortest)
            loop.runs = launch.trips / unrolled
    for outer in reversed(loops):  # whose own accesses may all be a rest that nothing is left for
        outer.runs = outer.runs or max((loop.runs for loop in outer.inner), default=0.0)
    for outer in (root, *loops):
        for loop in outer.inner:
            loop.trips = loop.runs / outer.runs if outer.runs else 0.0
    for loop in loops:
        body = lines[loop.first : loop.last]
        groups = sum(one.opcode == "LDGDEPBAR" for one in body)
        waits = [int(one.operands.split("0x")[-1], 16) for one in body if one.opcode == "DEPBAR.LE"]
        loop.ahead = waits[0] // groups + 1 if waits and groups else 1


def _moved(lines: list[Instruction], loop: Loop, wanted: Counter) -> Counter:
    """Return the bytes that a thread moves in one pass of a loop's own instructions, by (kind, line)."""
    found = Counter()
    for k in own(loop):
        key = kind_of(lines[k].opcode), lines[k].line
        if key in wanted:
            found[key] += width_of(lines[k].opcode) / 8
    return found


def latencies(launch: Launch, far: float, near: float, first_level: float, misses: dict, held: dict) -> dict:
    """Return the ns that a load takes, by (kind, line): a mean over L1, L2 and HBM, as its sectors come from each.

    misses: of the sectors that L2 is asked for, by argument, the share that HBM brings; held: of the sectors that a
    program touches again, the share that L1 has.
    """
    parts: dict = defaultdict(lambda: [0.0, 0.0])
    for (kind, line, name), access in launch.accesses.items():
        first = min(access.first / max(access.sectors, 1e-9), 1.0) if kind == "load" else 1.0
        l1 = (1 - first) * held.get((kind, name), 1.0)
        miss = misses.get((kind, name), 1.0)
        ns = l1 * first_level + (1 - l1) * (miss * far + (1 - miss) * near)
        parts[kind, placed(line)][0] += ns * access.sectors
        parts[kind, placed(line)][1] += access.sectors
    return {key: total / max(n, 1e-9) for key, (total, n) in parts.items()}


class Clock:
    """Runs one warp's instructions, in order, each when its registers are ready."""

    def __init__(self, lines: list[Instruction], waits: dict, clock: float, far: float, near: float):
        self.lines, self.waits, self.clock, self.far, self.near = lines, waits, clock, far, near
        self.ready: dict[str, float] = {}
        self.loaded: dict[str, Line | None] = {}
        self.now = 0.0
        self.stalls: dict[Line, float] = Counter()
        self.weight = 1.0
        self.widest = max((width_of(i.opcode) for i in lines if i.opcode.startswith("LDG.")), default=32)

    def wait_of(self, one: Instruction) -> float:
        known = self.waits.get((kind_of(one.opcode), one.line))
        if known is None:
            known = self.far if width_of(one.opcode) == self.widest else self.near
        return known * self.clock

    def step(self, one: Instruction) -> None:
        held = max(one.reads, key=lambda r: self.ready.get(r, 0.0), default=None)
        until = self.ready.get(held, 0.0) if held else 0.0
        if until > self.now + 1 and self.loaded.get(held):
            self.stalls[self.loaded[held]] += self.weight * (until - self.now - 1)
        self.now = max(self.now + 1, until)
        after = PIPES[pipe_of(one.opcode)][1]
        from_memory = bool(re.match(r"LDG\.|ATOMG?\.", one.opcode))
        if from_memory:
            after = self.wait_of(one)
        if one.opcode.startswith("BAR"):
            self.now += 30
        elif one.opcode.startswith("MEMBAR"):
            self.now += self.clock * self.far
        for register in one.writes:
            self.ready[register] = self.now + after
            self.loaded[register] = one.line if from_memory else None

    def run(self, loop: Loop) -> None:
        inner, k = {other.first: other for other in loop.inner}, loop.first
        while k < loop.last:
            if other := inner.get(k):
                self.repeat(other)
                k = other.last
            else:
                self.step(self.lines[k])
                k += 1

    def repeat(self, loop: Loop) -> None:
        trips, outer = loop.trips, self.weight
        if trips <= 0:
            return
        groups = any(self.lines[k].opcode == "LDGDEPBAR" for k in range(loop.first, loop.last))
        self.weight = outer * min(trips, 1)
        self.run(loop)
        if trips > 1:
            self.weight = outer * (trips - 1)
            before = self.now
            self.run(loop)
            later = (trips - 2) * (self.now - before)
            self.now += later
            self.ready = {r: t + later for r, t in self.ready.items()}
        if groups:
            self.now += trips * self.clock * self.far
        self.weight = outer


def execute(launch: Launch, waits: dict, clock: float, far: float, near: float) -> Warp:
    """Return what one warp of a launch executes, and its time alone. waits: ns by (kind, line); clock in GHz."""
    lines, root = read(launch.report)
    count_trips(lines, root, launch)
    executed, ports, meetings, aheads = Counter(), 0.0, 0.0, []
    loaded = False

    def tally(loop: Loop, runs: float) -> None:
        nonlocal ports, meetings, loaded
        for k in own(loop):
            one = lines[k]
            executed[pipe_of(one.opcode)] += runs
            ports += runs * one.ports
            if one.opcode.startswith("BAR"):
                meetings += runs * loaded
                loaded = False
            loaded |= bool(re.match(r"LDG\.|ATOMG?\.", one.opcode))
        if loop.ahead > 1:
            aheads.append((runs * len(own(loop)), loop.ahead))
        for other in loop.inner:
            tally(other, runs * other.trips)

    tally(root, 1.0)
    one = Clock(lines, waits, clock, far, near)
    one.run(root)
    ahead = max(aheads, default=(0, 1))[1]
    return Warp(executed, ports, one.now, ahead, meetings, dict(one.stalls))
