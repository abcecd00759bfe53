"""What the checks share: the error they raise, and comparisons that say what is wrong and where."""

import contextlib
import functools
import math
import sys
import sysconfig
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from flashkat_lite import hardware

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


RACE = (
    "Likely cause: PyTorch adds, or a load, an addition and a store, between which another program's addition is lost"
)


class Wrong(AssertionError):
    """An answer that is not right; the message says what is wrong and where."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback, whose lines of the check would show the answer."""
        return [f"Wrong: {self}"]


def right(what: str) -> None:
    print(f"Right: {what}")


def same_bits(what: str, first: Tensor, again: Tensor, where: str) -> None:
    """Wrong unless a second result, of the same inputs, is the first one to the bit."""
    if torch.equal(first, again):
        return
    place = tuple((first != again).nonzero()[0].tolist())
    at = f" at index {place}" if place else ""
    raise Wrong(
        f"{what}, {where}: expected {first[place].item():.9g} again{at}, got {again[place].item():.9g}. "
        "Likely cause: programs add to one total, so their order decides"
    )


def same_number(what: str, got: Any, expected: float, causes: dict[str, float] | None = None) -> None:
    """Exact for integers, to one part in a million otherwise. `causes`: {likely cause: the number it leads to}."""
    if isinstance(got, Tensor | np.ndarray | np.generic) and math.prod(got.shape) == 1:
        got = got.item()
    if type(got) not in (int, float):  # a subclass may say that it equals anything
        raise Wrong(f"{what}: expected a number, got {got!r}")
    if near(got, expected):
        return
    cause = next((f" Likely cause: {text}." for text, value in (causes or {}).items() if near(got, value)), "")
    expected, got = (f"{value:,.10g}" if isinstance(value, float) else f"{value:,}" for value in (expected, got))
    raise Wrong(f"{what}: expected {expected}, got {got}.{cause}")


def near(got: float, expected: float) -> bool:
    return got == expected or (not isinstance(expected, int) and abs(got - expected) <= 1e-6 * abs(expected))


def same_tensor(
    what: str, got: Any, expected: Tensor, tolerance: Tensor | float, causes: dict[str, Tensor] | None = None
) -> None:
    """`got` within `tolerance` (absolute, elementwise or one for all) of `expected`, in its shape, without NaN.

    `causes`: {likely cause: the tensor it leads to}; the first that `got` matches is named.
    """
    if type(got) not in (Tensor, torch.nn.Parameter):  # a subclass may compute what it likes
        raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
    if got.shape != expected.shape:
        raise Wrong(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    rounding = min(16 * torch.finfo(got.dtype).eps, 2.0**-5) if got.is_floating_point() else 0.0
    got = got.detach().to(expected.device, torch.float64)
    bound = torch.as_tensor(tolerance, dtype=torch.float64, device=expected.device).expand(expected.shape)
    error = (got - expected.double()).abs()
    bad = ~(error <= bound)
    if not bad.any():
        return
    where = tuple(bad.nonzero()[0].tolist())
    cause = "a NaN was read: a missing mask, a missing `other`, or memory from `empty` that nothing wrote"
    if not got.isnan().any():
        for text, tensor in (causes or {}).items():
            wrong = tensor.double()
            fits = ((got - wrong).abs() <= 2 * bound + rounding * wrong.abs()).all()
            if fits and not ((wrong - expected).abs() <= bound).all():  # a mistake that shows here
                cause = text
                break
        else:
            cause = ""
    raise Wrong(
        f"{what}: {int(bad.sum())} of {bad.numel()} are wrong; the first at index {where}: expected "
        f"{expected[where].item():.7g}, got {got[where].item():.7g} (allowed: ±{bound[where].item():.2g})."
        + (f" Likely cause: {cause}." if cause else "")
    )


# What is shown of an error

LAB = __name__.partition(".checks")[0]
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def discreet(check: Callable) -> Callable:
    """The check, whose errors show no line of ours: of their tracebacks only the student's own frames are left."""

    @functools.wraps(check)
    def run(*arguments, **named):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=rf"{LAB}\b")  # a warning shows the line that it blames
                return check(*arguments, **named)
        except BaseException as raised:  # KeyboardInterrupt too
            error = raised
        _keep_the_students(error)
        try:
            raise error
        finally:
            del error  # it holds this frame

    run.__code__ = run.__code__.replace(co_filename="<check>", co_name=check.__name__)  # no file, so no lines
    return run


def _keep_the_students(error: BaseException) -> None:
    """Takes all frames but the student's from an error and those behind it, and tells IPython how to print it."""
    *_, (raiser, _) = _frames(error.__traceback__)
    untouched = type(error) is NotImplementedError and not error.args and _is_students(raiser)
    if untouched:
        error.args = (f"not done yet ({raiser.f_code.co_name})",)
    todo, done = [error], []
    while todo:
        one = todo.pop()
        if one is None or any(one is other for other in done):
            continue
        done.append(one)
        one.__traceback__ = _only(one.__traceback__, _is_students)
        todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    if isinstance(error, Wrong):
        return
    if untouched or not any(one.__traceback__ for one in done):
        error._render_traceback_ = lambda: ["".join(traceback.format_exception_only(type(error), error)).rstrip()]
    else:
        error._render_traceback_ = functools.partial(_rendered, error)


def _rendered(error: BaseException) -> list[str]:
    from IPython import get_ipython

    shown = _only(error.__traceback__, lambda frame: not _is_ours(frame))
    shell = get_ipython()
    if shell is None:
        return traceback.format_exception(type(error), error, shown)
    return shell.InteractiveTB.structured_traceback(type(error), error, shown)


def _frames(entry: types.TracebackType | None) -> Iterator[tuple[types.FrameType, types.TracebackType]]:
    while entry:
        yield entry.tb_frame, entry
        entry = entry.tb_next


def _only(entries: types.TracebackType | None, wanted: Callable) -> types.TracebackType | None:
    chosen = [(frame, entry) for frame, entry in _frames(entries) if wanted(frame)]
    if len(chosen) > 40:  # a recursion without an end, which IPython takes half a minute to print
        chosen = chosen[:20] + chosen[-20:]
    kept = None
    for frame, entry in reversed(chosen):
        kept = types.TracebackType(kept, frame, entry.tb_lasti, entry.tb_lineno)
    return kept


def _is_ours(frame: types.FrameType) -> bool:
    return f"{frame.f_globals.get('__name__')}.".startswith(f"{LAB}.")


def _is_students(frame: types.FrameType) -> bool:
    file, package = frame.f_code.co_filename, LAB.partition(".")[0]
    library = file.startswith((*LIBRARIES, "<frozen")) or "site-packages" in file or "dist-packages" in file
    return not library and str(frame.f_globals.get("__name__")).partition(".")[0] != package


# Speed


@dataclass(frozen=True)
class Speed:
    """What a timed exercise reached: the line that was printed, the band, and its share of the exercise's points."""

    line: str
    band: str
    share: float


speeds: list[Speed] = []  # what `timed` found, for `make grade`


def speed_band(ratio: float, good: float) -> tuple[str, float] | None:
    """The band of a time as a multiple of ours, and its share of the points; None beyond the last band."""
    bands = ("excellent", min(1.05, good), 1.0), ("good", good, 1.0), ("fair", 1.5, 0.5), ("slow", 2.0, 0.25)
    return next(((band, share) for band, most, share in bands if ratio <= most), None)


def _samples(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Some 65,536 elements of each tensor: all of them in float64 may not fit a small GPU."""
    tensors = result if isinstance(result, tuple) else (result,)
    return [t.flatten()[:: max(1, t.numel() >> 16)] for t in tensors]


def timed(
    f: Callable,
    ours: Callable,
    arguments: tuple[Any, ...],
    size: str,
    *,
    good: float = 1.2,
    nbytes: int | None = None,
    copied: Tensor | None = None,
) -> None:
    """On a GPU, f's time as a multiple of our solution's, in bands; Wrong where it is in none, or its result is wrong.

    good: the multiple up to which all points are given. For the printed line: nbytes, what a call moves, and copied,
    a tensor whose copy is timed too.
    """
    for got, want in zip(*(_samples(function(*arguments)) for function in (f, ours)), strict=True):
        same_tensor(f"{size}, before it is timed", got, want, 2.0**-6 * (1 + want.abs().max()))
    cases = {"yours": lambda: f(*arguments), "ours": lambda: ours(*arguments)}
    moved = dict.fromkeys(cases, nbytes)
    if copied is not None:
        out = torch.empty_like(copied)
        cases["a copy"], moved["a copy"] = lambda: out.copy_(copied), 2 * copied.nbytes
    ms = {name: time.median for name, time in hardware.time_interleaved(cases, seconds=0.2).items()}
    ratio = ms["yours"] / ms["ours"]
    rates = {name: f" ({moved[name] / t / 1e6:,.0f} GB/s)" if moved[name] else "" for name, t in ms.items()}
    times = f"{size}: " + ", ".join(f"{name} {t:.3f} ms{rates[name]}" for name, t in ms.items())
    reached = speed_band(ratio, good)
    if reached is None:
        raise Wrong(
            f"correct, but {ratio:.2f} times as slow as our solution ({times}); within 2 times scores, "
            f"within {good} counts as good"
        )
    band, share = reached
    line = f"{times} ({ratio:.2f}×): {band}" + ("." if share == 1 else f", {share:.0%} of the points; {good} is good.")
    speeds.append(Speed(line, band, share))
    print(line)


# Kernels in the interpreter


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """What nothing wrote is NaN: memory from `empty`, and what a mask keeps from being loaded where `other` is missing.

    A GPU promises nothing of either. The interpreter makes both zeros, and would hide that one is missing; so there
    they are filled (integers with the largest).
    """
    if DEVICE == "cuda" or "triton" not in sys.modules:
        yield
        return
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.create_masked_load

    def load(pointers: Any, mask: Any, other: Any, *options: Any, **named: Any) -> Any:
        result = original(pointers, mask, other, *options, **named)
        kind, inside = pointers.get_element_ty(), np.asarray(mask.data, dtype=bool)
        if other is None and not inside.all():
            if kind.is_standard_floating():
                poison = 0x7FC0 if kind.is_bf16() else np.nan  # bfloat16 is kept as its bits
                result.data = np.where(inside, result.data, poison)
            elif kind.is_int() and not kind.is_int1():
                result.data = np.where(inside, result.data, np.iinfo(result.data.dtype).max)
        return result

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # with it comes that `empty` fills its memory
    try:
        with mock.patch.object(interpreter_builder, "create_masked_load", load):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


# What the interpreter calls for an access to memory, and which arguments are its pointers and its mask.
ACCESSES = {
    "load": ("create_masked_load", 0, 1),
    "store": ("create_masked_store", 0, 2),
    "add": ("create_atomic_rmw", 1, 3),
}


@contextlib.contextmanager
def watching(**tell: Callable[[np.ndarray, int], None]) -> Iterator[None]:
    """Be told of each access of the kernels that run inside; in the interpreter only (a GPU does not tell).

    tell: load, store or add (atomically), each a function of the active lanes' addresses [n] and an element's bytes.
    """
    from triton.runtime.interpreter import interpreter_builder

    def watched(kind: str, told: Callable) -> Any:
        name, pointers_at, mask_at = ACCESSES[kind]
        original = getattr(interpreter_builder, name)

        def access(*arguments):
            pointers, mask = arguments[pointers_at], arguments[mask_at]
            active = np.asarray(pointers.data)[np.asarray(mask.data).astype(bool)]
            told(active, pointers.get_element_ty().primitive_bitwidth // 8)
            return original(*arguments)

        return mock.patch.object(interpreter_builder, name, access)

    with contextlib.ExitStack() as stack:
        for kind, told in tell.items():
            stack.enter_context(watched(kind, told))
        yield
