"""Memory under guard in Triton's interpreter: accesses outside of a kernel's tensors, and races between its programs.

While it is on, a kernel's pointers are addresses of our own, far apart: an index that leaves one tensor cannot land in
another. Each access is looked up before it is made. What a program stores, and who else reads, adds or stores there, is
compared when the launch ends.
"""

import collections
import contextlib
import dataclasses
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from .testing import DataRace, Fault, OutOfBounds, Unsupported

SPAN = 44  # bits of an address inside of a storage's own range
FIRST = 1 << 4  # the first range: no process has memory at 2^48 and beyond
DID = {"load": "loads", "store": "stores to", "add": "adds to"}


class _Stop(BaseException):
    """Carries a fault through the interpreter, which would wrap an exception once for each function."""

    def __init__(self, fault: Fault):
        self.fault = fault


@dataclasses.dataclass
class Given:
    """A tensor that a kernel was given: bytes [low, high) of its storage's range, and an element's bytes."""

    name: str
    low: int
    high: int
    size: int

    @property
    def count(self) -> int:
        return (self.high - self.low) // self.size


@dataclasses.dataclass
class Storage:
    """The tensors of one storage; `shift` leads from our addresses to the real ones."""

    shift: int
    tensors: list[Given] = dataclasses.field(default_factory=list)

    def holds(self, low: int, high: int) -> bool:
        return any(tensor.low <= low and high <= tensor.high for tensor in self.tensors)


@dataclasses.dataclass
class Event:
    """An access of a program: addresses of its active positions [n], and what a store wrote there."""

    time: int
    program: int
    addresses: np.ndarray
    size: int
    line: str
    values: np.ndarray | None = None


@dataclasses.dataclass
class Launch:
    """One launch of a kernel, as far as it has come."""

    kernel: Any
    names: dict[int, str]
    storages: dict[int, Storage] = dataclasses.field(default_factory=dict)
    by_real: dict[Any, int] = dataclasses.field(default_factory=dict)
    places: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    time: int = 0
    loads: list[Event] = dataclasses.field(default_factory=list)
    stores: list[Event] = dataclasses.field(default_factory=list)
    adds: list[Event] = dataclasses.field(default_factory=list)
    releases: dict[int, list[tuple[int, np.ndarray]]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    acquires: dict[int, list[tuple[int, np.ndarray]]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    unmasked: bool = False

    # Addresses

    def place(self, tensor: Any) -> int:
        """Return our address of a tensor's first element, and know its extent from now on."""
        tensor = getattr(tensor, "base", tensor)  # Triton's wrapper of a tensor under another dtype
        real, size = tensor.data_ptr(), tensor.element_size()
        key = tensor.untyped_storage().data_ptr() or object()
        number = self.by_real.setdefault(key, FIRST + len(self.by_real))
        if number not in self.storages:
            ours = (number << SPAN) + (1 << (SPAN - 1)) + real % 4096
            self.storages[number] = Storage(real - ours)
        storage = self.storages[number]
        extent = 0
        if tensor.numel():
            extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        low = real - storage.shift
        storage.tensors.append(Given(self.names.get(real, "a tensor"), low, low + extent * size, size))
        return low

    def real(self, kind: str, pointers: Any, mask: Any) -> tuple[Any, np.ndarray]:
        """Return the real pointers, and our addresses of the active positions. Raises _Stop where one is outside."""
        ours, active = np.asarray(pointers.data), np.asarray(mask.data, dtype=bool)
        addresses = ours.ravel() if active.all() else np.broadcast_to(ours, active.shape)[active]
        if not addresses.size:
            return pointers, addresses
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        low, high = int(addresses.min()), int(addresses.max()) + size
        storage = self.storages.get(low >> SPAN)
        if storage and storage.holds(low, high):
            return type(pointers)(ours + np.uint64(storage.shift % 2**64), pointers.dtype), addresses
        moved = np.array(ours)
        inside = np.zeros(addresses.shape, dtype=bool)
        for number, storage in self.storages.items():
            moved[ours >> np.uint64(SPAN) == number] += np.uint64(storage.shift % 2**64)
            for tensor in storage.tensors:
                inside |= (addresses >= tensor.low) & (addresses + np.uint64(size) <= tensor.high)
        if not inside.all():
            raise _Stop(self.outside(kind, addresses[~inside], size, bool(active.all())))
        return type(pointers)(moved, pointers.dtype), addresses

    def outside(self, kind: str, addresses: np.ndarray, size: int, all_active: bool) -> OutOfBounds:
        address = int(addresses[0])
        storage = self.storages.get(address >> SPAN)
        tensors = storage.tensors if storage else []
        did = {"load": "loads", "store": "stores", "add": "adds atomically"}[kind]
        who = f"{self.line()}program {self.name(len(self.places) - 1)} {did} "
        nothing = "" if kind == "load" else " Nothing was written."
        if not tensors:
            return OutOfBounds(f"{who}outside of every tensor that the kernel was given.{nothing}")
        tensor = min(tensors, key=lambda t: max(t.low - address, address - t.high))
        index = (address - tensor.low) // tensor.size
        if not tensor.count:
            return OutOfBounds(f"{who}at index {index:,} of {tensor.name}, which has no element.{nothing}")
        where = f"outside of {tensor.name}, at index {index:,}: its elements are 0 … {tensor.count - 1:,}."
        if abs(index) >= 2**30:
            cause = (
                "the index wrapped around in 32 bits (widen it by .to(tl.int64) before it is multiplied), or it was "
                "loaded without `other`"
            )
        elif index < 0:
            cause = "an index below 0: a missing mask, or a wrong first index"
        elif self.unmasked or (kind == "add" and all_active):
            cause = f"a missing mask{': adding 0 writes too' * (kind == 'add')}"
        else:
            cause = "its mask lets positions through that lie past the end: a missing mask, or one of another size"
        more = f" ({addresses.size:,} positions are outside)" if addresses.size > 1 else ""
        return OutOfBounds(f"{who}{where}{more}{nothing} Likely cause: {cause}.")

    # Who is where

    def name(self, program: int) -> str:
        place = self.places[program] if self.places else (0, 0, 0)
        used = max((k + 1 for k in range(3) if any(p[k] for p in self.places)), default=1)
        return str(place[0]) if used == 1 else str(place[:used])

    def line(self) -> str:
        """Return the kernel's line that is running, as "`tl.store(…)` in kernel, line 7: "."""
        frame = sys._getframe(1)
        while frame and _is_machinery(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return ""
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().partition("  #")[0]
        return f"`{text}` in {frame.f_code.co_name}, line {frame.f_lineno}: " if text else ""

    # Order

    def remember(self, kind: str, addresses: np.ndarray, size: int, values: np.ndarray | None = None) -> None:
        self.time += 1
        if addresses.size:
            line = self.line() if kind == "store" else ""
            listed = {"load": self.loads, "store": self.stores, "add": self.adds}[kind]
            listed.append(Event(self.time, len(self.places) - 1, addresses, size, line, values))

    def synchronise(self, addresses: np.ndarray, sem: str, scope: str) -> None:
        program = len(self.places) - 1
        if scope != "CTA" and sem in ("ACQUIRE", "ACQUIRE_RELEASE"):
            self.acquires[program].append((self.time, np.unique(addresses)))
        if scope != "CTA" and sem in ("RELEASE", "ACQUIRE_RELEASE"):
            self.releases[program].append((self.time, np.unique(addresses)))

    def ordered(self, earlier: int, done: int, later: int, begun: int) -> bool:
        """Whether what `earlier` did until `done` is over when `later` does what it does from `begun` on."""
        told = [where for time, where in self.releases.get(earlier, ()) if time > done]
        heard = [where for time, where in self.acquires.get(later, ()) if time < begun]
        return any(np.intersect1d(a, b, assume_unique=True).size for a in told for b in heard)

    def check_races(self) -> None:
        """Raise DataRace where one program stores and another loads, adds or stores something else, in no order."""
        if len(self.places) < 2 or not self.stores:
            return
        for number, storage in self.storages.items():
            stores = [e for e in self.stores if int(e.addresses[0]) >> SPAN == number]
            if stores:
                others = [(kind, events) for kind, events in (("load", self.loads), ("add", self.adds))]
                near = {kind: [e for e in events if int(e.addresses[0]) >> SPAN == number] for kind, events in others}
                self._check_storage(storage, stores, near)

    def _check_storage(self, storage: Storage, stores: list[Event], others: dict[str, list[Event]]) -> None:
        unit = min(e.size for e in [*stores, *others["load"], *others["add"]])
        first = min(tensor.low for tensor in storage.tensors)
        units = (max(tensor.high for tensor in storage.tensors) - first) // unit + 1

        def places(event: Event) -> np.ndarray:
            at = ((event.addresses - np.uint64(first)) // np.uint64(unit)).astype(np.int64)
            if event.size == unit:
                return at
            return (at[:, None] + np.arange(event.size // unit)).ravel()

        owner = np.full(units, -1, dtype=np.int64)  # the event that stored there last
        kept = [places(e) for e in stores]
        programs = np.array([e.program for e in stores])
        for k, at in enumerate(kept):
            owner[at] = k
        for k, at in enumerate(kept):
            clash = programs[owner[at]] != stores[k].program
            if clash.any():
                self._blame("store", stores[k], at, clash, owner, stores, others, places, first, unit)
        for kind, events in others.items():
            for event in events:
                at = places(event)
                clash = (owner[at] >= 0) & (programs[owner[at]] != event.program)
                if clash.any():
                    self._blame(kind, event, at, clash, owner, stores, others, places, first, unit)

    def _blame(self, kind, event, at, clash, owner, stores, others, places, first, unit) -> None:
        """Raise DataRace for the first clash of an event with what owns its places, unless something orders the two."""
        for k in np.unique(owner[at[clash]]):
            store = stores[k]
            earlier, later = sorted((event, store), key=lambda e: e.time)
            if self.ordered(earlier.program, earlier.time, later.program, later.time):
                continue
            here = clash & (owner[at] == k)
            if kind == "store" and event.size == store.size == unit:
                mine, theirs = dict(zip(at, event.values)), dict(zip(places(store), store.values))
                differs = [p for p in at[here] if mine[p].tobytes() != theirs[p].tobytes()]
                if not differs:
                    continue  # the same bits, whoever comes last
                place = differs[0]
            else:
                place = at[here][0]
            raise self._race(kind, event, store, int(first + place * unit), others)

    def _race(self, kind: str, event: Event, store: Event, address: int, others: dict[str, list[Event]]) -> DataRace:
        storage = self.storages[address >> SPAN]
        tensor = min(storage.tensors, key=lambda t: max(t.low - address, address - t.high + 1))
        index = (address - tensor.low) // tensor.size
        earlier, later = sorted((event, store), key=lambda e: e.time)
        did = {id(event): DID[kind], id(store): DID["store"]}

        def loaded_by(one: Event) -> bool:
            return any(e.program == one.program and e.time < store.time and address in e.addresses
                       for e in others["load"])  # fmt: skip

        reads_too = loaded_by(store) and (kind != "store" or loaded_by(event))
        fenced = any(self.acquires.values())
        if kind == "add":
            cause = "a total that programs add to is set before the launch, with torch.zeros, not by a program"
        elif reads_too:
            cause = (
                "a load, an addition and a store, between which another program's addition is lost: add atomically, or "
                "store a partial sum for each program"
            )
        elif kind == "store":
            cause = "two programs own one element, and whoever stores last wins: give each element to one program"
        elif self.adds and not fenced:
            cause = (
                'a missing fence: a relaxed atomic operation says nothing of what was stored before it (sem="acq_rel")'
            )
        elif fenced:
            cause = (
                "the last to finish need not be the program with the highest number: ask the counter, and count after "
                "the store"
            )
        else:
            cause = (
                "a program reads what another one stores, and may come first: use a second launch, or a counter that "
                'tells the last to finish (sem="acq_rel")'
            )
        return DataRace(
            f"{store.line}a race at index {index:,} of {tensor.name}: program {self.name(earlier.program)} "
            f"{did[id(earlier)]} it and program {self.name(later.program)} {did[id(later)]} it, and on a GPU either "
            f"may come first. Likely cause: {cause}."
        )


@functools.cache
def _is_machinery(file: str) -> bool:
    """Whether a frame of this file is none of a kernel's: the interpreter's, ours, or a patch's."""
    ours = Path(__file__), Path(__file__).with_name("testing.py"), Path(mock.__file__), Path(contextlib.__file__)
    return Path(file) in ours or Path(sys.modules["triton"].__file__).parent in Path(file).parents


# What is watched


@dataclasses.dataclass
class Guard:
    """What is known while the guard is on: listeners, NaN that kernels met, and the launches."""

    listeners: list[tuple[str, Callable]] = dataclasses.field(default_factory=list)
    launch: Launch | None = None
    depth: int = 0
    launches: int = 0
    nan_loaded: bool = False
    nan_stored: bool = False
    ended: collections.deque[Launch] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=8))
    stack: contextlib.ExitStack | None = None

    def unread(self) -> str:
        """Return the name of a tensor whose end no kernel has read since `ended` was cleared, and how far; or ""."""
        read = {}  # by the real address of a tensor: it, and how many bytes of it were read
        for launch in self.ended:
            written = {int(event.addresses[0]) >> SPAN for event in [*launch.stores, *launch.adds]}
            for event in launch.loads:
                number = int(event.addresses[0]) >> SPAN
                storage = launch.storages[number]
                inside = [t for t in storage.tensors if t.low <= event.addresses[0] < t.high]
                if inside and number not in written:
                    tensor = max(inside, key=lambda t: t.high)
                    end = int(event.addresses.max()) + event.size - tensor.low
                    _, before = read.get(tensor.low + storage.shift, (tensor, 0))
                    read[tensor.low + storage.shift] = tensor, max(end, before)
        for tensor, end in read.values():
            if end < tensor.high - tensor.low:
                return (
                    f"no kernel read {tensor.name} past index {end // tensor.size - 1:,}, of {tensor.count:,} elements"
                )
        return ""

    def tell(self, kind: str, addresses: np.ndarray, size: int) -> None:
        wanted = [tell for what, tell in self.listeners if what == kind]
        if not wanted:
            return
        real = addresses.copy()
        for number in np.unique(addresses >> np.uint64(SPAN)):
            shift = np.uint64(self.launch.storages[int(number)].shift % 2**64)
            real[addresses >> np.uint64(SPAN) == number] += shift
        for tell in wanted:
            tell(real, size)


guard = Guard()


def _has_nan(handle: Any, active: np.ndarray) -> bool:
    kind, data = handle.get_element_ty(), np.asarray(handle.data)
    if kind.is_bf16():
        bad = (data & 0x7FFF) > 0x7F80
    elif kind.is_standard_floating():
        bad = np.isnan(data)
    else:
        return False
    return bool((bad & active).any())


@contextlib.contextmanager
def guarding(listeners: list[tuple[str, Callable]] = ()) -> Iterator[Guard]:
    """Guard the memory of the kernels that run inside, and tell listeners of their accesses; in the interpreter only.

    listeners: (kind, function), where kind is "load", "store", "add" (atomic) or "launch": see `testing.watching`; a
    launch is told its kernel and its arguments by name. A "done" is told the `Launch` that ended without a fault.
    Raises a Fault out of the launch that is at fault.
    """
    guard.listeners += listeners
    if not guard.depth:
        guard.launches, guard.nan_loaded, guard.nan_stored = 0, False, False
        guard.ended.clear()
        guard.stack = _installed()
    guard.depth += 1
    try:
        yield guard
    finally:
        guard.depth -= 1
        for listener in listeners:
            guard.listeners.remove(listener)
        if not guard.depth:
            guard.stack.close()


def _installed() -> contextlib.ExitStack:
    from triton.runtime import autotuner, interpreter

    builder, stack = interpreter.interpreter_builder, contextlib.ExitStack()

    def patch(owner: Any, name: str, change: Callable) -> None:
        original = getattr(owner, name, None)
        if original is not None:
            stack.enter_context(mock.patch.object(owner, name, change(original)))

    patch(interpreter.InterpretedFunction, "run", _launched)
    patch(autotuner.Autotuner, "run", _first_configuration)
    patch(interpreter, "_implicit_cvt", _placed)
    patch(builder, "set_grid_idx", _entered)
    for name in ("create_load", "create_store"):
        patch(builder, name, _without_mask)
    patch(builder, "create_masked_load", _loaded)
    patch(builder, "create_masked_store", _stored)
    patch(builder, "create_atomic_rmw", _added)
    patch(builder, "create_atomic_cas", _compared)
    patch(builder, "binary_op", _arithmetic)
    patch(builder, "cast_impl", _converted)
    patch(builder, "create_histogram", _counted)
    patch(interpreter.ReduceOps, "sum", _reduced)
    patch(interpreter.ReduceOps, "generic_reduce", _folded)
    return stack


def _launched(original: Callable) -> Callable:
    def run(self, *arguments, grid, warmup, **named):
        if warmup or guard.launch is not None:
            return original(self, *arguments, grid=grid, warmup=warmup, **named)
        known = {k: v for k, v in named.items() if k in self.arg_names}
        bound = inspect.signature(self.fn).bind_partial(*arguments, **known).arguments
        names = {v.data_ptr(): k for k, v in bound.items() if hasattr(v, "data_ptr")}
        grid = _checked(grid, self.fn.__name__)
        launch = guard.launch = Launch(self, names)
        guard.launches += 1
        for kind, tell in list(guard.listeners):
            if kind == "launch":
                tell(self, dict(bound), named)
        try:
            result = original(self, *arguments, grid=grid, warmup=warmup, **named)
            launch.check_races()
            guard.ended.append(launch)
            for kind, tell in list(guard.listeners):
                if kind == "done":
                    tell(launch)
            return result
        except _Stop as stop:
            fault = stop.fault
        finally:
            guard.launch = None
        raise fault

    return run


def _checked(grid: Any, name: str) -> Any:
    """Return a grid as a tuple, or a function of one as one that gives tuples. Raises Unsupported for anything else."""
    if callable(grid):
        return lambda meta: _checked(grid(meta), name)
    if not isinstance(grid, tuple | list):
        raise Unsupported(
            f"the grid of {name} is {grid!r}: expected a tuple, as in {name}[({grid!r},)](…). Likely cause: without "
            "its comma, (n) is a number"
        )
    for count in grid:
        if not hasattr(count, "__index__"):
            raise Unsupported(
                f"the grid of {name} is {grid!r}: expected integers. Likely cause: a division by /, where "
                "triton.cdiv(a, b) rounds up"
            )
    return tuple(grid)


def _first_configuration(original: Callable) -> Callable:
    def run(self, *arguments, **named):
        """As the first configuration has it: the interpreter has no clock to choose by."""
        config = self.configs[0]
        if config.pre_hook is not None:
            config.pre_hook({**dict(zip(self.arg_names, arguments)), **named, **config.all_kwargs()})
        return self.fn.run(*arguments, **named, **config.all_kwargs())

    return run


def _placed(original: Callable) -> Callable:
    def convert(value):
        result = original(value)
        if guard.launch is not None and hasattr(value, "data_ptr"):
            result.handle.data = np.array([guard.launch.place(value)], dtype=np.uint64)
        return result

    return convert


def _entered(original: Callable) -> Callable:
    def set_grid_idx(*place):
        original(*place)
        if guard.launch is not None:
            guard.launch.places.append(place)

    return set_grid_idx


def _without_mask(original: Callable) -> Callable:
    def access(*arguments, **named):
        launch = guard.launch
        launch.unmasked = True
        try:
            return original(*arguments, **named)
        finally:
            launch.unmasked = False

    return access


def _size(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _loaded(original: Callable) -> Callable:
    def load(pointers, mask, *rest, **named):
        launch = guard.launch
        real, addresses = launch.real("load", pointers, mask)
        guard.tell("load", addresses, _size(pointers))
        launch.remember("load", addresses, _size(pointers))
        result = original(real, mask, *rest, **named)
        if not guard.nan_loaded:
            guard.nan_loaded = _has_nan(result, np.True_)
        return result

    return load


def _stored(original: Callable) -> Callable:
    def store(pointers, value, mask, *rest, **named):
        launch = guard.launch
        real, addresses = launch.real("store", pointers, mask)
        guard.tell("store", addresses, _size(pointers))
        active = np.asarray(mask.data, dtype=bool)
        values = np.broadcast_to(np.asarray(value.data), active.shape)[active]
        launch.remember("store", addresses, _size(pointers), values)
        if not guard.nan_stored:
            guard.nan_stored = _has_nan(value, active)
        return original(real, value, mask, *rest, **named)

    return store


def _added(original: Callable) -> Callable:
    def atomic(operation, pointers, value, mask, sem, scope, *rest, **named):
        launch, kind = guard.launch, pointers.get_element_ty()
        real, addresses = launch.real("add", pointers, mask)
        if kind.is_bf16():
            raise _Stop(Unsupported(
                f"{launch.line()}an atomic addition in 16 bits, which the interpreter does not have for bfloat16, and "
                "which rounds the total every time. Keep totals in float32 memory."
            ))  # fmt: skip
        guard.tell("add", addresses, _size(pointers))
        launch.remember("add", addresses, _size(pointers))
        launch.synchronise(addresses, sem.name, scope.name)
        if not guard.nan_stored:
            guard.nan_stored = _has_nan(value, np.asarray(mask.data, dtype=bool))
        return original(operation, real, value, mask, sem, scope, *rest, **named)

    return atomic


def _compared(original: Callable) -> Callable:
    def compare(pointers, expected, value, sem, scope, *rest, **named):
        launch = guard.launch
        everywhere = dataclasses.replace(expected, data=np.ones(np.shape(pointers.data), dtype=bool))
        real, addresses = launch.real("add", pointers, everywhere)
        guard.tell("add", addresses, _size(pointers))
        launch.remember("add", addresses, _size(pointers))
        launch.synchronise(addresses, sem.name, scope.name)
        return original(real, expected, value, sem, scope, *rest, **named)

    return compare


NARROW = (
    "in bfloat16, whose bits the interpreter would take for integers. Convert first: x.to(tl.float32), and let the "
    "store convert back."
)


def _arithmetic(original: Callable) -> Callable:
    floating = {np.add, np.subtract, np.multiply, np.divide, np.fmod, np.minimum, np.maximum}
    floating |= {np.less, np.less_equal, np.greater, np.greater_equal}

    def binary(left, right, operation):
        if operation in floating and guard.launch is not None and left.get_element_ty().is_bf16():
            raise _Stop(Unsupported(f"{guard.launch.line()}arithmetic {NARROW}"))
        return original(left, right, operation)

    return binary


def _converted(original: Callable) -> Callable:
    """From and to bfloat16 as on a GPU, rounded to nearest: the interpreter truncates, or takes bits for integers."""

    def cast(source, kind):
        of, to = source.get_element_ty(), kind.scalar
        if of == to or not (of.is_bf16() or to.is_bf16()):
            return original(source, kind)
        data = np.asarray(source.data)
        wide = (data.astype(np.uint32) << np.uint32(16)).view(np.float32) if of.is_bf16() else data.astype(np.float32)
        if to.is_bf16():
            bits = wide.view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            made = np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)
        else:
            made = wide.astype(original(source, kind).data.dtype)
        return type(source)(np.asarray(made), to)

    return cast


def _counted(original: Callable) -> Callable:
    def histogram(data, bins, mask):
        values = np.asarray(data.data)
        outside = values[((values < 0) | (values >= bins)) & (True if mask is None else np.asarray(mask.data, bool))]
        if guard.launch is not None and outside.size:
            raise _Stop(Unsupported(
                f"{guard.launch.line()}a histogram of {int(outside[0]):,} in {bins} bins: a GPU promises nothing of "
                f"numbers outside of 0 … {bins - 1}. Likely cause: what the load's mask leaves out counts too, with "
                "the value of `other`; give tl.histogram a mask, or subtract"
            ))  # fmt: skip
        return original(data, bins, mask)

    return histogram


def _folded(original: Callable) -> Callable:
    """A reduction by a function, neighbours in pairs as on a GPU: the interpreter calls it for each element."""

    def reduce(self, values):
        dtypes = [value.dtype for value in values]
        data = [np.asarray(value.handle.data) for value in values]
        axis, dims = (0, data[0].ndim) if self.axis is None else (self.axis, 0)
        data = [d.reshape(-1) for d in data] if dims else data
        try:
            while data[0].shape[axis] > 1:
                halves = [
                    self.to_tensor(np.take(d, np.arange(k, d.shape[axis], 2), axis), dtype)
                    for k in (0, 1)
                    for d, dtype in zip(data, dtypes)
                ]
                made = self.combine_fn.fn(*halves)
                data = [part.handle.data for part in (made if isinstance(made, tuple) else (made,))]
        except Exception:  # of a function that takes single elements alone
            return original(self, values)
        if self.keep_dims:
            data = [d.reshape((1,) * dims) for d in data] if dims else data
        else:
            data = [d.squeeze(axis) for d in data]
        return [self.to_tensor(d, dtype) for d, dtype in zip(data, dtypes)]

    return reduce


def _reduced(original: Callable) -> Callable:
    def total(self, values):
        if guard.launch is not None and values.handle.get_element_ty().is_bf16():
            raise _Stop(Unsupported(f"{guard.launch.line()}a sum {NARROW}"))
        return original(self, values)

    return total
