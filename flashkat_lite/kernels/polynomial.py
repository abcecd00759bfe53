"""Device functions that every kernel shares: coefficients as tuples of tensors, for any degrees."""

import torch
import triton
import triton.language as tl

from . import INTERPRETED

# NVIDIA's assembly is for its compiler alone: the interpreter runs none, and AMD's GPUs have another.
FAST: tl.constexpr = tl.constexpr(not INTERPRETED and torch.version.hip is None)


@triton.jit
def load_coefficients(pointer, COUNT: tl.constexpr):
    """COUNT neighbouring coefficients: a tuple of float32 tensors, shaped like `pointer`."""
    coefficients = ()
    for i in tl.static_range(COUNT):
        coefficients = coefficients + (tl.load(pointer + i).to(tl.float32),)
    return coefficients


@triton.jit
def magnitudes(coefficients):
    """(|c_1|, …, |c_n|)."""
    result = ()
    for i in tl.static_range(len(coefficients)):
        result = result + (tl.abs(coefficients[i]),)
    return result


@triton.jit
def horner(x, coefficients):
    """c_0 + c_1 x + … + c_k x^k in k fused multiply-adds."""
    value = coefficients[len(coefficients) - 1]
    for i in tl.static_range(len(coefficients) - 2, -1, -1):
        value = value * x + coefficients[i]
    return value


@triton.jit
def horner_with_derivative(x, coefficients):
    """(value, derivative) of c_0 + c_1 x + … + c_k x^k, k >= 1, by synthetic division: 2k - 1 fused multiply-adds.

    Horner's intermediate values are the coefficients of the quotient by x - x_0, and that quotient's value at x_0 is
    the derivative: no coefficient of its own, so k fewer registers than a second Horner.
    """
    value = coefficients[len(coefficients) - 1]
    slope = value
    for i in tl.static_range(len(coefficients) - 2, -1, -1):
        if i < len(coefficients) - 2:
            slope = slope * x + value
        value = value * x + coefficients[i]
    return value, slope


@triton.jit
def derivative(coefficients, FIRST: tl.constexpr):
    """The derivative's coefficients, where coefficients[0] belongs to x^FIRST."""
    result = ()
    for i in tl.static_range(len(coefficients)):
        if FIRST + i > 0:
            result = result + (coefficients[i] * (FIRST + i),)
    return result


@triton.jit
def reciprocal(x):
    """1/x within one unit in the last place: one instruction on NVIDIA, where a division takes eight."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def to_float32(x):
    """x as float32: a bfloat16 is the upper half of one, so a pair in a register takes a shift and a mask."""
    if FAST and x.dtype == tl.bfloat16 and x.shape[len(x.shape) - 1] % 2 == 0:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return x.to(tl.float32)


@triton.jit
def mulsign(value, x):
    """value where x's sign bit is clear, -value elsewhere (so at -0 too): one bitwise instruction."""
    bits = value.to(tl.int32, bitcast=True) ^ (x.to(tl.int32, bitcast=True) & -2147483648)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def backward_terms(dy, x, a, b):
    """dx, and the two factors of every coefficient's gradient.

    With P = Σ a_i x^i, Q = 1 + Σ b_j |x|^j (b already without signs), u = dy/Q, w = u P/Q:
    dx = u P' - sign(x) w Q',  d/da_i = u x^i,  d/d|b_j| = -w |x|^j;  the sign is x's sign bit, at -0 too.
    """
    t = tl.abs(x)
    p = horner(x, a)
    r = reciprocal(1.0 + t * horner(t, b))
    u = dy * r
    w = p * r * u
    slope_p = horner(x, derivative(a, 0))
    slope_q = horner(t, derivative(b, 1))
    dx = u * slope_p - tl.where(x.to(tl.int32, bitcast=True) < 0, -w, w) * slope_q
    return dx, u, w
