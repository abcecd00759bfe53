"""What checks share: the error that they raise, comparisons that say what is wrong and where, and the clock."""

import functools
import math
import sysconfig
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashkat_lite import hardware
from flashkat_lite.testing import guarded

from ..setup import DEVICE, GPU
from ..xraying import foretold

CHECKS: dict[str, Callable] = {}  # by the exercise's number
Parts = Iterator[tuple[str, float | str, dict[str, float]]]  # of an answer: see `numbers`
TWICE = "each was added twice: is the buffer zeroed at each call, is memory from `empty` written before it is read?"


class Wrong(AssertionError):
    """An answer that is not right; the message says what is wrong and where."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback, whose lines of the check would show the answer."""
        return [f"Wrong: {self}"]


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
                parts, answer = [*right(*case)], f(*case)
                names = [what.partition(" for ")[0] for what, _, _ in parts]
                for part, got in zip(parts, expect_tuple(answer, *names) if names[1:] else [answer], strict=True):
                    what, expected, causes = part
                    same_number(what, got, expected, causes)
            return about

        return check

    return decorate


# Inputs


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers with NaN before and after them in memory: what a mask forgets becomes visible."""
    return guarded(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


# Comparisons


def expect_tuple(answer: Any, *names: str) -> tuple:
    """Return the answer. Raises Wrong unless it is a tuple with a part for each name."""
    if isinstance(answer, tuple) and len(answer) == len(names):
        return answer
    got = f"a tuple of {len(answer)}" if isinstance(answer, tuple) else repr(answer)
    got = type(answer).__name__ if isinstance(answer, Tensor) else got
    raise Wrong(f"expected a tuple ({', '.join(names)}), got {got}")


def same_number(
    what: str, got: Any, expected: float | str, causes: dict[str, float] | None = None, within: float = 1e-6
) -> None:
    """Raise Wrong unless `got` is `expected`: a word or an integer exactly, else to one part in a million.

    causes: {likely cause: the number it leads to}. within: a share of the expected number that is allowed instead.
    """
    if isinstance(expected, str):
        if got != expected:
            raise Wrong(f"{what}: expected {expected!r}, got {got!r}")
        return
    if isinstance(got, Tensor | np.ndarray | np.generic) and math.prod(got.shape) == 1:
        got = got.item()
    if type(got) not in (int, float):  # a subclass may say that it equals anything
        raise Wrong(f"{what}: expected a number, got {got!r}")
    if near(got, expected, within):
        return
    cause = next((f" Likely cause: {text}." for text, value in (causes or {}).items() if near(got, value, within)), "")
    expected, got = (f"{value:,.10g}" if isinstance(value, float) else f"{value:,}" for value in (expected, got))
    raise Wrong(f"{what}: expected {expected}{f' (±{within:.0%})' * (within > 1e-6)}, got {got}.{cause}")


def near(got: float, expected: float, within: float) -> bool:
    return got == expected or (not isinstance(expected, int) and abs(got - expected) <= within * abs(expected))


def same_tensor(
    what: str, got: Any, expected: Tensor, tolerance: Tensor | float,
    causes: dict[str, Tensor | tuple | None] | None = None, dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Raise Wrong unless `got` is `expected` within `tolerance`, in its shape and in `dtype`, without NaN.

    tolerance: absolute, elementwise or one for all. dtype: any if None. causes: {likely cause: the tensor it leads to},
    instead of which may stand (tensor, tolerance), or None for any; the first that `got` matches is named.
    """
    if type(got) not in (Tensor, torch.nn.Parameter):  # a subclass may compute what it likes
        raise Wrong(f"{what}: expected a tensor, got {type(got).__name__}")
    if dtype and got.dtype != dtype:
        raise Wrong(f"{what}: expected dtype {dtype}, got {got.dtype}")
    if got.shape != expected.shape:
        raise Wrong(f"{what}: expected shape {list(expected.shape)}, got {list(got.shape)}")
    rounding = min(16 * torch.finfo(got.dtype).eps, 2.0**-5) if got.is_floating_point() else 0.0
    got = got.detach().to(expected.device, torch.float64)
    bound = torch.as_tensor(tolerance, dtype=torch.float64, device=expected.device).expand(expected.shape)
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
    cause = next((text for text, wrong in (causes or {}).items() if matches(wrong)), "")
    if got.isnan().any():
        cause = "a NaN was read: a missing mask, a missing `other`, or memory from `empty` that nothing wrote"
    raise Wrong(
        f"{what}: {int(bad.sum())} of {bad.numel()} are wrong; the first at index {where}: expected "
        f"{right:.{digits}g}, got {mine:.{digits}g} (allowed: ±{bound[where].item():.2g})."
        + (f" Likely cause: {cause}." if cause else "")
    )


def same_twice(
    what: str, f: Callable, arguments: tuple, expected: Tensor, tolerance: Tensor | float,
    causes: dict[str, Tensor], dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Raise Wrong unless f gives what `same_tensor` asks for, and gives it again: buffers are zeroed each time."""
    same_tensor(what, f(*arguments), expected, tolerance, causes | {TWICE: 2 * expected}, dtype)
    unzeroed = {"the buffer is not zeroed at each call": 2 * expected}
    same_tensor(f"a second call, {what}", f(*arguments), expected, tolerance, unzeroed)


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


def speed_band(ratio: float, good: float) -> tuple[str, float]:
    """Return the band of a time as a multiple of ours, and its share of the points: 0 beyond the last band."""
    bands = ("excellent", min(1.05, good), 1.0), ("good", good, 1.0), ("fair", 1.5, 0.5), ("slow", 2.0, 0.25)
    return next(((band, share) for band, most, share in bands if ratio <= most), ("", 0.0))


def _samples(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Return some 65,536 elements of each tensor: all of them in float64 may not fit a small GPU."""
    tensors = result if isinstance(result, tuple) else (result,)
    return [t.flatten()[:: max(1, t.numel() >> 16)] for t in tensors]


def timed(
    f: Callable, ours: Callable, cases: dict[str, tuple], *,
    dtype: torch.dtype = torch.float32, good: float = 1.2, moves: int = 0, copied: bool = False,
) -> None:  # fmt: skip
    """Print f's time as a multiple of our solution's and its band, for each case; without a GPU, that none was taken.

    Then `check` may print a forecast of the first case, which scores nothing.

    cases: {size: arguments}; an argument is a shape (of normal numbers in `dtype`), a function that makes a tensor, or
    what it is. good: the multiple up to which all points are given. For the printed line: moves, what a call moves, as
    a multiple of its first argument's bytes; copied: time a copy of that argument too. Raises Wrong where the time is
    in no band, or the result is not ours.
    """
    if not GPU:
        print("No GPU here: correctness was checked, speed was not.")
        size, arguments = next(iter(cases.items()))
        forecasts.append(lambda: foretold(f, ours, arguments, size, dtype))
        return
    for size, arguments in cases.items():
        arguments = [_made(argument, dtype) for argument in arguments]
        for got, want in zip(*(_samples(function(*arguments)) for function in (f, ours)), strict=True):
            same_tensor(f"{size}, before it is timed", got, want, 2.0**-6 * (1 + want.abs().max()))
        calls = {"yours": functools.partial(f, *arguments), "ours": functools.partial(ours, *arguments)}
        moved = dict.fromkeys(calls, moves * arguments[0].nbytes)
        if copied:
            out = torch.empty_like(arguments[0])
            calls["a copy"], moved["a copy"] = functools.partial(out.copy_, arguments[0]), 2 * out.nbytes
        ms = {name: time.median for name, time in hardware.time_interleaved(calls, seconds=0.2).items()}
        rates = {name: f" ({moved[name] / t / 1e6:,.0f} GB/s)" if moved[name] else "" for name, t in ms.items()}
        times = f"{size}: " + ", ".join(f"{name} {t:.3f} ms{rates[name]}" for name, t in ms.items())
        ratio = ms["yours"] / ms["ours"]
        band, share = speed_band(ratio, good)
        if not share:
            raise Wrong(
                f"correct, but {ratio:.2f} times as slow as our solution ({times}); within 2 times scores, "
                f"within {good} counts as good"
            )
        end = "." if share == 1 else f", {share:.0%} of the points; {good} is good."
        speeds.append(Speed(f"{times} ({ratio:.2f}×): {band}{end}", band, share))
        print(speeds[-1].line)


def _made(argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, tuple):
        return torch.randn(argument, device=DEVICE).to(dtype)
    return argument() if callable(argument) else argument
