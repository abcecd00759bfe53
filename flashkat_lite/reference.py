"""The group-rational function in plain PyTorch: the definition that every kernel is held to.

    F(x) = P(x) / Q(x),   P(x) = a_0 + a_1 x + … + a_m x^m,   Q(x) = 1 + |b_1||x| + … + |b_n||x|^n

The last dimension of x is cut into G groups of D/G neighbouring columns; each group has its own a and b. The
denominator is at least 1, so F has no poles (Molina et al. 2020 name the idea; Yang & Wang 2024 use this form).

The sign of x is its sign bit: at +0 the slope is the one from the right, at -0 the one from the left. sign(b = 0) = +1
whatever the bit: with autograd's sign(0) = 0 a denominator that starts at b = 0 would never train.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

FORMS = ("sum_of_magnitudes", "magnitude_of_sum")


def magnitude(t: Tensor) -> Tensor:
    """|t|, with derivative +1 at t = +0 and -1 at t = -0, where `torch.abs` has 0."""
    return torch.where(torch.signbit(t), -t, t)


def _magnitudes(b: list[Tensor]) -> list[Tensor]:
    """|b|, with derivative +1 at b = 0, whatever its sign bit."""
    return [torch.where(c < 0, -c, c) for c in b]


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
        q = 1 + t * horner(t, _magnitudes(b))
    elif form == "magnitude_of_sum":
        q = 1 + magnitude(z * horner(z, b))
    else:
        raise ValueError(f"form must be one of {FORMS}, not {form!r}")
    return (horner(z, a) / q).reshape(x.shape).to(x.dtype)


def rational_closed_form(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """F(x) as `rational_reference` has it, and right also where P or Q is no number of the dtype and F is one."""
    f = _scaled(*grouped(x, numerator, denominator))
    return _raised(f.p / f.q, f.exponent_p, -f.exponent_q).reshape(x.shape).to(x.dtype)


def norm_rational_closed_form(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
    *,
    rms: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z = F(γ x̂ + β) in `dtype` (x's by default), x + branch, mean and 1/σ [rows], differentiable by autograd.

    x̂ = (x - mean(x)) / σ, σ² = mean((x - mean(x))²) + eps, over the last dimension; without the mean for RMSNorm. With
    a branch, x + branch, in its own dtype, is what is normed; without, the sum returned is empty, as are RMSNorm's
    means. Without tables F is the identity. All between is computed in float32, or in float64 for such an x.
    """
    total = x if branch is None else x + branch
    normed, mean, rstd = _normed(total, rms, eps)
    y = _affine(normed, weight, bias)
    z = y if numerator is None else rational_closed_form(y, numerator, denominator)
    means = mean.reshape(-1) if mean is not None else rstd.new_empty(0)
    return z.to(dtype or x.dtype), x.new_empty(0) if branch is None else total, means, rstd.reshape(-1)


def norm_rational_gradients(
    dz: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
    *,
    rms: bool = False,
    eps: float = 1e-6,
) -> tuple[Tensor | None, ...]:
    """The gradients (dx, dweight, dbias, dnumerator, ddenominator) of Σ dz · z + Σ dsum · x; None of what is not there.

    x is what was normed. With dy = dz F'(y) and e = γ dy:  dx = (e - mean(e) - x̂ mean(e x̂)) / σ + dsum, dγ = Σ dy x̂,
    dβ = Σ dy; RMSNorm is without mean(e).
    """
    normed, _, rstd = _normed(x, rms, eps)
    dy, da, db = dz.to(normed.dtype), None, None
    if numerator is not None:
        dy, da, db = rational_gradients(dy, _affine(normed, weight, bias), numerator, denominator)
    e = dy * weight.to(dy.dtype)
    dx = e - normed * (e * normed).mean(-1, keepdim=True)
    dx = (dx if rms else dx - e.mean(-1, keepdim=True)) * rstd
    dx = (dx if dsum is None else dx + dsum).to(x.dtype)
    dweight = (dy * normed).reshape(-1, dy.shape[-1]).sum(0).to(weight.dtype)
    dbias = None if bias is None else dy.reshape(-1, dy.shape[-1]).sum(0).to(bias.dtype)
    return dx, dweight, dbias, da, db


def _normed(x: Tensor, rms: bool, eps: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """x̂ [..., D], mean and 1/σ [..., 1]."""
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    mean = None if rms else x.mean(-1, keepdim=True)
    x = x if rms else x - mean
    rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return x * rstd, mean, rstd


def _affine(normed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = normed * weight.to(normed.dtype)
    return y if bias is None else y + bias.to(normed.dtype)


def gradient_terms(grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> Iterator[Tensor]:
    """The terms whose sums are the coefficients' gradients, one coefficient at a time: a_0 … a_m, then b_1 … b_n.

        dF/da_i = x^i / Q          dF/db_j = -sign(b_j) F |x|^j / Q

    Each item is [rows, G, D/G]; its sum over rows and columns is that coefficient's gradient, a group at a time.
    """
    z, a, b = grouped(x, numerator, denominator)
    return _gradient_terms(grad_output.to(z.dtype).reshape(z.shape), a, b, _scaled(z, a, b))


def _gradient_terms(dy: Tensor, a: list[Tensor], b: list[Tensor], f: "_Scaled") -> Iterator[Tensor]:
    t = magnitude(f.x)
    large, one = t > 1, torch.ones_like(t)

    def powers(x: Tensor, factor: Tensor) -> Iterator[Tensor]:
        """factor / Q, x factor / Q, …: the factor last where powers grow, first where they may vanish."""
        power, last = torch.where(large, one, factor) / f.q, torch.where(large, factor, one)
        while True:
            yield power * last
            power = power * x

    for i, term in zip(range(len(a)), powers(f.x, dy)):
        yield _raised(term, f.exponent_x * i, -f.exponent_q)
    terms = powers(t, dy * (f.p / f.q))
    next(terms)
    for j, (c, term) in enumerate(zip(b, terms), 1):
        yield _raised(torch.where(c < 0, term, -term), f.exponent_x * j + f.exponent_p, -2 * f.exponent_q)


def rational_gradients(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The closed-form gradients (dx, dnumerator, ddenominator) of Σ grad_output · F(x).

        dF/dx = P'/Q - sign(x) F Q'/Q,   with Q' = |b_1| + 2|b_2||x| + … + n|b_n||x|^(n-1)

    Shapes as in `rational_reference`; each gradient has the shape and dtype of what it belongs to. Each is right
    wherever it is a number of its dtype, also where P, Q or Q² is none.
    """
    z, a, b = grouped(x, numerator, denominator)
    dy = grad_output.to(z.dtype).reshape(z.shape)
    f = _scaled(z, a, b)
    dx = sum(_dx_terms(dy, f)).reshape(x.shape).to(x.dtype)
    sums = [term.sum((0, 2)) for term in _gradient_terms(dy, a, b, f)]
    return dx, _collect(sums[: len(a)], numerator), _collect(sums[len(a) :], denominator)


def dx_terms(dy: Tensor, z: Tensor, a: list[Tensor], b: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two terms of dx: dy P'/Q and -dy sign(x) F Q'/Q, for z [rows, G, D/G] and coefficients as `grouped` has."""
    return _dx_terms(dy, _scaled(z, a, b))


def _dx_terms(dy: Tensor, f: "_Scaled") -> tuple[Tensor, Tensor]:
    exponent = f.exponent_p - f.exponent_x
    of_q = f.p / f.q * (f.slope_q / f.q)
    of_q = torch.where(torch.signbit(f.x), of_q, -of_q)
    return tuple(_raised(dy * slope, exponent, -f.exponent_q) for slope in (f.slope_p / f.q, of_q))


class _Scaled(NamedTuple):
    """x = f.x 2^exponent_x, P = p 2^exponent_p, Q = q 2^exponent_q; slope_p and slope_q are dp/d(f.x), dq/d|f.x|."""

    x: Tensor
    p: Tensor
    q: Tensor
    slope_p: Tensor
    slope_q: Tensor
    exponent_x: Tensor | int
    exponent_p: Tensor | int
    exponent_q: Tensor | int


def _scaled(z: Tensor, a: list[Tensor], b: list[Tensor]) -> _Scaled:
    """P, Q and their slopes, as numbers that no |x| takes out of the dtype's range.

    A polynomial is scaled by the power of two of its largest term. Exponents are 0 where nothing comes near the range.
    """
    b, one, exponent_x, exponent_p, exponent_q = _magnitudes(b), 1, 0, 0, 0
    if not _moderate(z, a, b):
        exponent_x = _exponent(z).clamp(-60)  # of x = 0 too, whose slope F Q' need not be a number before dy is
        exponent_p = _largest_exponent(a, exponent_x)
        exponent_q = _largest_exponent(b, exponent_x, first=1)
        z = _raised(z, -exponent_x)
        one = _raised(torch.ones_like(z), -exponent_q)
        a = [_raised(c, exponent_x * i, -exponent_p) for i, c in enumerate(a)]
        b = [_raised(c, exponent_x * j, -exponent_q) for j, c in enumerate(b, 1)]
    t = magnitude(z)
    slope_p = horner(z, [i * c for i, c in enumerate(a)][1:])
    slope_q = horner(t, [j * c for j, c in enumerate(b, 1)])
    return _Scaled(z, horner(z, a), one + t * horner(t, b), slope_p, slope_q, exponent_x, exponent_p, exponent_q)


def _moderate(z: Tensor, a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether no term of P, Q or their slopes is beyond 2^60.

    Values are looked at on a CPU, outside transforms. A compiler's graph has the plain formulas for all of them: where
    P or Q leaves the range, so does what is compiled.
    """
    tensors = (z, *a, *b)
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or any(type(t) is not Tensor for t in tensors)
    ):
        return True
    if torch._C._are_functorch_transforms_active() or z.device.type != "cpu":
        return False
    if z.numel() == 0:
        return True
    x, p, q = (max(max(-low, high).item() for low, high in (t.detach().aminmax() for t in ts)) for ts in ([z], a, b))
    degree = max(len(a) - 1, len(b))
    try:
        return max(p, q, 1.0) * max(x, 1.0) ** degree * degree < 2.0**60
    except OverflowError:
        return False


def _exponent(t: Tensor) -> Tensor:
    """⌊log2|t|⌋ as a float: the smallest normal number's below that, the largest number's for infinity."""
    range = torch.finfo(t.dtype)
    return t.detach().abs().clamp(range.tiny, range.max).log2().floor()


def _largest_exponent(coefficients: list[Tensor], exponent_x: Tensor, first: int = 0) -> Tensor:
    """The exponent of the largest term c_i x^i, and at least 0."""
    largest = torch.zeros_like(exponent_x)
    for i, c in enumerate(coefficients, first):
        largest = torch.maximum(largest, torch.where(c.detach() == 0, 0.0, _exponent(c) + exponent_x * i))
    return largest


def _raised(t: Tensor, *exponents: Tensor | int) -> Tensor:
    """t 2^(sum of exponents), which no factor on the way takes out of range where the result is in it."""
    if isinstance(exponents[0], int):
        return t
    exponent = sum(exponents)
    step = 126 if t.dtype == torch.float32 else 1022
    for _ in range(3):
        part = exponent.clamp(-step, step)
        t, exponent = t * torch.exp2(part), exponent - part
    return t


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
