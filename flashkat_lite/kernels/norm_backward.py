"""The backward pass of `norm_forward`: every gradient in one walk over the rows, nothing added atomically.

As in the stationary backward a position keeps its columns while rows pass by: the sums down the columns (dγ and dβ, and
those of its group's table) stay in registers. The two sums along a row, which dx needs, are made on the way. A second,
small launch adds what the programs found, in a fixed order: the result is the same bits every time.

While a warp computes a row, the next is on its way: into registers where a row is a warp's own, so that warps never
wait for one another, and into shared memory where a row is shared.

With z = F(y), y = γ x̂ + β, x̂ = (x - mean) / σ, e = γ dy:  dx = (e - mean(e) - x̂ mean(e x̂)) / σ, without mean(e) for an
RMSNorm; dγ = Σ dy x̂, dβ = Σ dy, sums over rows.

Bytes: x and dz read, dx written; where a branch was added, its sum's own gradient read, and the branch's written where
it has another dtype.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .backward_stationary import add, backward_element, join_vector, split_vector, zeros
from .launch import BoundLaunch, cached_per_shape, early, registers_for
from .layout import (
    RowLayout,
    capability,
    empty_group_sums,
    multiprocessors,
    row_layout,
    sum_shared_groups,
    table_stride,
    to_2d,
)
from .norm_forward import (
    NO_TABLE,
    block_and_warps,
    constants,
    load_columns,
    own_columns,
    programs_of,
    row_sums,
    vectors_of,
)
from .polynomial import load_coefficients, magnitudes, to_float32

PASSES_PER_FLUSH = 64  # rows of a position whose sums start at zero, and then join what the program found before
SUMS, PROGRAMS = (4096, 4) if INTERPRETED else (16, 512)  # a program of the second launch adds at a time
MOST_WARPS = 16  # on a multiprocessor
PARTIAL_BYTES = 16_000_000  # of what programs found, at most


@triton.jit
def load_rows(
    source, row, rows, vector, inside,
    CENTRED: tl.constexpr, VECTOR: tl.constexpr, CHUNKS: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Each position's part of its row of x and of dz, as stored; and the row's mean (if CENTRED) and rstd, [BLOCK]."""
    x_ptr, dz_ptr, mean_ptr, rstd_ptr, x_stride, dz_stride = source
    x_ptrs = vectors_of(x_ptr, row, x_stride, vector, VECTOR)
    dz_ptrs = vectors_of(dz_ptr, row, dz_stride, vector, VECTOR)
    rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
    mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0) if CENTRED else rstd
    x = ()
    dz = ()
    for k in tl.static_range(CHUNKS):
        mask = ((row < rows) & inside[k] if MASKED else row < rows)[:, None]
        x = x + (tl.load(x_ptrs + k * STEP, mask=mask, other=0.0),)
        dz = dz + (tl.load(dz_ptrs + k * STEP, mask=mask, other=0.0),)
    return x, dz, mean, rstd


@triton.jit
def add_to(pointer, value, mask, first):
    """Add to what this program stored there, or start it."""
    if first == 0:
        value += tl.load(pointer, mask=mask, other=0.0)
    tl.store(pointer, value, mask=mask)


@triton.jit(do_not_specialize=["rows", "dz_stride", "x_stride", "dsum_stride"])
def norm_backward_kernel(
    dz_ptr, x_ptr, dsum_ptr, weight_ptr, bias_ptr, a_ptr, b_ptr, mean_ptr, rstd_ptr, dx_ptr, dbranch_ptr, partial_ptr,
    rows, dz_stride, x_stride, dsum_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr,
    DSUM: tl.constexpr, DBRANCH: tl.constexpr,
    VECTOR: tl.constexpr, CHUNKS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
    SEGMENT_LANES: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    PASSES_PER_FLUSH: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """dx [rows, D] and partial sums [programs, K]: D of dγ, D of dβ, and (M1 + N) · SEGMENTS of the tables.

    Strides of rows in vectors, of tables in elements. With DSUM a gradient is added to dx, with DBRANCH dx is stored
    twice, in two dtypes.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    ROWS: tl.constexpr = BLOCK // LANES
    D: tl.constexpr = SEGMENTS * SEGMENT * VECTOR
    MASKED: tl.constexpr = LANES * CHUNKS != SEGMENTS * SEGMENT
    OF_BIAS: tl.constexpr = D if BIAS else 0
    lane = tl.arange(0, BLOCK) % LANES
    STEP: tl.constexpr = SEGMENT_LANES * VECTOR
    vector, inside = own_columns(lane, CHUNKS, SEGMENT, SEGMENTS, SEGMENT_LANES)
    group = tl.minimum(lane // SEGMENT_LANES, SEGMENTS - 1)
    weight = load_columns(weight_ptr, vector, inside, VECTOR, CHUNKS, SEGMENT_LANES)
    if BIAS:
        bias = load_columns(bias_ptr, vector, inside, VECTOR, CHUNKS, SEGMENT_LANES)
    a = load_coefficients(a_ptr + group * a_stride, M1)
    b = magnitudes(load_coefficients(b_ptr + group * b_stride, N))

    program = tl.program_id(0)
    step = tl.num_programs(0)
    tiles = tl.cdiv(rows, ROWS)
    source = (x_ptr, dz_ptr, mean_ptr, rstd_ptr, x_stride, dz_stride)
    BY_HAND: tl.constexpr = STAGES == 0
    if BY_HAND:
        row = tl.cast(program, tl.int64) * ROWS + tl.arange(0, BLOCK) // LANES
        ahead = load_rows(source, row, rows, vector, inside, CENTRED, VECTOR, CHUNKS, STEP, MASKED)
    for start in tl.range(program, tiles, step * PASSES_PER_FLUSH):
        dweight = ()
        dbias = ()
        for _ in tl.static_range(CHUNKS):
            dweight = dweight + (tl.zeros([BLOCK, VECTOR], tl.float32),)
            dbias = dbias + (tl.zeros([BLOCK, VECTOR], tl.float32),)
        sums_a = zeros(M1, BLOCK)
        sums_b = zeros(N, BLOCK)
        for tile in tl.range(
            start, tl.minimum(start + step * PASSES_PER_FLUSH, tiles), step, num_stages=1 if BY_HAND else STAGES
        ):
            row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, BLOCK) // LANES
            if BY_HAND:
                x_parts, dz_parts, mean, rstd = ahead
                next_row = row + tl.cast(step, tl.int64) * ROWS
                ahead = load_rows(source, next_row, rows, vector, inside, CENTRED, VECTOR, CHUNKS, STEP, MASKED)
            else:
                x_parts, dz_parts, mean, rstd = load_rows(
                    source, row, rows, vector, inside, CENTRED, VECTOR, CHUNKS, STEP, MASKED
                )
            mean = mean[:, None]
            rstd = rstd[:, None]
            new_a = ()
            new_b = ()
            new_weight = ()
            new_bias = ()
            es = ()
            xs = ()
            along_e = tl.zeros([BLOCK, VECTOR], tl.float32)
            along_ex = tl.zeros([BLOCK, VECTOR], tl.float32)
            for k in tl.static_range(CHUNKS):
                x = to_float32(x_parts[k])
                dy = to_float32(dz_parts[k])
                if CENTRED:
                    x = x - mean
                x = x * rstd
                if M1 > 0:
                    y = x * weight[k]
                    if BIAS:
                        y = tl.fma(x, weight[k], bias[k])
                    ys = split_vector(y)
                    dzs = split_vector(dy)
                    dys = ()
                    for i in tl.static_range(VECTOR):
                        dy_i, new_a, new_b = backward_element(dzs[i], ys[i], a, b, new_a, new_b)
                        dys = dys + (dy_i,)
                    dy = join_vector(dys)
                new_weight = new_weight + (tl.fma(dy, x, dweight[k]),)
                if BIAS:
                    new_bias = new_bias + (dbias[k] + dy,)
                e = dy * weight[k]
                if CENTRED:
                    along_e += e
                along_ex = tl.fma(e, x, along_ex)
                es = es + (e,)
                xs = xs + (x,)
            dweight = new_weight
            if BIAS:
                dbias = new_bias
            if M1 > 0:
                sums_a = add(sums_a, new_a)
                sums_b = add(sums_b, new_b)

            of_ex = tl.sum(along_ex, 1)
            if CENTRED:
                pairs = row_sums(tl.join(tl.sum(along_e, 1), of_ex), LANES)
                of_e, of_ex = tl.split(pairs)
                minus_mean_e = of_e[:, None] * (-1.0 / D) * rstd
            else:
                of_ex = tl.reshape(row_sums(of_ex[:, None], LANES), [BLOCK])
            minus_mean_ex = of_ex[:, None] * (-1.0 / D) * rstd
            dx_ptrs = vectors_of(dx_ptr, row, D // VECTOR, vector, VECTOR)
            if DSUM:
                dsum_ptrs = vectors_of(dsum_ptr, row, dsum_stride, vector, VECTOR)
            if DBRANCH:
                dbranch_ptrs = vectors_of(dbranch_ptr, row, D // VECTOR, vector, VECTOR)
            for k in tl.static_range(CHUNKS):
                mask = ((row < rows) & inside[k] if MASKED else row < rows)[:, None]
                if CENTRED:
                    dx = tl.fma(es[k], rstd, minus_mean_e)
                else:
                    dx = es[k] * rstd
                dx = tl.fma(xs[k], minus_mean_ex, dx)
                if DSUM:
                    dx += to_float32(tl.load(dsum_ptrs + k * STEP, mask=mask, other=0.0))
                tl.store(dx_ptrs + k * STEP, dx, mask=mask)
                if DBRANCH:
                    tl.store(dbranch_ptrs + k * STEP, dx, mask=mask)

        # To memory now and then: sums that start at zero round on small numbers, and no registers hold the totals.
        first = start == program
        tl.debug_barrier()  # another thread may have stored what this one adds to
        found = partial_ptr + tl.cast(program, tl.int64) * (D + OF_BIAS + (M1 + N) * SEGMENTS)
        vector_of_row, own = own_columns(tl.arange(0, LANES), CHUNKS, SEGMENT, SEGMENTS, SEGMENT_LANES)
        found_ptrs = vectors_of(found, 0, 0, vector_of_row, VECTOR)
        for k in tl.static_range(CHUNKS):
            of_weight = tl.sum(tl.reshape(dweight[k], [ROWS, LANES, VECTOR]), 0)
            add_to(found_ptrs + k * STEP, of_weight, own[k][:, None], first)
            if BIAS:
                of_bias = tl.sum(tl.reshape(dbias[k], [ROWS, LANES, VECTOR]), 0)
                add_to(found_ptrs + D + k * STEP, of_bias, own[k][:, None], first)
        of_group = tl.arange(0, LANES // SEGMENT_LANES)
        sums = sums_a + sums_b
        for i in tl.static_range(M1 + N):
            by_group = tl.reshape(sums[i], [ROWS, LANES // SEGMENT_LANES, SEGMENT_LANES])
            total = tl.sum(tl.sum(by_group, 2), 0)
            add_to(found + D + OF_BIAS + i * SEGMENTS + of_group, total, of_group < SEGMENTS, first)


@triton.jit(do_not_specialize=["programs"])
def norm_sums_kernel(
    partial_ptr, b_ptr, dweight_ptr, dbias_ptr, da_ptr, db_ptr, programs, b_stride,
    D: tl.constexpr, BIAS: tl.constexpr, SEGMENTS: tl.constexpr, M1: tl.constexpr, N: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """The sums over programs, in a fixed order: COLUMNS of the K sums in a program; da [G, M1] and db [G, N]."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
    OF_BIAS: tl.constexpr = D if BIAS else 0
    K: tl.constexpr = D + OF_BIAS + (M1 + N) * SEGMENTS
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([TILE, COLUMNS], tl.float32)
    for first in range(0, programs, TILE):
        row = first + tl.arange(0, TILE)[:, None]
        mask = (row < programs) & (column < K)[None, :]
        total += tl.load(partial_ptr + tl.cast(row, tl.int64) * K + column[None, :], mask=mask, other=0.0)
    result = tl.sum(total, 0)
    tl.store(dweight_ptr + column, result, mask=column < D)
    if BIAS:
        tl.store(dbias_ptr + column - D, result, mask=(column >= D) & (column < 2 * D))
    if M1 > 0:
        of_table = column - D - OF_BIAS
        group = of_table % SEGMENTS
        i = of_table // SEGMENTS
        tl.store(da_ptr + group * M1 + i, result, mask=(of_table >= 0) & (i < M1))
        of_b = (of_table >= 0) & (i >= M1) & (i < M1 + N)
        b = tl.load(b_ptr + group * b_stride + i - M1, mask=of_b, other=0.0).to(tl.float32)
        tl.store(db_ptr + group * N + i - M1, tl.where(b < 0, result, -1.0 * result), mask=of_b)


def launch_size(layout: RowLayout, coefficients: int, x_bytes: int, capability: int) -> tuple[int, int, int]:
    """Return (warps, programs on a multiprocessor, STAGES), for so many coefficients of a group.

    STAGES = 0: the next rows are loaded by hand, into registers. The fastest of some forty on an H100, for float32 x
    and 50,432 rows, at 192, 384 and 768 columns (2026-11-28). Programs are as small as a row allows, since warps of one
    program wait for one another. Twelve warps on a multiprocessor leave a thread 168 registers: enough for these sums,
    but not on Blackwell, whose compiler pairs multiply-adds, nor before Hopper, where Triton 3.6 spills with them.
    """
    if capability >= 100:
        return 4, 2, 3
    few = layout.chunks * layout.vector <= 12 and coefficients <= 10
    if layout.lanes <= 32:
        return 1, (12 if capability >= 90 else 10) if few else 8, 0
    return 2, 6 if few else 4, 3 if x_bytes == 4 else 0


@cached_per_shape
def launch_config(
    shape: tuple[int, ...], size: tuple[int, int, int, int, int] | None, device: torch.device,
    strides: tuple[int, int, int], x_dtype: torch.dtype, dz_dtype: torch.dtype,
    dsum_dtype: torch.dtype | None, branch_dtype: torch.dtype | None,
    dtypes: tuple[torch.dtype | None, ...], a_shape: tuple[int, int], b_shape: tuple[int, int],
    table_strides: tuple[int, int], centred: bool,
) -> tuple[BoundLaunch, tuple[int, int], BoundLaunch]:  # fmt: skip
    """Return both launches, and the shape of what lies between; strides: of dz, x and dsum; dtypes: of parameters."""
    columns, rows = int(shape[-1]), math.prod(shape[:-1])
    m1, n, groups = a_shape[1], b_shape[1], max(a_shape[0], b_shape[0])
    vector, chunks = size[:2] if size else (4, 0)
    layout = row_layout(columns, groups, math.gcd(vector, columns // groups, *strides), chunks)
    warps, on_multiprocessor, stages = (
        size[2:] if size else launch_size(layout, m1 + n, x_dtype.itemsize, capability(device))
    )
    block, warps = block_and_warps(layout, warps)
    on_multiprocessor = min(on_multiprocessor, max(MOST_WARPS // warps, 1))  # where rows are wide
    has_bias = dtypes[1] is not None
    sums = columns * (1 + has_bias) + (m1 + n) * groups
    most = min(on_multiprocessor * multiprocessors(device), max(PARTIAL_BYTES // (4 * sums), 1))
    programs = programs_of(triton.cdiv(rows, block // layout.lanes), 1 if INTERPRETED else most)
    main = BoundLaunch(
        norm_backward_kernel, (programs, 1),
        (rows, *(stride // layout.vector for stride in strides), *table_strides),
        registers_for(warps * on_multiprocessor, device) | early(device, waits=False),
        M1=m1, N=n, CENTRED=centred, BIAS=has_bias, DSUM=dsum_dtype is not None, DBRANCH=branch_dtype is not None,
        **constants(layout, block), STAGES=stages, PASSES_PER_FLUSH=PASSES_PER_FLUSH, EARLY=False, num_warps=warps,
    )  # fmt: skip
    last = BoundLaunch(
        norm_sums_kernel, (triton.cdiv(sums, SUMS), 1), (programs, table_strides[1]),
        early(device, waits=True), EARLY=False, D=columns, BIAS=has_bias, SEGMENTS=groups, M1=m1, N=n,
        COLUMNS=SUMS, TILE=PROGRAMS, num_warps=16,
    )  # fmt: skip
    return main, (programs, sums), last


def norm_backward(
    dz: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
    *,
    branch_dtype: torch.dtype | None = None,
    size: tuple[int, int, int, int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (dx, dbranch, dweight, dbias, dnumerator, ddenominator); of what is not there, an empty tensor.

    dz [..., D] is z's gradient, dsum the other one of x, which was normed: x itself or x + branch; mean (empty for an
    RMSNorm) and rstd as `norm_forward` has them. dbranch is dx in branch_dtype, where that is given. All dx are
    contiguous. Sums are float32, in an order that depends on shape and device alone, and come in the parameters'
    dtypes.
    """
    rational, tables = numerator is not None, (numerator, denominator)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dbranch = torch.empty(0 if branch_dtype is None else x.shape, dtype=branch_dtype or x.dtype, device=x.device)
    if x.numel() == 0:
        return dx, dbranch, *(x.new_zeros(0) if t is None else torch.zeros_like(t) for t in (weight, bias, *tables))
    dz, x, dsum = (t if t is None or t.is_contiguous() else to_2d(t) for t in (dz, x, dsum))
    columns = x.shape[-1]
    strides = tuple(columns if t is None or t.is_contiguous() else t.stride(0) for t in (dz, x, dsum))
    main, partial_shape, last = launch_config(
        x.shape, size, x.device, strides, x.dtype, dz.dtype, None if dsum is None else dsum.dtype, branch_dtype,
        tuple(None if t is None else t.dtype for t in (weight, bias, *tables)),
        *((t.shape for t in tables) if rational else (NO_TABLE, NO_TABLE)),
        tuple(table_stride(t) for t in tables) if rational else (0, 0), mean.numel() > 0,
    )  # fmt: skip
    partial = torch.empty(partial_shape, dtype=torch.float32, device=x.device)
    # Where there is none of a tensor, the kernel is handed another and leaves it alone.
    a, b = tables if rational else (weight, weight)
    main(
        dz, x, x if dsum is None else dsum, weight, weight if bias is None else bias, a, b,
        mean if mean.numel() else rstd, rstd, dx, rstd if branch_dtype is None else dbranch, partial,
    )  # fmt: skip
    dweight = torch.empty_like(weight)
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    groups = max(t.shape[0] for t in tables) if rational else 1
    da, db = (empty_group_sums(t, groups) if rational else x.new_empty(0) for t in tables)
    last(partial, b, *(t if t.numel() else weight for t in (dweight, dbias, da, db)))
    if rational:
        da, db = sum_shared_groups(da, numerator), sum_shared_groups(db, denominator)
    return dx, dbranch, dweight, dbias, da, db
