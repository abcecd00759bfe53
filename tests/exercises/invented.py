"""Answers in unusual styles, and wrong ones that break one rule of an exercise or make one beginner's mistake."""

import math

import ch01
import ch02
import ch03
import ch05
import ch11
import numpy as np
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from flashkat_lite.lab.splines import basis

# Without kernels


def slope_by_differences(x, knots, degree, h=1e-6):
    return (basis(x + h, knots, degree) - basis(x - h, knots, degree)) / (2 * h)


def slope_one_by_one(x, knots, degree):
    return torch.cat([ch01.slope(number[None], knots, degree) for number in x])


def subdivided(c, intervals):
    """By the rule of cubic B-splines on half the grid: no point is evaluated."""
    fine = torch.empty(len(c), 2 * intervals + 3, dtype=c.dtype)
    fine[:, 0::2] = (c[:, :-1] + c[:, 1:]) / 2
    fine[:, 1::2] = (c[:, :-2] + 6 * c[:, 1:-1] + c[:, 2:]) / 8
    return fine


def uncounted(x, low, high, c):
    """Four weights for each number, in NumPy."""
    x, c, intervals = x.numpy(), c.numpy(), len(c) - 3
    u = (x - low) * intervals / (high - low)
    cell = u.astype(int).clip(0, intervals - 1)
    f = u - cell
    weights = (1 - f) ** 3 / 6, (3 * f**3 - 6 * f**2 + 4) / 6, (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6, f**3 / 6
    return sum(w * c[cell + k] for k, w in enumerate(weights))


def poles_of_a_matrix(b, low, high):
    while b and b[-1] == 0:
        b = b[:-1]
    zeros = np.linalg.eigvals(np.polynomial.polynomial.polycompanion([1.0, *b])) if b else []
    return sorted(float(z.real) for z in zeros if abs(z.imag) < 1e-9 and low <= z.real <= high)


def std_from(f, features_in, low=-8.0, power=2, square_first=True):
    z = torch.linspace(low, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(z**power) / 2) if power == 2 else torch.exp(-(z**2))
    density = density * (z[1] - z[0]) / math.sqrt(2 * math.pi if power == 2 else math.pi)
    moment = (f(z) ** 2 * density).sum() if square_first else (f(z) * density).sum() ** 2
    return (features_in * moment.item()) ** -0.5


# Kernels


@triton.jit
def silu_kernel(x_ptr, y_ptr, count, columns, row_stride, column_stride, BLOCK: tl.constexpr, KIND: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at // columns * row_stride + at % columns * column_stride, mask=at < count, other=0.0)
    if KIND == "float64":
        x = x.to(tl.float64)
    else:
        x = x.to(tl.float32)
    if KIND == "libdevice":
        y = x * 0.5 * (1 + libdevice.tanh(0.5 * x))
    else:
        y = x / (1 + tl.exp(-x))
    tl.store(y_ptr + at, y, mask=at < count)


chosen_kernel = triton.autotune([triton.Config({"BLOCK": 128}), triton.Config({"BLOCK": 256})], ["count"])(silu_kernel)


def silu(x, kind="right", block=256, grid=lambda programs: (programs,), y=None):
    y = torch.empty(x.shape, dtype=x.dtype) if y is None else y
    programs = grid(x.numel() / block if grid is float_grid else triton.cdiv(x.numel(), block))
    silu_kernel[programs](x, y, x.numel(), x.shape[1], *x.stride(), BLOCK=block, KIND=kind)
    return y


def float_grid(programs):
    return (programs,)


def silu_chosen(x):
    y = torch.empty(x.shape, dtype=x.dtype)
    grid = lambda meta: [triton.cdiv(x.numel(), meta["BLOCK"])]  # noqa: E731
    chosen_kernel[grid](x, y, x.numel(), x.shape[1], *x.stride(), KIND="right")
    return y


@triton.jit
def both(a, b):
    return a + b


@triton.jit
def groups_kernel(x_ptr, out_ptr, rows, columns, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    x = tl.load(x_ptr + row * columns + tl.program_id(1) * width + column, mask=inside, other=0.0)
    tl.atomic_add(out_ptr + tl.program_id(1), tl.reduce(tl.ravel(x), 0, both))


def group_sums(x, groups):
    out, width = torch.zeros(groups), x.shape[1] // groups
    grid = triton.cdiv(len(x), 32), groups
    groups_kernel[grid](x, out, *x.shape, width, ROWS=32, BLOCK=triton.next_power_of_2(width))
    return out


@triton.jit
def narrow_kernel(totals_ptr, out_ptr, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(totals_ptr + at, mask=at < size, other=0.0), mask=at < size)


@triton.jit
def add_kernel(terms_ptr, index_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + at, mask=at < count, other=0)
    terms = tl.load(terms_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    tl.atomic_add(out_ptr + index, terms, mask=at < count)


def index_sums(terms, index, size, parts=1):
    """Rounded by a kernel, as it is stored; with parts, each part's sums too."""
    totals, out = torch.zeros(parts, size), torch.empty(parts, size, dtype=torch.bfloat16)
    step = triton.cdiv(len(terms), parts)
    for part in range(parts):
        some = slice(part * step, (part + 1) * step)
        count = len(terms[some])
        if count:
            add_kernel[(triton.cdiv(count, 1024),)](terms[some], index[some], totals[part], count, BLOCK=1024)
        narrow_kernel[(1,)](totals[part], out[part], size, BLOCK=64)
    return out[0] if parts == 1 else out.sum(0)


@triton.jit
def histogram_kernel(values_ptr, out_ptr, count, bins, BLOCK: tl.constexpr, BINS: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(values_ptr + at, mask=at < count, other=-1), BINS)
    tl.atomic_add(out_ptr + tl.arange(0, BINS), counts, mask=tl.arange(0, BINS) < bins)


def histogram(values, bins):
    out = torch.zeros(bins, dtype=torch.int32)
    wide = triton.next_power_of_2(bins)
    histogram_kernel[(triton.cdiv(len(values), 2048),)](values, out, len(values), bins, BLOCK=2048, BINS=wide)
    return out


RIGHT = {
    "01-4": [subdivided],
    "02-2": [poles_of_a_matrix],
    "02-3": [std_from],
    "04-3": [silu_chosen, lambda x: silu(x, "float64", grid=lambda programs: [programs])],
    "06-2": [index_sums],
    "11-2": [lambda listing: (ch11.cycles(listing), listing.clear())[0], ch11.cycles],
    "06-4": [group_sums],
}

WRONG = {
    "01-2": [(lambda i, o, g, k: (ch01.count(i, o, g, k)[0], ch01.count(i, o, g, k, add=o)[1]), "expected .*, got")],
    "01-3": [
        (slope_by_differences, "a quotient of differences near x, where the formula is exact"),
        (slope_one_by_one, "a loop over x"),
    ],
    "01-5": [(uncounted, "0.0 FLOPs an element were counted.*PyTorch's operations alone")],
    "02-2": [
        (lambda *case: [round(z, 3) for z in ch02.poles(*case)], "right but for rounding; zeros are compared to 1e-6"),
        (
            lambda b, low, high: [z.real for z in sorted(np.roots([*b[::-1], 1.0]), key=lambda z: z.real)
                                  if z.imag == 0 and low <= z.real <= high],
            "a zero closer than 1e-9 to the real line counts as real",
        ),
        (lambda *case: [], r"expected \[0\.5\], got \[\]\.$"),
    ],
    "02-3": [
        (lambda f, n: std_from(f, n, low=0.0), "SiLU, 512 inputs: .*z < 0 counts too"),
        (lambda f, n: std_from(f, n, power=1), "the density of z is exp"),
        (lambda f, n: std_from(f, n, square_first=False), "the square of the mean, not the mean of the square"),
        (lambda f, n: 1 / ch02.std(f, n), "upside down"),
    ],
    "02-4": [(lambda: [np.array(part)[None] for part in ch02.by_least_squares()], r"got ndarray of shape \[1, 6\]")],
    "03-2": [
        (
            lambda *case: ch03.derivatives(*case, sign=lambda b: torch.where(b > 0, 1.0, -1.0)),
            r"sign\(0\) is \+1, so b < 0 turns the sign",
        )
    ],
    "04-3": [
        (lambda x: silu(x, y=x), "x was changed: write the result into memory of its own"),
        (lambda x: silu(x.float()).to(x.dtype), "without a copy of x: no kernel read x"),
        (lambda x: silu(x, grid=lambda programs: (max(1, programs - 1),), y=torch.zeros(x.shape, dtype=x.dtype)),
         "no kernel read x_ptr past index 2,047, of 2,072 elements: round the number of programs up"),
        (lambda x: silu(x, block=48), "blocks are powers of two"),
        (lambda x: silu(x, "libdevice"), "one of libdevice, which the interpreter does not have"),
        (lambda x: silu(x, grid=lambda programs: programs), r"the grid of silu_kernel is 1: expected a tuple.*comma"),
        (lambda x: silu(x, grid=float_grid), r"the grid of silu_kernel is .*: expected integers.*triton.cdiv"),
    ],
    "05-1": [
        (
            lambda first, stride, size: len(
                {(first + i * stride + k) // 32 for i in range(32) for k in (0, size - 1)}
            ),
            "sectors between them move too",
        )
    ],
    "05-2": [(lambda rate, ns, warps, each: int(rate * ns / (32 * warps * each)) + 1, "expected 1,000, got 1,001")],
    "05-3": [
        (lambda words: len(set(words)) / len({w % 32 for w in words}), "the mean over the banks in use"),
        (lambda words: ch05.ways(words) if len(set(words)) != 5 else 2, "four words of one bank.*expected 4, got 2"),
    ],
    "12-2": [
        (
            lambda a, b: (a + b, (a.to(torch.complex128) + b - (a + b)).real.float()),
            "got float64 from|expected float32 throughout",
        )
    ],
    "06-2": [(lambda *case: index_sums(*case, parts=2), "more than one rounding to bfloat16")],
    "06-3": [(histogram, r"a histogram of -1 in 2 bins: a GPU promises nothing of numbers outside of 0 … 1")],
}  # fmt: skip
