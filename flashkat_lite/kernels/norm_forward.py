"""A norm and the rational function behind it in one pass: z = F(LayerNorm(x)) or F(RMSNorm(x)), or the norm alone.

The normalised x is never in memory: a row lies in the registers of LANES positions, which add up its mean and variance
among themselves. The addition in front of the norm can be part of the pass: x + branch is normed, and stored too.

Bytes: x read once, z written once, and eight a row for its mean and 1/σ; with a branch, that read and the sum written.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .launch import BoundLaunch, cached_per_shape
from .layout import RowLayout, multiprocessors, row_layout, table_stride, to_2d
from .polynomial import horner, load_coefficients, magnitudes, reciprocal, to_float32


@triton.jit
def row_sums(x, LANES: tl.constexpr):
    """[BLOCK, k]: the sum over all positions of a row, at each of them."""
    rows: tl.constexpr = x.shape[0] // LANES
    sums = tl.sum(tl.reshape(x, [rows, LANES, x.shape[1]]), 1)
    return tl.reshape(tl.broadcast_to(sums[:, None, :], [rows, LANES, x.shape[1]]), x.shape)


@triton.jit
def own_columns(lane, CHUNKS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
                SEGMENT_LANES: tl.constexpr):  # fmt: skip
    """The columns that a position owns, as `RowLayout` has them: its first vector, and which of them there are.

    Vector k begins k · SEGMENT_LANES · VECTOR columns later, a constant, which costs no register.
    """
    place = lane % SEGMENT_LANES
    segment = lane // SEGMENT_LANES
    inside = ()
    for k in tl.static_range(CHUNKS):
        inside = inside + ((k * SEGMENT_LANES + place < SEGMENT) & (segment < SEGMENTS),)
    return segment * SEGMENT + place, inside


@triton.jit
def load_columns(pointer, vector, inside, VECTOR: tl.constexpr, CHUNKS: tl.constexpr, SEGMENT_LANES: tl.constexpr):
    """Each position's part of a vector [columns], float32: a tuple of [BLOCK, VECTOR]."""
    pointers = (pointer + vector * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]
    parts = ()
    for k in tl.static_range(CHUNKS):
        part = tl.load(pointers + k * SEGMENT_LANES * VECTOR, mask=inside[k][:, None], other=0.0)
        parts = parts + (part.to(tl.float32),)
    return parts


@triton.jit
def vectors_of(pointer, row, stride, vector, VECTOR: tl.constexpr):
    """Pointers to the first vector of each position in its row, [BLOCK, VECTOR]."""
    return (pointer + (row * stride + vector) * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]


@triton.jit(do_not_specialize=["rows", "x_stride", "branch_stride"])
def norm_forward_kernel(
    x_ptr, branch_ptr, weight_ptr, bias_ptr, a_ptr, b_ptr, z_ptr, sum_ptr, mean_ptr, rstd_ptr,
    rows, x_stride, branch_stride, a_stride, b_stride,
    M1: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr,
    CENTRED: tl.constexpr, BIAS: tl.constexpr, BRANCH: tl.constexpr,
    VECTOR: tl.constexpr, CHUNKS: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
    SEGMENT_LANES: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """z [rows, D], mean and rstd [rows]; with BRANCH also x + branch.

    Strides of rows are in vectors, those of tables in elements.
    BLOCK positions are BLOCK / LANES rows. M1 = 0: no rational function. Without CENTRED no mean: RMSNorm.
    """
    ROWS: tl.constexpr = BLOCK // LANES
    D: tl.constexpr = SEGMENTS * SEGMENT * VECTOR
    MASKED: tl.constexpr = LANES * CHUNKS != SEGMENTS * SEGMENT
    lane = tl.arange(0, BLOCK) % LANES
    STEP: tl.constexpr = SEGMENT_LANES * VECTOR
    vector, inside = own_columns(lane, CHUNKS, SEGMENT, SEGMENTS, SEGMENT_LANES)
    group = tl.minimum(lane // SEGMENT_LANES, SEGMENTS - 1)
    weight = load_columns(weight_ptr, vector, inside, VECTOR, CHUNKS, SEGMENT_LANES)
    if BIAS:
        bias = load_columns(bias_ptr, vector, inside, VECTOR, CHUNKS, SEGMENT_LANES)
    a = load_coefficients((a_ptr + group * a_stride)[:, None], M1)
    b = magnitudes(load_coefficients((b_ptr + group * b_stride)[:, None], N))

    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, BLOCK) // LANES
        x_ptrs = vectors_of(x_ptr, row, x_stride, vector, VECTOR)
        z_ptrs = vectors_of(z_ptr, row, D // VECTOR, vector, VECTOR)
        if BRANCH:
            branch_ptrs = vectors_of(branch_ptr, row, branch_stride, vector, VECTOR)
            sum_ptrs = vectors_of(sum_ptr, row, D // VECTOR, vector, VECTOR)
        xs = ()
        total = tl.zeros([BLOCK, VECTOR], tl.float32)
        for k in tl.static_range(CHUNKS):
            mask = ((row < rows) & inside[k] if MASKED else row < rows)[:, None]
            x = to_float32(tl.load(x_ptrs + k * STEP, mask=mask, other=0.0))
            if BRANCH:
                x += to_float32(tl.load(branch_ptrs + k * STEP, mask=mask, other=0.0))
                stored = x.to(sum_ptr.dtype.element_ty)
                tl.store(sum_ptrs + k * STEP, stored, mask=mask)
                x = stored.to(tl.float32)  # what the backward pass will read
            xs = xs + (x,)
            total += x
        if CENTRED:
            mean = row_sums(tl.sum(total, 1)[:, None], LANES) * (1.0 / D)
        squares = tl.zeros([BLOCK, VECTOR], tl.float32)
        centred = ()
        for k in tl.static_range(CHUNKS):
            x = xs[k]
            if CENTRED:
                x = x - mean
                if MASKED:
                    x = tl.where(inside[k][:, None], x, 0.0)
            centred = centred + (x,)
            squares = tl.fma(x, x, squares)
        rstd = tl.rsqrt(tl.fma(row_sums(tl.sum(squares, 1)[:, None], LANES), 1.0 / D, EPS))

        for k in tl.static_range(CHUNKS):
            y = centred[k] * rstd
            if BIAS:
                y = tl.fma(y, weight[k], bias[k])
            else:
                y = y * weight[k]
            if M1 > 0:
                y = horner(y, a) * reciprocal(horner(tl.abs(y), (1.0,) + b))
            mask = ((row < rows) & inside[k] if MASKED else row < rows)[:, None]
            tl.store(z_ptrs + k * STEP, y, mask=mask)
        first = (lane == 0) & (row < rows)
        if CENTRED:
            tl.store(mean_ptr + row, tl.reshape(mean, [BLOCK]), mask=first)
        tl.store(rstd_ptr + row, tl.reshape(rstd, [BLOCK]), mask=first)


def block_and_warps(layout: RowLayout, warps: int) -> tuple[int, int]:
    """Return (positions, warps) of a program: a position for each thread, and whole rows."""
    if INTERPRETED:
        return max(layout.lanes, 2048), 1
    return max(layout.lanes, 32 * warps), min(max(warps, layout.lanes // 32), 16)


def programs_of(tiles: int, most: int) -> int:
    """Return how many programs walk over `tiles`, at most `most` of them, all of them about equally far."""
    return triton.cdiv(tiles, triton.cdiv(tiles, most))


def constants(layout: RowLayout, block: int) -> dict[str, int]:
    """Return what both kernels are told of a layout."""
    return dict(
        VECTOR=layout.vector, CHUNKS=layout.chunks, SEGMENT=layout.segment_vectors, SEGMENTS=layout.segments,
        SEGMENT_LANES=layout.segment_lanes, LANES=layout.lanes, BLOCK=block,
    )  # fmt: skip


def launch_size(columns: int, x_bytes: int) -> tuple[int, int, int, int, int]:
    """Return (columns in a vector, chunks, warps, programs on a multiprocessor, STAGES); 0 chunks: `row_layout`'s rule.

    0 programs on a multiprocessor: one for each BLOCK.
    """
    return 16 // x_bytes, 0, 4, 0, 1


@cached_per_shape
def launch_config(
    shape: tuple[int, ...], size: tuple[int, int, int, int, int] | None, device: torch.device,
    x_stride: int, x_dtype: torch.dtype, branch_stride: int, branch_dtype: torch.dtype | None,
    dtypes: tuple[torch.dtype | None, ...], a_shape: tuple[int, int], b_shape: tuple[int, int],
    table_strides: tuple[int, int], centred: bool, eps: float,
) -> BoundLaunch:  # fmt: skip
    """Return the launch; dtypes: of weight, bias (None: there is none), both tables and z."""
    columns, rows = int(shape[-1]), math.prod(shape[:-1])
    groups = max(a_shape[0], b_shape[0])
    vector, chunks, warps, on_multiprocessor, stages = size or launch_size(columns, x_dtype.itemsize)
    layout = row_layout(columns, groups, math.gcd(vector, columns // groups, x_stride, branch_stride), chunks)
    block, warps = block_and_warps(layout, warps)
    tiles = triton.cdiv(rows, block // layout.lanes)
    programs = programs_of(tiles, on_multiprocessor * multiprocessors(device)) if on_multiprocessor else tiles
    return BoundLaunch(
        norm_forward_kernel, (programs, 1),
        (rows, x_stride // layout.vector, branch_stride // layout.vector, *table_strides),
        M1=a_shape[1], N=b_shape[1], EPS=eps, CENTRED=centred, BIAS=dtypes[1] is not None,
        BRANCH=branch_dtype is not None, **constants(layout, block), STAGES=stages, num_warps=warps,
    )  # fmt: skip


NO_TABLE = (1, 0)  # its shape, where the norm stands alone


def norm_forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    numerator: Tensor | None,
    denominator: Tensor | None,
    *,
    centred: bool = True,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    size: tuple[int, int, int, int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (z, x + branch, mean, rstd) for x and branch [..., D] in float32 or 16 bits; z is in `dtype`, or x's.

    weight, bias [D]; tables [G or 1, ·], or None for the norm alone. The sum has the wider dtype of the two, and is
    empty without a branch, as the mean is where not centred; mean and rstd are float32, [rows]. size: another launch
    than `launch_size` has.
    """
    z = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    rows = x.numel() // x.shape[-1]
    statistics = [torch.empty(n, dtype=torch.float32, device=x.device) for n in (rows if centred else 0, rows)]
    if branch is None:
        total = torch.empty(0, dtype=x.dtype, device=x.device)
    else:
        total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype), device=x.device)
    if z.numel() == 0:
        return z, total, *statistics
    rational = numerator is not None
    x = x if x.is_contiguous() else to_2d(x)
    if branch is not None and not branch.is_contiguous():
        branch = to_2d(branch)
    columns = x.shape[-1]
    strides = [columns if t is None or t.is_contiguous() else t.stride(0) for t in (x, branch)]
    launch = launch_config(
        x.shape, size, x.device, strides[0], x.dtype, strides[1], None if branch is None else branch.dtype,
        tuple(None if t is None else t.dtype for t in (weight, bias, numerator, denominator, z)),
        numerator.shape if rational else NO_TABLE, denominator.shape if rational else NO_TABLE,
        (table_stride(numerator), table_stride(denominator)) if rational else (0, 0), centred, eps,
    )  # fmt: skip
    # Where there is none of a tensor, the kernel is handed another and leaves it alone.
    launch(
        x, x if branch is None else branch, weight, weight if bias is None else bias,
        numerator if rational else weight, denominator if rational else weight,
        z, weight if branch is None else total, statistics[0] if centred else weight, statistics[1],
    )  # fmt: skip
    return z, total, *statistics
