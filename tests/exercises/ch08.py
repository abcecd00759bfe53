"""Answers to the exercises of chapter 08: right ones, and wrong ones each with what its check must say."""

import torch
import triton
import triton.language as tl
from mistakes import Accumulates


def share(before, after, factor):
    return (after / before - 1) / (factor - 1)


def stay(inside, multiprocessors, warps, ms, instructions, ghz):
    microseconds = 1e3 * inside * multiprocessors * ms / warps
    return microseconds, 1e3 * microseconds * ghz / instructions


def row_sums(row, rows):
    return (rows * row.double()).float()


@triton.jit
def add_kernel(x_ptr, out_ptr, count, columns, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=0.0)
    tl.atomic_add(out_ptr + at % columns, x * TIMES, mask=at < count)


def launched(x, columns, times=1):
    out = torch.zeros(columns, device=x.device)
    add_kernel[(triton.cdiv(x.numel(), 4096),)](x, out, x.numel(), columns, TIMES=times, BLOCK=4096)
    return out


def weighted(values, weights, bins):
    return torch.zeros(bins, device=values.device).index_add_(0, values.long(), weights)


@triton.jit
def one_by_one_kernel(
    values_ptr, weights_ptr, out_ptr, count, BLOCK: tl.constexpr, OTHER: tl.constexpr, ATOMIC: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values_ptr + at, mask=at < count, other=0)
    if OTHER:
        weight = tl.load(weights_ptr + at, mask=at < count, other=0.0)
    else:
        weight = tl.load(weights_ptr + at, mask=at < count)
    if ATOMIC:
        tl.atomic_add(out_ptr + value, weight)
    else:
        tl.store(out_ptr + value, tl.load(out_ptr + value) + weight, mask=at < count)


def one_by_one(values, weights, bins, OTHER=True, ATOMIC=True):
    out = torch.zeros(bins, device=values.device)
    one_by_one_kernel[(triton.cdiv(len(values), 8192),)](
        values, weights, out, len(values), BLOCK=8192, OTHER=OTHER, ATOMIC=ATOMIC
    )
    return out


RIGHT = {
    "08-1": share,
    "08-2": stay,
}

WRONG = {
    "08-1": [
        (lambda before, after, factor: after / before - 1, "not divided by factor - 1"),
        (lambda before, after, factor: (after / before - 1) / (factor or float("nan")), "factor - 1 times the share"),
        (lambda before, after, factor: (1 - after / before) / (factor - 1), "the sign"),
        (lambda before, after, factor: 1 - after / before, "the time saved"),
        (lambda *_: None, "expected a number, got None"),
    ],
    "08-2": [
        (lambda *case: stay(*case)[0], "expected a tuple"),
        (lambda *case: (stay(*case)[0] / 1e3, stay(*case)[1]), "milliseconds, not microseconds"),
        (lambda inside, sms, *rest: stay(inside, 1, *rest), "those of all multiprocessors"),
        (lambda *case: (stay(*case)[0], case[4] * stay(*case)[1]), "all instructions of the warp share"),
        (lambda *case: (stay(*case)[0], stay(*case)[1] / 1e3), "a thousand cycles in a microsecond"),
    ],
    "08-3": [
        (lambda row, rows: None, "expected a tensor, got NoneType"),
        (lambda row, rows: row.clone(), "added once"),
        (lambda row, rows: 2 * row_sums(row, rows), "added twice"),
        (lambda row, rows: row_sums(row, rows).double(), "expected dtype torch.float32"),
        (lambda row, rows: torch.as_strided(row, row.shape, (1,)) * float(rows), "strides were taken for those"),
        (Accumulates(row_sums), "a second call.*not zeroed"),
        (row_sums, "no kernel added atomically"),
        (lambda row, rows: launched(row.contiguous(), len(row), times=rows), "removed the additions too"),
        (lambda row, rows: launched(row.repeat(rows), len(row)), "the bytes are back"),
    ],
    "08-4": [
        (weighted, "expected a Triton kernel, got none"),
        (lambda *case: one_by_one(*case, OTHER=False), "a missing mask, a missing `other`"),
        (lambda *case: one_by_one(*case, ATOMIC=False), "weights of 5000 elements in 7 bins.*stored, not added"),
        (one_by_one, "expected at most 3,750 atomic additions, got 65,536"),
        (lambda values, weights, bins: torch.bincount(values, minlength=bins).float(), "weights were not added"),
        (lambda *case: 2 * weighted(*case), "added twice"),
        (lambda *case: weighted(*case).double(), "expected dtype torch.float32"),
        (lambda values, weights, bins: weighted(values, weights, bins + 1), "expected shape"),
        (Accumulates(weighted), "a second call.*not zeroed"),
    ],
}

# Right for what the text shows, or for one size.
FIXED = {
    "08-1": (lambda *case: 0.001, "with a factor of 8: expected 0.1, got 0.001"),
    "08-2": (
        lambda *case: stay(64.0, 132, 302592, 77.56, 256, 1.973),
        "12 warps on each of 132.*expected .*, got 2,165",
    ),
    "08-3": (lambda row, rows: 37 * row, "sums of 1000 rows of 7.*wrong; the first at index"),
    "08-4": (lambda *case: weighted(*case)[:7], r"expected shape \[64\], got \[7\]"),
}
