"""Answers that readers handed in: right ones in other styles, and wrong ones that a check once took for right.

Each of the wrong ones breaks one rule; the others it keeps.
"""

import ctypes
from fractions import Fraction

import ch01
import ch02
import ch03
import ch04
import ch05
import ch06
import ch11
import ch12
import numpy as np
import torch
import torch.utils.checkpoint as recomputing
import triton
from variants import copy_kernel, groups_kernel, launch, transpose_kernel

from flashkat_lite.lab.exercises import ch10, ch14, ch15
from flashkat_lite.lab.splines import basis
from flashkat_lite.reference import rational_gradients, rational_reference

# Without kernels


def spline_slope_by_jvp(x, knots, degree):
    return torch.func.jvp(lambda x: basis(x, knots, degree), (x,), (torch.ones_like(x),))[1]


def spline_slope_by_rows(x, knots, degree):
    leaf = x.clone().requires_grad_()
    rows = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in basis(leaf, knots, degree).T]
    return torch.stack(rows, 1)


def poles_of_complex(b, low, high):
    zeros = np.sort_complex(np.roots([*b[::-1], 1.0]))
    return [complex(z.real) for z in zeros if abs(z.imag) < 1e-9 and low <= z.real <= high]


def poles_by_signs(b, low, high, points=3001):
    x = np.linspace(low, high, points)
    q = np.polyval([*b[::-1], 1.0], x)
    return [float(x[i + 1]) for i in range(points - 1) if q[i] * q[i + 1] <= 0 and q[i] != 0]


def std_without_normalising(f, features_in):
    z = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    return (features_in * torch.trapezoid(f(z) ** 2 * torch.exp(-z * z / 2), z).item()) ** -0.5


def by_autograd(x, a, b):
    leaf = b.clone().requires_grad_()
    p = sum(c * x**i for i, c in enumerate(a))
    value = p / (1 + sum(c.abs() * x.abs() ** j for j, c in enumerate(leaf, 1)))
    return torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in value])


def gradients_by_autograd(dy, x, a, b):
    leaves = [t.clone().requires_grad_() for t in (a, b)]
    return torch.autograd.grad(rational_reference(x, *leaves), leaves, dy)


def signed_powers(dy, x, a, b):
    z, g = (t.view(len(t), len(a), -1) for t in (x, dy))
    p = sum(c * z**i for i, c in enumerate(a.T[..., None]))
    q = 1 + sum(c.abs() * z.abs() ** j for j, c in enumerate(b.T[..., None], 1))
    db = torch.stack([(-g * p / q**2 * z**j).sum((0, 2)) for j in range(1, b.shape[1] + 1)], 1)
    return rational_gradients(dy, x, a, b)[1], db * torch.where(b < 0, -1.0, 1.0)


def sign_of_zero(dy, x, a, b):
    _, da, db = rational_gradients(dy, x, a, b)
    return da, db * (b != 0)


def slope_by_autograd(f, v):
    leaf = (v + 1e-11).requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def lost_by_numpy(a, b):
    s, _ = ch12.in_float64(a, b)
    return s, torch.from_numpy((a.numpy().astype("f8") + b.numpy() - s.numpy()).astype("f4"))


def lost_by_float64(a, b):
    return a + b, (a.double() + b.double() - (a + b).double()).float()


# Kernels, each with the mistake that is named


def gelu(x, kind="right", block=1024):
    y = torch.empty_like(x)
    launch(f"gelu: {kind}", triton.cdiv(x.numel(), block), x, y, x.numel(), BLOCK=block)
    return y


def silu(x, kind="right", like=False):
    y = torch.empty_like(x) if like else torch.empty(x.shape, dtype=x.dtype)
    block = triton.next_power_of_2(x.shape[1])
    launch(f"silu: {kind}", x.shape[0], x, y, x.shape[1], *x.stride(), BLOCK=block)
    return y


def transposed(x, tile):
    out = torch.empty(x.shape[1], x.shape[0])
    grid = triton.cdiv(x.shape[0], tile), triton.cdiv(x.shape[1], tile)
    transpose_kernel[grid](x, out, *x.shape, *x.stride(), TILE=tile)
    return out


def column_sums(dy, kind="right", rows=64, dtype=torch.float32):
    out = torch.zeros(dy.shape[1], dtype=dtype)
    grid = triton.cdiv(dy.shape[0], rows), triton.cdiv(dy.shape[1], 32)
    launch(f"columns: {kind}", grid, dy, out, *dy.shape, *dy.stride(), ROWS=rows, COLUMNS=32)
    return out


def partial_sums(dy, programs=32, rows=128):
    wide = triton.next_power_of_2(dy.shape[1])
    programs = min(programs, triton.cdiv(dy.shape[0], rows))
    partial = torch.empty(programs, dy.shape[1])
    launch("columns: walk", (programs, 1), dy, partial, *dy.shape, *dy.stride(), ROWS=rows, COLUMNS=wide)
    return partial.sum(0)


def one_an_element(dy, kind="right", copies=1, block=256, out=None):
    out = torch.zeros(copies, dy.shape[1]) if out is None else out
    grid = triton.cdiv(dy.numel(), block)
    launch(f"elements: {kind}", grid, dy, out, *dy.shape, *dy.stride(), len(out), BLOCK=block)
    return out.sum(0)


class Table:
    """A table of copies that is kept for its width, and never zeroed again."""

    def __init__(self):
        self.kept = {}

    def __call__(self, dy):
        out = self.kept.setdefault(dy.shape[1], torch.zeros(512, dy.shape[1]))
        return one_an_element(dy, out=out)


def counts(values, bins, kind="stored", block=2048, weights=None):
    programs, wide = triton.cdiv(len(values), block), triton.next_power_of_2(bins)
    given, dtype = ([values], torch.int32) if weights is None else ([values, weights], torch.float32)
    out = torch.zeros(programs, bins, dtype=dtype) if kind == "stored" else torch.zeros(bins, dtype=dtype)
    name = "bins" if weights is None else "weights"
    launch(f"{name}: {kind}", programs, *given, out, len(values), bins, BLOCK=block, BINS=wide)
    return out.sum(0).to(dtype) if kind == "stored" else out


def weighted(values, weights, bins, kind="right", block=1024):
    return counts(values, bins, kind, block, weights)


def decorated(answer):
    """PyTorch's answer, beside a kernel that copies three numbers."""

    def decorate(x, *rest):
        copy_kernel[(1,)](x, torch.empty(4, dtype=x.dtype), 1, BLOCK=4)
        return answer(x, *rest)

    return decorate


def copied(answer):
    """A kernel copies everything, and PyTorch does the rest."""

    def copy(x, *rest):
        x = x.contiguous()
        y = torch.empty_like(x)
        copy_kernel[(triton.cdiv(x.numel(), 4096),)](x, y, x.numel(), BLOCK=4096)
        return answer(y, *rest)

    return copy


def index_sums(terms, index, size, kind="owned"):
    out = torch.empty(size) if kind == "owned" else torch.zeros(size)
    programs = size if kind == "owned" else triton.cdiv(len(terms), 1024)
    launch(f"index: {kind}", programs, terms, index, out, len(terms), BLOCK=1024)
    return out.to(torch.bfloat16)


def group_sums(x, groups):
    out, width = torch.empty(groups), x.shape[1] // groups
    wide = triton.next_power_of_2(width)
    groups_kernel[(groups,)](x, out, *x.shape, width, ROWS=4096 // wide, BLOCK=wide)
    return out


def total(x, kind="right", parts=4, dtype=torch.float32):
    out = torch.zeros((), dtype=dtype) if kind == "race" else torch.empty(parts)
    launch(f"total: {kind}", parts, x, out, len(x), BLOCK=2048)
    return out.float() if kind == "race" else out[0] if kind == "one" else out.sum()


def finished(x, kind="right", parts=4):
    partial, out, done = torch.empty(parts, 32), torch.empty(()), torch.zeros(1, dtype=torch.int32)
    launch(f"finish: {kind}", parts, x, partial, done, out, len(x), BLOCK=2048, PARTS=parts)
    return out


def scale_backward(dy, x, scale, kind="right", dtype=torch.float32, programs=4):
    rows, columns = x.shape
    dx, wide = torch.empty_like(x), triton.next_power_of_2(columns)
    programs = min(programs, rows)
    sums = torch.zeros(columns, dtype=dtype) if kind == "race" else torch.empty(programs, columns)
    tile = max(1, 2048 // wide)
    launch(f"scale: {kind}", programs, dy, x, scale, dx, sums, rows, columns, ROWS=tile, COLUMNS=wide)
    return dx, (sums if kind == "race" else sums.sum(0)).float()


def scale_read_twice(dy, x, scale):
    dx, _ = scale_backward(dy, x, scale)
    return dx, scale_backward(dy, x, scale)[1]


def unpacked(x, kind="right"):
    out, pairs = torch.empty(x.shape), x.view(torch.int32)
    launch(f"unpack: {kind}", triton.cdiv(len(pairs), 1024), pairs, out, len(pairs), BLOCK=1024)
    return out


def silu_backward(dy, x, kind="right"):
    dx = torch.empty_like(x)
    launch(f"slope: {kind}", triton.cdiv(x.numel(), 1024), dy, x, dx, x.numel(), BLOCK=1024)
    return dx


def add_first(x, branch, weight, bias, eps):
    zero = torch.zeros_like(x)
    return ch14.add_and_norm_solution(x + branch, zero, weight, bias, eps)


def add_and_norm_twice(x, branch, weight, bias, eps):
    ch14.add_and_norm_solution(torch.zeros_like(x), torch.zeros_like(x), weight, bias, eps)
    return ch14.add_and_norm_solution(x, branch, weight, bias, eps)


def sorted_first(index, weights, size, sort=torch.sort):
    """Each address by a program of its own, however few weights there are."""
    bins, order = sort(index)
    start = torch.searchsorted(bins, torch.arange(size + 1))
    partial = torch.empty(1, size)
    ch15.owned_kernel[(size, 1)](order, start, weights, partial, size, BLOCK=64)
    return partial.sum(0)


def from_32_on(index, weights, size):
    crowded = len(index) >= 32 * size
    return (sorted_first if crowded else ch15.weighted_bincount_solution)(index, weights, size)


def by_checkpoint(module, x):
    return recomputing.CheckpointFunction.apply(module, True, x)


CONSTANT = "Cannot access global variable SLOPE"

RIGHT = {
    "01-1": [lambda: Fraction(11, 16), lambda: torch.tensor([0.6875]), lambda: np.float32(0.6875)],
    "01-2": [lambda *case: list(ch01.count(*case)), lambda *case: np.array(ch01.count(*case))],
    "01-3": [lambda *case: ch01.slope(*case).numpy()],
    "02-1": [lambda *case: np.int64(ch02.coefficients(*case)), lambda *case: torch.tensor(ch02.coefficients(*case))],
    "02-2": [poles_of_complex, lambda *case: np.array(ch02.poles(*case)), lambda *case: tuple(ch02.poles(*case))],
    "02-3": [lambda *case: torch.tensor(ch02.std(*case))],
    "03-1": [lambda *case: torch.tensor(ch03.limits(*case), dtype=torch.float64)],
    "03-2": [lambda *case: ch03.derivatives(*case).numpy(), lambda *case: ch03.derivatives(*case).tolist()],
    "03-3": [lambda *case: list(ch03.lean(*case))],
    "03-4": [lambda f, v: ch03.shifted({0: -1.5, 1: 2.0, 2: -0.5}, 1e-5)(f, v).tolist()],
    "04-1": [lambda *case: list(ch04.lane(*case)), lambda *case: np.array(ch04.lane(*case))],
    "04-2": [lambda program, block: ctypes.c_int32(program * block).value],
    "04-3": [silu],
    "04-4": [gelu, lambda x: gelu(x, block=4096)],
    "05-1": [lambda *case: np.int64(ch05.sectors(*case))],
    "05-4": [lambda x: transposed(x, 64)],
    "06-1": [lambda *case: list(ch06.limit(*case))],
    "06-2": [index_sums],
    "06-3": [counts, lambda values, bins: counts(values, bins, "right")],
    "06-4": [group_sums],
    "07-3": [one_an_element, lambda dy: one_an_element(dy.contiguous())],
    "07-4": [lambda dy: one_an_element(dy, copies=512, block=1024)],
    "08-4": [weighted, lambda *case: weighted(*case, kind="stored", block=2048)],
    "09-3": [column_sums, lambda dy: column_sums(dy, dtype=torch.float64, rows=128).float()],
    "09-4": [partial_sums, lambda dy: partial_sums(dy, programs=1, rows=512)],
    "10-3": [scale_backward, lambda *case: scale_backward(*case, programs=2)],
    "10-4": [finished],
    "11-2": [lambda listing: np.int64(ch11.cycles(listing))],
    "11-3": [unpacked],
    "11-4": [silu_backward],
    "12-4": [total, lambda x: total(x, parts=33)],
}

WRONG = {
    "01-3": [(spline_slope_by_jvp, "got autograd"), (spline_slope_by_rows, "got autograd")],
    "02-2": [
        (poles_by_signs, "right but for rounding; zeros are compared to 1e-6"),
        (lambda *case: [z for z in ch02.poles(*case)] if case[0][0] != 0 else ["none"], "got 'none' among them"),
        (
            lambda b, low, high: sorted(
                z.real for z in np.roots([*b[::-1], 1.0]) if abs(z.imag) < 0.01 and low <= z.real <= high
            ),
            r"in \[-3, 3\]: expected \[\], got \[1.0, 1.0\]",
        ),
    ],
    "02-3": [(std_without_normalising, "the density is not normalised")],
    "03-1": [
        (ch03.changed(2, lambda v, *_: v * 1e9 / 2**30), "expected .*, got"),
        (lambda *case: ch03.limits(*case)[::-1], "right numbers in another order"),
    ],
    "03-2": [
        (by_autograd, "got autograd"),
        (lambda *case: ch03.derivatives(*(t.float() for t in case)), "computed in float32, where float64 was given"),
    ],
    "03-4": [
        (slope_by_autograd, "expected a difference of values, got autograd"),
        (ch03.shifted({0: 1.0, -1: -1.0}, 1e-6), "these are slopes to the left"),
    ],
    "04-1": [(lambda *case: ch04.lane(*case)[::-1], "right numbers in another order")],
    "04-3": [
        (lambda x: silu(x, "without mask"), "stores outside of y_ptr.*Nothing was written.*a missing mask"),
        (lambda x: silu(x, like=True), "empty_like"),
        (lambda x: silu(x.contiguous()) if x.stride(1) > 1 else silu(x), "without a copy of x"),
        (lambda x: silu(x, "in bfloat16"), "arithmetic in bfloat16.*Convert first"),
        (
            lambda x: torch.empty(x.shape[::-1], dtype=x.dtype).T.copy_(silu(x)),
            "expected a contiguous tensor, got strides",
        ),
    ],
    "04-4": [
        (copied(lambda y: torch.nn.functional.gelu(y, approximate="tanh")), "elements stored by a kernel, got 0"),
        (lambda x: gelu(x, "store without mask"), "stores outside of y_ptr, at index 21.*a missing mask"),
        (lambda x: gelu(x, "short"), "memory from `empty` that nothing wrote"),
        (lambda x: gelu(x, "a global"), f"would not compile.*{CONSTANT}.*write SLOPE = tl.constexpr"),
        (lambda x: gelu(x, "another type"), "would not compile.*Loop-carried variable total"),
        (lambda x: gelu(x, "a tensor for a scalar"), "would not compile.*a tensor stands where a scalar must"),
        (lambda x: gelu(x, "overflow"), "a NaN was computed"),
    ],
    "05-1": [
        (
            lambda first, stride, size: len({(first + i * stride) // 32 for i in range(32)}),
            "first=28, stride=64, size=8: expected 64, got 32",
        )
    ],
    "05-2": [(lambda *case: ch05.programs(case[0] * 1e-9, *case[1:]), "with no other factor")],
    "05-4": [
        (
            copied(lambda y: y.T.contiguous()),
            "the transpose of 128 × 256: expected 32,768 elements stored by a kernel, got 0",
        ),
        (decorated(lambda x: x.T.contiguous()), "expected Triton kernels that read all 32,768 elements"),
    ],
    "06-1": [(lambda *case: (ch06.limit(*case)[0], "Bytes"), "expected 'bytes', got 'Bytes'")],
    "06-2": [
        (lambda *case: index_sums(*case, kind="without mask"), "loads outside of index_ptr.*a missing mask"),
        (lambda *case: index_sums(*case, kind="race"), "a race at index 0 of out_ptr|2 of 3 are wrong"),
        (decorated(lambda *case: ch06.exact_sums(*case).to(torch.bfloat16)), "read all 3,001 elements, got 1"),
    ],
    "06-3": [
        (lambda *case: counts(*case, kind="atomic without mask"), "adds atomically outside of out_ptr.*a missing mask"),
        (lambda *case: counts(*case, kind="zeros counted"), "masked positions were counted as zeros"),
        (lambda *case: counts(*case, block=512, kind="right"), "expected at most 3,750 atomic additions"),
        (decorated(ch06.counts), "read all 60,000 elements, got 1"),
        (copied(ch06.counts), "expected sums from the kernels.*PyTorch adds"),
        (lambda *case: counts(*case, kind="race"), "a race at index .* of out_ptr.*addition is lost"),
    ],
    "06-4": [(copied(ch06.sums), "expected sums from the kernels.*PyTorch adds")],
    "07-2": [
        (gradients_by_autograd, "got autograd"),
        (signed_powers, r"Q holds \|x\|\^j, not x\^j"),
        (sign_of_zero, r"sign\(0\): at b_j = 0 the convention is \+1"),
    ],
    "07-3": [
        (lambda dy: one_an_element(dy, "without mask"), "loads outside of dy_ptr.*a missing mask"),
        (lambda dy: one_an_element(dy, "adds without mask"), "adds atomically outside of out_ptr.*adding 0 writes too"),
        (lambda dy: one_an_element(dy, "row stride alone"), "the stride from one column to the next was taken for 1"),
        (lambda dy: one_an_element(dy, "race"), "a race at index 0 of out_ptr.*addition is lost"),
        (lambda dy: column_sums(dy, "race", rows=1), "a race at index 0 of out_ptr.*addition is lost"),
        (lambda dy: column_sums(dy, dtype=torch.bfloat16).float(), "an atomic addition in 16 bits.*float32"),
    ],
    "07-4": [
        (lambda dy: one_an_element(dy, "no modulo", copies=2), "adds atomically outside of out_ptr.*a missing mask"),
        (lambda dy: one_an_element(dy, copies=32, block=1024), "added to 256 addresses"),
        (Table(), "a second call on the first input.*added twice"),
    ],
    "08-4": [
        (lambda *case: weighted(*case, kind="atomic without mask"), "adds atomically outside of out_ptr, at index 7"),
        (lambda *case: weighted(*case, kind="without other"), "a NaN was read: .*a missing `other`"),
        (lambda *case: weighted(*case, kind="race"), "a race at index .* of out_ptr.*addition is lost"),
        (lambda *case: weighted(*case, block=512), "expected at most 3,750 atomic additions, got 7,552"),
    ],
    "09-3": [
        (lambda dy: column_sums(dy, "without column mask"), "outside of .*_ptr, at index .*a missing mask"),
        (
            lambda dy: column_sums(dy, "adds without mask"),
            "adds atomically outside of out_ptr, at index 8.*a missing mask",
        ),
        (lambda dy: column_sums(dy, "narrow sum"), "a sum in bfloat16.*Convert first"),
        (lambda dy: column_sums(dy, "race", rows=64), "a race at index 0 of out_ptr.*addition is lost"),
        (copied(lambda y: y.float().sum(0)), "expected sums from the kernels, 6,144 numbers or fewer"),
    ],
    "09-4": [
        (
            lambda dy: partial_sums(dy, programs=300),
            "expected sums from the kernels, 2,112 numbers or fewer, got 2,400",
        ),
        (lambda dy: column_sums(dy, "race", rows=512), "a race at index 0 of out_ptr.*addition is lost"),
    ],
    "10-3": [
        (
            lambda *case: scale_backward(*case, kind="race", dtype=torch.float64),
            "a race at index 0 of sums_ptr.*is lost",
        ),
        (scale_read_twice, "elements of dy read .* expected each once, 3,840, got 7,680"),
        (lambda *case: scale_backward(*case, kind="without mask"), "stores outside of dx_ptr.*a missing mask"),
        (
            lambda dy, x, scale: (scale_backward(dy, x, scale)[0], (dy * x).sum(0)),
            "dy for 60 rows of 64: expected one reading, by a kernel; PyTorch's mul reads it as well",
        ),
        (copied(lambda dy, x, scale: (dy * scale, (dy * x).sum(0))), "elements of x read|PyTorch's mul reads it"),
    ],
    "10-4": [
        (lambda x: finished(x, "without barrier"), r"expected tl.debug_barrier\(\)"),
        (lambda x: finished(x, "release"), "a race at index .*a missing fence"),
        (lambda x: total(x, "race", dtype=torch.float64), "a race at index 0 of out_ptr.*addition is lost"),
        (lambda x: total(x), "expected one atomic addition a program"),
        (decorated(lambda x: x.sum()), "expected more than one program|read all 100,000 elements"),
    ],
    "11-2": [
        (lambda listing: [ch11.cycles(listing[: k + 1]) for k in range(len(listing))], "expected a number"),
        (lambda listing: ch11.cycles(listing) / len(listing), r"expected \d+, got \d"),
    ],
    "11-3": [
        (lambda x: unpacked(x, "mask of 32 bits"), "out of range for type int32.*-65536"),
        (lambda x: unpacked(x, "without mask"), "stores outside of out_ptr.*a missing mask"),
        (lambda x: unpacked(x, "by conversion"), "a conversion instead of bits"),
    ],
    "11-4": [
        (lambda *case: silu_backward(*case, kind="in bfloat16"), "arithmetic in bfloat16.*Convert first"),
        (lambda *case: silu_backward(*case, kind="by e^x"), "a NaN was computed"),
        (lambda *case: silu_backward(*case, kind="without mask"), "stores outside of dx_ptr, at index 21"),
        (lambda *case: silu_backward(*case, kind="dy twice"), "dy is read twice"),
    ],
    "12-2": [(lost_by_float64, "got float64 from _to_copy"), (lost_by_numpy, "got a tensor made elsewhere|float64")],
    "12-3": [(decorated(lambda dy: dy.double().sum(0).float()), "read all 4,000 elements, got 1")],
    "12-4": [
        (lambda x: total(x, "race", dtype=torch.float64), "a race at index 0 of out_ptr.*addition is lost"),
        (lambda x: total(x, "one", parts=1), "expected two launches .*, got 1"),
        (lambda x: total(x, parts=1), "expected several programs in the first launch, got 1"),
        (ch10.sum_in_one_launch_solution, "expected no atomic additions"),
        (lambda x: total(total(x).expand(3) / 3), "expected two launches .*, got|read all 65,537"),
    ],
    "13-4": [(by_checkpoint, "not by torch.utils.checkpoint")],
    "14-3": [
        (add_first, "elements of x read .* got 0|PyTorch's add reads it as well"),
        (add_and_norm_twice, "expected one kernel, got 2 launches"),
    ],
    "15-3": [
        (sorted_first, "expected no sorting|expected atomic additions"),
        (from_32_on, "3,200 weights on 100 addresses: expected no sorting"),
        (
            lambda i, w, n: sorted_first(i, w, n, lambda index: index.sort()),
            "expected no sorting|expected atomic additions",
        ),
        (copied(lambda w, *rest: w), "expected"),
    ],
}
