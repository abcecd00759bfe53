"""Answers to the exercises of chapter 01: right ones, and wrong ones each with what its check must say."""

import torch
from torch.nn import functional

from flashkat_lite.lab.splines import basis, uniform_knots


def count(inputs, outputs, g, k, *, base=1, knots=0, edges=False, each=7, last_only=False, add=1):
    parameters = inputs * outputs * (g + k + base) + knots * (g + 2 * k + 1)
    splines = g + k if last_only else sum(g + 2 * k - level for level in range(1, k + 1))
    users = inputs * outputs if edges else inputs
    return parameters, each * users * splines + 2 * inputs * outputs * (g + k + 1) + add * outputs


def slope(x, knots, degree, factor=True, sign=1, wide=False):
    width = knots[degree:] - knots[:-degree]
    if wide:
        width = torch.full_like(width, degree * (knots[1] - knots[0]))
    scaled = basis(x, knots, degree - 1) / width
    return sign * (degree if factor else 1) * (scaled[..., :-1] - scaled[..., 1:])


def refined(coefficients, intervals):
    x = torch.linspace(-1, 1, 40 * intervals, dtype=torch.float64)
    curves = basis(x, uniform_knots(intervals, 3).double(), 3) @ coefficients.double().T
    return torch.linalg.lstsq(basis(x, uniform_knots(2 * intervals, 3).double(), 3), curves).solution.T


def cheap(x, low, high, coefficients, shift=0, reverse=False):
    intervals = len(coefficients) - 3
    u = (x - low) * (intervals / (high - low))
    cell = u.floor().long().clamp(0, intervals - 1)
    f = u - cell
    c = coefficients.roll(-shift).unfold(0, 4, 1)
    c = c.flip(1) if reverse else c
    powers = torch.tensor([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]], dtype=c.dtype)
    p0, p1, p2, p3 = (c @ (powers / 6).T)[cell].unbind(1)
    return ((p3 * f + p2) * f + p1) * f + p0


def stretched(coefficients, intervals):
    size = 2 * intervals + 3
    return functional.interpolate(coefficients[None], size, mode="linear", align_corners=True)[0]


def recursion(x, low, high, coefficients):
    return basis(x, uniform_knots(len(coefficients) - 3, 3, low, high).double(), 3) @ coefficients


RIGHT = {
    "01-1": lambda: 0.6875,
    "01-2": count,
    "01-3": slope,
    "01-4": refined,
    "01-5": cheap,
}

WRONG = {
    "01-1": [
        (lambda: 0.75, "go one level up"),
        (lambda: 15 / 32, "second half"),
        (lambda: 7 / 32, "first half"),
        (lambda: 25 / 32, "past its end"),
        (lambda: None, "expected a number, got None"),
    ],
    "01-2": [
        (lambda *case: count(*case, base=0), "base weight"),
        (lambda *case: count(*case, knots=1), "knots are not trained"),
        (lambda *case: count(*case, add=0), "adding the two products"),
        (lambda *case: count(*case, edges=True), "once for each input"),
        (lambda *case: count(*case, each=9), "7, not 9"),
        (lambda *case: count(*case, last_only=True), "levels below the last"),
    ],
    "01-3": [
        (lambda *case: slope(*case, factor=False), "the factor in front, the degree"),
        (lambda *case: slope(*case, sign=-1), "the sign: the left spline rises"),
        (lambda *case: slope(*case, wide=True), "uneven knots: .* wrong; the first at index"),
    ],
    "01-4": [
        (stretched, "do not stretch"),
        (lambda coefficients, intervals: coefficients, r"expected shape \[4, 13\], got \[4, 8\]"),
        (lambda *case: None, "got NoneType"),
    ],
    "01-5": [
        (lambda *case: cheap(*case, shift=1), "one cell off"),
        (lambda *case: cheap(*case, reverse=True), "the four weights in reverse"),
        (recursion, "FLOPs an element"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "01-1": (lambda: 2 / 3, r"expected 0\.6875, got 0\.666"),
    "01-2": (lambda *case: count(768, 768, 5, 3), "inputs=2, outputs=5, .*expected 90, got 5,308,416"),
    "01-3": (lambda x, knots, degree: slope(x, knots, 3), "at degree 2.*expected shape .* got"),
    "01-4": (
        lambda c, intervals: refined(c, 5) if intervals == 5 else torch.zeros(4, 13),
        r"expected shape \[4, 19\], got \[4, 13\]",
    ),
    "01-5": (
        lambda x, low, high, c: cheap(x, -1.0, 1.0, c),
        r"5 intervals of \[-2, 3\].*wrong; the first at index",
    ),
}
