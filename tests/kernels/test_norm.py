"""The norm and its rational function in one pass, against float64: shapes, dtypes, layouts, sums.

Bounds come from the arithmetic, as in test_kernels.py: a stored result rounds once, each float32 term a few times; the
terms of a row's results are as large as the largest of the row. Sums are judged in units of 2^-24 · sqrt(Σ term²).
"""

import itertools
from typing import NamedTuple

import pytest
import torch
from test_kernels import DEVICE, LAYOUTS, label

from flashkat_lite.kernels import INTERPRETED, norm_backward, norm_forward
from flashkat_lite.kernels.layout import row_layout
from flashkat_lite.reference import (
    dx_terms,
    gradient_terms,
    grouped,
    norm_rational_closed_form,
    norm_rational_gradients,
)
from flashkat_lite.testing import ROUND, TINY, poisoned, store_rounding

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True, scope="module")
def small_programs():
    """In the interpreter: programs as on a GPU, three of them, which go over their rows and flush several times."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            for module in (norm_forward, norm_backward):
                patch.setattr(module, "INTERPRETED", False)
                patch.setattr(module, "multiprocessors", lambda device: 1)
                patch.setattr(module, "launch_config", module.launch_config.__wrapped__)
            patch.setattr(norm_backward, "PASSES_PER_FLUSH", 2)
        yield


class Case(NamedTuple):
    rows: int
    columns: int
    groups: int  # 0: the norm alone
    degrees: tuple[int, int] = (5, 4)
    shared: str = "neither"
    x: torch.dtype = F32
    z: torch.dtype = F32
    branch: torch.dtype | None = None
    norm: str = "layer"
    bias: bool = True

    def tensors(self, seed=0):
        """dz, dsum, x, branch, and weight, bias, numerator, denominator."""
        g = torch.Generator().manual_seed(seed)

        def normal(*shape, dtype=F32):
            return torch.randn(*shape, generator=g).to(dtype).to(DEVICE)

        shape = self.rows, self.columns
        branch = None if self.branch is None else normal(*shape, dtype=self.branch)
        wide = self.x if branch is None else torch.promote_types(self.x, self.branch)
        tables = [None, None]
        if self.groups:
            rows = (1 if self.shared in (name, "both") else self.groups for name in ("numerator", "denominator"))
            tables = [0.5 * normal(n, k) for n, k in zip(rows, (self.degrees[0] + 1, self.degrees[1]))]
        dsum = None if branch is None else normal(*shape, dtype=wide)
        bias = normal(self.columns) if self.bias else None
        x = (2 * normal(*shape) + 0.5).to(self.x)
        return [normal(*shape, dtype=self.z), dsum, x, branch, 1 + 0.3 * normal(self.columns), bias, *tables]


CASES = [
    Case(17, 192, 8, z=BF16),
    Case(9, 384, 8, x=BF16, z=BF16, branch=BF16),
    Case(5, 768, 8, z=BF16, branch=BF16),
    Case(3, 768, 8, z=F16, norm="rms", bias=False),
    Case(23, 56, 8, (3, 2), "numerator", x=F16, z=F16, branch=F32),  # seven columns a group: no vector
    Case(11, 60, 12, (6, 5), "denominator", norm="rms"),  # groups and their vectors are no powers of two
    Case(13, 15, 15, (2, 1), branch=F32, bias=False),
    Case(3, 8192, 8, z=BF16),
    Case(150, 8, 2, (5, 4), "both", branch=BF16),
    Case(1, 1, 1),
    Case(40, 96, 0, z=BF16, branch=BF16),
    Case(7, 100, 0, norm="rms", bias=False),
]


def wide(tensors):
    return [None if t is None else t.double() for t in tensors]


def dy_terms(dz, y, a, b):
    """The sum of the magnitudes of all that dy = dz F'(y) is made of, which may cancel."""
    if a is None:
        return dz.abs()
    z, *coefficients = grouped(y.abs(), a.abs(), b)
    of_p, of_q = dx_terms(dz.abs().reshape(z.shape), z, *coefficients)
    return (of_p.abs() + of_q.abs()).reshape(y.shape)


def row_bound(stored, exact, terms):
    terms = terms.abs().amax(-1, keepdim=True)
    return store_rounding(stored) * exact.abs() + 32 * ROUND * terms + TINY[stored]


def check(case, seed=0, lay=lambda t: t, repeated=1):
    """Hold every result to its bound, and return the errors of the sums, each [a sum's entries], in units."""
    dz, dsum, x, branch, *parameters = case.tensors(seed)
    dz, dsum, x, branch = (t if t is None else lay(t) for t in (dz, dsum, x, branch))
    centred = case.norm == "layer"
    # dF/dy jumps at y = 0: where y's sign is a matter of rounding, no gradient arrives.
    sums = x if branch is None else x + branch
    y = norm_rational_closed_form(sums.double(), None, *wide(parameters[:2]), None, None, rms=not centred)[0]
    dz = torch.where(y.abs() < 2.0**-18, 0, dz)
    with poisoned():
        z, total, mean, rstd = norm_forward.norm_forward(x, branch, *parameters, centred=centred, dtype=case.z)
        source = x if branch is None else total
        also = None if branch is None or branch.dtype == source.dtype else branch.dtype
        found = norm_backward.norm_backward(dz, dsum, source, mean, rstd, *parameters, branch_dtype=also)
    if branch is not None:
        assert torch.equal(total, x + branch) or (INTERPRETED and total.dtype == BF16)  # which cuts what it stores
    exact = norm_rational_closed_form(source.double(), None, *wide(parameters), rms=not centred)
    y = norm_rational_closed_form(source.double(), None, *wide(parameters[:2]), None, None, rms=not centred)[0]
    assert z.dtype == case.z and z.is_contiguous() and z.shape == x.shape
    error = (z.double() - exact[0]).abs()
    terms = torch.cat([exact[0], y, source.double().abs() * exact[3].reshape(*y.shape[:-1], 1)], -1)
    slopes = 1.0 if parameters[2] is None else 1 + parameters[2].abs().sum(1).max()
    bound = row_bound(z.dtype, exact[0], slopes * (1 + terms.abs()))
    assert (error <= bound).all(), f"z: {(error / bound).max():.2f} of the bound"
    for got, want in zip((mean, rstd), exact[2:]):
        torch.testing.assert_close(got.double(), want, rtol=8 * ROUND, atol=8 * ROUND * 4)

    want = norm_rational_gradients(*wide((dz, dsum, source, *parameters)), rms=not centred)
    dx, dbranch, *sums = found
    for got, dtype in ((dx, source.dtype), *([(dbranch, also)] if also else [])):
        assert got.dtype == dtype and got.shape == x.shape and got.is_contiguous()
        weight, _, *tables = wide(parameters)
        terms = dy_terms(dz.double(), y, *tables) * weight.abs() * exact[3].reshape(*y.shape[:-1], 1)
        terms = torch.cat([want[0], terms], -1)
        error, bound = (got.double() - want[0]).abs(), row_bound(dtype, want[0], terms)
        assert (error <= bound).all(), f"dx: {(error / bound).max():.2f} of the bound"
    units = [*errors_of_sums(sums, want[1:], dz, y, source, parameters, centred, ROUND * repeated**0.5)]
    assert max(error.max() for error in units) <= 16, units
    return units


def errors_of_sums(sums, want, dz, y, source, parameters, centred, one):
    """Yield the error of each entry of the tables' gradients, then of the vectors', in units of 2^-24 sqrt(Σ term²)."""
    weight, bias, a, b = wide(parameters)
    ones, dz, source = torch.ones_like(weight), dz.double(), source.double()
    normed = norm_rational_closed_form(source, None, ones, None, None, None, rms=not centred)[0]
    if a is not None:
        squares = [term.square().sum((0, 2)) for term in gradient_terms(dz, y, a, b)]
        for got, of_table, table, own in zip(
            sums[2:], want[2:], (a, b), (squares[: a.shape[1]], squares[a.shape[1] :])
        ):
            unit = torch.stack(own, 1)
            yield in_units(got, of_table, one * (unit if len(table) == len(unit) else unit.sum(0, keepdim=True)).sqrt())
    size = torch.maximum(dy_terms(dz, y, a, b), dz.abs())
    if len(normed) < 400:  # too few terms to average, and near x's mean one rounds relative to x
        normed = normed.abs().clamp(min=1)
    for factor, got, of_vector, vector in zip((normed, torch.ones_like(normed)), sums, want, (weight, bias)):
        if vector is not None:
            terms = (size * factor).reshape(-1, len(weight))
            yield in_units(got, of_vector, one * terms.square().sum(0).sqrt())


def in_units(got, want, unit):
    assert got.shape == want.shape
    error = (got.double() - want).abs().flatten()
    return torch.where(error == 0, error, error / unit.flatten())


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(label, case)))
def test_against_float64(case):
    for error in check(case):
        assert error.numel() < 16 or error.mean() <= 4


@pytest.mark.parametrize("layout", ["1-D", "4-D", "sliced columns", "expanded batch"])
def test_shapes_and_strides(layout):
    check(Case(36, 12, 4, (3, 2), branch=F32), lay=LAYOUTS[layout], repeated=5 if "expanded" in layout else 1)


@pytest.mark.standin
def test_gradient_and_input_of_different_strides():
    case = Case(36, 12, 4, (3, 2), branch=F32)
    tensors = case.tensors()
    wanted = norm_backward_of(*tensors)
    laid = [LAYOUTS[name](t) for name, t in zip(("transposed", "sliced columns", "rows of an odd stride"), tensors)]
    # The columns of one and the rows of another are no longer the same tensors': compare with what lies contiguous.
    for got, want in zip(norm_backward_of(*laid, *tensors[3:]), norm_backward_of(*map(contiguous, laid), *tensors[3:])):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(p, q) for p, q in zip(wanted, norm_backward_of(*laid, *tensors[3:])))


def contiguous(t):
    return t.contiguous()


def norm_backward_of(dz, dsum, x, branch, *parameters, size=None):
    _, _, mean, rstd = norm_forward.norm_forward(x, None, *parameters)
    return norm_backward.norm_backward(dz, dsum, x, mean, rstd, *parameters, size=size)


def test_the_same_bits_every_time():
    dz, dsum, x, branch, *parameters = Case(40, 24, 8, z=BF16, branch=BF16).tensors()
    first = norm_backward_of(dz, dsum, x, branch, *parameters)
    assert all(map(torch.equal, first, norm_backward_of(dz, dsum, x, branch, *parameters)))


@pytest.mark.parametrize("size", [(4, 6, 1, 3, 1), (1, 2, 4, 1, 2)])
def test_any_launch_computes_the_same(size):
    dz, dsum, x, branch, *parameters = Case(21, 96, 4, branch=F32).tensors()
    want = [*norm_forward.norm_forward(x, branch, *parameters), *norm_backward_of(dz, dsum, x, branch, *parameters)]
    got = [
        *norm_forward.norm_forward(x, branch, *parameters, size=size),
        *norm_backward_of(dz, dsum, x, branch, *parameters, size=size),
    ]
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-5)


def test_what_is_not_finite_stays_in_its_row():
    dz, _, x, _, *parameters = Case(9, 24, 4).tensors()
    x[3, 5] = torch.nan
    z, _, mean, rstd = norm_forward.norm_forward(x, None, *parameters)
    dx = norm_backward.norm_backward(dz, None, x, mean, rstd, *parameters)[0]
    for result in (z, dx):
        assert result[3].isnan().all() and result[:3].isfinite().all() and result[4:].isfinite().all()


@pytest.mark.parametrize("columns,groups", list(itertools.product((192, 384, 768, 1024, 3072, 8192), (1, 8))))
def test_no_position_of_a_models_width_is_idle(columns, groups):
    for vector in (4, 8):
        layout = row_layout(columns, groups, vector)
        assert not layout.masked and layout.lanes & (layout.lanes - 1) == 0


@pytest.mark.parametrize("columns,groups,vector", [(60, 12, 1), (56, 8, 1), (8192, 1, 4), (105, 15, 1), (96, 2, 8)])
def test_every_column_has_one_position(columns, groups, vector):
    layout = row_layout(columns, groups, vector)
    owned = [
        position // layout.segment_lanes * layout.segment_vectors
        + k * layout.segment_lanes
        + position % layout.segment_lanes
        for position in range(layout.lanes)
        for k in range(layout.chunks)
        if position // layout.segment_lanes < layout.segments
        and k * layout.segment_lanes + position % layout.segment_lanes < layout.segment_vectors
    ]
    assert sorted(owned) == list(range(columns // vector))


@pytest.mark.gpu
@pytest.mark.full
@pytest.mark.parametrize("columns", [192, 384, 768])
def test_sums_at_full_size(columns):
    """256 x 197 rows, five seeds: each of the four sums at most 4 units in the mean, and no entry above 16."""
    seeds = [check(Case(256 * 197, columns, 8, z=BF16), seed) for seed in range(5)]
    means = [torch.cat(errors).mean().item() for errors in zip(*seeds)]
    print(columns, "da, db, dweight, dbias:", [f"{mean:.2f}" for mean in means])
    assert len(means) == 4 and max(means) <= 4
