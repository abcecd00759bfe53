"""Rung 3, the stationary backward: sums stay in registers while rows pass by, and nothing is added atomically.

Each of a program's BLOCK positions owns VECTOR neighbouring columns of one group and walks down the rows, `row_step` at
a time: the grid's positions cover a whole number of rows, so a position's group never changes, and neither do its
coefficients and its m+1+n partial sums. (In the words of accelerators the dataflow is output-stationary.) A second,
small launch adds the partial sums in a fixed order: the result is the same bits every time. From Hopper on its programs
are set up while the first launch ends, and wait for it.

Bytes: 3 · rows · D, and 8 (m+1+n) for each position of the grid. Atomic adds: none.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .launch import BoundLaunch, cached_per_shape, early
from .layout import (
    capability,
    empty_group_sums,
    group_count,
    multiprocessors,
    programs_per_whole_rows,
    sum_shared_groups,
    table_stride,
    to_2d,
    vector_width,
)
from .polynomial import horner_with_derivative, load_coefficients, magnitudes, mulsign, reciprocal, to_float32

PASSES_PER_FLUSH = 32  # passes whose sums start at zero, and then join the totals
PARTIAL_BYTES = 8_000_000  # of partial sums, at most


@triton.jit
def split_vector(x):
    """[BLOCK, VECTOR] as VECTOR tensors [BLOCK], even positions before odd ones at each halving."""
    if x.shape[1] == 1:
        return (tl.reshape(x, [x.shape[0]]),)
    else:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        return split_vector(even) + split_vector(odd)


@triton.jit
def join_vector(parts):
    """The inverse of `split_vector`."""
    if len(parts) == 1:
        return tl.reshape(parts[0], [parts[0].shape[0], 1])
    else:
        half: tl.constexpr = len(parts) // 2
        pairs = tl.join(join_vector(parts[:half]), join_vector(parts[half:]))
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
def backward_element(dy, x, a, b, sums_a, sums_b):
    """dx of one element a position, and its sums with the element's terms (which start with them where they are ()).

    With P = Σ a_i x^i, Q = 1 + t R(t), R = Σ b_j t^(j-1), t = |x|, u = dy/Q, F = P/Q, w = u F:
    dx = u (P' - sign(x) F Q'),  d/da_i = u x^i,  d/d|b_j| = -w t^j.  Q' = R + t R' costs what R' costs.
    """
    t = tl.abs(x)
    square = x * x
    p, slope_p = horner_with_derivative(x, a)
    q, slope_q = horner_with_derivative(t, (1.0,) + b)
    r = reciprocal(q)
    u = dy * r
    f = p * r
    w = u * f
    dx = u * (slope_p - mulsign(f, x) * slope_q)
    sums_a = add_moments(sums_a, u, x, square, 0, len(a))
    sums_b = add_moments(sums_b, w, t, square, 1, len(b))
    return dx, sums_a, sums_b


@triton.jit
def backward_rows(
    dy_ptr, x_ptr, dx_ptr, offset, positions, row, row_step, rows, column, dy_stride, x_stride, a, b, sums_a, sums_b,
    VECTOR: tl.constexpr, UNROLL: tl.constexpr, CONTIGUOUS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """UNROLL rows of every position, `row_step` rows or `positions` vectors apart: stores dx, returns the new sums."""
    vec = tl.arange(0, VECTOR)[None, :]
    new_a = ()
    new_b = ()
    for k in tl.static_range(UNROLL):
        dx_offs = (offset + k * positions)[:, None] * VECTOR + vec
        if CONTIGUOUS:
            dy_offs = dx_offs
            x_offs = dx_offs
        else:
            dy_offs = ((row + k * row_step) * dy_stride + column)[:, None] * VECTOR + vec
            x_offs = ((row + k * row_step) * x_stride + column)[:, None] * VECTOR + vec
        if MASKED:
            mask = (row + k * row_step < rows)[:, None]
            x = tl.load(x_ptr + x_offs, mask=mask, other=0.0)
            dy = tl.load(dy_ptr + dy_offs, mask=mask, other=0.0)
        else:
            x = tl.load(x_ptr + x_offs)
            dy = tl.load(dy_ptr + dy_offs)
        xs = split_vector(to_float32(x))
        dys = split_vector(to_float32(dy))
        dxs = ()
        for i in tl.static_range(VECTOR):
            dx, new_a, new_b = backward_element(dys[i], xs[i], a, b, new_a, new_b)
            dxs = dxs + (dx,)
        if MASKED:
            tl.store(dx_ptr + dx_offs, join_vector(dxs), mask=mask)
        else:
            tl.store(dx_ptr + dx_offs, join_vector(dxs))
    return add(sums_a, new_a), add(sums_b, new_b)


@triton.jit(do_not_specialize=["rows", "row_step", "vectors_per_row", "vectors_per_group", "dy_stride", "x_stride"])
def backward_stationary_kernel(
    dy_ptr, x_ptr, a_ptr, b_ptr, dx_ptr, partial_ptr,
    rows, row_step, vectors_per_row, vectors_per_group, dy_stride, x_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, VECTOR: tl.constexpr, CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr, PASSES_PER_FLUSH: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """dx [rows, columns] and partial sums [M1 + N, groups, positions of a group].

    Strides of rows are in vectors, those of tables in elements; CONTIGUOUS where rows of x and dy follow one another.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = position // vectors_per_row
    column = position % vectors_per_row
    group = column // vectors_per_group
    a = load_coefficients(a_ptr + group * a_stride, M1)
    b = magnitudes(load_coefficients(b_ptr + group * b_stride, N))

    offset = tl.cast(position, tl.int64)
    first_row = tl.cast(row, tl.int64)
    positions = tl.cast(row_step, tl.int64) * vectors_per_row
    full = rows // (row_step * UNROLL) * (row_step * UNROLL)
    sums_a = zeros(M1, BLOCK)
    sums_b = zeros(N, BLOCK)
    # A sum that starts at zero now and then rounds on small numbers: errors grow with its own passes, not with all.
    part_a = zeros(M1, BLOCK)
    part_b = zeros(N, BLOCK)
    passes = 0
    for _ in tl.range(0, full, row_step * UNROLL, num_stages=STAGES):
        part_a, part_b = backward_rows(
            dy_ptr, x_ptr, dx_ptr, offset, positions, first_row, row_step, rows, column, dy_stride, x_stride,
            a, b, part_a, part_b,
            VECTOR, UNROLL, CONTIGUOUS, False,
        )  # fmt: skip
        offset += positions * UNROLL
        if not CONTIGUOUS:
            first_row += row_step * UNROLL
        passes += 1
        if passes == PASSES_PER_FLUSH:
            sums_a = add(sums_a, part_a)
            sums_b = add(sums_b, part_b)
            part_a = zeros(M1, BLOCK)
            part_b = zeros(N, BLOCK)
            passes = 0
    if CONTIGUOUS:
        first_row = tl.cast(row, tl.int64) + full
    part_a, part_b = backward_rows(
        dy_ptr, x_ptr, dx_ptr, offset, positions, first_row, row_step, rows, column, dy_stride, x_stride,
        a, b, part_a, part_b,
        VECTOR, UNROLL, CONTIGUOUS, True,
    )  # fmt: skip
    sums_a = add(sums_a, part_a)
    sums_b = add(sums_b, part_b)

    positions_of_group = row_step * vectors_per_group
    partial_offs = group * positions_of_group + row * vectors_per_group + column % vectors_per_group
    for i in tl.static_range(M1):
        tl.store(partial_ptr + i * positions + partial_offs, sums_a[i])
    for j in tl.static_range(N):
        tl.store(partial_ptr + (M1 + j) * positions + partial_offs, sums_b[j])


@triton.jit(do_not_specialize=["positions_of_group"])
def sum_partials_kernel(
    partial_ptr, b_ptr, da_ptr, db_ptr, positions_of_group, b_stride,
    M1: tl.constexpr, N: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """da [G, M1] and db [G, N] from the partial sums, in a fixed order: a program for each group and coefficient."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
    group = tl.program_id(0)
    i = tl.program_id(1)
    start = partial_ptr + (i * tl.num_programs(0) + group) * positions_of_group
    total = tl.zeros([TILE], tl.float32)
    for first in range(0, positions_of_group, TILE):
        position = first + tl.arange(0, TILE)
        total += tl.load(start + position, mask=position < positions_of_group, other=0.0)
    result = tl.sum(total)
    if i < M1:
        tl.store(da_ptr + group * M1 + i, result)
    else:
        j = i - M1
        b = tl.load(b_ptr + group * b_stride + j).to(tl.float32)
        tl.store(db_ptr + group * N + j, tl.where(b < 0, result, -result))


def launch_size(element_size: int, device: torch.device) -> tuple[int, int, int, int]:
    """Return (positions in a program of 4 warps, programs on a multiprocessor, UNROLL, STAGES), measured on an H200.

    Few programs, all resident at once, with two positions in a thread, were the fastest in a sweep. float32 waits for
    memory and wants three of them; with 16 bits issue, perhaps the ports of the registers, is scarce, and two rows at a
    time help. Blackwell's compiler pairs multiply-adds, and would spill with two positions in a thread.
    """
    if INTERPRETED:
        return 4096, 1, 1, 1
    block = 128 if capability(device) >= 100 else 256
    return (block, 3, 1, 3) if element_size == 4 else (block, 2, 2, 4)


@cached_per_shape
def launch_config(
    shape: tuple[int, ...], size: tuple[int, int, int, int], device: torch.device,
    dy_strides: tuple[int, ...], dy_dtype: torch.dtype, x_strides: tuple[int, ...], x_dtype: torch.dtype,
    a_shape: tuple[int, int], a_stride: int, a_dtype: torch.dtype,
    b_shape: tuple[int, int], b_stride: int, b_dtype: torch.dtype,
) -> tuple[BoundLaunch, int, BoundLaunch]:  # fmt: skip
    """Return both launches, and how many partial sums lie between, for x and dy contiguous or of strides [row, 1].

    Cached by its arguments: device and dtypes are among them because a BoundLaunch keeps a compilation. The numbers in
    the comments are those of 201,728 rows of 768 float32 in 8 groups on an H200, for degrees (5, 4).
    """
    columns = int(shape[-1])  # a number, also where rows are a symbol
    rows = math.prod(shape[:-1])
    dy_stride, x_stride = (strides[0] if len(shape) == 2 else columns for strides in (dy_strides, x_strides))
    groups, m1, n = max(a_shape[0], b_shape[0]), a_shape[1], b_shape[1]
    width = columns // groups  # 96
    vector = vector_width(max(x_dtype.itemsize, dy_dtype.itemsize), width, dy_stride, x_stride)  # 4
    vectors_per_row, vectors_per_group = columns // vector, width // vector  # 192, 24
    block, on_multiprocessor, unroll, stages = size  # 256 positions, 3 programs, 1 row at a time
    period = programs_per_whole_rows(vectors_per_row, block)  # 3 programs cover 4 rows
    most = min(on_multiprocessor * multiprocessors(device), PARTIAL_BYTES // (4 * (m1 + n) * block))  # min(396, 781)
    # As many passes over the rows as these programs need, in whole UNROLLs, and no more programs than the passes need.
    passes = triton.cdiv(triton.cdiv(rows * vectors_per_row, block), max(most // period, 1) * period)  # 382.1, so 383
    passes = triton.cdiv(passes, unroll) * unroll
    programs = triton.cdiv(rows * vectors_per_row, block * passes * period) * period  # 396
    row_step = programs * block // vectors_per_row  # 528 rows a pass
    main = BoundLaunch(
        backward_stationary_kernel, (programs, 1),
        (rows, row_step, vectors_per_row, vectors_per_group,
         dy_stride // vector, x_stride // vector, a_stride, b_stride),
        early(device, waits=False), EARLY=False, M1=m1, N=n, VECTOR=vector, CONTIGUOUS=dy_stride == x_stride == columns,
        BLOCK=block, UNROLL=unroll, STAGES=stages, PASSES_PER_FLUSH=PASSES_PER_FLUSH, num_warps=4,
    )  # fmt: skip
    last = BoundLaunch(
        sum_partials_kernel, (groups, m1 + n), (row_step * vectors_per_group, b_stride),
        early(device, waits=True), EARLY=False, M1=m1, N=n, TILE=16384, num_warps=32,
    )  # fmt: skip
    return main, (m1 + n) * programs * block, last


def backward_stationary(
    grad_output: Tensor,
    x: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    size: tuple[int, int, int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dnumerator, ddenominator) for grad_output and x [..., D] in float32 or 16 bits; tables [G or 1, ·].

    dx is contiguous, in x's dtype. Sums are float32, in an order that depends on shape and device alone, and come back
    in the tables' dtypes. size: another launch than `launch_size` has.
    """
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return dx, torch.zeros_like(numerator), torch.zeros_like(denominator)
    dy = grad_output
    if not (dy.is_contiguous() and x.is_contiguous()):
        dy, x = to_2d(dy), to_2d(x)
    main, partial_sums, last = launch_config(
        x.shape, size or launch_size(x.element_size(), x.device), x.device, dy.stride(), dy.dtype, x.stride(), x.dtype,
        numerator.shape, table_stride(numerator), numerator.dtype,
        denominator.shape, table_stride(denominator), denominator.dtype,
    )  # fmt: skip
    groups = group_count(numerator, denominator)
    partial = torch.empty(partial_sums, dtype=torch.float32, device=x.device)
    main(dy, x, numerator, denominator, dx, partial)
    da, db = empty_group_sums(numerator, groups), empty_group_sums(denominator, groups)
    last(partial, denominator, da, db)
    return dx, sum_shared_groups(da, numerator), sum_shared_groups(db, denominator)
