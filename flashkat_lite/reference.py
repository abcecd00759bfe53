"""The group-rational function in plain PyTorch: the definition that every kernel is held to.

    F(x) = P(x) / Q(x),   P(x) = a_0 + a_1 x + … + a_m x^m,   Q(x) = 1 + |b_1||x| + … + |b_n||x|^n

The last dimension of x is cut into G groups of D/G neighbouring columns; each group has its own a and b. The
denominator is at least 1, so F has no poles (Molina et al. 2020 name the idea; Yang & Wang 2024 use this form).

sign(0) = +1, for x and for b: with autograd's sign(0) = 0 a denominator that starts at b = 0 would never train.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

FORMS = ("sum_of_magnitudes", "magnitude_of_sum")


def magnitude(t: Tensor) -> Tensor:
    """|t|, with derivative +1 at t = 0 where `torch.abs` has 0."""
    return torch.where(t < 0, -t, t)


def sign(t: Tensor) -> Tensor:
    """-1 where t < 0, else +1."""
    return torch.where(t < 0, -1.0, 1.0).to(t.dtype)


def horner(x: Tensor, coefficients: list[Tensor]) -> Tensor:
    """c_0 + c_1 x + … + c_k x^k, in k multiply-adds."""
    value = coefficients[-1]
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def rational_reference(x: Tensor, numerator: Tensor, denominator: Tensor, *, form: str = "sum_of_magnitudes") -> Tensor:
    """F(x), differentiable by autograd.

    x: [..., D], any float dtype; 16-bit inputs are computed in float32. numerator: [G, m+1] and denominator: [G, n];
    a [1, ·] table is shared by all groups. Returns [..., D] in x's dtype.

    form: "sum_of_magnitudes" is Q above; "magnitude_of_sum" is Q(x) = 1 + |b_1 x + … + b_n x^n|, the other safe
    denominator in use (it has kinks wherever the sum changes sign).
    """
    z, a, b = grouped(x, numerator, denominator)
    if form == "sum_of_magnitudes":
        t = magnitude(z)
        q = 1 + t * horner(t, [magnitude(c) for c in b])
    elif form == "magnitude_of_sum":
        q = 1 + magnitude(z * horner(z, b))
    else:
        raise ValueError(f"form must be one of {FORMS}, not {form!r}")
    return (horner(z, a) / q).reshape(x.shape).to(x.dtype)


def gradient_terms(grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> Iterator[Tensor]:
    """The terms whose sums are the coefficients' gradients, one coefficient at a time: a_0 … a_m, then b_1 … b_n.

        dF/da_i = x^i / Q          dF/db_j = -sign(b_j) |x|^j P / Q²

    Each item is [rows, G, D/G]; its sum over rows and columns is that coefficient's gradient, a group at a time.
    """
    z, a, b = grouped(x, numerator, denominator)
    dy = grad_output.to(z.dtype).reshape(z.shape)
    t = magnitude(z)
    p, q = horner(z, a), 1 + t * horner(t, [magnitude(c) for c in b])
    term = dy / q
    for _ in a:
        yield term
        term = term * z
    term = dy / q * (p / q)  # Q² leaves float32 long before Q does
    for c in b:
        term = term * t
        yield -sign(c) * term


def rational_gradients(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The closed-form gradients (dx, dnumerator, ddenominator) of Σ grad_output · F(x).

        dF/dx = P'/Q - sign(x) P Q' / Q²,   with Q' = |b_1| + 2|b_2||x| + … + n|b_n||x|^(n-1)

    Shapes as in `rational_reference`; each gradient has the shape and dtype of what it belongs to.
    """
    z, a, b = grouped(x, numerator, denominator)
    dy = grad_output.to(z.dtype).reshape(z.shape)
    dx = dx_terms(dy, z, a, b)
    dx = (dx[0] + dx[1]).reshape(x.shape).to(x.dtype)
    sums = [term.sum((0, 2)) for term in gradient_terms(grad_output, x, numerator, denominator)]
    return dx, _collect(sums[: len(a)], numerator), _collect(sums[len(a) :], denominator)


def dx_terms(dy: Tensor, z: Tensor, a: list[Tensor], b: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two terms of dx: dy P'/Q and -dy sign(x) P Q'/Q²."""
    t = magnitude(z)
    b = [magnitude(c) for c in b]
    p, q = horner(z, a), 1 + t * horner(t, b)
    slope_p = horner(z, [i * c for i, c in enumerate(a)][1:])
    slope_q = horner(t, [j * c for j, c in enumerate(b, 1)])
    return dy * slope_p / q, -dy * sign(z) * (p / q) * (slope_q / q)  # neither Q² nor P Q' need be float32's


def rounding_units(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dnumerator, ddenominator, unit of dnumerator, unit of ddenominator), all float64.

    A unit is 2^-24 · sqrt(Σ term²): what rounding each float32 term once, independently, does to their sum. Errors of
    float32 sums are quoted in it, because it does not depend on the data's scale or count.
    """
    wide = [t.double() for t in (grad_output, x, numerator, denominator)]
    sums, squares = [], []
    for term in gradient_terms(*wide):
        sums.append(term.sum((0, 2)))
        squares.append(term.square().sum((0, 2)))
    m1 = numerator.shape[1]
    da, db = _collect(sums[:m1], wide[2]), _collect(sums[m1:], wide[3])
    da2, db2 = _collect(squares[:m1], wide[2]), _collect(squares[m1:], wide[3])
    return da, db, da2.sqrt() * 2.0**-24, db2.sqrt() * 2.0**-24


def grouped(x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x as [rows, G, D/G], and the coefficients as lists of [G, 1], in the dtype to compute in."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    groups = max(len(numerator), len(denominator))
    z = x.to(dtype).reshape(-1, groups, x.shape[-1] // groups)
    return z, list(numerator.to(dtype).T[..., None]), list(denominator.to(dtype).T[..., None])


def _collect(sums: list[Tensor], table: Tensor) -> Tensor:
    """Per-coefficient sums [G] as a gradient of `table`; a shared table's groups are added up."""
    grad = torch.stack(sums, 1)
    return (grad if len(table) == len(grad) else grad.sum(0, keepdim=True)).to(table.dtype)
