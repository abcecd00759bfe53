"""Chapter 03: counts of the sums, and gradients in float64, at the kinks too."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashkat_lite.reference import dx_terms, grouped, rational_gradients, rational_reference

from .common import Parts, Wrong, exercise, expect_tuple, numbers, same_tensor
from .gradients import NEIGHBOURS, interleaved, same_coefficient_gradients
from .rules import without_autograd


@exercise("03-1")
@numbers(
    "sums, terms and milliseconds, at three sizes",
    (1024, 197, 768, 8, 5, 4, 4, 4200.0),
    (2, 197, 192, 4, 3, 2, 2, 300.0),
    (7, 5, 24, 1, 6, 5, 4, 50.0),
)
def sums_at_the_limit(
    batch: int, tokens: int, columns: int, groups: int, m: int, n: int, itemsize: int, bandwidth: float
) -> Parts:
    """Check the sums of a backward pass, the terms in each, and milliseconds at the limit of `bandwidth`, in GB/s."""
    size = f"{batch} × {tokens} × {columns}, {groups} groups, ({m}, {n}), {itemsize} bytes, {bandwidth:g} GB/s"
    elements = batch * tokens * columns
    yield f"sums for {size}", groups * (m + 1 + n), {
        "a polynomial of degree m has m+1 coefficients": groups * (m + n),
        "each group has coefficients of its own": m + 1 + n,
    }  # fmt: skip
    yield f"terms in each sum for {size}", elements // groups, {
        "a group has D/G columns, not all D": elements,
        "a sum runs over the columns of its group, not over the rows alone": batch * tokens,
        "a sum runs over every row of the batch": tokens * columns // groups,
    }  # fmt: skip
    least = 3 * itemsize * elements / bandwidth / 1e6
    yield f"milliseconds for {size}", least, {
        "dx is written too: three tensors": least * 2 / 3,
        "itemsize: these elements are not of four bytes": least * 4 / itemsize,
        "elements were counted, not bytes": least / itemsize,
        "seconds, not milliseconds": least / 1e3,
        "1 GB/s is 1e9 bytes a second, so 1e6 a millisecond": least * 1e3,
    }  # fmt: skip


@exercise("03-2")
def denominator_derivatives(f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """Check dF/db_j [K, n] at x [K], for one set of coefficients."""
    g = torch.Generator().manual_seed(31)
    for m, n in [(5, 4), (2, 1), (3, 6)]:
        x, a, b = (torch.randn(k, generator=g, dtype=torch.float64) for k in (50, m + 1, n))
        b[-1] = 0.0  # the start of an identity
        b[0] = -b[0].abs() if n > 1 else b[0]
        t, j = x[:, None], torch.arange(1, n + 1)  # [50, 1], [n]
        p = (t ** torch.arange(m + 1)) @ a[:, None]
        q = 1 + (t.abs() ** j) @ b.abs()[:, None]
        sign = torch.where(b < 0, -1.0, 1.0)
        expected = -sign * t.abs() ** j * p / q**2
        with without_autograd():
            got = f(x, a, b)
        same_tensor(f"dF/db, degrees ({m}, {n})", got, expected, 1e-10 * (1 + expected.abs()), {
            "sign(0): at b_j = 0 the convention is +1, where torch.sign has 0": expected * (b != 0),
            "sign(0) is +1, so b < 0 turns the sign, and b = 0 does not": expected * torch.where(b == 0, -1.0, 1.0),
            "the minus sign of dF/dQ = -P/Q² is lost": -expected,
            "the sign of b_j is lost: Q holds |b_j|": expected * sign,
            "both the minus sign and the sign of b_j are lost": -expected * sign,
            "Q holds |x|^j, not x^j": -sign * t**j * p / q**2,
            "dF/dQ is -P/Q², with Q squared": expected * q,
            "P is missing: dF/dQ = -P/Q²": expected / p,
            "powers start at |x|^1: the first coefficient is b_1": expected / t.abs(),
        }, arrays=True)  # fmt: skip
    return "dF/db at 50 points, three pairs of degrees, zeros among the coefficients"


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; a view moves none."""

    moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            for t in tree_leaves((args, kwargs, result)):
                self.moved += t.untyped_storage().nbytes() if torch.is_tensor(t) else 0
        return result


def _backward_case(seed: int, shape: tuple[int, ...], groups: int, m: int, n: int) -> list[Tensor]:
    """Return dy, x, numerator, denominator in float64, with zeros in x and in the denominator."""
    g = torch.Generator().manual_seed(seed)
    dy, x = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    a, b = (torch.randn(groups, k, generator=g, dtype=torch.float64) for k in (m + 1, n))
    x[..., ::5] = 0.0
    b[0, -1] = 0.0
    return [dy, x, a, b]


@exercise("03-3")
def rational_backward(f: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> str:
    """Check (dx, dnumerator, ddenominator) in plain PyTorch, moving at most 130 tensors of x's size."""
    for seed, (shape, groups, m, n) in enumerate([((3, 7, 56), 8, 5, 4), ((2, 5, 24), 3, 2, 1), ((1, 1, 12), 1, 1, 3)]):
        dy, x, a, b = _backward_case(seed, shape, groups, m, n)
        with without_autograd():
            answer = f(dy.clone(), x.clone(), a.clone(), b.clone())
        answer = expect_tuple(answer, "dx", "dnumerator", "ddenominator")
        dx, _, _ = rational_gradients(dy, x, a, b)
        size = f" for shape {list(shape)}, {groups} groups, degrees ({m}, {n})"
        same_tensor(f"dx{size}", answer[0], dx, 1e-10 * (1 + dx.abs()), _dx_causes(dy, x, a, b))
        same_coefficient_gradients(answer[1:], dy, x, a, b, size)
    tensors = _backward_case(9, (4, 64, 768), 8, 5, 4)
    with _Traffic() as traffic:
        f(*tensors)
    moved = traffic.moved / (8 * tensors[1].numel())
    print(f"Tensors of x's size read and written: {moved:.0f}.")
    if moved > 130:
        cause = "powers of x made anew for each coefficient, or P and Q computed more than once"
        if moved < 160:
            cause = "a product and a sum in two passes, where torch.addcmul makes one"
        raise Wrong(
            f"correct, but {moved:.0f} tensors of x's size were read and written; at most 130 count as good. "
            f"Likely cause: {cause}"
        )
    return "three gradients, three shapes, zeros in x and b, and few bytes"


def _dx_causes(dy: Tensor, x: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    z, *tables = grouped(x, a, b)
    first, second = (t.reshape(x.shape) for t in dx_terms(dy.reshape(z.shape), z, *tables))
    return {
        "sign(0): at x = 0 the convention is +1, where torch.sign and torch.abs have 0": first + second * (x != 0),
        "sign(0) is +1, so x < 0 turns the sign, and x = 0 does not": first + second * torch.where(x == 0, -1.0, 1.0),
        "Q depends on x too: the quotient rule has a second term": first,
        "for x < 0 the second term changes its sign": first + second * torch.where(x < 0, -1.0, 1.0),
        NEIGHBOURS: interleaved(dy, x, a, b)[0],
    }


@exercise("03-4")
def right_gradient(f: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> str:
    """Check slopes to the right of a scalar function of a vector, to 1e-9, at smooth points and at kinks."""
    g = torch.Generator().manual_seed(34)
    a = 0.5 * torch.randn(1, 6, generator=g, dtype=torch.float64)
    b = 0.5 * torch.randn(1, 4, generator=g, dtype=torch.float64)
    smooth = torch.tensor([0.8, -1.2, 0.5], dtype=torch.float64)
    a[0, 0], b[0, 0] = 0.7, 0.6  # a kink at x = 0: a_0 b_1 is not zero

    def of_x(v: Tensor) -> Tensor:
        return rational_reference(v[None], a, b).sum()

    def of_b(v: Tensor) -> Tensor:
        return rational_reference(smooth[:, None], a, v[None]).sum()

    cases = {
        "x, away from the kinks": (of_x, smooth),
        "x, with zeros": (of_x, torch.tensor([0.0, 0.6, 0.0], dtype=torch.float64)),
        "b = 0": (of_b, torch.zeros(4, dtype=torch.float64)),
        "b with zeros and a negative": (of_b, torch.tensor([0.0, -0.4, 0.0, 0.3], dtype=torch.float64)),
    }
    for name, (function, v) in cases.items():
        leaf = v.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf), leaf)
        with without_autograd("a difference of values"):
            answer = f(function, v.clone())
        rows = 1e-5 * torch.eye(len(v), dtype=v.dtype)
        after, before = (
            torch.stack([s * (function(v + s * row) - function(v)) / 1e-5 for row in rows]) for s in (1, -1)
        )
        same_tensor(f"slopes to the {name}", answer, expected, 1e-9, {
            "these are slopes to the left": (before, 0.999 * (before - expected).abs()),
            "a quotient of two values errs to first order in h, at best by 1e-8: use a third point. With three, try "
            "h = 1e-5": (expected, 1e-3),
            "these are slopes to the left, at the kink": (before, 1e-3),
            "it averages the two sides": ((before + after) / 2, 1e-3),
        }, arrays=True)  # fmt: skip
    return "slopes to the right within 1e-9, at the kinks and away from them"
