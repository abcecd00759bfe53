"""Chapter 01: B-splines, what they count to, and the tools that the chapter builds in full view."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ..counting import Work
from ..splines import basis, uniform_knots
from .common import Parts, Wrong, exercise, numbers, same_tensor
from .rules import Operations, without_autograd


@exercise("01-1")
@numbers("one B-spline, by hand", ())
def basis_by_hand() -> Parts:
    """Check the quadratic B-spline on the knots 0, 1, 2, 3 at x = 1.25."""
    yield "B(1.25)", 11 / 16, {
        "that is the first degree, on the knots 0, 1, 2: go one level up": 0.75,
        "the second half of the recursion is missing": 15 / 32,
        "the first half of the recursion is missing": 7 / 32,
        "that continues the piece between 0 and 1, x²/2, past its end": 25 / 32,
        "the two ramps are swapped": 13 / 16,
    }  # fmt: skip


@exercise("01-2")
@numbers("parameters and FLOPs, at three sizes", (768, 768, 5, 3), (2, 5, 5, 3), (10, 3, 8, 2))
def count_kan(inputs: int, outputs: int, intervals: int, degree: int) -> Parts:
    """Check parameters and FLOPs of a row of a KAN layer whose basis is shared."""
    size = f"{inputs=}, {outputs=}, {intervals=}, {degree=}"
    edges, last = inputs * outputs, intervals + degree
    splines = sum(intervals + 2 * degree - level for level in range(1, degree + 1))
    yield f"parameters for {size}", edges * (last + 1), {
        "the base weight of each edge is missing": edges * last,
        "G intervals carry G + K splines, not G": edges * (intervals + 1),
        "knots are not trained": edges * (last + 1) + last + degree + 1,
    }  # fmt: skip
    node = 2 * edges * (last + 1) + outputs  # its products, and adding the two of them
    yield f"FLOPs for {size}", 7 * inputs * splines + node, {
        "adding the two products is one more for each output": 7 * inputs * splines + node - outputs,
        "the basis is computed once for each input, not for each edge": 7 * edges * splines + node,
        "differences of knots are made once for all rows: 7, not 9": 9 * inputs * splines + node,
        "the levels below the last have splines too": 7 * inputs * last + node,
        "the indicators, degree 0, are comparisons: levels 1 to K":
            7 * inputs * (splines + intervals + 2 * degree) + node,
        "a multiply-add counts 2": 7 * inputs * splines + edges * (last + 1) + outputs,
        "the two products are added once for each output, not for each edge":
            7 * inputs * splines + node - outputs + edges,
        "the base weight's product counts too": 7 * inputs * splines + node - 2 * edges,
    }  # fmt: skip


@exercise("01-3")
def basis_slope(f: Callable[[Tensor, Tensor, int], Tensor]) -> str:
    """Check derivatives of all B-splines, (x [N], knots, degree) -> [N, len(knots) - 1 - degree]."""
    for degree in (3, 2, 1):
        g = torch.Generator().manual_seed(degree)
        knots = torch.cumsum(0.2 + torch.rand(11, generator=g, dtype=torch.float64), 0) - 3.0
        x = knots[0] + (knots[-1] - knots[0]) * torch.rand(200, generator=g, dtype=torch.float64)
        _, want = torch.func.jvp(lambda x: basis(x, knots, degree), (x,), (torch.ones_like(x),))  # noqa: B023
        with without_autograd(), Operations() as operations:
            got = f(x, knots, degree)
        if len(operations.done) >= len(x):
            raise Wrong(
                f"expected operations on all of x at once, got {len(operations.done):,} of PyTorch's for {len(x)} "
                "numbers. Likely cause: a loop over x"
            )
        same_tensor(f"slopes at degree {degree}, uneven knots", got, want, 1e-12 * (1 + want.abs()), {
            "the factor in front, the degree": want / degree,
            "the sign: the left spline rises, the right one falls": -want,
            "right but for rounding: a quotient of differences near x, where the formula is exact": (want, 1e-4),
        }, arrays=True)  # fmt: skip
    return "slopes at three degrees, on uneven knots"


@exercise("01-4")
def refine(f: Callable[[Tensor, int], Tensor]) -> str:
    """Check (coefficients [edges, G+3] of cubic splines on [-1, 1], G) -> the same curves on 2G: [edges, 2G+3]."""
    for intervals in (5, 8):
        old = torch.randn(4, intervals + 3, generator=torch.Generator().manual_seed(intervals), dtype=torch.float64)
        stretched = functional.interpolate(old[None], 2 * intervals + 3, mode="linear", align_corners=True)[0]
        new = f(old.clone(), intervals)
        same_tensor("refined coefficients", new, torch.zeros_like(stretched), math.inf, arrays=True)  # of that shape
        new = torch.as_tensor(np.asarray(new))
        x = torch.linspace(-1, 1, 301, dtype=torch.float64)[:-1]
        fine = basis(x, uniform_knots(2 * intervals, 3).double(), 3)
        want = old @ basis(x, uniform_knots(intervals, 3).double(), 3).T
        same_tensor(f"curves after refining {intervals} intervals", new.double() @ fine.T, want, 1e-5, {
            "a coefficient is not the curve's value: fit the curve, do not stretch the list": stretched @ fine.T,
        })  # fmt: skip
    return "the same curves on grids twice as fine"


@exercise("01-5")
def cheap_edge(f: Callable[[Tensor, float, float, Tensor], Tensor]) -> str:
    """Check a cubic spline on a uniform grid, (x [N], low, high, coefficients [G+3]) -> [N], 16 FLOPs at most."""
    for intervals, low, high in ((8, -1.0, 1.0), (5, -2.0, 3.0)):
        g = torch.Generator().manual_seed(intervals)
        c = torch.randn(intervals + 3, generator=g, dtype=torch.float64)
        x = low + (high - low) * torch.rand(8192, generator=g, dtype=torch.float64)
        with Work() as work:
            got = f(x, low, high, c)
        knots, step = uniform_knots(intervals, 3, low, high).double(), (high - low) / intervals
        b = basis(x, knots, 3)
        middle = low + step * (((x - low) / step).floor() + 0.5)
        same_tensor(f"a curve on {intervals} intervals of [{low:g}, {high:g}]", got, b @ c, 1e-5, {
            "the coefficients are one cell off: c[cell] … c[cell+3] belong to a cell": b @ c.roll(-1),
            "one cell off: c[cell] … c[cell+3] belong to a cell": b @ c.roll(1),
            "the four weights in reverse: c[cell] has (1-f)³/6": basis(2 * middle - x, knots, 3) @ c,
        }, arrays=True)  # fmt: skip
        each = work.flops / len(x)
        if each < 4:
            raise Wrong(
                f"right, but {each:.1f} FLOPs an element were counted, fewer than it takes: the check counts PyTorch's "
                "operations alone, so write it in those"
            )
        if each > 16:
            raise Wrong(f"right, but at {each:.1f} FLOPs an element, counted over {len(x):,}; 16 count as good")
    return f"the same curve for {each:.1f} FLOPs an element"
