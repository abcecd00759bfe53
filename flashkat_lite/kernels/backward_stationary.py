"""Rung 3, the stationary backward: a lane keeps its sums in registers, and nothing is added atomically.

A lane owns VECTOR neighbouring columns of one group and walks down the rows, `step` at a time: the grid's lanes cover
a whole number of rows, so a lane's group never changes, and neither do its coefficients and its m+1+n partial sums. A
second, small launch adds the lanes' partial sums in a fixed order: the result is the same bits every time.

Bytes: 3 · rows · D, and 8 (m+1+n) for each lane of the grid. Atomic adds: none.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import (
    INTERPRETED,
    Launch,
    as_gradient,
    as_rows,
    capability,
    group_count,
    multiprocessors,
    remembered,
    sums_like,
    table_stride,
    vector_width,
    whole_rows,
)
from .polynomial import load_coefficients, magnitudes, reciprocal, widen, with_sign, with_slope

CHUNK = 32  # passes whose sums start at zero, and then join the totals
PARTIAL_BYTES = 8_000_000  # of partial sums, at most


@triton.jit
def elements(x):
    """[BLOCK, VECTOR] as VECTOR tensors [BLOCK], even positions before odd ones at each halving."""
    if x.shape[1] == 1:
        return (tl.reshape(x, [x.shape[0]]),)
    else:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        return elements(even) + elements(odd)


@triton.jit
def vectors(parts):
    """The inverse of `elements`."""
    if len(parts) == 1:
        return tl.reshape(parts[0], [parts[0].shape[0], 1])
    else:
        half: tl.constexpr = len(parts) // 2
        pairs = tl.join(vectors(parts[:half]), vectors(parts[half:]))
        return tl.reshape(pairs, [parts[0].shape[0], len(parts)])


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
def add_moments(sums, term, x, square, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """sums[i] + term x^(FIRST + i) for COUNT powers, or the terms alone where sums is ().

    One multiplication for two powers: the odd one rides in a multiply-add, and so does the last.
    """
    result = ()
    for power in tl.static_range(FIRST, FIRST + COUNT):
        if power % 2 == 1:
            value = term * x
        elif power == 0:
            value = term
        elif power == FIRST + COUNT - 1:
            value = term * square
        else:
            term = term * square
            value = term
        if len(sums) > 0:
            value += sums[power - FIRST]
        result = result + (value,)
    return result


@triton.jit
def element(dy, x, a, b, sums_a, sums_b):
    """dx of one element a lane, and the lane's sums with its terms (which start with them where they are ()).

    With P = Σ a_i x^i, Q = 1 + t R(t), R = Σ b_j t^(j-1), t = |x|, u = dy/Q, F = P/Q, w = u F:
    dx = u (P' - sign(x) F Q'),  d/da_i = u x^i,  d/d|b_j| = -w t^j.  Q' = R + t R' costs what R' costs.
    """
    t = tl.abs(x)
    square = x * x
    p, slope_p = with_slope(x, a)
    q, slope_q = with_slope(t, (1.0,) + b)
    r = reciprocal(q)
    u = dy * r
    f = p * r
    w = u * f
    dx = u * (slope_p - with_sign(f, x) * slope_q)
    sums_a = add_moments(sums_a, u, x, square, 0, len(a))
    sums_b = add_moments(sums_b, w, t, square, 1, len(b))
    return dx, sums_a, sums_b


@triton.jit
def some_rows(
    dy_ptr, x_ptr, dx_ptr, here, lanes, row, step, rows, column, dy_stride, x_stride, a, b, sums_a, sums_b,
    VECTOR: tl.constexpr, UNROLL: tl.constexpr, FLAT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """UNROLL rows of every lane, `step` rows and `lanes` vectors apart: dx is stored, the new sums come back."""
    within = tl.arange(0, VECTOR)[None, :]
    new_a = ()
    new_b = ()
    for k in tl.static_range(UNROLL):
        dx_at = (here + k * lanes)[:, None] * VECTOR + within
        if FLAT:
            dy_at = dx_at
            x_at = dx_at
        else:
            dy_at = ((row + k * step) * dy_stride + column)[:, None] * VECTOR + within
            x_at = ((row + k * step) * x_stride + column)[:, None] * VECTOR + within
        if MASKED:
            inside = (row + k * step < rows)[:, None]
            x = tl.load(x_ptr + x_at, mask=inside, other=0.0)
            dy = tl.load(dy_ptr + dy_at, mask=inside, other=0.0)
        else:
            x = tl.load(x_ptr + x_at)
            dy = tl.load(dy_ptr + dy_at)
        xs = elements(widen(x))
        dys = elements(widen(dy))
        dxs = ()
        for i in tl.static_range(VECTOR):
            dx, new_a, new_b = element(dys[i], xs[i], a, b, new_a, new_b)
            dxs = dxs + (dx,)
        if MASKED:
            tl.store(dx_ptr + dx_at, vectors(dxs), mask=inside)
        else:
            tl.store(dx_ptr + dx_at, vectors(dxs))
    return add(sums_a, new_a), add(sums_b, new_b)


@triton.jit(do_not_specialize=["rows", "step", "vectors_per_row", "vectors_per_group", "dy_stride", "x_stride"])
def backward_stationary_kernel(
    dy_ptr, x_ptr, a_ptr, b_ptr, dx_ptr, partial_ptr,
    rows, step, vectors_per_row, vectors_per_group, dy_stride, x_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, VECTOR: tl.constexpr, FLAT: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dx [rows, columns] and partial sums [M1 + N, groups, lanes of a group].

    Strides of rows are in vectors, those of tables in elements; FLAT where rows of x and dy follow one another.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = lane // vectors_per_row
    column = lane % vectors_per_row
    group = column // vectors_per_group
    a = load_coefficients(a_ptr + group * a_stride, M1)
    b = magnitudes(load_coefficients(b_ptr + group * b_stride, N))

    here = tl.cast(lane, tl.int64)
    row_here = tl.cast(row, tl.int64)
    lanes = tl.cast(step, tl.int64) * vectors_per_row
    full = rows // (step * UNROLL) * (step * UNROLL)
    sums_a = zeros(M1, BLOCK)
    sums_b = zeros(N, BLOCK)
    # A sum that starts at zero now and then rounds on small numbers: errors grow with √CHUNK, not with √passes.
    part_a = zeros(M1, BLOCK)
    part_b = zeros(N, BLOCK)
    passes = 0
    for _ in tl.range(0, full, step * UNROLL, num_stages=STAGES):
        part_a, part_b = some_rows(
            dy_ptr, x_ptr, dx_ptr, here, lanes, row_here, step, rows, column, dy_stride, x_stride, a, b, part_a, part_b,
            VECTOR, UNROLL, FLAT, False,
        )  # fmt: skip
        here += lanes * UNROLL
        if not FLAT:
            row_here += step * UNROLL
        passes += 1
        if passes == CHUNK:
            sums_a = add(sums_a, part_a)
            sums_b = add(sums_b, part_b)
            part_a = zeros(M1, BLOCK)
            part_b = zeros(N, BLOCK)
            passes = 0
    if FLAT:
        row_here = tl.cast(row, tl.int64) + full
    part_a, part_b = some_rows(
        dy_ptr, x_ptr, dx_ptr, here, lanes, row_here, step, rows, column, dy_stride, x_stride, a, b, part_a, part_b,
        VECTOR, UNROLL, FLAT, True,
    )  # fmt: skip
    sums_a = add(sums_a, part_a)
    sums_b = add(sums_b, part_b)

    lanes_of_group = step * vectors_per_group
    place = group * lanes_of_group + row * vectors_per_group + column % vectors_per_group
    for i in tl.static_range(M1):
        tl.store(partial_ptr + i * lanes + place, sums_a[i])
    for j in tl.static_range(N):
        tl.store(partial_ptr + (M1 + j) * lanes + place, sums_b[j])


@triton.jit(do_not_specialize=["lanes_of_group"])
def sum_partials_kernel(
    partial_ptr, b_ptr, da_ptr, db_ptr, lanes_of_group, b_stride, M1: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr
):
    """da [G, M1] and db [G, N] from the partial sums, in a fixed order: a program for each group and coefficient."""
    group = tl.program_id(0)
    i = tl.program_id(1)
    start = partial_ptr + (i * tl.num_programs(0) + group) * lanes_of_group
    total = tl.zeros([TILE], tl.float32)
    for first in range(0, lanes_of_group, TILE):
        lane = first + tl.arange(0, TILE)
        total += tl.load(start + lane, mask=lane < lanes_of_group, other=0.0)
    result = tl.sum(total)
    if i < M1:
        tl.store(da_ptr + group * M1 + i, result)
    else:
        j = i - M1
        b = tl.load(b_ptr + group * b_stride + j).to(tl.float32)
        tl.store(db_ptr + group * N + j, tl.where(b < 0, result, -result))


def launch_size(x: Tensor) -> tuple[int, int, int, int]:
    """(lanes in a program of 4 warps, programs on a multiprocessor, UNROLL, STAGES), measured on an H200.

    Few programs, all there at once, two lanes in a thread, were the fastest in a sweep. float32 waits for memory and
    wants three of them; with 16 bits issue, perhaps the ports of the registers, is scarce, and two rows at a time help.
    Blackwell's compiler pairs multiply-adds, and would spill with two lanes in a thread.
    """
    if INTERPRETED:
        return 4096, 1, 1, 1
    block = 128 if 100 <= capability(x.device) < 120 else 256
    return (block, 3, 1, 3) if x.element_size() == 4 else (block, 2, 2, 4)


@remembered
def plan(
    shape: tuple[int, ...], size: tuple[int, int, int, int], device: torch.device,
    dy_strides: tuple[int, ...], dy_dtype: torch.dtype, x_strides: tuple[int, ...], x_dtype: torch.dtype,
    a_shape: tuple[int, int], a_stride: int, a_dtype: torch.dtype,
    b_shape: tuple[int, int], b_stride: int, b_dtype: torch.dtype,
) -> tuple[Launch, int, Launch]:  # fmt: skip
    """Both launches, and the partial sums between them, for x and dy contiguous or of strides [row, 1]: made once."""
    columns = int(shape[-1])  # a number, also where rows are a symbol
    rows = math.prod(shape[:-1])
    dy_stride, x_stride = (strides[0] if len(shape) == 2 else columns for strides in (dy_strides, x_strides))
    groups, m1, n = max(a_shape[0], b_shape[0]), a_shape[1], b_shape[1]
    width = columns // groups
    vector = vector_width(max(x_dtype.itemsize, dy_dtype.itemsize), width, dy_stride, x_stride)
    vectors_per_row, vectors_per_group = columns // vector, width // vector
    block, on_multiprocessor, unroll, stages = size
    unit = whole_rows(vectors_per_row, block)
    fit = min(on_multiprocessor * multiprocessors(device), PARTIAL_BYTES // (4 * (m1 + n) * block))
    # As many passes over the rows as these programs need, in whole UNROLLs, and no more programs than the passes need.
    passes = triton.cdiv(triton.cdiv(rows * vectors_per_row, block), max(fit // unit, 1) * unit)
    passes = triton.cdiv(passes, unroll) * unroll
    programs = triton.cdiv(rows * vectors_per_row, block * passes * unit) * unit
    step = programs * block // vectors_per_row
    main = Launch(
        backward_stationary_kernel, (programs, 1),
        (rows, step, vectors_per_row, vectors_per_group, dy_stride // vector, x_stride // vector, a_stride, b_stride),
        M1=m1, N=n, VECTOR=vector, FLAT=dy_stride == x_stride == columns,
        BLOCK=block, UNROLL=unroll, STAGES=stages, CHUNK=CHUNK, num_warps=4,
    )  # fmt: skip
    last = Launch(
        sum_partials_kernel, (groups, m1 + n), (step * vectors_per_group, b_stride),
        M1=m1, N=n, TILE=16384, num_warps=32,
    )  # fmt: skip
    return main, (m1 + n) * programs * block, last


def backward_stationary(
    grad_output: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dnumerator, ddenominator). grad_output and x: [..., D] in float32, bfloat16 or float16; tables [G or 1, ·].

    dx is contiguous, in x's dtype. Sums are float32, in an order that depends on shape and device alone, and come back
    in the tables' dtypes.
    """
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return dx, torch.zeros_like(numerator), torch.zeros_like(denominator)
    dy = grad_output
    if not (dy.is_contiguous() and x.is_contiguous()):
        dy, x = as_rows(dy), as_rows(x)
    main, partial_sums, last = plan(
        x.shape, launch_size(x), x.device, dy.stride(), dy.dtype, x.stride(), x.dtype,
        numerator.shape, table_stride(numerator), numerator.dtype,
        denominator.shape, table_stride(denominator), denominator.dtype,
    )  # fmt: skip
    groups = group_count(numerator, denominator)
    partial = torch.empty(partial_sums, dtype=torch.float32, device=x.device)
    main(dy, x, numerator, denominator, dx, partial)
    da, db = sums_like(numerator, groups), sums_like(denominator, groups)
    last(partial, denominator, da, db)
    return dx, as_gradient(da, numerator), as_gradient(db, denominator)
