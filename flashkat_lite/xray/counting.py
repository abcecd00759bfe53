"""What a kernel does: some of its programs, run in Triton's interpreter at the true size and counted.

Large tensors may be `torch.empty`: memory that nothing touches costs nothing, and only addresses matter. Neighbouring
programs tell what neighbours share; programs drawn from the whole grid tell where everyone adds. Of a long loop some
passes are made, and those after the first count for the rest.
"""

import contextlib
import inspect
import linecache
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from ..inspection import Report, inspect_many

SECTOR, FETCH, PAGE = 32, 64, 2048  # bytes: a sector; what HBM hands over at once, and has open at a time
PASSES = 16  # of a loop, that are made
CHUNK, CHUNKS, DRAWN = 8, 3, 256  # neighbours, how often; programs drawn from the whole grid
FEW, MANY = 8, 64  # draws that do where nothing is added; that do where each takes long
# Seconds of a quiet core, about: for an operation of the interpreter, for each of its elements, for an address told.
OPERATION, ELEMENT, ADDRESS, FIXED = 30e-6, 10e-9, 400e-9, 500  # an access costs as much as so many addresses more
TYPES = {
    "float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16", "bool": "i1", "int8": "i8",
    "uint8": "u8", "int16": "i16", "int32": "i32", "uint32": "u32", "int64": "i64", "uint64": "u64",
}  # fmt: skip
Line = tuple[str, int]  # file and number


class Outside(NotImplementedError):
    """The kernel does what the model does not know; the message says what."""


@dataclass
class Access:
    """Loads, stores or additions of one line to one argument, by the programs that were run, loops made whole."""

    calls: float = 0
    lanes: float = 0
    active: float = 0
    size: int = 0  # bytes of an element
    sectors: float = 0  # summed over a warp's instructions
    turns: float = 0  # additions: those of one instruction that meet at a word go one after another
    first: float = 0  # sectors that their program had not touched before


@dataclass
class Launch:
    """One launch of a kernel, and what was counted of it. Sums are of the programs that were run (`scale`)."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    report: Report
    sizes: dict[str, int]  # bytes of each tensor
    outside: str = ""  # why the model does not know it, where it was counted all the same
    ran: int = 0
    side: int = 0  # of them, side by side with others
    alone: int = 0  # of them, drawn from the whole grid
    trips: float = 0.0  # passes through the longest loop, a program
    adds_in_loop: bool = False
    lined: float = 0.0  # turns of those drawn whose warp adds to a whole line at once
    accesses: dict[tuple[str, Line, str], Access] = field(default_factory=lambda: defaultdict(Access))
    touched: dict[tuple[str, str], float] = field(default_factory=Counter)  # sectors, once a program
    again: dict[tuple[str, str], dict[float, float]] = field(default_factory=lambda: defaultdict(Counter))
    hbm: dict[tuple[str, str], float] = field(default_factory=Counter)  # bytes, once for neighbours
    partly: dict[str, float] = field(default_factory=Counter)  # stored sectors that neighbours leave incomplete
    mended: dict[str, float] = field(default_factory=Counter)  # bytes that must be fetched to complete them
    # Of what neighbours touch: (units that are alone in their page of HBM, all).
    lonely: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    # Of programs one above the other in a grid of two dimensions: (units that they touch together, the sum of what each
    # does), for loads of the later half of them; and (stored sectors left incomplete, all).
    down: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    partly_down: dict[str, tuple[float, float]] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=Counter)  # sectors added to, once for neighbours
    queue: dict[tuple[str, int], list] = field(default_factory=lambda: defaultdict(list))  # sector: [(program, turns)]
    words: dict[tuple[str, int], float] = field(default_factory=Counter)  # additions
    races: set[tuple[str, Line]] = field(default_factory=set)  # stores where another program loads or stores

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def scale(self) -> float:
        return self.programs / self.ran


@dataclass
class Torch:
    """One of PyTorch's own operations: the bytes that it must read and write."""

    name: str
    read: float
    written: float


def layout_of(ttgir: str, kind: str, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Return which of a program's warp instructions moves each element: numbers in an array of this shape."""
    guess = (np.arange(math.prod(shape)) // 32).reshape(shape)
    operation = {"load": "load|async_copy_global_to_local", "store": "store", "add": "atomic_rmw"}[kind]
    pointer = rf"tensor<{'x'.join(map(str, shape))}x!tt\.ptr<\w*?{bits}>, (#ttg\.slice<.*?}}>|#\w+)>"
    found = re.search(rf"\w+\.(?:{operation})\b.*{pointer}", ttgir)
    if not found:
        return guess
    dropped = [int(d) for d in re.findall(r"dim = (\d+)", found[1])]
    name = re.findall(r"#(\w+)", found[1].replace("#ttg.slice", ""))[-1]
    layout = re.search(rf"^#{name} = .*blocked<(.*)>", ttgir, re.M)
    if not layout:
        return guess
    lists = [[int(n) for n in part.split(",")] for part in re.findall(r"\[([\d, ]+)\]", layout[1])[:4]]
    each, across, warps, order = lists
    for d in dropped:
        del each[d], across[d], warps[d]
        order = [k - (k > d) for k in order if k != d]
    result = np.zeros(shape, np.int64)
    for d, at in enumerate(np.indices(shape)):
        vector = min(each[d], 128 // bits) if d == order[0] else 1
        tile = each[d] * across[d]
        parts = (
            (at // (tile * warps[d]), shape[d]),
            (at // tile % warps[d], warps[d]),
            (at % each[d] // vector, each[d]),
        )
        for part, count in parts:
            result = result * count + part
    return result


class Teller:
    """Is told of the accesses of one launch, and counts them."""

    def __init__(self, launch: Launch, tensors: dict[str, Any]):
        self.launch = launch
        self.starts = sorted((t.data_ptr(), name) for name, t in tensors.items())
        self.layouts: dict[tuple, np.ndarray] = {}
        self.loops, self.turns = Counter(), Counter()
        self.events: list[tuple[str, str, np.ndarray, float, float, Access]] = []  # of this program
        self.side_by_side: dict[tuple[str, str], list] = defaultdict(list)  # of these neighbours
        self.words: list[tuple[str, Line, str, np.ndarray, int]] = []  # of the first neighbours
        self.weight = 1.0  # passes for which this one stands
        self.now = 0.0  # bytes touched so far, loops that have ended made whole
        self.spent = 0.0  # seconds that a quiet core would have taken, about: the same whatever else this one does
        self.drawn = False  # whether this program was drawn from the whole grid

    def __call__(self, kind: str, line: Line, addresses: np.ndarray, mask: np.ndarray, bits: int) -> None:
        launch, size, key = self.launch, bits // 8, (kind, addresses.shape, bits)
        self.spent += ADDRESS * (addresses.size + FIXED)
        if key not in self.layouts:
            self.layouts[key] = layout_of(launch.report.ttgir, *key)
        inside = np.broadcast_to(mask, addresses.shape).astype(bool)
        active, who = addresses[inside].astype(np.int64), self.layouts[key][inside]
        start, name = max((s for s in self.starts if active.size and s[0] <= active.min()), default=(0, "?"))
        at, access = active - start, launch.accesses[kind, line, name]
        codes = np.unique(who * 2**44 + at // SECTOR)
        access.calls += self.weight
        access.lanes += self.weight * addresses.size
        access.active += self.weight * at.size
        access.sectors += self.weight * codes.size
        access.size = size
        if kind == "add":
            launch.adds_in_loop |= self.weight > 1
            self._add(name, who, at, size, access)
            return
        sectors = np.unique(at // SECTOR)
        self.events.append((kind, name, sectors, self.now, self.weight, access))
        self.now += SECTOR * sectors.size
        words = np.unique(at // size)
        if not launch.side:
            self.words.append((kind, line, name, words, launch.ran))
        units = np.unique(at // FETCH) if kind == "load" else words
        self.side_by_side[kind, name].append((units, self.weight, size, launch.ran))

    def _add(self, name: str, who: np.ndarray, at: np.ndarray, size: int, access: Access) -> None:
        self.side_by_side["add", name].append((np.unique(at // SECTOR), self.weight, size, self.launch.ran))
        if not self.drawn:
            return
        words, times = np.unique(who * 2**44 + at // size, return_counts=True)
        who, words = words >> 44, words & (2**44 - 1)
        places, which = np.unique(who * 2**44 + words * size // SECTOR, return_inverse=True)
        turns = np.zeros(places.size, np.int64)
        np.maximum.at(turns, which.ravel(), times)
        access.turns += self.weight * int(turns.sum())
        _, line, sectors = np.unique(places >> 2, return_inverse=True, return_counts=True)  # who and line
        self.launch.lined += self.weight * int(turns[sectors[line.ravel()] == 128 // SECTOR].sum())
        for place, n in zip((places & (2**44 - 1)).tolist(), turns.tolist()):
            self.turns[name, place] += self.weight * n
        for word, n in zip(words.tolist(), times.tolist()):
            self.launch.words[name, word] += self.weight * n

    def loop(self, key: Any, passes: range) -> Iterator[int]:
        """Make some passes: the first counts once, those after it for all others."""
        made = len(passes) if len(passes) <= PASSES + 1 else PASSES
        self.loops[key] += self.weight * len(passes)
        more, outer = ((len(passes) - 1) / (made - 1) if made > 1 else 1.0), self.weight
        missing = 0.0
        for k in range(made):
            stands_for, before = more if k else 1.0, self.now
            self.weight = outer * stands_for
            yield passes[k]
            missing += (stands_for - 1) * (self.now - before)
        self.weight = outer
        self.now += missing

    def end_program(self) -> None:
        """Count what one program touched for the first time, and after how many bytes it touched something again."""
        launch = self.launch
        launch.ran += 1
        launch.alone += self.drawn
        self._first_and_again("load", self.events)  # what was stored before is near, too
        self._first_and_again("store", [event for event in self.events if event[0] == "store"])
        for place, n in self.turns.items():
            launch.queue[place].append((launch.alone - 1, n))
        self.events, self.now = [], 0.0
        self.turns.clear()

    def _first_and_again(self, kind: str, events: list) -> None:
        """Count the sectors of one kind of access that none of these events touched before, and those that one had."""
        if not events:
            return
        launch, names = self.launch, {name: k for k, name in enumerate(dict.fromkeys(e[1] for e in events))}
        sectors = np.concatenate([names[e[1]] * 2**44 + e[2] for e in events])
        event = np.repeat(np.arange(len(events)), [e[2].size for e in events])
        order = np.lexsort((event, sectors))
        sectors, event = sectors[order], event[order]
        fresh = np.concatenate([[True], sectors[1:] != sectors[:-1]])
        clock = np.array([e[3] for e in events])
        since = np.concatenate([[0.0], clock[event[1:]] - clock[event[:-1]]])
        firsts = np.bincount(event[fresh], minlength=len(events))
        for (what, name, _, _, weight, access), n in zip(events, firsts.tolist()):
            if what == kind:
                launch.touched[kind, name] += n * weight
                access.first += n * weight
        bins = np.ceil(4 * np.log2(since[~fresh] + 1)).astype(np.int64)
        found, count = np.unique(event[~fresh] * 256 + bins, return_counts=True)
        for code, n in zip(found.tolist(), count.tolist()):
            what, name, _, _, weight, _ = events[code // 256]
            if what == kind:
                launch.again[kind, name][2 ** (code % 256 / 4)] += n * weight

    def _races(self) -> None:
        """Name stores to words that another of the first neighbours loads or stores."""
        for name in {name for kind, _, name, _, _ in self.words if kind == "store"}:
            mine = [one for one in self.words if one[2] == name]
            touched = np.unique(np.concatenate([words * 2**20 + program for *_, words, program in mine])) >> 20
            shared = touched[1:][touched[1:] == touched[:-1]]  # by more than one program
            for line in {line for kind, line, *_ in mine if kind == "store"} if shared.size else ():
                stored = [words for kind, where, _, words, _ in mine if (kind, where) == ("store", line)]
                if np.isin(shared, np.concatenate(stored)).any():
                    self.launch.races.add((name, line))
        self.words.clear()

    def end_column(self) -> None:
        """Compare what programs one above the other touched: together, and each for itself."""
        launch = self.launch
        for (kind, name), touched in self.side_by_side.items():
            if kind == "add":
                continue
            size = touched[0][2] if kind == "store" else FETCH
            units = np.concatenate([units * size // (SECTOR if kind == "store" else FETCH) for units, *_ in touched])
            who = np.repeat([program for *_, program in touched], [units.size for units, *_ in touched])
            later = who >= launch.ran - CHUNK // 2 if kind == "load" else who >= 0  # loads slide, stores complete
            each = np.unique(who[later] * 2**44 + units[later]).size
            together = np.unique(units).size - (np.unique(units[~later]).size if kind == "load" else 0)
            together = max(together, each / CHUNK)
            launch.down[kind, name] = tuple(np.add(launch.down.get((kind, name), (0, 0)), (together, each)).tolist())
            if kind == "store":
                words = np.unique(np.concatenate([units for units, *_ in touched]))
                sectors, words = np.unique(words * size // SECTOR, return_counts=True)
                partly = (words * size < SECTOR).sum(), sectors.size
                launch.partly_down[name] = tuple(np.add(launch.partly_down.get(name, (0, 0)), partly).tolist())
        self.side_by_side.clear()

    def end_chunk(self, programs: int) -> None:
        """Count what neighbours touched together, each unit once."""
        launch = self.launch
        self._races()
        launch.side += programs
        for (kind, name), touched in self.side_by_side.items() if programs else ():
            units = np.concatenate([units for units, *_ in touched])
            weights = np.repeat([weight for _, weight, *_ in touched], [units.size for units, *_ in touched])
            units, first = np.unique(units, return_index=True)
            weights = weights[first]
            if kind == "load":
                launch.hbm[kind, name] += FETCH * float(weights.sum())
                self._alone(kind, name, units, FETCH)
            elif kind == "add":
                launch.apart[name] += float(weights.sum())
            else:
                size = touched[0][2]
                sectors, first, words = np.unique(units * size // SECTOR, return_index=True, return_counts=True)
                launch.hbm[kind, name] += SECTOR * float(weights[first].sum())
                partly, weights = sectors[words * size < SECTOR], weights[first][words * size < SECTOR]
                launch.partly[name] += float(weights.sum())
                _, first = np.unique(partly // (FETCH // SECTOR), return_index=True)
                launch.mended[name] += FETCH * float(weights[first].sum())
                self._alone(kind, name, sectors, SECTOR)
        self.side_by_side.clear()

    def _alone(self, kind: str, name: str, units: np.ndarray, size: int) -> None:
        """Count the units of some bytes that are alone in their page, of those that neighbours touch."""
        _, together = np.unique(units // (PAGE // size), return_counts=True)
        found = (together == 1).sum(), units.size
        self.launch.lonely[kind, name] = tuple(np.add(self.launch.lonely.get((kind, name), (0, 0)), found).tolist())


_now: list[Teller] = []
_reports: dict[tuple, Report] = {}  # a kernel's, by what it was compiled with
_HERE = __file__


def _line() -> Line:
    frame = sys._getframe(2)
    while frame.f_back and ("/triton/" in frame.f_code.co_filename or frame.f_code.co_filename == _HERE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _some_passes(*limits: Any) -> Any:
    """Python's range in a kernel: the passes that are made."""
    passes, frame = range(*map(int, limits)), sys._getframe(1)
    frame = frame.f_back if frame.f_code.co_name == "_new_range" else frame  # tl.range, tl.static_range
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    if not _now or frame.f_code.co_filename.endswith("interpreter.py") or "static_range" in line:
        return passes
    return _now[-1].loop((frame.f_code, frame.f_lineno), passes)


def plan(grid: tuple[int, int, int]) -> list[tuple[range, bool]]:
    """Return which programs are run: (neighbours along a row or a column, whether they are drawn from the whole grid).

    The draws are spread over the grid and over the residues by 192, so that programs which differ by a column, a group
    or a parity of two or three are met as often as they are.
    """
    programs, wide = math.prod(grid), grid[0]
    if programs <= CHUNK * CHUNKS + MANY:
        return [(range(programs), True)]
    rng = np.random.default_rng(0)
    starts = [int((i + 0.5) * (programs - CHUNK) / CHUNKS) + int(rng.integers(0, 3)) for i in range(CHUNKS)]
    chosen = [
        (range(max(min(s, programs - CHUNK), 0), max(min(s, programs - CHUNK), 0) + CHUNK), False) for s in starts
    ]
    rows = programs // wide // CHUNK  # of as many as complete a sector
    for first in (rows // 3 * CHUNK * wide, 2 * rows // 3 * CHUNK * wide) if wide > 1 and rows >= 4 else ():
        chosen.append((range(first, first + CHUNK * wide, wide), False))
    stratum, turns = programs / DRAWN, rng.permutation(DRAWN)
    for k in range(DRAWN):
        first = (99 * k % DRAWN) * stratum  # the first few are spread, too
        place = first + stratum * rng.random()
        if stratum >= 192:
            place = place // 192 * 192 + 3 * (turns[k] % 64) + turns[k] % 3
        place = min(int(place), programs - 1)
        chosen.append((range(place, place + 1), True))
    return chosen


def _described(kernel: Any, args: tuple, kwargs: dict[str, Any], constexprs: list[str], capability: int):
    """Return (values by argument, the compiler's request) of a launch, as Triton itself would specialise it."""
    names = {k: v for k, v in kwargs.items() if k in kernel.arg_names}
    values = inspect.getcallargs(kernel.fn, *args, **names)
    plain = set(kernel.kwargs.get("do_not_specialize") or ()) if hasattr(kernel, "kwargs") else set()
    plain = {kernel.arg_names[k] if isinstance(k, int) else k for k in plain}
    fixed, signature, aligned = {}, {}, []
    for name, value in values.items():
        if name in constexprs:
            fixed[name] = getattr(value, "value", value)
        elif hasattr(value, "data_ptr"):
            signature[name] = "*" + TYPES.get(str(value.dtype).removeprefix("torch."), "fp32")
            if value.data_ptr() % 16 == 0:
                aligned.append(name)
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif value is None or (isinstance(value, int) and value == 1 and name not in plain):
            fixed[name] = value
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in plain:
                aligned.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            raise Outside(
                f"{kernel.fn.__name__}: the argument {name} is a {type(value).__name__}, outside of the model"
            )
    for name, value in fixed.items():
        if not isinstance(value, int | float | bool | str | type(None)):
            from triton.language import dtype

            if not isinstance(value, dtype):
                raise Outside(f"{kernel.fn.__name__}: the constant {name} is a {type(value).__name__}")
            fixed[name] = {"dtype": str(value)}
    request = dict(
        kernel=kernel, constexprs=fixed, signature=signature, aligned=aligned, capability=capability, lines=True,
        num_warps=kwargs.get("num_warps") or 4, num_stages=kwargs.get("num_stages"), maxnreg=kwargs.get("maxnreg"),
    )  # fmt: skip
    return values, request


def _hidden(value: Any, interpreter: Any) -> Any:
    """Return an argument as the kernel sees it: Triton's interpreter leaves floats as they are."""
    if isinstance(value, float):
        handle = interpreter.TensorHandle(np.array([value], np.float32), interpreter.tl.float32)
        return interpreter.tl.tensor(handle, interpreter.tl.float32)
    return interpreter._implicit_cvt(value)


@contextlib.contextmanager
def _whole(interpreter: Any) -> Iterator[None]:
    """Give Triton's interpreter what it lacks: constants in bfloat16, and functions of CUDA's library.

    These return what they were given: their results are not asked for, and no kernel takes addresses from them.
    """
    from triton.language.extra import libdevice

    builder = interpreter.interpreter_builder

    def bfloat16(value):
        bits = (np.array([value], np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return interpreter.TensorHandle(bits, interpreter.tl.bfloat16)

    def given(kind, path, symbol, arguments, result, pure):
        return arguments[0]

    stubs = [f for f in vars(libdevice).values() if inspect.isfunction(f)]
    codes = [f.__code__ for f in stubs]
    for f in stubs:
        f.__code__ = _first.__code__
    try:
        with (
            mock.patch.object(builder, "create_extern_elementwise", given),
            mock.patch.object(builder, "get_bf16", bfloat16, create=True),
        ):
            yield
    finally:
        for f, code in zip(stubs, codes):
            f.__code__ = code


def _first(*values: Any, **_: Any) -> Any:
    return values[0]


@contextlib.contextmanager
def watch(capability: int = 90, seconds: float = 4.0, beyond: bool = False) -> Iterator[list[Launch | Torch]]:
    """Yield a list of the launches made inside: each is compiled for `capability`, and some of its programs run.

    Results inside are not the kernels' results: most programs never run. seconds: of running, for each launch, at most
    (neighbours have half of them): those of a quiet core, by the count of what the interpreter does, so that the same
    programs run on any machine, busy or not. Raises Outside where a kernel does what the model does not know; beyond:
    counts it all the same, and its launch says why it has no forecast. RuntimeError where Triton does not interpret.
    """
    from triton.runtime import interpreter

    launches, builder = [], interpreter.interpreter_builder

    def run(kernel, *args, grid, warmup=False, **kwargs):
        if warmup:
            return
        function = kernel.rewrite()
        constexprs = interpreter.GridExecutor(function, kernel.arg_names, grid).constexprs
        values, request = _described(kernel, args, kwargs, constexprs, capability)
        grid = tuple(int(n) for n in (grid(values) if callable(grid) else grid))
        x, y, z = grid + (1,) * (3 - len(grid))
        if not x * y * z:
            return
        key = kernel.fn, str(sorted((k, str(v)) for k, v in request.items() if k != "kernel"))
        if key not in _reports:
            _reports[key] = inspect_many([request])[0]
        report = _reports[key]
        outside = refused(kernel.fn.__name__, report)
        if outside and not beyond:
            raise Outside(outside)
        tensors = {k: v for k, v in values.items() if hasattr(v, "data_ptr")}
        sizes = {k: v.untyped_storage().nbytes() - v.storage_offset() * v.element_size() for k, v in tensors.items()}
        launch = Launch(kernel.fn.__name__, (x, y, z), request["num_warps"], report, sizes, outside)
        launches.append(launch)
        told = Teller(launch, tensors)
        scope = interpreter._patch_lang(function)
        function.__globals__["range"] = interpreter.range = _some_passes
        builder.set_grid_dim(x, y, z)
        _now.append(told)
        try:
            hidden = {k: v if k in constexprs else _hidden(v, interpreter) for k, v in values.items()}
            for some, told.drawn in plan(launch.grid):
                before, until = launch.ran, seconds if told.drawn else seconds / 2
                for i in some:
                    needed = not launch.ran or (told.drawn and launch.alone < 4)
                    adds = any(kind == "add" for kind, *_ in launch.accesses)
                    enough = MANY if adds and told.spent > seconds / 4 else DRAWN if adds else FEW
                    if told.drawn and launch.side and launch.alone >= enough:
                        continue
                    if needed or told.spent < until:
                        builder.set_grid_idx(i % x, i // x % y, i // (x * y))
                        with np.errstate(all="ignore"):
                            function(**hidden)
                        told.end_program()
                if some.step > 1:
                    told.end_column() if launch.ran - before == CHUNK else told.side_by_side.clear()
                else:
                    told.end_chunk(launch.ran - before if len(some) > 1 else 0)
        except NotImplementedError as error:
            raise Outside(f"{launch.name}: Triton's interpreter does not run it ({error})") from error
        finally:
            _now.pop()
            if scope is not None:
                scope.restore()
            function.__globals__.pop("range", None)
            vars(interpreter).pop("range", None)
        launch.trips = max(told.loops.values(), default=0) / launch.ran

    def result(handle, *arguments, made=interpreter.TensorHandle.__init__, **keywords):
        made(handle, *arguments, **keywords)
        if _now:
            _now[-1].spent += OPERATION + ELEMENT * np.size(handle.data)

    def watched(kind, name, pointers_at, mask_at):
        original = getattr(builder, name)

        def access(*arguments):
            if _now:
                pointers, mask = (arguments[i] for i in (pointers_at, mask_at))
                bits = max(pointers.get_element_ty().primitive_bitwidth, 8)
                _now[-1](kind, _line(), np.asarray(pointers.data), np.asarray(mask.data), bits)
                if kind == "add" and arguments[2].get_element_ty() == interpreter.tl.bfloat16:
                    return arguments[2]  # which the interpreter does not add up
            return original(*arguments)

        return mock.patch.object(builder, name, access)

    kinds = (
        ("load", "create_masked_load", 0, 1),
        ("store", "create_masked_store", 0, 2),
        ("add", "create_atomic_rmw", 1, 3),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter.InterpretedFunction, "run", run))
        stack.enter_context(mock.patch.object(interpreter.TensorHandle, "__init__", result))
        stack.enter_context(_whole(interpreter))
        for kind in kinds:
            stack.enter_context(watched(*kind))
        yield launches


UNKNOWN = {
    r"\btt\.dot(_scaled)?\b": "tl.dot (tensor cores)",
    r"\btt\.\w*descriptor\w*\b": "descriptors (TMA)",
    r"\btt\.atomic_cas\b": "compare-and-swap",
}


def refused(name: str, report: Report) -> str:
    """Return why a kernel has no forecast, where it holds operations that the model does not know; else ""."""
    text = re.sub(r"loc\(.*|^#.*", "", report.ttir, flags=re.M)
    found = next((what for pattern, what in UNKNOWN.items() if re.search(pattern, text)), "")
    return f"{name} uses {found}: outside of the model, so there is no forecast" if found else ""
