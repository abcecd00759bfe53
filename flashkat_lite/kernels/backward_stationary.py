"""Rung 3, the stationary backward: a lane keeps its sums in registers, and nothing is added atomically.

A lane owns VECTOR neighbouring columns of one group and walks down the rows, as in the forward: the grid's lanes cover
a whole number of rows, so a lane's group never changes, and neither do its coefficients and its m+1+n partial sums. A
second, small launch adds the lanes' partial sums in a fixed order: the result is the same bits every time.

Bytes: 3 · rows · D, and 8 (m+1+n) for each lane of the grid. Atomic adds: none.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED, as_gradient, as_rows, group_count, multiprocessors, table_stride, vector_width
from .polynomial import gradients, load_coefficients, magnitudes

CHUNK = 32  # steps of a partial sum that starts at zero


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """COUNT tensors of zeros, [BLOCK] float32."""
    result = ()
    for _ in tl.static_range(COUNT):
        result = result + (tl.zeros([BLOCK], tl.float32),)
    return result


@triton.jit
def add(sums, parts):
    """sums[i] + parts[i] for each i."""
    result = ()
    for i in tl.static_range(len(sums)):
        result = result + (sums[i] + parts[i],)
    return result


@triton.jit
def add_moments(sums, term, x, square):
    """sums[i] += Σ term x^i over a lane's vector, two powers a step: the odd one rides in a multiply-add."""
    result = ()
    for i in tl.static_range(0, len(sums), 2):
        result = result + (sums[i] + tl.sum(term, 1),)
        if i + 1 < len(sums):
            result = result + (sums[i + 1] + tl.sum(term * x, 1),)
        if i + 2 < len(sums):
            term = term * square
    return result


@triton.jit(do_not_specialize=["rows", "step", "vectors_per_row", "vectors_per_group", "dy_stride", "x_stride"])
def backward_stationary_kernel(
    dy_ptr, x_ptr, a_ptr, b_ptr, dx_ptr, partial_ptr,
    rows, step, vectors_per_row, vectors_per_group,
    dy_stride, x_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx [rows, columns] and partial sums [M1 + N, lanes], UNROLL times `step` rows at a time.

    Strides of rows are in vectors, those of tables in elements.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = lane % vectors_per_row
    group = column // vectors_per_group
    a = load_coefficients((a_ptr + group * a_stride)[:, None], M1)
    b = magnitudes(load_coefficients((b_ptr + group * b_stride)[:, None], N))
    sums_a = zeros(M1, BLOCK)
    sums_b = zeros(N, BLOCK)
    within = tl.arange(0, VECTOR)[None, :]
    for chunk in range(0, rows, step * CHUNK):
        # A sum that starts at zero for each chunk rounds on small numbers: errors grow with √CHUNK, not with √rows.
        part_a = zeros(M1, BLOCK)
        part_b = zeros(N, BLOCK)
        last = tl.minimum(rows, chunk + step * CHUNK)
        for first in tl.range(chunk, last, step * UNROLL, num_stages=STAGES):
            for k in tl.static_range(UNROLL):
                row = tl.cast(first, tl.int64) + k * step + lane // vectors_per_row
                inside = (row < rows)[:, None]
                x_ptrs = x_ptr + (row * x_stride + column)[:, None] * VECTOR + within
                dy_ptrs = dy_ptr + (row * dy_stride + column)[:, None] * VECTOR + within
                x = tl.load(x_ptrs, mask=inside, other=0.0).to(tl.float32)
                dy = tl.load(dy_ptrs, mask=inside, other=0.0).to(tl.float32)

                dx, u, w = gradients(dy, x, a, b)
                dx_ptrs = dx_ptr + (row * vectors_per_row + column)[:, None] * VECTOR + within
                tl.store(dx_ptrs, dx, mask=inside)

                t = tl.abs(x)
                part_a = add_moments(part_a, u, x, x * x)
                part_b = add_moments(part_b, w * t, t, x * x)
        sums_a = add(sums_a, part_a)
        sums_b = add(sums_b, part_b)
    lanes = tl.num_programs(0) * BLOCK
    for i in tl.static_range(M1):
        tl.store(partial_ptr + i * lanes + lane, sums_a[i])
    for j in tl.static_range(N):
        tl.store(partial_ptr + (M1 + j) * lanes + lane, sums_b[j])


@triton.jit(do_not_specialize=["step", "vectors_per_row", "vectors_per_group"])
def sum_partials_kernel(
    partial_ptr, b_ptr, da_ptr, db_ptr,
    step, vectors_per_row, vectors_per_group, b_stride,
    M1: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """da [G, M1] and db [G, N] from the partial sums, in a fixed order: a program for each group and coefficient."""
    group = tl.program_id(0)
    i = tl.program_id(1)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first_row in range(0, step, ROWS):
        row = first_row + tl.arange(0, ROWS)[:, None]
        for first in range(0, vectors_per_group, COLUMNS):
            column = first + tl.arange(0, COLUMNS)[None, :]
            inside = (row < step) & (column < vectors_per_group)
            lane = row * vectors_per_row + group * vectors_per_group + column
            total += tl.load(partial_ptr + i * step * vectors_per_row + lane, mask=inside, other=0.0)
    result = tl.sum(total)
    if i < M1:
        tl.store(da_ptr + group * M1 + i, result)
    else:
        j = i - M1
        b = tl.load(b_ptr + group * b_stride + j).to(tl.float32)
        tl.store(db_ptr + group * N + j, tl.where(b < 0, result, -result))


def launch_size(x: Tensor) -> tuple[int, int, int, int]:
    """(lanes in a program, most programs, UNROLL, STAGES), measured on an H200.

    float32 waits for memory: few programs that all fit at once, each with many loads under way. With 16 bits
    instructions are the scarce thing: two rows at a time hide their latency.
    """
    if INTERPRETED:
        return 4096, 1, 1, 1
    if x.element_size() == 4:
        return 128, 4 * multiprocessors(x.device), 1, 4
    return 128, 8 * multiprocessors(x.device), 2, 3


def backward_stationary(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dnumerator, ddenominator). grad_output and x: [..., D] in float32, bfloat16 or float16; tables [G or 1, ·].

    dx is contiguous, in x's dtype. Sums are float32, in an order that depends on shape and device alone, and come back
    in the tables' dtypes.
    """
    groups = group_count(numerator, denominator)
    m1, n = numerator.shape[1], denominator.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return dx, torch.zeros_like(numerator), torch.zeros_like(denominator)
    dy, x = as_rows(grad_output), as_rows(x)
    rows, columns = x.shape
    width = columns // groups
    vector = vector_width(width, dy, x)
    vectors_per_row, vectors_per_group = columns // vector, width // vector
    block, most_programs, unroll, stages = launch_size(x)
    # The fewest programs whose lanes cover whole rows; the grid is a multiple of it.
    unit = vectors_per_row // math.gcd(vectors_per_row, block)
    programs = max(1, min(most_programs, triton.cdiv(rows * vectors_per_row, block)) // unit) * unit
    lanes = programs * block
    step = lanes // vectors_per_row
    partial = torch.empty(m1 + n, lanes, dtype=torch.float32, device=x.device)
    backward_stationary_kernel[(programs,)](
        dy, x, numerator, denominator, dx, partial,
        rows, step, vectors_per_row, vectors_per_group,
        dy.stride(0) // vector, x.stride(0) // vector, table_stride(numerator), table_stride(denominator),
        M1=m1, N=n, VECTOR=vector, BLOCK=block, CHUNK=CHUNK, UNROLL=unroll, STAGES=stages,
        num_warps=4,
    )  # fmt: skip
    da = torch.empty(groups, m1, dtype=torch.float32, device=x.device)
    db = torch.empty(groups, n, dtype=torch.float32, device=x.device)
    wide = min(triton.next_power_of_2(vectors_per_group), 128)
    sum_partials_kernel[(groups, m1 + n)](
        partial, denominator, da, db,
        step, vectors_per_row, vectors_per_group, table_stride(denominator),
        M1=m1, N=n, ROWS=4096 // wide, COLUMNS=wide,
        num_warps=8,
    )  # fmt: skip
    return dx, as_gradient(da, numerator), as_gradient(db, denominator)
