"""What checks share: the error that they raise, comparisons that say what is wrong and where, and the clock."""

import contextlib
import copy
import ctypes
import functools
import inspect
import itertools
import math
import random
import re
import sysconfig
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashkat_lite import hardware
from flashkat_lite._memory import guard
from flashkat_lite.testing import Fault, guarded

from ..setup import DEVICE, GPU
from ..xraying import foretold

CHECKS: dict[str, Callable] = {}  # by the exercise's number
Parts = Iterator[tuple[str, float | str, dict[str, float]]]  # of an answer: see `numbers`
TWICE = "each was added twice: is the buffer zeroed at each call, is memory from `empty` written before it is read?"


class Wrong(AssertionError):
    """An answer that is not right; the message says what is wrong and where. `offer`: a line below it in a notebook."""

    offer = ""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback, whose lines of the check would show the answer."""
        return [f"Wrong: {self}", *filter(None, [self.offer])]


def exercise(number: str) -> Callable[[Callable], Callable]:
    """Return a decorator that makes a function the check of exercise `number`, such as "09-3".

    The function takes the answers and returns what is right about them, or raises Wrong.
    """

    def register(check: Callable) -> Callable:
        CHECKS[number] = check
        return check

    return register


def numbers(about: str, *cases: tuple) -> Callable[[Callable[..., Parts]], Callable]:
    """Return a decorator: what tells the right answer to a case becomes the check of a function that gives answers.

    The right answer is told part by part: what it is, such as "bytes for rows=37"; the number or the word expected; and
    {likely cause: the number that it leads to}. If there are several parts, the answer must be a tuple of them, each
    called what stands before " for ". about: what the check says is right.
    """

    def decorate(right: Callable[..., Parts]) -> Callable:
        @functools.wraps(right)
        def check(f: Callable) -> str:
            for case in cases:
                parts, answer = [*right(*case)], f(*copy.deepcopy(case))  # which f may take to pieces
                names = [what.partition(" for ")[0] for what, _, _ in parts]
                answer = expect_tuple(answer, *names) if names[1:] else (answer,)
                wanted = tuple(expected for _, expected, _ in parts)
                if names[1:] and answer != wanted and answer[::-1] == wanted:
                    raise Wrong(f"{parts[0][0]}: right numbers in another order; expected ({', '.join(names)})")
                for part, got in zip(parts, answer, strict=True):
                    same_number(part[0], got, *part[1:])
            return about

        return check

    return decorate


# Inputs


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers with NaN before and after them in memory: what a mask forgets becomes visible."""
    return guarded(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


# Comparisons


def expect_tuple(answer: Any, *names: str) -> tuple:
    """Return the answer as a tuple. Raises Wrong unless it has a part for each name: a tuple, a list or an array."""
    if type(answer) in (Tensor, np.ndarray) and len(names) > 1 and tuple(answer.shape) == (len(names),):
        answer = tuple(answer.tolist())
    if isinstance(answer, tuple | list) and len(answer) == len(names):
        return tuple(answer)
    got = f"a {type(answer).__name__} of {len(answer)}" if isinstance(answer, tuple | list) else repr(answer)
    got = type(answer).__name__ if isinstance(answer, Tensor | np.ndarray) else got
    raise Wrong(f"expected a tuple ({', '.join(names)}), got {got}")


def same_number(
    what: str, got: Any, expected: float | str, causes: dict[str, float] | None = None, within: float = 1e-6
) -> None:
    """Raise Wrong unless `got` is `expected`: a word or an integer exactly, else to one part in a million.

    A number of Python, NumPy or PyTorch is one. causes: {likely cause: the number it leads to}; one that leads to the
    number expected says nothing. within: a share of the expected number that is allowed instead.
    """
    if isinstance(expected, str):
        if type(got) not in (str, np.str_) or str(got) != expected:
            raise Wrong(f"{what}: expected {expected!r}, got {got!r}")
        return
    given = got
    if isinstance(got, Tensor | np.ndarray | np.generic) and math.prod(got.shape) == 1:
        got = got.item()
    if type(got) in (Fraction, Decimal):
        got = float(got)
    if type(got) not in (int, float):  # a subclass may say that it equals anything
        raise Wrong(f"{what}: expected a number, got {given!r}")
    if near(got, expected, within):
        return
    close = {text: value for text, value in (causes or {}).items() if not near(value, expected, within)}
    cause = next((f" Likely cause: {text}." for text, value in close.items() if near(got, value, within)), "")
    expected, got = (f"{value:,.10g}" if isinstance(value, float) else f"{value:,}" for value in (expected, got))
    raise Wrong(f"{what}: expected {expected}{f' (±{within:.0%})' * (within > 1e-6)}, got {got}.{cause}")


def as_numbers(what: str, answer: Any, length: int | None = None, kind: str = "numbers") -> list:
    """Return a list, tuple, array or tensor [n] as a list of Python's numbers. Raises Wrong for anything else.

    length: how many; kind: "integers" or "numbers", for the message.
    """
    expected = f"a list of {'' if length is None else f'{length} '}{kind}"
    if type(answer) in (Tensor, np.ndarray) and len(answer.shape) == 1:
        answer = answer.tolist()
    if not isinstance(answer, list | tuple):
        is_array = isinstance(answer, Tensor | np.ndarray)
        got = f"{type(answer).__name__} of shape {list(answer.shape)}" if is_array else repr(answer)
        raise Wrong(f"{what}: expected {expected}, got {got}")
    values = [v.item() if isinstance(v, Tensor | np.ndarray | np.generic) and v.size else v for v in answer]
    values = [float(v) if type(v) in (Fraction, Decimal) else v for v in values]
    if bad := [v for v in values if type(v) not in (int, float)]:
        raise Wrong(f"{what}: expected {expected}, got {bad[0]!r} among them")
    return values


def near(got: float, expected: float, within: float) -> bool:
    return got == expected or (not isinstance(expected, int) and abs(got - expected) <= within * abs(expected))


def same_tensor(
    what: str, got: Any, expected: Tensor, tolerance: Tensor | float,
    causes: dict[str, Tensor | tuple | None] | None = None, dtype: torch.dtype | None = None, arrays: bool = False,
) -> None:  # fmt: skip
    """Raise Wrong unless `got` is `expected` within `tolerance`, in its shape and in `dtype`, without NaN.

    arrays: NumPy's arrays and lists of numbers will do.

    tolerance: absolute, elementwise or one for all. dtype: any if None. causes: {likely cause: the tensor it leads to},
    instead of which may stand (tensor, tolerance), or None for any; the first that `got` matches is named.
    """
    if arrays and type(got) in (np.ndarray, list, tuple):
        with contextlib.suppress(TypeError, ValueError):
            got = torch.as_tensor(np.asarray(got))
    if type(got) not in (Tensor, torch.nn.Parameter):  # a subclass may compute what it likes
        raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
    if dtype and got.dtype != dtype:
        raise Wrong(f"{what}: expected dtype {dtype}, got {got.dtype}")
    if got.shape != expected.shape:
        raise Wrong(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    narrow = got.dtype == torch.float32 and expected.dtype == torch.float64 and dtype is None
    rounding = min(16 * torch.finfo(got.dtype).eps, 2.0**-5) if got.is_floating_point() else 0.0
    got = got.detach().to(expected.device, torch.float64)
    bound = torch.as_tensor(tolerance, dtype=torch.float64, device=expected.device).expand(expected.shape)
    narrow &= bool((bound < 1e-7 * (1 + expected.abs())).all())  # elsewhere what float32 explains is allowed
    error = (got - expected.double()).abs()
    bad = ~(error <= bound)
    if not bad.any():
        return

    def matches(wrong: Tensor | tuple | None) -> bool:
        if wrong is None:
            return True
        if isinstance(wrong, tuple):
            return bool(((got - wrong[0]).abs() <= wrong[1]).all())
        wrong = wrong.double()
        shows_here = ((wrong - expected).abs() > bound).any()
        return bool(shows_here and ((got - wrong).abs() <= 2 * bound + rounding * wrong.abs()).all())

    where = tuple(bad.nonzero()[0].tolist())
    right, mine = expected[where].item(), got[where].item()
    digits = 7 if f"{right:.7g}" != f"{mine:.7g}" else 17
    cause = ""
    if narrow and bool((error <= 1e-6 * (1 + expected.abs())).all()):
        cause = "right but for rounding: computed in float32, where float64 was given"
    cause = cause or next((text for text, wrong in (causes or {}).items() if matches(wrong)), "")
    if not cause and guard.unread():
        cause = f"{guard.unread()}: round the number of programs up, and mask the last block"
    if got.isnan().any():
        cause = _of_nan()
    raise Wrong(
        f"{what}: {int(bad.sum())} of {bad.numel()} are wrong; the first at index {where}: expected "
        f"{right:.{digits}g}, got {mine:.{digits}g} (allowed: ±{bound[where].item():.2g})."
        + (f" Likely cause: {cause}." if cause else "")
    )


def _of_nan() -> str:
    """Return where the NaN of a result comes from, as far as the guard of a kernel's memory has seen it."""
    read = "a NaN was read: a missing mask, a missing `other`, or memory from `empty` that nothing wrote"
    if GPU or guard.nan_loaded:
        return read
    if guard.nan_stored:
        return "a NaN was computed: infinity over infinity, infinity minus infinity, 0/0, or bits that are no number's"
    unwritten = "memory from `empty` that nothing wrote"
    return unwritten if guard.launches else f"a NaN was computed, or it is {unwritten}"


def same_twice(
    what: str, f: Callable, arguments: tuple, expected: Tensor, tolerance: Tensor | float,
    causes: dict[str, Tensor], dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Raise Wrong unless f gives what `same_tensor` asks for, and gives it again: buffers are zeroed each time."""
    same_tensor(what, f(*arguments), expected, tolerance, causes | {TWICE: 2 * expected}, dtype)
    unzeroed = {"the buffer is not zeroed at each call": 2 * expected}
    same_tensor(f"a second call, {what}", f(*arguments), expected, tolerance, unzeroed)


# What an answer does to its arguments


def unchanged(f: Any) -> Any:
    """Return an answer that raises Wrong where it has written into a tensor that it was given; on a CPU."""
    if not callable(f):
        return f

    @functools.wraps(f)
    def call(*arguments, **named):
        given = [(place, t) for place, t in enumerate(arguments) if type(t) is Tensor and t.device.type == "cpu"]
        before = [(place, _memory(t), _memory(t).copy()) for place, t in given if t.untyped_storage().nbytes() <= 2**24]
        guard.ended.clear()
        result = f(*arguments, **named)
        for place, memory, old in before:
            if not np.array_equal(memory, old):
                name = [*inspect.signature(f).parameters, "an argument"][place]
                raise Wrong(f"{name} was changed: write the result into memory of its own, or into a copy of {name}")
        return result

    return call


def _memory(tensor: Tensor) -> np.ndarray:
    """Return the bytes of a tensor's storage, what lies around the tensor too, as an array that shares them."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return np.empty(0, dtype=np.uint8)
    return np.ctypeslib.as_array((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr()))


# What is said of an error

ADVICE = {
    r"arange's range must be a power of 2": (
        "a block of another size: blocks are powers of two, triton.next_power_of_2(n) say, with a mask for the rest"
    ),
    r"invalid operands of type pointer": (
        "an address is a pointer and integers, and a division by / gives a float: divide by //"
    ),
    r"invalid operands of type triton.language.(?:float|bf)": (
        "<<, >>, & or | of floats: bits are integers' (x.view(torch.int32) outside, .to(tl.int32, bitcast=True) inside)"
    ),
    r"'numpy.ndarray' object has no attribute 'type'": "an array of NumPy's, where kernels take PyTorch's tensors",
    r"'int' object is not iterable": (
        "an element of a tensor, by its index: in a kernel, load it alone, or select it by tl.where and tl.sum"
    ),
    r"NoneType": (
        "a function that gives nothing: one of libdevice, which the interpreter does not have (write tanh by tl.exp, "
        "say), or one of yours without a `return`"
    ),
    r"has no attribute 'get_bf16'": (
        "arithmetic in bfloat16, which the interpreter does not have: convert first, x.to(tl.float32), and let the "
        "store convert back"
    ),
    r"Unsupported data type": (
        "an atomic operation that has none here for this dtype, such as 16 bits, or an exchange of float32: add to "
        "totals in float32"
    ),
    r"(Scalar )?-?\d+ is out of range for type int32": (
        "a constant of 32 bits whose highest bit is set: write it as int32 has it, -65536 for 0xffff0000, or ~0xffff"
    ),
}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise Wrong for what a kernel did with memory, and for errors of the interpreter that are no advice."""
    try:
        yield
    except Fault as fault:
        raise Wrong(str(fault)) from fault
    except Exception as error:
        if type(error).__name__ == "InterpreterError":
            for pattern, advice in ADVICE.items():
                if found := re.search(pattern, str(error)):
                    raise Wrong(f"the kernel stopped ({found[0]}). Likely cause: {advice}.") from error
        raise


# What is shown of an error

LAB = __name__.partition(".exercises")[0]
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def discreet(check: Callable) -> Callable:
    """Return the check with errors that show no line of ours: only the student's frames stay in their tracebacks."""

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
    """Take all frames but the student's from an error and those behind it, and tell IPython how to print it."""
    *_, (raiser, _) = _frames(error.__traceback__)
    untouched = type(error) is NotImplementedError and not error.args and _is_students(raiser)
    if untouched:
        error.args = (f"not done yet ({raiser.f_code.co_name})",)
    waiting, done = [error], []
    while waiting:
        one = waiting.pop()
        if one is None or any(one is other for other in done):
            continue
        done.append(one)
        one.__traceback__ = _only(one.__traceback__, _is_students)
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
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
forecasts: list[Callable[[], str]] = []  # what `timed` would ask a GPU that is not there, once the answer is right


@dataclass
class State:
    """Of the check that runs: whether its counts and its clock are wanted from other processes; `here`: this is one.

    launches: of each call that was watched, how many; kernels: what a GPU ran in them, by name.
    """

    counted: bool = False
    timed: bool = False
    here: bool = False
    launches: list[int] = field(default_factory=list)
    kernels: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        self.counted = self.timed = False
        self.launches.clear()
        self.kernels.clear()


state = State()
FLOOR = 0.8  # of the time that copying as many bytes takes in the same run: nothing right is faster


def speed_band(ratio: float, good: float) -> tuple[str, float]:
    """Return the band of a time as a multiple of ours, and its share of the points: a quarter however slow."""
    bands = ("excellent", min(1.05, good), 1.0), ("good", good, 1.0), ("fair", 1.5, 0.5)
    return next(((band, share) for band, most, share in bands if ratio <= most), ("slow", 0.25))


def _samples(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Return some 65,536 elements of each tensor: all of them in float64 may not fit a small GPU."""
    tensors = result if isinstance(result, tuple | list) else (result,)
    return [t.flatten()[:: max(1, t.numel() >> 16)] for t in tensors]


def _same_samples(what: str, got: Any, want: Any) -> None:
    for mine, ours in zip(*(_samples(result) for result in (got, want)), strict=True):
        same_tensor(what, mine, ours, 2.0**-6 * (1 + ours.abs().max()))


def timed(
    f: Callable, ours: Callable, cases: dict[str, tuple], *, dtype: torch.dtype = torch.float32, good: float = 1.2
) -> None:
    """Time f beside our solution, for each case, in a process of its own; without a GPU, print that it was not.

    Then `check` may print a forecast of the first case, which scores nothing.

    cases: {size: arguments}; an argument is a shape (of normal numbers in `dtype`), a function that makes a tensor, or
    what it is. good: the multiple of our time up to which all points are given.
    """
    if not GPU:
        print("No GPU here: correctness was checked, speed was not.")
        size, arguments = next(iter(cases.items()))
        forecasts.append(lambda: foretold(f, ours, arguments, size, dtype))
    elif state.here:
        for size, arguments in cases.items():
            speeds.append(measured(size, f, ours, arguments, dtype, good))
    else:
        state.counted = state.timed = True


def measured(size: str, f: Callable, ours: Callable, arguments: tuple, dtype: torch.dtype, good: float) -> Speed:
    """Return f's speed on arguments as `timed` takes them, each call on numbers of its own.

    Raises Wrong where the result before, or that of a timed call chosen at random, is not ours; and where the time is
    below the floor.
    """
    made = [_made(argument, dtype) for argument in arguments]
    result = f(*made)
    _same_samples(f"{size}, before it is timed", result, ours(*made))
    nbytes = sum(t.nbytes for t in [*made, *_tensors(result)] if isinstance(t, Tensor))
    source = torch.empty(max(1, nbytes // 2), dtype=torch.uint8, device=made[0].device)
    target, current, chosen = torch.empty_like(source), [made], []

    def refresh():
        current[1:] = [[_fresh(argument, before, dtype) for argument, before in zip(arguments, made, strict=True)]]

    count = itertools.count(1)

    def yours():
        result = f(*current[-1])
        if (
            current[1:] and random.randrange(next(count)) == 0
        ):  # each timed call is as likely to be the one that is kept
            chosen[:] = result, current[-1]

    calls = {"yours": yours, "ours": lambda: ours(*current[-1]), "a copy": lambda: target.copy_(source)}
    times = hardware.time_interleaved(calls, seconds=0.2, before=refresh)
    ms = {name: time.median for name, time in times.items()}
    result, inputs = chosen
    _same_samples(f"{size}, a timed call", result, ours(*inputs))
    if nbytes > 2**22 and ms["yours"] < FLOOR * ms["a copy"]:
        raise Wrong(
            f"{size}: {ms['yours']:.3f} ms is not believed: copying as many bytes takes {ms['a copy']:.3f} ms. "
            "Likely cause: the result is not computed in the call"
        )

    def share_of_copy(name: str) -> str:
        return f" ({ms['a copy'] / ms[name]:.0%} of a copy's speed)" if nbytes > 2**22 else ""

    parts = [f"{name} {ms[name]:.3f} ms{share_of_copy(name)}" for name in ("yours", "ours")]
    ratio = ms["yours"] / ms["ours"]
    band, share = speed_band(ratio, good)
    end = "." if share == 1 else f", {share:.0%} of the points; {good} is good."
    return Speed(f"{size}: {', '.join(parts)}, a copy {ms['a copy']:.3f} ms ({ratio:.2f}×): {band}{end}", band, share)


def _tensors(result: Any) -> list:
    return list(result) if isinstance(result, tuple | list) else [result]


def _made(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, tuple):
        return torch.randn(argument, device=DEVICE).to(dtype)
    return argument() if callable(argument) else argument


def _fresh(argument: Any, before: Any, dtype: torch.dtype) -> Any:
    """Return another argument of its kind: new numbers, or those of a given tensor in another order."""
    if isinstance(argument, Tensor):
        return before.roll(random.randrange(1, max(2, before.numel())))
    return _made(argument, dtype)
