"""Chapter 02: coefficients, poles, the variance-preserving start, and a fit."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flashkat_lite import coefficients
from flashkat_lite.coefficients import max_error

from .common import Parts, Wrong, as_numbers, exercise, expect_tuple, numbers, same_number
from .rules import forbidden


@exercise("02-1")
@numbers(
    "nothing, numerator and denominator shared, at three sizes",
    (8, 5, 4),
    *((*size, shared) for size in ((8, 5, 4), (3, 6, 2), (1, 1, 1)) for shared in (None, "numerator", "denominator")),
)
def coefficient_count(groups: int, m: int, n: int, shared: str | None = None) -> Parts:
    """Check the number of coefficients of `groups` groups of degrees (m, n), with a table shared or none."""
    rows_a, rows_b = (1 if shared == name else groups for name in ("numerator", "denominator"))
    yield f"coefficients for {groups=}, {m=}, {n=}, {shared=}", rows_a * (m + 1) + rows_b * n, {
        "a numerator of degree m has m+1 coefficients": rows_a * m + rows_b * n,
        "the denominator's constant is 1 and not learned": rows_a * (m + 1) + rows_b * (n + 1),
        "the shared table is the one named": rows_b * (m + 1) + rows_a * n,
        "a shared table has one row": groups * (m + 1 + n),
    }  # fmt: skip


@exercise("02-2")
def real_poles(f: Callable[[Sequence[float], float, float], Sequence[float]]) -> str:
    """Check the zeros of 1 + b_1 x + … + b_n x^n in [low, high], ascending."""
    for b, expected in [
        ([-2.0], [0.5]),
        ([-1.5, 0.5], [1.0, 2.0]),
        ([0.0, 0.25], []),
        ([0.0, -0.25], [-2.0, 2.0]),
        ([-2.0, 0.0, 0.0, 0.0], [0.5]),
        (_denominator([-1.5, 2 / 3, 2.5, 5.0]), [-1.5, 2 / 3, 2.5]),
        ([-1.0, 0.5, 0.0, 0.0], []),
        (_denominator([1 + 1e-3j, 1 - 1e-3j]), []),  # near the real line, and not on it
        (_denominator([-2.9, 2.9, 3.1]), [-2.9, 2.9]),
        ([-1e10, 5e19], [1e-10, 1e-10]),  # (1 ± i) · 1e-10, which count as real
    ]:
        case = f"poles of b = {[float(f'{c:.4g}') for c in b]} in [-3, 3]"
        answer = f(list(b), -3.0, 3.0)
        if isinstance(answer, list | tuple | np.ndarray):  # complex numbers of no imaginary part are real
            answer = [z.real if isinstance(z, complex | np.complexfloating) and z.imag == 0 else z for z in answer]
        got = as_numbers(case, answer, kind="real numbers")
        if len(got) == len(expected) and np.allclose(got, expected, rtol=0, atol=1e-6):
            continue
        shown = [[float(f"{z:.7g}") for z in zeros] for zeros in (expected, got)]
        raise Wrong(f"{case}: expected {shown[0]}, got {shown[1]}.{_pole_cause(b, expected, got)}")
    return "real and complex, inside and outside, with trailing zeros"


def _denominator(zeros: Sequence[complex]) -> list[float]:
    """Return b_1 … b_n of the product of (1 - x/zero)."""
    polynomial = np.array([1.0])  # constant first
    for zero in zeros:
        polynomial = np.convolve(polynomial, [1.0, -1 / zero])
    return polynomial[1:].real.tolist()


def _pole_cause(b: Sequence[float], expected: list[float], got: list[float]) -> str:
    def real(zeros: np.ndarray, low: float = -3.0, high: float = 3.0) -> list[float]:
        return [z.real for z in zeros if abs(z.imag) < 1e-9 and low <= z.real <= high]

    zeros = np.roots([*b[::-1], 1.0])
    causes = {
        "they must be in ascending order": expected,
        "real zeros outside of the interval were kept": real(zeros, -math.inf, math.inf),
        "complex zeros are no poles on the real line": [z.real for z in zeros if -3 <= z.real <= 3],
        "all zeros were kept, complex and outside of the interval": zeros.real,
        "the coefficients are in reverse: numpy.roots wants the highest power first": real(np.roots([1.0, *b])),
        "the constant 1 of the denominator is missing": real(np.roots(b[::-1])),
    }
    if not got and len(expected) == 2 and max(expected) < 1e-6:
        return " Likely cause: a zero closer than 1e-9 to the real line counts as real."
    for cause, other in causes.items():
        if got and len(other) == len(got) and np.allclose(sorted(got), sorted(other), atol=1e-6):
            return f" Likely cause: {cause}."
    if len(got) == len(expected) and np.allclose(got, expected, atol=1e-2):
        return " Likely cause: right but for rounding; zeros are compared to 1e-6."
    return ""


@exercise("02-3")
def weight_std(f: Callable[[Callable[[Tensor], Tensor], int], float]) -> str:
    """Check (features_in · E[f(z)²])^(-1/2), to 1 %."""
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    functions = {
        "SiLU": functional.silu, "ReLU": torch.relu, "the identity": lambda x: x, "cos(x) + 1": lambda x: x.cos() + 1,
    }  # fmt: skip
    kinds = torch.clone, torch.square, torch.abs
    for name, function in functions.items():
        value = function(z)
        mean, second, size = (torch.trapezoid(kind(value) * density, z).item() for kind in kinds)
        half, narrow = (torch.trapezoid(value**2 * weight, z).item() for weight in (
            density * (z > 0), torch.exp(-z * z) / math.sqrt(math.pi),
        ))  # fmt: skip
        for features_in in (512, 3):
            expected = (features_in * second) ** -0.5
            same_number(f"{name}, {features_in} inputs", f(function, features_in), expected, {
                "that is the variance of the weights, not their standard deviation": expected**2,
                "the variance of f(z), not its second moment": (features_in * max(second - mean**2, 1e-300)) ** -0.5,
                "the second moment is missing": features_in**-0.5,
                "the number of inputs is missing": second**-0.5,
                "the square of the mean, not the mean of the square": (features_in * max(mean**2, 1e-300)) ** -0.5,
                "z < 0 counts too": (features_in * half) ** -0.5,
                "the density of z is exp(-z²/2) / √(2π)": (features_in * narrow) ** -0.5,
                "upside down": expected**-1,
                "that gain is ReLU's, whatever f is": (2 / features_in) ** 0.5,
                "the mean of |f|, not of its square": (features_in * size) ** -0.5,
                "the density is not normalised: divide by √(2π)":
                    (features_in * second * math.sqrt(2 * math.pi)) ** -0.5,
            }, within=0.01)  # fmt: skip
    return "four activations, at two widths, within 1 %"


@exercise("02-4")
def fit_mish(f: Callable[[], tuple[Sequence[float], Sequence[float]]], good: float = 3e-4) -> str:
    """Check (numerator [6], denominator [4]) with a largest error below `good` on [-3, 3]."""
    with forbidden("the linear program of coefficients.fit: do it without", coefficients, "_digits"):
        answer = expect_tuple(f(), "numerator", "denominator")
    numerator, denominator = (as_numbers("the coefficients", part) for part in answer)
    if (len(numerator), len(denominator)) != (6, 4):
        raise Wrong(f"expected 6 and 4 coefficients, got {len(numerator)} and {len(denominator)}")
    error = max_error(_mish, numerator, denominator)
    if not error < good:
        x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
        p = sum(c * x**i for i, c in enumerate(numerator))
        q = sum(c * x**j for j, c in enumerate(denominator, 1))
        other = min((p / d - _mish(x)).abs().max().item() for d in (1 + q, 1 + q.abs()))
        cause = " Likely cause: fitted to another denominator; there it is right." if other < good else ""
        if max_error(_mish, numerator[::-1], denominator[::-1]) < good:
            cause = " Likely cause: the coefficients are in reverse: the constant, or b_1, comes first."
        at = x[(p / (1 + sum(abs(c) * x.abs() ** j for j, c in enumerate(denominator, 1))) - _mish(x)).abs().argmax()]
        raise Wrong(f"the largest error is {error:.3g}, at x = {at:.2f}; below {good:g} counts as good.{cause}")
    return f"the largest error is {error:.2g}"


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(functional.softplus(x))
