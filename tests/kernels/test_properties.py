"""Properties of `rational` and its gradients, over shapes, strides, dtypes, degrees, tables and values.

Against float64, with the bounds of test_kernels.py. Sums are held to the worst case, 2^-24 · Σ|term| for each rounding:
few of them are of terms that are many and independent. Powers of x up to the sixth stay inside float32, and in float16
inside float16; where they would not, no order of operations promises more than another.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_kernels import DEVICE, adds_at_an_address

from flashkat_lite import rational
from flashkat_lite.kernels import INTERPRETED, backward_atomic, backward_block, backward_stationary, forward
from flashkat_lite.ops import BACKWARDS
from flashkat_lite.reference import rational_gradients, rational_reference
from flashkat_lite.testing import ROUND, TINY, check_dx, check_forward, poisoned, store_rounding

# The same examples each day: a failure belongs to the change that brought it. To make a failing one smaller takes the
# interpreter minutes, and is left to a GPU.
FEW = settings(
    max_examples=14,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True, scope="module")
def small_programs():
    """In the interpreter: programs so small that a few rows take several, several passes, and two rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(forward, "launch_size", lambda: (128, 2))
            patch.setattr(backward_stationary, "launch_size", lambda *facts: (128, 2, 2, 1))
            patch.setattr(backward_block, "ELEMENTS", 512)
            patch.setattr(backward_atomic, "INTERPRETED", False)
        yield


def offset(t):
    return torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape)


def permuted(t):
    order = [*reversed(range(t.dim() - 1)), t.dim() - 1]
    return t.permute(order).contiguous().permute(order)


# Each gives a tensor of the same shape.
LAYOUTS = {
    "contiguous": lambda t: t,
    "offset": offset,
    "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "all columns but the first": lambda t: torch.cat([t[..., :1], t], -1)[..., 1:],
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2] if t.dim() > 1 else t,
    "transposed": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "permuted": permuted,
    "one row, expanded": lambda t: t[:1].expand(t.shape) if t.dim() > 1 else t,
}


class Case(NamedTuple):
    leading: list[int]
    groups: int
    width: int
    degrees: tuple[int, int]
    shared: str
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]  # x, numerator, denominator
    seed: int
    large: bool
    special: list[float]
    zeros: bool
    layouts: tuple[str, str]  # dy, x

    def tensors(self):
        """dy, x, numerator, denominator."""
        g = torch.Generator().manual_seed(self.seed)
        dtype, of_a, of_b = self.dtypes
        narrow = torch.float16 in self.dtypes
        dy, x = (torch.randn(*self.leading, self.groups * self.width, generator=g).clamp(-3, 3) for _ in range(2))
        if self.large and not narrow:
            x = 1e3 * x
        for value in self.special:
            x.view(-1)[int(torch.randint(x.numel(), (), generator=g))] = value
        if INTERPRETED and dtype == torch.bfloat16:  # whose conversion to float32 there loses what is below normal
            x[x.abs() < TINY[dtype]] = 0.0
        a = 0.5 * torch.randn(1 if self.shared == "numerator" else self.groups, self.degrees[0] + 1, generator=g)
        b = 0.5 * torch.randn(1 if self.shared == "denominator" else self.groups, self.degrees[1], generator=g)
        if self.zeros:
            a[:, -1], b[0, 0] = 0.0, 0.0
        dy, x = (t.to(dtype).to(DEVICE) for t in (dy, x))
        dy, x = (LAYOUTS[name](t) for name, t in zip(self.layouts, (dy, x)))
        return dy, x, a.to(of_a).to(DEVICE), b.to(of_b).to(DEVICE)


layouts = st.sampled_from(list(LAYOUTS))
of_tables = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
cases = st.builds(
    Case,
    leading=st.lists(st.integers(1, 4), max_size=3),
    groups=st.sampled_from([1, 2, 3, 8]),
    width=st.sampled_from([1, 2, 3, 5, 8, 20]),
    degrees=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shared=st.sampled_from(["neither", "numerator", "denominator"]),
    dtypes=st.tuples(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), of_tables, of_tables),
    seed=st.integers(0, 2**32 - 1),
    large=st.booleans(),
    special=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e-7]), max_size=4),
    zeros=st.booleans(),
    layouts=st.tuples(layouts, layouts),
)


def both_passes(dy, x, a, b, backward):
    leaves = [t.detach().requires_grad_() for t in (x, a, b)]
    with poisoned():
        y = rational(*leaves, backward=backward)
        y.backward(dy)
    return y.detach(), *(leaf.grad for leaf in leaves)


def assert_sums(backward, gradients, dy, x, a, b):
    groups = max(len(a), len(b))
    rows, width = math.prod(x.shape[:-1]), x.shape[-1] // groups
    additions = adds_at_an_address(backward, rows, width, groups, (a, b)) + (
        width + groups if backward == "stationary" else 0  # its tree over positions, and over groups that share a table
    )
    tensors = [t.double() for t in (dy, x, a.float(), b.float())]
    exact, sizes = rational_gradients(*tensors)[1:], rational_gradients(*(t.abs() for t in tensors))[1:]
    # Where Q is beyond 2^63, dy P/Q² is below float32's normal numbers, and |x|^j multiplies what it lost.
    powers = torch.stack([(x.double().abs() ** j).sum() for j in range(b.shape[1] + 1)])
    for got, want, size, table, power in zip(gradients, exact, sizes, (a, b), (powers[0], powers[1:])):
        narrow = table.dtype != torch.float64  # else: what is summed in float32 is stored as it is
        stored = store_rounding(table.dtype) * want.abs() + TINY[table.dtype] if narrow else 0.0
        bound = (8 + additions) * ROUND * size.abs() + stored + TINY[torch.float32] * power
        error = (got.double() - want).abs()
        assert got.dtype == table.dtype and got.shape == table.shape
        assert (error <= bound).all(), f"{backward}: error / bound {(error / bound).max():.2f}"


def holds(case, backward):
    dy, x, a, b = case.tensors()
    y, dx, *sums = both_passes(dy, x, a, b, backward)
    assert y.is_contiguous()
    check_forward(y, x, a.float(), b.float())
    check_dx(dx, dy, x, a.float(), b.float())
    assert_sums(backward, sums, dy, x, a, b)


def spreads(case, backward, value, place, of_gradient):
    """Infinities and NaN are where the reference has them, and nowhere else."""
    dy, x, a, b = (t.clone(memory_format=torch.contiguous_format) for t in case.tensors())
    spoilt = dy if of_gradient else x
    spoilt.view(-1)[place % x.numel()] = float("nan") if of_gradient else value
    a, b = a.float() + 0.25 * (a == 0), b.float() + 0.25 * (b == 0)  # 0 · inf depends on the order of operations
    want = rational_reference(x, a, b), *rational_gradients(dy, x, a, b)
    for got, expected in zip(both_passes(dy, x, a, b, backward), want):
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.isinf(), expected.isinf())


every_rung = pytest.mark.parametrize("backward", BACKWARDS)
spoilt = {"value": st.sampled_from([math.inf, -math.inf, math.nan]), "place": st.integers(0, 10**6)}


@every_rung
@FEW
@given(case=cases)
def test_both_passes_are_the_reference(case, backward):
    holds(case, backward)


@every_rung
@FEW
@given(case=cases, of_gradient=st.booleans(), **spoilt)
def test_what_is_not_finite_spreads_as_in_the_reference(case, backward, value, place, of_gradient):
    spreads(case, backward, value, place, of_gradient)


@pytest.mark.full
@every_rung
@MANY
@given(case=cases)
def test_both_passes_are_the_reference_in_many_cases(case, backward):
    holds(case, backward)


@pytest.mark.full
@every_rung
@MANY
@given(case=cases, of_gradient=st.booleans(), **spoilt)
def test_what_is_not_finite_spreads_as_in_the_reference_in_many_cases(case, backward, value, place, of_gradient):
    spreads(case, backward, value, place, of_gradient)


@every_rung
def test_the_slope_at_minus_zero_is_the_one_from_the_left(backward):
    """P' - sign(x) P Q' at 0 is 0.3 - 0.7 · 0.6 from the right, 0.3 + 0.7 · 0.6 from the left."""
    x = torch.tensor([[0.0, -0.0]], device=DEVICE)
    a, b = torch.tensor([[0.7, 0.3]], device=DEVICE), torch.tensor([[0.6]], device=DEVICE)
    dx = both_passes(torch.ones_like(x), x, a, b, backward)[1]
    torch.testing.assert_close(dx, torch.tensor([[-0.12, 0.72]], device=DEVICE))


@every_rung
@pytest.mark.parametrize("seed", [0, 19])
def test_a_denominator_beyond_two_to_the_63_costs_no_more_than_what_float32_cannot_hold(backward, seed):
    """|x| is near 2000 and P a constant, so dy P/Q² has no normal float32."""
    dtypes, layouts = (torch.float32,) * 3, ("contiguous",) * 2
    holds(Case([], 2, 1, (1, 6), "neither", dtypes, seed, True, [], True, layouts), backward)
