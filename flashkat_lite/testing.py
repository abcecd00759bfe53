"""What tests, `doctor`, `bench` and the chapters ask of a kernel: random inputs, bounds from rounding, poisoned memory.

Bounds come from the arithmetic. A result stored in b bits rounds to 2^-b of itself; each of its float32 terms costs a
few roundings of 2^-24 of that term. Sums of many independent terms are judged in units of 2^-24 · sqrt(Σ term²)
(`reference.rounding_units`).
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ._torch import interpreted
from .reference import dx_terms, grouped, horner, rational_reference, rounding_units

GROUPS, DEGREES = 8, (5, 4)
ROUND = 2.0**-24
TINY = {torch.float32: 2.0**-126, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}  # below it, rounding is absolute


def default_device() -> str:
    """Return "cuda" where PyTorch finds a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def store_rounding(dtype: torch.dtype) -> float:
    """Return what storing costs, of a result: half a unit in the last place; all of it where bfloat16 is truncated.

    That is in Triton's interpreter.
    """
    truncates = dtype == torch.bfloat16 and interpreted()
    return torch.finfo(dtype).eps * (1.0 if truncates else 0.5)


def random_inputs(
    rows: int,
    columns: int,
    groups: int = GROUPS,
    degrees: tuple[int, int] = DEGREES,
    dtype: torch.dtype = torch.float32,
    *,
    tables: float = 0.3,
    shared: str = "neither",
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dy, x [rows, columns] in `dtype` and the tables, float32: normal numbers, the same for the same seed.

    The numerator [groups, m+1] and the denominator [groups, n] have standard deviation `tables`; `shared` ("neither",
    "numerator", "denominator" or "both") has one row for all groups. device: a GPU where there is one. Times do not
    depend on the values.
    """
    at = {"device": device or default_device()}
    at["generator"] = torch.Generator(**at).manual_seed(seed)
    x, dy = (torch.randn(rows, columns, **at).to(dtype) for _ in range(2))
    a, b = (
        tables * torch.randn(1 if shared in (name, "both") else groups, length, **at)
        for name, length in (("numerator", degrees[0] + 1), ("denominator", degrees[1]))
    )
    return dy, x, a, b


# Is a result right?


def check_forward(y: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    """Raise AssertionError unless y is F(x), in x's shape and dtype, but for rounding."""
    z, a, b = grouped(x.double(), numerator, denominator)
    t, a, b = z.abs(), [c.abs() for c in a], [c.abs() for c in b]
    size = horner(t, a) / (1 + t * horner(t, b))  # Σ|terms of P| / Q
    exact = rational_reference(x.double(), numerator.double(), denominator.double())
    bound = store_rounding(y.dtype) * exact.abs() + 8 * ROUND * size.reshape(x.shape) + TINY[y.dtype]
    _within("y", y, exact, bound, x)


def check_dx(dx: Tensor, dy: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> None:
    """Raise AssertionError unless dx is the gradient of x, in its shape and dtype, but for rounding."""
    z, a, b = grouped(x.double(), numerator, denominator)
    g = dy.double().reshape(z.shape)
    exact = sum(dx_terms(g, z, a, b)).reshape(x.shape)
    # The same two terms with every summand positive: what the roundings are relative to.
    t, a, b = z.abs(), [c.abs() for c in a], [c.abs() for c in b]
    p, q = horner(t, a), 1 + t * horner(t, b)
    slopes = horner(t, [i * c for i, c in enumerate(a)][1:]), horner(t, [j * c for j, c in enumerate(b, 1)])
    size = g.abs() * (slopes[0] / q + p * slopes[1] / (q * q))
    # Where Q is beyond 2^63 the factor dy P/Q² is below float32's normal numbers, and Q' multiplies what it lost.
    tiny = TINY[dx.dtype] + TINY[torch.float32] * slopes[1].expand_as(z).reshape(x.shape)
    _within("dx", dx, exact, store_rounding(dx.dtype) * exact.abs() + 8 * ROUND * size.reshape(x.shape) + tiny, x)


def _within(what: str, found: Tensor, exact: Tensor, bound: Tensor, like: Tensor) -> None:
    _hold(found.dtype == like.dtype, f"{what} is {found.dtype}, not {like.dtype}")
    _hold(found.shape == like.shape, f"{what} has shape {list(found.shape)}, not {list(like.shape)}")
    error = (found.double() - exact).abs()
    if not (error <= bound).all():
        raise AssertionError(f"{what}: the error is {(error / bound).max():.3g} times what rounding explains")


def _hold(holds: bool | Tensor, message: str) -> None:
    """An assert that is executed under `python -O` too."""
    if not holds:
        raise AssertionError(message)


def errors_in_units(
    da: Tensor, db: Tensor, dy: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the errors of both tables' sums, in their shapes, in units of 2^-24 · sqrt(Σ term²)."""
    exact_a, exact_b, unit_a, unit_b = rounding_units(dy, x, numerator, denominator)
    return (da - exact_a).abs() / unit_a, (db - exact_b).abs() / unit_b


def check_backward(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    dy: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    *,
    mean: float = 4.0,
    worst: float = 16.0,
    one_by_one: int = 0,
) -> Tensor:
    """Hold backward(dy, x, numerator, denominator) to the closed form; return all errors of its sums, in units, [K].

    mean, worst: of the sums' errors, in units, at most. one_by_one: additions that meet at one address one after the
    other, each of which rounds a running total as large as the sum: they allow √one_by_one units more, and four times
    that for the worst. Raises AssertionError.
    """
    dx, da, db = backward(dy, x, numerator, denominator)
    check_dx(dx, dy, x, numerator, denominator)
    errors = errors_in_units(da, db, dy, x, numerator, denominator)
    mean, worst = mean + one_by_one**0.5, worst + 4 * one_by_one**0.5
    for name, error in zip(("dnumerator", "ddenominator"), errors):
        _hold(error.max() <= worst, f"{name}: the worst error is {error.max():.1f} units; {worst:.1f} are allowed")
    units = torch.cat([error.flatten() for error in errors])
    _hold(units.mean() <= mean, f"the sums' mean error is {units.mean():.1f} units; {mean:.1f} are allowed")
    return units


def check_kernels(dy: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, backwards: Iterable[str]) -> None:
    """Hold the forward kernel and the named backwards to the reference in float64. Raises AssertionError."""
    from .kernels.forward import forward
    from .ops import BACKWARDS

    tensors = x, numerator, denominator
    check_forward(forward(*tensors), *tensors)
    meeting = x.numel() // max(len(numerator), len(denominator))
    for name in backwards:
        try:
            check_backward(BACKWARDS[name], dy, *tensors, one_by_one=meeting if name == "atomic" else 0)
        except AssertionError as wrong:
            raise AssertionError(f"backward_{name}: {wrong}") from None


# Memory that nothing wrote, and what kernels do with memory


class Fault(RuntimeError):
    """What a kernel did that no GPU lets pass, or no interpreter; the message names line, place and likely cause."""


class OutOfBounds(Fault, IndexError):
    """An access outside of every tensor that the kernel was given. Nothing was read or written."""


class DataRace(Fault):
    """Two programs of a launch met at an address where one of them stores, and nothing orders them."""


class Unsupported(Fault):
    """What Triton's interpreter computes wrongly, or not at all."""


MARGIN = 8192  # elements, as many as the largest block of a kernel in the interpreter


def guarded(values: Tensor, margin: int = MARGIN, fill: float = float("nan")) -> Tensor:
    """Return `values`, contiguous and on the default device, with `margin` elements of `fill` before and after."""
    everything = torch.full((2 * margin + values.numel(),), fill, dtype=values.dtype)
    everything[margin : margin + values.numel()] = values.flatten()
    return everything.to(default_device())[margin : margin + values.numel()].view(values.shape)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Make NaN of what nothing wrote: memory from `empty`, and what a mask keeps from being loaded without `other`.

    A GPU promises nothing of either. The interpreter makes both zeros, and would hide that one is missing; so there
    they are filled (integers with the largest and 0, in turn), and memory is guarded as in `watching`.
    """
    if torch.cuda.is_available() or "triton" not in sys.modules:
        yield
        return
    import numpy as np
    from triton.runtime.interpreter import interpreter_builder

    from ._memory import guard, guarding

    original = interpreter_builder.create_masked_load

    def load(pointers: Any, mask: Any, other: Any, *options: Any, **named: Any) -> Any:
        result = original(pointers, mask, other, *options, **named)
        kind, active = pointers.get_element_ty(), np.asarray(mask.data, dtype=bool)
        if other is None and not active.all():
            guard.nan_loaded = True
            if kind.is_standard_floating():
                poison = 0x7FC0 if kind.is_bf16() else np.nan  # bfloat16 is kept as its bits
                result.data = np.where(active, result.data, poison)
            elif kind.is_int() and not kind.is_int1():
                largest = np.zeros(result.data.size, dtype=result.data.dtype)
                largest[::2] = np.iinfo(result.data.dtype).max
                result.data = np.where(active, result.data, largest.reshape(result.data.shape))
        return result

    # With it comes that `empty` fills its memory. `use_deterministic_algorithms` would import Inductor.
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        with mock.patch.object(interpreter_builder, "create_masked_load", load), guarding():
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def watching(**told: Callable[..., None]) -> Iterator[None]:
    """Guard the memory of the kernels that run inside, and be told what they do; in the interpreter only.

    An access outside of the tensors that a kernel was given raises `OutOfBounds` before it is made; programs that meet
    at an address where one of them stores, in no order, raise `DataRace` when the launch ends. Both are `Fault`s.

    told: load, store or add (atomically), each a function of the active positions' addresses (a NumPy array [n]) and an
    element's bytes; launch, a function of the kernel, its arguments by name, and its options.
    """
    from ._memory import guarding

    with guarding(list(told.items())):
        yield
