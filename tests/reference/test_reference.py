"""The definition, in float64: its derivatives by three routes, its conventions, its groups."""

import math
from fractions import Fraction

import pytest
import torch
from exact import errors, exact
from torch.autograd import gradcheck

from flashkat_lite import rational
from flashkat_lite.reference import (
    FORMS,
    gradient_terms,
    rational_closed_form,
    rational_gradients,
    rational_reference,
    rounding_units,
)

DEGREES = ((5, 4), (3, 2), (6, 5), (2, 1), (1, 1), (2, 4))
TABLES = ((3, 3), (1, 3), (3, 1), (1, 1))  # rows of the numerator and of the denominator


def uniform(low, high, *shape, generator):
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def signed(t, generator):
    return t * (2.0 * torch.randint(0, 2, t.shape, generator=generator) - 1)


def smooth_point(degrees, tables, form="sum_of_magnitudes", seed=0):
    """x, a, b at a distance from every kink: x = 0, b = 0, and where the sum inside magnitude_of_sum changes sign."""
    generator = torch.Generator().manual_seed(seed)
    x = signed(uniform(0.2, 1.5, 4, 6, generator=generator), generator)
    a = signed(uniform(0.1, 1.0, tables[0], degrees[0] + 1, generator=generator), generator)
    b = signed(uniform(0.1, 1.0, tables[1], degrees[1], generator=generator), generator)
    if form == "magnitude_of_sum":
        b[:, 0] = 2.0  # outweighs the other terms: |b_2 x + … + b_5 x^4| < 0.16 · 9.6 on [-1.5, 1.5]
        b[:, 1:] *= 0.16
    return x, a, b


def kinked_point(degrees, tables, seed=1):
    x, a, b = smooth_point(degrees, tables, seed=seed)
    x[0], x[1] = 0.0, -0.0
    b[:, ::2] = 0.0
    return x, a, b


def gradients_by_autograd(dy, *inputs, form="sum_of_magnitudes"):
    leaves = [t.clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(rational_reference(*leaves, form=form), leaves, dy)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("degrees", DEGREES)
def test_autograd_of_the_definition_passes_gradcheck_off_the_kinks(degrees, tables, form):
    inputs = [t.requires_grad_() for t in smooth_point(degrees, tables, form)]
    assert gradcheck(lambda *t: rational_reference(*t, form=form), inputs)


@pytest.mark.parametrize("point", [smooth_point, kinked_point])
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("degrees", DEGREES)
def test_the_closed_form_is_autograds_kinks_included(degrees, tables, point):
    inputs = point(degrees, tables)
    dy = normal(4, 6, seed=2)
    for got, want in zip(rational_gradients(dy, *inputs), gradients_by_autograd(dy, *inputs)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("degrees", DEGREES)
def test_the_closed_form_is_the_limit_of_differences(degrees, tables):
    inputs = smooth_point(degrees, tables, seed=3)
    dy = normal(4, 6, seed=4)
    for which, gradient in enumerate(rational_gradients(dy, *inputs)):
        direction = normal(*inputs[which].shape, seed=5)
        step = 1e-5
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[which] = moved[which] + sign * step * direction
            ends.append((dy * rational_reference(*moved)).sum())
        # Central differences err by step² in the cubic term and by 2^-53 / step in rounding: 1e-10 or so.
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("tables", TABLES)
def test_the_terms_sum_to_the_gradients(tables):
    x, a, b = smooth_point((5, 4), tables)
    dy = normal(4, 6, seed=6)
    terms = list(gradient_terms(dy, x, a, b))
    groups = max(tables)
    assert len(terms) == 10 and all(term.shape == (4, groups, 6 // groups) for term in terms)
    sums = torch.stack([term.sum((0, 2)) for term in terms], 1)  # [G, 10]
    for columns, want in zip(sums.split([6, 4], 1), rational_gradients(dy, x, a, b)[1:]):
        got = columns if len(want) == groups else columns.sum(0, keepdim=True)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_first_term_of_each_kind_is_its_formula():
    x, a, b = smooth_point((3, 2), (1, 1))
    dy = normal(4, 6, seed=7)
    p = a[0, 0] + a[0, 1] * x + a[0, 2] * x**2 + a[0, 3] * x**3
    q = 1 + b[0, 0].abs() * x.abs() + b[0, 1].abs() * x**2
    terms = [term[:, 0] for term in gradient_terms(dy, x, a, b)]
    torch.testing.assert_close(terms[2], dy * x**2 / q)
    torch.testing.assert_close(terms[4], -b[0, 0].sign() * dy * x.abs() * p / q**2)


def test_a_denominator_of_zeros_trains():
    x, a, _ = smooth_point((5, 4), (3, 3))
    b = torch.zeros(3, 4, dtype=torch.float64)
    dy = normal(4, 6, seed=8)
    ours = gradients_by_autograd(dy, x, a, b)[2]
    assert ours.abs().min() > 0
    torch.testing.assert_close(ours, rational_gradients(dy, x, a, b)[2])

    # The same function with torch.abs, whose derivative at 0 is 0, would stay where it is.
    leaf = b.clone().requires_grad_()
    z = x.reshape(4, 3, 2)
    q = 1 + sum(leaf[:, j, None].abs() * z.abs() ** (j + 1) for j in range(4))
    (dy.reshape(z.shape) * sum(a[:, i, None] * z**i for i in range(6)) / q).sum().backward()
    assert not leaf.grad.any()


def test_at_zero_the_slope_is_that_of_the_side_that_the_sign_bit_names():
    a = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[-5.0]], dtype=torch.float64)
    zeros = torch.tensor([[0.0], [-0.0]], dtype=torch.float64)
    dx, da, db = rational_gradients(torch.ones_like(zeros), zeros, a, b)
    assert dx.tolist() == [[3.0 - 2.0 * 5.0], [3.0 + 2.0 * 5.0]]  # P' - sign(x) P |b_1|
    assert da.tolist() == [[2.0, 0.0]] and db.tolist() == [[0.0]]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_coefficient_of_zero_has_sign_plus_one_whatever_its_bit(zero):
    x, a, _ = smooth_point((5, 4), (1, 1))
    b = torch.full((1, 4), zero, dtype=torch.float64)
    dy = torch.ones_like(x)
    expected = [-(dy * x.abs() ** j * rational_reference(x, a, b)).sum() for j in range(1, 5)]
    for gradients in (rational_gradients(dy, x, a, b), gradients_by_autograd(dy, x, a, b)):
        torch.testing.assert_close(gradients[2][0], torch.stack(expected))


def test_a_unit_of_rounding_worked_by_hand():
    x = torch.tensor([[1.0], [2.0]])
    a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0]])  # F = (1 + x) / (1 + |x|)
    dy = torch.tensor([[2.0], [3.0]])
    # Terms: a_0: 2/2, 3/3; a_1: 1, 2; b_1: -1·2·2/4, -2·3·3/9.
    da, db, unit_a, unit_b = rounding_units(dy, x, a, b)
    assert {t.dtype for t in (da, db, unit_a, unit_b)} == {torch.float64}
    exact = dict(rtol=1e-15, atol=0)
    torch.testing.assert_close(da, torch.tensor([[2.0, 3.0]], dtype=torch.float64), **exact)
    torch.testing.assert_close(db, torch.tensor([[-3.0]], dtype=torch.float64), **exact)
    torch.testing.assert_close(unit_a, torch.tensor([[2.0, 5.0]], dtype=torch.float64).sqrt() * 2.0**-24, **exact)
    torch.testing.assert_close(unit_b, torch.tensor([[5.0]], dtype=torch.float64).sqrt() * 2.0**-24, **exact)


def test_a_unit_is_the_error_of_rounding_every_term_once():
    x, a, b = smooth_point((5, 4), (1, 1))
    x, dy = x.repeat(2000, 1) * normal(8000, 6, seed=9), normal(8000, 6, seed=10)
    *exact, unit_a, unit_b = rounding_units(dy, x, a, b)
    rounded = [term.float().double().sum() for term in gradient_terms(dy, x, a, b)]
    errors = (torch.stack(rounded) - torch.cat(exact, 1)[0]).abs() / torch.cat([unit_a, unit_b], 1)[0]
    # The error of one rounding is at most 2^-24 of a term and uniform below that: a third of a unit, typically.
    assert 0.05 < errors.mean() < 1 and errors.max() < 2


def test_the_forms_agree_where_nothing_is_negative_and_differ_elsewhere():
    x, a, b = (t.abs() for t in smooth_point((5, 4), (3, 3)))
    torch.testing.assert_close(
        rational_reference(x, a, b, form="magnitude_of_sum"), rational_reference(x, a, b), rtol=1e-14, atol=0
    )
    # x = -1, b = (1, 2): Q is 1 + |1| + |2| = 4, or 1 + |-1 + 2| = 2.
    point = [torch.tensor([t], dtype=torch.float64) for t in ([-1.0], [1.0, 0.0], [1.0, 2.0])]
    assert rational_reference(*point).item() == 1 / 4
    assert rational_reference(*point, form="magnitude_of_sum").item() == 1 / 2


@pytest.mark.parametrize("tables", TABLES)
def test_neighbouring_columns_share_coefficients(tables):
    x, a, b = smooth_point((5, 4), tables)
    groups = max(tables)
    got = rational_reference(x, a, b)
    for column in range(6):
        group = column // (6 // groups)
        ca, cb = a[group if len(a) > 1 else 0], b[group if len(b) > 1 else 0]
        z = x[:, column]
        p = sum(c * z**i for i, c in enumerate(ca))
        q = 1 + sum(c.abs() * z.abs() ** j for j, c in enumerate(cb, 1))
        torch.testing.assert_close(got[:, column], p / q, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_there_are_no_poles(form):
    x = torch.linspace(-100, 100, 20001, dtype=torch.float64)[:, None].expand(-1, 50)
    a, b = torch.ones(1, 2, dtype=torch.float64), 3 * normal(50, 4, seed=11)
    y = rational_reference(x, a, b, form=form)
    assert (y.abs() <= (1 + x).abs()).all()  # |F| = |P| / Q with Q >= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_computed_in_float32(dtype):
    x, a, b = smooth_point((5, 4), (3, 3))
    x, dy = x.to(dtype), normal(4, 6, seed=12).to(dtype)
    a, b = a.float(), b.float()
    y = rational_reference(x, a, b)
    assert y.dtype == dtype
    assert torch.equal(y, rational_reference(x.float(), a, b).to(dtype))
    narrow, wide = rational_gradients(dy, x, a, b), rational_gradients(dy.float(), x.float(), a, b)
    assert [t.dtype for t in narrow] == [dtype, torch.float32, torch.float32]
    assert all(torch.equal(n, w.to(n.dtype)) for n, w in zip(narrow, wide))


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6)])
def test_leading_dimensions_are_rows(shape):
    _, a, b = smooth_point((3, 2), (3, 3))
    x, dy = normal(*shape, seed=13), normal(*shape, seed=14)
    y, rows = rational_reference(x, a, b), rational_reference(x.reshape(-1, 6), a, b)
    assert y.shape == shape and torch.equal(y.reshape(-1, 6), rows)
    flat = rational_gradients(dy.reshape(-1, 6), x.reshape(-1, 6), a, b)
    for got, want in zip(rational_gradients(dy, x, a, b), flat):
        assert torch.equal(got.reshape(want.shape), want)


POINTS = (0.0, 1e-30, 0.5, -3.0, 30.0, 1e3, -1e5, 1e9, 1e20, -1e30, math.inf, -math.inf)  # infinity: the largest number


@pytest.mark.parametrize("tables", ["normal", "b_1 alone", "tiny at the end", "huge"])
@pytest.mark.parametrize("degrees", [(5, 4), (8, 8), (1, 8), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_closed_forms_are_right_wherever_their_results_are_numbers_of_the_dtype(dtype, degrees, tables):
    """P, Q, Q² and every power on the way may be none: each point is held to exact arithmetic, by itself."""
    facts = torch.finfo(dtype)
    numbers = Fraction(facts.eps), Fraction(facts.tiny) * Fraction(facts.eps) * 8, Fraction(facts.max)
    a, b = (normal(1, k, seed=k + 15).to(dtype) for k in (degrees[0] + 1, degrees[1]))
    if tables == "b_1 alone":
        b[:, 1:] = 0.0
    elif tables == "tiny at the end":
        a[:, -1], b[:, -1] = a[:, -1] * 1e-30, b[:, -1] * 1e-30
    elif tables == "huge":
        a, b = 1e20 * a, 1e20 * b
    for point in POINTS:
        for scale in (1.0, 1e-30, 1e30):
            x = torch.full((1, 1), min(max(point, -facts.max), facts.max), dtype=dtype)
            dy = torch.full_like(x, scale)
            found = [rational_closed_form(x, a, b), *rational_gradients(dy, x, a, b)]
            want = exact(dy.item(), x.item(), a[0].tolist(), b[0].tolist())
            found = [value for tensor in found for value in tensor.flatten().tolist()]
            worst = max(errors(found, [want.y, want.dx, *want.da, *want.db], *numbers), default=0.0)
            assert worst < 20, f"x = {x.item():g}, dy = {scale:g}"


@pytest.mark.parametrize("degrees", [(5, 4), (8, 8), (2, 3)])
def test_second_derivatives_are_right_beyond_the_polynomials_range(degrees):
    facts = torch.finfo(torch.float32)
    numbers = Fraction(facts.eps), Fraction(facts.tiny) * 8, Fraction(facts.max)
    a, b = (normal(1, k, seed=k + 15).float() for k in (degrees[0] + 1, degrees[1]))
    for point in (0.5, -3.0, 1e3, -1e6, 1e9, 1e12):
        x = torch.tensor([[point]], requires_grad=True)
        (dx,) = torch.autograd.grad(rational(x, a, b), x, torch.ones_like(x), create_graph=True)
        (dxx,) = torch.autograd.grad(dx, x, torch.ones_like(x))
        want = exact(1.0, x.item(), a[0].tolist(), b[0].tolist())
        assert max(errors([dx.item(), dxx.item()], [want.dx, want.dxx], *numbers)) < 40, f"x = {point:g}"


def test_what_is_not_finite_stays_so_without_spoiling_its_neighbours():
    _, a, b = (t.float() for t in smooth_point((5, 4), (1, 1)))
    x = torch.tensor([[1.0, math.inf, -math.inf, math.nan, 1e30]])
    y, dx = rational_closed_form(x, a, b), rational_gradients(torch.ones_like(x), x, a, b)[0]
    assert y.isfinite().tolist() == dx.isfinite().tolist() == [[True, False, False, False, True]]


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match=r"sum_of_magnitudes.*'padé'"):
        rational_reference(*smooth_point((5, 4), (1, 1)), form="padé")
