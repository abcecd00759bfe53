"""The checks of chapter 02 accept right answers and reject common mistakes, each with its reason."""

import math

import numpy as np
import pytest
import torch

from flashkat_lite.coefficients import fit
from flashkat_lite.lab import checks


def coefficients(groups, m, n, shared=None, one=1, constant=0):
    rows_a, rows_b = (1 if shared == name else groups for name in ("numerator", "denominator"))
    return rows_a * (m + one) + rows_b * (n + constant)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
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
)
def test_other_counts_are_rejected(wrong, words):
    checks.coefficient_count(coefficients)
    with pytest.raises(checks.Wrong, match=words):
        checks.coefficient_count(wrong)


def poles(b, low, high, real=True, inside=True, order=True, highest_first=True):
    zeros = np.roots([*b[::-1], 1.0] if highest_first else [1.0, *b])
    kept = [
        z.real for z in zeros if (not real or abs(z.imag) < 1e-9) and (not inside or low <= z.real <= high)
    ]  # fmt: skip
    return sorted(kept) if order else sorted(kept, reverse=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": False}, "ascending"),
        ({"inside": False}, "outside of the interval"),
        ({"real": False}, "complex"),
        ({"highest_first": False}, "highest power first"),
    ],
)
def test_other_poles_are_rejected(options, words):
    checks.real_poles(poles)
    with pytest.raises(checks.Wrong, match=words):
        checks.real_poles(lambda *case: poles(*case, **options))


def std(f, features_in):
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (features_in * torch.trapezoid(f(z) ** 2 * density, z).item()) ** -0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda f, n: std(f, n) ** 2, "not their standard deviation"),
        (lambda f, n: (2 / n) ** 0.5, "ReLU's"),
        (lambda f, n: n**-0.5, "second moment is missing"),
        (lambda f, n: std(f, 1), "number of inputs"),
    ],
)
def test_other_starts_are_rejected(wrong, words):
    checks.weight_std(std)
    with pytest.raises(checks.Wrong, match=words):
        checks.weight_std(wrong)


def mish(x):
    return x * torch.tanh(torch.nn.functional.softplus(x))


def test_a_fit_to_the_other_form_is_told_so():
    a, b = fit(mish, (5, 4))[:2]
    checks.fit_mish(lambda: (list(a), list(b)))
    with pytest.raises(checks.Wrong, match="expected 6 and 4"):
        checks.fit_mish(lambda: (list(a)[:5], list(b)))
    with pytest.raises(checks.Wrong, match="counts as good"):
        checks.fit_mish(lambda: ([0.0, 1, 0, 0, 0, 0], [0.0] * 4))

    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    q, y = torch.ones_like(x), mish(x)
    powers, odd = (torch.stack([x**i for i in r], 1) for r in (range(6), range(1, 5)))
    for _ in range(8):  # without a bound on b
        c = torch.linalg.lstsq(torch.cat([powers, -y[:, None] * odd], 1) / q[:, None], (y / q)[:, None]).solution[:, 0]
        q = 1 + odd @ c[6:]
    with pytest.raises(checks.Wrong, match="another denominator"):
        checks.fit_mish(lambda: (c[:6].tolist(), c[6:].tolist()))
