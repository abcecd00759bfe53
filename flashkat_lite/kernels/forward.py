"""The forward pass: y = P(x)/Q(x).

Bytes: each element read once and written once, so the limit is a copy of the same size. A lane owns VECTOR
neighbouring columns of one group and walks down the rows: the grid's lanes cover a whole number of rows, so its
column, and with it its group, never changes, and its coefficients stay in registers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED, as_rows, group_count, multiprocessors, table_stride, vector_width
from .polynomial import horner, load_coefficients, magnitudes, reciprocal


@triton.jit(do_not_specialize=["rows", "step", "vectors_per_row", "vectors_per_group", "x_stride"])
def forward_kernel(
    x_ptr, a_ptr, b_ptr, y_ptr,
    rows, step, vectors_per_row, vectors_per_group,
    x_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`step` rows at a time; strides of rows in vectors, of coefficient tables in elements."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = lane % vectors_per_row
    group = column // vectors_per_group
    a = load_coefficients((a_ptr + group * a_stride)[:, None], M1)
    b = magnitudes(load_coefficients((b_ptr + group * b_stride)[:, None], N))
    within = tl.arange(0, VECTOR)[None, :]
    for first in range(0, rows, step):
        row = tl.cast(first, tl.int64) + lane // vectors_per_row
        inside = (row < rows)[:, None]
        x = tl.load(x_ptr + (row * x_stride + column)[:, None] * VECTOR + within, mask=inside, other=0.0)
        x = x.to(tl.float32)
        t = tl.abs(x)
        y = horner(x, a) * reciprocal(1.0 + t * horner(t, b))
        tl.store(y_ptr + (row * vectors_per_row + column)[:, None] * VECTOR + within, y, mask=inside)


def launch_size(x: Tensor) -> tuple[int, int]:
    """(lanes in a program, most programs).

    Measured on an H200. float32 waits for memory alone: a lane that does one vector and leaves is best. With 16 bits,
    twice the elements ride in a vector, and reading the coefficients once for several of them is worth a loop.
    Lanes are numbered in 32 bits, which bounds float32's programs.
    """
    if INTERPRETED:
        return 4096, 1
    return (128, 2**23) if x.element_size() == 4 else (256, 64 * multiprocessors(x.device))


def forward(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """F(x) for x [..., D] in float32, bfloat16 or float16; tables [G or 1, m+1] and [G or 1, n]. Contiguous result."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return y
    x = as_rows(x)
    rows, columns = x.shape
    width = columns // group_count(numerator, denominator)
    vector = vector_width(width, x)
    vectors_per_row = columns // vector
    block, most_programs = launch_size(x)
    # The fewest programs whose lanes cover whole rows; the grid is a multiple of it.
    unit = vectors_per_row // math.gcd(vectors_per_row, block)
    passes = triton.cdiv(triton.cdiv(rows * vectors_per_row, block), most_programs)
    programs = triton.cdiv(triton.cdiv(rows * vectors_per_row, block * passes), unit) * unit
    forward_kernel[(programs,)](
        x, numerator, denominator, y,
        rows, programs * block // vectors_per_row, vectors_per_row, width // vector,
        x.stride(0) // vector, table_stride(numerator), table_stride(denominator),
        M1=numerator.shape[1], N=denominator.shape[1], VECTOR=vector, BLOCK=block,
        num_warps=4 if block == 128 else 8,
    )  # fmt: skip
    return y
