"""The rational function and its derivatives in exact arithmetic, at single points: no range, no rounding."""

import math
from fractions import Fraction
from typing import NamedTuple


class Exact(NamedTuple):
    """Each value beside the size of the largest terms that it is a sum of, which floats round."""

    y: tuple[Fraction, Fraction]
    dx: tuple[Fraction, Fraction]
    da: list[tuple[Fraction, Fraction]]
    db: list[tuple[Fraction, Fraction]]
    dxx: tuple[Fraction, Fraction]  # the derivative of dx


def exact(dy, x, a, b):
    """At numbers dy, x and coefficients [m+1], [n], given as floats. x = 0 is taken from the right."""
    dy, x, a, b = Fraction(dy), Fraction(x), [Fraction(c) for c in a], [Fraction(c) for c in b]
    t, sign = abs(x), -1 if x < 0 else 1
    b_signs, b = [-1 if c < 0 else 1 for c in b], [Fraction(1)] + [abs(c) for c in b]

    def sums(c, z, order):
        """The derivative of that order of Σ c_i z^i, and the same of magnitudes."""
        factors = [math.perm(i, order) for i in range(len(c))]
        terms = [f * v * z ** (i - order) for i, (f, v) in enumerate(zip(factors, c)) if i >= order]
        return sum(terms), sum(map(abs, terms))

    (p, p_size), (dp, dp_size), (ddp, ddp_size) = (sums(a, x, order) for order in range(3))
    (q, _), (dq, _), (ddq, _) = (sums(b, t, order) for order in range(3))
    dq *= sign
    slope = dp / q - p * dq / q**2
    slope_size = dp_size / q + p_size * abs(dq) / q**2
    bend = ddp / q - 2 * dp * dq / q**2 - p * ddq / q**2 + 2 * p * dq**2 / q**3
    bend_size = ddp_size / q + 2 * dp_size * abs(dq) / q**2 + p_size * (ddq / q**2 + 2 * dq**2 / q**3)
    return Exact(
        (p / q, p_size / q),
        (dy * slope, abs(dy) * slope_size),
        [(dy * x**i / q, abs(dy) * t**i / q) for i in range(len(a))],
        [(-s * dy * p * t**j / q**2, abs(dy) * p_size * t**j / q**2) for j, s in enumerate(b_signs, 1)],
        (dy * bend, abs(dy) * bend_size),
    )


def errors(found, values, epsilon, tiny, largest):
    """Of each found number: its error in units of epsilon · size; nothing where a size is no number of the dtype."""
    for got, (value, size) in zip(found, values, strict=True):
        if size < largest:
            wrong = got != got or abs(got) == float("inf")
            yield float("inf") if wrong else float(abs(Fraction(got) - value) / (epsilon * size + tiny))
