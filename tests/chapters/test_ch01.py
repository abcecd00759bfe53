"""The checks of chapter 01 accept right answers and reject common mistakes, each with its reason."""

import pytest
import torch
from torch.nn import functional

from flashkat_lite.lab import checks
from flashkat_lite.lab.checks.splines import basis, uniform_knots


@pytest.mark.parametrize(
    ("answer", "words"),
    [(0.75, "one level up"), (15 / 32, "second half"), (7 / 32, "first half"), (25 / 32, "past its end"), (None, "B")],
)
def test_other_values_by_hand_are_rejected(answer, words):
    checks.basis_by_hand(lambda: 0.6875)
    with pytest.raises(checks.Wrong, match=words):
        checks.basis_by_hand(lambda: answer)


def count(inputs, outputs, g, k, *, base=1, knots=0, edges=False, each=7, last_only=False, add=1):
    parameters = inputs * outputs * (g + k + base) + knots * (g + 2 * k + 1)
    splines = g + k if last_only else sum(g + 2 * k - level for level in range(1, k + 1))
    users = inputs * outputs if edges else inputs
    return parameters, each * users * splines + 2 * inputs * outputs * (g + k + 1) + add * outputs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": 0}, "base weight"),
        ({"knots": 1}, "knots are not trained"),
        ({"add": 0}, "adding the two products"),
        ({"edges": True}, "once for each input"),
        ({"each": 9}, "7, not 9"),
        ({"last_only": True}, "levels below the last"),
    ],
)
def test_other_counts_are_rejected(options, words):
    checks.count_kan(count)
    with pytest.raises(checks.Wrong, match=words):
        checks.count_kan(lambda *case: count(*case, **options))


def slope(x, knots, degree, factor=True, sign=1, wide=False):
    width = knots[degree:] - knots[:-degree]
    if wide:
        width = torch.full_like(width, degree * (knots[1] - knots[0]))
    scaled = basis(x, knots, degree - 1) / width
    return sign * (degree if factor else 1) * (scaled[..., :-1] - scaled[..., 1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"factor": False}, "degree"), ({"sign": -1}, "sign"), ({"wide": True}, "uneven knots")],
)
def test_other_slopes_are_rejected(options, words):
    checks.basis_slope(slope)
    with pytest.raises(checks.Wrong, match=words):
        checks.basis_slope(lambda *case: slope(*case, **options))


def refined(coefficients, intervals):
    x = torch.linspace(-1, 1, 40 * intervals, dtype=torch.float64)
    curves = basis(x, uniform_knots(intervals, 3).double(), 3) @ coefficients.double().T
    return torch.linalg.lstsq(basis(x, uniform_knots(2 * intervals, 3).double(), 3), curves).solution.T


def test_stretched_coefficients_are_rejected():
    checks.refine(refined)

    def stretched(coefficients, intervals):
        size = 2 * intervals + 3
        return functional.interpolate(coefficients[None], size, mode="linear", align_corners=True)[0]

    with pytest.raises(checks.Wrong, match="do not stretch"):
        checks.refine(stretched)
    with pytest.raises(checks.Wrong, match="expected shape"):
        checks.refine(lambda coefficients, intervals: coefficients)


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


def test_other_edges_are_rejected():
    checks.cheap_edge(cheap)
    with pytest.raises(checks.Wrong, match="one cell off"):
        checks.cheap_edge(lambda *case: cheap(*case, shift=1))
    with pytest.raises(checks.Wrong, match="a curve on"):
        checks.cheap_edge(lambda *case: cheap(*case, reverse=True))

    def recursion(x, low, high, coefficients):
        return basis(x, uniform_knots(len(coefficients) - 3, 3, low, high).double(), 3) @ coefficients

    with pytest.raises(checks.Wrong, match="FLOPs an element"):
        checks.cheap_edge(recursion)
