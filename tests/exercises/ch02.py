"""Answers to the exercises of chapter 02: right ones, and wrong ones each with what its check must say."""

import math

import numpy as np
import torch
from scipy.optimize import lsq_linear

from flashkat_lite.coefficients import fit, initial


def coefficients(groups, m, n, shared=None, one=1, constant=0):
    rows_a, rows_b = (1 if shared == name else groups for name in ("numerator", "denominator"))
    return rows_a * (m + one) + rows_b * (n + constant)


def poles(b, low, high, real=True, inside=True, order=True, highest_first=True):
    zeros = np.roots([*b[::-1], 1.0] if highest_first else [1.0, *b])
    kept = [
        z.real for z in zeros if (not real or abs(z.imag) < 1e-9) and (not inside or low <= z.real <= high)
    ]  # fmt: skip
    return sorted(kept) if order else sorted(kept, reverse=True)


def std(f, features_in):
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (features_in * torch.trapezoid(f(z) ** 2 * density, z).item()) ** -0.5


def mish(x):
    return x * torch.tanh(torch.nn.functional.softplus(x))


def without_bound():
    """Fitted to 1 + b_1 x + … without bars, as the denominator of least squares."""
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    q, y = torch.ones_like(x), mish(x)
    powers, odd = (torch.stack([x**i for i in r], 1) for r in (range(6), range(1, 5)))
    for _ in range(8):
        c = torch.linalg.lstsq(torch.cat([powers, -y[:, None] * odd], 1) / q[:, None], (y / q)[:, None]).solution[:, 0]
        q = 1 + odd @ c[6:]
    return c[:6].tolist(), c[6:].tolist()


def by_least_squares():
    """One round with b >= 0 and Q = 1 in the place of Q_old."""
    x = np.linspace(-3, 3, 1201)
    y = mish(torch.from_numpy(x)).numpy()
    columns = [*(x**i for i in range(6)), *(-y * abs(x) ** j for j in range(1, 5))]
    c = lsq_linear(np.stack(columns, 1), y, ([-np.inf] * 6 + [0] * 4, np.inf)).x
    return c[:6].tolist(), c[6:].tolist()


def as_silu():
    a, b = initial("silu", (5, 4))
    return a.flatten().tolist(), b.flatten().tolist()


RIGHT = {
    "02-1": coefficients,
    "02-3": std,
    "02-2": poles,
    "02-4": [by_least_squares, lambda: list(map(np.array, by_least_squares()))],
}

WRONG = {
    "02-1": [
        (lambda *case, **_: coefficients(*case[:3]), "a shared table has one row"),
        (lambda *case: coefficients(*case, one=0), r"m\+1 coefficients"),
        (lambda *case: coefficients(*case, constant=1), "constant is 1 and not learned"),
        (
            lambda g, m, n, shared=None: coefficients(
                g, m, n, {"numerator": "denominator", "denominator": "numerator"}.get(shared)
            ),
            "the one named",
        ),
    ],
    "02-3": [
        (lambda f, n: std(f, n) ** 2, "not their standard deviation"),
        (lambda f, n: (2 / n) ** 0.5, "ReLU's"),
        (lambda f, n: n**-0.5, "second moment is missing"),
        (lambda f, n: std(f, 1), "number of inputs"),
    ],
    "02-2": [
        (lambda *case: poles(*case, order=False), "ascending"),
        (lambda *case: poles(*case, inside=False), "outside of the interval"),
        (lambda *case: poles(*case, real=False), "complex"),
        (lambda *case: poles(*case, highest_first=False), "highest power first"),
        (lambda *case: None, "expected a list of real numbers, got None"),
    ],
    "02-4": [
        (lambda: fit(mish, (5, 4))[:2], "not by the linear program of coefficients.fit"),
        (lambda: tuple(part[::-1] for part in by_least_squares()), "the coefficients are in reverse"),
        (lambda: (by_least_squares()[0], "abcd"), "expected a list of numbers, got 'abcd'"),
        (lambda: ([0.0] * 5, [0.0] * 4), "expected 6 and 4 coefficients, got 5 and 4"),
        (lambda: ([0.0, 1, 0, 0, 0, 0], [0.0] * 4), r"the largest error is .*, at x = .*counts as good"),
        (without_bound, "another denominator"),
        (lambda: None, "expected a tuple"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "02-1": (lambda *case: 80, "shared='numerator': expected 38, got 80"),
    "02-2": (lambda *case: [0.5], r"b = \[-1\.5, 0\.5\].*expected \[1\.0, 2\.0\], got \[0\.5\]"),
    "02-3": (lambda f, n: 0.0740930, r"SiLU, 3 inputs: expected 0\.96.*got 0\.0740"),
    "02-4": (as_silu, "the largest error is .*counts as good"),
}
